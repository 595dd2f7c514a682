"""Kimi k1.5: length between the shortest and the longest response of the group (arXiv 2501.12599)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import NonNegativeInt, PositiveFloat

from satisfice.lazy import Tensor, torch
from satisfice.reinforcement.objective import Normalisation, Objective, ObjectiveError, Rollouts


@dataclass
class Kimi(Objective):
    """Half the weight for the shortest response, less half for the longest; a wrong one gains nothing by being short.

        r = c + weight * lam            right
        r = c + weight * min(0, lam)    wrong
        lam = 0.5 - (L - shortest) / (longest - shortest), 0 where all responses are equally long

    Shortest and longest are those of all responses of the group (2501.12599 section 2.3.3). The length reward is off at
    first and constant from then on; neither its weight nor the switch is disclosed. Advantages are rewards less the
    group's mean, the baseline of the paper's policy gradient. From a weight of 2 on a long right answer can fall to or
    below a wrong one; such violations are counted, not prevented.

    Attributes:
        weight: of the length reward; 0.4 is the value of a published re-implementation (LASER's), not Kimi's.
        warmup: steps without a length reward at the start, a step being one batch of rollouts; 0 is ours.
    """

    name: ClassVar[str] = "kimi"
    summary: ClassVar[str] = "rewards length by its place between the shortest and the longest of the group"
    paper: ClassVar[str] = "2501.12599 (Kimi k1.5)"
    normalisation: ClassVar[Normalisation] = "group-mean"

    weight: PositiveFloat = 0.4
    warmup: NonNegativeInt = 0
    _step: int = field(default=0, init=False, repr=False)

    @property
    def _warming(self) -> bool:
        # Before the first update comes the first step.
        return max(self._step, 1) <= self.warmup

    def update(self, rollouts: Rollouts) -> None:
        self._step += 1

    def rewards(self, rollouts: Rollouts) -> Tensor:
        right = rollouts.correct.double()
        if self._warming:
            return right
        lengths = rollouts.lengths.double()
        shortest, longest = lengths.amin(dim=1, keepdim=True), lengths.amax(dim=1, keepdim=True)
        place = (lengths - shortest) / (longest - shortest).clamp(min=1)
        score = torch.where(longest > shortest, 0.5 - place, 0.0)
        return right + self.weight * torch.where(rollouts.correct, score, score.clamp(max=0))

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        match state:
            case {"step": int(step)} if len(state) == 1 and step >= 0:
                self._step = step
            case _:
                raise ObjectiveError(f"the state of kimi is its step, not {dict(state)}")

    def inactive(self, rollouts: Rollouts) -> str:
        return f"the first {self.warmup} steps are without a length reward, and this is one" if self._warming else ""
