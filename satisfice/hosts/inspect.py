"""satisfice in Inspect: every engine and method as a model, and a method as a solver.

    inspect eval task.py --model satisfice/lab -M method=deer
    inspect eval task.py --model satisfice/lab --solver satisfice/thinking -S method=deer

Inspect finds both by the entry point `inspect_ai`, whose module it imports with every command, so the heavy parts are
imported when a model is made. What Inspect asks of a model is read as `satisfice serve` reads a request, and refused
in the same words.
"""

import json
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.solver._task_state import sample_state
from inspect_ai.tool import ToolChoice, ToolInfo

if TYPE_CHECKING:
    from satisfice.server.protocol import ChatRequest
    from satisfice.trace import Trace

RENAMED = {
    "stop_seqs": "stop",
    "num_choices": "n",
    "reasoning_tokens": "thinking_token_budget",
    "response_schema": "response_format",
}
"""Settings of Inspect that `satisfice serve` knows by other names."""

OF_INSPECT = frozenset(
    {
        "adaptive_connections", "attempt_timeout", "batch", "cache", "cache_prompt", "extra_body", "extra_headers",
        "fail_on_refusal", "fallback_models", "internal_tools", "max_connections", "max_retries", "max_tool_output",
        "reasoning_history", "reasoning_summary", "stream_idle_timeout", "system_message", "timeout",
    }
)  # fmt: skip
"""Settings that Inspect obeys itself, or that say nothing about a response; all others are asked of the model."""

REMEDY = (
    "here ({known}): say what it stands for with -M efforts='{{low: METHOD}}', or name a method with -M method=METHOD"
)
"""How a refusal of a `reasoning_effort` goes on."""


@modelapi(name="satisfice")  # type: ignore[untyped-decorator]
def satisfice() -> type[ModelAPI]:
    """What Inspect makes a model of where it is asked for `satisfice/MODEL`."""
    return SatisficeAPI


class SatisficeAPI(ModelAPI):
    """A model on an engine of ours: `--model satisfice/MODEL`, where MODEL is what `satisfice compare` takes.

    Args:
        model_name: MODEL.
        base_url: of the server that `-M engine=openai` asks; `--model-base-url`.
        api_key: not used; a server's key is in the environment, see `-M api_key_env`.
        config: Inspect's settings; each call has its own.
        method: how to think, spelled as on the command line. A list is one spelling that Inspect has cut at its commas.
        efforts: methods by `reasoning_effort`; "low", "medium" and "high" are the levels of a model that has them.
        engine: "transformers", "vllm" or "openai".
        thinking_format: how the model marks thinking, where it is not detected.
        companions: other models by the name under which a method asks for them.
        settings: of the engine, as its command-line options are called: device, dtype, threads, max_batch, ...

    Raises:
        ValueError: there is no such method, effort, engine or setting, or the engine cannot load the model or serve
            the method.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # as Inspect's own providers have it
        *,
        method: str | list[str] = "plain",
        efforts: dict[str, str] | None = None,
        engine: str = "transformers",
        thinking_format: str | None = None,
        companions: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        from satisfice.engines.loading import SETTINGS, opened_engine
        from satisfice.intervention import parse_method
        from satisfice.server.wishes import efforts_from
        from satisfice.thinking import ThinkingFormat

        own = ("method", "efforts", "engine", "thinking_format", "companions")
        known = (*own, *sorted(frozenset().union(*SETTINGS.values()) - {"base_url"}))
        for name in settings.keys() - {*known}:
            raise ValueError(f"-M {name}: there is no such setting; a model of satisfice has {', '.join(known)}")
        self._method = parse_method(_spelled(method))
        self._opened = ExitStack()
        self._engine = self._opened.enter_context(
            opened_engine(
                engine,
                model_name,
                thinking=ThinkingFormat.parse(thinking_format) if thinking_format else None,
                companions=companions,
                base_url=base_url,
                **settings,
            )
        )
        try:
            self._efforts = efforts_from(efforts or {}, self._engine.levels)
            for each in (self._method, *self._efforts.values()):
                each.check(self._engine)
        except BaseException:
            self._opened.close()
            raise

    def close(self) -> None:
        """Close the engine."""
        self._opened.close()

    def collapse_user_messages(self) -> bool:
        """Chat templates want turns that alternate."""
        return True

    async def tokenize(self, text: str) -> list[int]:
        """The model's own tokens."""
        return list(self._engine.tokenizer.encode(text, add_special_tokens=False))

    async def count_text_tokens(self, text: str) -> int:
        """Inspect's own counting needs a file from the network."""
        return len(await self.tokenize(text))

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One response or several, each by the method.

        Args:
            input: the conversation; it ends with the user.
            tools: there can be none.
            tool_choice: means nothing without them.
            config: `reasoning_effort`, `reasoning_tokens` and `method` in `extra_body` take the method's place. `seed`
                is of the whole evaluation: each sample and epoch derives its own from it, the same for every method.

        Raises:
            Refusal: the conversation or a setting asks for what we cannot do; the message says what to change.
            EngineError: the engine cannot serve it.
        """
        from satisfice.intervention.method import together
        from satisfice.server.wishes import method_of

        chat = _request(self.model_name, input, tools, config)
        method = method_of(chat, self._method, self._efforts, self._engine, remedy=REMEDY)
        problem, default = chat.problem(), self._engine.default_sampling
        said = chat.sampling(default, max(default.max_tokens, config.max_tokens or 0))
        traces = await together(
            *(
                method.solve(
                    self._engine, problem, replace(default, **said, seed=_seed(config.seed, choice)), stops=chat.stops
                )
                for choice in range(chat.n or 1)
            )
        )
        return _output(self.model_name, traces)


@solver(name="thinking")  # type: ignore[untyped-decorator]
def thinking(method: str | list[str] = "plain") -> Solver:
    """Generate by a method, whatever method the model was given.

    It goes with `--model satisfice/...`: the method travels in the request's body, as `satisfice serve` takes it.

    Args:
        method: spelled as on the command line.

    Raises:
        MethodError: there is no such method.
    """
    from satisfice.intervention import parse_method

    spelled = str(parse_method(_spelled(method)))

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        return await generate(state, extra_body={"method": spelled})

    return solve


def _spelled(method: str | list[str]) -> str:
    return method if isinstance(method, str) else ",".join(map(str, method))


def _seed(seed: int | None, choice: int) -> int:
    """A seed for one choice of the sample that is being solved."""
    from satisfice.runs.experiment import sample_seed
    from satisfice.server.protocol import SEED_BITS, choice_seed

    if seed is None:
        return secrets.randbits(SEED_BITS)
    state = sample_state()
    sample, epoch = ("", 1) if state is None else (state.sample_id, state.epoch)
    return choice_seed(sample_seed(seed, str(sample), epoch - 1), choice)


def _request(
    model: str, messages: Sequence[ChatMessage], tools: Sequence[ToolInfo], config: GenerateConfig
) -> "ChatRequest":
    """What Inspect asks, as a request to `satisfice serve`."""
    from satisfice.server.protocol import ChatRequest

    asked = {
        RENAMED.get(name, name): value
        for name, value in config.model_dump(mode="json", exclude_none=True).items()
        if name not in OF_INSPECT and name != "seed"
    }
    turns = [
        {"role": each.role, "content": each.model_dump(mode="json")["content"], "tool_calls": _calls(each)}
        for each in messages
    ]
    body = {"model": model, "messages": turns, "tools": [each.name for each in tools], **asked}
    return ChatRequest.read(json.dumps(body | (config.extra_body or {})).encode())


def _calls(message: ChatMessage) -> list[str]:
    return [call.function for call in getattr(message, "tool_calls", None) or ()]


def _output(model: str, traces: "Sequence[Trace]") -> ModelOutput:
    """Responses as Inspect logs them.

    Usage is all that was generated for them, probes and branches that were thrown away included, because that is what
    the call cost; what each response holds is in the metadata.
    """
    from satisfice.server.protocol import choice_facts

    spent = sum(trace.cost.total_tokens for trace in traces)
    prompt = len(traces[0].prompt_ids)
    return ModelOutput(
        model=model,
        choices=[
            ChatCompletionChoice(
                message=ChatMessageAssistant(content=_content(trace), model=model, source="generate"),
                stop_reason="stop" if trace.finished else "max_tokens",
            )
            for trace in traces
        ],
        usage=ModelUsage(
            input_tokens=prompt,
            output_tokens=spent,
            total_tokens=prompt + spent,
            reasoning_tokens=sum(trace.cost.thinking_tokens for trace in traces),
        ),
        metadata={"satisfice": [choice_facts(trace) for trace in traces]},
    )


def _content(trace: "Trace") -> list[ContentReasoning | ContentText]:
    thought = [ContentReasoning(reasoning=trace.thinking.strip())] if trace.thinking.strip() else []
    return [*thought, ContentText(text=trace.answer.strip())]
