"""What is known of where early exit pays off: facts that hold together, and a sentence where they speak against it."""

from types import SimpleNamespace

import pytest

from satisfice.engines.loading import SETTINGS
from satisfice.intervention import METHODS, parse_method
from satisfice.intervention.paying_off import ENGINES, MEASURED, Measured, slower

FACTS = (Measured("deer", "openai", 0.4, 0.6, 1.25), Measured("deer", "vllm", 0.4, 0.5, 0.5))


def on(kind):
    return SimpleNamespace(name=f"{kind}:some-model")


def test_the_facts_are_about_methods_and_engines_that_there_are():
    assert set(ENGINES) == set(SETTINGS)
    assert len({(one.method, one.engine) for one in MEASURED}) == len(MEASURED) > 0
    for one in MEASURED:
        assert one.method in METHODS
        assert one.engine in ENGINES
        assert 0 < one.kept <= 1
        assert min(one.alone, one.together, one.busy or 1) > 0


@pytest.mark.parametrize("spelled", ["deer", "deer:threshold=0.9", "deer+temperature-scaling:t=0.9"])
def test_a_method_that_costs_more_than_it_saves_is_named_once(spelled, monkeypatch):
    monkeypatch.setattr("satisfice.intervention.paying_off.MEASURED", FACTS)
    (said,) = slower([parse_method("plain"), parse_method(spelled), parse_method("deer")], on("openai"))
    assert said.startswith("deer costs more time than it saves on a vLLM server over HTTP")
    assert "kept 40% of plain's tokens and took 0.60 times its time one problem at a time, 1.25 times with 32" in said


def test_a_method_that_saves_time_on_an_idle_engine_alone_is_named(monkeypatch):
    facts = (
        Measured("deer", "vllm", 0.4, 0.5, 0.5, busy=1.12),
        Measured("fractured-stop", "vllm", 0.4, 0.5, 0.5, busy=0.9),
    )
    monkeypatch.setattr("satisfice.intervention.paying_off.MEASURED", facts)
    (said,) = slower([parse_method("deer"), parse_method("fractured-stop")], on("vllm"))
    assert said.startswith("deer costs")
    assert "0.50 times with 32 at once, 1.12 times while others waited (" in said


def test_nothing_is_said_where_time_is_saved_or_nothing_is_known(monkeypatch):
    monkeypatch.setattr("satisfice.intervention.paying_off.MEASURED", FACTS)
    assert slower([parse_method("deer")], on("vllm")) == []
    assert slower([parse_method("deer")], on("transformers")) == []
    assert slower([parse_method("deer")], on("somebody's")) == []
    assert slower([parse_method("plain")], on("openai")) == []
