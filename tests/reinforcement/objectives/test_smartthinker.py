import math
from itertools import pairwise

import pytest
import torch

from satisfice.reinforcement.objective import EPSILON, ObjectiveError, Rollouts, Step, violations
from satisfice.reinforcement.objectives.smartthinker import SmartThinker


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def steps(*ends_and_importances):
    return [Step(end, importance) for end, importance in ends_and_importances]


def rollouts(lengths, correct, *groups, truncated=None):
    return Rollouts.of(lengths, correct, truncated, steps=[list(group) for group in groups])


def test_the_step_rewards():
    # group means: (30 + 10) / 2 = 20 tokens of thinking, (2 + 1) / 2 = 1.5 steps
    given = rollouts(
        [[35, 12, 9]],
        [[True, True, False]],
        [steps((10, 3.0), (30, 1.0)), steps((10, 0.5)), steps((5, 1.0))],
    )
    objective = SmartThinker(k1=0.6, k2=0.3)
    ((first, second, wrong),) = objective.step_rewards(given)
    many, few = 1 - 0.3 * sigmoid(2 / 1.5 - 1), 1 - 0.3 * sigmoid(1 / 1.5 - 1)
    # Targets are 15 and 5 of 20 tokens and the unit is 10, so the steps are 0.5 under and 1.5 over.
    assert first.tolist() == pytest.approx([(1 - 0.6 * sigmoid(-0.5)) * many, (1 - 0.6 * sigmoid(1.5)) * many])
    assert second.tolist() == pytest.approx([(1 - 0.6 * sigmoid(10 / 20 - 1)) * few])
    assert wrong.tolist() == [-1]
    rewards = objective.rewards(given)
    assert rewards.dtype is torch.float64
    assert rewards.tolist() == [pytest.approx([first.mean().item(), second.item(), -1])]


def test_a_given_budget_takes_the_place_of_the_mean():
    given = rollouts([[30]], [[True]], [steps((30, 1.0))])
    assert SmartThinker(budget=10).step_rewards(given)[0][0].tolist() == pytest.approx(
        [(1 - 0.5 * sigmoid(2)) * (1 - 0.2 * 0.5)]
    )


def test_importance_is_a_share():
    def rewards(scale):
        given = rollouts([[30]], [[True]], [steps((10, 2 * scale), (15, 1 * scale), (30, 0.0))])
        return SmartThinker().step_rewards(given)[0][0]

    assert torch.allclose(rewards(1.0), rewards(1e-6))


def test_without_any_importance_all_steps_share_equally():
    none = rollouts([[30]], [[True]], [steps((10, 0.0), (30, 0.0))])
    equal = rollouts([[30]], [[True]], [steps((10, 0.7), (30, 0.7))])
    assert torch.equal(SmartThinker().step_rewards(none)[0][0], SmartThinker().step_rewards(equal)[0][0])
    assert "no step of a right response has any importance" in SmartThinker().inactive(none)
    assert SmartThinker().inactive(equal) == ""


@pytest.mark.parametrize("budget", [0, 40])
def test_rewards_lie_within_0_and_1_and_fall_with_overshoot(budget):
    seen = []
    for length in range(5, 600, 9):
        given = rollouts(
            [[length + 20, 60]], [[True, True]], [steps((length, 1.0), (length + 20, 1.0)), steps((60, 1))]
        )
        seen.append(SmartThinker(k1=0.9, budget=budget).step_rewards(given)[0][0][0].item())
    assert all(before > after for before, after in pairwise(seen))
    assert all(0 < reward <= 1 for reward in seen)


def test_more_steps_than_others_cost():
    given = rollouts(
        [[40, 40]], [[True, True]], [steps((20, 1.0), (40, 1.0)), steps((10, 1.0), (20, 1.0), (30, 1.0), (40, 1.0))]
    )
    rewards = SmartThinker().rewards(given)
    assert rewards[0, 0] > rewards[0, 1]
    assert torch.equal(*SmartThinker(k2=0).rewards(given)[0])


def test_right_is_always_above_wrong():
    long = steps((10, 0.0), (90000, 0.0), (90010, 1.0))
    given = rollouts([[90010, 5, 10]], [[True, False, True]], [long, [], steps((10, 1.0))])
    assert violations(SmartThinker(k1=0.99, k2=0.99).rewards(given), given.correct) == 0


def test_a_response_without_steps_counts_as_one():
    bare = rollouts([[10, 30]], [[True, True]], [[], steps((30, 1.0))])
    one = rollouts([[10, 30]], [[True, True]], [steps((10, 0.0)), steps((30, 1.0))])
    objective = SmartThinker()
    assert torch.equal(objective.rewards(bare), objective.rewards(one))
    spread = objective.token_advantages(bare, objective.advantages(bare, objective.rewards(bare)))
    assert spread[0, 0, :10].unique().numel() == 1
    assert spread[0, 0, 10:].tolist() == [0.0] * 20


def test_a_response_has_the_mean_advantage_of_its_steps():
    given = rollouts([[35, 9]], [[True, False]], [steps((10, 3.0), (30, 1.0)), steps((5, 1.0))])
    objective = SmartThinker(decay=0)
    (right, _), rewards = objective.step_rewards(given)[0], objective.rewards(given)
    baseline = (right.mean().item() - 1) / 2
    deviation = math.sqrt((((right - baseline) ** 2).mean().item() + (-1 - baseline) ** 2) / 2)
    advantages = objective.advantages(given, rewards)
    assert advantages.tolist() == [
        pytest.approx([(reward - baseline) / (deviation + EPSILON) for reward in (right.mean().item(), -1)])
    ]
    spread = objective.token_advantages(given, advantages)
    own = [(reward - baseline) / (deviation + EPSILON) for reward in right.tolist()]
    assert spread.shape == (1, 2, 35)
    assert spread[0, 0].tolist() == pytest.approx([own[0]] * 10 + [own[1]] * 20 + [advantages[0, 0].item()] * 5)
    assert spread[0, 1].tolist() == pytest.approx([advantages[0, 1].item()] * 9 + [0] * 26)
    assert sum(own) / 2 == pytest.approx(advantages[0, 0].item())


def test_later_steps_count_for_earlier_ones():
    group = [steps((10, 3.0), (30, 1.0), (36, 1.0)), steps((40, 1.0))]
    given = rollouts([[36, 40]], [[True, True]], group)

    def first_tokens(decay):
        objective = SmartThinker(decay=decay)
        spread = objective.token_advantages(given, objective.advantages(given, objective.rewards(given)))
        return spread[0, 0, [0, 10, 30]].tolist()

    own = first_tokens(0)
    half = first_tokens(0.5)
    assert half == pytest.approx(
        [(own[0] + 0.5 * own[1] + 0.25 * own[2]) / 1.75, (own[1] + 0.5 * own[2]) / 1.5, own[2]]
    )
    # Undiscounted, the first step has the response's own advantage.
    objective = SmartThinker(decay=1)
    assert first_tokens(1)[0] == pytest.approx(objective.advantages(given, objective.rewards(given))[0, 0].item())


def test_steps_are_told_apart_where_responses_are_not():
    # Two equal responses: at the level of the response there is nothing to learn, at the level of steps there is.
    same = steps((10, 1.0), (30, 0.0))
    given = rollouts([[30, 30]], [[True, True]], [same, same])
    objective = SmartThinker(decay=0)
    advantages = objective.advantages(given, objective.rewards(given))
    assert advantages.tolist() == [pytest.approx([0, 0], abs=1e-9)]
    spread = objective.token_advantages(given, advantages)
    # A standard score of two values is 1, however small their distance.
    assert spread[0, 0, 0].item() == pytest.approx(1, abs=0.01)
    assert spread[0, 0, 29].item() == pytest.approx(-1, abs=0.01)


@pytest.mark.parametrize(
    "given",
    [
        rollouts([[30, 30]], [[True, True]], [steps((30, 1.0)), steps((30, 1.0))]),
        rollouts([[30, 20]], [[False, False]], [steps((30, 1.0)), []]),
        rollouts([[30, 30]], [[False, False]], [steps((30, 1.0)), []], truncated=torch.ones(1, 2)),
        rollouts([[30]], [[True]], [steps((10, 1.0), (30, 0.0))]),
    ],
    ids=["equal", "all wrong", "all truncated", "a group of one"],
)
def test_groups_with_nothing_to_learn(given):
    objective = SmartThinker()
    advantages = objective.advantages(given, objective.rewards(given))
    assert advantages.abs().max().item() == pytest.approx(0, abs=1e-9)
    assert objective.token_advantages(given, advantages).abs().max().item() == pytest.approx(0, abs=1e-9)
    assert objective.inactive(given) == ""


def test_steps_that_do_not_fit():
    with pytest.raises(ObjectiveError, match="needs the steps of each response"):
        SmartThinker().rewards(Rollouts.of([[5, 6]], [[True, True]]))
    for wrong in (steps((3, 1.0), (3, 1.0)), steps((7, 1.0)), steps((0, 1.0), (3, 1.0))):
        with pytest.raises(ObjectiveError, match="steps must end one after the other"):
            SmartThinker().rewards(rollouts([[6]], [[True]], [wrong]))
    for importance in (-0.1, float("nan")):
        with pytest.raises(ObjectiveError, match="importance must be 0 or more"):
            SmartThinker().rewards(rollouts([[6]], [[True]], [steps((3, importance))]))


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"k1": 0}, "k1"),
        ({"k1": 1}, "k1"),
        ({"k2": 1}, "k2"),
        ({"decay": 1.1}, "decay"),
        ({"budget": -1}, "budget"),
    ],
)
def test_bad_parameters(parameters, named):
    with pytest.raises(ObjectiveError, match=f"smartthinker: {named} is"):
        SmartThinker(**parameters)
