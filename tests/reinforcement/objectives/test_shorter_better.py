import pytest
import torch

from satisfice.reinforcement.objective import ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.shorter_better import ShorterBetter


def test_everything_is_drawn_to_the_shortest_right_response():
    group = Rollouts.of([[500, 800, 300, 900]], [[True, True, False, False]])
    expected = torch.tensor([[2.0, 1.7, -0.2, -0.4]], dtype=torch.float64)
    torch.testing.assert_close(ShorterBetter().rewards(group), expected)


def test_a_group_without_a_right_answer_is_drawn_to_its_mean():
    group = Rollouts.of([[100, 200, 600]], [[False, False, False]])
    expected = torch.tensor([[-0.2, -0.1, -0.3]], dtype=torch.float64)
    torch.testing.assert_close(ShorterBetter().rewards(group), expected)


def test_violations_begin_2000_tokens_after_the_shortest():
    def count(length):
        group = Rollouts.of([[100, length, 100]], [[True, True, False]])
        return violations(ShorterBetter().rewards(group), group.correct)

    assert (count(2099), count(2100), count(5000)) == (0, 1, 1)


@pytest.mark.parametrize("parameters", [{"alpha": 0}, {"beta": -1}, {"beta": float("inf")}])
def test_parameters_that_cannot_work_are_refused(parameters):
    with pytest.raises(ObjectiveError, match=f"{next(iter(parameters))} is .*; it must be .*above 0"):
        ShorterBetter(**parameters)
