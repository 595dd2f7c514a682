"""ShorterBetter: every response is drawn to the shortest right one of its group (arXiv 2504.21370)."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveFloat

from satisfice.lazy import Tensor, torch
from satisfice.reinforcement.objective import Objective, Rollouts


@dataclass(frozen=True)
class ShorterBetter(Objective):
    """A right answer earns alpha, and every response pays for each token away from the shortest right one.

        r = alpha * c - beta * |L - L*|

    L* is the length of the group's shortest right response, or the mean length where none is right (2504.21370, values
    from its code). Right responses more than alpha/beta tokens longer, 2000 with the defaults, fall below a wrong one
    of length L*; such violations are counted, not prevented. A group without a right answer is drawn to its mean.

    Attributes:
        alpha: what a right answer earns; the paper's.
        beta: what one token away costs; the paper's.
    """

    name: ClassVar[str] = "shorter-better"
    summary: ClassVar[str] = "every token away from the shortest right response of the group costs"
    paper: ClassVar[str] = "2504.21370 (ShorterBetter)"

    alpha: PositiveFloat = 2.0
    beta: PositiveFloat = 0.001

    def rewards(self, rollouts: Rollouts) -> Tensor:
        lengths = rollouts.lengths.double()
        shortest = lengths.masked_fill(~rollouts.correct, float("inf")).amin(dim=1, keepdim=True)
        target = torch.where(shortest.isfinite(), shortest, lengths.mean(dim=1, keepdim=True))
        return self.alpha * rollouts.correct - self.beta * (lengths - target).abs()
