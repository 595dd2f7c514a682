import math

import pytest
import torch

from satisfice.reinforcement.objective import ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.aalc import AALC

LENGTHS = [[100, 400, 2000, 50]]
CORRECT = [[True, True, True, False]]


def rollouts(accuracy, lengths=LENGTHS, correct=CORRECT, **others):
    return Rollouts.of(lengths, correct, validation_accuracy=accuracy, **others)


def test_the_formula_at_the_target():
    # r_acc = 1: Att = gamma, R_len = 1 - min(1, L / 1000)
    rewards = AALC(target=0.8, l_max=1000).rewards(rollouts(0.8))
    assert rewards.dtype is torch.float64
    assert rewards.tolist() == [pytest.approx([0.9 + 0.1 * 0.9, 0.9 + 0.1 * 0.6, 0.9, 0])]


def test_the_formula_near_the_target():
    # r_acc = 0.72 / 0.8 = 0.9 and 0.9 ^ 10 = 0.3487: 100 tokens of 1000 are below that, 400 are above
    rewards = AALC(target=0.8, beta=10, gamma=0.5, weight=0.2, l_max=1000).rewards(rollouts(0.72))
    attention = 0.5 + 0.5 * 0.1
    flat = attention + 0.2 * (1 - 0.9**10)
    assert rewards.tolist() == [pytest.approx([attention + 0.2 * 0.9, flat, flat, 0])]


def test_ungated_rewards_of_wrong_responses_and_truncated_ones():
    given = rollouts(1.0, [[100, 50, 200]], [[True, False, False]], truncated=torch.tensor([[False, False, True]]))
    rewards = AALC(gated=False, l_max=1000).rewards(given)
    # The truncated one counts as longest, although 200 tokens are far below l_max.
    assert rewards.tolist() == [pytest.approx([0.9 + 0.1 * 0.9, 0.1 * 0.95, 0])]


def test_accuracy_above_the_target_counts_as_the_target():
    assert torch.equal(AALC(target=0.5).rewards(rollouts(0.9)), AALC(target=0.5).rewards(rollouts(0.5)))


@pytest.mark.parametrize("accuracy", [None, 0.0, 0.5, 0.8])
def test_far_from_the_target_length_does_not_matter(accuracy):
    objective = AALC()
    rewards = objective.rewards(rollouts(accuracy))
    assert rewards[0, 0].item() == pytest.approx(rewards[0, 2].item(), abs=1e-12)
    assert objective.inactive(rollouts(accuracy)) != ""


def test_shorter_is_better_below_the_cap_and_all_right_groups_feel_it():
    lengths = torch.arange(100, 900, 100)[None]
    objective = AALC()
    given = rollouts(1.0, lengths, torch.ones_like(lengths).bool())
    rewards = objective.rewards(given)
    assert bool((rewards.diff() < 0).all())
    # The contribution survives TRL's epsilon: standard scores come out nearly whole.
    advantages = objective.advantages(given, rewards)
    assert advantages.abs().max().item() == pytest.approx(1.43, abs=0.02)
    assert objective.inactive(given) == ""


def test_the_weight_of_the_code_is_swallowed_by_the_epsilon():
    lengths = torch.arange(100, 900, 100)[None]
    given = rollouts(1.0, lengths, torch.ones_like(lengths).bool())
    objective = AALC(weight=1e-6)
    assert objective.advantages(given, objective.rewards(given)).abs().max() < 1e-2


@pytest.mark.parametrize("accuracy", [None, 0.3, 0.97, 1.0])
@pytest.mark.parametrize("gated", [True, False])
def test_right_is_always_above_wrong(accuracy, gated):
    objective = AALC(gated=gated)
    given = rollouts(accuracy, [[5000, 1, 700], [1, 2, 3]], [[True, False, False], [False, False, True]])
    assert violations(objective.rewards(given), given.correct) == 0


def test_inactive_names_the_cause():
    assert "no validation accuracy yet" in AALC().inactive(rollouts(None))
    assert "lower target from 1" in AALC().inactive(rollouts(0.9))
    assert "raise l_max" in AALC(l_max=10).inactive(rollouts(1.0))
    # 0.99 ^ 128 = 0.276 of 1024 is 283 tokens: the response of 100 is below
    assert AALC().inactive(rollouts(0.99)) == ""
    assert math.isclose(AALC(target=0.8).reached(rollouts(0.6)), 0.75)


@pytest.mark.parametrize("accuracy", [None, 0.5, 1.0])
def test_no_group_breaks_it(accuracy):
    for lengths, correct in (([[7]], [[True]]), ([[7, 7]], [[True, True]]), ([[7, 9]], [[False, False]])):
        given = rollouts(accuracy, lengths, correct)
        advantages = AALC().advantages(given, AALC().rewards(given))
        assert advantages.tolist() == [pytest.approx([0.0] * len(lengths[0]), abs=1e-9)]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"target": 0}, "target"),
        ({"target": 1.1}, "target"),
        ({"beta": 0}, "beta"),
        ({"gamma": 0}, "gamma"),
        ({"weight": 0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": 0.9, "gated": False}, "weight"),
        ({"l_max": 0}, "l_max"),
    ],
)
def test_bad_parameters(parameters, named):
    with pytest.raises(ObjectiveError, match=f"aalc: {named} is"):
        AALC(**parameters)
