"""What goes wrong silently is said aloud, once, with its number."""

import json

import pytest
import torch

from satisfice.reinforcement.objective import Objective, Rollouts
from satisfice.reinforcement.objectives.dr_grpo import DrGRPO
from satisfice.reinforcement.objectives.kimi import Kimi
from satisfice.reinforcement.objectives.laser import LASER
from satisfice.reinforcement.objectives.shorter_better import ShorterBetter
from satisfice.reinforcement.objectives.tldr import TLDR
from satisfice.training.alarms import Alarms


def heard(rollouts: Rollouts, rewards: list[list[float]], objective: Objective | None = None) -> list[str]:
    said: list[str] = []
    objective = objective or TLDR()
    Alarms(said.append).check(objective, rollouts, torch.tensor(rewards, dtype=torch.float64))
    return said


def rollouts(correct: list[list[int]], truncated: list[list[int]] | None = None, **more: object) -> Rollouts:
    lengths = torch.tensor([[40, 60, 80, 100]] * len(correct))
    return Rollouts.of(lengths, torch.tensor(correct), truncated and torch.tensor(truncated), max_length=100, **more)


def test_a_healthy_step_is_silent() -> None:
    assert heard(rollouts([[1, 1, 0, 0]]), [[1.0, 0.9, 0.0, -0.1]]) == []


def test_nearly_everything_truncated() -> None:
    (said,) = heard(rollouts([[0, 0, 0, 0]], [[1, 1, 1, 1]]), [[0.0, -0.1, -0.2, -0.3]])
    assert "100% of the responses ran into the limit of 100 tokens" in said
    assert "raise max_tokens" in said


def test_equal_rewards_teach_nothing() -> None:
    (said,) = heard(rollouts([[1, 1, 1, 1]]), [[1.0, 1.0, 1.0, 1.0]])
    assert "100% of the groups have equal rewards" in said


def test_a_length_term_that_the_epsilon_swallows() -> None:
    small = [[1.0, 1 - 1e-5, 1 - 2e-5, 1 - 3e-5]]
    (said,) = heard(rollouts([[1, 1, 1, 1]]), small, ShorterBetter())
    assert "of the 1 groups differ by a standard deviation of 1.3e-05 only" in said
    # Under the standard deviation of the batch, a small group beside a large one is not lost.
    assert heard(rollouts([[1, 1, 1, 1], [1, 1, 0, 0]]), [*small, [1.0, 1.0, 0.0, 0.0]], TLDR()) == []
    assert len(heard(rollouts([[1, 1, 1, 1], [1, 1, 0, 0]]), [*small, [1.0, 1.0, 0.0, 0.0]], ShorterBetter())) == 1
    # Without a division there is no epsilon.
    assert heard(rollouts([[1, 1, 1, 1]]), small, DrGRPO()) == []


def test_a_schedule_that_does_not_act() -> None:
    objective = Kimi(warmup=10)
    (said,) = heard(rollouts([[1, 1, 0, 0]]), [[1.0, 1.0, 0.0, 0.0]], objective)
    assert said.startswith("kimi: ")


def levelled(short: int, medium: int, long: int) -> Rollouts:
    lengths = torch.tensor([[short, short], [medium, medium], [long, long]])
    return Rollouts.of(lengths, lengths > 0, max_length=200, levels=torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(("lengths", "ignored"), [((20, 40, 60), False), ((50, 50, 50), True), ((20, 60, 40), True)])
def test_levels_that_the_model_ignores(lengths: tuple[int, int, int], ignored: bool) -> None:
    said: list[str] = []
    alarms = Alarms(said.append, patience=3)
    rewards = torch.tensor([[1.0, 0.5]] * 3)
    for step in range(1, 4):
        alarms.check(TLDR(), levelled(*lengths), rewards)
        assert bool(said) == (ignored and step == 3)  # one odd step is no reason yet
    if ignored:
        assert f"short took {lengths[0]} tokens" in said[0]


def test_an_alarm_is_repeated_with_patience_and_survives_a_checkpoint() -> None:
    said: list[str] = []
    alarms = Alarms(said.append, patience=3)
    flat, same = rollouts([[1, 1, 1, 1]]), torch.ones(1, 4)
    for _ in range(3):
        alarms.check(TLDR(), flat, same)
    assert len(said) == 1
    resumed = Alarms(said.append, patience=3)
    resumed.load_state_dict(json.loads(json.dumps(alarms.state_dict())))
    resumed.check(TLDR(), flat, same)
    assert len(said) == 2
    resumed.check(TLDR(), flat, same)
    assert len(said) == 2


def test_the_share_of_truncated_responses_is_that_of_the_models_own():
    truncated = torch.tensor([[True, True, False, False]] * 4)
    explored = torch.tensor([[False, False, True, True]] * 4)
    lengths = torch.where(truncated, 100, 10)
    heard: list[str] = []
    given = Rollouts.of(lengths, ~truncated, truncated, explored=explored, max_length=100)
    Alarms(heard.append).check(LASER(target=50), given, given.correct.double())
    assert any(sentence.startswith("100% of the responses ran into the limit") for sentence in heard)
    heard.clear()
    mixed = Rollouts.of(lengths, ~truncated, truncated, max_length=100)
    Alarms(heard.append).check(LASER(target=50), mixed, mixed.correct.double())
    assert not any("ran into the limit" in sentence for sentence in heard)
