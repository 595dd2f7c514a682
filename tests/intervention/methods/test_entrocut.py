"""EntroCut, decision by decision, on a scripted engine."""

import asyncio
import math

import pytest
from intervention.scripted import ScriptedEngine, nats
from intervention.thinker import ANSWER, SURE, RecordingEngine, count, play, thinker

from satisfice.engines.base import Capability, EngineError, Sampling, require
from satisfice.intervention import MethodError, describe, parse_method
from satisfice.intervention.composed import compose
from satisfice.intervention.methods.entrocut import EntroCut
from satisfice.intervention.methods.plain import Plain
from satisfice.problems import Problem
from satisfice.thinking import ThinkingFormat

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
GREEDY = Sampling(temperature=0, max_tokens=200)

CUE = EntroCut.cue
FIRST = "So 1, 3.\nSo 3.\n\n"
SECOND = "Wait, let me check.\nSo 1, 3.\nYes, 3.\n\n"
THIRD = "Hmm, let me verify.\nSo 1, 3.\nYes.\n\n"
THINKING = FIRST + SECOND + THIRD + "</think>"
UNSURE = {"3": 0.9, "7": 0.1 - 1e-9}
TORN = {"}": 0.5, "**": 0.5 - 1e-9}


def solve(engine, method, sampling=GREEDY, problem=PROBLEM):
    return asyncio.run(method.solve(engine, problem, sampling))


def engine_for(tokenizer, part=None, thinking=THINKING, cue=CUE, **options):
    parts = {} if part is None else {cue: part}
    return RecordingEngine(tokenizer, thinker(tokenizer, thinking, parts), **options)


def probes(trace):
    return [event for event in trace.events if event.kind == "probe"]


def entropies(trace):
    return [event.detail["entropy"] for event in probes(trace)]


# -- the algorithm


def test_a_model_that_is_never_sure_answers_as_plain_decoding_does(tokenizer):
    part = play(tokenizer, UNSURE, TORN)
    expected = (nats(0.9, 0.1) + math.log(2)) / 2
    exactly = entropies(solve(engine_for(tokenizer, part), EntroCut(tau=0.01, k=2)))[0]
    assert exactly == pytest.approx(expected, abs=1e-6)
    engine = engine_for(tokenizer, part)
    trace = solve(engine, EntroCut(tau=exactly, k=2))  # below means below
    plain = solve(engine_for(tokenizer), Plain())
    assert trace.response_ids == plain.response_ids
    assert (trace.thinking, trace.answer, trace.stop) == (plain.thinking, plain.answer, "marker")
    assert entropies(trace) == [exactly] * 3
    ends = [count(tokenizer, text) for text in (FIRST, FIRST + SECOND, FIRST + SECOND + THIRD)]
    assert [event.at for event in trace.events] == ends
    assert [event.detail["answer"] for event in trace.events] == ["3}"] * 3
    assert trace.cost.probe_tokens == 6
    assert trace.cost.retained_tokens == plain.cost.retained_tokens
    assert trace.cost.forward_passes == plain.cost.forward_passes + 6
    # A probe computes the newest token of the chain and its cue, whose last token the first step takes in.
    assert trace.cost.prefilled_tokens == plain.cost.prefilled_tokens + 3 * count(tokenizer, "</think>\n\n" + CUE)


def test_thinking_is_cut_below_tau_and_answered(tokenizer):
    part = play(tokenizer, UNSURE, TORN)
    exactly = entropies(solve(engine_for(tokenizer, part), EntroCut(tau=0.01, k=2)))[0]
    engine = engine_for(tokenizer, part)
    trace = solve(engine, EntroCut(tau=math.nextafter(exactly, 1), k=2))
    assert (trace.thinking, trace.answer, trace.stop) == (FIRST, ANSWER, "closed by method")
    assert trace.finished
    assert trace.cost.probe_tokens == 2
    assert trace.cost.forced_tokens == 2
    assert trace.cost.total_tokens == trace.cost.retained_tokens + 2
    assert probes(trace)[0].detail["exit"] is True
    assert engine.probes(CUE) == [(FIRST + "</think>\n\n" + CUE, "3}")]


def test_only_the_first_k_tokens_count(tokenizer):
    part = play(tokenizer, {"(": SURE}, UNSURE, TORN)
    for k, expected in ((1, 0.0), (2, nats(0.9, 0.1) / 2), (3, (nats(0.9, 0.1) + math.log(2)) / 3)):
        trace = solve(engine_for(tokenizer, part), EntroCut(tau=1e-9, k=k))
        assert entropies(trace)[0] == pytest.approx(expected, abs=1e-6)
        assert trace.cost.probe_tokens == 3 * k


def test_a_probe_that_ends_the_text_early_is_averaged_over_what_there_is(tokenizer):
    trace = solve(engine_for(tokenizer, play(tokenizer, UNSURE)), EntroCut(tau=1e-9, k=10))
    assert trace.cost.probe_tokens == 6  # the token and the end of text, three times
    assert entropies(trace) == pytest.approx([nats(0.9, 0.1) / 2] * 3, abs=1e-6)


def test_entropies_are_those_of_the_model_whatever_the_sampling(tokenizer):
    sampling = Sampling(temperature=2, top_p=0.5, top_k=1, max_tokens=200)
    trace = solve(engine_for(tokenizer, play(tokenizer, UNSURE)), EntroCut(tau=1e-9, k=1, max_probes=1), sampling)
    assert entropies(trace) == pytest.approx([nats(0.9, 0.1)], abs=1e-6)


def test_the_probe_may_stand_inside_thinking(tokenizer):
    engine = engine_for(tokenizer, play(tokenizer, UNSURE))
    solve(engine, EntroCut(tau=1e-9, k=1, close=False, max_probes=1))
    assert engine.probes(CUE) == [(FIRST + CUE, "3")]


# -- when to probe


def test_markers_as_a_trigger(tokenizer):
    engine = engine_for(tokenizer, play(tokenizer, {"3": SURE}))
    trace = solve(engine, EntroCut(tau=1e-12, trigger="marker", k=1))
    assert [event.at for event in probes(trace)] == [count(tokenizer, FIRST), count(tokenizer, FIRST + SECOND)]
    cut = solve(engine_for(tokenizer, play(tokenizer, UNSURE)), EntroCut(tau=1, trigger="marker", k=1, markers="Hmm"))
    assert cut.thinking == FIRST + SECOND
    assert cut.cost.probe_tokens == 1 + 2  # the marker and the comma behind it are taken back


def test_an_interval_as_a_trigger(tokenizer):
    engine = engine_for(tokenizer, play(tokenizer, UNSURE))
    trace = solve(engine, EntroCut(tau=1e-9, trigger="interval", every=7, k=1))
    length = count(tokenizer, THINKING)
    assert [event.at for event in probes(trace)] == list(range(7, length, 7))
    assert trace.response_ids == solve(engine_for(tokenizer), Plain()).response_ids
    cut = solve(engine_for(tokenizer, play(tokenizer, UNSURE)), EntroCut(tau=1, trigger="interval", every=7, k=1))
    assert (cut.cost.thinking_tokens, cut.stop) == (7 + 2, "closed by method")  # a line break and the marker


def test_the_thinking_of_an_interval_is_closed_before_the_cue(tokenizer):
    engine = engine_for(tokenizer, play(tokenizer, UNSURE))
    solve(engine, EntroCut(tau=1e-9, trigger="interval", every=3, k=1, max_probes=1))
    assert engine.probes(CUE) == [("So 1, " + "\n</think>\n\n" + CUE, "3")]


@pytest.mark.parametrize("trigger", ["paragraph", "marker", "interval"])
def test_sampling_goes_on_as_if_nobody_had_asked(tokenizer, trigger):
    def script(text):
        response = text.rpartition("<|assistant|>")[2]
        if CUE in response:
            return {"3": 0.5, "7": 0.4}
        if response.endswith("\n\n"):
            return {"Wait": 0.45, "Alternatively": 0.25, "Hmm": 0.2, "</think>": 0.1}
        return {". ": 0.3, ", ": 0.3, "\n\n": 0.3, "</think>": 0.1}

    made = 0
    for seed in range(10):
        sampling = Sampling(temperature=1, top_p=1, max_tokens=60, seed=seed)
        options = {"every": 5} if trigger == "interval" else {}
        trace = solve(
            ScriptedEngine(tokenizer, script), EntroCut(tau=1e-9, trigger=trigger, think_ratio=1, **options), sampling
        )
        assert trace.response_ids == solve(ScriptedEngine(tokenizer, script), Plain(), sampling).response_ids
        made += len(probes(trace))
    assert made >= 10


# -- the ends of thinking


@pytest.mark.parametrize("trigger", ["paragraph", "marker", "interval"])
def test_end_of_text_inside_thinking_becomes_a_conclusion(tokenizer, trigger):
    trace = solve(engine_for(tokenizer, thinking="So 3."), EntroCut(tau=0.1, trigger=trigger))
    assert (trace.thinking, trace.answer, trace.stop) == ("So 3.\n", ANSWER, "closed by method")
    assert probes(trace) == []


@pytest.mark.parametrize("trigger", ["paragraph", "marker", "interval"])
def test_a_model_that_closes_thinking_itself_goes_to_its_conclusion(tokenizer, trigger):
    trace = solve(engine_for(tokenizer, thinking="So 3.\n</think>"), EntroCut(tau=0.1, trigger=trigger))
    assert (trace.thinking, trace.answer, trace.stop, trace.events) == ("So 3.\n", ANSWER, "marker", [])


@pytest.mark.parametrize("trigger", ["paragraph", "marker", "interval"])
def test_the_end_of_the_thinking_budget_leads_to_the_conclusion(tokenizer, trigger):
    budget = count(tokenizer, "So 1, 3")
    trace = solve(engine_for(tokenizer), EntroCut(tau=0.1, trigger=trigger, think_ratio=(budget + 0.5) / 200))
    assert (trace.thinking, trace.answer, trace.stop) == ("So 1, 3\n", ANSWER, "closed by method")


def test_a_budget_that_ends_with_a_paragraph_needs_no_probe(tokenizer):
    budget = count(tokenizer, FIRST)
    engine = engine_for(tokenizer, play(tokenizer, UNSURE))
    trace = solve(engine, EntroCut(tau=0.1, think_ratio=(budget + 0.5) / 200))
    assert (trace.thinking, probes(trace)) == (FIRST, [])


def test_after_max_probes_the_model_is_left_alone(tokenizer):
    for trigger in ("paragraph", "marker", "interval"):
        engine = engine_for(tokenizer, play(tokenizer, UNSURE))
        options = {"every": 5} if trigger == "interval" else {}
        trace = solve(engine, EntroCut(tau=1e-9, max_probes=1, trigger=trigger, **options))
        assert len(probes(trace)) == 1
        assert trace.response_ids == solve(engine_for(tokenizer), Plain()).response_ids
        assert len(engine.calls) <= 5  # the way to the probe, the probe, the rest of thinking, the answer


@pytest.mark.parametrize("trigger", ["paragraph", "marker", "interval"])
def test_a_response_without_thinking_is_left_alone(tokenizer, trigger):
    thinking = ThinkingFormat("other", "<|user|>", "Therefore", "<|user|>", "Therefore")
    engine = engine_for(tokenizer, thinking=FIRST + SECOND)
    engine.thinking = thinking
    options = {"every": 5} if trigger == "interval" else {}
    trace = solve(engine, EntroCut(tau=100, trigger=trigger, **options))
    assert (trace.stop, trace.finished, trace.events) == ("not opened", True, [])
    assert trace.cost.probe_tokens == trace.cost.forced_tokens == 0


def test_a_probe_that_the_context_has_no_room_for_cuts_nothing(tokenizer):
    prompt = len(solve(engine_for(tokenizer), Plain()).prompt_ids)
    length = prompt + count(tokenizer, FIRST + "</think>\n\n" + CUE)
    trace = solve(engine_for(tokenizer, context_length=length), EntroCut(tau=100, think_ratio=1, max_probes=1))
    assert entropies(trace) == [math.inf]
    assert not trace.finished


def test_on_the_embedded_engine_probes_leave_no_trace(make_engine):
    engine = make_engine()
    samplings = (Sampling(temperature=1, top_p=1, max_tokens=100, seed=n, ignore_eos=True) for n in range(20))
    plain, sampling = next(
        (plain, sampling) for sampling in samplings if (plain := solve(engine, Plain(), sampling)).stop == "token limit"
    )
    trace = solve(engine, EntroCut(tau=1e-9, trigger="interval", every=16, think_ratio=1), sampling)
    assert len(probes(trace)) == 6
    assert all(0 < entropy < math.log(200) for entropy in entropies(trace))
    assert trace.response_ids == plain.response_ids


# -- tau


def test_tau_must_be_given():
    with pytest.raises(MethodError) as caught:
        EntroCut()
    message = str(caught.value)
    assert "no published value and no default" in message
    assert "satisfice calibrate MODEL --methods entrocut" in message
    assert "tau=0.1 nats" in message
    assert "\n" not in message


# -- together with a control, and refusals


def test_a_control_bends_thinking_and_leaves_the_probes_alone(tokenizer):
    base = thinker(tokenizer, THINKING, {CUE: play(tokenizer, {"3": 0.5, "</think>": 0.4})})

    def script(text):
        return {"Hmm": 0.7, "</think>": 0.2} if text.endswith(SECOND) else base(text)

    engine = RecordingEngine(tokenizer, script)
    trace = solve(engine, compose([EntroCut(tau=1e-9, k=1), parse_method("temperature-scaling:mode=bias,bias=2")]))
    assert (trace.thinking, trace.stop) == (FIRST + SECOND, "marker")
    assert probes(trace)[0].detail["answer"] == "3"
    for text, control in engine.controls:
        assert (control is None) == ("</think>" in text.rpartition("<|assistant|>")[2])


def test_needs_an_engine_that_gives_entropies(tokenizer):
    engine = engine_for(tokenizer, without=[Capability.ENTROPY])
    with pytest.raises(EngineError, match="entrocut needs entropy, which scripted does not offer"):
        require(engine, EntroCut(tau=1).needs, EntroCut.name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0}, "tau is 0; it must be above 0"),
        ({"k": 0}, "k is 0; it must be at least 1"),
        ({"trigger": "token"}, "must be paragraph, marker or interval"),
        ({"every": 5}, "every acts with trigger=interval only"),
        ({"trigger": "interval", "every": 0}, "must be at least 1"),
        ({"markers": "Hmm"}, "markers acts with trigger=marker only"),
        ({"trigger": "marker", "markers": "Hmm|"}, "must be words separated by |"),
        ({"cue": "", "close": False}, "must be a text that asks for an answer"),
        ({"max_probes": 0}, "must be at least 1"),
        ({"think_ratio": 1.1}, "must be above 0 and at most 1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_in_one_sentence(options, message):
    with pytest.raises(MethodError) as caught:
        EntroCut(**{"tau": 0.1, **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_cue_is_written_in_the_words_of_the_lab(tokenizer):
    assert tokenizer.unk_token_id not in tokenizer(CUE, add_special_tokens=False)["input_ids"]


def test_every_parameter_is_described():
    assert all(parameter["meaning"] for parameter in describe(EntroCut)["parameters"])
    assert str(EntroCut(tau=0.25)) == "entrocut:tau=0.25"
