"""What engines that compute in this process have in common: one thread owns the model, callers wait for it.

A request goes one way. A coroutine of the caller's event loop checks it and puts it into the inbox; the engine's
thread takes it out, computes, and settles the future that the coroutine waits for. Three things end it early: the
caller is cancelled, and the thread drops the request in its next turn; the engine fails, and everything that was
under way fails with it, while the engine goes on with what comes next; or the engine is closed.
"""

import asyncio
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from satisfice.engines.base import (
    Engine,
    EngineClosed,
    EngineError,
    EngineFailed,
    Generation,
    Sampling,
    Scores,
    Usage,
    check_prompt,
    in_this_loop,
)
from satisfice.engines.control_setting import Control
from satisfice.engines.stopping import End, StopWatch
from satisfice.thinking import token_bytes


@dataclass(eq=False, repr=False)
class Request:
    """One call of `generate` or `score` on its way through an engine.

    Attributes:
        ids: the prompt, and what was written after it.
        sampling: how to choose tokens.
        watch: says where the response ends; None where nothing is written.
        control, top_logprobs, entropy: as in `Engine.generate`.
        emit: called in the engine's thread with each new token.
        score_from: the first token whose log-probability is asked for; None where tokens are to be written.
        prompt_length: how many of `ids` are the prompt.
        usage, logprobs, entropies, tops: what is gathered for the result.
        result: what the caller waits for; only the engine's thread settles it.
        cancelled: whether nobody waits any more.
    """

    ids: list[int]
    sampling: Sampling
    watch: StopWatch | None = None
    control: Control | None = None
    top_logprobs: int = 0
    entropy: bool = False
    emit: Callable[[int], None] | None = None
    score_from: int | None = None
    prompt_length: int = 0
    usage: Usage = field(default_factory=Usage)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    tops: list[dict[int, float]] = field(default_factory=list)
    result: "Future[Generation | Scores | list[Generation]]" = field(default_factory=Future)
    cancelled: bool = False

    @property
    def scoring(self) -> bool:
        """Whether given tokens are looked at, and none is written."""
        return self.score_from is not None

    @property
    def wants_distribution(self) -> bool:
        """Whether anything of the model's own distribution is to be kept of the tokens that are written."""
        return self.entropy or self.top_logprobs > 0

    def finished(self) -> End | None:
        """How the response ends with its newest token, None where it goes on; once for each token."""
        assert self.watch is not None
        return self.watch.finished()

    def finish(self, end: End) -> None:
        """Answer it with what was written."""
        self.result.set_result(
            Generation(
                self.ids[self.prompt_length :],
                *end,
                self.logprobs if self.wants_distribution else None,
                self.tops if self.top_logprobs else None,
                self.entropies if self.entropy else None,
                self.usage,
            )
        )

    def finish_scores(self) -> None:
        """Answer it with the scores of its tokens."""
        self.result.set_result(Scores(self.logprobs, self.entropies, self.usage))

    def fail(self, failure: EngineFailed) -> None:
        """Answer it with a failure, and with what it has cost: a part of a response is no response."""
        if not self.result.done():  # the turn that failed may have finished it before
            self.result.set_exception(type(failure)(str(failure), self.usage))


AnyRequest = TypeVar("AnyRequest", bound=Request)


class ThreadedEngine(Engine, Generic[AnyRequest]):
    """An engine with a thread of its own, which takes requests in and computes turn by turn.

    Invariant: a request that was submitted is in the inbox, known to `_unanswered`, or settled; so whatever goes wrong,
    no caller waits forever. Methods from `_run` on run in the engine's thread.
    """

    _vocabulary: int

    def __init__(self) -> None:
        self._inbox: deque[AnyRequest] = deque()
        self._waiting: deque[AnyRequest] = deque()
        self._wake = threading.Condition()  # guards the inbox and `_closing`
        self._closing = False
        self._thread: threading.Thread | None = None
        self._token_bytes: list[bytes] | None = None

    # -- the contract: in the caller's event loop

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        control: Control | None = None,
        top_logprobs: int = 0,
        entropy: bool = False,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """See `Engine.generate`."""
        ids = list(prompt_ids)
        self._check(ids, len(ids) + sampling.max_tokens)
        if not 0 <= top_logprobs <= self._vocabulary:
            raise EngineError(f"top_logprobs is {top_logprobs}; it must be within 0..{self._vocabulary}")
        if sampling.stop and self._token_bytes is None:
            self._token_bytes = token_bytes(self.tokenizer)
        request = self._new_request(ids, sampling)
        request.watch = StopWatch(request.ids, sampling, self.end_ids, self._token_bytes or ())
        request.control, request.top_logprobs, request.entropy = control, top_logprobs, entropy
        request.prompt_length = len(ids)
        if on_token is not None:
            request.emit = in_this_loop(on_token)
        result = await self._submit(request)
        assert isinstance(result, Generation)
        return result

    async def score(self, ids: Sequence[int], start: int) -> Scores:
        """See `Engine.score`."""
        ids = list(ids)
        if not 1 <= start < len(ids):
            raise EngineError(f"score needs a start within 1..{len(ids) - 1} for {len(ids)} tokens, not {start}")
        self._check(ids, len(ids))
        result = await self._submit(self._new_scoring(ids, start))
        assert isinstance(result, Scores)
        return result

    def close(self) -> None:
        """Stop the thread; whatever is still under way raises `EngineClosed`."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    async def _submit(self, request: AnyRequest) -> "Generation | Scores | list[Generation]":
        request.result.set_running_or_notify_cancel()  # from here on only the engine's thread settles it
        with self._wake:
            self._start()
            self._inbox.append(request)
            self._wake.notify_all()
        try:
            return await asyncio.wrap_future(request.result)
        except asyncio.CancelledError:
            request.cancelled = True
            raise

    def _start(self) -> None:
        """See to it that the thread runs; called with `_wake` held.

        Raises:
            EngineClosed: the engine is closed.
        """
        if self._closing:
            raise EngineClosed(f"{self.name} is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"satisfice {self.name}", daemon=True)
            self._thread.start()

    def _check(self, ids: Sequence[int], room: int) -> None:
        """Refuse a prompt that cannot be served, or not with as many tokens after it as `room` takes."""
        check_prompt(self.name, ids, room, self.context_length, vocabulary=self._vocabulary)

    @abstractmethod
    def _new_request(self, ids: list[int], sampling: Sampling) -> AnyRequest:
        """A request to go on from `ids`."""

    @abstractmethod
    def _new_scoring(self, ids: list[int], start: int) -> AnyRequest:
        """A request for the log-probabilities of `ids[start:]`."""

    # -- the thread

    def _run(self) -> None:
        """`_live`; should it end before the engine is closed, nobody is left waiting, and the engine is closed."""
        try:
            self._live()
        finally:
            with self._wake:
                self._closing = True
                self._waiting.extend(self._inbox)
                self._inbox.clear()
                self._wake.notify_all()
            self._fail_all(EngineFailed(f"{self.name} failed: its thread has ended; load it again"))

    def _live(self) -> None:
        """The whole life of the thread."""
        self._take_turns()

    def _take_turns(self) -> None:
        """Take requests in and compute, until the engine is closed."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._inbox or self._has_work())
                self._gather()
                self._waiting.extend(self._inbox)
                self._inbox.clear()
                closing = self._closing
            if closing:
                self._fail_all(EngineClosed(f"{self.name} was closed before the response was complete"))
                return
            try:
                self._turn()
            except Exception as error:  # whatever went wrong, callers must not wait forever
                self._fail_all(EngineFailed(f"{self.name} failed: {type(error).__name__}: {error}"))
                self._reset()

    def _fail_all(self, failure: EngineFailed) -> None:
        """Answer everybody who waits with a failure."""
        for request in self._unanswered():
            request.fail(failure)

    def _gather(self) -> None:
        """Wait a moment for requests that are about to come; called with `_wake` held."""

    @abstractmethod
    def _has_work(self) -> bool:
        """Whether a turn has something to do besides what is in the inbox; called with `_wake` held."""

    @abstractmethod
    def _turn(self) -> None:
        """Drop what was cancelled, take in what is in `_waiting`, compute one step, and answer what is complete."""

    @abstractmethod
    def _unanswered(self) -> list[AnyRequest]:
        """Every request that was taken out of the inbox and not answered; one may stand there twice."""

    @abstractmethod
    def _reset(self) -> None:
        """Forget all that is under way, and what may have been spoilt by a failure."""
