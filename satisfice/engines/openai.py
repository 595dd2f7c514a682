"""Any server that speaks OpenAI's completions protocol: vLLM, llama.cpp's, SGLang, hosted ones.

A method goes on from unfinished responses, token by token, so what is needed is /v1/completions; chat completions
cannot be continued. What else a server can do is found out when the engine is loaded, with a few requests of one
token each, and what it cannot do is refused then, not in the middle of a run.

Answers are streamed. So a time limit bounds the silence and not the answer, a stop that the server does not know of
ends the request at once, and where a connection drops, the answer goes on behind the tokens that had come.
"""

import asyncio
import hashlib
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from satisfice.engines.base import (
    Capability,
    Engine,
    EngineError,
    EngineFailed,
    Generation,
    Sampling,
    Scores,
    Usage,
    check_prompt,
    in_this_loop,
)
from satisfice.engines.checkpoint import Checkpoint
from satisfice.engines.control import Control, encode_control
from satisfice.engines.openai_dialects import DIALECTS, Dialect, Piece
from satisfice.engines.stopping import StopWatch
from satisfice.thinking import ThinkingFormat, decode, token_bytes

try:
    import openai
except ImportError:
    raise EngineError("the openai engine needs the client of that name: pip install 'satisfice[openai]'") from None

MOST_LOGPROBS = 20
"""Most likely tokens that a server must report for it to offer log-probabilities at all: what our methods ask for."""
RETRIED = (408, 409, 429, 500)
"""Statuses that the client tries again, besides those above 501."""
DEFAULT_KEY = "OPENAI_API_KEY"
"""The environment variable that the official client reads."""
CONTROL_KEY = "satisfice_control"
"""Under `vllm_xargs`: a control for the plugin that satisfice brings to vLLM."""
CACHE_PROBE = 512
"""Tokens of the prompt that is sent twice; servers keep prompts in blocks of up to 128."""

Result = TypeVar("Result")


class RefusedError(EngineError):
    """The server will not serve a request, now or later; `status` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class DroppedError(Exception):
    """A stream ended before the answer did."""


class OpenAIEngine(Engine):
    """A model behind a server.

    Made by `load`. Requests may come from any event loop; one thread holds the connections.

    Args:
        model: its name at the server.
        checkpoint: its tokenizer and what else its directory says.
        thinking: how it marks thinking.
        connection: to the server; closed with the engine.
        offer: what the server was found to take and to give.
    """

    def __init__(
        self, model: str, checkpoint: Checkpoint, thinking: ThinkingFormat, connection: "Connection", offer: "Offer"
    ) -> None:
        context_length = offer.context_length or checkpoint.context_length
        if context_length is None:
            raise EngineError(
                f"neither {connection.url} nor the tokenizer's directory says how many tokens {model} can hold: "
                "give as tokenizer a directory that has a config.json too"
            )
        self.name = f"openai:{model}"
        self.model = model
        self.tokenizer = checkpoint.tokenizer
        self.thinking = thinking
        self.end_ids = checkpoint.end_ids
        self.context_length = context_length
        self.default_sampling = checkpoint.default_sampling
        self.levels = checkpoint.levels
        self.capabilities = frozenset(Capability) - set(offer.lacking)
        self.lacking = offer.lacking
        self.offer = offer
        self.device = f"{offer.dialect.name} server at {connection.url}"
        self._connection = connection
        self._token_bytes = token_bytes(self.tokenizer)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        base_url: str,
        tokenizer: str | None = None,
        thinking: ThinkingFormat | None = None,
        api_key_env: str = DEFAULT_KEY,
        max_batch: int = 64,
        requests_per_minute: float | None = None,
        timeout: float = 600.0,
        max_retries: int = 6,
    ) -> "OpenAIEngine":
        """The engine for a model at a server, which is asked what it can do.

        Args:
            model: its name at the server.
            base_url: of the protocol, as http://127.0.0.1:8000/v1.
            tokenizer: directory or Hub id of the model's tokenizer; by default the model's name.
            thinking: how the model marks thinking, where it cannot be detected.
            api_key_env: the environment variable that holds the key, for servers that ask for one.
            max_batch: requests under way at once at most.
            requests_per_minute: requests begun in a minute at most; None leaves it to the server to say "too many".
            timeout: seconds without a byte from the server after which a request is given up and tried again.
            max_retries: of one request, with exponential backoff, jitter and what the server asks for in Retry-After;
                also how often one answer is taken up again after its connection dropped.

        Raises:
            EngineError: the server cannot be reached or does not serve this model, or the tokenizer is not the model's.
        """
        api_key = os.environ.get(api_key_env)
        if not api_key and api_key_env != DEFAULT_KEY:
            raise EngineError(f"the environment variable {api_key_env}, which is to hold the server's key, is not set")
        try:
            checkpoint = Checkpoint.read(tokenizer or model)
        except EngineError as error:
            hint = "" if tokenizer else "; name the directory or Hub id of its tokenizer with --tokenizer"
            raise EngineError(f"{error}{hint}") from error
        thinking = thinking or ThinkingFormat.detect(checkpoint.tokenizer, tokenizer or model)
        connection = Connection(base_url, api_key or "none", max_batch, requests_per_minute, timeout, max_retries)
        try:
            offer = connection.submit(_probe(connection, model, checkpoint, thinking)).result()
            return cls(model, checkpoint, thinking, connection, offer)
        except BaseException:
            connection.close()
            raise

    # -- the contract

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
        """See `Engine.generate`.

        The random numbers are the server's. It is sent a seed that is a hash of the sampling's and of the length of
        the prompt: the same request draws the same again as far as the server keeps to seeds, but a sequence that was
        stopped and resumed does not go on as it would have.
        """
        for asked, capability in (
            (control is not None, Capability.CONTROL),
            (top_logprobs > 0, Capability.LOGPROBS),
            (entropy, Capability.ENTROPY),
        ):
            if asked and capability not in self.capabilities:
                raise EngineError(f"{self.name} does not offer {capability}: {self.lacking[capability]}")
        if top_logprobs > MOST_LOGPROBS:
            raise EngineError(f"top_logprobs is {top_logprobs}; {self.name} was asked for {MOST_LOGPROBS} at most")
        check_prompt(self.name, prompt_ids, len(prompt_ids) + sampling.max_tokens, self.context_length)
        emit = None if on_token is None else in_this_loop(on_token)
        answer = Answer(self, list(prompt_ids), sampling, control, top_logprobs, emit)
        future = self._connection.submit(answer.fetch())
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._connection.closed:  # nobody cancelled the caller
                raise EngineFailed(f"the connection to {self._connection.url} is closed") from None
            raise

    async def score(self, ids: Sequence[int], start: int) -> Scores:
        """Not offered.

        Raises:
            EngineError: always.
        """
        raise EngineError(f"{self.name} does not offer {Capability.SCORE}: {self.lacking[Capability.SCORE]}")

    def close(self) -> None:
        """Give up what is under way and close the connections."""
        self._connection.close()


@dataclass
class Answer:
    """One call of `generate` on its way, in the connection's thread.

    Attributes:
        engine: who was asked.
        ids: prompt and answer so far.
        sampling: how tokens are chosen, and what ends the answer.
        control: travels with the request.
        top_logprobs: most likely tokens to report at each step.
        emit: called with each new token.
    """

    engine: OpenAIEngine
    ids: list[int]
    sampling: Sampling
    control: Control | None
    top_logprobs: int
    emit: Callable[[int], None] | None
    usage: Usage = field(default_factory=Usage)
    logprobs: list[float] = field(default_factory=list)
    tops: list[dict[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._prompt_length = len(self.ids)
        self._offer = self.engine.offer
        # Where the server ends with the token that completes a stop, nothing is written behind it.
        watched = replace(self.sampling, lookahead=()) if self._offer.finds_stops else self.sampling
        self._watch = StopWatch(self.ids, watched, self.engine.end_ids, self.engine._token_bytes)
        self._ended: tuple[str, str | int | None, int] | None = None

    async def fetch(self) -> Generation:
        """Ask, and go on where a connection drops."""
        drops = 0
        while self._ended is None:
            try:
                await self._stream()
            except DroppedError as error:
                drops += 1
                if drops > self.engine._connection.max_retries:
                    raise EngineFailed(
                        f"{self.engine._connection.url} dropped one answer {drops} times ({error})"
                    ) from error
        finish, stopped_by, stop_tokens = self._ended
        new = self.ids[self._prompt_length :]
        self.usage.forward_passes = len(new)
        return Generation(
            new,
            finish,
            stopped_by,
            stop_tokens,
            self.logprobs if self.top_logprobs else None,
            self.tops if self.top_logprobs else None,
            None,
            self.usage,
        )

    async def _stream(self) -> None:
        """Take in one stream up to the end of the answer.

        Raises:
            DroppedError: it ended before.
        """
        asked, last = len(self.ids), Piece()
        prompt_tokens, cached_tokens = asked, 0
        try:
            async with aclosing(self.engine._connection.messages(self._body())) as messages:
                async for message in messages:
                    piece = _read(message, self._offer.dialect, self.engine)
                    prompt_tokens = prompt_tokens if piece.prompt_tokens is None else piece.prompt_tokens
                    cached_tokens = cached_tokens if piece.cached_tokens is None else piece.cached_tokens
                    last = last if piece.finish is None else piece
                    self._take(piece)
                    # What a server ends by itself is read to its end, where it says what the prompt cost.
                    if self._ended and not self._offer.finds_stops and self._ended[0] == "stop":
                        break
        finally:
            self.usage.cached += cached_tokens
            self.usage.prefilled += prompt_tokens - cached_tokens
        if self._ended is None:
            self._end(last.finish, last.stopped_by)

    def _take(self, piece: Piece) -> None:
        """Append the tokens of a piece; those behind the end are paid for and thrown away."""
        self.usage.generated += len(piece.ids)
        if self.top_logprobs and len(piece.logprobs) != len(piece.ids):
            raise EngineError(
                f"{self.engine.name} does not report the log-probability of every token in the character "
                f"{decode(self.engine.tokenizer, piece.ids)!r}"
            )
        for place, token in enumerate(piece.ids):
            if self._ended:
                return
            self._append(token)
            if self.top_logprobs:
                self.logprobs.append(piece.logprobs[place])
                likeliest = sorted(piece.tops[place].items(), key=lambda top: (-top[1], top[0]))
                self.tops.append(dict(likeliest[: self.top_logprobs]))

    def _append(self, token: int) -> None:
        self.ids.append(token)
        if self.emit is not None:
            self.emit(token)
        self._ended = self._watch.finished()

    def _end(self, finish: str | None, stopped_by: str | int | None) -> None:
        """The end of an answer where the server alone knows why."""
        if finish is None:
            raise DroppedError("the stream ended without a finish reason")
        if finish == "stop" and not self._offer.dialect.gives_ids:
            # The token that ended it has no text and was not sent.
            self._append(self.engine.tokenizer.eos_token_id or min(self.engine.end_ids))
            self._ended = ("stop", self.ids[-1], 1)
        elif finish == "stop" and isinstance(stopped_by, str):
            self._ended = ("stop", stopped_by, self._tokens_holding(stopped_by))
        elif finish == "stop" and len(self.ids) > self._prompt_length:
            self._ended = ("stop", self.ids[-1], 1)
        elif finish == "length":
            self._ended = ("length", None, 0)
        else:
            raise EngineError(f"{self.engine.name} gave an answer up, with {finish!r} for a reason")

    def _tokens_holding(self, stop: str) -> int:
        """How many of the last tokens hold a stop that the server found in a text of its own making."""
        new = self.ids[self._prompt_length :]
        counts = range(1, len(new) + 1)
        return next((n for n in counts if stop in decode(self.engine.tokenizer, new[-n:])), len(new))

    def _body(self) -> dict[str, Any]:
        written = len(self.ids) - self._prompt_length
        left = replace(self.sampling, max_tokens=self.sampling.max_tokens - written)
        body = {
            "model": self.engine.model,
            "prompt": self._offer.prompt(self.ids, self.engine),
            "max_tokens": left.max_tokens,
            "temperature": left.temperature,
            "top_p": left.top_p,
            "seed": _seed(left.seed, len(self.ids)),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._offer.dialect.extras(left, self.top_logprobs, self.engine.end_ids),
        }
        if not self._offer.finds_stops:
            body.pop("stop", None)
        if self.control is not None:
            body["vllm_xargs"] = {CONTROL_KEY: encode_control(self.control)}
        return body


def _seed(seed: int, position: int) -> int:
    """31 bits, which every server takes; another number at another position, so that no random numbers come twice."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{position}".encode()).digest()[:4], "big") >> 1


def _read(message: Any, dialect: Dialect, engine: OpenAIEngine) -> Piece:
    try:
        return dialect.read(message, engine.tokenizer, engine._token_bytes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"{engine._connection.url} wrote what is no completion ({type(error).__name__}: {error}): {_brief(message)}"
        ) from error


def _brief(message: Any) -> str:
    text = json.dumps(message, ensure_ascii=False) if not isinstance(message, str) else message
    return text if len(text) <= 200 else f"{text[:200]} …"


# -- the connection


class Connection:
    """The client, in a thread with an event loop of its own, so that its connections outlive the caller's loop.

    Args:
        base_url: of the protocol.
        api_key: "none" for servers that ask for none; appears in no message.
        concurrency: requests under way at once at most.
        requests_per_minute: requests begun in a minute at most.
        timeout: seconds of silence.
        max_retries: of one request.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        concurrency: int,
        requests_per_minute: float | None,
        timeout: float,
        max_retries: int,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EngineError(f"the base URL {base_url!r} must look like http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise EngineError("the base URL holds a user name or password: put the key into an environment variable")
        self.url = base_url
        self.max_retries = max_retries
        self._api_key = api_key
        self._timeout = timeout
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            max_retries=max_retries,
            timeout=openai.Timeout(timeout, connect=min(timeout, 10.0)),
        )
        self._gate = asyncio.Semaphore(concurrency)
        self._interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_start = 0.0
        self.closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="satisfice-openai", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run `work` in the connection's thread; cancelling the future cancels it."""
        if self.closed:
            work.close()
            raise EngineFailed(f"the connection to {self.url} is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what is under way and end the thread."""
        if self.closed:
            return
        self.closed = True
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    # Everything below runs in the connection's thread.

    async def get(self, path: str) -> Any:
        """The JSON at a path.

        Raises:
            EngineError: the server cannot be reached, or refuses.
        """
        try:
            return await self._client.get(path, cast_to=object)
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            raise self._explained(error) from error

    async def ask(self, body: dict[str, Any]) -> Any:
        """The answer to a completion request, whole.

        Raises:
            EngineError: the server cannot be reached, or refuses.
        """
        async with self._gate:
            await self._pace()
            try:
                return await self._client.post("/completions", cast_to=object, body=body)
            except (openai.OpenAIError, json.JSONDecodeError) as error:
                raise self._explained(error) from error

    async def messages(self, body: dict[str, Any]) -> AsyncGenerator[Any]:
        """The messages of a streamed completion; closing the iterator closes the connection.

        Raises:
            EngineError: the server cannot be reached, refuses, or writes what cannot be read.
            DroppedError: the connection was lost after the answer had begun.
        """
        async with self._gate:
            await self._pace()
            try:
                stream = await self._client.post(
                    "/completions", cast_to=object, body=body, stream=True, stream_cls=openai.AsyncStream[object]
                )
            except (openai.OpenAIError, json.JSONDecodeError) as error:
                raise self._explained(error) from error
            try:
                async with stream:
                    async for message in stream:
                        yield message
            except openai.APIConnectionError as error:
                raise DroppedError(repr(error.__cause__ or error)) from error
            except (openai.OpenAIError, json.JSONDecodeError) as error:
                raise self._explained(error) from error

    async def _pace(self) -> None:
        start = max(time.monotonic(), self._next_start)
        self._next_start = start + self._interval
        if (wait := start - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def _explained(self, error: Exception) -> EngineError:
        """What went wrong and what to do, in a sentence without the key."""
        tries = f"after {self.max_retries + 1} tries" if self.max_retries else "at the only try"
        if isinstance(error, json.JSONDecodeError):
            return EngineError(f"{self.url} wrote what is no JSON: {_brief(error.doc)}")
        if isinstance(error, openai.APITimeoutError):
            return EngineFailed(f"{self.url} was silent for {self._timeout:g} s, {tries}")
        if isinstance(error, openai.APIConnectionError):
            return EngineFailed(
                f"cannot reach {self.url} ({error.__cause__ or error}), {tries}: start the server or correct the URL"
            )
        if not isinstance(error, openai.APIStatusError):
            return EngineFailed(f"{self.url} gave an answer up: {self._without_key(str(error))}")
        if error.status_code in (401, 403):
            return RefusedError(
                f"{self.url} refuses the key ({error.status_code}): put the right one into {DEFAULT_KEY}, or name "
                "the variable that holds it with --api-key-env",
                error.status_code,
            )
        said = error.body.get("message") if isinstance(error.body, dict) else error.body
        detail = self._without_key(" ".join(str(said or error.message).split()))
        if error.status_code in RETRIED or error.status_code > 501:
            return EngineFailed(f"{self.url} answers {error.status_code}, {tries}: {_brief(detail)}")
        return RefusedError(f"{self.url} answers {error.status_code}: {_brief(detail)}", error.status_code)

    def _without_key(self, text: str) -> str:
        return text.replace(self._api_key, "***") if len(self._api_key) > 4 else text


# -- what a server can do


@dataclass(frozen=True)
class Offer:
    """What a server was found to take and to give.

    Attributes:
        dialect: how it speaks.
        prompt_ids: whether a prompt may be token ids.
        adds_bos: whether it puts the token that begins a text before a prompt that is a text.
        finds_stops: whether it ends with the very token that completes a stop text.
        context_length: tokens of a sequence at most, by its own word.
        lacking: what it does not offer, and why.
    """

    dialect: Dialect
    prompt_ids: bool
    adds_bos: bool
    finds_stops: bool
    context_length: int | None
    lacking: dict[Capability, str]

    def prompt(self, ids: Sequence[int], engine: OpenAIEngine) -> list[int] | str:
        """A prompt as the server takes it."""
        return list(ids) if self.prompt_ids else _as_text(ids, engine.tokenizer, self.adds_bos)


def _as_text(ids: Sequence[int], tokenizer: Any, adds_bos: bool) -> str:
    text = decode(tokenizer, ids)
    return text.removeprefix(tokenizer.bos_token) if adds_bos and tokenizer.bos_token else text


async def _probe(connection: Connection, model: str, checkpoint: Checkpoint, thinking: ThinkingFormat) -> Offer:
    """Ask a server what it can do, one token at a time.

    Raises:
        EngineError: it cannot be used at all.
    """
    tokenizer, ends = checkpoint.tokenizer, checkpoint.end_ids
    words = token_bytes(tokenizer)
    context_length = await _listed(connection, model)
    prompt = thinking.render(tokenizer, [{"role": "user", "content": "What is 17 + 25?"}])
    greedy = Sampling(temperature=0, top_p=1, max_tokens=1)

    async def ask(asked: list[int] | str, **more: Any) -> Any:
        body = {"model": model, "prompt": asked, "max_tokens": 1, "temperature": 0, "top_p": 1, "seed": 0}
        return await connection.ask({**body, **more})

    async def tried(dialect: Dialect, asked: list[int] | str, top_logprobs: int = 0, **more: Any) -> Piece | None:
        """What a server answers in a dialect; None where it does not speak it."""
        try:
            message = await ask(asked, **{**dialect.extras(greedy, top_logprobs, ends), **more})
            return dialect.read(message, tokenizer, words)
        except RefusedError as refusal:
            if refusal.status in (401, 403):
                raise
            return None
        except EngineError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    try:
        plain = await ask(prompt.text)
    except RefusedError as refusal:
        if refusal.status not in (404, 405):
            raise
        raise EngineError(
            f"{connection.url} does not complete texts ({refusal}): satisfice goes on from unfinished responses, which "
            "chat completions cannot do; serve the model with vLLM, SGLang or llama.cpp, or load it with --engine vllm"
        ) from refusal
    try:
        DIALECTS[-1].read(plain, tokenizer, words)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"{connection.url} wrote what is no completion: {_brief(plain)}") from error
    adds_bos = _adds_bos(plain, len(prompt.ids), connection)
    as_text = _as_text(prompt.ids, tokenizer, adds_bos)

    dialect: Dialect = DIALECTS[-1]
    prompt_ids = False
    for candidate in DIALECTS:
        for asked in (prompt.ids, as_text):
            piece = await tried(candidate, asked)
            if piece is None or (candidate.gives_ids and not piece.ids):
                continue
            if isinstance(asked, list) and piece.prompt_tokens not in (len(asked), None):
                continue  # it took the ids for something else
            dialect, prompt_ids = candidate, isinstance(asked, list)
            break
        else:
            continue
        break
    asked = prompt.ids if prompt_ids else as_text
    piece = await tried(dialect, asked)
    first = piece.ids[:1] if piece is not None else []
    finds_stops = False
    if dialect.finds_stops and (text := decode(tokenizer, first)):
        stopped = await tried(dialect, asked, stop=[text], max_tokens=2)
        finds_stops = stopped is not None and stopped.ids == first and stopped.finish == "stop"

    lacking = {
        Capability.ENTROPY: "servers report the likeliest tokens and not the whole distribution; use --engine "
        "transformers or vllm",
        Capability.SCORE: "servers report no entropies of given tokens; use --engine transformers or vllm",
        Capability.TREE: "a server grows no trees of branches; use --engine transformers",
    }
    if not await _has_plugin(ask, asked):
        lacking[Capability.CONTROL] = "the server does not run satisfice's plugin, which vLLM alone can"
    if not dialect.gives_ids:
        lacking[Capability.LOGPROBS] = "the server does not say which tokens it wrote"
    else:
        likely = await tried(dialect, asked, MOST_LOGPROBS, temperature=1)
        warmer = await tried(dialect, asked, MOST_LOGPROBS, temperature=2)
        if likely is None or warmer is None or not likely.tops or len(likely.tops[0]) < MOST_LOGPROBS:
            lacking[Capability.LOGPROBS] = f"the server does not report the {MOST_LOGPROBS} most likely tokens"
        elif abs(_spread(likely) - _spread(warmer)) > 0.1 * _spread(likely) + 0.05:
            lacking[Capability.LOGPROBS] = (
                "the server's log-probabilities are those after temperature, not the model's own; start vLLM without "
                "--logprobs-mode"
            )
    if not dialect.cancels:
        lacking[Capability.CANCEL] = "it is not known whether this server stops when a connection is closed"

    room = (context_length or checkpoint.context_length or CACHE_PROBE) // 2
    filler = (prompt.ids * CACHE_PROBE)[: min(CACHE_PROBE, room)]
    long = filler if prompt_ids else _as_text(filler, tokenizer, adds_bos)
    await tried(dialect, long)
    again = await tried(dialect, long)
    if again is None or again.cached_tokens is None:
        lacking[Capability.PREFIX_REUSE] = (
            "the server does not say how much of a prompt it had in its cache; start vLLM with "
            "--enable-prompt-tokens-details"
        )
    elif again.cached_tokens == 0:
        lacking[Capability.PREFIX_REUSE] = "the server had nothing in its cache of a prompt that it was sent twice"
    return Offer(dialect, prompt_ids, adds_bos, finds_stops, context_length, lacking)


async def _has_plugin(ask: Callable[..., Coroutine[Any, Any, Any]], prompt: list[int] | str) -> bool:
    """Whether the server reads controls: one that does refuses what is none; others do not look at it."""
    try:
        await ask(prompt, vllm_xargs={CONTROL_KEY: "malformed"})
    except RefusedError as refusal:
        return CONTROL_KEY in str(refusal)
    return False


def _spread(piece: Piece) -> float:
    """How far the log-probabilities of the likeliest tokens lie apart: what a temperature changes."""
    values = piece.tops[0].values()
    return max(values) - min(values)


async def _listed(connection: Connection, model: str) -> int | None:
    """The context length of a model by the server's list, None where it does not say.

    Raises:
        EngineError: the server lists other models only.
    """
    try:
        answer = await connection.get("/models")
    except RefusedError as refusal:
        if refusal.status not in (404, 405):
            raise
        return None
    entries = answer.get("data") if isinstance(answer, dict) else None
    listed = {entry["id"]: entry for entry in entries or [] if isinstance(entry, dict) and "id" in entry}
    if not listed:
        return None
    if model not in listed:
        raise EngineError(f"{connection.url} does not serve {model}, but {', '.join(sorted(listed)[:10])}")
    length = listed[model].get("max_model_len") or (listed[model].get("meta") or {}).get("n_ctx")
    return int(length) if length else None


def _adds_bos(message: Any, own: int, connection: Connection) -> bool:
    """Whether the server counts one token more in a prompt than its tokenizer here.

    Raises:
        EngineError: the two counts do not go together.
    """
    usage = message.get("usage") if isinstance(message, dict) else None
    counted = (usage or {}).get("prompt_tokens")
    if counted is not None and counted not in (own, own + 1):
        raise EngineError(
            f"{connection.url} makes {counted} tokens of a prompt of which the tokenizer here makes {own}: name the "
            "tokenizer of the model that is served with --tokenizer"
        )
    return counted == own + 1
