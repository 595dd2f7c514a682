"""Statistics of graded traces: pure functions on numbers, without knowledge of traces or runs.

Problems are what a run samples from a population; the samples of one problem are not independent of each other.
So every interval here rests on the spread between problems, never between single samples. All intervals are two-sided
and closed formulas, at 95 % unless told otherwise. That they cover what they promise is simulated in
tests/measurement/test_coverage.py: few problems and many, accuracies near 1, heavy-tailed lengths, several samples.

What several samples of a problem gave is passed as a list of problems, each a sequence with one number a sample;
problems may have different numbers of samples. `Ragged` is such a list in two arrays, for many problems.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from satisfice.measurement.ragged import Ragged, problem_means

CONFIDENCE = 0.95

FEW = 10
"""Where fewer problems than this stand out from the rest, their spread says little about those not seen, and an
interval is used that does not rest on it (ours)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; the ends are None where no interval can be computed."""

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

    The interval is that of Korn and Graubard (Survey Methodology 24, 1998): Clopper and Pearson's for as many
    independent verdicts as the spread between problems says that the samples are worth, with a correction for the
    uncertainty of that spread. They are never worth less than one verdict a problem; and just that where every
    problem has one sample, or where nearly all have the same share (all but `FEW`), so that there is hardly a spread
    to go by. So it covers at accuracies near 1, where a normal or a bootstrap interval does not, and is wider than it
    need be there.

    Returns:
        None where there is no problem.

    Raises:
        ValueError: a problem has no sample.
    """
    if not correct:
        return None
    shares = problem_means(correct)
    value, n = float(shares.mean()), shares.size
    verdicts = float(n)
    samples = int(Ragged.of(correct).starts[-1])
    if samples > n and not _nearly_all_alike(shares):
        worth = value * (1 - value) / (float(shares.var(ddof=1)) / n)
        uncertain = (_t(samples - 1) / _t(n - 1)) ** 2
        verdicts = float(np.clip(worth * uncertain, n, samples))
    return Estimate(value, *clopper_pearson(value, verdicts))


def clopper_pearson(share: float, n: float) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a share of n trials; neither n nor share times n need be whole.

    It never covers less often than it says. Wilson's, which is narrower, covers 0.91 near 1 for a nominal 0.95.

    Raises:
        ValueError: n is below 1, or the share is not between 0 and 1.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(
            f"Clopper and Pearson's interval needs n >= 1 and a share from 0 to 1, not n = {n} and share = {share}"
        )
    tail, right, wrong = (1 - CONFIDENCE) / 2, share * n, (1 - share) * n
    low = 0.0 if share == 0 else float(stats.beta.ppf(tail, right, wrong + 1))
    high = 1.0 if share == 1 else float(stats.beta.ppf(1 - tail, right + 1, wrong))
    return low, high


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


def describe_tokens(counts: ArrayLike, correct: ArrayLike) -> Tokens:
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


def saving(
    method: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], confidence: float = CONFIDENCE
) -> Estimate | None:
    """Relative saving: 1 - mean of the method / mean of the baseline, over the same problems in the same order.

    Each mean is over problems of the mean over samples. The interval is a jackknife-t of the logarithm of the ratio:
    each problem, with all its samples, is left out once. The degrees of freedom are Satterthwaite's, from the kurtosis
    of what the problems contribute, because a few very long responses make the estimated spread itself uncertain.

    Where there is hardly a spread to go by the interval is that of `_few_differ`: all but a few problems, and more
    than half of them, save the same share; or the method, or the baseline without one problem, wrote nothing at all.
    A single problem has no interval; two have one, which is very wide.

    Returns:
        None where there is no problem or the baseline's mean is 0.

    Raises:
        ValueError: the two have different numbers of problems.
    """
    ours, base = _paired(method, baseline)
    if not ours.size or base.mean() == 0:
        return None
    value = float(1 - ours.mean() / base.mean())
    n = ours.size
    if n == 1:
        return Estimate(value, None, None)
    ours_without, base_without = ours.sum() - ours, base.sum() - base
    if _few_ratios_differ(ours, base) or min(ours_without.min(), base_without.min()) <= 0:
        return Estimate(value, *_few_differ(ours, base, confidence))
    without = np.log(ours_without / base_without)
    deviations = without - without.mean()
    error = math.sqrt((n - 1) / n * float((deviations**2).sum()))
    half = _t(_degrees_of_freedom(deviations), confidence) * error
    log_ratio = math.log(ours.sum() / base.sum())
    # Above 700 the exponential has no number; nobody reads a saving of minus 10 to the 300.
    return Estimate(value, 1 - math.exp(min(700.0, log_ratio + half)), 1 - math.exp(log_ratio - half))


def _few_ratios_differ(ours: Floats, base: Floats) -> bool:
    """Whether more than half of the problems, and all but fewer than `FEW`, cost the same share of the baseline."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = ours / base
    # Nothing against nothing fits every share; rounding because 3 / 4 and 9 / 12 may differ in the last bit.
    _, counts = np.unique(np.round(ratios[~np.isnan(ratios)], 12), return_counts=True)
    alike = int(counts.max()) + int(np.isnan(ratios).sum())
    return 2 * alike > ours.size and ours.size - alike < FEW


def _few_differ(ours: Floats, base: Floats, confidence: float) -> tuple[float, float]:
    """The interval of a saving where problems hardly differ: two problems of mean length are added, one in which the
    method wrote nothing and one in which it wrote twice the baseline's (ours, in the manner of Bonett and Price).

    So no difference seen among n problems is not taken for proof that there is none: it is about +- 3.9 / n.
    """
    more = np.append(ours, [0.0, 2 * base.mean()])
    beside = np.append(base, [base.mean(), base.mean()])
    n, ratio = more.size, float(more.sum() / beside.sum())
    residuals = more - ratio * beside
    error = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(beside.sum())
    half = _t(_degrees_of_freedom(residuals), confidence) * error
    seen = float(1 - ours.mean() / base.mean())
    return min(seen, 1 - ratio - half), max(seen, min(1.0, 1 - ratio + half))


def _degrees_of_freedom(deviations: Floats) -> float:
    """Satterthwaite's for a variance of n values: 2 n / (kurtosis - 1), with the unbiased kurtosis; between 1 and
    n - 1, and 1 for fewer than four values, which have no such kurtosis."""
    n = deviations.size
    spread = float((deviations**2).sum())
    if n < 4 or spread == 0:
        return 1
    excess = n * float((deviations**4).sum()) / spread**2 - 3
    unbiased = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * excess + 6)
    return float(np.clip(2 * n / (2 + max(unbiased, 0.0)), 1, n - 1))


def _t(degrees: float, confidence: float = CONFIDENCE) -> float:
    """The two-sided quantile of Student's t."""
    return float(stats.t.ppf((1 + confidence) / 2, degrees))


def accuracy_difference(
    method: Sequence[Sequence[bool]], baseline: Sequence[Sequence[bool]], confidence: float = CONFIDENCE
) -> Estimate | None:
    """Accuracy of the method minus that of the baseline, over the same problems in the same order.

    The interval is Student's t over the differences of problems where a problem has several samples. Where each has
    one, or nearly all problems differ by the same amount, mostly by none (all but `FEW`), it is Bonett and Price's:
    the normal interval of paired proportions after adding one problem that was lost and one that was gained. So no
    difference seen is not taken for proof of none.

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
    if Ragged.of(method).sizes.max() > 1 and not _nearly_all_alike(differences):
        half = _t(differences.size - 1, confidence) * float(differences.std(ddof=1)) / math.sqrt(differences.size)
        return Estimate(value, max(-1.0, value - half), min(1.0, value + half))
    n = differences.size + 2
    lost, gained = (float(np.clip(sign * differences, 0, None).sum() + 1) / n for sign in (-1, 1))
    half = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt((lost + gained - (gained - lost) ** 2) / n)
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


def _paired(method: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> tuple[Floats, Floats]:
    if len(method) != len(baseline):
        raise ValueError(f"pairs need the same problems on both sides, not {len(method)} and {len(baseline)}")
    return problem_means(method), problem_means(baseline)


def _nearly_all_alike(values: Floats) -> bool:
    """Whether fewer than `FEW` values differ from the most frequent one."""
    # Rounded, because 2/3 - 1/3 and 1/3 differ in the last bit.
    _, counts = np.unique(np.round(values, 12), return_counts=True)
    return bool(values.size - counts.max() < FEW)
