"""Engines by name: which there are, which settings go with which, and second models beside the first."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from satisfice.engines.base import Engine, EngineError
from satisfice.thinking import ThinkingFormat, UnknownThinkingFormat

SETTINGS: Mapping[str, frozenset[str]] = {
    "transformers": frozenset(
        {"gguf_file", "dtype", "device", "threads", "max_batch", "max_batch_tokens", "attention"}
    ),
    "vllm": frozenset({"dtype", "device", "threads", "max_batch"}),
    "openai": frozenset({"base_url", "tokenizer", "api_key_env", "requests_per_minute", "max_batch"}),
}
"""The settings of each engine, by the names of its `load`."""

OF_WORKERS = frozenset({"workers", "worker_engine", "gpus_per_worker", "ray_address"})
"""What says where workers run that hold one of these engines each: the settings of `satisfice.runs.scale_out`."""

OF_ONE_MODEL = ("gguf_file", "tokenizer")
"""Settings that name a file of the one model; a companion has its own."""


@contextmanager
def opened_engine(
    engine: str,
    model: str,
    *,
    thinking: ThinkingFormat | None = None,
    companions: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[Engine]:
    """The engine of a model with its companions attached; all are closed at the end, whatever happens.

    Args:
        engine, model, thinking, settings: see `load_engine`.
        companions: other models by the names under which methods ask for them; loaded with the same settings, but for
            `OF_ONE_MODEL`.

    Raises:
        EngineError: see `load_engine`.
    """
    with ExitStack() as opened:
        first = load_engine(engine, model, thinking=thinking, **settings)
        opened.callback(first.close)
        attached = {}
        for name, other in (companions or {}).items():
            attached[name] = _load_companion(engine, other, {**settings, **dict.fromkeys(OF_ONE_MODEL)})
            opened.callback(attached[name].close)
        first.companions = attached
        yield first


def _load_companion(engine: str, model: str, settings: Mapping[str, Any]) -> Engine:
    """A companion is most often an instruct model, and need not know how to think."""
    try:
        return load_engine(engine, model, **settings)
    except UnknownThinkingFormat:
        return load_engine(engine, model, thinking=ThinkingFormat.parse("<think>,</think>"), **settings)


def load_engine(engine: str, model: str, *, thinking: ThinkingFormat | None = None, **settings: Any) -> Engine:
    """The engine of that name for a model.

    Args:
        engine: one of `SETTINGS`.
        model: as that engine's `load` takes it.
        thinking: how the model marks thinking, where it cannot be detected.
        settings: passed to `load`; None stands for the engine's default.

    Raises:
        EngineError: there is no such engine, a setting does not go with it, or it cannot load the model.
    """
    given = given_settings(engine, settings)
    if engine == "vllm":
        from satisfice.engines.vllm import VLLMEngine

        return VLLMEngine.load(model, thinking=thinking, **given)
    if engine == "openai":
        from satisfice.engines.openai import OpenAIEngine

        if "base_url" not in given:
            raise EngineError("--engine openai needs --base-url, which says where the server is: http://HOST:PORT/v1")
        return OpenAIEngine.load(model, thinking=thinking, **given)
    from satisfice.engines.transformers import TransformersEngine

    return TransformersEngine.load(model, thinking=thinking, **given)


def given_settings(engine: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not None, each of which goes with the engine.

    Raises:
        EngineError: there is no such engine, or a setting does not go with it.
    """
    if engine == "ray":
        raise EngineError(
            "--engine ray runs whole comparisons on many workers: it goes with `satisfice compare` alone; all else "
            "asks one engine, which may be a server in front of many (--engine openai)"
        )
    if engine not in SETTINGS:
        raise EngineError(f"there is no engine {engine!r}; it must be one of {', '.join(SETTINGS)}")
    given = {name: value for name, value in settings.items() if value is not None}
    for name in sorted(given.keys() - SETTINGS[engine]):
        takers = [other for other, names in SETTINGS.items() if name in names] or ["ray"]
        raise EngineError(f"{_option(name)} goes with --engine {' or '.join(takers)}, not with {engine}")
    return given


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
