"""The paper's baseline (arXiv 2505.07961): imitate verbose right traces as they are."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from satisfice.supervision.method import Curation
from satisfice.supervision.rows import Item, Reason, SampledProblem, SFTRow


@dataclass(frozen=True)
class SFT(Curation):
    """Every right trace becomes an example, unedited.

    The paper names this as what makes small models verbose: they learn to think from such traces and not where to stop.
    Its data set is not known. Which traces are taken, and how many, is ours.

    Attributes:
        most: right traces of each problem at most, in the order of their sampling; all unless given.
    """

    name: ClassVar[str] = "sft"
    summary: ClassVar[str] = "right traces as they are: the verbose baseline"
    paper: ClassVar[str] = ""

    most: Annotated[int, Field(ge=1)] | None = None

    def select(self, problem: SampledProblem) -> list[Item]:
        """The right traces, in the order of their sampling."""
        right, drops = problem.positives()
        taken = right[: self.most]
        rows = [SFTRow(problem, response := problem.response(place), response.tokens) for place in taken]
        return [*rows, *drops, *problem.drop(right[len(taken) :], Reason.SURPLUS)]
