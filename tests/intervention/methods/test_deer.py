"""DEER, decision by decision, on a scripted engine."""

import asyncio
import dataclasses
import math
from statistics import fmean

import pytest
from intervention.scripted import ScriptedEngine, nats
from intervention.thinker import ANSWER, SURE, RecordingEngine, count, play, thinker

from satisfice.engines.base import Capability, EngineError, Sampling, require
from satisfice.intervention import MethodError, describe, parse_method
from satisfice.intervention.composed import compose
from satisfice.intervention.methods.deer import Deer, DeerPro, calibrated, mean_probability
from satisfice.intervention.methods.plain import Plain
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem
from satisfice.thinking import ThinkingFormat

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
GREEDY = Sampling(temperature=0, max_tokens=200)
SAMPLED = Sampling(temperature=1, top_p=1, max_tokens=60)

CUE = Deer.inducer
FIRST = "So 1, 3.\nSo 3.\n\n"
SECOND = "Wait, let me check.\nSo 1, 3.\nYes, 3.\n\n"
THIRD = "Alternatively, let me verify.\nSo 1, 3.\nYes.\n\n"
SIGNS = ("+", "-", "*", "=", ", ", ",", ".", ". ", "?", ":", ": ", "!", "(", ")", "{", "\\boxed", "**")
THINKING = FIRST + SECOND + THIRD + "</think>"


def solve(engine, method, sampling=GREEDY, problem=PROBLEM, watch=None):
    return asyncio.run(method.solve(engine, problem, sampling, watch=watch))


def engine_for(tokenizer, part=None, thinking=THINKING, cue=CUE, **options):
    parts = {} if part is None else {cue: part}
    return RecordingEngine(tokenizer, thinker(tokenizer, thinking, parts), **options)


def probes(trace):
    return [event for event in trace.events if event.kind == "probe"]


def confidences(trace):
    return [event.detail["confidence"] for event in probes(trace)]


# -- the algorithm


def test_a_model_that_is_never_sure_answers_as_plain_decoding_does(tokenizer):
    """The threshold is strict, and nothing of a probe stays behind."""
    unsure = play(tokenizer, {"{": SURE}, {"3": 0.8}, {"}": 0.9})
    exactly = confidences(solve(engine_for(tokenizer, unsure), Deer(threshold=1)))[0]
    trace = solve(engine_for(tokenizer, unsure), Deer(threshold=exactly))
    plain = solve(engine_for(tokenizer), Plain())
    assert trace.response_ids == plain.response_ids
    assert (trace.thinking, trace.answer, trace.stop) == (plain.thinking, plain.answer, "marker")
    assert confidences(trace) == pytest.approx([math.sqrt(0.72)] * 2, abs=1e-9)
    assert [event.at for event in trace.events] == [count(tokenizer, FIRST), count(tokenizer, FIRST + SECOND)]
    assert [event.detail["exit"] for event in trace.events] == [False, False]
    assert [event.detail["answer"] for event in trace.events] == ["3", "3"]
    assert trace.cost.probe_tokens == 6
    assert trace.cost.retained_tokens == plain.cost.retained_tokens == len(trace.response_ids)
    assert trace.cost.forced_tokens == trace.cost.branch_tokens == 0
    # Nothing was computed twice: on top come the probes and their cues, whose last token the first step takes in.
    assert trace.cost.forward_passes == plain.cost.forward_passes + 6
    assert trace.cost.prefilled_tokens == plain.cost.prefilled_tokens + 2 * (count(tokenizer, CUE) - 1)


def test_a_sure_model_stops_at_once_and_concludes(tokenizer):
    engine = engine_for(tokenizer, play(tokenizer, {"{": SURE}, {"3": 0.97}, {"}": 0.99}))
    trace = solve(engine, Deer())
    assert trace.thinking == FIRST
    assert trace.answer == ANSWER
    assert (trace.stop, trace.finished) == ("closed by method", True)
    assert trace.cost.forced_tokens == 2  # the marker and the empty line: thinking ended with a line break
    # The probe, and the marker with the comma that showed it to be a word of its own.
    assert trace.cost.probe_tokens == count(tokenizer, "{3}") + count(tokenizer, "Wait, ")
    assert trace.cost.thinking_tokens == count(tokenizer, FIRST) + 1
    assert trace.cost.total_tokens == trace.cost.retained_tokens + 5
    event = probes(trace)[0]
    assert event.at == count(tokenizer, FIRST)
    assert event.detail == {
        "confidence": pytest.approx(math.sqrt(0.97 * 0.99)),
        "answer": "3",
        "complete": True,
        "exit": True,
    }
    assert trace.events[1].kind == "closed"


def test_the_marker_is_not_committed_before_the_probe(tokenizer):
    engine = engine_for(tokenizer, play(tokenizer, {"{": SURE}, {"3": 0.5}, {"}": SURE}))
    solve(engine, Deer())
    assert engine.probes(CUE) == [(FIRST + CUE, "{3}"), (FIRST + SECOND + CUE, "{3}")]


def test_probes_are_greedy_and_score_the_most_likely_token(tokenizer):
    """Sampled at temperature 1, a token of probability 0.55 would often lose, and its confidence with it."""
    engine = engine_for(tokenizer, play(tokenizer, {"{": SURE}, {"3": 0.55, "4": 0.44}, {"}": SURE}))
    trace = solve(engine, Deer(max_probes=1), dataclasses.replace(SAMPLED, max_tokens=200, temperature=2))
    assert confidences(trace) == pytest.approx([math.sqrt(0.55)])
    assert [sampling.temperature for text, sampling, _ in engine.calls if CUE in text] == [0]


def test_sampling_goes_on_as_if_nobody_had_asked(tokenizer):
    def script(text):
        response = text.rpartition("<|assistant|>")[2]
        if CUE in response:
            return {"{": 0.5, "7": 0.4}
        if response.endswith("\n\n"):
            return {"Wait": 0.45, "Alternatively": 0.25, "Hmm": 0.2, "</think>": 0.1}
        return {". ": 0.3, ", ": 0.3, "\n\n": 0.3, "</think>": 0.1}

    asked = 0
    for seed in range(20):
        sampling = dataclasses.replace(SAMPLED, seed=seed)
        plain = solve(ScriptedEngine(tokenizer, script), Plain(), sampling)
        for parallel in (False, True):
            method = Deer(threshold=1, think_ratio=1, parallel=parallel)
            trace = solve(ScriptedEngine(tokenizer, script), method, sampling)
            assert trace.response_ids == plain.response_ids
            asked += len(probes(trace))
    assert asked > 40


def test_a_model_that_closes_thinking_itself_goes_to_its_conclusion(tokenizer):
    engine = engine_for(tokenizer, thinking=FIRST + "</think>")
    trace = solve(engine, Deer())
    assert (trace.thinking, trace.answer, trace.stop) == (FIRST, ANSWER, "marker")
    assert trace.events == []
    assert len(engine.calls) == 2


def test_end_of_text_inside_thinking_becomes_a_conclusion(tokenizer):
    trace = solve(engine_for(tokenizer, thinking="So 3."), Deer())
    assert (trace.thinking, trace.answer, trace.stop) == ("So 3.\n", ANSWER, "closed by method")
    assert trace.finished
    assert trace.cost.probe_tokens == 1  # the end-of-text token, taken back
    # The same right after a marker, where one more token is looked at.
    trace = solve(engine_for(tokenizer, thinking=FIRST + "Wait"), Deer())
    assert (trace.thinking, trace.events[0].kind) == (FIRST + "Wait\n", "closed")


def test_the_end_of_the_thinking_budget_leads_to_the_conclusion(tokenizer):
    budget = count(tokenizer, FIRST + "Wait, let me check")
    engine = engine_for(tokenizer, play(tokenizer, {"{": 0.5}))
    trace = solve(engine, Deer(think_ratio=(budget + 0.5) / 200))
    assert trace.thinking == FIRST + "Wait, let me check\n"
    assert (trace.answer, trace.stop) == (ANSWER, "closed by method")
    assert len(probes(trace)) == 1


@pytest.mark.parametrize("extra", [0, 1])
def test_a_budget_that_ends_at_or_after_a_marker_ends_thinking_without_a_probe(tokenizer, extra):
    budget = count(tokenizer, FIRST + "Wait") + extra
    engine = engine_for(tokenizer, play(tokenizer, {"{": SURE}, {"3": SURE}, {"}": SURE}))
    trace = solve(engine, Deer(think_ratio=(budget + 0.5) / 200))
    # With no token left to look at, nobody knows whether "Wait" is a word.
    assert len(probes(trace)) == extra
    assert trace.thinking == (FIRST if extra else FIRST + "Wait\n")


def test_no_room_for_an_answer_is_a_truncated_response(tokenizer):
    trace = solve(engine_for(tokenizer), Deer(think_ratio=1), dataclasses.replace(GREEDY, max_tokens=5))
    assert (trace.stop, trace.finished, len(trace.response_ids)) == ("token limit", False, 5)
    ends = dataclasses.replace(GREEDY, max_tokens=count(tokenizer, FIRST) + 1)
    trace = solve(engine_for(tokenizer, thinking=FIRST + "</think>"), Deer(think_ratio=1), ends)
    assert (trace.stop, trace.finished, trace.answer) == ("marker", False, "")


def test_after_max_probes_the_model_is_left_alone(tokenizer):
    engine = engine_for(tokenizer, play(tokenizer, {"{": SURE}, {"3": 0.5}, {"}": SURE}))
    trace = solve(engine, Deer(max_probes=1))
    assert len(probes(trace)) == 1
    assert trace.response_ids == solve(engine_for(tokenizer), Plain()).response_ids
    stops = [sampling.stop for _, sampling, _ in engine.calls]
    assert stops[-2:] == [("</think>",), ()]


def test_a_response_without_thinking_is_left_alone(tokenizer):
    thinking = ThinkingFormat("other", "<|user|>", "Therefore", "<|user|>", "Therefore")
    engine = engine_for(tokenizer, thinking=THINKING.removesuffix("</think>"))
    engine.thinking = thinking
    trace = solve(engine, Deer())
    assert (trace.stop, trace.finished, trace.events) == ("not opened", True, [])
    assert trace.cost.probe_tokens == trace.cost.forced_tokens == 0


@pytest.mark.parametrize("sure", [False, True])
def test_watching_shows_the_retained_text_and_never_the_marker_that_an_exit_takes_back(tokenizer, sure):
    for parallel in (False, True):
        shown = []
        part = play(tokenizer, {"{": SURE}, {"3": SURE}, {"}": SURE}) if sure else play(tokenizer, {"{": 0.5})
        engine = engine_for(tokenizer, part)
        trace = solve(engine, Deer(parallel=parallel), watch=lambda phase, text, shown=shown: shown.append(text))
        assert "".join(shown) == f"{trace.thinking}</think>{trace.answer}"


# -- markers


@pytest.mark.parametrize("token", ["Waiting", "ing"])
def test_waiting_is_no_wait(token):
    """Whether "Waiting" is one token or two."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([token])
    thinking = "Waiting, " + FIRST + SECOND + "</think>"
    assert count(tokenizer, "Waiting") == (1 if token == "Waiting" else 2)
    trace = solve(engine_for(tokenizer, play(tokenizer, {"{": 0.5}), thinking), Deer())
    assert [event.at for event in probes(trace)] == [count(tokenizer, "Waiting, " + FIRST)]
    assert trace.thinking == thinking.removesuffix("</think>")


def test_a_marker_inside_a_word_is_none(tokenizer):
    assert probes(solve(engine_for(tokenizer), Deer(markers="ait|lternativel"))) == []


@pytest.mark.parametrize(("marker", "looks_further"), [("Wait", True), ("Wait, ", False)])
def test_only_a_marker_that_ends_with_a_letter_needs_a_look_at_what_follows(tokenizer, marker, looks_further):
    engine = engine_for(tokenizer, play(tokenizer, {"{": 0.5}))
    solve(engine, Deer(markers=marker, max_probes=1))
    limits = [sampling.max_tokens for _, sampling, _ in engine.calls[:2]]
    assert (limits[1] == 1) is looks_further


def test_a_marker_may_stand_beside_chinese():
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["好的", "等等", "我再算"])
    for marker in ("等等", "Wait"):
        thinking = f"3好的{marker}我再算</think>"
        trace = solve(engine_for(tokenizer, play(tokenizer, {"{": 0.5}), thinking), Deer(markers=marker))
        assert [event.at for event in probes(trace)] == [2]


def test_the_longest_marker_decides_where_the_transition_is(tokenizer):
    thinking = FIRST + "But wait, let me check.\n\n</think>"
    engine = engine_for(tokenizer, play(tokenizer, {"{": 0.5}), thinking)
    solve(engine, Deer(markers="wait|But wait"))
    assert [text for text, _ in engine.probes(CUE)] == [FIRST + CUE]


def test_a_marker_at_the_end_of_thinking_is_no_transition(tokenizer):
    trace = solve(engine_for(tokenizer, thinking=FIRST + "Wait</think>"), Deer())
    assert probes(trace) == []
    assert trace.stop == "marker"


# -- the entropy monitor


def test_the_entropy_monitor_asks_at_uncertain_first_tokens_of_paragraphs(tokenizer):
    """ln 2 = 0.693 lies above 0.672, the entropy of (0.9, 0.1) = 0.325 below."""
    opening = {"Wait": 0.9, "Hmm": 0.1 - 1e-9}, {"Alternatively": 0.5 + 1e-6, "Hmm": 0.5 - 2e-6}
    base = thinker(tokenizer, THINKING, {CUE: play(tokenizer, {"{": 0.5})})

    def script(text):
        response = text.rpartition("<|assistant|>")[2].removeprefix("<think>\n")
        return {FIRST: opening[0], FIRST + SECOND: opening[1]}.get(response) or base(text)

    engine = RecordingEngine(tokenizer, script)
    trace = solve(engine, Deer(monitor="entropy"))
    assert [event.at for event in probes(trace)] == [count(tokenizer, FIRST + SECOND)]
    assert engine.probes(CUE)[0][0] == FIRST + SECOND + CUE
    assert trace.response_ids == solve(engine_for(tokenizer), Plain()).response_ids
    assert len(probes(solve(engine, Deer(monitor="entropy", min_entropy=nats(0.9, 0.1) - 1e-3)))) == 2
    assert len(probes(solve(engine, Deer(monitor="entropy", min_entropy=math.log(2) + 1e-3)))) == 0


def test_the_entropy_monitor_takes_the_first_token_back_when_it_stops(tokenizer):
    base = thinker(tokenizer, THINKING, {CUE: play(tokenizer, {"{": SURE}, {"3": SURE}, {"}": SURE})})

    def script(text):
        return {"Wait": 0.5, "Hmm": 0.4} if text.endswith(FIRST) else base(text)

    trace = solve(RecordingEngine(tokenizer, script), Deer(monitor="entropy"))
    assert (trace.thinking, trace.stop) == (FIRST, "closed by method")
    assert trace.cost.probe_tokens == 3 + 1


def test_the_entropy_monitor_survives_the_end_of_text_at_a_paragraph(tokenizer):
    trace = solve(engine_for(tokenizer, thinking=FIRST), Deer(monitor="entropy"))
    assert (trace.thinking, trace.answer, trace.stop) == (FIRST, ANSWER, "closed by method")


# -- the trial answer and its confidence


def test_means_by_hand():
    logprobs = [math.log(0.9), math.log(0.8), math.log(0.5)]
    assert mean_probability(logprobs, "geometric") == pytest.approx(0.36 ** (1 / 3))
    assert mean_probability(logprobs, "arithmetic") == pytest.approx(2.2 / 3)
    assert mean_probability([], "geometric") == mean_probability([], "arithmetic") == 0.0
    assert mean_probability([0.0], "geometric") == 1.0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, math.sqrt(0.9 * 0.7)),
        ({"mean": "arithmetic"}, 0.8),
        ({"scored": "all"}, (0.6 * 0.9 * 0.7) ** (1 / 3)),
        ({"scored": "all", "mean": "arithmetic"}, 2.2 / 3),
    ],
)
def test_what_counts_in_the_confidence(tokenizer, options, expected):
    part = play(tokenizer, {"{": 0.6}, {"3": 0.9}, {"}": 0.7})
    trace = solve(engine_for(tokenizer, part), Deer(max_probes=1, **options))
    assert confidences(trace) == pytest.approx([expected])


def test_an_inducer_that_opens_the_box_itself_has_no_opener_to_leave_out(tokenizer):
    part = play(tokenizer, {"3": 0.9}, {"}": 0.7})
    inducer = "\n**Final Answer**\n\\boxed{"
    trace = solve(engine_for(tokenizer, part, cue=inducer), Deer(max_probes=1, inducer=inducer))
    assert confidences(trace) == pytest.approx([math.sqrt(0.9 * 0.7)])


def test_a_probe_of_one_token_is_not_trusted_and_breaks_nothing(tokenizer):
    part = play(tokenizer, {"{": SURE}, {"3": SURE}, {"}": SURE})
    for mean in ("geometric", "arithmetic"):
        trace = solve(engine_for(tokenizer, part), Deer(probe_tokens=1, mean=mean, threshold=0))
        assert confidences(trace) == [0.0, 0.0]
        assert trace.stop == "marker"
        assert trace.cost.probe_tokens == 2
    # A probe that ends at once, by its closing brace or by the end of text, is no answer either.
    for token in ("}", "<|end|>"):
        trace = solve(engine_for(tokenizer, play(tokenizer, {token: SURE})), Deer(threshold=0))
        assert confidences(trace) == [0.0, 0.0]
        assert trace.stop == "marker"


@pytest.mark.parametrize("scored", ["answer", "all"])
def test_a_probe_of_two_tokens(tokenizer, scored):
    """An empty box is no answer; one token without its brace is scored alone."""
    empty = solve(
        engine_for(tokenizer, play(tokenizer, {"{": SURE}, {"}": SURE})), Deer(max_probes=1, scored=scored, threshold=0)
    )
    assert confidences(empty) == [0.0]
    unboxed = solve(
        engine_for(tokenizer, play(tokenizer, {"3": 0.9}, {"}": 0.8})), Deer(max_probes=1, scored=scored, threshold=0.9)
    )
    assert confidences(unboxed) == pytest.approx([math.sqrt(0.72)])
    assert probes(unboxed)[0].detail["answer"] == "3"


def test_an_answer_of_fewer_tokens_than_min_probe_is_not_trusted(tokenizer):
    part = play(tokenizer, {"{": SURE}, {"3": SURE}, {"}": SURE})
    assert confidences(solve(engine_for(tokenizer, part), Deer(min_probe=3, max_probes=1))) == [0.0]
    assert solve(engine_for(tokenizer, part), Deer(min_probe=2)).stop == "closed by method"


def test_an_answer_longer_than_the_cap_is_scored_on_what_there_is(tokenizer):
    long = play(tokenizer, {"{": SURE}, *[{"7": 0.99}] * 30)
    trace = solve(engine_for(tokenizer, long), Deer(probe_tokens=6))
    assert probes(trace)[0].detail["complete"] is False
    assert probes(trace)[0].detail["answer"] == "77777"
    assert confidences(trace) == pytest.approx([0.99])
    assert (trace.stop, trace.cost.probe_tokens) == ("closed by method", 6 + 2)
    strict = solve(engine_for(tokenizer, long), Deer(probe_tokens=6, require_close=True))
    assert confidences(strict) == [0.0, 0.0]


def test_the_closing_marker_must_follow_where_it_is_required(tokenizer):
    closed = play(tokenizer, {"{": 0.5}, {"3": SURE}, {"}": 0.96}, {"\n": SURE}, {"</think>": SURE})
    trace = solve(engine_for(tokenizer, closed), Deer(require_close=True))
    assert confidences(trace) == pytest.approx([0.96 ** (1 / 4)])  # 3, the brace, the line break, the marker
    assert (trace.stop, probes(trace)[0].detail["answer"]) == ("closed by method", "3")
    assert trace.cost.probe_tokens == 5 + 2

    wandering = play(tokenizer, {"{": SURE}, {"3": SURE}, {"}": SURE}, {". ": SURE})
    sure = solve(engine_for(tokenizer, wandering), Deer())
    trace = solve(engine_for(tokenizer, wandering), Deer(require_close=True))
    assert (sure.stop, trace.stop) == ("closed by method", "marker")
    assert confidences(trace) == [0.0, 0.0]
    assert probes(trace)[0].detail == {"confidence": 0.0, "answer": "3", "complete": False, "exit": False}


def test_only_the_brace_that_closes_the_box_ends_the_answer(tokenizer):
    written = ["{", "2", "{", "3", "}", "+", "{", "4", "}", "}"]
    probabilities = [SURE, 0.9, SURE, 0.8, SURE, SURE, SURE, SURE, SURE, 0.7]
    part = play(tokenizer, *({token: p} for token, p in zip(written, probabilities, strict=True)))
    engine = engine_for(tokenizer, part)
    trace = solve(engine, Deer(max_probes=1))
    assert probes(trace)[0].detail["answer"] == "2{3}+{4}"
    assert confidences(trace) == pytest.approx([(0.9 * 0.8 * 0.7) ** (1 / 9)])
    assert [written for _, written in engine.probes(CUE)] == ["{2{3}", "+{4}", "}"]
    assert trace.cost.probe_tokens == 10


def test_another_closer_ends_another_form_of_answer(tokenizer):
    inducer = "\nTherefore"
    part = play(tokenizer, {": ": 0.9}, {"3": 0.8}, {"!": 0.7}, {"7": SURE})
    engine = engine_for(tokenizer, part, cue=inducer)
    trace = solve(engine, Deer(inducer=inducer, closer="!", max_probes=1))
    assert confidences(trace) == pytest.approx([(0.9 * 0.8 * 0.7) ** (1 / 3)])
    assert probes(trace)[0].detail["answer"] == ": 3"


def test_thinking_that_is_closed_inside_the_probe_ends_it(tokenizer):
    part = play(tokenizer, {"{": SURE}, {"3": 0.6}, {"</think>": SURE}, {"7": SURE})
    trace = solve(engine_for(tokenizer, part), Deer(max_probes=1))
    assert trace.cost.probe_tokens == 3
    assert probes(trace)[0].detail["answer"] == "3"


def test_a_probe_that_the_context_has_no_room_for_is_not_made(tokenizer):
    prompt = len(solve(engine_for(tokenizer), Plain()).prompt_ids)
    length = prompt + count(tokenizer, FIRST + CUE)
    engine = engine_for(tokenizer, play(tokenizer, {"{": SURE}), context_length=length)
    trace = solve(engine, Deer(think_ratio=1, max_probes=1))
    assert confidences(trace) == [0.0]
    assert engine.probes(CUE) == []
    assert not trace.finished


# -- DEER-Pro


def test_calibration_by_hand():
    # mean 0.9; deviations 0.1, 0.1, 0, 0
    assert calibrated([1.0, 0.8, 0.9, 0.9], 1.0) == pytest.approx(0.9 - 0.05)
    assert calibrated([1.0, 0.8, 0.9, 0.9], 2.0) == pytest.approx(0.8)
    assert calibrated([0.7], 5.0) == pytest.approx(0.7)


def test_deer_pro_asks_with_four_wordings_and_weighs_their_agreement(tokenizer):
    likelihoods = [0.99, 0.99, 0.99, 0.91]
    assert fmean(likelihoods) > 0.95 > calibrated(likelihoods, 1)
    method = DeerPro()
    assert (len(method.inducers), method.alpha) == (4, 1.0)
    parts = {
        inducer: play(tokenizer, {"{": SURE}, {"3": p}, {"}": p})
        for inducer, p in sorted(zip(method.inducers, likelihoods, strict=True), key=lambda pair: -len(pair[0]))
    }
    script = thinker(tokenizer, THINKING, parts, answer="\n\nSo 3.")
    engine = RecordingEngine(tokenizer, script)
    trace = solve(engine, method)
    assert trace.stop == "marker"
    assert trace.response_ids == solve(RecordingEngine(tokenizer, script), Plain()).response_ids
    assert probes(trace)[0].detail["confidences"] == pytest.approx(likelihoods)
    assert confidences(trace) == pytest.approx([0.97 - 0.03] * 2)
    assert probes(trace)[0].detail["answers"] == ["3"] * 4
    assert trace.cost.probe_tokens == 2 * 4 * 3
    assert [text for text, _ in engine.probes("boxed")] == [
        before + inducer for before in (FIRST, FIRST + SECOND) for inducer in method.inducers
    ]
    sure = solve(RecordingEngine(tokenizer, script), DeerPro(alpha=0))
    assert (sure.stop, confidences(sure)) == ("closed by method", pytest.approx([0.97]))


# -- branch-parallel


def test_in_parallel_the_chain_is_cancelled_once_the_model_is_sure(tokenizer):
    part = play(tokenizer, {"{": SURE}, {"3": 0.97}, {"}": 0.99})
    engine = engine_for(tokenizer, part)
    trace = solve(engine, Deer(parallel=True))
    alone = solve(engine_for(tokenizer, part), Deer())
    assert trace.response_ids == alone.response_ids
    assert trace.stop == "closed by method"
    assert len(engine.cancelled) == 1
    assert engine.cancelled[0].endswith(FIRST + "Wait, ")
    assert engine.under_way == 0
    thrown = next(event for event in trace.events if event.kind == "thrown away")
    # Token by token side by side with a probe of three, which began first.
    assert thrown.detail["tokens"] == trace.cost.branch_tokens == 2
    assert thrown.at == count(tokenizer, FIRST)
    assert trace.cost.probe_tokens == alone.cost.probe_tokens
    assert trace.cost.total_tokens == alone.cost.total_tokens + 2
    assert trace.cost.forward_passes == alone.cost.forward_passes + 2


def test_in_parallel_the_chain_is_kept_while_the_model_is_not_sure(tokenizer):
    part = play(tokenizer, {"{": SURE}, {"3": 0.5}, {"}": SURE})
    engine = engine_for(tokenizer, part)
    trace = solve(engine, Deer(parallel=True))
    alone = solve(engine_for(tokenizer, part), Deer())
    assert trace.response_ids == alone.response_ids
    assert [(event.at, event.detail) for event in trace.events] == [(event.at, event.detail) for event in alone.events]
    assert engine.cancelled == []
    assert trace.cost.branch_tokens == 0
    assert trace.cost.total_tokens == alone.cost.total_tokens
    assert trace.cost.forward_passes == alone.cost.forward_passes


def test_in_parallel_a_chain_that_ends_first_waits_for_the_verdict(tokenizer):
    """Thinking is closed two tokens after the marker; the longer probe still decides."""
    thinking = FIRST + "Wait, </think>"
    part = play(tokenizer, {"{": SURE}, *[{"7": SURE}] * 9, {"}": SURE})
    trace = solve(engine_for(tokenizer, part, thinking), Deer(parallel=True))
    assert (trace.thinking, trace.stop) == (FIRST, "closed by method")
    assert trace.cost.branch_tokens == 1  # the marker that the chain wrote itself
    unsure = play(tokenizer, {"{": SURE}, *[{"7": 0.5}] * 9, {"}": SURE})
    trace = solve(engine_for(tokenizer, unsure, thinking), Deer(parallel=True))
    assert (trace.thinking, trace.answer, trace.stop) == (FIRST + "Wait, ", ANSWER, "marker")


def test_cancelling_the_method_cancels_both_requests(tokenizer):
    engine = engine_for(tokenizer, play(tokenizer, {"{": SURE}, *[{"7": SURE}] * 50))

    async def interrupted():
        task = asyncio.create_task(Deer(parallel=True, probe_tokens=50).solve(engine, PROBLEM, GREEDY))
        while engine.under_way < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert engine.under_way == 0
    assert len(engine.cancelled) == 2


def test_in_parallel_an_error_of_the_probe_is_the_methods_own(tokenizer):
    class Failing(RecordingEngine):
        async def generate(self, prompt_ids, sampling, **options):
            if CUE in self.tokenizer.decode(list(prompt_ids)):
                raise EngineError("out of order")
            return await super().generate(prompt_ids, sampling, **options)

    engine = Failing(tokenizer, thinker(tokenizer, THINKING, {}))
    with pytest.raises(EngineError, match="out of order"):
        solve(engine, Deer(parallel=True))
    assert engine.under_way == 0


def test_on_the_embedded_engine_probes_leave_no_trace(make_engine, tokenizer):
    engine = make_engine()
    samplings = (Sampling(temperature=1, top_p=1, max_tokens=120, seed=n, ignore_eos=True) for n in range(20))
    plain, sampling = next(
        (plain, sampling) for sampling in samplings if (plain := solve(engine, Plain(), sampling)).stop == "token limit"
    )
    signs = {tokenizer.decode([token]) for token in plain.response_ids} & set(SIGNS)
    assert len(signs) >= 2
    markers = "|".join(sorted(signs))
    for parallel in (False, True):
        trace = solve(engine, Deer(markers=markers, threshold=1, think_ratio=1, parallel=parallel), sampling)
        assert len(probes(trace)) >= 3
        assert trace.response_ids == plain.response_ids
        # What was known is not computed again: only the cue and the last tokens before it, once a probe.
        assert trace.cost.prefilled_tokens <= len(trace.prompt_ids) + len(probes(trace)) * 16


def test_on_the_embedded_engine_a_cancelled_chain_is_counted(make_engine, tokenizer):
    engine = make_engine()
    sampling = Sampling(temperature=1, top_p=1, max_tokens=500, seed=3)
    plain = solve(engine, Plain(), sampling)
    marker = next(sign for sign in (tokenizer.decode([token]) for token in plain.response_ids) if sign in SIGNS)
    method = Deer(markers=marker, threshold=0, parallel=True, probe_tokens=10, scored="all", closer="never")
    trace = solve(engine, method, sampling)
    assert trace.stop == "closed by method"
    assert probes(trace)[0].detail["exit"]
    assert 1 <= trace.cost.branch_tokens <= 100


# -- together with a control, and refusals


def test_a_control_bends_thinking_and_leaves_the_probes_alone(tokenizer):
    part = play(tokenizer, {"{": SURE}, {"3": 0.5}, {"</think>": 0.4, "}": 0.5})
    base = thinker(tokenizer, THINKING, {CUE: part})

    def script(text):
        return {"Alternatively": 0.7, "</think>": 0.2} if text.endswith(SECOND) else base(text)

    engine = RecordingEngine(tokenizer, script)
    joined = compose([Deer(), parse_method("temperature-scaling:mode=bias,bias=2")])
    assert joined.needs == {Capability.LOGPROBS, Capability.PREFIX_REUSE, Capability.BIAS}
    trace = solve(engine, joined)
    assert (trace.thinking, trace.stop) == (FIRST + SECOND, "marker")
    assert probes(trace)[0].detail["answer"] == "3"  # with the control, the brace would have lost to the marker
    for text, control in engine.controls:
        response = text.rpartition("<|assistant|>")[2]
        assert (control is None) == (CUE in response or "</think>" in response)


def test_needs_follow_the_parameters(tokenizer):
    basic = {Capability.LOGPROBS, Capability.PREFIX_REUSE}
    assert Deer().needs == DeerPro().needs == Deer.needs == basic
    assert Deer(monitor="entropy").needs == basic | {Capability.ENTROPY}
    assert Deer(parallel=True).needs == basic | {Capability.CANCEL}
    engine = engine_for(tokenizer, without=[Capability.LOGPROBS])
    with pytest.raises(EngineError, match="deer needs logprobs, which scripted does not offer"):
        require(engine, Deer().needs, Deer.name)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Deer, {"threshold": 1.5}, "threshold is 1.5; it must be within 0..1"),
        (Deer, {"monitor": "both"}, "must be marker or entropy"),
        (Deer, {"mean": "harmonic"}, "must be geometric or arithmetic"),
        (Deer, {"scored": "some"}, "must be answer or all"),
        (Deer, {"markers": "Wait||Hmm"}, "must be words separated by |"),
        (Deer, {"markers": ""}, "must be words separated by |"),
        (Deer, {"inducer": " "}, "must be a text that asks for an answer"),
        (Deer, {"closer": ""}, "must be a text of at least one character"),
        (Deer, {"probe_tokens": 0}, "must be at least 1"),
        (Deer, {"min_probe": 0}, "must be at least 1"),
        (Deer, {"min_probe": 21}, "must be within 1..20"),
        (Deer, {"max_probes": 0}, "must be at least 1"),
        (Deer, {"think_ratio": 0}, "must be above 0"),
        (Deer, {"min_entropy": 0.5}, "acts with monitor=entropy only"),
        (Deer, {"min_entropy": -1, "monitor": "entropy"}, "must be at least 0"),
        (Deer, {"markers": "Hmm", "monitor": "entropy"}, "acts with monitor=marker only"),
        (Deer, {"closer": "!", "require_close": True}, "acts with require_close=false only"),
        (DeerPro, {"inducer": "\n\\boxed"}, "deer-pro: inducer holds one wording"),
        (DeerPro, {"inducer": "\n\\boxed|"}, "must be a text that asks"),
        (DeerPro, {"alpha": -1}, "alpha is -1; it must be at least 0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_in_one_sentence(kind, options, message):
    with pytest.raises(MethodError) as caught:
        kind(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_default_texts_are_written_in_the_words_of_the_lab(tokenizer):
    for inducer in (Deer.inducer, *DeerPro().inducers):
        assert tokenizer.unk_token_id not in tokenizer(inducer, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", [Deer, DeerPro])
def test_every_parameter_is_described(kind):
    assert all(parameter["meaning"] for parameter in describe(kind)["parameters"])
    assert str(kind()) == kind.name
