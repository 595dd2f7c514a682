"""What a method is.

A method subclasses `Method`, declares its parameters as dataclass fields and writes `respond`, which reads like
the paper's algorithm. Everything that all methods share is in `draft.Draft`: rendering the prompt, following the
thinking format, adding up every token that was generated, kept or not, and turning the result into a trace.
"""

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from satisfice.engines.base import Capability, Engine, EngineError, Sampling, require
from satisfice.engines.control_setting import Control
from satisfice.intervention.draft import Draft
from satisfice.intervention.stops import NO_STOPS, Stops
from satisfice.parameters import check_parameters
from satisfice.problems.problem import Problem
from satisfice.thinking import Phase, ThinkingFormat
from satisfice.trace import Trace

Watch = Callable[[Phase, str], None]
"""Called with each piece of retained text as it is written, and the phase it belongs to."""


class MethodError(ValueError):
    """A method or a parameter that does not exist or does not fit."""


@dataclass(frozen=True)
class Knob:
    """The parameter of a method that decides how much is saved, for whoever calibrates it.

    Attributes:
        parameter: its name.
        grid: values in their order from harmless to bold; the outcome of no run decides this order. Another grid goes
            the same way.
        where: other parameters that it needs, such as a mode.
        shared: whether settings make the same engine calls up to where they part, so that what they share needs to be
            generated once.
        against_first: whether the first value stands for what may be lost against, in place of `plain`.
    """

    parameter: str
    grid: tuple[Any, ...]
    where: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    against_first: bool = False


CAPS = (16384, 8192, 4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96, 64)
"""The grid of a cap on thinking, in tokens."""


class Method(ABC):
    """A named way to produce a trace. Subclasses are frozen dataclasses; their fields are the parameters.

    Annotations state the parameters' bounds, and are checked here. A subclass with rules of its own, such as one
    between two parameters, writes a `__post_init__` that begins with `super().__post_init__()`.

    Class attributes:
        name: as spelled on the command line.
        summary: what it does, in one line.
        paper: arXiv number and name, or "" for a baseline without one.
        needs: what an engine must be able to do.
        takes_control: whether a control method may act on the thinking that this method has written: a strategy
            that lets the model think through `Draft.write` or `Draft.think`.
        knobs: what can be calibrated; of several the first that fits the other parameters is meant.
        on_lab: the parameters that suit the lab, as they are spelled after the colon: what `all` runs there. Chosen on
            `lab:calibration`; "" leaves all defaults.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[Capability]] = frozenset()
    takes_control: ClassVar[bool] = False
    knobs: ClassVar[tuple[Knob, ...]] = ()
    on_lab: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_parameters(self, self.name, MethodError)

    @abstractmethod
    async def respond(self, draft: Draft) -> None:
        """Write the response into `draft`."""

    @property
    def breadth(self) -> int:
        """How many sequences it may have under way at once, those included that are thrown away."""
        return 1

    def control(self, thinking: ThinkingFormat) -> Control | None:
        """The control that this method puts on thinking, None where it has none."""
        return None

    def check(self, engine: Engine) -> None:
        """Refuse an engine that this method cannot work with, before anything is paid for.

        Raises:
            EngineError: names what is missing.
            MethodError: a parameter does not fit the way in which this model marks thinking.
        """
        require(engine, self.needs, self.name)
        if (control := self.control(engine.thinking)) is not None:
            try:
                engine.check_control(control)
            except EngineError as refused:
                raise EngineError(f"{self.name}: {refused}") from None

    async def solve(
        self,
        engine: Engine,
        problem: Problem,
        sampling: Sampling,
        *,
        watch: Watch | None = None,
        stops: Stops = NO_STOPS,
    ) -> Trace:
        """Solve one problem.

        Args:
            engine: where tokens come from.
            problem: the question.
            sampling: how to choose tokens; `max_tokens` bounds the whole response, forced tokens included.
            watch: called with each piece of retained text.
            stops: texts that end the response, by default where they come in its answer.

        Returns:
            An ungraded trace.

        Raises:
            EngineError: the engine cannot serve the request; the prompt does not fit into the model's context.
            EngineFailed: the engine went wrong on the way. Nothing of the response is returned.
        """
        return await self.complete(self.draft(engine, problem, sampling, watch=watch, stops=stops))

    def draft(
        self,
        engine: Engine,
        problem: Problem,
        sampling: Sampling,
        *,
        watch: Watch | None = None,
        stops: Stops = NO_STOPS,
        logprobs: bool = False,
    ) -> Draft:
        """An empty response, for `complete`; whoever holds it can say what it cost if that fails.

        Args:
            engine, problem, sampling, watch: see `solve`.
            logprobs: whether the trace is to hold the log-probability of each token that the model writes.

        Raises:
            EngineError: the prompt does not fit into the model's context.
        """
        return Draft(
            engine,
            problem,
            sampling,
            method=str(self),
            control=self.control(engine.thinking),
            watch=watch,
            stops=stops,
            logprobs=logprobs,
        )

    async def complete(self, draft: Draft) -> Trace:
        """Write the response into `draft` and return it as an ungraded trace; raises what `solve` raises."""
        await self.respond(draft)
        draft.show_rest()
        return draft.trace()

    def __str__(self) -> str:
        """The method as spelled on the command line: its name and every parameter that is not the default."""
        changed = [
            f"{parameter.name}={_spell(getattr(self, parameter.name))}"
            for parameter in fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
            if getattr(self, parameter.name) != parameter.default
        ]
        return f"{self.name}:{','.join(changed)}" if changed else self.name


Result = TypeVar("Result")


async def together(*jobs: Coroutine[Any, Any, Result]) -> list[Result]:
    """The results of jobs that run side by side, in their order.

    Where one fails, the others are cancelled and its own error is raised, not a group of errors.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:.12g}" if isinstance(value, float) else str(value)
    quoted = isinstance(value, str) and re.fullmatch(r"[\w.-]+", value) is None
    return json.dumps(text, ensure_ascii=False) if quoted else text
