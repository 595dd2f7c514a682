"""Statistics of graded traces: pure functions on numbers, without knowledge of traces or runs.

Problems are what a run samples from a population; the samples of one problem are not independent of each other.
So every interval here resamples problems, never single samples. All intervals are two-sided 95 % intervals, all
random numbers come from one fixed seed: the same traces give the same table.

What several samples of a problem gave is passed as a list of problems, each a sequence with one number a sample;
problems may have different numbers of samples.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 1999
SEED = 0

FEW = 10
"""Where fewer problems than this stand out from the rest, resampling them says little about those not seen, and an
interval for proportions is used instead of the bootstrap (ours)."""

AES_ALPHA, AES_BETA, AES_GAMMA = 1.0, 3.0, 5.0
"""Constants of the accuracy-efficiency score; other publications use other ones, so a table has to name them."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; the ends are None where no interval can be computed."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Tokens:
    """Token counts of some traces; None where there are none.

    Attributes:
        mean, median, p95: over all traces.
        correct, wrong: mean over the traces that are right, and over those that are not.
    """

    mean: float | None
    median: float | None
    p95: float | None
    correct: float | None
    wrong: float | None


def accuracy(correct: Sequence[Sequence[bool]]) -> Estimate | None:
    """avg@k: the share of right samples of each problem, averaged over problems.

    The interval is Wilson's where every problem has one sample, and a bootstrap over problems (BCa) where one has
    more. Where nearly all problems have the same share (all but `FEW`; always so with fewer problems) a bootstrap
    would be too sure, or have no width at all: there the interval is Wilson's over problems too, which is safe
    because shares vary less than single right-or-wrong verdicts do.

    Returns:
        None where there is no problem.

    Raises:
        ValueError: a problem has no sample.
    """
    if not correct:
        return None
    shares = problem_means(correct)
    value = float(shares.mean())
    if max(map(len, correct)) == 1 or _nearly_all_alike(shares):
        low, high = wilson(value, len(shares))
    else:
        low, high = _bootstrap(lambda values, axis: values.mean(axis=axis), shares)
    return Estimate(value, low, high)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share of n trials; share times n need not be a whole number.

    Raises:
        ValueError: n is below 1, or the share is not between 0 and 1.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"Wilson's interval needs n >= 1 and a share from 0 to 1, not n = {n} and share = {share}")
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 up to rounding; say so exactly.
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k of one problem: the chance that k of its n samples, drawn without putting back, hold a
    right one, when c are right: 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n = {n}, c = {c}, k = {k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def majority_is_correct(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> bool:
    """maj@k of one problem: whether the most frequent answer is right.

    Args:
        answers: the extracted answer of each sample in the order of samples; None does not vote.
        correct: whether that sample is right. An answer is right if the first sample that gave it is.

    Returns:
        False where nobody votes. Of equally frequent answers the one that appears first wins.
    """
    votes: dict[Hashable, int] = {}
    for answer in answers:
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
    if not votes:
        return False
    winner = max(votes, key=votes.__getitem__)  # the first of the largest: a dict keeps the order of arrival
    return bool(correct[list(answers).index(winner)])


def describe_tokens(counts: Sequence[int], correct: Sequence[bool]) -> Tokens:
    """Mean, median, 95th percentile (linear interpolation) and means by correctness of token counts (one a trace)."""
    values, right = np.asarray(counts, dtype=np.float64), np.asarray(correct, dtype=bool)

    def of(part: Floats, statistic: Callable[[Floats], float]) -> float | None:
        return float(statistic(part)) if part.size else None

    return Tokens(
        mean=of(values, np.mean),
        median=of(values, np.median),
        p95=of(values, lambda part: float(np.percentile(part, 95))),
        correct=of(values[right], np.mean),
        wrong=of(values[~right], np.mean),
    )


def repetition_share(ids: Sequence[int], n: int = 8) -> float:
    """Share of the n-grams of a text that stood in it before (ours): 0 for a text without repetition, near 1 for a
    loop. Overlapping n-grams count; a text shorter than n tokens has no n-gram and a share of 0.

    Args:
        ids: token ids.
        n: length of an n-gram in tokens. Eight is long enough that plain prose repeats few, and short enough that
            a loop over one line is seen.
    """
    total = len(ids) - n + 1
    if total < 1:
        return 0.0
    distinct = len(set(zip(*(ids[start : start + total] for start in range(n)), strict=True)))
    return 1 - distinct / total


def saving(method: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> Estimate | None:
    """Relative saving: 1 - mean of the method / mean of the baseline, over the same problems in the same order.

    Each mean is over problems of the mean over samples. The interval is a paired bootstrap over problems (BCa);
    it is None for a single problem. Where every problem saves the same share it has no width.

    Returns:
        None where there is no problem or the baseline's mean is 0.

    Raises:
        ValueError: the two have different numbers of problems.
    """
    ours, base = _paired(method, baseline)
    if not ours.size or base.mean() == 0:
        return None
    value = float(1 - ours.mean() / base.mean())
    if ours.size == 1:
        return Estimate(value, None, None)
    ratios = ours * base.mean() - base * ours.mean()
    if np.allclose(ratios, 0):
        return Estimate(value, value, value)

    def statistic(ours: Floats, base: Floats, axis: int) -> Floats:
        # A resample in which the baseline wrote nothing at all has no ratio; it counts as no saving.
        means = base.mean(axis=axis)
        return np.asarray(np.where(means > 0, 1 - ours.mean(axis=axis) / np.where(means > 0, means, 1), 0.0))

    return Estimate(value, *_bootstrap(statistic, ours, base))


def accuracy_difference(method: Sequence[Sequence[bool]], baseline: Sequence[Sequence[bool]]) -> Estimate | None:
    """Accuracy of the method minus that of the baseline, over the same problems in the same order.

    The interval is a paired bootstrap over problems (BCa). Where nearly all problems differ by the same amount,
    mostly by none (all but `FEW`), it is Bonett and Price's: the normal interval of paired proportions after
    adding one problem that was lost and one that was gained. So no difference seen is not taken for proof of none.

    Returns:
        None where there is no problem.

    Raises:
        ValueError: the two have different numbers of problems.
    """
    ours, base = _paired(method, baseline)
    if not ours.size:
        return None
    differences = ours - base
    value = float(differences.mean())
    if not _nearly_all_alike(differences):
        return Estimate(value, *_bootstrap(lambda values, axis: values.mean(axis=axis), differences))
    n = differences.size + 2
    lost, gained = (float(np.clip(sign * differences, 0, None).sum() + 1) / n for sign in (-1, 1))
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((lost + gained - (gained - lost) ** 2) / n)
    return Estimate(value, max(-1.0, gained - lost - half), min(1.0, gained - lost + half))


def discordant(method: Sequence[bool], baseline: Sequence[bool]) -> tuple[int, int]:
    """How many pairs only the baseline got right, and how many only the method.

    Raises:
        ValueError: the two have different lengths.
    """
    pairs = list(zip(method, baseline, strict=True))
    return sum(base and not ours for ours, base in pairs), sum(ours and not base for ours, base in pairs)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided McNemar p of two discordant counts: how likely a split at least as uneven is if the
    method changes nothing. 1.0 where nothing is discordant."""
    return float(stats.binomtest(min(b, c), b + c).pvalue) if b + c else 1.0


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


def problem_means(values: Sequence[Sequence[float]]) -> Floats:
    """The mean over the samples of each problem, shape (problems,).

    Raises:
        ValueError: a problem has no sample.
    """
    if not all(map(len, values)):
        raise ValueError("a problem without a sample has no mean: leave it out, and say that it is left out")
    return np.array([np.mean(samples) for samples in values], dtype=np.float64)


def _paired(method: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> tuple[Floats, Floats]:
    if len(method) != len(baseline):
        raise ValueError(f"pairs need the same problems on both sides, not {len(method)} and {len(baseline)}")
    return problem_means(method), problem_means(baseline)


def _nearly_all_alike(values: Floats) -> bool:
    """Whether fewer than `FEW` values differ from the most frequent one."""
    _, counts = np.unique(values, return_counts=True)
    return bool(values.size - counts.max() < FEW)


def _bootstrap(statistic: Callable[..., Floats], *samples: Floats) -> tuple[float, float]:
    """The BCa interval over problems; several samples are resampled as pairs.

    BCa corrects for skew, which small sets have. With very few or nearly equal problems its correction does not
    exist; the plain percentiles of the same resamples are used then.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        result = stats.bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            vectorized=True,
            paired=True,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(SEED),
        )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    if math.isnan(low) or math.isnan(high):
        tail = (1 - CONFIDENCE) / 2
        low, high = (float(end) for end in np.quantile(result.bootstrap_distribution, [tail, 1 - tail]))
    return low, high
