"""Choosing next tokens for a whole batch, each row with its own temperature, truncation and random stream.

Random numbers are a hash of (seed, position), not a generator's state: a row's outcome cannot depend on which
other rows share its batch, and a sequence that is stopped and resumed later draws what it would have drawn.
What remains is float noise: a matrix product may round differently in another batch, and a token that is chosen
within that noise of a boundary may then differ.
"""

from dataclasses import dataclass

import torch

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
    probabilities = torch.softmax(logits / torch.where(greedy, 1.0, choice.temperature)[:, None], dim=-1)
    threshold = uniform(choice.seed, position)
    if not choice.any_truncated:
        sampled = _inverse(probabilities, threshold)
    else:
        vocabulary = logits.shape[-1]
        kept, tokens, complete = _truncate(probabilities, choice, min(CANDIDATES, vocabulary))
        if not complete:
            kept, tokens, _ = _truncate(probabilities, choice, vocabulary)
        sampled = tokens.gather(1, _inverse(kept, threshold)[:, None])[:, 0]
    return torch.where(greedy, logits.argmax(-1), sampled)


def _inverse(weights: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """(B,) index at which the cumulative weight passes `threshold` of its total."""
    cumulative = weights.double().cumsum(-1)
    index = torch.searchsorted(cumulative, (threshold * cumulative[:, -1])[:, None], right=True)[:, 0]
    return index.clamp(max=weights.shape[-1] - 1)


def _truncate(
    probabilities: torch.Tensor, choice: Choice, candidates: int
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """The probabilities that survive top-k, then top-p, then min-p, among the `candidates` most likely tokens.

    Returns:
        (B, candidates) surviving probabilities (0 elsewhere), their token ids, and whether `candidates` were enough:
        no row would have kept a token beyond them.
    """
    values, tokens = probabilities.topk(candidates, dim=-1)
    rank = torch.arange(candidates, device=values.device)
    within_k = (choice.top_k[:, None] == 0) | (rank < choice.top_k[:, None])
    kept = values * within_k
    # As in Transformers and vLLM, the nucleus is measured on what top-k left over.
    mass = torch.where(choice.top_k == 0, 1.0, kept.sum(-1))
    cumulative = kept.double().cumsum(-1)
    kept = kept * (cumulative - kept < (choice.top_p * mass)[:, None])
    kept = kept * (values >= choice.min_p[:, None] * values[:, :1])
    if candidates == probabilities.shape[-1]:
        return kept, tokens, True
    return kept, tokens, bool((kept[:, -1] == 0).all())
