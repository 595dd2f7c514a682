"""How much each step of a thinking tells about the answer, and how far a thinking lies from ideal ones (2505.18237).

Two measures, each in the form of the paper and in that of its program, because the two differ:

- InfoBias: the paper's is minus the mutual information of a generated trace and an ideal one. The program takes an
  HSIC in the form of normalised canonical correlation between embeddings, divides it by the mean length, scales it over
  the data set and turns it round; so its value is relative to the data set, and the division alone pushes long answers
  up.
- InfoGain: how far the entropy of the answer falls at each step. The paper's targeted gain for the right answer has the
  opposite sign of that: as printed it is negative where a step makes the right answer likelier.

Embedding texts and asking a model for its answer are for the caller; everything here is arithmetic.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SIGMA = 5.0
"""Width of the program's Gaussian kernel."""
RIDGE = 1e-5
"""Its regularisation."""


def entropy(probabilities: ArrayLike, base: float = math.e) -> float:
    """Shannon entropy of a distribution over candidate answers, scaled to 1 first; the program's base is 2.

    Raises:
        ValueError: a probability is negative, or all are 0.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.size == 0 or (p < 0).any() or p.sum() <= 0:
        raise ValueError("an entropy needs probabilities of which none is negative and one is above 0")
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum() / math.log(base)) + 0.0


def information_gains(steps: Sequence[ArrayLike], base: float = math.e) -> list[float]:
    """dI_i = H_(i-1) - H_i: how far each step brings the entropy of the answer down; negative where it rises.

    Args:
        steps: the distribution over candidate answers before any thinking, then after each step.
        base: of the logarithm.
    """
    entropies = [entropy(step, base) for step in steps]
    return [before - after for before, after in pairwise(entropies)]


def targeted_gains(right: Sequence[float], base: float = math.e, *, as_printed: bool = False) -> list[float]:
    """How much likelier each step makes the right answer: log P_i - log P_(i-1).

    Args:
        right: its probability before any thinking, then after each step.
        base: of the logarithm.
        as_printed: the paper's sign, by which a step that helps has a negative gain.

    Raises:
        ValueError: a probability is not above 0 and at most 1.
    """
    if any(not 0 < p <= 1 for p in right):
        raise ValueError("a targeted gain needs probabilities above 0 and at most 1")
    sign = -1 if as_printed else 1
    return [sign * math.log(after / before) / math.log(base) for before, after in pairwise(right)]


def average_entropy(probabilities: ArrayLike) -> float:
    """H_avg of Adaptive Think: entropy in bits over the number of candidates; at most 1 / (e ln 2)."""
    return entropy(probabilities, 2) / np.asarray(probabilities).size


def mutual_information(joint: ArrayLike, base: float = math.e) -> float:
    """I(s; t) of two discrete variables from a table of counts or probabilities, shape (s, t); 0 or more.

    Raises:
        ValueError: see `entropy`.
    """
    table = np.asarray(joint, dtype=np.float64)
    together = entropy(table.ravel(), base)
    return max(0.0, entropy(table.sum(axis=1), base) + entropy(table.sum(axis=0), base) - together)


def information_bias(joint: ArrayLike, base: float = math.e) -> float:
    """InfoBias in the paper's form: minus the mutual information of generated and ideal traces; higher is worse."""
    return -mutual_information(joint, base)


def sampling_error(n: int, delta: float = 0.05) -> float:
    """The paper's bound of the error of n samples at confidence 1 - delta, without its term of order 1/n.

    Raises:
        ValueError: there is no sample, or delta is not between 0 and 1.
    """
    if n < 1 or not 0 < delta < 1:
        raise ValueError(f"the bound needs a sample and a delta between 0 and 1, not n = {n} and delta = {delta}")
    return math.sqrt(2 * math.log(2 / delta) / n)


def hsic(traces: ArrayLike, ideal: ArrayLike, sigma: float = SIGMA, ridge: float = RIDGE) -> float:
    """Normalised HSIC of two sets of embeddings, as the program computes it: sum of R_x * R_y^T.

    R = K (K + ridge n I)^-1 with the Gaussian kernel K = exp(-D / (2 sigma^2 d)) of squared distances D, centred on one
    side.

    Args:
        traces, ideal: embeddings, shapes (n, d) and (n, e): as many of the one as of the other, row by row.
        sigma: width of the kernel.
        ridge: regularisation.

    Raises:
        ValueError: they are not as many, or fewer than two.
    """
    x, y = np.asarray(traces, dtype=np.float64), np.asarray(ideal, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(f"HSIC pairs as many traces as ideal ones, at least two, not {x.shape} and {y.shape}")
    return float((_projection(x, sigma, ridge) * _projection(y, sigma, ridge).T).sum())


def dataset_bias(scores: Sequence[float], tokens: Sequence[float]) -> list[float]:
    """InfoBias in the program's form: 1 minus the scores over mean tokens, scaled to 0 and 1 over the data set.

    Args:
        scores: `hsic` of each question.
        tokens: mean tokens of its traces.

    Raises:
        ValueError: a length is not above 0, or there is no question.
    """
    if not scores or any(count <= 0 for count in tokens):
        raise ValueError("the bias of a data set needs questions whose traces have tokens")
    each = np.asarray(scores, dtype=np.float64) / np.asarray(tokens, dtype=np.float64)
    spread = each.max() - each.min()
    return [float(1 - (value - each.min()) / spread) if spread else 1.0 for value in each]


def _projection(points: Floats, sigma: float, ridge: float) -> Floats:
    n, dimensions = points.shape
    squares = ((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)
    kernel = np.exp(-squares / (2 * sigma**2 * dimensions))
    kernel = kernel - kernel.mean(axis=0, keepdims=True)
    return np.asarray(kernel @ np.linalg.inv(kernel + ridge * n * np.eye(n)))
