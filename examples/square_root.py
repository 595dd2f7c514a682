"""An objective: a right answer earns 1, less the square root of the share of the token limit that it took."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from satisfice.parameters import BelowOne
from satisfice.reinforcement import Objective
from satisfice.reinforcement.objective import Rollouts


@dataclass(frozen=True)
class SquareRoot(Objective):
    """Length costs most where there is little of it.

    Attributes:
        price: of a response as long as the limit, from 0 to below 1; below 1 a right answer always earns more.
    """

    name: ClassVar[str] = "square-root"
    summary: ClassVar[str] = "a right answer earns less with the square root of its length"
    paper: ClassVar[str] = ""

    price: BelowOne = 0.5

    def rewards(self, rollouts: Rollouts) -> Tensor:
        share = rollouts.lengths / rollouts.max_length  # (P, G)
        return rollouts.correct * (1 - self.price * share.double().sqrt())
