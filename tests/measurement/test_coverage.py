"""Whether the 95 % intervals cover the truth in 95 % of simulated runs, and how often they find what is not there."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from satisfice.measurement import statistics

# A simulation takes its time on a machine that is busy with other work.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("error")]

Rows = Sequence[Sequence[Any]]
LOWEST, HIGHEST = 0.93, 0.97
"""What a nominal 0.95 may be; where verdicts are few the coverage jumps, and only the lower end is asked for."""


def covered(
    draw: Callable[[np.random.Generator], tuple[Any, ...]],
    interval: Callable[..., statistics.Estimate | None],
    truth: float,
    runs: int,
) -> tuple[float, float, float]:
    """Share of intervals that hold the truth, that lie above it, and that lie below it."""
    generator = np.random.default_rng(20_261)
    above = below = 0
    for _ in range(runs):
        estimate = interval(*draw(generator))
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        above += truth < estimate.low
        below += truth > estimate.high
    return 1 - (above + below) / runs, above / runs, below / runs


def verdicts(generator: np.random.Generator, chances: NDArray[np.float64], k: int) -> Rows:
    return (generator.random((chances.size, k)) < chances[:, None]).tolist()


def slack(runs: int) -> float:
    """Two standard errors of a simulated coverage of 0.95."""
    return 2 * (0.95 * 0.05 / runs) ** 0.5


@pytest.mark.parametrize(
    ("n", "k", "mean", "concentration"),
    [
        (2, 1, 0.7, 2), (5, 1, 0.7, 2), (20, 1, 0.7, 2), (20, 1, 0.95, 2), (20, 1, 0.99, 2), (100, 1, 0.95, 2),
        (100, 1, 0.99, 2), (100, 1, 0.997, 2), (1000, 1, 0.99, 2), (1000, 1, 0.999, 2), (100, 1, 0.03, 2),
        (2, 4, 0.7, 2), (5, 4, 0.7, 2), (20, 4, 0.5, 2), (20, 4, 0.95, 2), (30, 8, 0.9, 2), (30, 64, 0.3, 1),
        (100, 4, 0.95, 2), (100, 4, 0.95, 20), (100, 4, 0.99, 2), (100, 16, 0.9, 0.5), (1000, 4, 0.95, 2),
        (1000, 4, 0.998, 2),
    ],
)  # fmt: skip
def test_accuracy(n: int, k: int, mean: float, concentration: float) -> None:
    runs = 1000

    def draw(generator: np.random.Generator) -> tuple[Rows]:
        return (verdicts(generator, generator.beta(mean * concentration, (1 - mean) * concentration, n), k),)

    coverage, above, below = covered(draw, statistics.accuracy, mean, runs)
    assert coverage >= LOWEST
    if n * k >= 1000 and n * min(mean, 1 - mean) >= 30:
        assert coverage <= HIGHEST + slack(runs), "no wider than need be"
    assert max(above, below) <= 0.05


@pytest.mark.parametrize(
    ("n", "k", "base", "change", "concentration"),
    [
        (2, 1, 0.7, 0.0, 2), (5, 1, 0.5, 0.0, 20), (20, 1, 0.5, 0.0, 2), (20, 1, 0.97, 0.0, 2), (100, 1, 0.95, 0.0, 2),
        (100, 1, 0.995, 0.0, 2), (100, 1, 0.95, -0.03, 2), (200, 1, 0.97, 0.5, 2), (1000, 1, 0.95, 0.0, 2),
        (1000, 1, 0.99, -0.01, 2), (2, 4, 0.7, 0.0, 2), (5, 4, 0.5, 0.0, 2), (15, 4, 0.5, 0.0, 1), (20, 4, 0.7, 0.2, 2),
        (100, 4, 0.95, 0.0, 2), (100, 4, 0.95, -0.03, 2), (100, 16, 0.9, 0.0, 2), (1000, 4, 0.99, -0.01, 2),
        (1000, 4, 0.995, -0.002, 1),
    ],
)  # fmt: skip
def test_accuracy_difference(n: int, k: int, base: float, change: float, concentration: float) -> None:
    """Every problem's chance rises by a share of what is missing, or falls by a share of what is there."""
    runs = 1000
    truth = change * (1 - base) if change > 0 else change * base

    def draw(generator: np.random.Generator) -> tuple[Rows, Rows]:
        chances = generator.beta(base * concentration, (1 - base) * concentration, n)
        changed = chances + change * (1 - chances if change > 0 else chances)
        return verdicts(generator, changed, k), verdicts(generator, chances, k)

    coverage, above, below = covered(draw, statistics.accuracy_difference, truth, runs)
    assert coverage >= LOWEST
    if k > 1 and n >= 100:
        assert coverage <= HIGHEST + slack(runs), "no wider than need be"
    if truth == 0:
        assert above + below <= 0.05 + slack(runs), "a gain or a loss is seen where there is none"


def lognormal(spread: float, noise: float) -> Callable[..., tuple[Rows, Rows]]:
    def draw(generator: np.random.Generator, n: int, k: int, ratio: float) -> tuple[Rows, Rows]:
        lengths = generator.lognormal(6, spread, (n, 1))
        ours, base = (lengths * generator.lognormal(-(noise**2) / 2, noise, (n, k)) for _ in range(2))
        return (ratio * ours).tolist(), base.tolist()

    return draw


def pareto(generator: np.random.Generator, n: int, k: int, ratio: float) -> tuple[Rows, Rows]:
    """Lengths whose variance is infinite."""
    lengths = 100 * (1 + generator.pareto(1.8, (n, 1)))
    ours, base = (lengths * generator.lognormal(-0.125, 0.5, (n, k)) for _ in range(2))
    return (ratio * ours).tolist(), base.tolist()


def capped(generator: np.random.Generator, n: int, k: int, ratio: float) -> tuple[Rows, Rows]:
    """A third of the baseline's responses run into a limit of 2000 tokens; the method shortens each by one share."""
    chance = generator.normal(7.2, 0.7, (n, 1))
    ours, base = (np.minimum(2000, np.exp(generator.normal(chance, 0.7, (n, k)))) for _ in range(2))
    return (ratio * ours).tolist(), base.tolist()


@pytest.mark.parametrize("n", [2, 3, 5, 20, 100, 1000])
@pytest.mark.parametrize(
    ("draw", "k"),
    [
        (lognormal(0.5, 0.5), 1), (lognormal(0.5, 0.5), 4), (lognormal(1, 1), 1), (lognormal(1, 1), 4),
        (lognormal(1.5, 0.5), 1), (pareto, 1), (capped, 1), (capped, 4),
    ],
)  # fmt: skip
def test_saving(draw: Callable[..., tuple[Rows, Rows]], k: int, n: int) -> None:
    # The interval is the same for every ratio but for a factor, so this is also how often a saving is seen in none.
    runs, ratio = 1500 if n < 1000 else 500, 0.7
    coverage, above, below = covered(lambda generator: draw(generator, n, k, ratio), statistics.saving, 1 - ratio, runs)
    assert coverage >= LOWEST - slack(runs)
    if n >= 100 or (n != 3 and draw is not capped):  # three problems have no kurtosis, few capped ones many ties
        assert coverage <= HIGHEST + slack(runs), "no wider than need be"
    assert above <= 0.05, "a saving is called clear where there is none"
    assert below <= 0.05


@pytest.mark.parametrize("n", [5, 20, 100, 1000])
def test_a_method_that_seldom_acts(n: int) -> None:
    """One response in twenty becomes longer or shorter by chance: no saving, and few problems that tell."""

    def draw(generator: np.random.Generator) -> tuple[Rows, Rows]:
        lengths, other = generator.lognormal(6, 1, (2, n))
        acted, swapped = generator.random(n) < 0.05, generator.random(n) < 0.5
        ours = np.where(acted & ~swapped, other, lengths)
        base = np.where(acted & swapped, other, lengths)
        return ours[:, None].tolist(), base[:, None].tolist()

    coverage, above, _ = covered(draw, statistics.saving, 0.0, 500)
    assert coverage >= 0.95 - slack(500)
    assert above <= 0.025 + slack(500)
