"""InfoBias and InfoGain in both forms, by hand."""

import math

import numpy as np
import pytest

from satisfice.measurement.information import (
    average_entropy,
    dataset_bias,
    entropy,
    hsic,
    information_bias,
    information_gains,
    mutual_information,
    sampling_error,
    targeted_gains,
)


def test_entropy_in_nats_and_bits():
    assert entropy([1, 1, 1, 1], 2) == pytest.approx(2)
    assert entropy([0.3, 0.3]) == pytest.approx(math.log(2))  # scaled to 1
    assert entropy([0, 5]) == 0
    for wrong in ([], [0, 0], [1, -1]):
        with pytest.raises(ValueError, match="probabilities"):
            entropy(wrong)


def test_a_step_that_decides_gains_what_was_open():
    gains = information_gains([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], 2)
    assert gains == pytest.approx([1, 1, -1])


def test_the_targeted_gain_is_positive_where_the_right_answer_gets_likelier_and_negative_as_printed():
    assert targeted_gains([0.25, 0.5, 0.25], 2) == pytest.approx([1, -1])
    assert targeted_gains([0.25, 0.5], 2, as_printed=True) == pytest.approx([-1])
    with pytest.raises(ValueError, match="above 0"):
        targeted_gains([0.0, 0.5])


def test_the_largest_average_entropies():
    assert average_entropy([1, 1]) == pytest.approx(0.5)
    assert average_entropy([1] * 4) == pytest.approx(0.5)
    assert average_entropy([1] * 10) == pytest.approx(0.332, abs=1e-3)
    assert max(average_entropy([1] * n) for n in range(2, 20)) <= 1 / (math.e * math.log(2))


def test_bias_is_minus_what_the_traces_share():
    assert information_bias([[5, 0], [0, 5]], 2) == pytest.approx(-1)
    assert mutual_information([[2, 4], [1, 2]]) == pytest.approx(0, abs=1e-12)
    assert sampling_error(800, 0.05) == pytest.approx(math.sqrt(2 * math.log(40) / 800))


def test_hsic_is_higher_for_what_belongs_together():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 4))
    assert hsic(x, x) > hsic(x, rng.normal(size=(10, 4)) * 0.01)
    assert hsic(x, x) == pytest.approx(hsic(x[::-1], x[::-1]))
    with pytest.raises(ValueError, match="as many traces"):
        hsic(x, x[:5])


def test_the_programs_bias_is_relative_to_the_data_set_and_pushes_long_answers_up():
    assert dataset_bias([2.0, 2.0, 2.0], [10, 20, 40]) == pytest.approx([0, 2 / 3, 1])
    assert dataset_bias([2.0], [10]) == [1.0]
    with pytest.raises(ValueError, match="tokens"):
        dataset_bias([1.0], [0])
