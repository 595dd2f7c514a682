"""Dr. GRPO: no division by length or by deviation (arXiv 2503.20783)."""

from dataclasses import dataclass
from typing import ClassVar

from satisfice.lazy import Tensor
from satisfice.reinforcement.objective import LossType, Need, Normalisation, Objective, Rollouts


@dataclass(frozen=True)
class DrGRPO(Objective):
    """Plain correctness, less the group's mean.

        r = c,    A = r - group mean

    Nothing is divided by the group's deviation, and the loss of a response is not divided by its length but by a
    constant (2503.20783). The second half is the trainer's: TRL's loss_type dr_grpo, which a recipe has by default.
    Together they take away what GRPO's mean over each response's tokens gives to long wrong answers; there is no
    length term beyond that.
    """

    name: ClassVar[str] = "dr-grpo"
    summary: ClassVar[str] = "plain correctness without GRPO's bias towards long wrong answers; the baseline"
    paper: ClassVar[str] = "2503.20783 (Dr. GRPO)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSS_TYPE})
    loss_type: ClassVar[LossType | None] = "dr_grpo"
    normalisation: ClassVar[Normalisation] = "group-mean"

    def rewards(self, rollouts: Rollouts) -> Tensor:
        return rollouts.correct.double()
