"""How many steps are best: accuracy against the number of steps, and the formula of arXiv 2502.07266.

A task of T operators is solved in N steps by a model that answers a sub-task of M operators at most. Posing a sub-task
goes wrong with probability sigma = T / C, where C is the hardest task seen in training, and answering it with
probability E = T / (N M). So A(N) = alpha ((1 - sigma) (1 - E))^N, which rises and then falls, with its maximum at

    N* = T Z / (M (Z + 1)),  Z = W_-1( -(1 - T / C) / e )

with the lower real branch of Lambert's W. As the theorem is printed, its brackets give an argument for which W has no
real value; this is the form of its proof.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import optimize, special

from satisfice.measurement import statistics

BIN = {"across models": 5, "per question": 2}
"""Widths of the bins of step counts that the paper uses for its two pictures."""


def optimal_steps(operators: float, capability: float, hardest: float) -> float:
    """N*(M, T), not rounded.

    Args:
        operators: T, of the task.
        capability: M, of the largest sub-task that one step solves.
        hardest: C, of the hardest task in training.

    Raises:
        ValueError: not 0 < T < C, or M is not above 0.
    """
    if not 0 < operators < hardest or capability <= 0:
        raise ValueError(
            f"the formula holds for 0 < T < C and M > 0, not T = {operators}, C = {hardest}, M = {capability}"
        )
    z = float(special.lambertw(-(1 - operators / hardest) / math.e, k=-1).real)
    return operators * z / (capability * (z + 1))


def optimal_step_size(operators: float, capability: float, hardest: float) -> float:
    """t* = T / N*: the operators of one step; grows with T. Raises as `optimal_steps`."""
    return operators / optimal_steps(operators, capability, hardest)


def step_accuracy(steps: float, operators: float, capability: float, hardest: float, alpha: float = 1.0) -> float:
    """A(N); 0 where a step is too large to be answered at all."""
    wrong = operators / (steps * capability)
    return alpha * max(0.0, (1 - operators / hardest) * (1 - wrong)) ** steps if wrong < 1 else 0.0


class Cell(BaseModel):
    """What one model does with one difficulty in one step size.

    Attributes:
        operators: T, of the task.
        size: operators a step.
        steps: N.
        n, right: problems, and those that were solved.
    """

    model_config = ConfigDict(frozen=True)

    operators: int
    size: int
    steps: int
    n: int
    right: int

    @property
    def accuracy(self) -> statistics.Estimate:
        """With Clopper and Pearson's interval."""
        share = self.right / self.n
        return statistics.Estimate(share, *statistics.clopper_pearson(share, self.n))


class Best(BaseModel):
    """The best number of steps of one model at one difficulty.

    Attributes:
        operators: T.
        cell: of the highest accuracy; of equals the one of fewest steps.
        fewest, most: of the steps whose interval reaches the best accuracy's lower end: so much is not decided.
    """

    model_config = ConfigDict(frozen=True)

    operators: int
    cell: Cell
    fewest: int
    most: int


def best_steps(cells: Sequence[Cell]) -> list[Best]:
    """The best number of steps at each difficulty, with those that may be as good."""
    found = []
    for operators in dict.fromkeys(cell.operators for cell in cells):
        own = [cell for cell in cells if cell.operators == operators]
        best = max(own, key=lambda cell: (cell.right / cell.n, -cell.steps))
        low = best.accuracy.low
        assert low is not None
        rivals = [cell.steps for cell in own if (cell.accuracy.high or 0.0) >= low]
        found.append(Best(operators=operators, cell=best, fewest=min(rivals), most=max(rivals)))
    return found


BEYOND = 10_000.0
"""How far a fit looks for M and C."""


@dataclass(frozen=True)
class Fit:
    """A(N) fitted to counts.

    Attributes:
        capability, hardest, alpha: M, C and alpha.
        loss: mean negative log-likelihood of a response, in nats.
    """

    capability: float
    hardest: float
    alpha: float
    loss: float

    @property
    def found(self) -> bool:
        """Whether M and C lie within reach of the fit; a model with too few errors, or other ones, has no N*."""
        return max(self.capability, self.hardest) < BEYOND

    def best(self, operators: float) -> float:
        """N* of the fit, where one was `found`."""
        return optimal_steps(operators, self.capability, self.hardest)


def fit(rows: Sequence[tuple[float, float, int, int]]) -> Fit:
    """M, C and alpha of greatest likelihood.

    A model without errors has none: the likelihood grows towards M and C without end, so they are held below `BEYOND`
    above the least that the rows allow, and alpha as near to 0 and 1.

    Args:
        rows: operators, steps, responses, right ones.

    Raises:
        ValueError: there are fewer than three rows.
    """
    if len(rows) < 3:
        raise ValueError(f"three numbers cannot be fitted to {len(rows)} rows")
    table = np.asarray(rows, dtype=np.float64)
    operators, steps, n, right = table.T

    def loss(free: np.ndarray) -> float:
        capability = math.exp(free[0]) + float((operators / steps).max())
        hardest, alpha = math.exp(free[1]) + float(operators.max()), 1 / (1 + math.exp(-free[2]))
        base = (1 - operators / hardest) * (1 - operators / (steps * capability))
        p = np.clip(alpha * base**steps, 1e-9, 1 - 1e-9)
        return float(-(right * np.log(p) + (n - right) * np.log(1 - p)).sum() / n.sum())

    starts = [np.array([a, b, 3.0]) for a in (0.0, 2.0) for b in (2.0, 5.0)]
    bounds = [(-math.log(BEYOND), math.log(BEYOND))] * 3
    found = [optimize.minimize(loss, start, method="Nelder-Mead", bounds=bounds) for start in starts]
    best = min(found, key=lambda one: one.fun)
    return Fit(
        math.exp(best.x[0]) + float((operators / steps).max()),
        math.exp(best.x[1]) + float(operators.max()),
        1 / (1 + math.exp(-best.x[2])),
        float(best.fun),
    )


def count_steps(thinking: str, counting: Literal["non-empty lines", "lines // 5"] = "non-empty lines") -> int:
    """How many steps a thinking has: the paper counts lines that are not empty, its program all lines, divided by 5."""
    if counting == "lines // 5":
        return (thinking.count("\n") + 1) // 5 if thinking else 0
    return sum(bool(line.strip()) for line in thinking.split("\n"))


@dataclass(frozen=True)
class Bin:
    """Responses of about the same number of steps.

    Attributes:
        low, high: steps, `high` excluded.
        accuracy: with its interval.
        n: responses.
    """

    low: int
    high: int
    accuracy: statistics.Estimate
    n: int


def accuracy_by_steps(steps: Sequence[int], correct: Sequence[bool], width: int) -> list[Bin]:
    """Accuracy of the responses in each bin of step counts that has any, with Clopper and Pearson's interval.

    Raises:
        ValueError: the width is below 1, or there are not as many steps as verdicts.
    """
    if width < 1:
        raise ValueError(f"a bin is at least one step wide, not {width}")
    bins: dict[int, list[bool]] = {}
    for count, right in zip(steps, correct, strict=True):
        bins.setdefault(count // width, []).append(right)
    found = []
    for place in sorted(bins):
        share = float(np.mean(bins[place]))
        estimate = statistics.Estimate(share, *statistics.clopper_pearson(share, len(bins[place])))
        found.append(Bin(place * width, (place + 1) * width, estimate, len(bins[place])))
    return found


def best_bin(bins: Sequence[Bin]) -> Bin | None:
    """The bin of the highest accuracy, the shorter of equals; None where there is none."""
    return max(bins, key=lambda each: (each.accuracy.value, -each.low), default=None)
