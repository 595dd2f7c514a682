"""Engines by name, and other models beside the first."""

import pytest

from satisfice.engines import loading
from satisfice.engines.base import EngineError
from satisfice.engines.loading import opened_engine
from satisfice.thinking import UnknownThinkingFormat


class Loaded:
    """Stands in for an engine."""

    def __init__(self, model):
        self.model = model
        self.closed = 0

    def close(self):
        self.closed += 1


def test_companions_are_attached_and_all_engines_are_closed(monkeypatch):
    loaded = []

    def load(engine, model, *, thinking=None, **settings):
        if model == "missing":
            raise EngineError("cannot load the model missing")
        loaded.append((Loaded(model), engine, thinking, settings))
        return loaded[-1][0]

    monkeypatch.setattr(loading, "load_engine", load)
    companions = {"instruct": "small"}
    with opened_engine(
        "vllm", "big", thinking="qwen3", companions=companions, gguf_file="big.gguf", device="cpu"
    ) as it:
        assert it.companions["instruct"].model == "small"
        assert [each.closed for each, *_ in loaded] == [0, 0]
    assert [each.closed for each, *_ in loaded] == [1, 1]
    # What belongs to the one model's files is not asked of the other's.
    assert loaded[0][1:] == ("vllm", "qwen3", {"gguf_file": "big.gguf", "device": "cpu"})
    assert loaded[1][1:] == ("vllm", None, {"gguf_file": None, "tokenizer": None, "device": "cpu"})
    missing = opened_engine("vllm", "big", companions={"instruct": "missing"})
    with pytest.raises(EngineError, match="missing"), missing:
        pass
    assert [each.closed for each, *_ in loaded] == [1, 1, 1]


def test_a_companion_that_does_not_think_is_welcome(monkeypatch):
    def load(engine, model, *, thinking=None, **settings):
        if model == "instruct" and thinking is None:
            raise UnknownThinkingFormat("cannot tell how this model marks its thinking")
        loaded = Loaded(model)
        loaded.thinking = thinking
        return loaded

    monkeypatch.setattr(loading, "load_engine", load)
    with opened_engine("transformers", "big", companions={"helper": "instruct"}) as engine:
        assert engine.companions["helper"].thinking.close == "</think>"
