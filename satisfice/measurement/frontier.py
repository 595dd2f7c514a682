"""Which model, method and limit a budget buys: points of accuracy and cost at every limit, and the best of them.

A response that is longer than a limit is cut off there and wrong: no answer is forced. That understates low limits, as
in the published pictures that are made in this way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satisfice.measurement.metrics import pareto_front


@dataclass(frozen=True)
class Point:
    """A policy that can be deployed: one model, one method, one token limit.

    Attributes:
        model, method: which.
        cap: tokens of a response at most; None for the run's own limit.
        cost: of a response, mean, in whatever the budget is.
        accuracy: from 0 to 1.
        n: responses behind it.
    """

    model: str
    method: str
    cap: int | None
    cost: float
    accuracy: float
    n: int


def caps(lengths: NDArray[np.int64], steps: int = 8) -> list[int]:
    """Limits worth looking at: evenly over the quantiles of the lengths, without the longest, which cuts nothing."""
    if not lengths.size:
        return []
    quantiles = np.quantile(lengths, np.arange(1, steps) / steps).astype(int)
    return sorted({int(cap) for cap in quantiles if 0 < cap < lengths.max()})


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one dominates, the cheapest first."""
    members = pareto_front([point.cost for point in points], [point.accuracy for point in points])
    return sorted((point for point, on in zip(points, members, strict=True) if on), key=lambda point: point.cost)


def best_within(points: Sequence[Point], budget: float) -> Point | None:
    """The most accurate point whose mean cost is within a budget, the cheaper of equals; None where none is."""
    affordable = [point for point in points if point.cost <= budget]
    return max(affordable, key=lambda point: (point.accuracy, -point.cost), default=None)


def oracle(costs: NDArray[np.float64], accuracies: NDArray[np.float64], budget: float) -> float:
    """What an oracle reaches that knows for every problem which policy to take: no policy that can be deployed.

    For each problem the best accuracy among the policies that cost at most the budget there; 0 where none does.

    Args:
        costs, accuracies: mean over samples, shape (policies, problems); NaN where a policy has no response.
        budget: for each problem.
    """
    reachable = np.where((costs <= budget) & ~np.isnan(accuracies), accuracies, 0.0)
    return float(reachable.max(axis=0).mean())
