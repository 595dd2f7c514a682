"""DeepConf: the bar of the warm-up, who is stopped, who votes with which weight, when no more traces are needed."""

import asyncio
import math

import pytest
from intervention.scripted import ScriptedEngine, SeededEngine, follow

from satisfice.engines.base import Capability, EngineError, Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import MethodError, parse_method
from satisfice.intervention.draft import fork_seed
from satisfice.intervention.methods.deepconf import DeepConf, groups
from satisfice.problems import Problem, load_problems

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
SAMPLING = Sampling(temperature=0, top_p=1, max_tokens=100, seed=7)
LOW = 0.3
"""The certainty of a token about which a trace is not sure; it is still the likeliest."""


def response(answer, lines=2):
    said = f"The answer is \\boxed{{{answer}}}." if answer is not None else "Maybe"
    return "<think>\n" + "So 1.\n" * lines + f"</think>\n\n{said}"


def trace_of(tokenizer, text, doubt=(), certainty=1 - 1e-6):
    """A script that writes `text` and is not sure of its tokens at the places in `doubt`; "all" for every one."""
    sure, unsure = follow(tokenizer, text, certainty=certainty), follow(tokenizer, text, certainty=LOW)

    def script(so_far):
        written = so_far.rpartition("<|assistant|>")[2]
        place = len(tokenizer(written, add_special_tokens=False)["input_ids"])
        return unsure(so_far) if doubt == "all" or place in doubt else sure(so_far)

    return script


def engine_of(tokenizer, *scripts):
    """An engine whose fork i replays script i; what starts with the template's own opening is continued after it."""
    return SeededEngine(tokenizer, {fork_seed(SAMPLING.seed, (i,)): script for i, script in enumerate(scripts)})


def solve(engine, method, sampling=SAMPLING):
    return asyncio.run(method.solve(engine, PROBLEM, sampling))


def events(trace, kind):
    return [event.detail for event in trace.events if event.kind == kind]


def confidence_of(tokenizer, certainty, top=20):
    """The confidence of a token whose likeliest choice has `certainty`, all others sharing the rest."""
    rest = math.log((1 - certainty) / (len(tokenizer) - 1))
    return -(math.log(certainty) + (top - 1) * rest) / top


def test_a_trace_that_loses_confidence_is_stopped_and_does_not_vote(tokenizer):
    sure = [trace_of(tokenizer, response("3")), trace_of(tokenizer, response("4"))]
    unsure = trace_of(tokenizer, response("4", 20), doubt=range(10, 18))
    engine = engine_of(tokenizer, *sure, unsure, trace_of(tokenizer, response("3")))
    trace = solve(engine, DeepConf(k=4, warmup=2, window=4, keep=90, check_every=5, consensus=None))
    told = events(trace, "response")
    assert [each["stopped"] for each in told] == [False, False, True, False]
    assert told[2]["answer"] is None
    assert told[2]["tokens"] <= 16  # the first window below the bar ends in the doubt, and is seen within 5 tokens
    assert events(trace, "vote")[0]["tally"].keys() == {"3", "4"}
    assert trace.answer.endswith("{3}.")
    assert events(trace, "vote")[0]["stopped"] == 1


def test_what_all_traces_wrote_is_paid_for(tokenizer):
    scripts = [trace_of(tokenizer, response("3", lines)) for lines in (1, 2, 5)]
    trace = solve(engine_of(tokenizer, *scripts), DeepConf(k=3, warmup=1, window=4, consensus=None))
    lengths = [each["tokens"] for each in events(trace, "response")]
    assert trace.cost.retained_tokens == lengths[0]
    assert trace.cost.branch_tokens == sum(lengths[1:])


def test_how_often_the_window_is_looked_at_changes_tokens_and_nothing_else(tokenizer):
    scripts = [
        trace_of(tokenizer, response("3")),
        trace_of(tokenizer, response("5"), doubt=range(3, 6)),
        trace_of(tokenizer, response("4", 15), doubt=range(4, 12)),
        trace_of(tokenizer, response("5", 3)),
    ]
    outcomes = []
    for every in (1, 3, 7, 500):
        method = DeepConf(k=4, warmup=2, window=3, keep=90, check_every=every, consensus=None)
        trace = solve(engine_of(tokenizer, *scripts), method)
        told = events(trace, "response")
        outcomes.append((trace.response_ids, events(trace, "vote")[0], [each["stopped"] for each in told]))
        assert told[2]["tokens"] >= 4
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert outcomes[0][2] == [False, False, True, False]


def test_the_confidence_of_a_trace_is_that_of_its_least_sure_window(tokenizer):
    script = trace_of(tokenizer, response("3", 4), doubt=range(6, 8))
    trace = solve(engine_of(tokenizer, script), DeepConf(k=1, warmup=1, window=4))
    high, low = confidence_of(tokenizer, 1 - 1e-6), confidence_of(tokenizer, LOW)
    assert events(trace, "response")[0]["confidence"] == pytest.approx((2 * high + 2 * low) / 4, rel=1e-3)


def test_the_bar_is_a_percentile_of_the_warm_up_and_never_above_its_surest():
    assert DeepConf(keep=25).bar([1.0, 2.0, 3.0, 4.0, 5.0]) == 4.0
    assert DeepConf(keep=90).bar([1.0, 2.0]) == pytest.approx(1.1)
    assert DeepConf(keep=100).bar([3.0, 2.0]) == 2.0
    for sure in ([0.1 + 0.2] * 7, [1 / 3, 1 / 3], [5.0]):
        assert DeepConf(keep=10).bar(sure) <= max(sure)


def test_a_trace_of_the_warm_up_below_the_bar_does_not_vote(tokenizer):
    scripts = [
        trace_of(tokenizer, response("4"), doubt="all"),
        trace_of(tokenizer, response("4"), doubt="all"),
        trace_of(tokenizer, response("3")),
    ]
    trace = solve(engine_of(tokenizer, *scripts), DeepConf(k=3, warmup=3, keep=10))
    assert trace.answer.endswith("{3}.")
    assert [each["above"] for each in events(trace, "response")] == [False, False, True]


def test_a_sure_trace_outweighs_two_that_are_not(tokenizer):
    scripts = [
        trace_of(tokenizer, response(answer), doubt=doubt) for answer, doubt in (("4", "all"), ("4", "all"), ("3", ()))
    ]
    trace = solve(engine_of(tokenizer, *scripts), DeepConf(k=3, mode="offline", keep=100))
    tally = events(trace, "vote")[0]["tally"]
    assert tally["4"] == pytest.approx(2 * confidence_of(tokenizer, LOW), rel=1e-3)
    assert tally["3"] > tally["4"]
    assert trace.answer.endswith("{3}.")
    three = [trace_of(tokenizer, response("4"), doubt="all")] * 4 + [scripts[2]]
    assert solve(engine_of(tokenizer, *three), DeepConf(k=5, mode="offline", keep=100)).answer.endswith("{4}.")


def test_of_equal_weights_the_first_answer_wins(tokenizer):
    scripts = [trace_of(tokenizer, response(answer)) for answer in ("5", "4")]
    trace = solve(engine_of(tokenizer, *scripts), DeepConf(k=2, warmup=2, window=1, keep=100))
    tally = events(trace, "vote")[0]["tally"]
    assert tally["5"] == tally["4"]
    assert trace.answer.endswith("{5}.")


def test_no_more_traces_are_written_once_they_agree(tokenizer):
    scripts = [trace_of(tokenizer, response("3"))] * 6
    trace = solve(engine_of(tokenizer, *scripts), DeepConf(k=6, warmup=2, window=4))
    assert events(trace, "vote")[0]["traces"] == 2
    assert (
        events(solve(engine_of(tokenizer, *scripts), DeepConf(k=6, warmup=2, consensus=None)), "vote")[0]["traces"] == 6
    )


def test_one_voter_agrees_with_nobody(tokenizer):
    unsure, sure = trace_of(tokenizer, response("4"), doubt=range(3, 6)), trace_of(tokenizer, response("3"))
    trace = solve(engine_of(tokenizer, unsure, sure, sure, sure, sure, sure), DeepConf(k=6, warmup=2, window=3))
    assert events(trace, "vote")[0]["traces"] == 4


def test_waves_go_on_until_they_agree_and_the_last_is_as_large_as_the_rest(tokenizer):
    # keep=100, so that the bar lets all of these in; 2 of 3, then 4 of 5 is below 0.85, 5 of 6 too, 6 of 7 is not.
    answers = ["4", "3", "3", "3", "3", "3", "3", "3", "3"]
    scripts = [trace_of(tokenizer, response(answer)) for answer in answers]
    method = DeepConf(k=9, warmup=2, keep=100, consensus=0.85, window=1)
    assert events(solve(engine_of(tokenizer, *scripts), method), "vote")[0]["traces"] == 8
    method = DeepConf(k=7, warmup=3, keep=100, consensus=1.0, window=1)
    assert events(solve(engine_of(tokenizer, *scripts), method), "vote")[0]["traces"] == 7


def test_where_no_trace_ends_the_first_is_returned_cut_off(tokenizer):
    engine = engine_of(tokenizer, *[trace_of(tokenizer, response("3", 60))] * 4)
    trace = solve(engine, DeepConf(k=4, warmup=2, window=8))
    assert (trace.stop, trace.finished) == ("token limit", False)
    assert len(trace.response_ids) == SAMPLING.max_tokens
    assert events(trace, "vote") == [
        {
            "tally": {},
            "bar": pytest.approx(confidence_of(tokenizer, 1 - 1e-6), rel=1e-3),
            "traces": 4,
            "stopped": 0,
            "adopted": 0,
        }
    ]


def test_where_all_later_ones_are_stopped_and_the_surest_has_no_answer_the_warm_up_votes(tokenizer):
    scripts = [
        trace_of(tokenizer, response(None)),
        trace_of(tokenizer, response("4"), doubt=range(3, 6)),
        *[trace_of(tokenizer, response("5", 9), doubt="all")] * 2,
    ]
    trace = solve(engine_of(tokenizer, *scripts), DeepConf(k=4, warmup=2, window=3, keep=10))
    assert events(trace, "vote")[0]["stopped"] == 2
    assert trace.answer.endswith("{4}.")


def test_a_window_longer_than_every_trace_stops_nothing_but_lets_only_the_surer_vote(tokenizer):
    scripts = [
        trace_of(tokenizer, response("3")),
        trace_of(tokenizer, response("4")),
        trace_of(tokenizer, response("4"), doubt="all"),
        trace_of(tokenizer, response("4"), doubt="all"),
    ]
    trace = solve(engine_of(tokenizer, *scripts), DeepConf(k=4, warmup=2, window=5000, keep=100, consensus=None))
    assert [each["stopped"] for each in events(trace, "response")] == [False] * 4
    assert [each["above"] for each in events(trace, "response")] == [True, True, False, False]
    assert trace.answer.endswith("{3}.")


def test_groups_by_hand():
    assert groups([1.0, 2.0, 6.0], 2) == [1.5, 4.0]
    assert groups([1.0, 2.0, 6.0], 3) == groups([1.0, 2.0, 6.0], 9) == [3.0]
    assert groups([4.0], 1) == [4.0]


@pytest.mark.parametrize(
    ("measure", "expected"), [("lowest", 1.0), ("bottom", 1.5), ("tail", 9.0), ("mean", sum(range(1, 21)) / 20)]
)
def test_measures_by_hand(measure, expected):
    rising = [float(each) for each in range(1, 21)]  # groups of one token: 1..20; the least tenth are 1 and 2
    method = DeepConf(mode="offline", measure=measure, window=1)
    if measure == "tail":
        rising[-1] = 9.0
    assert method.confidence(rising) == expected
    assert method.confidence([]) == 0.0


def test_one_trace_is_what_plain_writes():
    engine = TransformersEngine.load("lab")
    (problem,) = load_problems("lab:calibration", limit=1).problems
    spelled = ("plain", "deepconf:k=1,warmup=1", "deepconf:k=4,warmup=2,keep=90,window=8,check_every=3,consensus=none")
    try:
        traces = [
            asyncio.run(parse_method(each).solve(engine, problem, Sampling(1.0, 1.0, max_tokens=300, seed=3)))
            for each in (*spelled, spelled[2])
        ]
    finally:
        engine.close()
    assert traces[0].response_ids == traces[1].response_ids
    assert traces[2].response_ids == traces[3].response_ids
    told, again = (
        [(each["tokens"], each["stopped"], each["answer"]) for each in events(trace, "response")]
        for trace in traces[2:]
    )
    assert told == again
    assert len(told) == 4


def test_an_engine_without_log_probabilities_is_refused(tokenizer):
    engine = ScriptedEngine(tokenizer, dict, without=[Capability.LOGPROBS])
    with pytest.raises(EngineError, match="deepconf needs logprobs"):
        DeepConf().check(engine)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("deepconf:warmup=9,k=8", "warmup is 9, but there are 8 traces"),
        ("deepconf:keep=0", "keep is 0"),
        ("deepconf:keep=101", "keep is 101"),
        ("deepconf:top=21", "top is 21"),
        ("deepconf:measure=tail", "mode=offline"),
        ("deepconf:consensus=0", "consensus is 0"),
        ("deepconf:mode=live", "mode is"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(spelled, message):
    with pytest.raises(MethodError, match=message):
        parse_method(spelled)


def test_it_takes_a_control_and_says_how_many_it_has_under_way():
    assert parse_method("deepconf:k=8,warmup=3+temperature-scaling").breadth == 3
    assert parse_method("deepconf:k=8,mode=offline,measure=bottom").breadth == 8
