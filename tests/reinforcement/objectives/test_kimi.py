import pytest
import torch

from satisfice.reinforcement.objective import ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.kimi import Kimi

# lam over lengths 100..300 is 0.5, 0.25, 0, -0.5.
GROUP = Rollouts.of([[100, 150, 200, 300] * 2], [[True] * 4 + [False] * 4])


def test_a_wrong_response_gains_nothing_by_being_short():
    expected = torch.tensor([[1.2, 1.1, 1.0, 0.8, 0.0, 0.0, 0.0, -0.2]], dtype=torch.float64)
    torch.testing.assert_close(Kimi().rewards(GROUP), expected)


def test_advantages_are_rewards_less_the_mean():
    rewards = torch.tensor([[1.2, 0.8, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.7, 0.3, -0.5, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(Kimi().advantages(GROUP, rewards), expected)


def test_equal_lengths_have_no_length_reward():
    assert Kimi().rewards(Rollouts.of([[5, 5]], [[True, False]])).tolist() == [[1.0, 0.0]]
    assert Kimi().rewards(Rollouts.of([[5]], [[True]])).tolist() == [[1.0]]


@pytest.mark.parametrize(("weight", "count"), [(0.4, 0), (1.99, 0), (2.0, 1), (2.5, 1)])
def test_violations_begin_at_a_weight_of_two(weight, count):
    group = Rollouts.of([[100, 300, 100]], [[True, True, False]])
    assert violations(Kimi(weight=weight).rewards(group), group.correct) == count


def test_the_length_reward_sets_in_after_the_warmup():
    objective = Kimi(warmup=2)
    plain = GROUP.correct.double().tolist()
    assert objective.rewards(GROUP).tolist() == plain, "before the first step"
    for _ in range(2):
        objective.update(GROUP)
        assert objective.rewards(GROUP).tolist() == plain
        assert objective.inactive(GROUP) == "the first 2 steps are without a length reward, and this is one"
    objective.update(GROUP)
    assert objective.rewards(GROUP).tolist() == Kimi().rewards(GROUP).tolist() != plain
    assert objective.inactive(GROUP) == ""


def test_the_warmup_goes_on_after_a_restart():
    objective, again = Kimi(warmup=2), Kimi(warmup=2)
    for _ in range(2):
        objective.update(GROUP)
    again.load_state_dict(objective.state_dict())
    again.update(GROUP)
    assert again.inactive(GROUP) == ""


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": "3"}, {"step": 1, "phase": 2}])
def test_a_foreign_state_is_refused(state):
    with pytest.raises(ObjectiveError, match="state of kimi"):
        Kimi().load_state_dict(state)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"weight": 0}, "weight"), ({"weight": float("inf")}, "weight"), ({"warmup": -1}, "warmup")],
)
def test_parameters_that_cannot_work_are_refused(parameters, message):
    with pytest.raises(ObjectiveError, match=message):
        Kimi(**parameters)
