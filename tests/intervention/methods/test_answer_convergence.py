"""Answer convergence: when it asks, what it takes for the same answer, and when it stops."""

import asyncio

import pytest
from intervention.scripted import ScriptedEngine
from intervention.thinker import SURE, RecordingEngine, ids_of, play, thinker

from satisfice.engines.base import Capability, EngineError, Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import MethodError, parse_method
from satisfice.intervention.methods.answer_convergence import AnswerConvergence
from satisfice.problems import Problem, load_problems

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
SAMPLING = Sampling(temperature=0, max_tokens=200, seed=7)
CUE = AnswerConvergence.cue
THREE = ({"3": SURE}, {"}": SURE})
PARAGRAPHS = ("So 1.\n\n", "So 2.\n\n", "So 3.\n\n", "So 4.\n\n")
THINKING = "".join(PARAGRAPHS) + "</think>"


def says(tokenizer, *answers):
    """A part that writes answer number i after the cue where i empty lines stand before it."""
    planned = [ids_of(tokenizer, answer) for answer in answers]

    def part(before, after):
        plan = planned[before.count("\n\n") - 1 - before.count("</think>\n\n")]
        place = len(ids_of(tokenizer, after))
        following = plan[place] if place < len(plan) else tokenizer.eos_token_id
        return {tokenizer.convert_ids_to_tokens(following): SURE}

    return part


def engine_of(tokenizer, *answers, thinking=THINKING, cue=CUE, **options):
    return RecordingEngine(tokenizer, thinker(tokenizer, thinking, {cue: says(tokenizer, *answers)}), **options)


def solve(engine, problem=PROBLEM, sampling=SAMPLING, **parameters):
    method = AnswerConvergence(**{"agree": 2, "cue": CUE, "close": False, **parameters})
    return asyncio.run(method.solve(engine, problem, sampling))


def asked(trace):
    return [(e.detail["answer"], e.detail["in_a_row"], e.detail["exit"]) for e in trace.events if e.kind == "probe"]


def test_it_stops_where_as_many_answers_in_a_row_agree(tokenizer):
    trace = solve(engine_of(tokenizer, "1}", "3}", "3}", "4}"))
    assert asked(trace) == [("1", 1, False), ("3", 1, False), ("3", 2, True)]
    assert trace.thinking.strip() == "".join(PARAGRAPHS[:3]).strip()
    assert trace.stop == "closed by method"
    assert trace.finished


def test_an_answer_that_comes_back_starts_again(tokenizer):
    trace = solve(engine_of(tokenizer, "3}", "1}", "3}", "1}"))
    assert [row for _, row, _ in asked(trace)] == [1, 1, 1, 1]
    assert trace.stop == "marker"


def test_the_same_value_in_another_spelling_agrees(tokenizer):
    trace = solve(engine_of(tokenizer, "3}", "+3}", " 3}", "1}"), agree=3)
    assert [exit for *_, exit in asked(trace)] == [False, False, True]


@pytest.mark.parametrize("nothing", ["}", "1 2 3 4 5 6 7 8 9}", ""])
def test_no_answer_starts_the_count_again(tokenizer, nothing):
    trace = solve(engine_of(tokenizer, "3}", nothing, "3}", "3}"), probe_tokens=8)
    assert [(answer, row) for answer, row, _ in asked(trace)] == [("3", 1), (None, 0), ("3", 1), ("3", 2)]


def test_nothing_never_agrees_with_nothing(tokenizer):
    trace = solve(engine_of(tokenizer, "}", "}", "}", "}"))
    assert [row for _, row, _ in asked(trace)] == [0, 0, 0, 0]
    assert trace.stop == "marker"


def test_one_answer_is_enough_where_one_is_asked_for(tokenizer):
    assert solve(engine_of(tokenizer, "1}"), agree=1).thinking.strip() == "So 1."


def test_probes_leave_no_trace_where_thinking_goes_on(tokenizer):
    engine = engine_of(tokenizer, "1}", "2}", "3}", "4}")
    trace = solve(engine)
    plain = asyncio.run(parse_method("plain").solve(engine, PROBLEM, SAMPLING))
    assert trace.response_ids == plain.response_ids
    assert trace.cost.probe_tokens == sum(len(ids_of(tokenizer, written)) for _, written in engine.probes(CUE)) == 8
    assert trace.cost.total_tokens == trace.cost.forward_passes


def test_the_marker_goes_before_the_cue_where_close_says_so(tokenizer):
    engine = engine_of(tokenizer, "3}", "3}")
    solve(engine, close=True)
    assert [text for text, _ in engine.probes(CUE)] == [
        "So 1.\n\n</think>\n\n" + CUE,
        "So 1.\n\nSo 2.\n\n</think>\n\n" + CUE,
    ]


def test_without_a_box_the_problems_grader_says_what_the_answer_is(tokenizer):
    cue = "The final answer is"
    engine = engine_of(tokenizer, " 3.", " 3.", cue=cue)
    assert [answer for answer, *_ in asked(solve(engine, cue=cue))] == ["3", "3"]


def test_chunks_of_so_many_tokens(tokenizer):
    engine = ScriptedEngine(tokenizer, thinker(tokenizer, "So 1.\n" * 8 + "</think>", {CUE: play(tokenizer, *THREE)}))
    trace = solve(engine, chunk="interval", every=5)
    assert [event.at for event in trace.events if event.kind == "probe"] == [5, 10]


def test_chunks_that_end_before_a_marker(tokenizer):
    thinking = "So 1.\nWait, So 2.\nHmm, So 3.\n</think>"
    engine = ScriptedEngine(tokenizer, thinker(tokenizer, thinking, {CUE: play(tokenizer, *THREE)}))
    trace = solve(engine, chunk="marker")
    assert trace.thinking == "So 1.\nWait, So 2.\n"
    assert trace.cost.probe_tokens > 2 * 2  # the marker that was taken back is paid for


def test_at_the_limit_thinking_is_closed(tokenizer):
    engine = engine_of(tokenizer, *["1}", "2}"] * 20, thinking="So 1.\n\n" * 40)
    trace = solve(engine, sampling=Sampling(temperature=0, max_tokens=60, seed=1), think_ratio=0.5)
    assert trace.stop == "closed by method"
    assert trace.cost.thinking_tokens <= 30 + trace.cost.forced_tokens
    assert trace.finished
    cut = solve(engine, sampling=Sampling(temperature=0, max_tokens=20, seed=1), think_ratio=1.0)
    assert (cut.stop, cut.finished) == ("token limit", False)


def test_after_the_last_probe_the_model_is_left_alone(tokenizer):
    trace = solve(engine_of(tokenizer, "1}", "2}", "3}", "3}"), max_probes=3)
    assert len(asked(trace)) == 3
    assert trace.stop == "marker"


def test_a_response_without_thinking_is_not_asked(tokenizer):
    engine = engine_of(tokenizer, thinking="</think>")
    trace = solve(engine)
    assert asked(trace) == []
    assert trace.finished


def test_on_the_lab_a_seed_decides_and_thinking_is_a_part_of_plain(tokenizer):
    engine = TransformersEngine.load("lab")
    (problem,) = load_problems("lab:calibration", limit=1).problems
    sampling = Sampling(1.0, 1.0, max_tokens=400, seed=11)
    spelled = f"answer-convergence:{AnswerConvergence.on_lab}"
    try:
        plain, once, again = (
            asyncio.run(parse_method(each).solve(engine, problem, sampling)) for each in ("plain", spelled, spelled)
        )
    finally:
        engine.close()
    assert once.response_ids == again.response_ids
    assert asked(once)
    assert plain.thinking.startswith(once.thinking)


def test_an_engine_without_prefix_reuse_is_refused(tokenizer):
    engine = ScriptedEngine(tokenizer, dict, without=[Capability.PREFIX_REUSE])
    with pytest.raises(EngineError, match="answer-convergence needs prefix reuse"):
        AnswerConvergence().check(engine)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("agree=0", "agree is 0"),
        ("agree=5,max_probes=4", "agree is 5, which 4 probes"),
        ("probe_tokens=0", "probe_tokens is 0"),
        ("max_probes=0", "max_probes is 0"),
        ("chunk=interval,every=0", "every is 0"),
        ("chunk=sentence", "chunk is 'sentence'; it must be paragraph, marker or interval"),
        ("think_ratio=0", "think_ratio is 0"),
        ("cue=,close=false", "cue is empty"),
        ("every=8", "every acts with chunk=interval only"),
        ("markers=So", "markers acts with chunk=marker only"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(spelled, message):
    with pytest.raises(MethodError, match=message):
        parse_method(f"answer-convergence:{spelled}")
