"""Is a model verbose, and where should it have stopped: the numbers, put together from a run and some courses."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

from satisfice.measurement import statistics
from satisfice.measurement.columns import REPEATING, Columns
from satisfice.measurement.course import Course
from satisfice.measurement.verbosity import outcome_efficiency

MOST_CUTS = 8
"""Boundaries after which the accuracy of a cut is told."""


class Measured(BaseModel):
    """A number with its 95 % interval and what it rests on.

    Attributes:
        value, low, high: the ends are None where there is no interval.
        n: responses, or problems where several samples of one were taken.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    low: float | None = None
    high: float | None = None
    n: int


class Diagnosis(BaseModel):
    """What one method of a run shows of its model. Shares and accuracies are from 0 to 1, lengths are thinking tokens.

    A field is None where nothing in the run says it.

    Attributes:
        model, problems, method, cap: what was run.
        traces: responses.
        accuracy: avg@k.
        cut: share of responses at the token limit.
        never_closed: share whose thinking was never closed.
        length, length_median, length_p95: of all.
        length_right, length_wrong: means.
        wrong_longer: wrong minus right, Welch's interval.
        loops: share of responses whose thinking ends in a loop.
        repetition: mean share of 8-grams that stood in the thinking before.
        repeating: share of responses above a half of it.
        courses: thinkings that were followed from boundary to boundary; the fields below are of these.
        source: "asked" or "read", see `Course`.
        known: share of the courses in which any answer is known before the end.
        overthinking: share of a thinking after its answer has settled.
        efficiency: outcome efficiency: tokens to the first right answer over all, 0 for a wrong response.
        spoiled: share of responses that were right at some boundary and are wrong in the end.
        accuracy_after: accuracy if thinking is closed after 0, 1, 2, ... boundaries, where the model was asked; the
            first is None where it was not asked before any thinking.
        answer_entropy: mean entropy in nats of the first token of the answer after 0, 1, 2, ... boundaries; the
            differences are the mean InfoGain of each step. A thinking that has fewer boundaries keeps its last.
        without_thinking: accuracy without any thinking minus that with all of it, paired; None where nobody asked.
        at_hand: share of the boundaries that were not taken at which the end marker is among the 5 likeliest tokens.
        likeliest: the same for the likeliest.
        at_hand_settled: `at_hand` of the boundaries after the answer has settled.
        sure: mean confidence of trial answers that are the final ones, and of those that are not.
    """

    model: str
    problems: str
    method: str
    cap: int | None
    traces: int
    accuracy: Measured
    cut: Measured
    never_closed: float
    length: float
    length_median: float
    length_p95: float
    length_right: float | None
    length_wrong: float | None
    wrong_longer: Measured | None
    loops: Measured | None
    repetition: float | None
    repeating: float | None
    courses: int = 0
    source: Literal["asked", "read"] | None = None
    known: float | None = None
    overthinking: Measured | None = None
    efficiency: float | None = None
    spoiled: Measured | None = None
    accuracy_after: list[Measured | None] = []
    answer_entropy: list[Measured] = []
    without_thinking: Measured | None = None
    at_hand: Measured | None = None
    likeliest: Measured | None = None
    at_hand_settled: Measured | None = None
    sure: tuple[float | None, float | None] = (None, None)


def diagnose(
    columns: Columns, courses: Sequence[Course], *, model: str, problems: str, method: str, cap: int | None
) -> Diagnosis:
    """The numbers of one method.

    Args:
        columns: its traces.
        courses: of some of them, all from one source.

    Raises:
        ValueError: there is no trace.
    """
    if not len(columns):
        raise ValueError(f"{method} has no trace yet, so there is nothing to look at")
    lengths, right = columns.count("thinking_tokens"), columns.right
    tokens = statistics.describe_tokens(lengths, right)
    accuracy = statistics.accuracy(columns.by_problem().of(right))
    assert accuracy is not None
    repetition = columns.repetition
    known = not np.isnan(repetition).any()
    diagnosis = Diagnosis(
        model=model,
        problems=problems,
        method=method,
        cap=cap,
        traces=len(columns),
        accuracy=Measured(value=accuracy.value, low=accuracy.low, high=accuracy.high, n=len(columns.problems)),
        cut=share(columns.truncated.tolist()),
        never_closed=float(columns.never_closed.mean()),
        length=float(lengths.mean()),
        length_median=float(np.median(lengths)),
        length_p95=float(np.percentile(lengths, 95)),
        length_right=tokens.correct,
        length_wrong=tokens.wrong,
        wrong_longer=_difference(lengths[~right], lengths[right]),
        loops=share(columns.looping.tolist()) if known else None,
        repetition=float(repetition.mean()) if known else None,
        repeating=float((repetition > REPEATING).mean()) if known else None,
    )
    return diagnosis.model_copy(update=_of_courses(courses)) if courses else diagnosis


def _of_courses(courses: Sequence[Course]) -> dict[str, object]:
    followed = [course for course in courses if course.known]
    found: dict[str, object] = {
        "courses": len(courses),
        "source": courses[0].source,
        "known": len(followed) / len(courses),
    }
    if followed:
        right = [course.right for course in followed]
        found |= {
            "overthinking": mean([course.overthinking for course in followed]),
            "efficiency": outcome_efficiency(
                right, [course.first_right for course in followed], [course.tokens for course in followed]
            ),
            "spoiled": share([not course.right and any(course.right_at) for course in followed]),
            # What a text states by then is not what the model would say there.
            "accuracy_after": _accuracy_after(followed) if courses[0].source == "asked" else [],
            "answer_entropy": _answer_entropy(followed),
            "without_thinking": _without_thinking(followed),
        }
    untaken = [[course.at_hand(index) for index in course.untaken] for course in courses if course.untaken]
    first = [[course.end_rank[index] == 0 for index in course.untaken] for course in courses if course.untaken]
    later = [
        [course.at_hand(index) for index in course.untaken if course.places[index] >= course.settled_at]
        for course in courses
        if course.known
    ]
    found |= {"at_hand": _clustered(untaken), "likeliest": _clustered(first)}
    found["at_hand_settled"] = _clustered([marks for marks in later if marks])
    same: list[float] = []
    other: list[float] = []
    for course in courses:
        for answer, confidence in zip(course.answers, course.confidence, strict=bool(course.confidence)):
            if answer is not None:
                (same if answer == course.final else other).append(confidence)
    found["sure"] = tuple(float(np.mean(part)) if part else None for part in (same, other))
    return found


def _accuracy_after(courses: Sequence[Course]) -> list[Measured | None]:
    asked_first = all(course.places and course.places[0] == 0 for course in courses)
    most = min(MOST_CUTS, max(sum(place > 0 for place in course.places) for course in courses))
    cuts: list[Measured | None] = [share([course.right_after(0) for course in courses]) if asked_first else None]
    return [*cuts, *(share([course.right_after(cut) for course in courses]) for cut in range(1, most + 1))]


def _answer_entropy(courses: Sequence[Course]) -> list[Measured]:
    rows = [course.answer_entropy for course in courses]
    if not all(rows):
        return []
    most = min(MOST_CUTS + 1, max(map(len, rows)))
    return [mean([row[min(place, len(row) - 1)] for row in rows]) for place in range(most)]


def _without_thinking(courses: Sequence[Course]) -> Measured | None:
    if not all(course.places and course.places[0] == 0 for course in courses):
        return None
    ours, base = [[course.right_after(0)] for course in courses], [[course.right] for course in courses]
    difference = statistics.accuracy_difference(ours, base)
    assert difference is not None
    return Measured(value=difference.value, low=difference.low, high=difference.high, n=len(courses))


def share(verdicts: Sequence[bool]) -> Measured:
    """A share of independent verdicts with Clopper and Pearson's interval."""
    value = float(np.mean(verdicts))
    low, high = statistics.clopper_pearson(value, len(verdicts))
    return Measured(value=value, low=low, high=high, n=len(verdicts))


def mean(values: Sequence[float]) -> Measured:
    """A mean with Student's interval; a single value has none."""
    value, n = float(np.mean(values)), len(values)
    if n < 2:
        return Measured(value=value, n=n)
    half = float(stats.t.ppf((1 + statistics.CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Measured(value=value, low=value - half, high=value + half, n=n)


def _clustered(verdicts: Sequence[Sequence[bool]]) -> Measured | None:
    """A share in which every response counts the same, however many boundaries it has."""
    estimate = statistics.accuracy(verdicts)
    if estimate is None:
        return None
    return Measured(value=estimate.value, low=estimate.low, high=estimate.high, n=len(verdicts))


def _difference(one: np.ndarray, other: np.ndarray) -> Measured | None:
    """The difference of two means with Welch's interval, None where either has fewer than two values."""
    if min(one.size, other.size) < 2:
        return None
    value, (a, b) = float(one.mean() - other.mean()), (one.var(ddof=1) / one.size, other.var(ddof=1) / other.size)
    if a + b == 0:
        return Measured(value=value, low=value, high=value, n=int(min(one.size, other.size)))
    degrees = (a + b) ** 2 / (a**2 / (one.size - 1) + b**2 / (other.size - 1))
    half = float(stats.t.ppf((1 + statistics.CONFIDENCE) / 2, degrees) * np.sqrt(a + b))
    return Measured(value=value, low=value - half, high=value + half, n=int(min(one.size, other.size)))
