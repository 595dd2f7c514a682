"""The draft that a method writes: a response in the making, and everything that all methods share.

A method asks a draft to let the model go on, to write text itself, to take text back, to try something on the side
or to go two ways at once. The draft keeps three things right while it does: where the response stands
(`Response`), what was paid for (`Ledger`), and what may be shown already (`LiveText`). At the end it is a trace.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from satisfice.engines.base import Engine, EngineError, Generation, Sampling, derive_seed
from satisfice.engines.control_setting import Control
from satisfice.intervention.ledger import Ledger, Purpose
from satisfice.intervention.live_text import LiveText
from satisfice.intervention.response import Ending, Response
from satisfice.intervention.stops import NO_STOPS, Stops
from satisfice.problems.problem import Problem
from satisfice.thinking import Phase, Prompt, ThinkingTracker, decode, encode_after
from satisfice.trace import Cost, Event, Trace

if TYPE_CHECKING:
    from satisfice.intervention.method import Watch


LAST_TOKENS = 16
"""Tokens whose text says how a response ends."""
LOGPROB_DECIMALS = 4
"""Of the log-probabilities that a trace keeps: a file of traces grows by a third instead of doubling."""


def fork_seed(seed: int, way: tuple[int, ...]) -> int:
    """The seed of a fork.

    Args:
        seed: of the draft that was forked first.
        way: the index of each fork on the way from there. Index 0 keeps the stream that it leaves, so zeros at the end
            change nothing.
    """
    while way and way[-1] == 0:
        way = way[:-1]
    return derive_seed(seed, f"fork/{'/'.join(map(str, way))}") if way else seed


def _joined(first: Generation, then: Generation) -> Generation:
    """Two generations of which the second goes on from the first, as one."""

    def both(name: str) -> Any:
        parts = getattr(first, name), getattr(then, name)
        return None if None in parts else [*parts[0], *parts[1]]

    usage = replace(first.usage)
    usage.add(then.usage)
    lists = {name: both(name) for name in ("logprobs", "top_logprobs", "entropies")}
    return Generation([*first.ids, *then.ids], then.finish, then.stopped_by, then.stop_tokens, usage=usage, **lists)


def _without(generation: Generation, surplus: int) -> Generation:
    """A generation less its last tokens, where one of the caller's stops has ended it."""
    kept = len(generation.ids) - surplus

    def cut(name: str) -> Any:
        values = getattr(generation, name)
        return None if values is None else values[:kept]

    lists = {name: cut(name) for name in ("logprobs", "top_logprobs", "entropies")}
    return replace(generation, ids=generation.ids[:kept], finish="stop", stop_tokens=1, **lists)


class Draft:
    """A response in the making.

    Args:
        engine: where tokens come from.
        problem: the question.
        sampling: how to choose tokens; `max_tokens` bounds the whole response, forced tokens included.
        method: as spelled on the command line, for the trace.
        control: edits the logits of what the model writes while it thinks.
        watch: called with each piece of retained text as it is written.
        prompt: rendered from the problem, unless it is given.
        stops: texts of the caller's that end the response, whoever writes them. Once one has come, every further
            `write` returns nothing, and nothing is forced or taken back.
        logprobs: whether the trace is to hold the log-probability of each token that the model writes.

    Attributes:
        engine, problem, sampling, method, control, stops, logprobs: as given.
        events: what the method did, for the trace viewer.

    Raises:
        EngineError: the prompt does not fit into the model's context.
    """

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        sampling: Sampling,
        method: str = "",
        control: Control | None = None,
        watch: "Watch | None" = None,
        prompt: Prompt | None = None,
        stops: Stops = NO_STOPS,
        logprobs: bool = False,
    ) -> None:
        self.engine, self.problem, self.sampling = engine, problem, sampling
        self.method, self.control, self.stops, self.logprobs = method, control, stops, logprobs
        self.events: list[Event] = []
        prompt = prompt or self._rendered()
        self._response = Response(engine.thinking, engine.tokenizer, prompt, stops)
        self._ledger = Ledger(self._response)
        self._live_text = LiveText(engine, prompt, watch)
        self._cancellable = False
        self._first_seed = sampling.seed  # of the draft that was forked first
        self._way: tuple[int, ...] = ()  # the index of each fork on the way from there

    def begin(self, thinking_on: bool = True, question: str | None = None) -> None:
        """Render the prompt again, before anything is written.

        Args:
            thinking_on: False asks a hybrid model's template to switch thinking off.
            question: what to ask in place of the problem's own text.

        Raises:
            EngineError: the prompt does not fit into the model's context.
        """
        prompt = self._rendered(thinking_on, question)
        self._response.begin(prompt)
        self._live_text.begin(prompt)

    def _rendered(self, thinking_on: bool = True, question: str | None = None) -> Prompt:
        messages = self.problem.messages(question)
        prompt = self.engine.thinking.render(self.engine.tokenizer, messages, thinking_on)
        if len(prompt.ids) >= self.engine.context_length:
            raise EngineError(
                f"the prompt has {len(prompt.ids)} tokens, but {self.engine.name} holds {self.engine.context_length}, "
                "the response included: shorten the question or the instruction, or take a model with a longer context"
            )
        return prompt

    # -- where the response stands

    @property
    def prompt(self) -> Prompt:
        """What the response follows."""
        return self._response.prompt

    @property
    def ids(self) -> list[int]:
        """The response so far, forced tokens included."""
        return self._response.ids

    @property
    def sequence(self) -> list[int]:
        """Prompt and response so far."""
        return [*self.prompt.ids, *self.ids]

    @property
    def remaining(self) -> int:
        """Tokens that the response may still grow by; 0 or more."""
        if self._response.stopped:
            return 0
        room = self.engine.context_length - len(self.prompt.ids)
        return max(0, min(self.sampling.max_tokens, room) - len(self.ids))

    @property
    def tracker(self) -> ThinkingTracker:
        """Where the response is in the thinking format."""
        return self._response.tracker

    @property
    def phase(self) -> Phase:
        """Where the response stands."""
        return self._response.phase

    @property
    def closed(self) -> bool:
        """Whether thinking is over."""
        return self.phase is Phase.ANSWER

    @property
    def ending(self) -> Ending:
        """How the response has ended; where nobody has ended it, by the limit, if nothing more is written."""
        return self._response.ending

    @property
    def finished(self) -> bool:
        """Whether the model or the method has ended the response."""
        return self._response.ended is not None

    @property
    def answer(self) -> str:
        """The text outside thinking, without markers and end-of-text token; all of it where there is no thinking."""
        return self._response.split.answer

    def text(self, ids: Sequence[int]) -> str:
        """The text of some tokens."""
        return decode(self.engine.tokenizer, ids)

    # -- what the model writes

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
            lookahead: those of them after which the engine may write one more token, see `Sampling`.
            options: passed to `Engine.generate`.
        """
        limit = self.remaining if max_tokens is None else min(max_tokens, self.remaining)
        if limit <= 0:
            return Generation([], "length")
        self._live_text.hold_back_for(stop)
        written = await self._go_on(limit, stop, lookahead, options)
        # The caller's stops fall asleep and awake with the markers, and may be cut over two calls.
        while (
            self.stops
            and not self.finished
            and (left := limit - len(written.ids)) > 0
            and (written.stopped_by is None or written.stopped_by not in stop)
        ):
            further = await self._go_on(left, stop, lookahead, options)
            if not further.ids:
                break
            written = _joined(written, further)
        return written

    async def _go_on(
        self, limit: int, stop: tuple[str, ...], lookahead: tuple[str, ...], options: dict[str, Any]
    ) -> Generation:
        """One call of the engine; it ends where the caller's stops fall asleep or awake, too."""
        control = None
        if self.control is not None and not self.closed:
            control = replace(self.control, state=self.tracker.state)
        own: tuple[str, ...] = ()
        if self.stops:
            own = self._own_stops()
            limit = 1 if self._response.on_edge else limit
        if self.logprobs:
            options = {**options, "top_logprobs": max(1, options.get("top_logprobs", 0))}
        arrived: list[int] = []
        listener = arrived.append if self._cancellable else self._show_one if self._live_text.watch else None
        stops = tuple(dict.fromkeys((*self.sampling.stop, *stop, *own)))
        try:
            generation = await self._ask(
                self.engine,
                self.sequence,
                replace(self.sampling, max_tokens=limit, stop=stops, lookahead=lookahead),
                control=control,
                on_token=listener,
                **options,
            )
        except asyncio.CancelledError:
            self._response.extend(arrived)
            self._ledger.count_cancelled(len(arrived))
            raise
        self._response.take_in(generation, self.sampling.stop)
        surplus = self._heed_stops()
        return _without(generation, surplus) if surplus else generation

    def _own_stops(self) -> tuple[str, ...]:
        """What the engine must stop at so that the caller's stops act where they should."""
        if self.stops.in_thinking:
            return self.stops.texts
        thinking = self.engine.thinking
        if self.phase is Phase.THINKING:
            return thinking.closers
        return (*self.stops.texts, *thinking.openers, *(thinking.closers if self.phase is Phase.BEFORE else ()))

    def _heed_stops(self) -> int:
        """End the response where one of the caller's stops has come, and return how many tokens go that follow it."""
        if not self.stops or self._response.stopped:
            return 0
        surplus = self._response.overrun()
        if surplus is None:
            return 0
        if surplus:
            self._ledger.take_back(surplus)
            self._response.take_back(surplus)
        self._response.stop_here()
        return surplus

    async def think(self, max_tokens: int | None = None, stop: tuple[str, ...] = (), **options: Any) -> Generation:
        """Like `write`, but stop as soon as thinking is closed."""
        return await self.write(max_tokens, (*self.engine.thinking.closers, *stop), **options)

    async def conclude(self) -> None:
        """Close thinking where it is still open, and let the model write its answer.

        Where the model ended the whole text inside its thinking, that ending is taken back first. A response that
        has ended outside of thinking is left alone.
        """
        if self.finished:
            if self.ending.where == "answer" or self._response.stopped:
                return
            self.take_back(self.ending.tokens)
        if self.phase is Phase.THINKING and self.remaining:
            self.close_thinking()
        await self.write()

    def accept(self, generation: Generation, branch_tokens: int) -> None:
        """Take what was generated after this response for what the model has written next.

        For a method that asks the engine for more than a continuation, such as a tree of them.

        Args:
            generation: its ids go on from the response; its usage is that of all that was generated.
            branch_tokens: how many other tokens were generated besides, which are thrown away.
        """
        self._ledger.count(generation.usage)
        self._ledger.throw_away(branch_tokens, "branch")
        self._response.take_in(generation, self.sampling.stop)
        surplus = self._heed_stops()
        self._live_text.show(generation.ids[: len(generation.ids) - surplus])

    def stop_in(self, ids: Sequence[int]) -> str | None:
        """The caller's stop that the tokens of a response to this prompt hold where it acts; None where there is none.

        For a method that has the engine write what it may `accept` later.
        """
        return self._response.stop_in(ids) if self.stops else None

    def _show_one(self, token: int) -> None:
        self._live_text.show((token,))

    async def _ask(self, engine: Engine, ids: Sequence[int], sampling: Sampling, **options: Any) -> Generation:
        """A generation of an engine, whose cost is this response's also where the engine fails."""
        try:
            generation = await engine.generate(ids, sampling, **options)
        except EngineError as failure:
            self._ledger.count_failed(failure.usage)
            raise
        self._ledger.count(generation.usage)
        return generation

    # -- what the method writes, ends and takes back

    def force(self, ids: Sequence[int]) -> None:
        """Append tokens that the method writes itself; never more than `remaining`."""
        if self._response.stopped:
            return
        ids = list(ids)[: self.remaining]
        self._response.force(ids)
        surplus = self._heed_stops()
        self._live_text.show(ids[: len(ids) - surplus])

    def force_text(self, text: str) -> None:
        """Append text that the method writes itself."""
        self.force(encode_after(self.engine.tokenizer, text))

    def claim(self, start: int, end: int) -> None:
        """Say that the method's control forced the tokens at these places, which an engine takes for the model's."""
        self._response.claim(start, end)

    def close_thinking(self, cue: str = "") -> None:
        """Write the closing marker, and `cue` after it, where thinking is not closed yet."""
        if self.closed:
            return
        self.force(self.closing(cue))
        self.note("closed")

    def closing(self, cue: str = "", back: int = 0) -> list[int]:
        """Token ids that close thinking `back` tokens before the end of the response, `cue` after the marker."""
        opening = self.engine.thinking.opening if self.phase is Phase.BEFORE else ""
        return [
            *(encode_after(self.engine.tokenizer, opening) if opening else []),
            *self.engine.thinking.forced_close(self.engine.tokenizer, self._end_of_text(back), cue),
        ]

    def _end_of_text(self, back: int) -> str:
        """The last characters of the response `back` tokens before its end; "" where there is no text."""
        end = len(self.ids) - back
        # A probe asks after every paragraph, and the text of a long chain takes longer than the probe.
        return self.text(self.ids[max(0, end - LAST_TOKENS) : end]) or self.text(self.ids[:end])

    def end(self) -> None:
        """Declare the response complete: what the method wrote last ends it."""
        if not self._response.stopped:
            self._response.end()

    def take_back(self, tokens: int) -> None:
        """Remove the last tokens of the response; they stay in the cost, as thrown away."""
        if tokens and not self._response.stopped:
            self._live_text.take_back(tokens)
            self._ledger.take_back(tokens)
            self._response.take_back(tokens)

    # -- what is tried on the side

    async def probe(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        *,
        kind: Purpose = "probe",
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
        generation = await self._ask(engine, ids, sampling, **options)
        self._ledger.throw_away(len(generation.ids), kind)
        return generation

    async def probe_paths(
        self, ids: Sequence[int], paths: Sequence[Sequence[int]], *, top_logprobs: int
    ) -> list[Generation]:
        """Ask on the side what may follow each of several short continuations of `ids`; see `Engine.next_tokens`.

        What the context has no room for is empty, as with `probe`.
        """
        room = self.engine.context_length - len(ids)
        asked = [path for path in paths if len(path) < room]
        try:
            found = await self.engine.next_tokens(ids, asked, top_logprobs=top_logprobs) if asked else []
        except EngineError as failure:
            self._ledger.count_failed(failure.usage)
            raise
        for generation in found:
            self._ledger.count(generation.usage)
            self._ledger.throw_away(len(generation.ids), "probe")
        answers = iter(found)
        return [
            next(answers) if len(path) < room else Generation([], "length", logprobs=[], top_logprobs=[])
            for path in paths
        ]

    def fork(self, index: int, at: int | None = None, *, cancellable: bool = False) -> "Draft":
        """A second response that begins like this one and goes its own way; its cost is part of this draft's.

        Fork 0 draws the random numbers that this draft would have drawn, every other index has its own stream, also
        among the forks of forks.
        What a fork writes counts as branch tokens, unless it is adopted.

        Args:
            index: which of several forks it is.
            at: how many tokens of this response it begins with; all of them unless given.
            cancellable: follow its tokens as they come, so that what a cancelled task had written is still counted.
        """
        way = (*self._way, index)
        sampling = replace(self.sampling, seed=fork_seed(self._first_seed, way))
        child = Draft(
            self.engine,
            self.problem,
            sampling,
            self.method,
            self.control,
            prompt=self.prompt,
            stops=self.stops,
            logprobs=self.logprobs,
        )
        child._response = self._response.beginning(at)
        child._ledger = self._ledger.fork(child._response)
        child._cancellable = cancellable
        child._first_seed, child._way = self._first_seed, way
        return child

    def adopt(self, fork: "Draft") -> None:
        """Take over what a fork has written: it becomes the response.

        What this draft has written since the fork left it counts as branch tokens.
        """
        replaced = self._ledger.adopt(fork._ledger)
        self._live_text.take_back(replaced)
        self._live_text.show(fork.ids[fork._ledger.inherited :])
        self._response.become(fork._response)
        self.events.extend(fork.events)

    # -- what is said of it

    def withhold(self) -> None:
        """Show nothing before the response is complete, because an earlier part of it may yet become its end."""
        self._live_text.hold_all_back()

    def show_rest(self) -> None:
        """Show what has been held back: the response is complete."""
        self._live_text.show_rest()

    def note(self, kind: str, *, back: int = 0, **detail: Any) -> None:
        """Record an event at the current place of the response, or `back` tokens before it."""
        self.events.append(Event(at=len(self.ids) - back, kind=kind, detail=detail))

    def cost(self) -> Cost:
        """What the response has cost so far, whether it is complete or not."""
        return self._ledger.cost()

    def trace(self) -> Trace:
        """The finished response as an ungraded trace."""
        split = self._response.split
        return Trace(
            problem_id=self.problem.id,
            source=self.problem.source,
            prompt=self.problem.prompt,
            system=self.problem.system,
            history=list(self.problem.history),
            gold=self.problem.answer,
            method=self.method,
            seed=self.sampling.seed,
            prompt_ids=self.prompt.ids,
            response_ids=self.ids,
            thinking_span=self.tracker.span,
            thinking=split.thinking,
            answer=split.answer,
            stop=self._response.stop_reason,
            finished=self.finished,
            stopped_by=self._response.stopped_by,
            events=self.events,
            cost=self.cost(),
            logprobs=self._rounded_logprobs() if self.logprobs else None,
        )

    def _rounded_logprobs(self) -> list[float | None]:
        # Adding 0.0 turns -0.0 into 0.0, which is one character shorter.
        return [None if each is None else round(each, LOGPROB_DECIMALS) + 0.0 for each in self._response.logprobs]
