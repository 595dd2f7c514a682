"""The words of the wire: OpenAI's chat completions, read into our terms and written from them.

What we cannot do is refused with a sentence, never ignored: a client that asks for a stop text and gets none would
not notice. A parameter may be sent with the value that means "not used", because some clients always send them all.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from satisfice.engines.base import Sampling
from satisfice.parameters import nearest
from satisfice.problems.problem import Problem
from satisfice.trace import Trace

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
"""The values of `reasoning_effort` that OpenAI's clients know."""

IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Parameters that say nothing about the response."""

UNUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "stop": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Parameters that are not supported, and the values besides null that ask for nothing."""

MESSAGE_FIELDS = frozenset({"role", "content", "name", "reasoning_content", "refusal", "annotations"})
"""Parts of a message that are used, or that say nothing to the model; all others must be empty."""


class Refusal(Exception):  # noqa: N818
    """A request that gets an error instead of a response.

    Attributes:
        status: of HTTP.
        message: one sentence for the client's author.
        kind, param, code: as in OpenAI's errors.
        retry_after: seconds after which another try may succeed, where one may.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """As OpenAI writes errors."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """What a stream tells besides the text."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of a chat completion.

    Attributes:
        method: ours: how to think, spelled as on the command line.
        top_k, min_p: ours, as in `Sampling`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    reasoning_effort: str | None = None
    method: Annotated[str, Field(max_length=2000)] | None = None

    @classmethod
    def read(cls, body: bytes) -> "ChatRequest":
        """The request of a body.

        Raises:
            Refusal: it is none, or asks for something that there is not.
        """
        try:
            request = cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "json_invalid":
                raise Refusal(400, f"the body is not JSON: {first['ctx']['error']}") from None
            param = ".".join(map(str, first["loc"])) or None
            raise Refusal(400, f"{param or 'the body'}: {first['msg']}", param=param) from None
        for name, value in (request.model_extra or {}).items():
            if name in IGNORED or (name in UNUSED and (value is None or value in UNUSED[name])):
                continue
            if name in UNUSED:
                raise Refusal(400, f"{name} is not supported; leave it out", param=name, code="unsupported_parameter")
            known = [*cls.model_fields, *UNUSED, *IGNORED]
            message = f"there is no parameter {name!r}{nearest(name, known)}; leave it out"
            raise Refusal(400, message, param=name, code="unknown_parameter")
        if request.stream_options is not None and not request.stream:
            raise Refusal(400, "stream_options acts with stream=true only; leave it out", param="stream_options")
        return request

    def problem(self) -> Problem:
        """The conversation as a problem: the last message is its question.

        Raises:
            Refusal: the messages are no conversation that ends with the user, or hold more than text.
        """
        turns = [(str(message.get("role")), _text(place, message)) for place, message in enumerate(self.messages)]
        first = next((place for place, (role, _) in enumerate(turns) if role not in ("system", "developer")), None)
        for place, (role, _) in enumerate(turns[first:], start=first or 0):
            if role not in ("user", "assistant"):
                expected = "system, developer, user or assistant" if place == 0 else "user or assistant"
                where = f"messages.{place}.role"
                raise Refusal(400, f"{where} is {role!r}; it must be {expected} there", param=where)
        if first is None or turns[-1][0] != "user":
            raise Refusal(400, "the last message must be the user's", param="messages")
        system = "\n\n".join(text for _, text in turns[:first])
        return Problem("request", turns[-1][1], "", system=system, history=tuple(turns[first:-1]))

    def sampling(self, default: Sampling, max_tokens: int) -> dict[str, Any]:
        """What the request says about `Sampling`, but for the seed.

        Args:
            default: what is not said.
            max_tokens: what may be asked for at most.

        Raises:
            Refusal: more tokens than that, or two different numbers of them.
        """
        asked = self.max_completion_tokens or self.max_tokens
        name = "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != asked:
            message = "max_tokens and max_completion_tokens are the same limit and differ; leave max_tokens out"
            raise Refusal(400, message, param="max_tokens")
        if asked is not None and asked > max_tokens:
            raise Refusal(400, f"{name} is {asked}; this server allows {max_tokens} at most", param=name)
        if self.temperature is not None and 0 < self.temperature < 0.01:
            message = f"temperature is {self.temperature}; it must be 0, or from 0.01 to 2"
            raise Refusal(400, message, param="temperature")
        said = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        said["max_tokens"] = asked or min(default.max_tokens, max_tokens)
        return {name: value for name, value in said.items() if value is not None}


def _text(place: int, message: Mapping[str, Any]) -> str:
    """What a message says."""
    for name, value in message.items():
        if name not in MESSAGE_FIELDS and value:
            where = f"messages.{place}.{name}"
            raise Refusal(400, f"{where} is not supported: a message holds a role and text", param=where)
    content = message.get("content")
    where = f"messages.{place}.content"
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise Refusal(400, f"{where} must be a text, or a list of parts of type text", param=where)


def choice_facts(trace: Trace) -> dict[str, Any]:
    """What we say of a response beyond OpenAI's fields: how it was made, why thinking ended, and what it cost."""
    return {
        "method": trace.method,
        "seed": trace.seed,
        "stop": trace.stop,
        "cost": trace.cost.model_dump() | {"total_tokens": trace.cost.total_tokens},
        "probes": probes(trace),
    }


def probes(trace: Trace) -> int:
    """How often a method asked on the side whether thinking may end."""
    return sum(event.kind in ("probe", "cut") for event in trace.events)


def usage(traces: Sequence[Trace]) -> dict[str, Any]:
    """Tokens of the prompt and of what is returned; what was thrown away is in each choice's own cost."""
    prompt = len(traces[0].prompt_ids)
    completion = sum(trace.cost.retained_tokens for trace in traces)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": sum(trace.cost.thinking_tokens for trace in traces)},
    }


def finish_reason(trace: Trace) -> str:
    """In OpenAI's words."""
    return "stop" if trace.finished else "length"


def one_line(text: str) -> str:
    """A text for a log: no line breaks, no control characters."""
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]", "?", text)
