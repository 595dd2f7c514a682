"""From the numbers of a diagnosis to sentences: which methods are worth trying, each with the number behind it.

A sentence is said only where the whole 95 % interval of its number is on one side of its threshold; else the number is
told as undecided, or not at all. The thresholds are ours.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from satisfice.measurement.diagnosis import Diagnosis, Measured

CUT = 0.005
"""Share of responses at the limit above which the limit itself may decide."""
MUCH_AFTER = 0.2
"""Share of a thinking after its answer has settled, from which on there is something to save."""
MOSTLY = 0.5
"""Share of boundaries at which the end marker is at hand, above which a push is enough."""
NEARLY_AS_GOOD = 0.02
"""Accuracy that may be missing to the whole thinking."""
SEVERAL = 0.01
"""Share of responses above which loops, or answers that were spoiled, are worth a method of their own."""


class Advice(BaseModel):
    """One sentence.

    Attributes:
        kind: "first" is to be done before anything is compared, "try" and "skip" are about methods, "unsure" says
            what the data do not decide.
        methods: what it is about, as `satisfice methods` and `satisfice objectives` list them.
        because: the sentence with its number.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["first", "try", "skip", "unsure"]
    methods: tuple[str, ...] = ()
    because: str


def advise(found: Diagnosis) -> list[Advice]:
    """What a diagnosis recommends, the most urgent first."""
    advice = [*_limit(found), *_overthinking(found), *_end_marker(found), *_without_thinking(found)]
    return [*advice, *_wrong_ones(found)]


def _limit(found: Diagnosis) -> list[Advice]:
    cap = "the token limit" if found.cap is None else f"the token limit of {found.cap:,}"
    if _above(found.cut, CUT):
        return [
            Advice(
                kind="first",
                because=f"{cap} cuts off {_percent(found.cut)}: raise --max-tokens until it is less than "
                f"{100 * CUT:g} %, or every method that shortens looks better than it is.",
            )
        ]
    return []


def _overthinking(found: Diagnosis) -> list[Advice]:
    after = found.overthinking
    if after is None:
        return []
    how = "when it is asked at every boundary" if found.source == "asked" else "as far as its text states it"
    number = f"the answer no longer changes in the last {_percent(after)} of a thinking, {how}"
    exits = ("deer", "adaptive-think", "entrocut", "temperature-scaling")
    if _above(after, MUCH_AFTER):
        return [Advice(kind="try", methods=exits, because=f"{number}: that much could be saved.")]
    if _below(after, MUCH_AFTER):
        return [Advice(kind="skip", methods=exits, because=f"{number}: there is little to save.")]
    return [Advice(kind="unsure", methods=exits, because=f"{number}; more problems would decide it (--limit).")]


def _end_marker(found: Diagnosis) -> list[Advice]:
    hand = found.at_hand
    if hand is None:
        return []
    number = (
        f"where thinking could stop and goes on, the end marker is among the 5 likeliest tokens in {_percent(hand)}"
    )
    if _above(hand, MOSTLY):
        return [Advice(kind="try", methods=("temperature-scaling",), because=f"{number}: a push is enough.")]
    if _below(hand, MOSTLY):
        return [
            Advice(kind="skip", methods=("temperature-scaling",), because=f"{number}: it would have to be pushed far."),
            Advice(
                kind="try", methods=("tldr", "l1-exact"), because=f"{number}: where to stop has to be learned instead."
            ),
        ]
    return [Advice(kind="unsure", methods=("temperature-scaling",), because=f"{number}.")]


def _without_thinking(found: Diagnosis) -> list[Advice]:
    lost = found.without_thinking
    if lost is None or lost.low is None or lost.high is None:
        return []
    number = (
        f"without any thinking the accuracy changes by {100 * lost.value:+.1f} points ({100 * lost.low:+.1f} to "
        f"{100 * lost.high:+.1f}, n = {lost.n:,})"
    )
    if _above(lost, -NEARLY_AS_GOOD):
        return [Advice(kind="try", methods=("no-thinking",), because=f"{number}.")]
    if _below(lost, -NEARLY_AS_GOOD):
        return [Advice(kind="skip", methods=("no-thinking",), because=f"{number}.")]
    return [Advice(kind="unsure", methods=("no-thinking",), because=f"{number}.")]


def _wrong_ones(found: Diagnosis) -> list[Advice]:
    advice = []
    longer = found.wrong_longer
    if longer is not None and _above(longer, 0):
        advice.append(
            Advice(
                kind="try",
                methods=("length-filtered-vote", "budget-forcing"),
                because=f"wrong responses think {longer.value:,.0f} tokens longer ({longer.low:,.0f} to "
                f"{longer.high:,.0f}) than right ones: great length is a sign of failure, so a ceiling above "
                f"{found.length_p95:,.0f}, the length of 95 % of all, costs little.",
            )
        )
    if found.loops is not None and _above(found.loops, SEVERAL):
        advice.append(
            Advice(
                kind="try",
                methods=("budget-forcing", "no-wait"),
                because=f"{_percent(found.loops)} end in a loop, which no longer limit cures.",
            )
        )
    if found.spoiled is not None and _above(found.spoiled, SEVERAL):
        advice.append(
            Advice(
                kind="try",
                methods=("self-consistency", "deer"),
                because=f"{_percent(found.spoiled)} had the right answer on the way and are wrong in the end.",
            )
        )
    return advice


def _above(number: Measured, threshold: float) -> bool:
    return number.low is not None and number.low > threshold


def _below(number: Measured, threshold: float) -> bool:
    return number.high is not None and number.high < threshold


def _percent(number: Measured) -> str:
    ends = "" if number.low is None or number.high is None else f"{100 * number.low:.1f} to {100 * number.high:.1f}, "
    return f"{100 * number.value:.1f} % ({ends}n = {number.n:,})"
