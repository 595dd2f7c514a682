"""What goes wrong silently in reinforcement with a length term, said aloud.

Every alarm is one sentence that names a number and what to do. The same alarm is repeated no sooner than after
`patience` steps.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from satisfice.levels import LEVELS
from satisfice.reinforcement.objective import EPSILON, Objective, Rollouts

MOSTLY = 0.9
"""Share from which on something counts as nearly always the case."""


@dataclass
class Alarms:
    """Watches the rollouts of a training step by step.

    Attributes:
        say: where the sentences go.
        patience: steps until an alarm is repeated, and steps that the level alarm looks back.
    """

    say: Callable[[str], None]
    patience: int = 20
    _heard: dict[str, int] = field(default_factory=dict)
    _step: int = 0
    _lengths: dict[int, deque[float]] = field(default_factory=dict)

    def check(self, objective: Objective, rollouts: Rollouts, rewards: Tensor) -> None:
        """Look at one step's gathered rollouts and their (P, G) rewards.

        What says how the model does is read from what it wrote by itself; what is learned from, from all of it.
        """
        self._step += 1
        own = rollouts.own if bool(rollouts.own.any()) else torch.ones_like(rollouts.own)
        truncated = rollouts.truncated[own].double().mean().item()
        if truncated > MOSTLY:
            self._raise(
                "truncation",
                f"{truncated:.0%} of the responses ran into the limit of {rollouts.max_length} tokens, so next to none "
                "can be right and there is nothing to learn: raise max_tokens or take easier problems",
            )
        deviation = rewards.std(dim=1) if rewards.shape[1] > 1 else rewards.new_zeros(rewards.shape[0])
        flat = (deviation == 0).double().mean().item()
        if flat > MOSTLY:
            self._raise(
                "zero variance",
                f"{flat:.0%} of the groups have equal rewards and teach nothing: take problems that are neither always "
                "nor never solved, or more responses a prompt",
            )
        self._check_scale(objective, rewards, deviation)
        if reason := objective.inactive(rollouts):
            self._raise("inactive", f"{objective.name}: {reason}")
        self._check_levels(rollouts)

    def _check_scale(self, objective: Objective, rewards: Tensor, deviation: Tensor) -> None:
        if objective.normalisation == "batch" and rewards.numel() > 1:
            deviation = (rewards - rewards.mean(dim=1, keepdim=True)).std()[None]
        elif objective.normalisation != "group-std":
            return
        swallowed = (deviation > 0) & (deviation < 10 * EPSILON)
        if bool(swallowed.any()):
            where = "batch" if objective.normalisation == "batch" else f"{int(swallowed.sum())} groups"
            self._raise(
                "swallowed",
                f"the rewards of the {where} differ by a standard deviation of {deviation[swallowed].max().item():.1e} "
                f"only, in which the {EPSILON:g} that is added to it counts: give the length term of {objective.name} "
                "a larger weight",
            )

    def _check_levels(self, rollouts: Rollouts) -> None:
        for level in range(len(LEVELS)):
            asked = (rollouts.levels == level)[:, None] & rollouts.own
            if bool(asked.any()):
                recent = self._lengths.setdefault(level, deque(maxlen=self.patience))
                recent.append(rollouts.lengths[asked].double().mean().item())
        if len(self._lengths) < len(LEVELS) or min(map(len, self._lengths.values())) < self.patience:
            return
        means = [sum(self._lengths[level]) / self.patience for level in range(len(LEVELS))]
        if not all(shorter < 0.98 * longer for shorter, longer in pairwise(means)):
            self._raise(
                "levels",
                f"the model does not tell the levels apart: over the last {self.patience} steps "
                + ", ".join(f"{level} took {mean:.0f} tokens" for level, mean in zip(LEVELS, means, strict=True))
                + "; give their prices more distance or train longer",
            )

    def _raise(self, kind: str, sentence: str) -> None:
        last = self._heard.get(kind)
        if last is None or self._step - last >= self.patience:
            self._heard[kind] = self._step
            self.say(sentence)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data, for JSON."""
        return {
            "heard": dict(self._heard),
            "step": self._step,
            "lengths": {LEVELS[level]: list(recent) for level, recent in self._lengths.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._heard, self._step = dict(state["heard"]), int(state["step"])
        self._lengths = {
            LEVELS.index(level): deque(recent, maxlen=self.patience) for level, recent in state["lengths"].items()
        }
