import pytest
import torch

from satisfice.reinforcement.objective import ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.dapo_overlong import DAPOOverlong


def test_the_papers_numbers():
    lengths = [[16384, 18432, 20480, 20481, 100, 20480]]
    group = Rollouts.of(lengths, [[True, True, True, True, False, False]], max_length=20480)
    assert DAPOOverlong().rewards(group).tolist() == [[1, 0.5, 0, 0, -1, -2]]
    assert violations(DAPOOverlong().rewards(group), group.correct) == 0


def test_limit_and_cache_can_be_set():
    group = Rollouts.of([[80, 95, 100, 200]], [[True, True, True, False]], max_length=500)
    rewards = DAPOOverlong(limit=100, cache=20, penalty=0.4).rewards(group)
    torch.testing.assert_close(rewards, torch.tensor([[1, 0.7, 0.6, -1.4]], dtype=torch.float64))


def test_a_truncated_response_pays_in_full():
    group = Rollouts.of([[100, 10]], [[False, True]], [[True, False]], max_length=100)
    assert DAPOOverlong().rewards(group).tolist() == [[-2, 1]]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"penalty": 2.0}, r"penalty is 2; it must be above 0 and below 2 \(from 2 on"),
        ({"penalty": 0}, "penalty is 0; it must be above 0"),
        ({"limit": 0}, "limit is 0; it must be at least 1"),
        ({"cache": 0}, "cache is 0; it must be at least 1"),
        ({"limit": 10, "cache": 11}, "cache must be below the limit"),
        ({"limit": 10, "cache": 10}, "cache must be below the limit"),
    ],
)
def test_parameters_that_cannot_work_are_refused(parameters, message):
    with pytest.raises(ObjectiveError, match=message):
        DAPOOverlong(**parameters)


def test_a_stretch_that_nobody_reaches_is_reported():
    group = Rollouts.of([[80, 10]], [[True, True]], max_length=100)
    assert "no response is longer than 80 tokens" in DAPOOverlong().inactive(group)
    assert DAPOOverlong(cache=21).inactive(group) == ""


def test_a_cache_must_leave_room_below_the_token_limit():
    assert DAPOOverlong(cache=99).obstacle(100) == ""
    assert "every response would pay" in DAPOOverlong(cache=100).obstacle(100)
    # Its own limit counts where it has one.
    assert DAPOOverlong(limit=200, cache=150).obstacle(100) == ""
