"""DLER: the plainest length penalty, truncation, under a better optimisation (arXiv 2510.15110)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import PositiveInt

from satisfice.lazy import Tensor, torch
from satisfice.reinforcement.objective import EPSILON, Normalisation, Objective, ObjectiveError, Rollouts, normalise

Whitening = Literal["responses", "tokens"]


@dataclass(frozen=True)
class DLER(Objective):
    """A right answer earns 1 if it is within the limit; everything else earns 0. Advantages are scaled over the batch.

        r = c * [L <= limit]
        A = (r - group mean) / (standard deviation of r - group mean over the batch + 1e-4)

    Both lines are the paper's (2510.15110), which argues that optimisation and not the shape of a penalty decides: its
    other parts, a higher upper clip and resampling of groups that are all right or all wrong, are the trainer's. A
    right answer beyond the limit is worth no more than a wrong one. That is the method, and it is counted as a
    violation.

    Attributes:
        limit: tokens. 4000 is the paper's, where it is also the token limit of the rollouts.
        easy_limit: tokens, for groups of which at least half is right within `limit`; the paper's DA-DLER has 2000.
            None is plain DLER.
        whitening: "responses" takes the standard deviation over responses, as the paper writes it. "tokens" is its
            code's: mean and deviation weighted by length, over the groups that resampling would have kept.
    """

    name: ClassVar[str] = "dler"
    summary: ClassVar[str] = "a right answer counts only within a limit; advantages are scaled over the whole batch"
    paper: ClassVar[str] = "2510.15110 (DLER)"
    normalisation: ClassVar[Normalisation] = "batch"

    limit: PositiveInt = 4000
    easy_limit: PositiveInt | None = None
    whitening: Whitening = "responses"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.easy_limit is not None and self.easy_limit > self.limit:
            raise ObjectiveError(f"dler: easy_limit must be from 1 to limit ({self.limit}), not {self.easy_limit}")

    def rewards(self, rollouts: Rollouts) -> Tensor:
        return (rollouts.correct & (rollouts.lengths <= self._limits(rollouts))).double()

    def _limits(self, rollouts: Rollouts) -> Tensor:
        """(P, 1) int64 tokens."""
        within = rollouts.correct & (rollouts.lengths <= self.limit)
        easy = within.double().mean(dim=1, keepdim=True) >= 0.5
        return torch.where(easy, self.easy_limit or self.limit, self.limit)

    def advantages(self, rollouts: Rollouts, rewards: Tensor) -> Tensor:
        if self.whitening == "responses":
            return normalise(rewards, self.normalisation)
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        weight = rollouts.lengths.double() * (rewards.amax(dim=1) > rewards.amin(dim=1))[:, None]
        total = weight.sum().clamp(min=1)
        mean = (weight * centred).sum() / total
        deviation = ((weight * (centred - mean) ** 2).sum() / total).sqrt()
        return (weight > 0) * (centred - mean) / (deviation + EPSILON)

    def inactive(self, rollouts: Rollouts) -> str:
        if bool((rollouts.truncated | (rollouts.lengths > self._limits(rollouts))).any()):
            return ""
        return f"no response is beyond the limit of {min(self.limit, rollouts.max_length)} tokens; lower it"
