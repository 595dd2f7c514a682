"""Choosing next tokens for a whole batch, each row with its own temperature, truncation and random stream.

Random numbers are a hash of (seed, position), not a generator's state: a row's outcome cannot depend on which
other rows share its batch, and a sequence that is stopped and resumed later draws what it would have drawn.
What remains is float noise: a matrix product may round differently in another batch, and a token that is chosen
within that noise of a boundary may then differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from satisfice.engines.base import Sampling

COLD = 1e-3
"""A temperature below which logits are divided in another way."""

CANDIDATES = 1024
"""How many of the most likely tokens are sorted before a row's truncation is checked against the whole vocabulary."""


@dataclass
class Choice:
    """Sampling parameters of the rows of one batch, each (B,).

    Attributes:
        temperature: 0 means greedy.
        top_p, top_k, min_p: truncation, as in `Sampling`.
        seed: int64.
        any_sampled: whether any row is not greedy.
        any_truncated: whether any row truncates.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    any_sampled: bool
    any_truncated: bool

    @classmethod
    def of(cls, settings: Sequence[Sampling], seeds: Sequence[int], device: torch.device) -> "Choice":
        """The parameters of rows with these settings; `seeds` stand in for the settings' own."""
        return cls(
            torch.tensor([s.temperature for s in settings], dtype=torch.float32, device=device),
            torch.tensor([s.top_p for s in settings], dtype=torch.float64, device=device),
            torch.tensor([s.top_k for s in settings], dtype=torch.int64, device=device),
            torch.tensor([s.min_p for s in settings], dtype=torch.float32, device=device),
            torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64, device=device),
            any_sampled=any(s.temperature > 0 for s in settings),
            any_truncated=any(s.top_p < 1 or s.top_k > 0 or s.min_p > 0 for s in settings),
        )


def _signed(seed: int) -> int:
    """A seed as the int64 with the same low 64 bits."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def uniform(seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """(B,) float64 in [0, 1): the random number of each seed at each position (splitmix64)."""

    def shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
        return (value >> bits) & ((1 << (64 - bits)) - 1)  # int64 has no logical shift

    mixed = seed + (position + 1) * -0x61C8864680B583EB
    mixed = (mixed ^ shifted(mixed, 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ shifted(mixed, 27)) * -0x6B2FB644ECCEEE15
    mixed = mixed ^ shifted(mixed, 31)
    return shifted(mixed, 11).double() * 2.0**-53


def choose(logits: torch.Tensor, choice: Choice, position: torch.Tensor) -> torch.Tensor:
    """The next token of each row.

    Args:
        logits: (B, V) float32, after all controls.
        choice: the rows' parameters.
        position: (B,) int64, the position that the new token will have in its sequence.

    Returns:
        (B,) int64 token ids.
    """
    if not choice.any_sampled:
        return logits.argmax(-1)
    greedy = choice.temperature == 0
    likeliest = logits.argmax(-1)
    probabilities = torch.softmax(_warmed(logits, likeliest, torch.where(greedy, 1.0, choice.temperature)), dim=-1)
    if choice.any_truncated:
        probabilities = probabilities * (probabilities >= _smallest_kept(probabilities, choice)[:, None])
    # Drawn in the order of the vocabulary, truncated or not: an order by probability would depend on how ties are
    # sorted, and on whether other rows truncate.
    sampled = _inverse(probabilities, uniform(choice.seed, position))
    return torch.where(greedy, likeliest, sampled)


def _warmed(logits: torch.Tensor, likeliest: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """(B, V) logits divided by temperatures above 0; near 0 less their largest, which would become infinite."""
    cold = temperature < COLD
    largest = torch.where(cold, logits.gather(1, likeliest[:, None])[:, 0], 0.0)
    # No division by what a processor may take for 0; the largest is 0 then, and all others are far below.
    divisor = temperature.clamp(min=torch.finfo(torch.float32).tiny)
    return (logits - largest[:, None]) / divisor[:, None]


def entropy_of(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy in nats over the last dimension."""
    return -(log_probabilities.exp() * log_probabilities.clamp(min=-1e4)).sum(-1)


def _inverse(weights: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """(B,) index at which the cumulative weight passes `threshold` of its total."""
    cumulative = weights.double().cumsum(-1)
    index = torch.searchsorted(cumulative, (threshold * cumulative[:, -1])[:, None], right=True)[:, 0]
    return index.clamp(max=weights.shape[-1] - 1)


def _smallest_kept(probabilities: torch.Tensor, choice: Choice) -> torch.Tensor:
    """(B,) the smallest probability that survives top-k, then top-p, then min-p; 0 in rows that are not truncated."""
    whole = (choice.temperature == 0) | ((choice.top_k == 0) & (choice.top_p == 1) & (choice.min_p == 0))
    vocabulary = probabilities.shape[-1]
    candidates = min(CANDIDATES, vocabulary)
    values, kept = _most_likely(probabilities, choice, candidates)
    # A nucleus of more tokens than were sorted is measured on the mass of them all.
    settled = ~kept[:, -1] & ((choice.top_k <= candidates) | (choice.top_p == 1))
    if candidates < vocabulary and not bool((whole | settled).all()):
        values, kept = _most_likely(probabilities, choice, vocabulary)
    last = kept.sum(-1, keepdim=True) - 1
    return values.gather(1, last)[:, 0].masked_fill(whole, 0.0)


def _most_likely(probabilities: torch.Tensor, choice: Choice, candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `candidates` largest probabilities of each row, largest first, and which of them survive: always a head."""
    values = probabilities.topk(candidates, dim=-1).values
    rank = torch.arange(candidates, device=values.device)
    within_k = (choice.top_k[:, None] == 0) | (rank < choice.top_k[:, None])
    cumulative = (values * within_k).double().cumsum(-1)
    # As in Transformers and vLLM, the nucleus is measured on what top-k left over.
    mass = torch.where(choice.top_k == 0, 1.0, cumulative[:, -1])
    # Without a nucleus everything is inside, also what is too small to change the sum.
    within_p = (cumulative - values < (choice.top_p * mass)[:, None]) | (choice.top_p == 1)[:, None]
    return values, within_k & within_p & (values >= choice.min_p[:, None] * values[:, :1])
