import pytest
import torch

from satisfice.reinforcement.objective import ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.dler import DLER


def test_a_right_answer_counts_within_the_limit_only():
    group = Rollouts.of([[4000, 4001, 100, 8000]], [[True, True, False, False]], [[False, False, False, True]])
    assert DLER().rewards(group).tolist() == [[1, 0, 0, 0]]
    assert violations(DLER().rewards(group), group.correct) == 2


def test_without_a_lower_limit_truncation_is_the_penalty():
    group = Rollouts.of([[300, 512]], [[True, False]], [[False, True]], max_length=512)
    assert DLER().rewards(group).tolist() == [[1, 0]]
    assert DLER().inactive(group) == ""
    short = Rollouts.of([[300, 511]], [[True, False]], max_length=512)
    assert DLER().inactive(short) == "no response is beyond the limit of 512 tokens; lower it"
    assert DLER(limit=510).inactive(short) == ""


def test_easy_groups_have_the_lower_limit():
    lengths = [[100, 300, 300, 500], [100, 300, 500, 500]]
    group = Rollouts.of(lengths, [[True, True, True, True], [True, True, False, True]])
    assert DLER(limit=400, easy_limit=200).rewards(group).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    # In the second group only one of four is right within 250: that is not easy, and the limit stays.
    assert DLER(limit=250, easy_limit=50).rewards(group).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]


def test_advantages_are_scaled_over_the_batch():
    group = Rollouts.of([[10, 10], [10, 10]], [[True, False], [True, True]])
    advantages = DLER().advantages(group, DLER().rewards(group))
    # From the group means: 0.5, -0.5, 0, 0; squares sum to 0.5, over three degrees of freedom.
    size = 0.5 / ((0.5 / 3) ** 0.5 + 1e-4)
    expected = torch.tensor([[size, -size], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected)


def test_token_whitening_weighs_by_length_and_drops_flat_groups():
    objective = DLER(whitening="tokens")
    group = Rollouts.of([[100, 300], [50, 50], [70, 30]], [[True, False], [True, True], [False, False]])
    advantages = objective.advantages(group, objective.rewards(group))
    # 0.5 on 100 tokens and -0.5 on 300: mean -0.25, variance (100 * 0.75^2 + 300 * 0.25^2) / 400 = 0.1875.
    deviation = 0.1875**0.5 + 1e-4
    expected = torch.tensor([[0.75 / deviation, -0.25 / deviation], [0, 0], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected)


def test_a_batch_without_any_difference_has_no_advantages():
    group = Rollouts.of([[100, 300], [50, 50]], [[True, True], [False, False]])
    for whitening in ("responses", "tokens"):
        objective = DLER(whitening=whitening)
        assert objective.advantages(group, objective.rewards(group)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"limit": 0}, "limit is 0; it must be at least 1"),
        ({"easy_limit": 5000}, "easy_limit must be from 1 to limit"),
        ({"whitening": "groups"}, "it must be responses or tokens"),
    ],
)
def test_parameters_that_cannot_work_are_refused(parameters, message):
    with pytest.raises(ObjectiveError, match=message):
        DLER(**parameters)
