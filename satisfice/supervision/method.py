"""What a curation is: a named way to make training data of sampled problems.

A curation subclasses `Curation`, declares its parameters as dataclass fields and writes `select`, a pure function of
one problem. Where a model has to read or write (refining steps, scoring them), it says so in `needs` and writes
`refine` as well. What all of the data decide together, a mean or a threshold, comes from a pass before, `prepare`.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self, TypeVar

from satisfice.engines.base import Capability, Engine
from satisfice.parameters import check_parameters
from satisfice.supervision.rows import (
    Drop,
    Item,
    Reason,
    Response,
    SampledProblem,
    SFTRow,
    inconsistent,
    without_repeats,
)

TOGETHER = 16
"""Problems under way at once where a model is needed."""
COMPARED = 2
"""Sequences whose whole distributions are held at once: 512 tokens of a large vocabulary are 300 MB."""

Result = TypeVar("Result")

Loss = Literal["sft", "length-dpo", "offline-clip", "mixture"]
"""What the rows of a curation are trained with; see `satisfice.training`."""


class CurationError(ValueError):
    """A curation or a parameter that does not exist or does not fit."""


Grade = Callable[[SampledProblem, str, bool], Awaitable[bool]]
"""Whether an answer to a problem is right, from its text and whether it was finished."""


class Memory:
    """What a curation has found out with a model so far, by key, so that one that was killed goes on where it was.

    This one forgets everything.
    """

    def get(self, key: str) -> Any:
        """What was put under a key, None where nothing was."""
        return None

    def put(self, key: str, value: Any) -> None:
        """Keep JSON values under a key that has none yet."""


@dataclass(frozen=True)
class Tools:
    """What a curation that needs a model works with.

    Attributes:
        engine: of the model that wrote the traces, or of another one that is to score them.
        grade: judges an answer.
        seed: of the curation.
        memory: what is expensive to find out is kept here, see `found`.
        comparing: held while whole distributions are compared, because of what those weigh.
    """

    engine: Engine
    grade: Grade
    seed: int = 0
    memory: Memory = field(default_factory=Memory)
    comparing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(COMPARED))

    async def found(self, key: str, find: Callable[[], Awaitable[Any]]) -> Any:
        """What `find` returns, JSON values but not None; where it is in memory, it is not looked for again."""
        known = self.memory.get(key)
        if known is None:
            known = await find()
            self.memory.put(key, known)
        return known


async def side_by_side(jobs: Iterable[Coroutine[Any, Any, Result]], most: int) -> AsyncIterator[Result]:
    """The results of jobs in their order, with so many under way at once; where one fails, the others are cancelled."""
    under_way: deque[asyncio.Task[Result]] = deque()
    try:
        for job in jobs:
            under_way.append(asyncio.create_task(job))
            if len(under_way) >= most:
                yield await under_way.popleft()
        while under_way:
            yield await under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


class Curation(ABC):
    """A named way to make training data. Subclasses are frozen dataclasses; their fields are the parameters.

    Bounds stand in the annotations of the fields and are checked when a curation is made.

    Class attributes:
        name: as spelled on the command line.
        summary: what it does, in one line.
        paper: arXiv number and name, or "" for a baseline without one.
        samples: responses to each problem that it compares at least.
        loss: what its rows are trained with.
        needs_own_model: whether the engine has to be of the model that wrote the traces.
        reads_logprobs: whether it makes use of log-probabilities that the traces hold; it does without them, too.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    samples: ClassVar[int] = 1
    loss: ClassVar[Loss] = "sft"
    needs_own_model: ClassVar[bool] = False
    reads_logprobs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_parameters(self, self.name, CurationError)

    @property
    def needs(self) -> frozenset[Capability]:
        """What an engine must be able to do; empty where no model is needed."""
        return frozenset()

    @property
    def needs_engine(self) -> bool:
        """Whether it works with a model at all."""
        return type(self).refine is not Curation.refine

    @property
    def companions(self) -> tuple[str, ...]:
        """Names of further engines that it asks for."""
        return ()

    def remarks(self, engine: Engine | None) -> tuple[str, ...]:
        """Sentences for the data card: what is an estimate, or not as its source has it, with this engine."""
        return ()

    @abstractmethod
    def select(self, problem: SampledProblem) -> list[Item]:
        """Rows of one problem, and a drop for every trace that is in none of them. Pure.

        Args:
            problem: its traces were asked the same, are all different and at least `samples`; `items` sees to that.
        """

    async def refine(self, problem: SampledProblem, items: list[Item], tools: Tools) -> list[Item]:
        """What becomes of the rows of one problem with the help of a model."""
        return items

    async def prepare(self, problems: Iterable[SampledProblem], tools: Tools | None) -> Self:
        """This curation with what all problems decide together; a first pass over them, where that is needed."""
        return self

    def items(self, problem: SampledProblem) -> list[Item]:
        """`select`, for any problem: every trace ends in a row or in a drop."""
        if inconsistent(problem):
            return list(problem.drop_all(Reason.OTHER_PROMPT))
        kept, repeats = without_repeats(problem)
        if len(kept) < self.samples:
            return [*repeats, *problem.drop(kept, Reason.FEW_SAMPLES)]
        if not repeats:
            return self.select(problem)
        once = replace(problem, traces=tuple(problem.traces[place] for place in kept))
        return [*repeats, *(_moved(item, problem, kept) for item in self.select(once))]

    def __str__(self) -> str:
        """As spelled on the command line, with what differs from the defaults."""
        given = [
            f"{parameter.name}={_spelled(getattr(self, parameter.name))}"
            for parameter in fields(self)  # type: ignore[arg-type]
            if parameter.init and getattr(self, parameter.name) != parameter.default
        ]
        return self.name + (f":{','.join(given)}" if given else "")


def exactly(number: float) -> Fraction:
    """The decimal number that a float was written as: 0.2 is 1/5, so that ceil and floor see no noise."""
    return Fraction(str(number))


def _moved(item: Item, problem: SampledProblem, places: list[int]) -> Item:
    """An item of a problem without its repeats, as one of the problem itself."""
    if isinstance(item, Drop):
        return replace(item, place=places[item.place])
    if isinstance(item, SFTRow):
        return replace(item, problem=problem, response=_placed(item.response, places))
    return replace(item, problem=problem, chosen=_placed(item.chosen, places), rejected=_placed(item.rejected, places))


def _placed(response: Response, places: list[int]) -> Response:
    return replace(response, place=places[response.place])


def _spelled(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, float) and float(text) != value:
        text = repr(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if set(text) & set(",\"' ") or not text else text
