"""The words of the wire: OpenAI's chat completions, read into our terms and written from them.

What we cannot do is refused with a sentence, never ignored: a client that asks for a penalty and gets none would
not notice. A parameter may be sent with the value that means "not used", because some clients always send them all.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from satisfice.engines.base import Sampling, derive_seed
from satisfice.intervention.stops import Stops
from satisfice.parameters import NUMBER, misfit
from satisfice.problems.problem import Problem
from satisfice.trace import Trace

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
"""The values of `reasoning_effort` that OpenAI's clients know."""

SEED_BITS = 53
"""Of the seeds that are made here: responses tell them, and JavaScript's clients cannot send longer ones again."""

ECHOED = 200
"""Characters of a request that an error repeats at most."""

IGNORED = frozenset(
    {
        "cache_prompt", "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier",
        "store", "user",
    }
)  # fmt: skip
"""Parameters that say nothing about the response."""

UNUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "separate_reasoning": (True,),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Parameters that are not supported, and the values besides null that ask for nothing."""

_CAP = "for a cap on thinking use thinking_token_budget, or method: budget-forcing:max_thinking=N"
_SWITCH = "for an answer without thinking use reasoning_effort: none, or method: no-thinking"
_SOONER = "to end thinking sooner use method: temperature-scaling:t=0.9"

HINTS: dict[str, str] = {
    **dict.fromkeys(
        (
            "budget_tokens", "max_reasoning_tokens", "max_think_tokens", "max_thinking_tokens", "reasoning_budget",
            "reasoning_max_tokens", "reasoning_tokens", "thinking_budget",
        ),
        _CAP,
    ),
    **dict.fromkeys(("enable_thinking", "template_kwargs", "think"), _SWITCH),
    **dict.fromkeys(("thinking", "thinking_config"), f"reasoning_effort and method say how to think; {_SWITCH}"),
    **dict.fromkeys(("thinking_bias", "thinking_temperature", "vllm_xargs", "extra_body"), _SOONER),
    **dict.fromkeys(("level", "thinking_level"), "for a level use method: tldr:level=short"),
    "answer_tokens": _CAP,
    "effort": "use reasoning_effort",
    "max_length": "use max_completion_tokens",
    "max_new_tokens": "use max_completion_tokens",
    "max_output_tokens": "use max_completion_tokens",
    "num_predict": "use max_completion_tokens",
    "input": "use messages",
    "prompt": "use messages",
}  # fmt: skip
"""What to use in place of parameters of other servers and libraries."""

MESSAGE_FIELDS = frozenset(
    {
        "role", "content", "name", "reasoning", "reasoning_content", "reasoning_details", "reasoning_text", "thinking",
        "thinking_blocks", "refusal", "annotations", "type", "id", "object", "status", "created", "created_at",
        "timestamp", "cache_control", "metadata", "provider_specific_fields", "weight",
    }
)  # fmt: skip
"""Parts of a message that are used, or that say nothing to the model; all others must be empty."""

TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
THINKING_PARTS = frozenset({"thinking", "reasoning", "redacted_thinking"})
"""Types of parts of a message: those that are read, and those of an assistant's turn that are left out."""


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


def quoted(text: str, most: int = 60) -> str:
    """What a client wrote, for a sentence: in quotes, on one line and not longer than `most`."""
    clean = one_line(text)
    return repr(clean) if len(clean) <= most else f"{clean[:most]!r}..."


def discreet(message: str, body: Any) -> str:
    """`message`, cut short where it repeats too much of what a client wrote.

    Sentences of methods, engines and templates quote what they refuse, at any length.

    Args:
        message: a sentence.
        body: the request as parsed JSON.
    """
    message = " ".join(message.split())
    if len(message) <= ECHOED:
        return message
    written = "\0".join(" ".join(text.split()) + "\0" + repr(text) for text in _texts(body))
    step = 20
    pieces = (message[start : start + step] for start in range(0, min(len(message), 4000) - step + 1, step))
    repeated = sum(len(piece) for piece in pieces if piece in written)
    return message if repeated < ECHOED // 2 and len(message) <= 4000 else f"{message[: ECHOED - 3]}..."


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, held in value.items():
            yield key
            yield from _texts(held)
    elif isinstance(value, list):
        for held in value:
            yield from _texts(held)


def _no_limit(value: Any) -> Any:
    return None if value == -1 else value


def _texts_of(value: Any) -> Any:
    """A stop or several as a list, without the empty ones, which ask for nothing."""
    if isinstance(value, str):
        value = [value]
    return [text for text in value if text != ""] if isinstance(value, list) else value


class StreamOptions(BaseModel):
    """What a stream tells besides the text."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


Tokens = Annotated[Annotated[int, Field(ge=0), NUMBER] | None, BeforeValidator(_no_limit)]


class Reasoning(BaseModel):
    """How to think, as OpenRouter's clients say it."""

    model_config = ConfigDict(extra="allow")

    effort: str | None = None
    max_tokens: Tokens = None
    exclude: bool | None = None
    enabled: bool | None = None


class TemplateSwitches(BaseModel):
    """What vLLM's and SGLang's clients tell the chat template: the switch of hybrid models, by both of its names."""

    model_config = ConfigDict(extra="allow")

    enable_thinking: bool | None = None
    thinking: bool | None = None


@dataclass(frozen=True)
class Wish:
    """How a request wants the model to think, whichever of the keys says so; at most one of these is set.

    Attributes:
        method: spelled as on the command line.
        effort: a `reasoning_effort`.
        budget: tokens of thinking at most.
        off: no thinking.
    """

    method: str | None = None
    effort: str | None = None
    budget: int | None = None
    off: bool = False


class ChatRequest(BaseModel):
    """The body of a chat completion.

    Attributes:
        method: ours: how to think, spelled as on the command line.
        stop_in_thinking: ours: `stop` acts on all that is written, and not on the answer alone.
        top_k, min_p: ours, as in `Sampling`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2), NUMBER] | None = None
    top_p: Annotated[float, Field(ge=0, le=1), NUMBER] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000), NUMBER] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1), NUMBER] | None = None
    max_tokens: Annotated[Annotated[int, Field(ge=1), NUMBER] | None, BeforeValidator(_no_limit)] = None
    max_completion_tokens: Annotated[Annotated[int, Field(ge=1), NUMBER] | None, BeforeValidator(_no_limit)] = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63), NUMBER] | None = None
    n: Annotated[int, Field(ge=1), NUMBER] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[
        Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=16)] | None,
        BeforeValidator(_texts_of),
    ] = None
    stop_in_thinking: bool | None = None
    reasoning_effort: str | None = None
    reasoning: Reasoning | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: Tokens = None
    chat_template_kwargs: TemplateSwitches | None = None
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
            param = ".".join(map(str, first["loc"]))[:ECHOED] or None
            raise Refusal(400, f"{param or 'the body'} {misfit(cls, first, none=False)}", param=param) from None
        for name, value in (request.model_extra or {}).items():
            if name in IGNORED or (name in UNUSED and (value is None or value in UNUSED[name])):
                continue
            if name in UNUSED:
                raise Refusal(400, f"{name} is not supported; leave it out", param=name, code="unsupported_parameter")
            if value is None or value == {}:
                continue
            near = difflib.get_close_matches(name[:ECHOED], [*cls.model_fields, *UNUSED], n=1, cutoff=0.75)
            hint = f"; {HINTS[name]}" if name in HINTS else f", did you mean {near[0]!r}?" if near else "; leave it out"
            message = f"there is no parameter {quoted(name)}{hint}"
            raise Refusal(400, message, param=name[:ECHOED], code="unknown_parameter")
        request._check_stream_options()
        for name in ("reasoning", "chat_template_kwargs"):
            for key, value in (getattr(getattr(request, name), "model_extra", None) or {}).items():
                if value is not None:
                    message = f"{name}.{quoted(key)[1:-1]} is not supported; leave it out"
                    raise Refusal(400, message, param=name, code="unsupported_parameter")
        request.wish()  # refused here, where it contradicts itself
        return request

    def _thoughts(self) -> list[tuple[str, Wish]]:
        """What each of the keys says about thinking."""
        reasoning = self.reasoning or Reasoning()
        switches = self.chat_template_kwargs or TemplateSwitches()
        budget = self.thinking_token_budget
        said = [
            ("reasoning_effort", self.reasoning_effort is not None and Wish(effort=self.reasoning_effort)),
            ("method", self.method is not None and Wish(method=self.method)),
            ("reasoning.effort", reasoning.effort is not None and Wish(effort=reasoning.effort)),
            ("reasoning.max_tokens", reasoning.max_tokens is not None and Wish(budget=reasoning.max_tokens)),
            ("thinking_token_budget", budget is not None and Wish(budget=budget)),
            ("reasoning.enabled", reasoning.enabled is False and Wish(off=True)),
            ("chat_template_kwargs.enable_thinking", switches.enable_thinking is False and Wish(off=True)),
            ("chat_template_kwargs.thinking", switches.thinking is False and Wish(off=True)),
        ]
        return [(name, wish) for name, wish in said if isinstance(wish, Wish)]

    def wish(self) -> Wish:
        """How to think, as the one key says that says it, or several that say the same.

        Raises:
            Refusal: two keys say different things.
        """
        thoughts = self._thoughts()
        for name, wish in thoughts[1:]:
            first, held = thoughts[0]
            if wish != held:
                message = f"{first} and {name} both say how to think; leave one of them out"
                raise Refusal(400, message, param=first)
        off = next((name for name, wish in thoughts if wish.off), None)
        if off is not None and self.wants_thinking:
            raise Refusal(400, f"{off} is false, and another key asks for thinking; leave one of them out", param=off)
        return thoughts[0][1] if thoughts else Wish()

    @property
    def wants_thinking(self) -> bool:
        """Whether the request says in so many words that the model is to think."""
        reasoning, switches = self.reasoning or Reasoning(), self.chat_template_kwargs or TemplateSwitches()
        return True in (reasoning.enabled, switches.enable_thinking, switches.thinking)

    @property
    def shows_thinking(self) -> bool:
        """Whether the thinking is part of the response."""
        return self.include_reasoning is not False and not (self.reasoning is not None and self.reasoning.exclude)

    @property
    def stops(self) -> Stops:
        """The stop texts, and where they act."""
        return Stops(tuple(dict.fromkeys(self.stop or ())), in_thinking=bool(self.stop_in_thinking))

    def _check_stream_options(self) -> None:
        options = self.stream_options
        if options is None:
            return
        if not self.stream:
            raise Refusal(400, "stream_options acts with stream=true only; leave it out", param="stream_options")
        if options.continuous_usage_stats:
            message = (
                "stream_options.continuous_usage_stats is not supported: leave it out, and include_usage gives the "
                "usage in the last chunk"
            )
            param = "stream_options.continuous_usage_stats"
            raise Refusal(400, message, param=param, code="unsupported_parameter")
        for name, value in (options.model_extra or {}).items():
            if value:
                message = f"there is no {quoted(name)} in stream_options; leave it out"
                raise Refusal(400, message, param="stream_options", code="unknown_parameter")

    def problem(self) -> Problem:
        """The conversation as a problem: the last message is its question.

        Raises:
            Refusal: the messages are no conversation that ends with the user, or hold more than text.
        """
        turns = [(str(message.get("role")), _text(place, message)) for place, message in enumerate(self.messages)]
        first = next((place for place, (role, _) in enumerate(turns) if role not in ("system", "developer")), None)
        if first is None:
            raise Refusal(400, "the last message must be the user's", param="messages")
        for place, (role, _) in enumerate(turns[first:], start=first):
            if role not in ("user", "assistant"):
                expected = "system, developer, user or assistant" if place == 0 else "user or assistant"
                where = f"messages.{place}.role"
                raise Refusal(400, f"{where} is {quoted(role)}; it must be {expected} there", param=where)
        if turns[-1][0] != "user":
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
        # Other servers' ways to say that a truncation is off.
        said["top_p"] = 1.0 if said["top_p"] == 0 else said["top_p"]
        said["top_k"] = 0 if said["top_k"] == -1 else said["top_k"]
        said["max_tokens"] = asked or min(default.max_tokens, max_tokens)
        return {name: value for name, value in said.items() if value is not None}


def _text(place: int, message: Mapping[str, Any]) -> str:
    """What a message says; nothing where an assistant's turn holds no content, which clients send of a cut response."""
    for name, value in message.items():
        if (name not in MESSAGE_FIELDS and value) or (name == "type" and value not in (None, "", "message")):
            where = f"messages.{place}.{name[:60]}"
            raise Refusal(400, f"{where} is not supported: a message holds a role and text", param=where)
    content = message.get("content")
    where = f"messages.{place}.content"
    of_assistant = message.get("role") == "assistant"
    if isinstance(content, str):
        return content
    if of_assistant and (content is None or content == []):
        return ""
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        kinds = [str(part.get("type")) for part in content]  # a client may send anything here, lists too
        parts = [
            (kind, part.get("text"))
            for kind, part in zip(kinds, content, strict=True)
            if not (of_assistant and kind in THINKING_PARTS)
        ]
        if all(kind in TEXT_PARTS and isinstance(text, str) for kind, text in parts):
            return "".join(text for _, text in parts)
    raise Refusal(400, f"{where} must be a text, or a list of parts of type text", param=where)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of a request's choices; the first has the request's own."""
    return derive_seed(seed, f"choice/{choice}") >> (63 - SEED_BITS) if choice else seed


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
    """Tokens of the prompt and of what is returned, and all that was generated for it."""
    prompt = len(traces[0].prompt_ids)

    def paid(name: str) -> int:
        return sum(getattr(trace.cost, name) for trace in traces)

    return {
        "prompt_tokens": prompt,
        "completion_tokens": paid("retained_tokens"),
        "total_tokens": prompt + paid("retained_tokens"),
        "completion_tokens_details": {
            "reasoning_tokens": paid("thinking_tokens"),
            "probe_tokens": paid("probe_tokens"),
            "branch_tokens": paid("branch_tokens"),
            "outline_tokens": paid("outline_tokens"),
            "generated_tokens": paid("total_tokens"),
        },
    }


def finish_reason(trace: Trace) -> str:
    """In OpenAI's words."""
    return "stop" if trace.finished else "length"


def one_line(text: str) -> str:
    """A text for a log: no line breaks, no control characters."""
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]", "?", text)
