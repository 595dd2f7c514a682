"""The method thinking-budget: where it closes thinking, what its ramp does, and what it says of itself."""

import asyncio

import pytest
from intervention.scripted import ScriptedEngine
from intervention.thinker import ANSWER, thinker

from satisfice.engines.base import Capability, EngineError, Sampling
from satisfice.intervention import MethodError, parse_method
from satisfice.intervention.controls import ThinkingBudget
from satisfice.problems import Problem

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
LONG = "Start: 1.\n\n" + "Wait, let me check.\nSo 3.\n\n" * 8 + "</think>"


def solve(tokenizer, spelled, thinking=LONG, max_tokens=200, **options):
    engine = ScriptedEngine(tokenizer, thinker(tokenizer, thinking, {}), **options)
    method = parse_method(spelled)
    return asyncio.run(method.solve(engine, PROBLEM, Sampling(temperature=0, max_tokens=max_tokens))), engine


def test_the_cap_closes_thinking_and_is_the_methods_doing(tokenizer):
    trace, engine = solve(tokenizer, "thinking-budget:max_thinking=20,ramp_bias=0")
    assert len(engine.calls) == 1, "one call of the engine"
    assert trace.stop == "closed by method"
    assert trace.thinking_span[1] - 20 in (1, 2, 3), "the marker, and a line break before it where one is due"
    assert trace.cost.forced_tokens == trace.thinking_span[1] - 20 + 1, "and the empty line after the marker"
    assert [(event.kind, event.at) for event in trace.events] == [("closed", trace.thinking_span[1])]
    assert trace.answer.strip() == ANSWER.strip()
    assert trace.finished


def test_thinking_that_ends_before_the_cap_is_the_models_doing(tokenizer):
    plain, _ = solve(tokenizer, "plain", "So 3.\n\n</think>")
    trace, _ = solve(tokenizer, "thinking-budget:max_thinking=40", "So 3.\n\n</think>")
    assert trace.response_ids == plain.response_ids
    assert (trace.stop, trace.cost.forced_tokens, trace.events) == ("marker", 0, [])


def test_the_ramp_ends_thinking_before_the_cap_and_the_steeper_the_sooner(tokenizer):
    ends = [
        solve(tokenizer, f"thinking-budget:max_thinking=60,ramp_from=0.25,ramp_bias={bias}")[0].thinking_span[1]
        for bias in (1, 60, 200)
    ]
    assert ends[0] > 60
    assert 60 > ends[1] > ends[2] > 15
    later, _ = solve(tokenizer, "thinking-budget:max_thinking=60,ramp_from=0.5,ramp_bias=200")
    assert 30 < later.thinking_span[1] < 60
    assert later.stop == "marker"


def test_a_cue_follows_a_forced_marker(tokenizer):
    trace, _ = solve(tokenizer, 'thinking-budget:max_thinking=12,ramp_bias=0,cue="The answer is "')
    assert trace.answer.lstrip().startswith("The answer is ")


def test_the_control_is_that_of_the_keys_of_a_request():
    method = parse_method("thinking-budget:max_thinking=100,ramp_from=0.8,ramp_bias=4")
    assert method.control(None) == ThinkingBudget(most=100, ramp_start=80, ramp_bias=4)
    hard = parse_method("thinking-budget:max_thinking=100,ramp_bias=0").control(None)
    assert (hard.most, hard.ramp_start) == (100, None)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("thinking-budget:max_thinking=0", "max_thinking is 0; it must be"),
        ("thinking-budget:ramp_from=1", "ramp_from is 1; it must be"),
        ("thinking-budget:ramp_bias=-1", "ramp_bias is -1; it must be"),
        ("entrocut:tau=0.1+thinking-budget", "thinking-budget follows the tokens of one engine call"),
        ("thinking-budget+temperature-scaling", "thinking-budget is a control itself"),
    ],
)
def test_what_it_cannot_be_is_one_sentence(spelled, message):
    with pytest.raises(MethodError, match=message):
        parse_method(spelled)


def test_an_engine_without_control_is_refused(tokenizer):
    engine = ScriptedEngine(tokenizer, dict, without=[Capability.CONTROL])
    with pytest.raises(EngineError, match="thinking-budget needs control"):
        parse_method("thinking-budget").check(engine)
