"""Published scores that put accuracy and length into one number, and what corrects for looking at many methods.

None of them replaces the pair of accuracy and tokens: two methods with the same score may be nothing alike. Constants
differ between publications, so every score names its own.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

AES_SETS: Final = {"1, 3, 5": (1.0, 3.0, 5.0), "1, 5, 10": (1.0, 5.0, 10.0)}
"""Constant sets alpha, beta, gamma of the accuracy-efficiency score in use, by their names: those read into O1-Pruner
by the implementations that cite it, and a stricter one that others use."""

AES_ALPHA, AES_BETA, AES_GAMMA = AES_SETS["1, 3, 5"]

OAA_LIMIT = 1000
"""Thinking tokens up to which OptimalThinkingBench takes the area."""


def accuracy_efficiency_score(
    accuracy: float,
    tokens: float,
    base_accuracy: float,
    base_tokens: float,
    *,
    alpha: float = AES_ALPHA,
    beta: float = AES_BETA,
    gamma: float = AES_GAMMA,
) -> float | None:
    """AES of O1-Pruner: alpha dL + beta |dA| where accuracy does not fall, alpha dL - gamma |dA| where it does.

    dL = (base_tokens - tokens) / base_tokens and dA = (accuracy - base_accuracy) / base_accuracy are relative, so the
    score is violent where the baseline is seldom right.

    Returns:
        None where the baseline has accuracy 0 or no tokens.
    """
    if base_accuracy == 0 or base_tokens == 0:
        return None
    shorter = (base_tokens - tokens) / base_tokens
    better = (accuracy - base_accuracy) / base_accuracy
    return alpha * shorter + (beta if better >= 0 else gamma) * better


def efficiency_performance_ratio(saving: float, accuracy_lost: float) -> float | None:
    """EPR of EntroCut (2601.22617): the relative token saving per unit of accuracy lost, here per share of problems.

    Whether the paper means the loss in points or relative is not settled.

    Returns:
        None where no accuracy was lost: there is nothing to divide by, and the saving itself says more.
    """
    return saving / accuracy_lost if accuracy_lost > 0 else None


def accuracy_per_compute(accuracy: float, parameters: float, tokens: float) -> float | None:
    """ACU of CoT-Valve: accuracy over parameters times tokens; None where no token was written.

    Args:
        accuracy: from 0 to 1.
        parameters: of the model.
        tokens: of a response, mean.
    """
    return accuracy / (parameters * tokens) if parameters * tokens else None


def reasoning_efficiency_gap(accuracy: float, tokens: float, front: Sequence[tuple[float, float]]) -> float:
    """REG after 2506.07104: how much accuracy is missing to the best known at this budget or less, 0 on the front.

    Args:
        accuracy, tokens: of a method.
        front: (tokens, accuracy) of what is known to be possible; points that cost more do not count.
    """
    return max(0.0, max((best for cost, best in front if cost <= tokens), default=accuracy) - accuracy)


def overthinking_adjusted_accuracy(correct: ArrayLike, thinking: ArrayLike, limit: float) -> float:
    """OAA_t of OptimalThinkingBench: the share of responses that are right with fewer than `limit` thinking tokens.

    Raises:
        ValueError: there is no response.
    """
    return float(np.mean(_same_length(correct, thinking)[0] & (np.asarray(thinking) < limit)))


def area_under_oaa(correct: ArrayLike, thinking: ArrayLike, limit: float = OAA_LIMIT) -> float:
    """AUC-OAA: the mean of OAA_t over t from 0 to `limit`; a right response adds the share of t above its length.

    Raises:
        ValueError: there is no response.
    """
    right, tokens = _same_length(correct, thinking)
    return float(np.mean(right * np.clip(1 - tokens / limit, 0, 1)))


def harmonic_mean(one: float, other: float) -> float:
    """F1 of OptimalThinkingBench, of AUC-OAA on easy problems and accuracy on hard ones; 0 where both are 0."""
    return 2 * one * other / (one + other) if one + other else 0.0


def overthinking_score(accuracy: float, tokens: float, fewest: float, most: float) -> float:
    """LLMThinkBench's score: the harmonic mean of accuracy and of tokens, scaled so that `fewest` is 1 and `most` 0.

    Raises:
        ValueError: not `fewest` < `most`.
    """
    if not fewest < most:
        raise ValueError(f"token efficiency lies between the fewest and the most tokens, not {fewest} and {most}")
    return harmonic_mean(accuracy, min(1.0, max(0.0, (most - tokens) / (most - fewest))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: below a level where the family of tests errs at most at that level.

    The smallest is multiplied by the number of tests, the next by one less, and so on; none is smaller than one before
    it, none above 1.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = highest
    return adjusted


def pareto_front(costs: Sequence[float], accuracies: Sequence[float]) -> list[bool]:
    """Which points no other point dominates: none is at most as costly and at least as accurate, and better in
    one of the two. Equal points do not dominate each other, so both are on the front or neither."""
    points = list(zip(costs, accuracies, strict=True))
    return [
        not any(
            other_cost <= cost and other_accuracy >= accuracy and (other_cost, other_accuracy) != (cost, accuracy)
            for other_cost, other_accuracy in points
        )
        for cost, accuracy in points
    ]


def _same_length(correct: ArrayLike, thinking: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    right, tokens = np.asarray(correct, dtype=bool), np.asarray(thinking, dtype=np.float64)
    if right.size != tokens.size or not right.size:
        raise ValueError(
            f"a score needs responses with a length each, not {right.size} verdicts, {tokens.size} lengths"
        )
    return right, tokens
