"""GRPO-LEAD: right answers by relative length, wrong ones at a flat -1, hard problems first (arXiv 2504.09696)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat

from satisfice.lazy import Tensor, torch
from satisfice.parameters import Probability
from satisfice.reinforcement.objective import Objective, ObjectiveError, Rollouts, among_correct, normalise


@dataclass(frozen=True)
class GRPOLead(Objective):
    """A right answer earns more the shorter it is among the right ones; advantages are weighed by difficulty.

        r = exp(-alpha * z) right, -1 wrong,    z = (L - mean) / (std + 1e-6) over the group's right responses
        A = a * w(rho) where a > 0, a * w(1 - rho) elsewhere,    a = (r - group mean) / (group std + 1e-4)
        w(x) = low + (high - low) / (1 + exp(steepness * (x - midpoint))),    rho = share of right answers

    From 2504.09696. Known second-hand (a survey, reviews) and from the authors' code, which sets the defaults; the
    paper's own text was not checked. Ours: the population standard deviation (the code's is the sample's), and no
    exception for groups of short responses (the code leaves length alone where a group's three shortest average 4000
    tokens or less). A right answer earns more than 0 and a wrong one -1, and the weights are positive, so the right one
    always stands above.

    Attributes:
        alpha: how much relative length matters, from 0 to 10; 0.05 is the code's.
        low: weight of what is learned from the easiest problems' right answers; the code's.
        high: weight of what is learned from the hardest problems' right answers; the code's.
        midpoint: share of right answers half-way between both; the code's.
        steepness: of the passage between both; the code's. Equal `low` and `high` switch the weighing off.
    """

    name: ClassVar[str] = "grpo-lead"
    summary: ClassVar[str] = "right answers earn by relative length, wrong ones -1; hard problems weigh more"
    paper: ClassVar[str] = "2504.09696 (GRPO-LEAD; formulas second-hand)"

    alpha: Annotated[float, Field(ge=0, le=10)] = 0.05
    low: PositiveFloat = 0.4
    high: PositiveFloat = 1.5
    midpoint: Probability = 0.75
    steepness: PositiveFloat = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise ObjectiveError(
                f"grpo-lead: low must be above 0 and at most high, not {self.low:g} with high={self.high:g}"
            )

    def rewards(self, rollouts: Rollouts) -> Tensor:
        mean, deviation = among_correct(rollouts.lengths, rollouts.correct)
        scores = (rollouts.lengths - mean) / (deviation + 1e-6)
        return torch.where(rollouts.correct, (-self.alpha * scores).exp(), -1.0)

    def advantages(self, rollouts: Rollouts, rewards: Tensor) -> Tensor:
        relative = normalise(rewards, self.normalisation)
        right = rollouts.correct.double().mean(dim=1, keepdim=True)
        return relative * torch.where(relative > 0, self._weight(right), self._weight(1 - right))

    def _weight(self, share: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * torch.sigmoid(self.steepness * (self.midpoint - share))

    def inactive(self, rollouts: Rollouts) -> str:
        return "alpha is 0, so length is not rewarded" if self.alpha == 0 else ""
