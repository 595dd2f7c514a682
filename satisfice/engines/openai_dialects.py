"""How servers of OpenAI's completions protocol differ: what they are asked for beyond it, and where they put it.

The protocol itself knows texts. A method goes on from token ids, so an engine wants to know which tokens a text was
made of; some servers say so, each in its own way.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from satisfice.engines.base import EngineError, Sampling
from satisfice.thinking import encode_after


class OutsideVocabulary(ValueError):  # noqa: N818
    """A server wrote a token that the tokenizer here does not have."""


@dataclass
class Chunk:
    """What one message of a server brought.

    Attributes:
        ids: new tokens.
        logprobs: natural log-probability of each, where they were asked for.
        tops: for each, the most likely tokens and their log-probabilities, where they were asked for.
        finish: the server's own word for why it ended; None while it goes on.
        stopped_by: the stop text or token id that ended it, where the server says so.
        prompt_tokens: length of the prompt by the server's count; None where this message does not say.
        cached_tokens: how many of them it had in its cache; None where this message does not say.
        new_tokens: length of all that it wrote, by its count; None where this message does not say.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[dict[int, float]] = field(default_factory=list)
    finish: str | None = None
    stopped_by: str | int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    new_tokens: int | None = None


class Dialect(ABC):
    """What one kind of server understands and says beyond the protocol.

    Class attributes:
        name: for messages.
        gives_ids: whether it tells the ids of the tokens that it wrote.
        finds_stops: whether it ends with the very token that completes a stop text, and returns that token; where it
            does not, the answer is streamed and given up at the stop.
        cancels: whether it stops computing when the connection is closed.
    """

    name: ClassVar[str]
    gives_ids: ClassVar[bool] = True
    finds_stops: ClassVar[bool] = False
    cancels: ClassVar[bool] = False

    @abstractmethod
    def extras(self, sampling: Sampling, top_logprobs: int, end_ids: frozenset[int]) -> dict[str, Any]:
        """What to put into a request besides what the protocol knows.

        Args:
            sampling: how to choose tokens.
            top_logprobs: most likely tokens to report.
            end_ids: tokens that end a response.

        Raises:
            EngineError: the server cannot be asked for this.
        """

    def read(
        self, message: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, token_bytes: Sequence[bytes]
    ) -> Chunk:
        """One message, whole or of a stream.

        Args:
            message: the JSON that came.
            tokenizer: the model's tokenizer.
            token_bytes: the text of each of its tokens, see `satisfice.thinking.token_bytes`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is not what such a server writes.
            OutsideVocabulary: it holds a token that the tokenizer does not have.
        """
        chunk = Chunk()
        if usage := message.get("usage"):
            chunk.prompt_tokens = _count(usage["prompt_tokens"])
            details = usage.get("prompt_tokens_details") or {}
            chunk.cached_tokens = _count_or_none(details.get("cached_tokens"))
            chunk.new_tokens = _count_or_none(usage.get("completion_tokens"))
        for choice in message["choices"]:  # one, or none in the message that says the usage
            chunk.finish = choice.get("finish_reason")
            chunk.stopped_by = choice.get("stop_reason")
            self.read_choice(choice, chunk, tokenizer, token_bytes)
        for token in chunk.ids:
            if token >= len(token_bytes):
                raise OutsideVocabulary(
                    f"wrote the token {token}, while the tokenizer here has 0..{len(token_bytes) - 1}: name the "
                    "tokenizer of the model that is served with --tokenizer"
                )
        return chunk

    @abstractmethod
    def read_choice(
        self,
        choice: Mapping[str, Any],
        chunk: Chunk,
        tokenizer: PreTrainedTokenizerBase,
        token_bytes: Sequence[bytes],
    ) -> None:
        """Put the tokens of a choice into `chunk`."""


class VLLM(Dialect):
    """vLLM: token ids on request, stop texts inclusive."""

    name = "vllm"
    finds_stops = True
    cancels = True

    def extras(self, sampling: Sampling, top_logprobs: int, end_ids: frozenset[int]) -> dict[str, Any]:
        """See `Dialect.extras`."""
        return {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            # The server would take it from the model's generation config, where our other engines do not look.
            "repetition_penalty": 1.0,
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            "stop_token_ids": [*sampling.stop_ids, *(() if sampling.ignore_eos else sorted(end_ids))],
            "ignore_eos": sampling.ignore_eos,
            # Markers are often special tokens, and stops are looked for in the text.
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "return_token_ids": True,
            **({"logprobs": top_logprobs, "return_tokens_as_token_ids": True} if top_logprobs else {}),
        }

    def read_choice(
        self,
        choice: Mapping[str, Any],
        chunk: Chunk,
        tokenizer: PreTrainedTokenizerBase,
        token_bytes: Sequence[bytes],
    ) -> None:
        """See `Dialect.read_choice`."""
        chunk.ids = [_count(token) for token in choice["token_ids"]]
        if logprobs := choice.get("logprobs"):
            chunk.logprobs = [_logprob(value) for value in logprobs["token_logprobs"]]
            tops = logprobs["top_logprobs"]
            chunk.tops = [{_named_id(name): _logprob(value) for name, value in top.items()} for top in tops]
            _require_alike(chunk)


def _named_id(name: str) -> int:
    return _count(int(name.removeprefix("token_id:")))


def _count(value: Any) -> int:
    """A number from 0 on, and no text or truth value that Python would take for one."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of tokens and no token")
    return value


def _count_or_none(value: Any) -> int | None:
    return None if value is None else _count(value)


def _logprob(value: Any) -> float:
    if math.isnan(number := float(value)):
        raise ValueError("a log-probability is not a number")
    return number


def _text(choice: Mapping[str, Any]) -> str:
    """The text of a choice; null, which some servers write where a message brings none, is none."""
    text = choice["text"]
    if not isinstance(text, str | None):
        raise TypeError(f"the text is {text!r}")
    return text or ""


def _require_alike(chunk: Chunk) -> None:
    if not len(chunk.ids) == len(chunk.logprobs) == len(chunk.tops):
        raise ValueError(f"{len(chunk.ids)} tokens with {len(chunk.logprobs)} log-probabilities")


class LlamaCpp(Dialect):
    """llama.cpp's server: token ids next to log-probabilities."""

    name = "llama.cpp"
    cancels = True

    def extras(self, sampling: Sampling, top_logprobs: int, end_ids: frozenset[int]) -> dict[str, Any]:
        """See `Dialect.extras`."""
        return {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            # Its own order truncates before the temperature, other engines after it; nor do they have penalties.
            "samplers": ["temperature", "top_k", "top_p", "min_p"],
            "ignore_eos": sampling.ignore_eos,
            "cache_prompt": True,
            "timings_per_token": True,
            "logprobs": max(1, top_logprobs),
        }

    def read(
        self, message: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, token_bytes: Sequence[bytes]
    ) -> Chunk:
        """See `Dialect.read`."""
        chunk = super().read(message, tokenizer, token_bytes)
        if timings := message.get("timings"):  # also where a stream is given up before it says the usage
            chunk.cached_tokens = _count(timings["cache_n"])
            chunk.prompt_tokens = chunk.cached_tokens + _count(timings["prompt_n"])
        return chunk

    def read_choice(
        self,
        choice: Mapping[str, Any],
        chunk: Chunk,
        tokenizer: PreTrainedTokenizerBase,
        token_bytes: Sequence[bytes],
    ) -> None:
        """See `Dialect.read_choice`."""
        entries = (choice.get("logprobs") or {}).get("content") or []
        chunk.ids = [_count(entry["id"]) for entry in entries]
        chunk.logprobs = [_logprob(entry["logprob"]) for entry in entries]
        chunk.tops = [
            {_count(top["id"]): _logprob(top["logprob"]) for top in entry.get("top_logprobs", [])} for entry in entries
        ]
        # Of a character that takes several tokens the server reports the last one alone, but sends the whole text.
        text = _text(choice).encode()
        told = b"".join(token_bytes[token] for token in chunk.ids if token < len(token_bytes))
        if chunk.ids and len(text) > len(told) and text.endswith(told):
            chunk.ids = encode_after(tokenizer, text.decode())
            chunk.logprobs, chunk.tops = [], []


class Standard(Dialect):
    """The protocol and nothing else: the text of each message is encoded again."""

    name = "standard"
    gives_ids = False

    def extras(self, sampling: Sampling, top_logprobs: int, end_ids: frozenset[int]) -> dict[str, Any]:
        """See `Dialect.extras`."""
        if sampling.ignore_eos:
            raise EngineError("the server cannot be asked to go on past the end of the text (ignore_eos)")
        if sampling.stop_ids:
            raise EngineError("the server does not say which tokens it wrote, so nothing can stop at one (stop_ids)")
        return {
            **({"top_k": sampling.top_k} if sampling.top_k else {}),
            **({"min_p": sampling.min_p} if sampling.min_p else {}),
        }

    def read_choice(
        self,
        choice: Mapping[str, Any],
        chunk: Chunk,
        tokenizer: PreTrainedTokenizerBase,
        token_bytes: Sequence[bytes],
    ) -> None:
        """See `Dialect.read_choice`."""
        chunk.ids = encode_after(tokenizer, _text(choice))


DIALECTS: Sequence[Dialect] = (VLLM(), LlamaCpp(), Standard())
"""In the order in which a server is tried."""
