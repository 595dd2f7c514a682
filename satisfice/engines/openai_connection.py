"""The connection to a server of OpenAI's protocol: requests, streams, tries and pauses.

Whatever fails is one of two things: `RefusedError`, what this server will never serve as it was asked, and
`PassingError`, what another try may bring; after enough of those it is an `EngineFailed`. What a server says may hold
the key that it was sent, so its words go through `Connection.quoted`.
"""

import asyncio
import json
import logging
import math
import random
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from satisfice.engines.base import EngineClosed, EngineError, EngineFailed
from satisfice.engines.openai_secrets import checked_url, hiding

try:
    import openai
except ImportError:
    raise EngineError(
        "the openai engine needs the client of that name: in a clone of satisfice, pip install -e '.[openai]'"
    ) from None

logger = logging.getLogger(__name__)

PASSING = (408, 409, 425, 429)
"""Statuses below 500 that say "not now" and not "never"."""
FIRST_PAUSE = 0.5
"""Seconds before the second try of a request; they double with each further one, less a random quarter."""
LONGEST_PAUSE = 16.0
"""Seconds that a pause grows to at most."""
LONGEST_WAIT = 120.0
"""Seconds that a server may ask for in Retry-After; one that asks for more is not waited for."""
FIRST_RETRIES = 2
"""Retries of a request while the engine is loaded: that a server is down is to be said within seconds."""
SILENT_RETRIES = 1
"""Retries of a request to which the server said nothing up to the time limit: each may have cost it a whole answer."""
LISTING_TIMEOUT = 30.0
"""Seconds at most in which a server must list its models."""
SLOW = 10.0
"""Seconds without an answer, while the engine is loaded, after which the user is told what is waited for."""
QUOTED = 200
"""Characters of a server's words in a message."""

Result = TypeVar("Result")


class RefusedError(EngineError):
    """The server will not serve a request, now or later.

    Attributes:
        status: that of HTTP; None where it said so in another way.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class PassingError(Exception):
    """One try of a request failed in a way that another may not.

    Attributes:
        what: happened.
        said: the server's own words, or what to do.
        wait: seconds that the server asks for.
        retries: how often such a request is tried again at most.
        kept: tokens of an answer that had come.
    """

    def __init__(self, what: str, said: str = "", wait: float | None = None, retries: float = math.inf) -> None:
        super().__init__(what)
        self.what, self.said, self.wait, self.retries, self.kept = what, said, wait, retries, 0

    def __str__(self) -> str:
        return f"{self.what}: {self.said}" if self.said else self.what


class Connection:
    """The client, in a thread with an event loop of its own, so that its connections outlive the caller's loop.

    Args:
        base_url: of the protocol.
        api_key: "" for servers that ask for none. It stands in no message, warning or exception that leaves here.
        key_variable: the environment variable that it comes from.
        concurrency: requests under way at once at most.
        requests_per_minute: requests begun in a minute at most, retries included.
        timeout: seconds of silence.
        max_retries: of one request.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        key_variable: str,
        concurrency: int,
        requests_per_minute: float | None,
        timeout: float,
        max_retries: int,
    ) -> None:
        for name, value, good, bounds in (
            ("max_batch", concurrency, concurrency >= 1, "at least 1"),
            ("requests_per_minute", requests_per_minute, (requests_per_minute or 1) > 0, "above 0"),
            ("timeout", timeout, timeout > 0, "above 0"),
            ("max_retries", max_retries, max_retries >= 0, "at least 0"),
        ):
            if not good:
                raise EngineError(f"{name} is {value}; it must be {bounds}")
        self.hidden = hiding(api_key)
        self.url = checked_url(base_url, api_key)
        self.max_retries = max_retries
        self._key_variable = key_variable
        self._timeout = timeout
        self._connect_timeout = min(timeout, 10.0)
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=api_key or "none",
            max_retries=0,  # `persist` retries: what the client does for a request, it does not for a stream
            timeout=openai.Timeout(timeout, connect=self._connect_timeout),
        )
        self._gate = asyncio.Semaphore(concurrency)
        self._interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_start = 0.0
        self._said: dict[str, float] = {}
        self.closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="satisfice-openai", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run `work` in the connection's thread; cancelling the future cancels it."""
        if self.closed:
            work.close()
            raise EngineClosed(f"the connection to {self.url} is closed")
        return asyncio.run_coroutine_threadsafe(self._guarded(work), self._loop)

    async def _guarded(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Nothing that is raised here leaves the thread with the key in it, nor with what was raised by the client."""
        try:
            return await work
        except Exception as error:
            error.args = tuple(self.hidden(part) if isinstance(part, str) else part for part in error.args)
            error.__cause__ = error.__context__ = None
            raise

    def say(self, *sentences: str) -> None:
        """Warn the user, of the same thing once a minute at most."""
        for sentence in sentences:
            kind = re.sub(r"\d+", "", sentence)
            if time.monotonic() - self._said.get(kind, -math.inf) > 60:
                self._said[kind] = time.monotonic()
                logger.warning("%s", self.hidden(sentence))

    def quoted(self, words: object) -> str:
        """The beginning of what a server said, without the key; hidden first, because a cut may go through it."""
        text = words if isinstance(words, str) else _as_json(words)
        text = " ".join(self.hidden(text).split())
        return text if len(text) <= QUOTED else f"{text[:QUOTED]} …"

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
        """The JSON at a path, or the text; while the engine is loaded.

        Raises:
            EngineError: the server refuses.
            EngineFailed: it cannot be reached, fails, or writes what cannot be read.
        """
        return await self._first("GET", path, {"timeout": min(self._timeout, LISTING_TIMEOUT)})

    async def ask(self, body: dict[str, Any]) -> Any:
        """The answer to a completion request, whole; while the engine is loaded.

        Raises:
            EngineError: the server refuses.
            EngineFailed: it cannot be reached, fails, or writes what cannot be read.
        """
        return await self._first("POST", "/completions", {}, body)

    async def _first(self, verb: str, path: str, options: dict[str, Any], body: dict[str, Any] | None = None) -> Any:
        async def attempt() -> Any:
            try:
                if verb == "GET":
                    answer = await self._client.get(path, cast_to=object, options=options)
                else:
                    answer = await self._client.post(path, cast_to=object, body=body, options=options)
            except (openai.OpenAIError, ValueError) as error:
                raise self._explained(error, path, options.get("timeout", self._timeout)) from error
            if _says_error(answer):
                raise self._reported(answer, path)
            return answer

        waiting = f"{self.url}{path} has not answered for {SLOW:g} s; it is waited for"
        notice = self._loop.call_later(SLOW, self.say, waiting)
        try:
            return await self.persist(attempt, min(self.max_retries, FIRST_RETRIES))
        finally:
            notice.cancel()

    async def messages(self, body: dict[str, Any]) -> AsyncGenerator[Any]:
        """The messages of a streamed completion, for `persist`; closing the iterator closes the connection.

        Raises:
            RefusedError: the server refuses.
            PassingError: it cannot be reached, fails, writes what cannot be read, or the connection was lost.
        """
        path = "/completions"
        try:
            stream = await self._client.post(
                path, cast_to=object, body=body, stream=True, stream_cls=openai.AsyncStream[object]
            )
        except (openai.OpenAIError, ValueError) as error:
            raise self._explained(error, path, self._timeout) from error
        # Line by line and not by the client's stream, which passes over all that is no event: an error in JSON.
        stray, event, count = "", "", 0
        async with stream, aclosing(stream.response.aiter_lines()) as lines:
            while (line := await self._next(lines)) is not None:
                name, colon, value = line.partition(":")
                if colon and name == "event":
                    event = value.strip()
                elif colon and name == "data" and value.strip() == "[DONE]":
                    with suppress(Exception):  # what is left belongs to no answer, but read it makes room for the next
                        async with asyncio.timeout(1):
                            while await self._next(lines) is not None:
                                pass
                    return
                elif colon and name == "data":
                    try:
                        message = json.loads(value)
                    except ValueError as error:
                        said = self.quoted(value.strip())
                        raise PassingError(f"{self.url} wrote what is no JSON", said) from error
                    if _says_error(message) or event == "error":
                        raise self._reported(message, path)
                    event, count = "", count + 1
                    yield message
                elif name not in ("", "id", "retry") and len(stray) < 1 << 20:
                    stray += f"{line}\n"
        if count or not stray.strip():
            return
        try:
            message = json.loads(stray)
        except ValueError:
            raise PassingError(f"{self.url} wrote what is no stream of completions", self.quoted(stray)) from None
        if not isinstance(message, dict) or "choices" not in message:
            raise self._reported(message, path)
        yield message  # whole, from a server that does not stream

    async def _next(self, lines: Any) -> str | None:
        """The next line of a stream; None at its end."""
        began = time.monotonic()
        try:
            return str(await anext(lines))
        except StopAsyncIteration:
            return None
        except Exception as error:  # of the client's transport, which may be of several libraries
            if time.monotonic() - began >= 0.9 * self._timeout:
                raise PassingError(f"{self.url} was silent for {self._timeout:g} s", retries=SILENT_RETRIES) from error
            reason = self.quoted(str(error)) or type(error).__name__
            raise PassingError(f"{self.url} dropped the connection ({reason})") from error

    async def persist(self, attempt: Callable[[], Coroutine[Any, Any, Result]], retries: int) -> Result:
        """The result of `attempt`, made again with growing pauses while it raises `PassingError`.

        Args:
            attempt: one request; it may keep what it has got.
            retries: how often it is made again at most.

        Raises:
            EngineError: the request was refused.
            EngineFailed: it failed as often as it may, or the server asks to be left alone for too long.
        """
        async with self._gate:  # in the pauses too: a server in trouble is not asked by others instead
            tries = 0
            while True:
                await self.pace()
                tries += 1
                try:
                    return await attempt()
                except PassingError as error:
                    pause = self._pause(error, tries, min(retries, error.retries))
                    after = f" after the {error.kept} tokens that had come: what is sent again counts as cost"
                    self.say(f"{error}; going on in {pause:.1f} s{after if error.kept else ''}")
                await asyncio.sleep(pause)

    def _pause(self, error: PassingError, tries: int, retries: float) -> float:
        """Seconds until the next try.

        Raises:
            EngineFailed: there is none.
        """
        said = f": {error.said}" if error.said else ""
        made = f"after {tries} tries" if tries > 1 else "at the only try" if not retries else "after 1 try"
        if error.wait is not None and error.wait > LONGEST_WAIT:
            raise EngineFailed(
                f"{error.what} and asks to be left alone for {error.wait:.0f} s (Retry-After), while "
                f"{LONGEST_WAIT:.0f} s are waited at most: given up {made}{said}"
            )
        if tries > retries:
            raise EngineFailed(f"{error.what}, {made}{said}")
        if error.wait is not None:
            return error.wait * (1 + 0.1 * random.random())  # those who were told the same do not come back at once
        return float(min(FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE) * (1 - 0.25 * random.random()))

    async def pace(self) -> None:
        """Wait until one more request of the minute may begin; `persist` does so before each of its tries."""
        start = max(time.monotonic(), self._next_start)
        self._next_start = start + self._interval
        if (wait := start - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def _explained(self, error: Exception, path: str, timeout: float) -> Exception:
        """What went wrong with a request, and whether another try may help."""
        where = f"{self.url}{path}"
        cause = error.__cause__ or error
        if isinstance(error, ValueError):
            said = error.doc if isinstance(error, json.JSONDecodeError) else str(error)
            return EngineFailed(f"{where} wrote what is no JSON: {self.quoted(said)}")
        if isinstance(error, openai.APITimeoutError) and "Connect" not in type(cause).__name__:
            return PassingError(f"{where} was silent for {timeout:g} s", retries=SILENT_RETRIES)
        if isinstance(error, openai.APITimeoutError):
            reason = f"no connection within {self._connect_timeout:g} s"
            return PassingError(f"cannot reach {where} ({reason})", "start the server or correct the URL", retries=1)
        if isinstance(error, openai.APIConnectionError):
            reason = self.quoted(str(cause)) or type(cause).__name__
            return PassingError(f"cannot reach {where} ({reason})", "start the server or correct the URL")
        if not isinstance(error, openai.APIStatusError):
            return PassingError(f"{where} gave an answer up", self.quoted(str(error)))
        said = self.quoted(_words(error.body) or error.response.text or error.message)
        status = error.status_code
        if status in (401, 403):
            return RefusedError(
                f"{where} refuses the key ({status}): put the right one into {self._key_variable}, or name the "
                f"variable that holds it with --api-key-env; the server says: {said}",
                status,
            )
        if status in PASSING or status >= 500:
            return PassingError(f"{where} answers {status}", said, _retry_after(error.response.headers))
        return RefusedError(f"{where} answers {status}: {said}", status)

    def _reported(self, body: Any, path: str) -> Exception:
        """An error that came under status 200, in a stream or in place of one."""
        error = body.get("error") if isinstance(body, dict) else None
        facts = error if isinstance(error, dict) else body if isinstance(body, dict) else {}
        status = next((facts[name] for name in ("code", "status") if type(facts.get(name)) is int), None)
        what = f"{self.url}{path} answers with an error in place of a completion"
        said = self.quoted(_words(body) or body)
        never = status is not None and 400 <= status < 500 and status not in PASSING
        if never or facts.get("type") in ("invalid_request_error", "BadRequestError"):
            return RefusedError(f"{what}: {said}", status)
        return PassingError(what, said)


def _as_json(words: object) -> str:
    try:
        return json.dumps(words, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(words)


def _says_error(message: Any) -> bool:
    return isinstance(message, dict) and bool(message.get("error")) and not message.get("choices")


def _words(body: Any) -> Any:
    """What an error's body says, wherever servers put it."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return body


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to be left alone for; None where it does not, or not intelligibly."""
    with suppress(KeyError, ValueError):
        return _above_zero(float(headers["retry-after-ms"]) / 1000)
    with suppress(KeyError, ValueError):
        return _above_zero(float(headers["retry-after"]))
    with suppress(KeyError, ValueError, TypeError):
        until = parsedate_to_datetime(headers["retry-after"])
        return _above_zero((until - datetime.now(UTC)).total_seconds())
    return None


def _above_zero(seconds: float) -> float | None:
    return seconds if seconds > 0 else None  # also where it is no number
