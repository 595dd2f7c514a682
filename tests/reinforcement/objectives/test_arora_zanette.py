import math

import pytest
import torch

from satisfice.reinforcement.objective import ObjectiveError, Rollouts
from satisfice.reinforcement.objectives.arora_zanette import AroraZanette


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_only_right_responses_set_the_scale():
    # Right lengths 100 and 300: mean 200, population deviation 100, z = -1 and 1.
    group = Rollouts.of([[100, 300, 5000, 1]], [[True, True, False, False]])
    expected = [1 - 0.1 * sigmoid(-1), 1 - 0.1 * sigmoid(1), 0.0, 0.0]
    assert AroraZanette().rewards(group)[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_advantages_leave_each_response_out_of_its_baseline():
    objective = AroraZanette(alpha=0.2)
    group = Rollouts.of([[100, 300, 50]], [[True, True, False]])
    short, long, wrong = objective.rewards(group)[0].tolist()
    expected = [short - (long + wrong) / 2, long - (short + wrong) / 2, wrong - (short + long) / 2]
    assert objective.advantages(group, objective.rewards(group))[0].tolist() == pytest.approx(expected)


def test_one_right_response_and_equal_ones_sit_in_the_middle():
    alone = AroraZanette().rewards(Rollouts.of([[100, 300]], [[True, False]]))
    assert alone.tolist() == [[0.95, 0.0]]
    equal = AroraZanette().rewards(Rollouts.of([[7, 7, 7]], [[True, True, True]]))
    assert equal.tolist() == [[0.95, 0.95, 0.95]]


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_alpha_that_could_cancel_correctness_is_refused(alpha):
    with pytest.raises(ObjectiveError, match="it must be at least 0 and below 1"):
        AroraZanette(alpha=alpha)


def test_no_alpha_no_length_term():
    group = Rollouts.of(torch.tensor([[1, 2]]), torch.tensor([[True, True]]))
    assert AroraZanette(alpha=0).inactive(group) == "alpha is 0, so length costs nothing"
    assert AroraZanette().inactive(group) == ""
