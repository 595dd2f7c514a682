"""Rejection sampling by length: imitate the shortest right traces. A baseline that many papers compare with."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from satisfice.supervision.method import Curation
from satisfice.supervision.rows import Item, Reason, SampledProblem, SFTRow


@dataclass(frozen=True)
class ShortestCorrect(Curation):
    """Of each problem's right traces the shortest ones become examples; of equally short ones the earlier.

    Attributes:
        most: how many of each problem.
    """

    name: ClassVar[str] = "shortest-correct"
    summary: ClassVar[str] = "the shortest right traces of each problem: rejection sampling by length"
    samples: ClassVar[int] = 2

    most: Annotated[int, Field(ge=1)] = 1

    def select(self, problem: SampledProblem) -> list[Item]:
        """The shortest right traces, the shortest first."""
        right, drops = problem.positives()
        ordered = problem.shortest_first(right)
        taken = ordered[: self.most]
        rows = [SFTRow(problem, response := problem.response(place), response.tokens) for place in taken]
        return [*rows, *drops, *problem.drop(ordered[len(taken) :], Reason.LONGER)]
