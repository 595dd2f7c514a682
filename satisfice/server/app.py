"""Chat completions over HTTP: from a request to `method.solve`, and from what that writes to a response.

Each request is a `Job`: a task that waits for its turn, solves the problem and leaves pieces of text, and at last
traces or a refusal, for whoever sends the response. Client, clock and shutdown all end it in the same way, by
cancelling the task, which takes its rows out of the engine's batch with the next step.
"""

import asyncio
import functools
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from satisfice.engines.base import Engine, EngineError, EngineFailed
from satisfice.intervention import Method, MethodError
from satisfice.intervention.composed import Composed
from satisfice.intervention.method import together
from satisfice.intervention.methods.plain import Plain
from satisfice.intervention.stops import NO_STOPS, StopFilter
from satisfice.problems.problem import Problem
from satisfice.server.meter import Meter, MeteredEngine
from satisfice.server.metrics import Metrics
from satisfice.server.protocol import (
    SEED_BITS,
    ChatRequest,
    Refusal,
    choice_facts,
    choice_seed,
    discreet,
    finish_reason,
    one_line,
    quoted,
    usage,
)
from satisfice.server.watch import Watch, WatchSettings
from satisfice.server.wishes import method_of
from satisfice.thinking import Phase, StreamSplitter
from satisfice.trace import Trace

log = logging.getLogger("satisfice.server")

KEEP_ALIVE = 15.0
"""Seconds without a piece of text after which a stream sends a comment, so that nobody in between gives it up."""
BODY_SECONDS = 30.0
"""Seconds that a client may take to send its request."""
CHARACTERS_A_TOKEN = 16
"""A conversation with more characters for each token of the context is refused before it is cut into tokens."""
LOGGED = 200
"""Characters of what a client wrote that a log line holds at most."""
LONG = 20_000
"""Characters from which on a conversation is cut into tokens in a thread, so that nobody else waits for it."""
PATHS = "there are POST /v1/chat/completions, GET /v1/models, /health, /metrics and /openapi.json"
NAMES = {"content": ("content",), "reasoning_content": ("reasoning_content", "reasoning")}
"""The parts of a message; thinking has two names, of which each client reads one."""
RETRY_AFTER = 1
"""Seconds; what a client that finds the queue full is told to wait."""


@dataclass(frozen=True)
class Settings:
    """What an operator decides.

    Attributes:
        model: the name that clients ask for.
        method: for requests that name none.
        efforts: methods by `reasoning_effort`.
        api_keys: any of them lets a client in; none lets everybody in.
        max_concurrency: requests that are answered at once.
        max_queue: requests that may wait besides.
        max_tokens: tokens of one response at most.
        max_breadth: sequences of one request at once at most: its responses, times those of its method.
        max_request_tokens: tokens that one request may have generated in all, those that are thrown away included; by
            default as many as `max_breadth` responses of `max_tokens` have.
        max_body: bytes of a request.
        timeout: seconds for one request, waiting included.
        watch: how requests are shadowed by the baseline; None shadows none.
    """

    model: str
    method: Method = field(default_factory=Plain)
    efforts: Mapping[str, Method] = field(default_factory=dict)
    api_keys: tuple[str, ...] = ()
    max_concurrency: int = 64
    max_queue: int = 256
    max_tokens: int = 4096
    max_breadth: int = 256
    max_body: int = 1 << 20
    timeout: float = 600.0
    max_request_tokens: int | None = None
    watch: WatchSettings | None = None

    @property
    def request_tokens(self) -> int:
        """`max_request_tokens`, or what stands for it."""
        return self.max_request_tokens or self.max_breadth * self.max_tokens


class Piece(NamedTuple):
    """Text of one choice that is certain; `part` is where a delta holds it."""

    choice: int
    part: str
    text: str


class Job:
    """One request on its way: what is asked, and what has been written so far.

    Attributes:
        id: as the response gives it.
        traces: one a choice, once all are there.
        refusal: what to answer instead, where something went wrong.
    """

    def __init__(
        self, server: "ChatServer", chat: ChatRequest, problem: Problem, method: Method, sampling: dict[str, Any]
    ) -> None:
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.chat = chat
        self.stops = chat.stops
        self.choices = chat.n or 1
        self.traces: list[Trace] = []
        self.refusal: Refusal | None = None
        self._server, self._problem, self._method = server, problem, method
        self._shadowed = server.watch is not None and server.watch.draws(method)
        # Below 2^53, so that JavaScript's clients can send it again.
        seed = secrets.randbits(SEED_BITS) if chat.seed is None else chat.seed
        self._engine = MeteredEngine(server.engine, Meter(server.settings.request_tokens))
        self._sampling = replace(server.engine.default_sampling, **sampling, seed=seed)
        self._pieces: list[Piece] = []
        self._waiter: asyncio.Future[None] | None = None  # of `wait`
        self._patient_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._started = time.perf_counter()
        self._seen_text = False
        self._begun = False
        self._stopped_by = ""
        self.task = asyncio.create_task(self._run())

    @property
    def news(self) -> bool:
        """Whether there is a piece to take, or the end."""
        return bool(self._pieces) or self.done

    @property
    def done(self) -> bool:
        """Whether there are traces or a refusal."""
        return bool(self.traces) or self.refusal is not None

    def stop(self, cause: str) -> None:
        """End it early: "disconnect" or "shutdown"."""
        if not self.done and not self._stopped_by:
            self._stopped_by = cause
            if self._begun:  # a task that is cancelled before it begins never gets to its end either
                self.task.cancel()

    def take(self) -> list[Piece]:
        """What has come since the last call, neighbours of one choice and part as one piece."""
        pieces, self._pieces = self._pieces, []
        if len(pieces) < 2:
            return pieces
        neighbours = groupby(pieces, key=itemgetter(0, 1))
        return [Piece(choice, part, "".join(piece.text for piece in run)) for (choice, part), run in neighbours]

    async def wait(self) -> None:
        """Wait for a piece or for the end, at most `KEEP_ALIVE` seconds."""
        if self.news:
            return
        loop = asyncio.get_running_loop()
        self._waiter, self._patient_until = loop.create_future(), loop.time() + KEEP_ALIVE
        if self._timer is None:
            self._timer = loop.call_at(self._patient_until, self._out_of_patience)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _out_of_patience(self) -> None:
        """Wake whoever has waited for long enough.

        One timer serves all waits, and is set again where it was early: one for each chunk costs as much as the chunk.
        """
        self._timer = None
        if self._waiter is None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._patient_until:
            self._timer = loop.call_at(self._patient_until, self._out_of_patience)
        else:
            self._wake()

    async def _run(self) -> None:
        server = self._server
        outcome, self._begun = "ok", True
        try:
            if self._stopped_by:
                raise asyncio.CancelledError
            async with asyncio.timeout(server.settings.timeout), server.turn:
                server.running += 1
                try:
                    if _is_long(self._problem):
                        await server.tokenise(self._problem)  # what a queue has made the engine forget
                    self.traces = await together(*(self._solve(index) for index in range(self.choices)))
                    if self._shadowed and server.watch is not None:
                        server.watch.offer(self._problem, self._sampling, self.stops, self.traces[0])
                finally:
                    server.running -= 1
        except asyncio.CancelledError:
            outcome = self._stopped_by or "shutdown"
            self.refusal = Refusal(
                503, "the server is shutting down", kind="server_error", code="shutting_down", retry_after=RETRY_AFTER
            )
        except TimeoutError:
            outcome = "timeout"
            message = f"not finished within {server.settings.timeout:g} s, the limit of this server; lower max_tokens"
            self.refusal = Refusal(504, message, kind="server_error", code="timeout")
        except EngineFailed as error:
            outcome = "failed"
            log.error("%s engine failed: %s", self.id, error)
            self.refusal = Refusal(500, "the engine failed; try again", kind="server_error", code="engine_failed")
        except (EngineError, MethodError) as error:
            outcome = "refused"
            self.refusal = Refusal(400, discreet(str(error), self.chat.model_dump()))
        except Exception:
            outcome = "failed"
            log.exception("%s failed", self.id)
            self.refusal = Refusal(500, "the server failed on this request", kind="server_error")
        finally:
            server.jobs.discard(self)
            if self._shadowed and outcome != "ok" and server.watch is not None:
                server.watch.unanswered(shutdown=outcome == "shutdown")
            self._record(outcome)
            if self._timer is not None:
                self._timer.cancel()
            self._wake()

    async def _solve(self, choice: int) -> Trace:
        engine = self._engine
        sampling = replace(self._sampling, seed=choice_seed(self._sampling.seed, choice))
        if not self.chat.stream:
            return await self._method.solve(engine, self._problem, sampling, stops=self.stops)
        # Stops act on what the client reads: on its content, or on the whole text before it is divided.
        in_thinking = self.stops.in_thinking
        whole, content = StopFilter(self.stops if in_thinking else NO_STOPS), StopFilter(self.stops)
        splitter: StreamSplitter | None = None
        begun: set[str] = set()

        def pass_on(pieces: list[tuple[Phase, str]]) -> None:
            for phase, text in pieces:
                part = "reasoning_content" if phase is Phase.THINKING else "content"
                text = text if part in begun else said(text)
                if text:
                    begun.add(part)
                    show(part, content.push(text) if part == "content" and not in_thinking else text)

        def show(part: str, text: str) -> None:
            if text and (part == "content" or self.chat.shows_thinking):
                self._add(Piece(choice, part, text))

        def watch(phase: Phase, text: str) -> None:
            nonlocal splitter
            if splitter is None:
                begun_at = self._server.states.get(phase)
                splitter = StreamSplitter(engine.thinking, engine.tokenizer, phase, begun_at)
            pass_on(splitter.push(whole.push(text)))

        trace = await self._method.solve(engine, self._problem, sampling, watch=watch, stops=self.stops)
        if splitter is not None:
            pass_on([*splitter.push(whole.rest()), *splitter.rest()])
            show("content", content.rest())
        return trace

    def _add(self, piece: Piece) -> None:
        if not self._seen_text:
            self._seen_text = True
            self._server.metrics.first_text(names_of(self._method), time.perf_counter() - self._started)
        self._pieces.append(piece)
        self._wake()

    def _record(self, outcome: str) -> None:
        seconds = time.perf_counter() - self._started
        name, metrics = names_of(self._method), self._server.metrics
        metrics.count(name, outcome)
        if outcome == "ok":
            metrics.answered(name, self.traces, seconds)
        thinking = sum(trace.cost.thinking_tokens for trace in self.traces)
        total = sum(trace.cost.total_tokens for trace in self.traces)
        spent = f" {thinking} thinking of {total} tokens" if self.traces else ""
        why = f" ({one_line(self.refusal.message)})" if outcome in ("refused", "timeout") and self.refusal else ""
        method = one_line(str(self._method))[:LOGGED]
        log.info("%s %s %s%s %.2f s%s", self.id, outcome, method, spent, seconds, why)


def names_of(method: Method) -> str:
    """A method's name without its parameters, of which there are too many for a label."""
    return f"{method.strategy.name}+{method.bending.name}" if isinstance(method, Composed) else method.name


def said(text: str) -> str:
    """A part of a response without the white space before it, which belongs to the markers."""
    return text.lstrip()


class JobStream(StreamingResponse):
    """The response of a job as server-sent events; it ends the job when the client goes, whenever that is."""

    def __init__(self, job: Job, events: AsyncIterator[str]) -> None:
        headers = {"x-request-id": job.id, "cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._job = job

    async def __call__(self, *connection: Any) -> None:  # noqa: D102
        try:
            await super().__call__(*connection)
        finally:
            self._job.stop("disconnect")


class ChatServer:
    """The endpoints, and the requests that are under way.

    Args:
        engine: where tokens come from.
        settings: what the operator decides.

    Raises:
        EngineError: the engine cannot serve a method of the settings.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        for method in (settings.method, *settings.efforts.values()):
            method.check(engine)
        self.engine, self.settings = engine, settings
        self.jobs: set[Job] = set()
        self.running = 0
        self.turn = asyncio.Semaphore(settings.max_concurrency)
        self.draining = False
        self._entering = 0
        self.metrics = Metrics(lambda: self.running, lambda: self.waiting)
        self.watch = None if settings.watch is None else Watch(self, settings.watch)
        if self.watch is not None:
            self.metrics.watch(self.watch)
        self._created = int(time.time())

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self.jobs) - self.running

    def app(self) -> FastAPI:
        """The ASGI application."""
        # The pages that FastAPI would add load scripts from elsewhere.
        app = FastAPI(title="satisfice", docs_url=None, redoc_url=None)
        body = {"required": True, "content": {"application/json": {"schema": ChatRequest.model_json_schema()}}}
        app.add_api_route(
            "/v1/chat/completions",
            self.chat,
            methods=["POST"],
            response_model=None,
            openapi_extra={"requestBody": body},
        )
        app.add_api_route("/v1/models", self.models, methods=["GET"], response_model=None)
        app.add_api_route("/v1/models/{name:path}", self.model, methods=["GET"], response_model=None)
        app.add_api_route("/health", self.health, methods=["GET"], response_model=None)
        app.add_api_route("/metrics", self.metrics_text, methods=["GET"], response_model=None)
        app.add_exception_handler(Refusal, self._refused)
        app.add_exception_handler(HTTPException, self._not_found)
        app.add_exception_handler(Exception, self._failed)
        return app

    def stop(self, cause: str) -> None:
        """End every request that is under way."""
        for job in list(self.jobs):
            job.stop(cause)
        if self.watch is not None:
            self.watch.close()

    # -- endpoints

    async def health(self) -> Response:
        """200 while requests are taken; 503 while the last ones are finished."""
        status = "draining" if self.draining else "ok"
        watched = {} if self.watch is None else {"watch": self.watch.report()}
        return JSONResponse({"status": status, "requests": len(self.jobs), **watched}, 503 if self.draining else 200)

    async def metrics_text(self) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        """The one model there is."""
        self._authorise(request)
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request, name: str) -> Response:
        """The same by name."""
        self._authorise(request)
        self._require_model(name)
        return JSONResponse(self._described())

    async def chat(self, request: Request) -> Response:
        """One chat completion, as a whole or as a stream."""
        self._authorise(request)
        if self.draining:
            raise Refusal(
                503, "the server is shutting down", kind="server_error", code="shutting_down", retry_after=RETRY_AFTER
            )
        chat = ChatRequest.read(await self._body(request))
        try:
            job = await self._job(chat)
        except Refusal as refusal:
            refusal.message = discreet(refusal.message, chat.model_dump())
            raise
        await self._begin(job, request)
        if job.refusal is not None:
            return _error(job.refusal)
        if chat.stream:
            return JobStream(job, self._events(job))
        return JSONResponse(_completion(job, self._about(job)), headers={"x-request-id": job.id})

    # -- from a request to a job

    def _authorise(self, request: Request) -> None:
        keys = self.settings.api_keys
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
        if keys and not (scheme.lower() == "bearer" and any(known)):
            message = "a valid API key is needed, as the header 'Authorization: Bearer KEY'"
            raise Refusal(401, message, code="invalid_api_key")

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # A web page can send any other type to a server on its reader's machine without being asked.
            raise Refusal(400, f"the content type is {quoted(kind)}; it must be application/json")
        most = self.settings.max_body
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise Refusal(413, f"the body is longer than {most} bytes, the limit of this server")
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
        except ClientDisconnect:
            raise Refusal(400, "the client went before its request was complete") from None
        return bytes(body)

    async def _job(self, chat: ChatRequest) -> Job:
        """The job of a request that can be served, as far as that can be known before.

        Raises:
            Refusal: it cannot.
        """
        self._require_model(chat.model)
        method = method_of(chat, self.settings.method, self.settings.efforts, self.engine, standing=self._standing)
        breadth = (chat.n or 1) * method.breadth
        if breadth > self.settings.max_breadth:
            raise Refusal(
                400,
                f"{names_of(method)} with n={chat.n or 1} may write {breadth} sequences at once; this server allows "
                f"{self.settings.max_breadth} (--max-breadth)",
                param="n" if method.breadth == 1 else "method",
            )
        problem = chat.problem()
        sampling = chat.sampling(self.engine.default_sampling, self.settings.max_tokens)
        each, most = sampling["max_tokens"], self.settings.request_tokens
        if breadth * each > most:
            raise Refusal(
                400,
                f"{names_of(method)} with n={chat.n or 1} may write {breadth} responses of {each} tokens each, "
                f"{breadth * each} in all; this server allows {most} a request (--max-request-tokens)",
                param="max_tokens",
            )
        under_way = len(self.jobs) + self._entering
        if under_way >= self.settings.max_concurrency + self.settings.max_queue:
            raise Refusal(
                429,
                f"{under_way} requests are under way, as many as this server takes; try again",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after=RETRY_AFTER,
            )
        self._entering += 1
        try:
            await self._require_room(problem)
            job = Job(self, chat, problem, method, sampling)
            self.jobs.add(job)
        finally:
            self._entering -= 1
        return job

    def _require_model(self, name: str) -> None:
        if name != self.settings.model:
            message = f"there is no model {quoted(name)}; this server has {self.settings.model!r}"
            raise Refusal(404, message, param="model", code="model_not_found")

    def _standing(self, method: Method) -> Method:
        """A method that the operator chose, or what stands in for it since an alarm."""
        return method if self.watch is None else self.watch.stands_in(method)

    @functools.cached_property
    def states(self) -> dict[Phase, int]:
        """The marker automaton's state where a response begins, by its phase: prompts end alike, whatever they say."""
        thinking, tokenizer = self.engine.thinking, self.engine.tokenizer
        found = [thinking.render(tokenizer, [{"role": "user", "content": "?"}], on).state for on in (False, True)]
        return {thinking.automaton(tokenizer).phase(state): state for state in found}

    async def tokenise(self, problem: Problem) -> int:
        """Cut a conversation into tokens and return their number.

        A long one is cut in a thread, with thinking on and off; whoever needs it next finds it (`render` remembers).
        """
        thinking, tokenizer, messages = self.engine.thinking, self.engine.tokenizer, problem.messages()
        if not _is_long(problem):
            return len(thinking.render(tokenizer, messages).ids)
        await asyncio.to_thread(thinking.render, tokenizer, messages, False)
        return len((await asyncio.to_thread(thinking.render, tokenizer, messages)).ids)

    async def _require_room(self, problem: Problem) -> None:
        """Refuse a conversation that leaves no room for a response."""
        room = self.engine.context_length
        messages = problem.messages()
        characters = sum(len(message["content"]) for message in messages)
        if characters > CHARACTERS_A_TOKEN * room or len(messages) > room:
            raise _too_long(f"{len(messages)} messages of {characters} characters", room)
        try:
            tokens = await self.tokenise(problem)
        except Exception as error:  # a template refuses a conversation in ways of its own
            message = f"the model's chat template refuses this conversation: {one_line(str(error))}"
            raise Refusal(400, message, param="messages") from None
        if tokens >= room:
            raise _too_long(f"{tokens} tokens", room)

    # -- from a job to a response

    async def _begin(self, job: Job, request: Request) -> None:
        """Wait for the first text of a stream, or for a whole response; the job ends where the client goes."""
        gone = asyncio.create_task(_stop_when_gone(job, request))
        try:
            if job.chat.stream:
                await job.wait()
            else:
                await asyncio.wait([job.task])
        except asyncio.CancelledError:
            job.stop("disconnect")
            raise
        finally:
            gone.cancel()

    async def _events(self, job: Job) -> AsyncIterator[str]:
        """A stream of chunks as OpenAI sends them."""
        about = self._about(job) | {"object": "chat.completion.chunk"}
        with_usage = job.chat.stream_options is not None and job.chat.stream_options.include_usage
        if with_usage:
            about["usage"] = None
        head = json.dumps(about).removesuffix("}")  # the same in every chunk
        events = [_event(head, choice, {"role": "assistant", "content": ""}) for choice in range(job.choices)]
        while True:
            done = job.done
            events += [_text_event(head, piece) for piece in job.take()]
            if done:
                break
            # What is ready at once is sent at once, and nothing waits for what may come.
            yield "".join(events)
            await job.wait()
            events = [] if job.news else [": still here\n\n"]
        if job.refusal is not None:
            yield f"{''.join(events)}data: {json.dumps(job.refusal.body())}\n\n"
            return
        events += [_event(head, choice, {}, _ending(job, trace)) for choice, trace in enumerate(job.traces)]
        if with_usage:
            events.append(f"data: {json.dumps(about | {'choices': [], 'usage': usage(job.traces)})}\n\n")
        yield "".join([*events, "data: [DONE]\n\n"])

    def _about(self, job: Job) -> dict[str, Any]:
        return {
            "id": job.id,
            "object": "chat.completion",
            "created": job.created,
            "model": self.settings.model,
            "system_fingerprint": f"fp_{self.engine.digest}" if self.engine.digest else None,
        }

    def _described(self) -> dict[str, Any]:
        return {
            "id": self.settings.model,
            "object": "model",
            "created": self._created,
            "owned_by": "satisfice",
            "max_model_len": self.engine.context_length,
        }

    # -- refusals that never became a job

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        self.metrics.refused(error.status)
        log.info("%d %s %s: %s", error.status, request.method, _path(request), one_line(error.message)[:LOGGED])
        return _error(error)

    async def _not_found(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code in (404, 405):
            message = f"there is no {request.method} {_path(request)}; {PATHS}"
        return await self._refused(request, Refusal(error.status_code, message))

    async def _failed(self, request: Request, _: Exception) -> Response:
        """What nobody has thought of; uvicorn logs where it happened."""
        return await self._refused(request, Refusal(500, "the server failed on this request", kind="server_error"))


def _completion(job: Job, about: dict[str, Any]) -> dict[str, Any]:
    """A whole response."""
    choices = []
    for choice, trace in enumerate(job.traces):
        message = {"role": "assistant", "content": said(trace.answer)}
        if job.chat.shows_thinking:
            message |= _named("reasoning_content", said(trace.thinking))
        choices.append({"index": choice, "message": message, "logprobs": None, **_ending(job, trace)})
    return about | {"choices": choices, "usage": usage(job.traces)}


def _ending(job: Job, trace: Trace) -> dict[str, Any]:
    """How a choice ended, and what we say of it besides; `stop_reason` is the stop text, as vLLM names it."""
    stop = trace.stopped_by if trace.stopped_by in job.stops.texts else None
    return {"finish_reason": finish_reason(trace), "stop_reason": stop, "satisfice": choice_facts(trace)}


def _named(part: str, text: str) -> dict[str, str]:
    """A part of a message, by all of its names."""
    return dict.fromkeys(NAMES[part], text)


def _event(head: str, choice: int, delta: dict[str, str], ending: dict[str, Any] | None = None) -> str:
    """One chunk of a stream, of which `head` is the JSON that all of them begin with."""
    entry = {"index": choice, "delta": delta, "logprobs": None, **(ending or {"finish_reason": None})}
    return f'data: {head}, "choices": [{json.dumps(entry)}]}}\n\n'


def _text_event(head: str, piece: Piece) -> str:
    """`_event` of a piece of text: there is one for each token, so its JSON is put together by hand."""
    text = json.dumps(piece.text)
    delta = ", ".join(f'"{name}": {text}' for name in NAMES[piece.part])
    return (
        f'data: {head}, "choices": [{{"index": {piece.choice}, "delta": {{{delta}}}, '
        '"logprobs": null, "finish_reason": null}]}\n\n'
    )


def _too_long(length: str, room: int) -> Refusal:
    message = f"the conversation has {length}, and the model's context has {room} tokens in all: shorten it"
    return Refusal(400, message, param="messages", code="context_length_exceeded")


def _is_long(problem: Problem) -> bool:
    return sum(len(message["content"]) for message in problem.messages()) >= LONG


async def _stop_when_gone(job: Job, request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.stop("disconnect")


def _error(refusal: Refusal) -> Response:
    headers = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
    return JSONResponse(refusal.body(), refusal.status, headers)


def _path(request: Request) -> str:
    return one_line(request.url.path)[:LOGGED]
