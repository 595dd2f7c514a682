"""Costs against the formulas by hand, and against sums over single steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from satisfice.attention import Attention
from satisfice.measurement.cost import (
    ACCELERATORS,
    PAPER_INTENSITY,
    SHAPES,
    Shape,
    attention_share,
    besides,
    decoding,
    price,
    tokens_read,
)
from satisfice.measurement.frontier import Point, best_within, caps, front, oracle

TOPK, BLOCKS = Attention("top-k", 1024), Attention("block-topk", 1024, 16)


@pytest.mark.parametrize(
    ("model", "attention", "compute", "memory"),
    [
        ("Qwen/Qwen3-0.6B", Attention(), 56.2, 8870.0),
        ("Qwen/Qwen3-0.6B", TOPK, 28.4, 1060.4),
        ("Qwen/Qwen3-0.6B", BLOCKS, 29.4, 1337.6),
        ("Qwen/Qwen3-14B", Attention(), 596.6, 12671.5),
        ("Qwen/Qwen3-14B", TOPK, 497.4, 1514.9),
        ("Qwen/Qwen3-14B", BLOCKS, 501.0, 1910.9),
        ("Qwen/Qwen3-32B", Attention(), 1361.8, 20274.4),
        ("Qwen/Qwen3-32B", TOPK, 1108.0, 2423.8),
        ("Qwen/Qwen3-32B", BLOCKS, 1117.0, 3057.4),
    ],
)
def test_reference_values_in_tera(model, attention, compute, memory):
    work = decoding(SHAPES[model], 200, 16384, attention)
    assert float(work.flops) / 1e12 == pytest.approx(compute, abs=0.06)
    assert PAPER_INTENSITY * float(work.bytes) / 1e12 == pytest.approx(memory, abs=0.06)


def test_one_length_at_which_two_models_cost_the_same():
    def eflops(model, tokens):
        return float(decoding(SHAPES[f"Qwen/Qwen3-{model}"], 200, tokens).eflops(PAPER_INTENSITY))

    assert eflops("4B", 8800) < eflops("14B", 8192) < eflops("4B", 9000)


@pytest.mark.parametrize(("model", "at_4096", "at_16384"), [("0.6B", 88, 353), ("8B", 10.5, 42), ("32B", 4.7, 19)])
def test_attention_against_parameters(model, at_4096, at_16384):
    shape = SHAPES[f"Qwen/Qwen3-{model}"]
    assert attention_share(shape, 200, 4096, PAPER_INTENSITY) == pytest.approx(at_4096, rel=0.02)
    assert attention_share(shape, 200, 16384, PAPER_INTENSITY) == pytest.approx(at_16384, rel=0.02)


def test_a_response_shorter_than_the_budget_reads_what_there_is():
    assert float(tokens_read(200, 500, Attention("top-k", 1024))) == 225_000
    assert float(tokens_read(200, 500, Attention("top-k", 1024))) == float(tokens_read(200, 500))


def test_what_the_budget_does_not_hold_is_taken_away_and_not_added():
    exact = sum(min(1024, 200 + step) for step in range(16384))
    assert float(tokens_read(200, 16384, TOPK)) == pytest.approx(exact, rel=1e-4)
    assert float(tokens_read(200, 16384, TOPK)) < 1024 * 16384


@given(st.integers(0, 500), st.integers(0, 700), st.integers(1, 900))
def test_tokens_read_are_the_sum_over_steps(prompt, tokens, budget):
    exact = sum(min(budget, prompt + step) for step in range(tokens))
    found = float(tokens_read(prompt, tokens, Attention("local", budget)))
    assert exact <= found <= exact + tokens / 2 + 0.5  # the continuous form counts half a token more at each step


def test_the_mean_of_squares_counts_and_not_the_square_of_the_mean():
    shape = Shape(1e6, 2, 4, 2, 16)
    spread, even = (decoding(shape, 10, np.array(lengths)).bytes.mean() for lengths in ([100, 900], [500, 500]))
    assert spread - even == pytest.approx(shape.kv_elements * (np.mean([100**2, 900**2]) - 500**2))


def test_trials_share_the_reading_of_the_prompt_only_where_attention_is_dense():
    shape = Shape(1e6, 2, 4, 2, 16)
    dense, sparse = (decoding(shape, 100, 50, kind, trials=4) for kind in (Attention(), Attention("top-k", 1024)))
    one = decoding(shape, 100, 50)
    assert dense.flops == pytest.approx(4 * one.flops)
    assert float(sparse.bytes) == pytest.approx(4 * float(one.bytes))
    assert float(dense.bytes) == pytest.approx(float(sparse.bytes) - 3 * shape.kv_elements * 2 * 100 * 50)
    # The means of a prompt's blocks are read once, too.
    blocks = Attention("block-topk", 32, 8)
    four, alone = (float(decoding(shape, 100, 50, blocks, trials=n).bytes) for n in (4, 1))
    assert four == pytest.approx(4 * alone - 3 * (2 * 100 / 8 * 50 * shape.kv_elements / 2))


def test_keys_and_values_in_bytes():
    assert float(SHAPES["Qwen/Qwen3-0.6B"].kv_bytes(32768)) / 2**30 == pytest.approx(3.5)
    assert float(SHAPES["Qwen/Qwen3-32B"].kv_bytes(32768)) / 2**30 == pytest.approx(8.0)


def test_intensities_of_accelerators():
    assert ACCELERATORS["b200-fp8"].intensity == PAPER_INTENSITY
    assert ACCELERATORS["b200"].intensity == pytest.approx(281.25)
    assert ACCELERATORS["h100"].intensity == pytest.approx(295, abs=0.5)
    assert ACCELERATORS["h200"].intensity == pytest.approx(206, abs=0.5)


def test_what_the_paper_leaves_out_costs_something_of_its_own():
    shape = Shape(1e6, 2, 4, 2, 16)
    nothing = besides(shape, 10, 20, 0, 0)
    assert (float(nothing.flops), float(nothing.bytes)) == (0, 0)
    probe = besides(shape, 10, 20, 1, 0)
    assert float(probe.flops) == 2e6 + 2 * 2 * shape.kv_elements * 20
    assert float(probe.bytes) == 2 * shape.kv_elements * 20


def test_what_is_beside_a_response_reads_no_more_than_its_budget():
    shape = Shape(1000, 2, 4, 2, 8)
    one = {"prompt": 100, "tokens": 200, "extra": 10, "prefilled": 30}
    dense, wide, narrow, blocks = (
        besides(shape, **one, attention=kind)
        for kind in (Attention(), Attention("local", 200), Attention("local", 50), Attention("block-topk", 40, 10))
    )
    assert (float(wide.flops), float(wide.bytes)) == (float(dense.flops), float(dense.bytes))
    assert float(dense.bytes - narrow.bytes) == 2 * shape.kv_elements * 10 * (200 - 50)
    assert float(dense.flops - narrow.flops) == 2 * shape.ratio * shape.kv_elements * 10 * (200 - 50)
    # The middle is at 200 tokens: 20 means of keys, which weigh half of what tokens do.
    assert float(dense.bytes - blocks.bytes) == 2 * shape.kv_elements * 10 * (200 - 40 - 20 / 2)


def test_a_price():
    assert price(4500e12, 4500e12, 3.6) == pytest.approx(1.0)  # a second each: 1,000 s at 0.001 dollars


def test_shapes_and_attention_are_checked():
    with pytest.raises(ValueError, match="cannot share"):
        Shape(1, 1, 3, 2, 1)
    with pytest.raises(ValueError, match="parameters is 0"):
        Shape(0, 1, 2, 2, 1)
    with pytest.raises(ValueError, match="budget"):
        Attention("local", 0)
    with pytest.raises(ValueError, match="at least one response"):
        decoding(Shape(1, 1, 2, 2, 1), 1, 1, trials=0)


def test_the_best_policy_for_a_budget_and_the_oracle():
    points = [
        Point("a", "plain", 10, 1.0, 0.4, 5),
        Point("a", "plain", None, 3.0, 0.7, 5),
        Point("b", "plain", None, 2.0, 0.8, 5),
    ]
    assert best_within(points, 0.5) is None
    assert best_within(points, 1.5) == points[0]
    assert best_within(points, 9) == points[2]
    assert front(points) == [points[0], points[2]]
    costs = np.array([[1.0, 1.0], [3.0, 1.0], [np.nan, 2.0]])
    right = np.array([[0.0, 1.0], [1.0, 0.0], [np.nan, 1.0]])
    assert oracle(costs, right, 2.0) == 0.5
    assert oracle(costs, right, 3.0) == 1.0


def test_limits_worth_looking_at():
    assert caps(np.array([5, 5, 5])) == []
    assert caps(np.zeros(0, dtype=np.int64)) == []
    found = caps(np.arange(1, 101))
    assert len(found) == 7
    assert max(found) < 100
