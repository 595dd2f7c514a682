import pytest
import torch

from satisfice.reinforcement.objective import ObjectiveError, Rollouts, violations
from satisfice.reinforcement.objectives.dot import DOT


def one_long(size, long=1000, short=100):
    return torch.tensor([[short] * (size - 1) + [long]])


def test_the_cut():
    # mean (15 * 100 + 1000) / 16 = 156.25, sample std 900 / 4 = 225: T = floor(156.25 + 3 * 225) = 831
    lengths = one_long(16)
    cut = DOT().cut(Rollouts.of(lengths, torch.ones_like(lengths)))
    assert cut is not None
    assert cut.dtype is torch.int64
    assert cut.tolist() == [[100] * 15 + [831]]


def test_only_groups_that_are_all_right_are_cut():
    lengths = one_long(16).repeat(2, 1)
    correct = torch.ones_like(lengths).bool()
    correct[0, 3] = False
    cut = DOT().cut(Rollouts.of(lengths, correct))
    assert cut is not None
    assert cut.tolist() == [[100] * 15 + [1000], [100] * 15 + [831]]


@pytest.mark.parametrize(("margin", "cuts"), [(169, True), (170, False)])
def test_the_margin_is_what_a_cut_must_save(margin, cuts):
    lengths = one_long(16)  # 1000 - 831 = 169
    assert (DOT(margin=margin).cut(Rollouts.of(lengths, torch.ones_like(lengths))) is not None) is cuts


@pytest.mark.parametrize("size", [1, 2, 8, 10])
def test_small_groups_are_never_cut_and_it_says_so(size):
    lengths = one_long(size, long=10**6)
    given = Rollouts.of(lengths, torch.ones_like(lengths))
    assert DOT().cut(given) is None
    assert "take at least 11 responses a prompt" in DOT().inactive(given)


def test_from_eleven_responses_on_it_acts():
    lengths = one_long(11, long=10**6)
    given = Rollouts.of(lengths, torch.ones_like(lengths))
    assert DOT().cut(given) is not None
    assert DOT().inactive(given) == ""


def test_enough_responses_is_more_than_the_bound():
    # (4 - 1) / 2 = 1.5 exactly, and nothing is further than that
    given = Rollouts.of(one_long(4), torch.ones(1, 4))
    assert "take at least 5" in DOT(alpha=1.5).inactive(given)
    assert "none can be more than 1.50" in DOT(alpha=1.5).inactive(given)


def test_a_margin_that_no_cut_can_save():
    lengths = one_long(16, long=120, short=0)
    given = Rollouts.of(lengths, torch.ones_like(lengths))
    # the most that can be saved: (3.75 - 3) * 120 / 4 = 22.5
    assert "lower margin" in DOT().inactive(given)
    assert DOT().cut(given) is None
    assert DOT(margin=16).inactive(given) == ""
    cut = DOT(margin=16).cut(given)
    assert cut is not None
    assert cut[0, -1] == 97  # floor(7.5 + 3 * 30)


def test_the_reward_is_plain_correctness():
    given = Rollouts.of([[10, 1000, 20]], [[True, True, False]])
    rewards = DOT().rewards(given)
    assert rewards.tolist() == [[1.0, 1.0, 0.0]]
    assert violations(rewards, given.correct) == 0
    assert DOT().cut(given) is None


def test_equal_lengths_are_never_cut():
    assert DOT(alpha=0, margin=1).cut(Rollouts.of(torch.full((1, 16), 77), torch.ones(1, 16))) is None


@pytest.mark.parametrize(("parameters", "named"), [({"alpha": -1}, "alpha"), ({"margin": 0}, "margin")])
def test_bad_parameters(parameters, named):
    with pytest.raises(ObjectiveError, match=f"dot: {named} is"):
        DOT(**parameters)
