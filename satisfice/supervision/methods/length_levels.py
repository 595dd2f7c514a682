"""Instructed levels: the same problem with a short, a medium and a long right trace, each asked for by its name."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from satisfice.levels import LEVELS
from satisfice.supervision.method import Curation, CurationError, exactly
from satisfice.supervision.rows import Item, Reason, SampledProblem, SFTRow, length


@dataclass(frozen=True)
class LengthLevels(Curation):
    """Of c right traces by length, each level takes the one at its quantile: the nearest rank, ceil(q c), at least 1.

    A problem whose levels would be of the same length teaches nothing about levels, and is dropped. The supervised
    counterpart of a price on length by level (TLDR of arXiv 2505.07961); everything here is ours.

    Attributes:
        short: quantile of the short level.
        medium: quantile of the medium level.
        long: quantile of the long level.
        unlabelled: whether the medium trace is an example without an instruction as well.
        instruction_short: text after the question that asks for a short response.
        instruction_medium: the same for medium.
        instruction_long: the same for long.
    """

    name: ClassVar[str] = "length-levels"
    summary: ClassVar[str] = "a short, a medium and a long right trace of each problem, each under its instruction"
    samples: ClassVar[int] = 3

    short: Annotated[float, Field(ge=0, le=1)] = 0.0
    medium: Annotated[float, Field(ge=0, le=1)] = 0.5
    long: Annotated[float, Field(ge=0, le=1)] = 1.0
    unlabelled: bool = True
    instruction_short: str = "Think briefly."
    instruction_medium: str = "Think normally."
    instruction_long: str = "Think at length."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.short < self.medium < self.long:
            raise CurationError(f"{self.name}: short, medium and long must be rising quantiles, each above the other")
        texts = list(self.instructions.values())
        if "" in texts or len(set(texts)) < len(texts):
            raise CurationError(f"{self.name}: the instructions of the levels must differ, and none may be empty")

    @property
    def instructions(self) -> dict[str, str]:
        """The instruction of each level."""
        return dict(zip(LEVELS, (self.instruction_short, self.instruction_medium, self.instruction_long), strict=True))

    def select(self, problem: SampledProblem) -> list[Item]:
        """A row for each level and, without an instruction, one more of the medium trace."""
        right, drops = problem.positives()
        ordered = problem.shortest_first(right)
        if not ordered:
            return list(drops)
        chosen = [
            ordered[max(1, math.ceil(exactly(quantile) * len(ordered))) - 1]
            for quantile in (self.short, self.medium, self.long)
        ]
        lengths = [length(problem.traces[place]) for place in chosen]
        if len(set(lengths)) < len(lengths):
            return [*drops, *problem.drop(ordered, Reason.SAME_LENGTH)]
        rows = []
        for level, place in zip(LEVELS, chosen, strict=True):
            response = problem.response(place)
            rows.append(SFTRow(problem, response, response.tokens, self.instructions[level], level=level))
            if self.unlabelled and level == "medium":
                rows.append(SFTRow(problem, response, response.tokens))
        return [*rows, *drops, *problem.drop([place for place in ordered if place not in chosen], Reason.SURPLUS)]
