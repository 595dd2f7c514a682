"""DEPO, decoupled advantage policy optimization (arXiv 2510.15374): reinforce less what follows the right answer."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from satisfice.lazy import Tensor, torch
from satisfice.reinforcement.objective import (
    Need,
    Objective,
    Rollouts,
    among_correct,
    normalise,
    over_tokens,
)

Clip = Literal["positive", "literal", "none"]

_ZERO = 1e-9
"""Advantages nearer to 0 than this are 0: a mean of floats is rarely exact."""


@dataclass(frozen=True)
class DEPO(Objective):
    """Smaller advantages after the first right answer, and a length term that weighs more on easier problems.

        R_acc = 1 right, 0 wrong, -1 truncated
        R_len = -alpha (1 - exp(-alpha n)) (L - mean) / std    right responses; 0 for all others
        A'    = (R - mean R) / (std R + eps),  R = R_acc + R_len
        A     = max(A', least positive A' of a right response)  right
                min(A', 0)                                      wrong
        A_t   = f(K) A  after the first right answer of a right response, A everywhere else
        f(K)  = 1 - beta (1 - exp(-beta K))

    n is the number of right responses in the group, mean and std (population form, ours) are of their lengths, and the
    term is 0 where std is. K is `Rollouts.redundancy`. f falls from 1 at K = 0 towards 1 - beta and never turns a sign:
    what is redundant is reinforced less, not punished. Without a boundary nothing changes (ours).

    No code was published and the paper's hyperparameters are not public: alpha and beta are ours. That the clip comes
    before the decoupling, and what it takes for the set of positive advantages, are readings.

    The rewards alone may put a long right response below a wrong one, where alpha (1 - exp(-alpha n)) z > 1; with the
    default alpha not in groups of up to 26. The clip repairs the sign.

    Attributes:
        alpha: weight of the length term, and how fast it grows with n.
        beta: how much less redundant tokens count.
        clip: "positive" lifts right responses to the least positive advantage of one, or to 0 where none is positive;
            "literal" takes the least advantage of all right responses, as the formula is written, which leaves them
            as they are, and lowers wrong responses to 0 all the same; "none" clips nothing.
    """

    name: ClassVar[str] = "depo"
    summary: ClassVar[str] = "reinforces tokens after the first right answer less; prices length by difficulty"
    paper: ClassVar[str] = "2510.15374 (DEPO)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.BOUNDARY})
    per_token: ClassVar[bool] = True

    alpha: PositiveFloat = 0.2
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    clip: Clip = "positive"

    def rewards(self, rollouts: Rollouts) -> Tensor:
        accuracy = rollouts.correct.double() - rollouts.truncated.double()
        mean, deviation = among_correct(rollouts.lengths, rollouts.correct)
        # Where the deviation is 0, so is every difference from the mean.
        score = (rollouts.lengths - mean) / deviation.masked_fill(deviation == 0, 1) * rollouts.correct
        easy = 1 - torch.exp(-self.alpha * rollouts.correct.sum(dim=1, keepdim=True).double())
        return accuracy - self.alpha * easy * score

    def advantages(self, rollouts: Rollouts, rewards: Tensor) -> Tensor:
        raw = normalise(rewards, self.normalisation)
        if self.clip == "none":
            return raw
        lifted = raw
        if self.clip == "positive":
            positive = rollouts.correct & (raw > _ZERO)
            least = raw.masked_fill(~positive, float("inf")).amin(dim=1, keepdim=True)
            lifted = raw.maximum(least.masked_fill(least.isinf(), 0))
        return torch.where(rollouts.correct, lifted, raw.clamp(max=0))

    def token_advantages(self, rollouts: Rollouts, advantages: Tensor) -> Tensor:
        split = rollouts.correct & (rollouts.boundaries >= 0)
        less = 1 - self.beta * (1 - torch.exp(-self.beta * rollouts.redundancy.double()))
        spread = over_tokens(advantages, rollouts.lengths)
        after = torch.arange(spread.shape[-1]) >= rollouts.boundaries[..., None]
        return torch.where(after & split[..., None], spread * less[..., None], spread)

    def inactive(self, rollouts: Rollouts) -> str:
        if bool(rollouts.correct.any()) and not bool((rollouts.boundaries[rollouts.correct] >= 0).any()):
            return (
                "no right response states the gold answer in its thinking, so no token is reinforced less: look at "
                "some responses, and give a judge that knows how they put it"
            )
        return ""
