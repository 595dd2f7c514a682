"""DEPO, decoupled advantage policy optimization (arXiv 2510.15374): reinforce less what follows the right answer."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from satisfice.reinforcement.objective import (
    Objective,
    ObjectiveError,
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
    """Smaller advantages behind the first right answer, and a length term that weighs more on easier problems.

        R_acc = 1 right, 0 wrong, -1 truncated
        R_len = -alpha (1 - exp(-alpha n)) (L - mean) / std    right responses; 0 for all others
        A'    = (R - mean R) / (std R + eps),  R = R_acc + R_len
        A     = max(A', least positive A' of a right response)  right
                min(A', 0)                                      wrong
        A_t   = f(K) A  behind the first right answer of a right response, A everywhere else
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
    summary: ClassVar[str] = "reinforces tokens behind the first right answer less; prices length by difficulty"
    paper: ClassVar[str] = "2510.15374 (DEPO)"
    needs: ClassVar[frozenset[str]] = frozenset({"boundary"})
    per_token: ClassVar[bool] = True

    alpha: float = 0.2
    beta: float = 0.5
    clip: Clip = "positive"

    def __post_init__(self) -> None:
        for name, good, rule in (
            ("alpha", 0 < self.alpha < float("inf"), "above 0"),
            ("beta", 0 < self.beta < 1, "above 0 and below 1"),
            ("clip", self.clip in get_args(Clip), " or ".join(get_args(Clip))),
        ):
            if not good:
                raise ObjectiveError(f"{self.name}: {name} is {getattr(self, name)!r}; it must be {rule}")

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
        behind = torch.arange(spread.shape[-1]) >= rollouts.boundaries[..., None]
        return torch.where(behind & split[..., None], spread * less[..., None], spread)

    def inactive(self, rollouts: Rollouts) -> str:
        if bool(rollouts.correct.any()) and not bool((rollouts.boundaries[rollouts.correct] >= 0).any()):
            return (
                "no right response states the gold answer in its thinking, so no token is reinforced less: look at "
                "some responses, and give a judge that knows how they put it"
            )
        return ""
