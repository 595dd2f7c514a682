"""Published scores by hand."""

import pytest

from satisfice.measurement import metrics as m


def test_both_constant_sets_of_the_accuracy_efficiency_score():
    lost = (0.76, 500, 0.8, 1000)  # half the tokens, a twentieth of the accuracy
    assert {
        name: m.accuracy_efficiency_score(*lost, alpha=a, beta=b, gamma=c) for name, (a, b, c) in m.AES_SETS.items()
    } == {
        "1, 3, 5": pytest.approx(0.25),
        "1, 5, 10": pytest.approx(0.0),
    }


def test_saving_per_accuracy_lost_says_nothing_where_none_was_lost():
    assert m.efficiency_performance_ratio(0.4, 0.02) == pytest.approx(20)
    assert m.efficiency_performance_ratio(0.4, 0.0) is None
    assert m.efficiency_performance_ratio(0.4, -0.01) is None


def test_accuracy_per_compute():
    assert m.accuracy_per_compute(0.5, 2e9, 100) == pytest.approx(0.5 / 2e11)
    assert m.accuracy_per_compute(0.5, 2e9, 0) is None


def test_the_gap_to_what_is_possible_at_that_budget():
    front = [(10, 0.5), (20, 0.9), (30, 0.8)]
    assert m.reasoning_efficiency_gap(0.8, 30, front) == pytest.approx(0.1)
    assert m.reasoning_efficiency_gap(0.5, 15, front) == 0
    assert m.reasoning_efficiency_gap(0.3, 5, front) == 0  # nothing is known to be possible there


def test_the_area_is_the_mean_over_limits():
    right, thinking = [True, True, False, True], [0, 250, 10, 5000]
    assert m.overthinking_adjusted_accuracy(right, thinking, 251) == 0.5
    assert m.overthinking_adjusted_accuracy(right, thinking, 250) == 0.25
    limits = [m.overthinking_adjusted_accuracy(right, thinking, t + 0.5) for t in range(1000)]
    assert m.area_under_oaa(right, thinking) == pytest.approx(sum(limits) / 1000, abs=1e-3) == pytest.approx(1.75 / 4)
    with pytest.raises(ValueError, match="a length each"):
        m.area_under_oaa([True], [])


def test_harmonic_means():
    assert m.harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert m.harmonic_mean(0, 0) == 0
    assert m.overthinking_score(0.5, 150, 100, 200) == pytest.approx(0.5)
    assert m.overthinking_score(0.5, 500, 100, 200) == 0
    with pytest.raises(ValueError, match="fewest"):
        m.overthinking_score(0.5, 1, 2, 2)


def test_holm_by_hand():
    assert m.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert m.holm([0.6, 0.9]) == [1.0, 1.0]
    assert m.holm([]) == []
