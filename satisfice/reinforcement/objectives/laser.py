"""LASER: a bonus for right answers within a target length (arXiv 2505.15612)."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt

from satisfice.lazy import Tensor, torch
from satisfice.reinforcement.objective import Objective, Rollouts


@dataclass(frozen=True)
class LASER(Objective):
    """A right answer earns 1, and a bonus if it is within the target length; a wrong one earns -0.5.

        r = 1 + bonus * [L <= target]    right
        r = -0.5                         wrong

    From 2505.15612 and its code. A right answer always stands above a wrong one.

    Attributes:
        target: tokens; one of the targets of the released models (2048, 4096, 8192), and the default of the code.
        bonus: for a right answer within the target, above 0; the paper's.
    """

    name: ClassVar[str] = "laser"
    summary: ClassVar[str] = "a bonus for right answers within a target length"
    paper: ClassVar[str] = "2505.15612 (LASER)"

    target: PositiveInt = 8192
    bonus: PositiveFloat = 0.5

    def rewards(self, rollouts: Rollouts) -> Tensor:
        return bonus_within(rollouts, self._targets(rollouts), self.bonus)

    def inactive(self, rollouts: Rollouts) -> str:
        if on_both_sides(rollouts, self._targets(rollouts)):
            return ""
        return f"no group has right responses on both sides of the target of {self.target} tokens, so none is preferred"

    def _targets(self, rollouts: Rollouts) -> Tensor:
        return torch.full((rollouts.lengths.shape[0], 1), self.target)


def bonus_within(rollouts: Rollouts, targets: Tensor, bonus: float) -> Tensor:
    """(P, G) float64, the reward of LASER and LASER-D for (P, 1) targets in tokens."""
    return torch.where(rollouts.correct, 1 + bonus * (rollouts.lengths <= targets).double(), -0.5)


def on_both_sides(rollouts: Rollouts, targets: Tensor) -> bool:
    """Whether some group has right responses within its (P, 1) target and right ones beyond it."""
    within = rollouts.lengths <= targets
    return bool(((rollouts.correct & within).any(dim=1) & (rollouts.correct & ~within).any(dim=1)).any())
