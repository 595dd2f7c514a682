"""Arora and Zanette: a right answer earns less the longer it is among its group's right ones (arXiv 2502.04463)."""

from dataclasses import dataclass
from typing import ClassVar

from satisfice.lazy import Tensor
from satisfice.parameters import BelowOne
from satisfice.reinforcement.objective import Normalisation, Objective, Rollouts, among_correct


@dataclass(frozen=True)
class AroraZanette(Objective):
    """A right answer earns 1, less alpha times how long it is among the right answers to its problem.

        r = c * (1 - alpha * sigmoid(z)),    z = (L - mean) / (std + 1e-7)

    Mean and population standard deviation are those of the group's right responses; wrong ones earn 0, truncated ones
    among them. Advantages are RLOO's. All of it is from 2502.04463 and its code. Since alpha is below 1 a right answer
    always earns more than a wrong one.

    Attributes:
        alpha: the largest share of the reward that length can cost, from 0 to below 1; 0.1 is the default of the
            paper's script.
    """

    name: ClassVar[str] = "arora-zanette"
    summary: ClassVar[str] = "right answers earn less the longer they are among the right ones of their group"
    paper: ClassVar[str] = "2502.04463 (Training Language Models to Reason Efficiently)"
    normalisation: ClassVar[Normalisation] = "leave-one-out"

    alpha: BelowOne = 0.1

    def rewards(self, rollouts: Rollouts) -> Tensor:
        mean, deviation = among_correct(rollouts.lengths, rollouts.correct)
        scores = (rollouts.lengths - mean) / (deviation + 1e-7)
        return rollouts.correct * (1 - self.alpha * scores.sigmoid())

    def inactive(self, rollouts: Rollouts) -> str:
        return "alpha is 0, so length costs nothing" if self.alpha == 0 else ""
