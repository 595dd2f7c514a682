import math

import pytest

from satisfice.reinforcement.objective import ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.grpo_lead import GRPOLead

# Right lengths 100 and 300: mean 200, population deviation 100, z = -1 and 1.
GROUP = Rollouts.of([[100, 300, 10**9, 1]], [[True, True, False, False]])


def test_right_answers_by_relative_length_wrong_ones_at_minus_one():
    expected = [math.exp(0.05), math.exp(-0.05), -1, -1]
    assert GRPOLead().rewards(GROUP)[0].tolist() == pytest.approx(expected, abs=1e-8)


def test_equal_lengths_and_a_single_right_answer_earn_one():
    assert GRPOLead().rewards(Rollouts.of([[9, 9, 9]], [[True, True, False]])).tolist() == [[1, 1, -1]]
    assert GRPOLead().rewards(Rollouts.of([[9, 5, 5]], [[True, False, False]])).tolist() == [[1, -1, -1]]


def test_success_on_hard_problems_and_failure_on_easy_ones_weigh_most():
    objective = GRPOLead()
    plain = GRPOLead(low=1, high=1)
    hard = Rollouts.of([[9] * 4], [[True, False, False, False]])
    weighed, relative = (kind.advantages(hard, kind.rewards(hard))[0].tolist() for kind in (objective, plain))
    w = lambda x: 0.4 + 1.1 / (1 + math.exp(10 * (x - 0.75)))  # noqa: E731
    # Rewards 1, -1, -1, -1: mean -0.5, sample deviation 1.
    assert relative == pytest.approx([1.5 / 1.0001, *[-0.5 / 1.0001] * 3])
    assert weighed == pytest.approx([relative[0] * w(0.25), *[relative[1] * w(0.75)] * 3])
    assert w(0.25) == pytest.approx(1.4926, abs=1e-4)
    assert w(0.75) == pytest.approx(0.95)


@pytest.mark.parametrize("alpha", [0.0, 0.05, 10.0])
def test_no_alpha_lifts_a_wrong_answer_to_a_right_one(alpha):
    lengths = [[1, *[100] * 14, 10**6, 5]]
    group = Rollouts.of(lengths, [[True] * 16 + [False]])
    rewards = GRPOLead(alpha=alpha).rewards(group)
    assert bool(rewards.isfinite().all())
    assert violations(rewards, group.correct) == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, r"alpha is -1; it must be within 0\.\.10"),
        ({"alpha": float("inf")}, r"alpha is inf; it must be within 0\.\.10"),
        ({"low": 0}, "low is 0; it must be above 0"),
        ({"low": 2}, "at most high"),
        ({"midpoint": 1.5}, r"midpoint is 1\.5; it must be within 0\.\.1"),
        ({"steepness": 0}, "steepness is 0; it must be above 0"),
    ],
)
def test_parameters_that_cannot_work_are_refused(parameters, message):
    with pytest.raises(ObjectiveError, match=message):
        GRPOLead(**parameters)


def test_no_alpha_no_length_term():
    assert GRPOLead(alpha=0).inactive(GROUP) == "alpha is 0, so length is not rewarded"
    assert GRPOLead().inactive(GROUP) == ""
