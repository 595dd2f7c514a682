"""How much is lost at most: losses of a problem, tests that certify a bound on their mean, and many of them at once.

The unit is a problem, never a token or a probe. Problems are taken for exchangeable: those that will be asked come from
where these came from. What is promised holds on average over such problems, with a confidence over the draw of these.

Two numbers that never stand for each other: `bound`, the expected loss that is allowed, and `level`, the chance that
the promise is false (1 - confidence).

Sources: learn then test (arXiv 2110.01052) for p-values of a risk and the fixed sequence; betting (arXiv 2010.09686)
for tests that may be looked at after each problem; graphical procedures (Bretz et al., Statistics in Medicine 28,
2009) for levels that are handed on; Robbins (Annals of Mathematical Statistics 41, 1970) for the confidence sequence.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]
Loss = Literal["net", "harm", "disagreement"]

LOWEST: dict[Loss, float] = {"net": -1.0, "harm": 0.0, "disagreement": 0.0}
"""The least that each loss can be; the most is 1 for all."""

BETS = np.array([0.1, 0.3, 0.6, 0.97])
SHARES = np.array([0.15, 0.20, 0.25, 0.40])
"""Stakes of the betting test as shares of the largest that can never ruin it, and how the capital is divided among them
(ours). Most lies on the boldest, which certifies with the fewest problems where hardly anything is lost."""

MEMORY = 150
"""Observations over which the watch forgets (ours): its stake follows the mean of about that many."""

PRECISION = 1e-4
"""How finely a bound that was reached is looked for."""


# -- losses


def net(method: ArrayLike, baseline: ArrayLike) -> Floats:
    """What accuracy falls by: right(baseline) - right(method), gains paying for losses; (problems,), in -1..1.

    Args:
        method, baseline: whether right, (problems,) or (problems, samples), paired by problem, sample and seed.

    Raises:
        ValueError: the two have different shapes.
    """
    ours, base = _pair(method, baseline)
    return np.asarray((base - ours).mean(axis=1), dtype=np.float64)


def harm(method: ArrayLike, baseline: ArrayLike) -> Floats:
    """What was right and is no more: baseline right and method wrong; (problems,), in 0..1, never below `net`.

    Args:
        method, baseline: as for `net`.

    Raises:
        ValueError: the two have different shapes.
    """
    ours, base = _pair(method, baseline)
    return np.asarray((base * (1 - ours)).mean(axis=1), dtype=np.float64)


def disagreement(same: ArrayLike) -> Floats:
    """How often the two answers differ; (problems,), in 0..1, never below `harm`. It needs no gold answers.

    Args:
        same: whether the method's answer is the baseline's, (problems,) or (problems, samples).
    """
    agreeing, _ = _pair(same, same)
    return np.asarray((1 - agreeing).mean(axis=1), dtype=np.float64)


def _pair(left: ArrayLike, right: ArrayLike) -> tuple[Floats, Floats]:
    one, two = (np.asarray(side, dtype=np.float64) for side in (left, right))
    if one.shape != two.shape or one.ndim not in (1, 2):
        raise ValueError(
            f"losses need pairs, (problems,) or (problems, samples) on both sides, not {one.shape} and {two.shape}"
        )
    return (one[:, None], two[:, None]) if one.ndim == 1 else (one, two)


# -- p-values of "the expected loss is at least the bound": a small one certifies that it is below


def binomial_p(losses: int, n: int, bound: float) -> float:
    """Exact, for losses of 0 or 1: the chance of so few in n problems if each has the chance `bound`.

    Raises:
        ValueError: not 0 <= losses <= n, or the bound is not between 0 and 1.
    """
    _check_bound(bound, 0.0)
    if not 0 <= losses <= n:
        raise ValueError(f"{losses} losses among {n} problems cannot be")
    return float(stats.binom.cdf(losses, n, bound))


def hoeffding_bentkus_p(mean: float, n: int, bound: float) -> float:
    """For losses anywhere in 0..1, of which n have this mean: the smaller of Hoeffding's and Bentkus' bounds.

    Raises:
        ValueError: the mean is not within 0..1, there is no problem, or the bound is not between 0 and 1.
    """
    _check_bound(bound, 0.0)
    if n < 1 or not 0 <= mean <= 1:
        raise ValueError(f"a mean of {mean} over {n} problems is none of losses within 0..1")
    seen = min(mean, bound)
    hoeffding = math.exp(-n * float(special.rel_entr(seen, bound) + special.rel_entr(1 - seen, 1 - bound)))
    # The product may lie a hair above a whole number that it stands for.
    bentkus = math.e * float(stats.binom.cdf(math.ceil(n * mean - 1e-9), n, bound))
    return min(1.0, hoeffding, bentkus)


def betting_p(losses: ArrayLike, bound: float, lowest: float) -> float:
    """For losses anywhere in lowest..1, in the order in which they were seen; see `BettingTest`."""
    test = BettingTest(bound, lowest)
    for loss in np.asarray(losses, dtype=np.float64):
        test.add(loss)
    return float(test.p)


class BettingTest:
    """Tests "the expected loss is at least `bound`" (side="below", which certifies) or "at most" (side="above").

    Fed one problem after another. A capital of 1 is bet on the loss being smaller (or larger) than the bound: each of
    a few constant stakes b multiplies its part by 1 + b (bound - loss). If the hypothesis holds, the capital is not
    expected to grow whatever was seen before, so the chance that it ever reaches 1 / level is at most level (Ville).
    Therefore one may look after each problem, stop whenever one likes, and add problems later. What must not happen is
    that outcomes decide which problem comes next.

    Args:
        bound: of the expected loss.
        lowest: the least that a loss can be, see `LOWEST`; the most is 1.
        side: what a large capital shows: a risk "below" or "above" the bound.
        shape: of the losses that `add` takes, where many tests run side by side; one test unless given.

    Raises:
        ValueError: the bound is not between the lowest loss and 1.
    """

    def __init__(
        self, bound: float, lowest: float, side: Literal["below", "above"] = "below", shape: tuple[int, ...] = ()
    ) -> None:
        _check_bound(bound, lowest)
        self.bound, self.lowest, self.side, self.n = bound, lowest, side, 0
        largest = 1 / (1 - bound) if side == "below" else 1 / (bound - lowest)
        self._stakes = BETS * largest if side == "below" else -BETS * largest
        self._parts = np.broadcast_to(np.log(SHARES), (*shape, BETS.size)).astype(np.float64)
        self._best = np.zeros(shape)

    def add(self, loss: ArrayLike) -> None:
        """One more problem, for each of the tests.

        Raises:
            ValueError: the loss is not within lowest..1.
        """
        values = np.asarray(loss, dtype=np.float64)
        if not (values.min() >= self.lowest - 1e-9 and values.max() <= 1 + 1e-9):  # not a number is outside, too
            raise ValueError(f"a loss of {values} is outside {self.lowest:g}..1")
        self._parts = self._parts + np.log1p(self._stakes * (self.bound - values[..., None]))
        self._best = np.maximum(self._best, self.log_capital)
        self.n += 1

    @property
    def log_capital(self) -> Floats:
        """Natural logarithm of the capital as it stands."""
        return np.asarray(np.logaddexp.reduce(self._parts, axis=-1))

    @property
    def p(self) -> Floats:
        """A p-value that is valid at every moment: 1 over the largest capital so far."""
        return np.asarray(np.exp(-self._best))

    def passed(self, level: float) -> NDArray[np.bool_]:
        """Whether the hypothesis is rejected at this level."""
        return np.asarray(self._best >= -math.log(level) - 1e-12)

    def needed(self, level: float) -> int:
        """How many more problems until it is rejected at this level, if none of them loses (or gains) anything.

        Only of a single test that looks below.
        """
        growth = np.log1p(self._stakes * self.bound)
        return 0 if self.passed(level) else _first(lambda k: bool(self._after(k, growth) >= -math.log(level)))

    def _after(self, problems: int, growth: Floats) -> float:
        return float(np.logaddexp.reduce(self._parts + problems * growth))


def upper_bound(losses: ArrayLike, level: float, lowest: float) -> float:
    """The least bound that the betting test certifies at this level, 1 where it certifies none.

    As the capital grows with the bound at every moment, this is a confidence bound that is valid at every moment too.

    Args:
        losses: (problems,), in the order in which they were seen.
        level: chance that the expected loss is above what is returned.
        lowest: the least that a loss can be.
    """
    values = np.asarray(losses, dtype=np.float64)
    low, high = lowest, 1.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        stakes = BETS[:, None] / (1 - middle)
        capital = np.log(SHARES)[:, None] + np.cumsum(np.log1p(stakes * (middle - values)), axis=1)
        reached = values.size and np.logaddexp.reduce(capital, axis=0).max() >= -math.log(level)
        low, high = (low, middle) if reached else (middle, high)
    return high


# -- many settings, one promise


def fixed_sequence(p_values: Sequence[float], level: float) -> int:
    """How many settings, in an order fixed before any outcome was seen, are certified together at this level.

    Each is tested at the whole level, and the first that does not pass ends it: it and all after it are not
    certified. The chance that any of the certified ones violates its bound is at most the level.
    """
    for passed, p in enumerate(p_values):
        if not p <= level:
            return passed
    return len(p_values)


def certified(sequences: Sequence[Sequence[float]], level: float) -> tuple[list[int], list[float]]:
    """Fixed sequences side by side: the level is divided equally, and one that is certified to its end hands its
    share on to those that are not, in equal parts. One promise for all of them together.

    Returns:
        how many settings of each sequence are certified, and the level that each was tested at in the end.
    """
    levels = [level / len(sequences)] * len(sequences)
    handed_on: set[int] = set()
    while True:
        passed = [fixed_sequence(p_values, own) for p_values, own in zip(sequences, levels, strict=True)]
        ended = [each for each, count in enumerate(passed) if count == len(sequences[each]) and each not in handed_on]
        levels = hand_on(levels, ended, handed_on)
        handed_on.update(ended)
        if not ended:
            return passed, levels


def hand_on(levels: Sequence[float], ended: Sequence[int], before: set[int]) -> list[float]:
    """The levels after the sequences `ended` have given theirs to all that are not at their end, in equal parts.

    Args:
        levels: of each sequence.
        ended: those that have just been certified to their end; they keep their number, which nothing tests again.
        before: those that had been already.
    """
    heirs = [each for each in range(len(levels)) if each not in before and each not in ended]
    if not heirs:
        return list(levels)
    gift = sum(levels[each] for each in ended) / len(heirs)
    return [own + (gift if each in heirs else 0.0) for each, own in enumerate(levels)]


def problems_needed(bound: float, level: float, losses: int = 0) -> int:
    """The fewest problems with which the exact binomial test certifies a bound when so many of them are lost.

    Without a loss this is ln(1 / level) / -ln(1 - bound): no test of a number of problems fixed beforehand needs fewer.

    Raises:
        ValueError: the bound is not between 0 and 1.
    """
    _check_bound(bound, 0.0)
    return _first(lambda n: n >= losses and binomial_p(losses, n, bound) <= level)


def _first(holds: Any) -> int:
    """The first whole number from which on something holds."""
    high = 1
    while not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check_bound(bound: float, lowest: float) -> None:
    if not lowest < bound < 1:
        raise ValueError(f"the bound is {bound:g}; it must lie between {lowest:g} and 1, ends excluded")


# -- watching


class RiskAlarm:
    """Tests "the risk has always been at most `bound`" for as long as it is fed, with losses in 0..1.

    The stake follows the mean of the last observations, so that a method that was harmless for long is caught when it
    becomes worse. The capital that a bet could begin with is spread over all moments: a part w_k = 1 / (k (k + 1))
    waits for moment k, so nothing is lost to a quiet past, and K_t = sum over k <= t of w_k (growth since k) + 1 / (t
    + 1). If the risk never exceeds the bound this is a non-negative supermartingale that starts at 1, so the chance
    that an alarm is ever raised is at most `level`, however long the watch runs.

    Attributes:
        n, losses: what it was fed with: observations, and the sum of their losses.
        largest: the largest capital so far, the e-value.
        raised_at: the observation with which the alarm was raised; None while it was not.
    """

    def __init__(self, bound: float, level: float) -> None:
        _check_bound(bound, 0.0)
        self.bound, self.level = bound, level
        self.n = 0
        self.losses = 0.0
        self.capital = self.largest = 1.0
        self.raised_at: int | None = None
        self._running = 0.0
        self._recent = bound

    def add(self, loss: float) -> bool:
        """One more observation; whether the alarm is raised, by this one or an earlier one.

        Raises:
            ValueError: the loss is not within 0..1.
        """
        if not 0 <= loss <= 1:
            raise ValueError(f"a loss of {loss} is outside 0..1")
        above = self._recent - self.bound
        # The stake that lets the capital grow fastest where a loss is 1 with the chance of the recent mean.
        stake = min(max(above / (self.bound * (1 - self.bound)), 0.0), 0.9 / self.bound)
        self.n += 1
        growth = 1 + stake * (loss - self.bound)
        self._running = min(growth * (self._running + 1 / (self.n * (self.n + 1))), 1e300)
        self.capital = self._running + 1 / (self.n + 1)
        self.largest = max(self.largest, self.capital)
        self.losses += loss
        self._recent += (loss - self._recent) / min(self.n + 1 / self.bound, MEMORY)
        if self.raised_at is None and self.capital >= 1 / self.level:
            self.raised_at = self.n
        return self.raised_at is not None

    def state(self) -> dict[str, Any]:
        """Everything, as JSON values, for `from_state`."""
        return {name.lstrip("_"): value for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The same alarm again.

        Raises:
            KeyError, TypeError, ValueError: this is no such state.
        """
        alarm = cls(float(state["bound"]), float(state["level"]))
        for name in vars(alarm):
            value = state[name.lstrip("_")]
            # Not a number would never reach the level: an alarm that cannot be raised.
            number = isinstance(value, int | float) and 0 <= value < math.inf
            if not number and not (name == "raised_at" and value is None):
                raise TypeError(f"{name.lstrip('_')} is {value!r}, not a number that an alarm can stand at")
            setattr(alarm, name, value)
        if not (alarm.losses <= alarm.n == int(alarm.n) and 1 <= (alarm.raised_at or 1) <= max(alarm.n, 1)):
            raise ValueError(f"{alarm.losses} losses and an alarm at {alarm.raised_at} among {alarm.n} cannot be")
        if alarm.raised_at is not None and not alarm.n:
            raise ValueError("an alarm was raised, and nothing was seen")
        return alarm


def confidence_sequence(losses: float, n: int, level: float) -> tuple[float, float]:
    """An interval for a constant risk that covers it at all moments at once with confidence 1 - level.

    For losses of 0 or 1. A risk p is left out once the likelihood of what was seen, averaged over Jeffreys' prior, is
    1 /
    level times that under p: the ratio is a martingale under p, so the chance that this ever happens to the true one
    is at most the level. Where the risk changes on the way it has no such promise.

    Args:
        losses: their sum.
        n: observations.
        level: chance that the risk is ever outside.
    """
    if not n:
        return 0.0, 1.0
    averaged = float(special.betaln(losses + 0.5, n - losses + 0.5) - special.betaln(0.5, 0.5))

    def kept(p: float) -> bool:
        return averaged - float(special.xlogy(losses, p) + special.xlog1py(n - losses, -p)) < -math.log(level)

    centre = losses / n

    def edge(inside: float, outside: float) -> float:
        if kept(outside):
            return outside
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if kept(middle) else (inside, middle)
        return outside

    return edge(centre, 0.0), edge(centre, 1.0)
