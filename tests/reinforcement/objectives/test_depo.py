import math

import pytest
import torch

from satisfice.reinforcement.objective import EPSILON, ObjectiveError, Rollouts, normalise, violations
from satisfice.reinforcement.objectives.depo import DEPO


def rollouts(lengths, correct, truncated=None, **others):
    return Rollouts.of(lengths, correct, truncated, **{name: torch.tensor(value) for name, value in others.items()})


def advantages(objective, given):
    return objective.advantages(given, objective.rewards(given))


def test_the_rewards():
    # right lengths 10 and 30: mean 20, population std 10, scores -1 and 1; two are right, one is truncated
    given = rollouts([[10, 30, 500, 90]], [[True, True, False, False]], [[False, False, True, False]])
    weight = 0.2 * (1 - math.exp(-0.2 * 2))
    assert DEPO().rewards(given).tolist() == [pytest.approx([1 + weight, 1 - weight, -1, 0])]


def test_the_length_term_grows_with_the_number_of_right_responses():
    two = DEPO().rewards(rollouts([[10, 30, 50, 50]], [[True, True, False, False]]))
    four = DEPO().rewards(rollouts([[10, 30, 10, 30]], [[True] * 4]))
    assert (two[0, 0] - 1).item() == pytest.approx(0.2 * (1 - math.exp(-0.4)))
    assert (four[0, 0] - 1).item() == pytest.approx(0.2 * (1 - math.exp(-0.8)))


@pytest.mark.parametrize(
    ("lengths", "correct"),
    [([[40, 70]], [[True, False]]), ([[50, 50]], [[True, True]]), ([[3, 9]], [[False, False]])],
    ids=["one right", "equal lengths", "all wrong"],
)
def test_without_a_spread_of_right_lengths_there_is_no_length_term(lengths, correct):
    rewards = DEPO().rewards(rollouts(lengths, correct))
    assert torch.equal(rewards, torch.tensor(correct).double())


def test_positive_lifts_long_right_responses_to_the_least_positive_advantage():
    # all right: scores of 10, 20, 30, 60 around 30, so two are above the mean, one on it, one below
    given = rollouts([[10, 20, 30, 60]], [[True] * 4])
    raw = normalise(DEPO().rewards(given), "group-std")
    clipped = advantages(DEPO(), given)
    assert raw[0, 1] > 0 > raw[0, 3]
    assert clipped.tolist() == [pytest.approx([raw[0, 0].item()] + [raw[0, 1].item()] * 3)]


def test_literal_leaves_right_responses_as_they_are():
    given = rollouts([[10, 20, 30, 60]], [[True] * 4])
    raw = normalise(DEPO().rewards(given), "group-std")
    assert torch.allclose(advantages(DEPO(clip="literal"), given), raw, atol=1e-12)
    assert torch.equal(advantages(DEPO(clip="none"), given), raw)


@pytest.mark.parametrize("clip", ["positive", "literal"])
def test_wrong_ones_within_the_limit_are_not_encouraged_by_truncated_ones(clip):
    # rewards 0, 0, -1: mean -1/3, sample std 0.577
    given = rollouts([[10, 20, 99]], [[False] * 3], [[False, False, True]])
    unit = math.sqrt(1 / 3) + EPSILON
    assert advantages(DEPO(clip=clip), given).tolist() == [pytest.approx([0, 0, -2 / 3 / unit])]
    assert advantages(DEPO(clip="none"), given).tolist() == [pytest.approx([1 / 3 / unit, 1 / 3 / unit, -2 / 3 / unit])]


def test_the_clip_repairs_what_the_length_term_breaks():
    # a large alpha puts the long right response below the wrong one, against all sense
    given = rollouts([[10, 10, 10, 90, 20]], [[True] * 4 + [False]])
    objective = DEPO(alpha=3.0)
    assert violations(objective.rewards(given), given.correct) == 1
    assert advantages(DEPO(alpha=3.0, clip="none"), given)[0, 3] < 0
    clipped = advantages(objective, given)
    assert clipped[0, 3] == clipped[0, 0] > 0 >= clipped[0, 4]


def test_the_default_alpha_breaks_nothing_in_groups_of_up_to_26():
    for size in range(2, 28):
        # worst: one right response is long, all others are short; and one is wrong, which does not count among them
        lengths = torch.tensor([[1] * (size - 1) + [10**6, 1]])
        given = rollouts(lengths, torch.tensor([[True] * size + [False]]))
        assert violations(DEPO().rewards(given), given.correct) == (size > 26)


def test_an_all_right_group_of_equal_lengths_has_no_advantage():
    assert advantages(DEPO(), rollouts([[50] * 3], [[True] * 3])).tolist() == [[0.0] * 3]
    assert advantages(DEPO(), rollouts([[50]], [[True]])).tolist() == [[0.0]]


def test_tokens_after_the_boundary_of_right_responses_count_less():
    given = rollouts(
        [[4, 5, 3, 2]],
        [[True, True, False, True]],
        boundaries=[[2, -1, 1, 0]],
        redundancy=[[3, 7, 5, 0]],
    )
    spread = DEPO(beta=0.5).token_advantages(given, torch.tensor([[1.0, 0.5, -1.0, 0.8]], dtype=torch.float64))
    less = 1 - 0.5 * (1 - math.exp(-1.5))
    assert spread.tolist() == [
        [
            pytest.approx([1, 1, less, less, 0]),
            pytest.approx([0.5] * 5),  # no boundary
            pytest.approx([-1, -1, -1, 0, 0]),  # wrong
            pytest.approx([0.8, 0.8, 0, 0, 0]),  # f(0) = 1
        ]
    ]


def test_f_falls_towards_one_minus_beta():
    counts = torch.arange(60)[None]
    given = Rollouts.of(
        torch.ones_like(counts),
        torch.ones_like(counts),
        boundaries=torch.zeros_like(counts),
        redundancy=counts,
    )
    f = DEPO(beta=0.7).token_advantages(given, torch.ones(1, 60, dtype=torch.float64))[0, :, 0]
    assert f[0] == 1
    assert bool((f.diff() < 0)[:40].all())
    assert bool((f >= 0.3).all())
    assert f[-1].item() == pytest.approx(0.3, abs=1e-9)


def test_it_says_where_no_boundary_was_found():
    assert "no right response states the gold answer" in DEPO().inactive(rollouts([[5, 6]], [[True, False]]))
    assert DEPO().inactive(rollouts([[5, 6]], [[True, False]], boundaries=[[3, -1]])) == ""
    assert DEPO().inactive(rollouts([[5, 6]], [[False, False]])) == ""


@pytest.mark.parametrize(
    ("parameters", "named"),
    [({"alpha": 0}, "alpha"), ({"beta": 0}, "beta"), ({"beta": 1}, "beta"), ({"clip": "both"}, "clip")],
)
def test_bad_parameters(parameters, named):
    with pytest.raises(ObjectiveError, match=f"depo: {named} is"):
        DEPO(**parameters)
