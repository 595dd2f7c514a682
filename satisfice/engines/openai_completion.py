"""One completion on its way: what a server is asked for, and how its answer is taken in, token by token.

Mostly that is one request. Where its connection drops, another goes on; and where a control is a bias of the protocol,
each stretch of thinking, and each of what is none, has one of its own.
"""

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from satisfice.engines.base import EngineFailed, Generation, Sampling, Usage
from satisfice.engines.control_setting import Control, encode_control
from satisfice.engines.openai_bias import BiasedThinking
from satisfice.engines.openai_connection import PassingError, RefusedError
from satisfice.engines.openai_dialects import Chunk, OutsideVocabulary
from satisfice.engines.openai_offer import CONTROL_KEY, OVERRUN
from satisfice.engines.stopping import End, StopWatch
from satisfice.thinking import decode

if TYPE_CHECKING:
    from satisfice.engines.openai import OpenAIEngine

MOST_STOPS = 4
"""Stops that the protocol lets a request have; vLLM refuses more. Whichever are left over are looked for here."""


@dataclass
class Completion:
    """One call of `generate` on its way, in the connection's thread.

    Attributes:
        engine: who was asked.
        ids: prompt and answer so far.
        sampling: how tokens are chosen, and what ends the answer.
        control: travels with the request; a server with the plugin obeys it.
        biased: a control that is but a bias, in place of such a one.
        top_logprobs: most likely tokens to report at each step.
        emit: called with each new token.
    """

    engine: "OpenAIEngine"
    ids: list[int]
    sampling: Sampling
    control: Control | None
    biased: BiasedThinking | None
    top_logprobs: int
    emit: Callable[[int], None] | None
    usage: Usage = field(default_factory=Usage)
    logprobs: list[float] = field(default_factory=list)
    tops: list[dict[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._prompt_length = len(self.ids)
        self._offer = self.engine.offer
        # Where the server ends with the token that completes a stop, nothing is written after it.
        watched = replace(self.sampling, lookahead=()) if self._offer.finds_stops else self.sampling
        self._watch = StopWatch(self.ids, watched, self.engine.end_ids, self.engine.token_bytes)
        self._ended: End | None = None
        # Of the stream that is read:
        self._begin = len(self.ids)
        self._turned = False  # whether thinking began or ended with its last token, and the bias with it
        self._told: tuple[str, ...] = ()  # the stops that the server knows of
        self._beyond = 0

    async def fetch(self) -> Generation:
        """Ask, and go on where a connection drops.

        Raises:
            EngineError: the server will not serve it.
            EngineFailed: it did not, as often as it was asked; `usage` is what that cost.
        """
        connection = self.engine.connection
        try:
            await connection.persist(self._write, connection.max_retries)
        except (EngineFailed, RefusedError) as error:
            error.usage = self.spent()
            if written := error.usage.forward_passes:
                error.args = (f"{error}; {written} tokens of the answer had come, which count as cost",)
            raise
        assert self._ended is not None
        return Generation(
            self.ids[self._prompt_length :],
            *self._ended,
            self.logprobs if self.top_logprobs else None,
            self.tops if self.top_logprobs else None,
            None,
            self.spent(),
        )

    def spent(self) -> Usage:
        """What it has cost so far, as far as the server has said anything."""
        return replace(self.usage, forward_passes=len(self.ids) - self._prompt_length)

    async def _write(self) -> None:
        """Take in streams up to the end of the answer; raises what `_stream` raises."""
        await self._stream()
        while self._ended is None:
            await self.engine.connection.pace()
            await self._stream()

    async def _stream(self) -> None:
        """Take in one stream up to the end of the answer, or to where the bias changes.

        Raises:
            PassingError: it ended before.
            RefusedError: the server will not go on.
        """
        self._begin, self._turned, self._beyond = len(self.ids), False, 0
        before, last = self.usage.generated, Chunk()
        prompt_tokens, cached_tokens, completion_tokens, begun = self._begin, 0, None, False
        connection = self.engine.connection
        try:
            async with aclosing(connection.messages(self._body())) as messages:
                async for message in messages:
                    chunk = self._read(message)
                    begun = True
                    prompt_tokens = prompt_tokens if chunk.prompt_tokens is None else chunk.prompt_tokens
                    cached_tokens = cached_tokens if chunk.cached_tokens is None else chunk.cached_tokens
                    completion_tokens = completion_tokens if chunk.new_tokens is None else chunk.new_tokens
                    last = last if chunk.finish is None else chunk
                    self._beyond += self._over
                    self._take(chunk)
                    # What a server ends by itself is read to its end, where it says what the prompt cost.
                    if self._over and not self._server_ends():
                        break
                    if self._beyond > self._slack():
                        connection.say(
                            f"{connection.url} goes on after the end that it was given (max_tokens or a stop): it is "
                            "cut off there, and what it wrote after it counts as cost"
                        )
                        break
        except PassingError as error:
            if not self._over:
                error.kept = len(self.ids) - self._prompt_length
                raise
        finally:
            if begun:  # else nobody knows whether the server began at all
                cached_tokens = min(cached_tokens, prompt_tokens)
                self.usage.cached += cached_tokens
                self.usage.prefilled += prompt_tokens - cached_tokens
        if not self._over:
            if completion_tokens is None and self._offer.dialect.gives_ids:
                completion_tokens = self.usage.generated - before
            self._end(last.finish, last.stopped_by, completion_tokens)

    @property
    def _over(self) -> bool:
        """Whether the stream has brought what was wanted of it."""
        return self._ended is not None or self._turned

    def _server_ends(self) -> bool:
        """Whether the server knows of the end that has come, and goes on no further."""
        if self._ended is None:  # at a marker, which may have begun before this stream
            new = decode(self.engine.tokenizer, self.ids[self._begin :])
            return any(marker in new for marker in self._told)
        finish, stopped_by, holding = self._ended
        if finish == "length":
            return True
        if isinstance(stopped_by, str):
            return stopped_by in self._told and holding <= len(self.ids) - self._begin
        return self._offer.finds_stops

    def _slack(self) -> int:
        """What may come after the end; where texts are encoded again, our count may be ahead of the server's."""
        return OVERRUN if self._offer.dialect.gives_ids else OVERRUN + self.sampling.max_tokens // 8

    def _read(self, message: Any) -> Chunk:
        engine, connection = self.engine, self.engine.connection
        try:
            return self._offer.dialect.read(message, engine.tokenizer, engine.token_bytes)
        except OutsideVocabulary as error:
            raise RefusedError(f"{connection.url} {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PassingError(f"{connection.url} wrote what is no completion", connection.quoted(message)) from error

    def _take(self, chunk: Chunk) -> None:
        """Append the tokens of a chunk; those after the end are paid for and thrown away."""
        self.usage.generated += len(chunk.ids)
        if self.top_logprobs and len(chunk.logprobs) != len(chunk.ids):
            raise RefusedError(
                f"{self.engine.name} does not report the log-probability of every token in the character "
                f"{decode(self.engine.tokenizer, chunk.ids)!r}"
            )
        for place, token in enumerate(chunk.ids):
            if self._over:
                self._beyond += len(chunk.ids) - place
                return
            self._append(token)
            if self.top_logprobs:
                self.logprobs.append(chunk.logprobs[place])
                likeliest = sorted(chunk.tops[place].items(), key=lambda top: (-top[1], top[0]))
                self.tops.append(dict(likeliest[: self.top_logprobs]))

    def _append(self, token: int) -> None:
        self.ids.append(token)
        if self.emit is not None:
            self.emit(token)
        self._turned = self.biased is not None and self.biased.turns(token)
        self._ended = self._watch.finished()

    def _end(self, finish: str | None, stopped_by: str | int | None, written: int | None) -> None:
        """The end of an answer where the server alone knows why.

        Args:
            finish, stopped_by: what it says.
            written: tokens of this stream by its count; None where nobody knows.
        """
        connection = self.engine.connection
        if finish is None:
            raise PassingError(f"{connection.url} ended a stream before the answer")
        if finish == "stop" and not self._offer.dialect.gives_ids:
            # The token that ended it has no text and was not sent.
            self._append(self.engine.tokenizer.eos_token_id or min(self.engine.end_ids))
            self._ended = ("stop", self.ids[-1], 1)
        elif finish == "stop" and stopped_by in self._told and stopped_by not in self.sampling.stop:
            # A marker that the server alone has seen. What thinks here still does, and goes on.
            if len(self.ids) == self._begin:
                raise PassingError(f"{connection.url} stopped at {stopped_by!r} and wrote nothing")
        elif finish == "stop" and isinstance(stopped_by, str):
            self._ended = ("stop", stopped_by, self._tokens_holding(stopped_by))
        elif finish == "stop" and len(self.ids) > self._prompt_length:
            self._ended = ("stop", self.ids[-1], 1)
        elif finish == "length" and (written is None or written >= self._asked):
            self._ended = ("length", None, 0)
        elif finish == "length":
            raise RefusedError(
                f"{connection.url} cut an answer off after {written} of the {self._asked} tokens that were asked for: "
                "lower max_tokens, or raise the limit of the server"
            )
        elif finish == "content_filter":
            raise RefusedError(f"{connection.url} gave an answer up, with 'content_filter' for a reason")
        else:
            raise PassingError(f"{connection.url} gave an answer up, with {connection.quoted(finish)!r} for a reason")

    def _tokens_holding(self, stop: str) -> int:
        """How many of the last tokens hold a stop that the server found in a text of its own making."""
        new = self.ids[self._prompt_length :]
        counts = range(1, len(new) + 1)
        return next((n for n in counts if stop in decode(self.engine.tokenizer, new[-n:])), len(new))

    def _body(self) -> dict[str, Any]:
        written = len(self.ids) - self._prompt_length
        left = replace(self.sampling, max_tokens=self.sampling.max_tokens - written)
        self._asked = left.max_tokens
        body = {
            "model": self.engine.model,
            "prompt": self._offer.prompt(self.ids, self.engine.tokenizer),
            "max_tokens": left.max_tokens,
            "temperature": left.temperature,
            "top_p": left.top_p,
            "seed": _seed(left.seed, len(self.ids)),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._offer.dialect.extras(left, self.top_logprobs, self.engine.end_ids),
        }
        stops = body.pop("stop", ())
        if self._offer.finds_stops:
            markers = () if self.biased is None else self.biased.markers()
            body["stop"] = list(dict.fromkeys((*markers, *stops)))[:MOST_STOPS]
            self._told = tuple(body["stop"])
        if self.biased is not None:
            body |= self.biased.fields()
        if self.control is not None:
            body["vllm_xargs"] = {CONTROL_KEY: encode_control(self.control)}
        return body


def _seed(seed: int, position: int) -> int:
    """31 bits, which every server takes; another number at another position, so that no random numbers come twice."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{position}".encode()).digest()[:4], "big") >> 1
