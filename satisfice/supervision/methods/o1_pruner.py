"""O1-Pruner: offline policy optimisation with each problem's own mean length and accuracy as the reference.

arXiv 2501.12570; the code that was released does more than the paper says, so both are variants. Ours: what the limit
cut off counts as wrong, stays out of the mean length and is never trained on; neither source says how it treats it.
"""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from satisfice.engines.base import derive_seed
from satisfice.supervision.method import Curation, CurationError, Loss, Tools
from satisfice.supervision.rows import Drop, Item, Likelihood, Reason, SampledProblem, SFTRow, length

CLAMP = (-2.0, 4.0)
"""What the released code clamps rewards to."""


@dataclass(frozen=True)
class O1Pruner(Curation):
    """Responses with a reward as their weight, for a clipped loss against the model that wrote them.

        R(y) = mean length / length(y) - 1 + trade (correct(y) - mean correctness)

    The means are over all samples of the problem, as the reference model wrote them. `taken` of the samples become
    rows, drawn at random, right or wrong.

    variant=paper: R is the weight.
    variant=code: R is clamped to [-2, 4], then the mean over all rows is subtracted and divided by their deviation (of
    the population). Zero then no longer means "as good as the reference".

    Attributes:
        taken: samples of each problem that are trained on; 2 in the released code, any number up to K in the paper.
        trade: what correctness is worth in lengths; the paper's lambda, 2 for Marco and 5 for QwQ.
        variant: "paper" or "code".
        seed: of the drawing.
    """

    name: ClassVar[str] = "o1-pruner"
    summary: ClassVar[str] = "samples weighted by how much shorter and how much more right they are than their mean"
    paper: ClassVar[str] = "2501.12570 (O1-Pruner)"
    samples: ClassVar[int] = 2
    loss: ClassVar[Loss] = "offline-clip"
    reads_logprobs: ClassVar[bool] = True

    taken: Annotated[int, Field(ge=1)] = 2
    trade: Annotated[float, Field(ge=0)] = 2.0
    variant: Literal["paper", "code"] = "code"
    seed: int = 0
    _standard: tuple[float, float] = field(default=(0.0, 1.0), init=False, repr=False)

    async def prepare(self, problems: Iterable[SampledProblem], tools: Tools | None) -> Self:
        """For variant=code, the mean and the deviation of all rewards.

        Raises:
            CurationError: all are the same, so that nothing could be learned.
        """
        if self.variant == "paper":
            return self
        count, mean, squares = 0, 0.0, 0.0
        for problem in problems:
            for item in self.items(problem):
                if isinstance(item, SFTRow) and item.weight is not None:
                    count += 1
                    step = item.weight - mean
                    mean += step / count
                    squares += step * (item.weight - mean)
        if count and math.sqrt(squares / count) < 1e-9:
            raise CurationError(
                f"{self.name}: all {count} rewards are {mean:.3g}, and variant=code divides by their deviation: sample "
                "more problems, or use variant=paper"
            )
        prepared = replace(self)
        if count:
            object.__setattr__(prepared, "_standard", (mean, math.sqrt(squares / count)))
        return prepared

    def select(self, problem: SampledProblem) -> list[Item]:
        """The samples that are drawn, with their weights."""
        usable, drops = [], []
        for place in range(len(problem.traces)):
            fault = problem.fault(place)
            if fault is None:
                usable.append(place)
            else:
                drops.append(Drop(problem.id, problem.source, place, fault))
        lengths = [length(trace) for trace in problem.traces if trace.finished and length(trace) > 0]
        if not usable:
            return list(drops)
        mean_length = math.fsum(lengths) / len(lengths)
        order = list(usable)
        random.Random(derive_seed(self.seed, f"draw/{problem.id}")).shuffle(order)
        rows = [
            SFTRow(
                problem,
                response,
                response.tokens,
                weight=self._weight(problem, place, mean_length),
                likelihood=Likelihood.of(problem.traces[place]),
            )
            for place in order[: self.taken]
            for response in [problem.response(place)]
        ]
        return [*rows, *drops, *problem.drop(sorted(order[self.taken :]), Reason.NOT_DRAWN)]

    def _weight(self, problem: SampledProblem, place: int, mean_length: float) -> float:
        trace = problem.traces[place]
        reward = mean_length / length(trace) - 1 + self.trade * (trace.correct - problem.pass_rate)
        if self.variant == "code":
            mean, deviation = self._standard
            reward = (min(max(reward, CLAMP[0]), CLAMP[1]) - mean) / deviation
        return reward
