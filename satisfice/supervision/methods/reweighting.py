"""TL;DR: short traces of easy problems and long ones of hard problems, mixed anew as the training goes on.

arXiv 2506.02678. Curation makes the two pools; `MixRatio` is the rule that decides, at every evaluation, how much of
each is drawn next. Ours, where the paper has other data: both pools are the model's own samples, divided by how often
it solves the problem, and the reference of short thinking is the short pool itself.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from satisfice.supervision.method import Curation, CurationError, Loss
from satisfice.supervision.rows import Item, Reason, SampledProblem, SFTRow

POOLS = ("short", "long")
"""System 1 and system 2, in the order of the weights."""


@dataclass(frozen=True)
class Reweighting(Curation):
    """Of a problem that is mostly solved the shortest right trace, of one that is rarely solved a whole one.

    Attributes:
        easy: share of right samples from which on a problem is easy.
        hard: share of right samples up to which a problem is hard.
        long: of a hard problem the "shortest" right trace, as the names of the paper's 7B files say, or the "first".
    """

    name: ClassVar[str] = "reweighting"
    summary: ClassVar[str] = "short traces of easy problems and long ones of hard problems, mixed as training goes on"
    paper: ClassVar[str] = "2506.02678 (TL;DR)"
    samples: ClassVar[int] = 2
    loss: ClassVar[Loss] = "mixture"

    easy: Annotated[float, Field(ge=0, le=1)] = 0.75
    hard: Annotated[float, Field(ge=0, le=1)] = 0.5
    long: Literal["shortest", "first"] = "shortest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hard < self.easy:
            raise CurationError(f"{self.name}: hard is {self.hard:g} and easy {self.easy:g}; easy must be the larger")

    def select(self, problem: SampledProblem) -> list[Item]:
        """One row of an easy or a hard problem."""
        usable, drops = problem.positives()
        if not usable:
            return list(drops)
        easy = problem.pass_rate >= self.easy
        if not easy and problem.pass_rate > self.hard:
            return [*drops, *problem.drop(usable, Reason.MEDIUM)]
        ordered = usable if not easy and self.long == "first" else problem.shortest_first(usable)
        response = problem.response(ordered[0])
        row = SFTRow(problem, response, response.tokens, pool=POOLS[0] if easy else POOLS[1])
        reason = Reason.SURPLUS if not easy and self.long == "first" else Reason.LONGER
        return [row, *drops, *problem.drop(ordered[1:], reason)]


@dataclass(frozen=True)
class Reference:
    """What a model does on the development problems.

    Attributes:
        tokens: mean tokens of its responses.
        accuracy: share of right ones.
    """

    tokens: float
    accuracy: float


class MixRatio:
    """How much of the two pools is drawn, moved by what the model does on the development problems.

        need of short data  lam1 = max((T - T_short) / |T_long - T_short|, 0)
        need of long data   lam2 = max((A_long - A) / |A_long - A_short|, 0)
        alpha' ~ alpha exp(eta lam),  alpha = (1 - c) alpha' + c / 2

    Two models that are equally long give no scale of length, and are refused. Two that are equally right give none of
    accuracy: the difference is then taken to be one problem of the set (ours).

    Attributes:
        weights: shares of the short and the long pool; they add up to 1.
    """

    def __init__(
        self, short: Reference, long: Reference, problems: int, *, eta: float = 4.0, smoothing: float = 1e-4
    ) -> None:
        """A mixture of equal parts.

        Args:
            short: what a model of short thinking does, the end of the scale that length is to move to.
            long: what the untrained model does.
            problems: how many problems both were measured on.
            eta: size of a step; 4 in the paper, which is nearly all or nothing.
            smoothing: the paper's c: what both pools keep of an even share.

        Raises:
            CurationError: both are equally long, or there are no problems.
        """
        if problems < 1:
            raise CurationError("the mixture follows development problems, and there are none")
        if short.tokens == long.tokens:
            raise CurationError(
                f"the short and the long reference both write {long.tokens:g} tokens on the development problems, so "
                "there is no scale of length: choose other pools or problems"
            )
        self.short, self.long, self.problems = short, long, problems
        self.eta, self.smoothing = eta, smoothing
        self.weights = (0.5, 0.5)

    def needs(self, tokens: float, accuracy: float) -> tuple[float, float]:
        """How much of the short and of the long pool is needed, each 0 or more."""
        scale = max(abs(self.long.accuracy - self.short.accuracy), 1 / self.problems)
        lengths = (tokens - self.short.tokens) / abs(self.long.tokens - self.short.tokens)
        return max(lengths, 0.0), max((self.long.accuracy - accuracy) / scale, 0.0)

    def update(self, tokens: float, accuracy: float) -> tuple[float, float]:
        """Take in an evaluation; returns the new weights."""
        logits = [
            math.log(weight) + self.eta * need
            for weight, need in zip(self.weights, self.needs(tokens, accuracy), strict=True)
        ]
        top = max(logits)  # an accuracy far off the scale would overflow
        parts = [math.exp(logit - top) for logit in logits]
        mixed = [(1 - self.smoothing) * part / sum(parts) + self.smoothing / 2 for part in parts]
        self.weights = (mixed[0] / sum(mixed), mixed[1] / sum(mixed))
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"weights": list(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        short, long = state["weights"]
        self.weights = (float(short), float(long))


class PoolReader:
    """Reads each pool in its order, again and again.

    Attributes:
        positions: how many rows of each pool have been read.
    """

    def __init__(self, pools: tuple[list[int], list[int]]) -> None:
        """Nothing read yet.

        Args:
            pools: numbers of the rows of the short and of the long pool.

        Raises:
            CurationError: a pool is empty.
        """
        for name, rows in zip(POOLS, pools, strict=True):
            if not rows:
                raise CurationError(
                    f"the {name} pool is empty, so nothing can be mixed; choose easy and hard otherwise"
                )
        self.pools = pools
        self.positions = [0, 0]

    def next(self, pool: int) -> int:
        """The next row of the short pool, 0, or the long one, 1."""
        rows = self.pools[pool]
        row = rows[self.positions[pool] % len(rows)]
        self.positions[pool] += 1
        return row
