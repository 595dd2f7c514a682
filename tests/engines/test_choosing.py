"""Token choice against a plain reference: supports exactly, frequencies by a chi-square test."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from satisfice.engines.base import Sampling
from satisfice.engines.choosing import CANDIDATES, Choice, _smallest_kept, choose, uniform

reproducible = settings(deadline=None, derandomize=True, max_examples=60)
int64 = st.integers(-(2**63), 2**63 - 1)


def parameters(rows: list[dict[str, float]]) -> Choice:
    """The sampling parameters of a batch, from those of each row that are not the default."""
    full = [{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0} | row for row in rows]

    def column(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([row[name] for row in full], dtype=dtype)

    return Choice(
        column("temperature", torch.float32),
        column("top_p", torch.float64),
        column("top_k", torch.int64),
        column("min_p", torch.float32),
        column("seed", torch.int64),
        any_sampled=any(row["temperature"] > 0 for row in full),
        any_truncated=any(row["top_p"] < 1 or row["top_k"] or row["min_p"] for row in full),
    )


def reference(
    logits: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> np.ndarray:
    """The distribution to sample from, one token at a time; for logits that all differ."""
    weights = np.exp(logits.double().numpy() / temperature)
    weights /= weights.sum()
    order = np.argsort(-weights)
    if top_k:
        order = order[:top_k]
    mass = weights[order].sum()
    kept, before = [], 0.0
    for token in order:
        if before < top_p * mass and weights[token] >= min_p * weights[order[0]]:
            kept.append(token)
        before += weights[token]
    result = np.zeros_like(weights)
    result[kept] = weights[kept] / weights[kept].sum()
    return result


def draws(logits: torch.Tensor, count: int, **row: float) -> np.ndarray:
    """How often each token is chosen over `count` seeds."""
    choice = parameters([row | {"seed": seed} for seed in range(count)])
    tokens = choose(logits.expand(count, -1), choice, torch.full((count,), 17))
    return np.bincount(tokens.numpy(), minlength=logits.shape[-1])


# -- random numbers


def splitmix64(seed: int, position: int) -> float:
    """The generator as published (Steele, Lea and Flood 2014), on unbounded integers."""
    state = (seed + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return ((state ^ (state >> 31)) >> 11) / 2**53


@reproducible
@given(st.lists(st.tuples(int64, st.integers(0, 1 << 20)), min_size=1, max_size=8))
@example([(0, 0), (-1, 0), (2**63 - 1, 1 << 20), (-(2**63), 5)])
def test_uniform_is_splitmix64_whatever_the_batch(pairs):
    numbers = uniform(torch.tensor([seed for seed, _ in pairs]), torch.tensor([position for _, position in pairs]))
    assert numbers.tolist() == [splitmix64(seed, position) for seed, position in pairs]
    assert all(0 <= number < 1 for number in numbers.tolist())


def test_uniform_fills_the_interval_evenly_over_seeds_and_over_positions():
    few, many = torch.zeros(20_000, dtype=torch.int64), torch.arange(20_000)
    for numbers in (uniform(few, many), uniform(many, few)):
        counts = np.histogram(numbers.numpy(), bins=50, range=(0, 1))[0]
        assert chisquare(counts).pvalue > 1e-3


# -- distributions

SMALL = torch.tensor([0.3, -1.0, 2.0, 1.1, -4.0, 0.9, 1.6, -0.2])


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.8},
        {"top_p": 0.1},
        {"top_p": 0.999},
        {"min_p": 0.3},
        {"top_k": 4, "top_p": 0.7},
        {"top_p": 0.95, "min_p": 0.25},
        {"temperature": 0.6, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_truncated_distribution(row):
    expected = reference(SMALL, **row)
    counts = draws(SMALL, 8000, **row)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    inside = expected > 0
    if inside.sum() > 1:
        assert chisquare(counts[inside], 8000 * expected[inside]).pvalue > 1e-3


def test_the_nucleus_is_measured_on_what_top_k_left_over():
    # The largest token is half of what top_k = 2 leaves over, but only a quarter of everything.
    logits = torch.tensor([0.501, 0.5, 0.499, 0.498]).log()
    assert np.flatnonzero(draws(logits, 500, top_k=2, top_p=0.45)).tolist() == [0]
    assert np.flatnonzero(draws(logits, 500, top_p=0.45)).tolist() == [0, 1]


def test_tokens_as_likely_as_the_last_kept_one_are_kept():
    logits = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    for row in ({"top_k": 1}, {"top_k": 2}, {"top_p": 0.2}):
        assert np.flatnonzero(draws(logits, 500, **row)).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "row", [{"top_p": 0.9}, {"top_k": 2000}, {"min_p": 0.5}, {"top_k": 4000, "top_p": 0.7}], ids=str
)
def test_more_survivors_than_candidates(row):
    torch.manual_seed(0)
    logits = torch.linspace(0, 1, 5000)[torch.randperm(5000)]
    expected = reference(logits, **row)
    assert np.count_nonzero(expected) > CANDIDATES
    counts = draws(logits, 1500, **row)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    by_likelihood = np.argsort(-expected)
    bins = [by_likelihood[start : start + 250] for start in range(0, np.count_nonzero(expected), 250)]
    observed, wanted = (np.array([values[b].sum() for b in bins]) for values in (counts, 1500 * expected))
    assert chisquare(observed, wanted).pvalue > 1e-3


# -- rows of a batch

settings_of_a_row = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_p": st.sampled_from([1.0, 0.9, 0.5]),
        "top_k": st.sampled_from([0, 1, 5]),
        "min_p": st.sampled_from([0.0, 0.2]),
        "seed": int64,
    }
)


@reproducible
@given(
    rows=st.lists(settings_of_a_row, min_size=2, max_size=6),
    vocabulary=st.sampled_from([7, CANDIDATES + 200]),
    position=st.integers(0, 5000),
    source=st.integers(0, 1000),
)
def test_a_row_does_not_depend_on_its_neighbours(rows, vocabulary, position, source):
    # Logits on a coarse grid, as half precision gives them: many tokens are equally likely.
    generator = torch.Generator().manual_seed(source)
    logits = (torch.randn(len(rows), vocabulary, generator=generator) * 8).round() / 8
    positions = torch.arange(len(rows)) + position
    together = choose(logits, parameters(rows), positions)
    for index, row in enumerate(rows):
        one = slice(index, index + 1)
        assert choose(logits[one], parameters([row]), positions[one]).item() == together[index]
        if row["temperature"] == 0:
            assert together[index] == logits[index].argmax()


def test_seed_and_position_both_change_the_draw():
    logits = torch.zeros(64, 1000)
    seeds = choose(logits, parameters([{"seed": seed} for seed in range(64)]), torch.zeros(64, dtype=torch.int64))
    positions = choose(logits, parameters([{}] * 64), torch.arange(64))
    assert min(len(set(seeds.tolist())), len(set(positions.tolist()))) > 50


def test_a_token_that_a_control_forbids_is_never_chosen():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    for row in ({}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 4}):
        assert np.flatnonzero(draws(logits, 300, **row)).tolist() == [1, 3]


@pytest.mark.parametrize("vocabulary", [CANDIDATES // 2, 3 * CANDIDATES])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("top_k", [0, 40, CANDIDATES - 100, CANDIDATES, CANDIDATES + 1, 2 * CANDIDATES])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.02])
def test_what_is_kept_is_what_transformers_keeps(vocabulary, spread, top_k, top_p, min_p):
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(1, vocabulary, generator=generator, dtype=torch.float64).float() * spread
    ids, scores = torch.zeros(1, 1, dtype=torch.int64), logits.clone()
    for warper in (
        TopKLogitsWarper(top_k) if top_k else None,
        TopPLogitsWarper(top_p) if top_p < 1 else None,
        MinPLogitsWarper(min_p) if min_p else None,
    ):
        scores = scores if warper is None else warper(ids, scores)
    choice = parameters([{"top_p": top_p, "top_k": top_k, "min_p": min_p}, {"top_k": 3}])
    probabilities = torch.softmax(logits, -1)
    kept = probabilities[0] >= _smallest_kept(probabilities.expand(2, -1), choice)[0]
    # Both add up some thousand rounded numbers: the last of a nucleus may differ.
    differ = ((kept != scores[0].isfinite()) & (probabilities[0] > 0)).sum().item()
    assert differ <= (1 if 0 < top_p < 1 else 0)
    assert kept.sum() > 0


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-20, 1e-30, 1e-38, 1e-39, 1e-45, 1e-60])
@pytest.mark.parametrize("row", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("height", [0.0, -300.0, 1e8])
def test_a_temperature_near_zero_is_greedy_and_finite(temperature, row, height):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 60, generator=generator) * 5
    logits[:, ::3] = -math.inf
    if height == 1e8:  # what a control forces
        logits[:, 7] = height
    else:
        logits += height
    choice = Choice.of(
        [Sampling(temperature=temperature, **{"top_p": 1.0, **row})] * 40, range(40), torch.device("cpu")
    )
    chosen = choose(logits, choice, torch.arange(40))
    assert chosen.tolist() == logits.argmax(-1).tolist()


def test_equally_likely_tokens_stay_so_at_a_temperature_near_zero():
    logits = torch.tensor([1.0, 5.0, 5.0, -2.0])
    counts = draws(logits, 400, temperature=1e-30)
    assert counts[[0, 3]].tolist() == [0, 0]
    assert min(counts[1:3]) > 150


def test_a_usual_temperature_draws_what_it_always_drew():
    """A logit is divided as before, to the last bit, whoever else is in the batch."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, 3000, generator=generator) * 4
    cold, warm = {"temperature": 1e-6}, {"temperature": 0.7, "seed": 11}
    both = choose(logits.expand(2, -1), parameters([cold, warm]), torch.tensor([9, 9]))
    alone = choose(logits, parameters([warm]), torch.tensor([9]))
    weights = torch.softmax(logits / 0.7, -1).double().cumsum(-1)
    threshold = splitmix64(11, 9) * weights[0, -1]
    assert both[1] == alone[0] == torch.searchsorted(weights[0], threshold, right=True)
