"""What a method is, and the draft it writes.

A method subclasses `Method`, declares its parameters as dataclass fields and writes `respond`, which reads like
the paper's algorithm. Everything that all methods share is in `Draft`: rendering the prompt, following the
thinking format, adding up every token that was generated, kept or not, and turning the result into a trace.
"""

import asyncio
import hashlib
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

from satisfice.engines.base import Capability, Engine, Generation, Sampling, Usage, require
from satisfice.engines.control import Control
from satisfice.problems.problem import Problem
from satisfice.thinking import (
    MarkerAutomaton,
    Phase,
    Prompt,
    TextStream,
    ThinkingFormat,
    ThinkingTracker,
    decode,
    encode_after,
)
from satisfice.trace import Cost, Event, StopReason, Trace

Watch = Callable[[Phase, str], None]
"""Called with each piece of retained text as it is written, and the phase it belongs to."""


class MethodError(ValueError):
    """A method or a parameter that does not exist or does not fit."""


class Method(ABC):
    """A named way to produce a trace. Subclasses are frozen dataclasses; their fields are the parameters.

    Class attributes:
        name: as spelled on the command line.
        summary: what it does, in one line.
        paper: arXiv number and name, or "" for a baseline without one.
        needs: what an engine must be able to do.
        takes_control: whether a control method may act on the thinking that this method has written: a strategy
            that lets the model think through `Draft.write` or `Draft.think`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[Capability]] = frozenset()
    takes_control: ClassVar[bool] = False

    @abstractmethod
    async def respond(self, draft: "Draft") -> None:
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
        """
        require(engine, self.needs, self.name)

    async def solve(self, engine: Engine, problem: Problem, sampling: Sampling, *, watch: Watch | None = None) -> Trace:
        """Solve one problem.

        Args:
            engine: where tokens come from.
            problem: the question.
            sampling: how to choose tokens; `max_tokens` bounds the whole response, forced tokens included.
            watch: called with each piece of retained text.

        Returns:
            An ungraded trace.

        Raises:
            EngineError: the engine cannot serve the request.
        """
        draft = Draft(engine, problem, sampling, method=str(self), control=self.control(engine.thinking), watch=watch)
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


def branch_seed(seed: int, index: int) -> int:
    """The seed of one of several responses to a problem; index 0 keeps the seed itself."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") >> 1


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


@dataclass(eq=False)
class Draft:
    """A response in the making.

    Attributes:
        ids: the response so far, forced tokens included.
        tracker: where the response is in the thinking format.
        events: what the method did, for the trace viewer.
        rendered: the prompt, where it is known already.
    """

    engine: Engine
    problem: Problem
    sampling: Sampling
    method: str = ""
    control: Control | None = None
    watch: Watch | None = None
    rendered: Prompt | None = None
    ids: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = time.perf_counter()
        self._usage = Usage()
        self._aside = {"probe": 0, "branch": 0, "outline": 0}
        self._forced: list[int] = []
        self._closed_by_method = False
        self._last: Generation | None = None
        self._unseen: list[int] = []
        self._tentative = 0
        self._withheld = False
        self._stream = TextStream(self.engine.tokenizer)
        self._forks: list[Draft] = []
        self._forked_at = 0
        self._adopted = False
        self._cancellable = False
        if self.rendered is None:
            self.begin()
        else:
            self._begin_with(self.rendered)

    def begin(self, thinking_on: bool = True, question: str | None = None) -> None:
        """Render the prompt.

        Args:
            thinking_on: False asks a hybrid model's template to switch thinking off.
            question: what to ask in place of the problem's own text.
        """
        messages = self.problem.messages(question)
        self._begin_with(self.engine.thinking.render(self.engine.tokenizer, messages, thinking_on))

    def _begin_with(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.tracker = ThinkingTracker(self._automaton, prompt.state)
        self._seen = ThinkingTracker(self._automaton, prompt.state)

    # -- where the response stands

    @property
    def _automaton(self) -> MarkerAutomaton:
        return self.engine.thinking.automaton(self.engine.tokenizer)

    @property
    def phase(self) -> Phase:
        """Where the response stands."""
        return self.tracker.phase

    @property
    def closed(self) -> bool:
        """Whether thinking is over."""
        return self.phase is Phase.ANSWER

    @property
    def sequence(self) -> list[int]:
        """Prompt and response so far."""
        return [*self.prompt.ids, *self.ids]

    @property
    def remaining(self) -> int:
        """Tokens that the response may still grow by; 0 or more."""
        room = self.engine.context_length - len(self.prompt.ids)
        return max(0, min(self.sampling.max_tokens, room) - len(self.ids))

    @property
    def finished(self) -> bool:
        """Whether the model has ended the response itself."""
        return self._last is not None and self._last.finish == "stop"

    @property
    def answer(self) -> str:
        """The text behind thinking, without an end-of-text token; "" while thinking, all of it where there is none."""
        ended = self._last is not None and isinstance(self._last.stopped_by, int)
        return self.text(self.ids[self.tracker.span[1] : -1 if ended else None])

    def text(self, ids: Sequence[int]) -> str:
        """The text of some tokens."""
        return decode(self.engine.tokenizer, ids)

    # -- what a method can do with it

    async def write(
        self,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        lookahead: tuple[str, ...] = (),
        **options: Any,
    ) -> Generation:
        """Let the model go on with the response, under the method's control while it thinks.

        Args:
            max_tokens: new tokens at most; never more than `remaining`.
            stop: texts to stop at; the token that completes one is kept.
            lookahead: those of them behind which the engine may write one more token, see `Sampling`.
            options: passed to `Engine.generate`.
        """
        limit = self.remaining if max_tokens is None else min(max_tokens, self.remaining)
        if limit <= 0:
            self._last = Generation([], "length")
            return self._last
        control = None
        if self.control is not None and not self.closed:
            control = replace(self.control, state=self.tracker.state)
        # A method that stops at a text may take back the tokens that hold it, and one behind them: a token has at least
        # one byte. Without such a stop it has decided on what there is.
        self._tentative = max(self._tentative, *(len(text.encode()) + 1 for text in stop)) if stop else 0
        arrived: list[int] = []
        listener = arrived.append if self._cancellable else self._arrive if self.watch else None
        try:
            generation = await self.engine.generate(
                self.sequence,
                replace(self.sampling, max_tokens=limit, stop=(*self.sampling.stop, *stop), lookahead=lookahead),
                control=control,
                on_token=listener,
                **options,
            )
        except asyncio.CancelledError:
            self._extend(arrived)
            self._usage.forward_passes += len(arrived)
            raise
        self._count(generation.usage)
        self._last = generation
        self._extend(generation.ids)
        return generation

    async def think(self, max_tokens: int | None = None, stop: tuple[str, ...] = (), **options: Any) -> Generation:
        """Like `write`, but stop as soon as thinking is closed."""
        return await self.write(max_tokens, (self.engine.thinking.close, *stop), **options)

    def force(self, ids: Sequence[int]) -> None:
        """Append tokens that the method writes itself; never more than `remaining`."""
        ids = list(ids)[: self.remaining]
        self._forced.extend(range(len(self.ids), len(self.ids) + len(ids)))
        self._extend(ids)
        self._show(ids)

    def force_text(self, text: str) -> None:
        """Append text that the method writes itself."""
        self.force(encode_after(self.engine.tokenizer, text))

    def close_thinking(self, cue: str = "") -> None:
        """Write the closing marker, and `cue` behind it, where thinking is not closed yet."""
        if self.closed:
            return
        self.force(self.closing(cue))
        self._closed_by_method = True
        self.note("closed")

    def closing(self, cue: str = "", back: int = 0) -> list[int]:
        """Token ids that close thinking `back` tokens before the end of the response, `cue` behind the marker."""
        opening = self.engine.thinking.opening if self.phase is Phase.BEFORE else ""
        thinking = self.text(self.ids[: len(self.ids) - back])
        return [
            *(encode_after(self.engine.tokenizer, opening) if opening else []),
            *self.engine.thinking.forced_close(self.engine.tokenizer, thinking, cue),
        ]

    async def conclude(self) -> None:
        """Close thinking where it is still open, and let the model write its answer.

        Where the model ended the whole text inside its thinking, that ending is taken back first. A response that
        has ended outside of thinking is left alone.
        """
        last = self._last
        if last is not None and (isinstance(last.stopped_by, int) or last.stopped_by in self.sampling.stop):
            if self.phase is not Phase.THINKING:
                return
            self.take_back(last.stop_tokens)
        if self.phase is Phase.THINKING and self.remaining:
            self.close_thinking()
        await self.write()

    def end(self) -> None:
        """Declare the response complete: what the method wrote last ends it."""
        self._last = Generation([], "stop", "method")

    def take_back(self, tokens: int) -> None:
        """Remove the last tokens of the response; they stay in the cost, as thrown away."""
        if tokens:
            del self.ids[-tokens:]
            del self._unseen[-tokens:]
            self._aside["probe"] += tokens
            self._forced = [place for place in self._forced if place < len(self.ids)]
            self.tracker = self._tracked(self.ids)

    async def probe(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        *,
        kind: str = "probe",
        engine: Engine | None = None,
        **options: Any,
    ) -> Generation:
        """Generate from `ids` on the side: nothing of it enters the response, all of it enters the cost.

        Args:
            ids: the whole sequence to continue, usually `sequence` and some cue.
            sampling: how to choose its tokens; never more of them than the context has room for.
            kind: what it counts as: "probe", "branch" or "outline".
            engine: another engine to ask, with `ids` of its own tokenizer.
            options: passed to `Engine.generate`.
        """
        engine = engine or self.engine
        room = engine.context_length - len(ids)
        if room <= 0:
            return Generation([], "length", logprobs=[], top_logprobs=[], entropies=[])
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        generation = await engine.generate(ids, sampling, **options)
        self._count(generation.usage)
        self._aside[kind] += len(generation.ids)
        return generation

    def fork(self, index: int, at: int | None = None, *, cancellable: bool = False) -> "Draft":
        """A second response that begins like this one and goes its own way; its cost is part of this draft's.

        Fork 0 draws the random numbers that this draft would have drawn, every other index has its own stream.
        What a fork writes counts as branch tokens, unless it is adopted.

        Args:
            index: which of several forks it is.
            at: how many tokens of this response it begins with; all of them unless given.
            cancellable: follow its tokens as they come, so that what a cancelled task had written is still counted.
        """
        child = Draft(
            self.engine,
            self.problem,
            replace(self.sampling, seed=branch_seed(self.sampling.seed, index)),
            self.method,
            self.control,
            rendered=self.prompt,
        )
        child.ids, child.tracker = self.ids[:at], copy(self.tracker)
        if len(child.ids) < len(self.ids):
            child.tracker = self._tracked(child.ids)
        child._forked_at = len(child.ids)
        child._cancellable = cancellable
        child._forced = [place for place in self._forced if place < child._forked_at]
        self._forks.append(child)
        return child

    def adopt(self, fork: "Draft") -> None:
        """Take over what a fork has written: it becomes the response.

        What this draft has written since the fork left it counts as branch tokens.
        """
        assert fork in self._forks
        replaced = len(self.ids) - fork._forked_at
        del self._unseen[max(0, len(self._unseen) - replaced) :]
        self._show(fork.ids[fork._forked_at :])
        self._aside["branch"] += replaced
        self.ids, self.tracker, self._last = fork.ids, fork.tracker, fork._last
        self._closed_by_method = fork._closed_by_method
        self._forced = fork._forced
        self.events.extend(fork.events)
        fork._adopted = True

    def accept(self, generation: Generation, branch_tokens: int) -> None:
        """Take what was generated behind this response for what the model has written next.

        For a method that asks the engine for more than a continuation, such as a tree of them.

        Args:
            generation: its ids go on from the response; its usage is that of all that was generated.
            branch_tokens: how many other tokens were generated besides, which are thrown away.
        """
        self._count(generation.usage)
        self._aside["branch"] += branch_tokens
        self._last = generation
        self._extend(generation.ids)
        self._show(generation.ids)

    def withhold(self) -> None:
        """Show nothing before the response is complete, because an earlier part of it may yet become its end."""
        self._withheld = True

    def show_rest(self) -> None:
        """Show what has been held back: the response is complete."""
        self._tentative, self._withheld = 0, False
        self._show(())
        if self.watch is not None and (text := self._stream.rest()):
            self.watch(self._seen.phase, text)

    def note(self, kind: str, *, back: int = 0, **detail: Any) -> None:
        """Record an event at the current place of the response, or `back` tokens before it."""
        self.events.append(Event(at=len(self.ids) - back, kind=kind, detail=detail))

    def trace(self) -> Trace:
        """The finished response as an ungraded trace."""
        thinking_tokens = self.tracker.span[1] - self.tracker.span[0]
        stopped_by, written = "length", self.ids
        if self._last is not None and self._last.finish == "stop":
            by = self._last.stopped_by
            stopped_by = self.text([by]) if isinstance(by, int) else str(by)
            if isinstance(by, int):
                written = self.ids[:-1]  # an end-of-text token is paid for, but it is nothing to read
        split = self.engine.thinking.split(self.engine.tokenizer, written, self.prompt.state)
        return Trace(
            problem_id=self.problem.id,
            source=self.problem.source,
            prompt=self.problem.prompt,
            gold=self.problem.answer,
            method=self.method,
            seed=self.sampling.seed,
            prompt_ids=self.prompt.ids,
            response_ids=self.ids,
            thinking_span=self.tracker.span,
            thinking=split.thinking,
            answer=split.answer,
            stop=self._stop_reason(),
            finished=self.finished,
            stopped_by=stopped_by,
            events=self.events,
            cost=Cost(
                thinking_tokens=thinking_tokens,
                answer_tokens=len(self.ids) - thinking_tokens,
                forced_tokens=len(self._forced),
                **self._paid(),
                seconds=time.perf_counter() - self._started,
            ),
        )

    def _paid(self) -> dict[str, int]:
        """Everything but the retained tokens, forks included, as fields of `Cost`."""
        paid = {f"{kind}_tokens": tokens for kind, tokens in self._aside.items()}
        paid |= {
            "prefilled_tokens": self._usage.prefilled,
            "cached_tokens": self._usage.cached,
            "forward_passes": self._usage.forward_passes,
        }
        for fork in self._forks:
            for name, count in fork._paid().items():
                paid[name] += count
            if not fork._adopted:
                paid["branch_tokens"] += len(fork.ids) - fork._forked_at
        return paid

    def _stop_reason(self) -> StopReason:
        if self._closed_by_method:
            return "closed by method"
        if self.phase is Phase.ANSWER:
            return "marker" if self.tracker.end else "not opened"
        if self.phase is Phase.BEFORE:
            return "not opened"
        return "end of text" if self.finished else "token limit"

    def _tracked(self, ids: Sequence[int]) -> ThinkingTracker:
        """Where a response of `ids` stands."""
        tracker = ThinkingTracker(self._automaton, self.prompt.state)
        for token in ids:
            tracker.push(token)
        return tracker

    def _extend(self, ids: Sequence[int]) -> None:
        self.ids.extend(ids)
        for token in ids:
            self.tracker.push(token)

    def _count(self, usage: Usage) -> None:
        self._usage.prefilled += usage.prefilled
        self._usage.cached += usage.cached
        self._usage.forward_passes += usage.forward_passes

    def _arrive(self, token: int) -> None:
        self._show((token,))

    def _show(self, ids: Sequence[int]) -> None:
        """Take new tokens in, and pass on the text of those that nothing can take back any more."""
        if self.watch is None:
            return
        self._unseen.extend(ids)
        settled = 0 if self._withheld else max(0, len(self._unseen) - self._tentative)
        certain, self._unseen = self._unseen[:settled], self._unseen[settled:]
        for token in certain:
            if token not in self.engine.end_ids:
                phase = self._seen.phase
                self._seen.push(token)
                if text := self._stream.push(token):
                    self.watch(phase, text)
