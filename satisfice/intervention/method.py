"""What a method is, and the draft it writes.

A method subclasses `Method`, declares its parameters as dataclass fields and writes `respond`, which reads like
the paper's algorithm. Everything that all methods share is in `Draft`: rendering the prompt, following the
thinking format, adding up every token that was generated, kept or not, and turning the result into a trace.
"""

import hashlib
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from satisfice.engines.base import Capability, Engine, Generation, Sampling, Usage
from satisfice.engines.control import Control
from satisfice.problems.problem import Problem
from satisfice.thinking import MarkerAutomaton, Phase, ThinkingFormat, ThinkingTracker, decode, encode_after
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

    def control(self, thinking: ThinkingFormat) -> Control | None:
        """The control that this method puts on thinking, None where it has none."""
        return None

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


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:.12g}" if isinstance(value, float) else str(value)
    quoted = isinstance(value, str) and re.fullmatch(r"[\w.-]+", value) is None
    return json.dumps(text, ensure_ascii=False) if quoted else text


@dataclass
class Draft:
    """A response in the making.

    Attributes:
        ids: the response so far, forced tokens included.
        tracker: where the response is in the thinking format.
        events: what the method did, for the trace viewer.
    """

    engine: Engine
    problem: Problem
    sampling: Sampling
    method: str = ""
    control: Control | None = None
    watch: Watch | None = None
    thinking_on: bool = True
    ids: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = time.perf_counter()
        self._usage = Usage()
        self._aside = {"probe": 0, "branch": 0, "outline": 0}
        self._forced = 0
        self._closed_by_method = False
        self._last: Generation | None = None
        self._shown = 0
        self._forks: list[Draft] = []
        self._forked_at = 0
        self._adopted = False
        self.begin(self.thinking_on)

    def begin(self, thinking_on: bool = True) -> None:
        """Render the prompt; `thinking_on=False` asks a hybrid model's template to switch thinking off."""
        messages = [{"role": "user", "content": self.problem.prompt}]
        if self.problem.system:
            messages.insert(0, {"role": "system", "content": self.problem.system})
        self.prompt = self.engine.thinking.render(self.engine.tokenizer, messages, thinking_on)
        self.tracker = ThinkingTracker(self._automaton, self.prompt.state)

    # -- where the response stands

    @property
    def _automaton(self) -> MarkerAutomaton:
        return self.engine.thinking.automaton(self.engine.tokenizer)

    @property
    def phase(self) -> Phase:
        """Where the response stands."""
        return self.tracker.phase

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

    def text(self, ids: Sequence[int]) -> str:
        """The text of some tokens."""
        return decode(self.engine.tokenizer, ids)

    # -- what a method can do with it

    async def write(self, max_tokens: int | None = None, stop: tuple[str, ...] = (), **options: Any) -> Generation:
        """Let the model go on with the response, under the method's control while it thinks.

        Args:
            max_tokens: new tokens at most; never more than `remaining`.
            stop: texts to stop at; the token that completes one is kept.
            options: passed to `Engine.generate`.
        """
        limit = self.remaining if max_tokens is None else min(max_tokens, self.remaining)
        if limit <= 0:
            self._last = Generation([], "length")
            return self._last
        control = None
        if self.control is not None and self.phase is not Phase.ANSWER:
            control = replace(self.control, state=self.tracker.state)
        generation = await self.engine.generate(
            self.sequence,
            replace(self.sampling, max_tokens=limit, stop=(*self.sampling.stop, *stop)),
            control=control,
            on_token=self._show if self.watch else None,
            **options,
        )
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
        self._forced += len(ids)
        self._extend(ids)
        if self.watch is not None:
            for token in ids:
                self._show(token)

    def force_text(self, text: str) -> None:
        """Append text that the method writes itself."""
        self.force(encode_after(self.engine.tokenizer, text))

    def close_thinking(self, cue: str = "") -> None:
        """Write the closing marker, and `cue` behind it, where thinking is not closed yet."""
        if self.phase is Phase.ANSWER:
            return
        thinking = self.text(self.ids)
        if self.phase is Phase.BEFORE:
            self.force_text(self.engine.thinking.opening)
        self.force(self.engine.thinking.forced_close(self.engine.tokenizer, thinking, cue))
        self._closed_by_method = True
        self.note("closed")

    def take_back(self, tokens: int) -> None:
        """Remove the last tokens of the response; they stay in the cost, as thrown away."""
        if tokens:
            del self.ids[-tokens:]
            self._aside["probe"] += tokens
            self.tracker = ThinkingTracker(self._automaton, self.prompt.state)
            for token in self.ids:
                self.tracker.push(token)

    async def probe(self, ids: Sequence[int], sampling: Sampling, *, kind: str = "probe", **options: Any) -> Generation:
        """Generate from `ids` on the side: nothing of it enters the response, all of it enters the cost.

        Args:
            ids: the whole sequence to continue, usually `sequence` and some cue.
            sampling: how to choose its tokens.
            kind: what it counts as: "probe", "branch" or "outline".
            options: passed to `Engine.generate`.
        """
        generation = await self.engine.generate(ids, sampling, **options)
        self._count(generation.usage)
        self._aside[kind] += len(generation.ids)
        return generation

    def fork(self, index: int) -> "Draft":
        """A second response that begins like this one and goes its own way; its cost is part of this draft's.

        Fork 0 draws the random numbers that this draft would have drawn, every other index has its own stream.
        What a fork writes counts as branch tokens, unless it is adopted.
        """
        child = Draft(
            self.engine,
            self.problem,
            replace(self.sampling, seed=branch_seed(self.sampling.seed, index)),
            self.method,
            self.control,
        )
        child.prompt, child.ids, child.tracker = self.prompt, list(self.ids), copy(self.tracker)
        child._forked_at = len(self.ids)
        self._forks.append(child)
        return child

    def adopt(self, fork: "Draft") -> None:
        """Take over what a fork has written: it becomes the response."""
        assert fork in self._forks
        if self.watch is not None:
            for token in fork.ids[len(self.ids) :]:
                self._show(token)
        self.ids, self.tracker, self._last = fork.ids, fork.tracker, fork._last
        self._closed_by_method = fork._closed_by_method
        self._forced += fork._forced
        self.events.extend(fork.events)
        fork._adopted = True

    def note(self, kind: str, **detail: Any) -> None:
        """Record an event at the current place of the response."""
        self.events.append(Event(at=len(self.ids), kind=kind, detail=detail))

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
                forced_tokens=self._forced,
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

    def _extend(self, ids: Sequence[int]) -> None:
        self.ids.extend(ids)
        for token in ids:
            self.tracker.push(token)

    def _count(self, usage: Usage) -> None:
        self._usage.prefilled += usage.prefilled
        self._usage.cached += usage.cached
        self._usage.forward_passes += usage.forward_passes

    def _show(self, token: int) -> None:
        """Pass a new token's text on; characters that span tokens are passed on once they are whole."""
        assert self.watch is not None
        if not hasattr(self, "_stream"):
            self._stream: list[int] = []
            self._stream_tracker = ThinkingTracker(self._automaton, self.prompt.state)
        phase = self._stream_tracker.phase
        if token in self.engine.end_ids:
            return
        self._stream.append(token)
        self._stream_tracker.push(token)
        text = self.text(self._stream)
        if not text.endswith("\ufffd"):
            self.watch(phase, text[self._shown :])
            self._shown = len(text)
