"""What a trainer may ask of an objective before the first rollout follows from what it does and is never declared."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from satisfice.reinforcement import OBJECTIVES
from satisfice.reinforcement.objective import Condition, Objective, Rollouts, over_tokens
from satisfice.reinforcement.objectives.tldr import TLDR

ASKED = {
    "draws_conditions": {"tldr", "l1-exact", "l1-max", "thinkprune"},
    "follows_training": {"kimi", "laser-d", "thinkprune", "crt"},
    "cuts_responses": {"dot"},
    "own_advantages": {"dler", "grpo-lead", "depo", "smartthinker", "adaptthink"},
}


@pytest.mark.parametrize("question", ASKED)
def test_the_shipped_objectives_answer_for_themselves(question: str) -> None:
    assert {name for name, kind in OBJECTIVES.items() if getattr(kind(), question)} == ASKED[question]


@dataclass
class Outside(Objective):
    """Somebody's own, with nothing but rewards."""

    name: ClassVar[str] = "outside"
    summary: ClassVar[str] = "for tests"
    paper: ClassVar[str] = ""

    def rewards(self, rollouts: Rollouts) -> torch.Tensor:
        return rollouts.correct.double()


class Told(Outside):
    def condition(self, rng: Any) -> Condition:
        return Condition("Be brief.")


class Scheduled(Outside):
    def update(self, rollouts: Rollouts) -> None:
        pass


class Cutting(Outside):
    def cut(self, rollouts: Rollouts) -> torch.Tensor:
        return rollouts.lengths // 2


class ByToken(Outside):
    per_token: ClassVar[bool] = True

    def token_advantages(self, rollouts: Rollouts, advantages: torch.Tensor) -> torch.Tensor:
        return over_tokens(advantages, rollouts.lengths)


class Weighted(Outside):
    def advantages(self, rollouts: Rollouts, rewards: torch.Tensor) -> torch.Tensor:
        return 2 * rewards


class Inherits(TLDR):
    """What it has from another objective counts as its own."""


@pytest.mark.parametrize(
    ("objective", "yes"),
    [
        (Outside(), set()),
        (Told(), {"draws_conditions"}),
        (Scheduled(), {"follows_training"}),
        (Cutting(), {"cuts_responses"}),
        (ByToken(), {"own_advantages"}),
        (Weighted(), {"own_advantages"}),
        (Inherits(), {"draws_conditions"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_objective_from_outside_answers_without_declaring_anything(objective: Objective, yes: set[str]) -> None:
    assert {question for question in ASKED if getattr(objective, question)} == yes
