"""What a run shows, in words, and no more than it shows.

Every word that claims something is chosen by `accuracy_claim` and `saving_claim`, from intervals that hold for all
methods of the run together, and nowhere else. A gain or a loss of accuracy has to be there with and without the
responses that the token limit cut off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from satisfice.measurement import Row, Summary

COUNTED = {
    "thinking": "thinking tokens",
    "retained": "response tokens",
    "total": "tokens in all",
    "with prefill": "tokens, prefill included",
}
"""What each counting convention counts, as it reads in a sentence."""


@dataclass(frozen=True)
class Headline:
    """What a run shows.

    Attributes:
        lead: the finding, one sentence.
        evidence: how sure it is: intervals, number of problems, how the method was picked. May be empty.
    """

    lead: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.lead} {self.evidence}".strip()


AccuracyClaim = Literal["more", "less", "kept", "limit", "open"]
"""Right more often; right less often; no loss above the margin; whatever it is, the token limit may have made it; not
decided."""

SavingClaim = Literal["fewer", "more", "open"]


def saving_claim(row: Row, summary: Summary) -> SavingClaim:
    """Whether a method writes fewer or more tokens than the baseline, as far as its interval says so."""
    low, high = _interval(row, "token_saving", summary)
    if low is not None and low > 0:
        return "fewer"
    return "more" if high is not None and high < 0 else "open"


def accuracy_claim(row: Row, summary: Summary) -> AccuracyClaim:
    """What may be said about the accuracy of a method against the baseline's.

    "more" and "less" need an interval without 0, and another one on the same side without the pairs that were cut
    off; "kept" needs both above minus the margin.
    """
    low, high = _interval(row, "accuracy_difference", summary)
    uncut_low, uncut_high = _uncut(row, summary)
    if low is None or high is None:
        return "open"
    if low > 0 or high < 0:
        if low > 0 and uncut_low is not None and uncut_low > 0:
            return "more"
        if high < 0 and uncut_high is not None and uncut_high < 0:
            return "less"
        return "limit"
    if low > -summary.margin:
        return "kept" if uncut_low is not None and uncut_low > -summary.margin else "limit"
    return "open"


def headline(summary: Summary) -> Headline:
    """What the run shows, from the table alone.

    The method put forward is one that certainly writes fewer tokens, and of those the one that saves most in the best
    class of accuracy that there is: right more often, or no loss above the margin; a certain loss within the margin;
    nothing decided and no loss above the margin seen; nothing decided; a certain loss.
    """
    base = summary.row(summary.baseline)
    compared = summary.compared
    if not compared:
        return _alone(summary, base)
    savers = [row for row in compared if saving_claim(row, summary) == "fewer"]
    if not savers:
        return _nobody_saves(summary, compared)
    best = min(savers, key=lambda row: (_accuracy_class(row, summary), -(row.token_saving or 0)))
    evidence = [_intervals(best, summary), *_without_cut(best, summary)]
    if len(savers) > 1 and all(accuracy_claim(row, summary) == "less" for row in savers):
        evidence.append(f"So are all {len(savers)} methods that write fewer.")
    elif len(compared) > 1:
        evidence.append(f"Of {len(compared)} methods it was picked by its results on these same problems.")
    return Headline(_comparison(best, summary), " ".join([*evidence, *_failed(best, base)]))


def _comparison(row: Row, summary: Summary) -> str:
    """A method against the baseline in one sentence: tokens, accuracy, and how often each was cut off."""
    counted, base = COUNTED[summary.convention], summary.baseline
    tokens = saving_claim(row, summary)
    if row.token_saving is None:
        wrote = f"{row.method} has nothing to save against {base}, which wrote no {counted}"
    elif tokens == "open":
        wrote = (
            f"Whether {row.method} writes fewer or more {counted} than {base} is not decided at n = "
            f"{row.paired_problems:,} (here {_change(row.token_saving)})"
        )
    else:
        wrote = f"{row.method} writes {_change(row.token_saving)} {counted} than {base}"
    low, high = _interval(row, "accuracy_difference", summary)
    uncut_low, _ = _uncut(row, summary)
    claim = accuracy_claim(row, summary)
    if claim == "more":
        verdict = " and is right more often"
    elif claim == "less":
        verdict = (", but" if tokens == "fewer" else " and") + " is right less often"
        if low is not None and uncut_low is not None and min(low, uncut_low) > -summary.margin:
            verdict += f", by at most {_size(-low)}"
    elif claim == "kept":
        verdict = f" and keeps the accuracy within {_size(summary.margin)}"
    elif claim == "limit":
        verdict = "; whether their accuracies differ the token limit may have decided, not the method"
    else:
        verdict = f"; a difference in accuracy is not decided at n = {row.paired_problems:,}"
        if low is not None and high is not None:
            verdict += f" (at most {_size(max(0.0, -low))} less, at most {_size(max(0.0, high))} more)"
    return (
        f"{wrote}{verdict}: {percent(row.paired_accuracy)} against {percent(row.paired_baseline_accuracy)} right, "
        f"{percent(row.paired_truncated_share)} against {percent(row.paired_baseline_truncated_share)} cut off by the "
        "token limit."
    )


def _intervals(row: Row, summary: Summary) -> str:
    """The intervals that a comparison rests on."""
    many = len(summary.compared)
    problems = f"{row.paired_problems:,} problem{'s' if row.paired_problems > 1 else ''}"
    saved, difference = _interval(row, "token_saving", summary), _interval(row, "accuracy_difference", summary)
    if saved[0] is None and row.token_saving is not None:
        return f"One problem says nothing about the length of others, and {problems} little about accuracy."
    found = [] if saved[0] is None else [f"saving {percent(saved[0])} to {percent(saved[1])}"]
    found.append(f"accuracy difference {points(difference[0])} to {points(difference[1])} points")
    name = "95 % intervals" if many == 1 else f"95 % intervals, corrected for {many} comparisons,"
    return f"{name} over {problems}: {', '.join(found)}."


def _without_cut(row: Row, summary: Summary) -> list[str]:
    """The difference without the pairs that the limit decided, where there are any."""
    cut = row.only_method_cut + row.only_baseline_cut + row.both_cut
    if not cut:
        return []
    pairs = f"{cut:,} pair{'s' if cut > 1 else ''} in which a response was cut off"
    low, high = _uncut(row, summary)
    if row.uncut_difference is None or low is None or high is None:
        return [f"Without the {pairs} nothing is left to compare."]
    return [
        f"Without the {pairs} ({row.only_baseline_cut:,} of {summary.baseline} alone, {row.only_method_cut:,} of "
        f"{row.method} alone) the difference is {points(row.uncut_difference)} ({points(low)} to {points(high)})."
    ]


def _failed(*rows: Row) -> list[str]:
    failed = [f"{row.failed:,} of {row.method}" for row in rows if row.failed]
    return [f"Left out are responses that failed: {', '.join(failed)}."] if failed else []


def _change(saving: float) -> str:
    """A saving as a change of tokens: "30.0 % fewer"."""
    return f"{percent(abs(saving))} {'more' if saving < 0 else 'fewer'}"


def _size(share: float) -> str:
    """A share as a number of points; rounded up, so that "at most" stays true."""
    size = math.ceil(1000 * share - 1e-9) / 10
    return f"{size:g} point{'' if size == 1 else 's'}"


def _interval(row: Row, name: str, summary: Summary) -> tuple[float | None, float | None]:
    """The ends that hold for all methods together. Those of one method alone serve where it is the only one."""
    low, high = getattr(row, f"{name}_joint_low"), getattr(row, f"{name}_joint_high")
    if low is None and high is None and len(summary.compared) == 1:
        return getattr(row, f"{name}_low"), getattr(row, f"{name}_high")
    return low, high


def _uncut(row: Row, summary: Summary) -> tuple[float | None, float | None]:
    """The interval of the difference without the pairs that were cut off: the whole one where none was."""
    cut = row.only_method_cut + row.only_baseline_cut + row.both_cut
    return _interval(row, "uncut_difference" if cut else "accuracy_difference", summary)


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 in percent, which no line break tears apart; an en dash for None."""
    return "–" if share is None else f"{_rounded(100 * share, digits):.{digits}f}\N{NO-BREAK SPACE}%".replace("-", "−")


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of shares in percentage points, with its sign; an en dash for None."""
    return "–" if difference is None else f"{_rounded(100 * difference, digits):+.{digits}f}".replace("-", "−")


def _rounded(value: float, digits: int) -> float:
    """The value rounded, and never minus zero."""
    return round(value, digits) + 0.0


def _accuracy_class(row: Row, summary: Summary) -> int:
    """How good the accuracy of a method is, as far as it is known; 0 is best. See `headline`."""
    claim = accuracy_claim(row, summary)
    low, _ = _interval(row, "accuracy_difference", summary)
    if claim in ("more", "kept"):
        return 0
    if claim == "less":
        return 1 if low is not None and low > -summary.margin else 4
    seen = row.accuracy_difference if row.uncut_difference is None else row.uncut_difference
    return 2 if seen is not None and seen >= -summary.margin else 3


def _nobody_saves(summary: Summary, compared: Sequence[Row]) -> Headline:
    counted = COUNTED[summary.convention]
    if all(row.token_saving is None for row in compared):
        return Headline(f"Nothing can be said about saving: {summary.baseline} wrote no {counted}.", "")
    most = max(compared, key=lambda row: row.token_saving if row.token_saving is not None else float("-inf"))
    evidence = [_intervals(most, summary), *_without_cut(most, summary)]
    if len(compared) == 1:
        lead = _comparison(most, summary)
    else:
        lead = f"None of {len(compared)} methods clearly writes fewer {counted} than {summary.baseline}."
        evidence.insert(0, f"The closest: {_comparison(most, summary)}")
    return Headline(lead, " ".join([*evidence, *_failed(most, summary.row(summary.baseline))]))


def _alone(summary: Summary, base: Row) -> Headline:
    done = [row for row in summary.rows if row.n]
    if not done:
        return Headline("No problem has been solved yet.", " ".join(_failed(*summary.rows)))
    shown = base if base.n else done[0]
    lead = (
        f"{shown.method} answers {percent(shown.accuracy)} of {shown.n:,} problem{'s' if shown.n > 1 else ''} with "
        f"{shown.cost:,.0f} {COUNTED[summary.convention]} each; {percent(shown.truncated_share)} are cut off by the "
        "token limit."
    )
    evidence = f"95 % interval of the accuracy: {percent(shown.accuracy_low)} to {percent(shown.accuracy_high)}."
    if len(summary.rows) > 1:
        evidence += f" Nothing can be compared with {summary.baseline} yet."
    return Headline(lead, " ".join([evidence, *_failed(*summary.rows)]))
