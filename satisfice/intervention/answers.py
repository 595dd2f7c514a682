"""Finding answers inside a strategy, comparing them, and voting.

A strategy may not look at the gold answer, not even at its form, so what is looked for depends on the problem's
grader alone. Two answers are the same if the grader would find them equal without computer algebra: the same number
(0.5, 1/2, \\frac12), the same words, the same time, the same formula in one spelling. Algebra is left out: a hostile
answer can keep it busy forever, and a vote runs beside the event loop.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from satisfice.intervention.draft import Draft
from satisfice.problems.comparison import answer_class
from satisfice.problems.graders import grader_named

LABEL_CHARACTERS = 60
"""An answer that is longer than this is shortened where it is shown."""


def find_answer(text: str, grader: str) -> str | None:
    """The answer that `text` gives, as it is written there, or None where it gives none.

    Args:
        text: what was written after thinking.
        grader: the problem's grader. "choice" takes a letter and "numeric" a number; for "math" a box or a phrase
            goes before the last number, for graders that compare text a single line before it.
    """
    return grader_named(grader).find(text)


def given_answer(draft: Draft) -> str | None:
    """The answer of a finished response; None where it gives none, or was cut off and so could never be right."""
    return find_answer(draft.answer, draft.problem.grader) if draft.finished else None


def canonical(answer: str) -> Hashable:
    """What two answers share if they are the same: the exact value of a number, one spelling of all else."""
    return answer_class(answer)


def label(answer: str | None) -> str | None:
    """An answer as it is shown in an event."""
    if answer is None or len(answer) <= LABEL_CHARACTERS:
        return answer
    return answer[: LABEL_CHARACTERS - 3] + "..."


@dataclass(frozen=True)
class Vote:
    """The outcome of a vote.

    Attributes:
        winner: the place of the first voter for the winning answer, None where nobody voted.
        tally: for showing: each answer as its first voter wrote it, and the weight it got; in the order of their first
            voters. Answers that look the same once they are shortened share an entry.
    """

    winner: int | None
    tally: dict[str, float]


def majority(answers: Sequence[str | None], weights: Sequence[Fraction | float] | None = None) -> Vote:
    """The answer with the greatest weight; of equals, the one that was counted first.

    Args:
        answers: one a voter; None does not vote.
        weights: of each voter, 1 unless given. Fractions keep ties exact.
    """
    first: dict[Hashable, int] = {}
    totals: dict[Hashable, Fraction | float] = {}
    for place, answer in enumerate(answers):
        if answer is not None:
            key = canonical(answer)
            first.setdefault(key, place)
            totals[key] = totals.get(key, 0) + (1 if weights is None else weights[place])
    tally: dict[str, float] = {}
    for key, place in first.items():
        shown = str(label(answers[place]))
        tally[shown] = tally.get(shown, 0) + float(totals[key])
    # `max` keeps the first of equals, and a dict its order.
    return Vote(first[max(totals, key=totals.__getitem__)] if totals else None, tally)
