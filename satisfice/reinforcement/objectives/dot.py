"""DOT (arXiv 2601.03969): cut the few responses that are far longer than they need be, and judge what is left."""

import math
from dataclasses import dataclass
from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveInt

from satisfice.lazy import Tensor, torch
from satisfice.reinforcement.objective import Objective, Rollouts


@dataclass(frozen=True)
class DOT(Objective):
    """Cuts outliers of groups that are all right, grades them again, and rewards plain correctness.

        T = floor(mean L + alpha * std L)       std in sample form, over a group without a wrong response
        cut to T tokens where L - T >= margin, and graded again
        R = 1 right, 0 wrong

    Formula and defaults are those of the paper and its code. A response that was cut is right only if its answer stands
    in what is left, so a cut usually makes it wrong and gives its group something to learn. Of n lengths none is
    further from their mean than (n - 1) / sqrt(n) sample deviations, so alpha = 3 cuts nothing in groups of 10 or less.

    A right response is always rewarded above a wrong one.

    Attributes:
        alpha: standard deviations above the mean that a response may be.
        margin: tokens that a cut must save. The default suits responses of thousands of tokens; scale it to yours.
    """

    name: ClassVar[str] = "dot"
    summary: ClassVar[str] = "cuts length outliers of groups that are all right and grades them again"
    paper: ClassVar[str] = "2601.03969 (DOT)"

    alpha: NonNegativeFloat = 3.0
    margin: PositiveInt = 32

    def cut(self, rollouts: Rollouts) -> Tensor | None:
        if rollouts.lengths.shape[1] == 1:
            return None
        lengths = rollouts.lengths.double()
        longest = (lengths.mean(dim=1, keepdim=True) + self.alpha * lengths.std(dim=1, keepdim=True)).floor().long()
        outlier = (rollouts.lengths - longest >= self.margin) & rollouts.correct.all(dim=1, keepdim=True)
        return torch.where(outlier, longest, rollouts.lengths) if bool(outlier.any()) else None

    def rewards(self, rollouts: Rollouts) -> Tensor:
        return rollouts.correct.double()

    def inactive(self, rollouts: Rollouts) -> str:
        size = rollouts.lengths.shape[1]
        furthest = (size - 1) / math.sqrt(size)
        if furthest <= self.alpha:
            enough = math.floor(((self.alpha + math.sqrt(self.alpha**2 + 4)) / 2) ** 2) + 1
            return (
                f"of {size} responses none can be more than {furthest:.2f} standard deviations above the mean and "
                f"alpha is {self.alpha:g}, so nothing is ever cut: take at least {enough} responses a prompt, or a "
                "smaller alpha"
            )
        # Furthest above T is one response at the limit beside others of no length; T is rounded down.
        saved = (furthest - self.alpha) * rollouts.max_length / math.sqrt(size) + 1
        if saved <= self.margin:
            return (
                f"with {size} responses of at most {rollouts.max_length} tokens no cut can save {self.margin}, so "
                "nothing is ever cut: lower margin, or take more responses a prompt or a smaller alpha"
            )
        return ""
