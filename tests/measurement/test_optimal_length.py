"""The best number of steps: closed values, and the fit on counts whose truth is known."""

import math

import numpy as np
import pytest

from satisfice.measurement.optimal_length import (
    accuracy_by_steps,
    best_bin,
    count_steps,
    fit,
    optimal_step_size,
    optimal_steps,
    step_accuracy,
)

VALUES = [(5, 24, 100, 9.939), (6, 32, 80, 9.208), (8, 48, 100, 9.714), (5, 16, 1000, 19.996), (4, 60, 80, 20.571)]


@pytest.mark.parametrize(("capability", "operators", "hardest", "steps"), VALUES)
def test_closed_values(capability, operators, hardest, steps):
    assert optimal_steps(operators, capability, hardest) == pytest.approx(steps, abs=6e-4)


@pytest.mark.parametrize(("capability", "operators", "hardest", "steps"), VALUES)
def test_it_is_where_the_accuracy_is_highest(capability, operators, hardest, steps):
    grid = np.linspace(operators / capability + 0.01, 60, 40_000)
    accuracies = [step_accuracy(n, operators, capability, hardest) for n in grid]
    assert grid[int(np.argmax(accuracies))] == pytest.approx(steps, abs=0.02)


def test_harder_tasks_take_more_and_larger_steps_and_stronger_models_fewer():
    assert optimal_steps(32, 5, 100) > optimal_steps(24, 5, 100) > optimal_steps(24, 8, 100)
    assert optimal_step_size(32, 5, 100) > optimal_step_size(24, 5, 100)
    assert step_accuracy(4, 24, 5, 100) == 0  # six operators a step, and the model answers five
    for wrong in ((24, 5, 24), (0, 5, 10), (5, 0, 10)):
        with pytest.raises(ValueError, match="the formula holds"):
            optimal_steps(*wrong)


def test_a_fit_finds_what_made_the_counts():
    rows = []
    for operators in (12, 24, 36):
        for steps in range(9, 37, 3):
            p = step_accuracy(steps, operators, 6, 200, 0.98)
            rows.append((operators, steps, 100_000, round(100_000 * p)))
    found = fit(rows)
    assert found.found
    assert found.capability == pytest.approx(6, rel=0.03)
    assert found.hardest == pytest.approx(200, rel=0.03)
    assert found.best(24) == pytest.approx(optimal_steps(24, 6, 200), rel=0.02)
    with pytest.raises(ValueError, match="three numbers"):
        fit(rows[:2])


@pytest.mark.parametrize("right", [500, 0])
def test_a_model_that_is_always_right_or_always_wrong_is_fitted_too(right):
    found = fit([(operators, steps, 500, right) for operators in (4, 6) for steps in (2, 3, 4)])
    assert all(map(math.isfinite, (found.capability, found.hardest, found.alpha, found.loss)))
    assert found.loss < 0.01
    assert found.found == (right == 0), "without errors there is no N*"


def test_both_ways_to_count_steps():
    text = "one\n\ntwo\n  \nthree\nfour\n"
    assert count_steps(text) == 4
    assert count_steps(text, "lines // 5") == 1
    assert count_steps("") == count_steps("", "lines // 5") == 0


def test_accuracy_by_steps():
    bins = accuracy_by_steps([1, 2, 3, 9], [True, False, True, True], 3)
    assert [(each.low, each.high, each.n) for each in bins] == [(0, 3, 2), (3, 6, 1), (9, 12, 1)]
    assert bins[0].accuracy.value == 0.5
    assert best_bin(bins) is bins[1]
    assert best_bin([]) is None
    with pytest.raises(ValueError, match="at least one step"):
        accuracy_by_steps([1], [True], 0)
