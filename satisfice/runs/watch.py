"""Watching a certified setting in use: how often its answers differ from the baseline's, and an alarm if too often.

For whoever serves with anything: answer a random share of the requests by the baseline too, under the same seed, and
hand the pairs of answers over. The server of this package does all of that itself (`satisfice serve --shadow`).

    watch = AnswerWatch(max_loss=0.03, confidence=0.95)
    for answer, baseline_answer in pairs:
        watch.add(answer, baseline_answer)
    print(watch.report())

What is counted without gold answers is disagreement. It bounds what accuracy falls by from above, and under sampling
it is not 0 for the baseline against itself: set `max_loss` above that, or the alarm tells of sampling noise.

When two answers disagree is decided in one place, for certificates and watches alike (`disagree`): where the grader
holds them for different, or where one side gives an answer and the other none. Where neither gives one, nothing was
lost, so they agree: a baseline without an answer is never right, and disagreement still is never below harm. A watch
over requests that mostly ask for no such answer sees little, so it counts these pairs besides.
"""

from typing import Any, Self

from satisfice.intervention.answers import canonical, find_answer
from satisfice.measurement.risk import RiskAlarm, confidence_sequence
from satisfice.problems import GraderPool
from satisfice.problems.graders import grade_answer
from satisfice.trace import Trace

MOST_UNANSWERED = 0.5
"""Share of pairs without an answer on both sides above which a watch says that it sees little."""


def answer_of(trace: Trace, grader: str) -> str | None:
    """The answer of a response; None where it gives none, or was cut off, as when it is graded."""
    return find_answer(trace.answer, grader) if trace.finished else None


async def disagree(graders: GraderPool, grader: str, left: str | None, right: str | None) -> bool:
    """Whether two answers differ to a grader, as if the right one were gold; two that are not there agree.

    Args:
        graders: judge, beside the event loop.
        grader: of the problem; one of reasoning-gym, which knows its own gold answer only, compares as text.
        left, right: answers as `answer_of` or `find_answer` gives them.

    Raises:
        GraderError: the grader does not start.
    """
    known = _disagree_at_sight(grader, left, right)
    if known is not None:
        return known
    spelled, gold = _spelled(grader, str(left)), str(right)
    return not (await graders.grade(grader=grader, answer=spelled, gold=gold, finished=True)).correct


def _disagree_at_sight(grader: str, left: str | None, right: str | None) -> bool | None:
    """The same as far as it can be told without the grader; None where it cannot."""
    if left is None or right is None:
        return left is not right
    if canonical(left) == canonical(right):
        return False
    return True if grader.startswith("reasoning-gym") else None


def _spelled(grader: str, answer: str) -> str:
    """An answer as a response that the grader finds it in."""
    return f"\\boxed{{{answer}}}" if grader == "math" else answer


class AnswerWatch:
    """An alarm over pairs of answers that may run forever.

    Args:
        max_loss: disagreement that is allowed, above 0 and below 1.
        confidence: that no alarm is ever raised while the disagreement is at most that, however long it runs.

    Attributes:
        alarm: the test.
        unanswered: pairs in which neither side gave an answer; they agree, see above.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, max_loss: float, confidence: float) -> None:
        if not 0 < confidence < 1:
            raise ValueError(f"the confidence is {confidence:g}; it must lie between 0 and 1, for example 0.95")
        self.confidence = confidence
        self.alarm = RiskAlarm(max_loss, 1 - confidence)
        self.unanswered = 0

    def add(self, answer: str, baseline_answer: str, grader: str = "math") -> bool:
        """One more pair; whether the alarm is raised.

        Args:
            answer, baseline_answer: what was written after thinking; "" for a response that was cut off.
            grader: which answers count as the same, one of `satisfice.problems.graders.GRADERS`.
        """
        left, right = find_answer(answer, grader), find_answer(baseline_answer, grader)
        differ = _disagree_at_sight(grader, left, right)
        if differ is None:
            differ = not grade_answer(grader, _spelled(grader, str(left)), str(right)).correct
        return self._count(differ, left, right)

    async def compare(self, graders: GraderPool, trace: Trace, baseline: Trace, grader: str = "math") -> bool:
        """The same of two responses, without keeping the event loop busy, for answers that nobody chose.

        Raises:
            GraderError: the grader does not start; nothing is counted.
        """
        left, right = answer_of(trace, grader), answer_of(baseline, grader)
        return self._count(await disagree(graders, grader, left, right), left, right)

    def _count(self, differ: bool, left: str | None, right: str | None) -> bool:
        self.unanswered += left is None and right is None
        return self.alarm.add(float(differ))

    @property
    def note(self) -> str:
        """What has to be said beside the numbers, "" for nothing."""
        n = self.alarm.n
        if not n or self.unanswered <= MOST_UNANSWERED * n:
            return ""
        return (
            f"in {self.unanswered} of {n} pairs ({self.unanswered / n:.0%}) neither side gave an answer that a grader "
            "finds; these count as agreeing, so the disagreement says little here"
        )

    def report(self) -> dict[str, Any]:
        """What is known: the share that differs with its confidence sequence, the e-value and the alarm."""
        alarm = self.alarm
        low, high = confidence_sequence(alarm.losses, alarm.n, alarm.level)
        return {
            "compared": alarm.n,
            "unanswered": self.unanswered,
            "disagreement": alarm.losses / alarm.n if alarm.n else None,
            "low": low,
            "high": high,
            "max_loss": alarm.bound,
            "confidence": self.confidence,
            "e_value": alarm.largest,
            "alarm": alarm.raised_at is not None,
            "alarm_at": alarm.raised_at,
        }

    def state(self) -> dict[str, Any]:
        """Everything, as JSON values, for `from_state`."""
        return {"confidence": self.confidence, "unanswered": self.unanswered, "alarm": self.alarm.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The same watch again.

        Raises:
            KeyError, TypeError, ValueError: this is no such state.
        """
        alarm = RiskAlarm.from_state(state["alarm"])
        watch = cls(alarm.bound, float(state["confidence"]))
        watch.alarm, watch.unanswered = alarm, int(state["unanswered"])
        if not 0 <= watch.unanswered <= alarm.n:
            raise ValueError(f"unanswered is {watch.unanswered} of {alarm.n} pairs")
        return watch
