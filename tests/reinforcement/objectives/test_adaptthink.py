import pytest
import torch

from satisfice.reinforcement.objective import ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.adaptthink import AdaptThink


def rollouts(correct, direct, reference):
    correct = torch.tensor(correct)
    return Rollouts.of(
        torch.full_like(correct, 10, dtype=torch.int64),
        correct,
        direct=torch.tensor(direct),
        reference_accuracy=None if reference is None else torch.tensor(reference, dtype=torch.float64),
    )


def test_the_formula():
    given = rollouts([[True, True, False, False]], [[True, False, True, False]], [0.75])
    objective = AdaptThink()
    rewards = objective.rewards(given)
    assert rewards.tolist() == [pytest.approx([0.30, 0.25, -0.70, -0.75])]
    assert objective.advantages(given, rewards) is rewards


def test_there_is_no_group_baseline():
    given = rollouts([[True, True]] * 2, [[True, False]] * 2, [0.0, 1.0])
    rewards = AdaptThink(delta=0.2).rewards(given)
    assert rewards.tolist() == [pytest.approx([1.2, 1.0]), pytest.approx([0.2, 0.0])]


def test_right_is_always_above_wrong():
    given = rollouts([[True, False]], [[False, True]], [0.5])
    assert violations(AdaptThink(delta=0.99).rewards(given), given.correct) == 0


def test_it_asks_for_what_it_needs():
    assert AdaptThink.needs == {"reference", "direct"}
    assert AdaptThink.direct_share == 0.5
    with pytest.raises(ObjectiveError, match="accuracy of the model before the training"):
        AdaptThink().rewards(rollouts([[True]], [[True]], None))


def test_it_says_where_there_is_no_choice():
    mixed = rollouts([[True, True]], [[True, False]], [0.5])
    assert AdaptThink().inactive(mixed) == ""
    assert "no response was made" in AdaptThink().inactive(rollouts([[True, True]], [[False, False]], [0.5]))
    assert "every response was made" in AdaptThink().inactive(rollouts([[True, True]], [[True, True]], [0.5]))


@pytest.mark.parametrize("delta", [0, 1, -0.1, float("nan")])
def test_bad_parameters(delta):
    with pytest.raises(ObjectiveError, match="adaptthink: delta is"):
        AdaptThink(delta=delta)
