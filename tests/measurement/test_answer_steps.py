"""InfoGain and InfoBias put together over a run, on records whose values can be worked out by hand."""

import math

import numpy as np
import pytest

from satisfice.measurement.answer_steps import AnswerSteps, answers_bias, embed, program_bias, step_numbers


def steps(*rows, right=True):
    logs = [[math.log(p) for p in row] for row in rows]
    return AnswerSteps(
        problem_id="p", sample=0, right=right, places=list(range(len(rows))), candidates=["a", "b"],
        log_probabilities=logs,
    )  # fmt: skip


def test_gains_are_those_of_scaled_candidates():
    one = steps([0.02, 0.02], [0.3, 0.1])  # scaled: a half each, then 3 to 1
    assert one.entropies(2) == pytest.approx([1, 2 - 0.75 * math.log2(3)])
    assert one.gains(2) == pytest.approx([0.75 * math.log2(3) - 1])
    assert one.targeted(2) == pytest.approx([math.log2(1.5)])
    assert one.targeted(as_printed=True) == pytest.approx([-math.log(1.5)])
    certain = AnswerSteps.model_validate(one.model_dump() | {"log_probabilities": [[-2000.0, -1.0], [-1.0, -2000.0]]})
    assert certain.entropies() == pytest.approx([0, 0])
    assert certain.targeted()[0] == pytest.approx(-math.log(1e-300), rel=1e-3)  # and not infinite


def test_a_thinking_with_fewer_boundaries_keeps_its_entropy_and_has_no_gain_there():
    long, short = steps([1, 1], [1, 1], [9, 1]), steps([1, 1], [1, 1e-9], right=False)
    found = step_numbers([long, short])
    entropy = found["entropy"]
    assert [each.n for each in entropy] == [2, 2, 2]
    assert entropy[2].value == pytest.approx(long.entropies()[2] / 2, abs=1e-6)
    assert [each.n for each in found["gain"]] == [2, 1]
    assert found["gain"][1].value == pytest.approx(long.gains()[1])
    assert [each.value for each in found["entropy_wrong"]] == pytest.approx(short.entropies())
    assert found["entropy_bits"][0] == pytest.approx(1)


def test_the_bias_of_answers_is_minus_what_they_tell_about_the_gold_ones():
    golds = [str(place % 4) for place in range(400)]
    value, error = answers_bias(golds, golds)
    assert value == pytest.approx(-math.log(4))
    assert error == pytest.approx(math.sqrt(2 * math.log(40) / 400))
    assert answers_bias(["x"] * 400, golds)[0] == pytest.approx(0, abs=1e-9)


def test_the_programs_bias_grows_with_length_alone():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["add", "two", "so", "then", "carry"], 30)) for _ in range(6)]
    same = dict.fromkeys(("short", "middle", "long"), texts)
    right = {"short": True, "middle": False, "long": False}
    found = program_bias(same, same, {"short": 30.0, "middle": 100.0, "long": 300.0}, right)
    values = found["program_bias"]
    assert (values["short"], values["long"]) == pytest.approx((0, 1))
    assert values["middle"] == pytest.approx((1 / 30 - 1 / 100) / (1 / 30 - 1 / 300))
    assert found["program_bias_right"].value == pytest.approx(0)
    assert (found["program_bias_wrong"].value, found["program_bias_wrong"].n) == pytest.approx(
        (0.5 + values["middle"] / 2, 2)
    )


def test_texts_are_near_if_they_use_the_same_words():
    a, b, c, empty = embed(["3 + 4 = 7", "3 + 4 = 8", "the cat sat", ""])
    assert a @ b > 0.6 > 0.2 > abs(a @ c)
    assert a @ a == pytest.approx(1)
    assert not empty.any()
