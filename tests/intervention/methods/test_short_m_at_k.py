"""short-m@k: who ends first, who votes, what the others cost."""

import asyncio

import pytest
from intervention.scripted import ScriptedEngine, SeededEngine, follow

from satisfice.engines.base import Capability, EngineError, EngineFailed, Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import MethodError, parse_method
from satisfice.intervention.draft import fork_seed
from satisfice.intervention.methods.short_m_at_k import ShortMAtK
from satisfice.problems import Problem, load_problems

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
SAMPLING = Sampling(temperature=0.6, top_p=1, max_tokens=100, seed=7)


def response(answer, lines=1):
    """A response that thinks `lines` lines and answers; its thinking with the marker has 3 tokens a line, and one."""
    said = f"The answer is \\boxed{{{answer}}}." if answer is not None else "Maybe"
    return "<think>\n" + "So 1.\n" * lines + f"</think>\n\n{said}"


def engine_of(tokenizer, *texts, kind=SeededEngine, **options):
    scripts = {fork_seed(SAMPLING.seed, (index,)): follow(tokenizer, text) for index, text in enumerate(texts)}
    return kind(tokenizer, scripts, **options)


def solve(engine, method, sampling=SAMPLING):
    return asyncio.run(method.solve(engine, PROBLEM, sampling))


def detail(trace, kind):
    return [event.detail for event in trace.events if event.kind == kind]


def thinking_of(trace):
    return [each["thinking"] for each in detail(trace, "response")]


def test_the_first_m_vote_and_the_others_are_stopped(tokenizer):
    texts = [response("5", 9), response("3", 2), response("4", 4), response("3", 3), response("9", 9)]
    engine = engine_of(tokenizer, *texts)
    trace = solve(engine, ShortMAtK(m=3, k=5))
    assert trace.answer.endswith("{3}.")
    assert trace.thinking == "So 1.\n" * 2
    assert detail(trace, "vote") == [{"tally": {"3": 2, "4": 1}, "ended": 3, "without_answer": 0, "adopted": 1}]
    assert [each["votes"] for each in detail(trace, "response")] == [False, True, True, True, False]
    assert len(engine.cancelled) == 2


def test_what_the_stopped_ones_had_written_is_paid_for(tokenizer):
    engine = engine_of(tokenizer, response("5", 9), response("3", 2), response("9", 9))
    trace = solve(engine, ShortMAtK(m=1, k=3))
    events = detail(trace, "response")
    assert all(0 < events[index]["tokens"] < 9 * 3 for index in (0, 2))  # on their way when the second had ended
    assert trace.cost.retained_tokens == events[1]["tokens"] == len(trace.response_ids)
    assert trace.cost.branch_tokens == events[0]["tokens"] + events[2]["tokens"]
    assert trace.cost.total_tokens == trace.cost.forward_passes


def test_a_tie_goes_to_the_shorter_thinking(tokenizer):
    trace = solve(engine_of(tokenizer, response("5", 3), response("4", 1), response("3", 2)), ShortMAtK(m=3, k=3))
    assert trace.answer.endswith("{4}.")
    two = [response("5", 3), response("4", 2), response("4", 4), response("5", 1)]
    assert solve(engine_of(tokenizer, *two), ShortMAtK(m=4, k=4)).answer.endswith("{5}.")


def test_of_equal_lengths_the_one_that_was_begun_first_is_in(tokenizer):
    texts = [response("5", 2), response("4", 2), response("3", 2)]
    trace = solve(engine_of(tokenizer, *texts), ShortMAtK(m=1, k=3))
    assert trace.answer.endswith("{5}.")


class Waiting(SeededEngine):
    """Keeps the request with the shortest thinking waiting until the others are far ahead."""

    async def generate(self, prompt_ids, sampling, **options):
        if sampling.seed == fork_seed(SAMPLING.seed, (2,)):
            for _ in range(60):
                await asyncio.sleep(0)
        return await super().generate(prompt_ids, sampling, **options)


def test_first_is_counted_in_tokens_whoever_the_engine_serves_first(tokenizer):
    texts = [response("5", 6), response("4", 3), response("3", 1)]
    at_once = solve(engine_of(tokenizer, *texts), ShortMAtK(m=1, k=3))
    engine = engine_of(tokenizer, *texts, kind=Waiting)
    late = solve(engine, ShortMAtK(m=1, k=3))
    assert engine.cancelled
    assert late.response_ids == at_once.response_ids
    assert late.answer.endswith("{3}.")


def test_one_that_was_kept_waiting_and_is_longer_stays_out(tokenizer):
    texts = [response("5", 6), response("4", 2), response("3", 3)]
    trace = solve(engine_of(tokenizer, *texts, kind=Waiting), ShortMAtK(m=1, k=3))
    assert trace.answer.endswith("{4}.")
    assert thinking_of(trace)[2] == thinking_of(trace)[1]  # continued so far and no further


def test_the_limit_in_all_of_them_gives_a_response_that_is_cut_off(tokenizer):
    trace = solve(engine_of(tokenizer, *[response("3", 50)] * 3), ShortMAtK(m=2, k=3))
    assert (trace.stop, trace.finished) == ("token limit", False)
    assert len(trace.response_ids) == SAMPLING.max_tokens
    assert trace.cost.branch_tokens == 2 * SAMPLING.max_tokens
    assert detail(trace, "vote") == [{"tally": {}, "ended": 0, "without_answer": 0, "adopted": 0}]


def test_where_fewer_than_m_end_those_vote(tokenizer):
    texts = [response("5", 50), response("3", 2), response("4", 60)]
    trace = solve(engine_of(tokenizer, *texts), ShortMAtK(m=3, k=3))
    assert trace.answer.endswith("{3}.")
    assert detail(trace, "vote")[0]["ended"] == 1


def test_without_any_answer_the_shortest_is_returned(tokenizer):
    trace = solve(engine_of(tokenizer, response(None, 3), response(None, 1)), ShortMAtK(m=2, k=2))
    assert trace.thinking == "So 1.\n"
    assert detail(trace, "vote")[0]["without_answer"] == 2


def test_a_text_that_ends_inside_its_thinking_counts_as_ended(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, "<think>\n"))  # ends the whole text inside its thinking
    trace = solve(engine, ShortMAtK(m=1, k=2))
    assert trace.stop == "closed by method"


def test_one_of_one_is_what_plain_would_have_written(tokenizer):
    engine = TransformersEngine.load("lab")
    (problem,) = load_problems("lab:calibration", limit=1).problems
    try:
        traces = [
            asyncio.run(parse_method(spelled).solve(engine, problem, Sampling(1.0, 1.0, max_tokens=300, seed=3)))
            for spelled in ("plain", "short-m@k:m=1,k=1", "short-m@k:m=1,k=3", "short-m@k:m=1,k=3")
        ]
    finally:
        engine.close()
    assert traces[0].response_ids == traces[1].response_ids
    assert traces[2].response_ids == traces[3].response_ids  # a seed decides which of three it is
    assert traces[2].cost.thinking_tokens <= traces[0].cost.thinking_tokens
    assert traces[2].cost.branch_tokens > 0


class Failing(SeededEngine):
    """One of its requests fails."""

    async def generate(self, prompt_ids, sampling, **options):
        if sampling.seed == fork_seed(SAMPLING.seed, (1,)):
            raise EngineFailed("the disk burns")
        return await super().generate(prompt_ids, sampling, **options)


def test_a_failure_is_raised_and_leaves_nothing_running(tokenizer):
    engine = engine_of(tokenizer, response("5", 9), response("4"), kind=Failing)
    with pytest.raises(EngineFailed, match="the disk burns"):
        solve(engine, ShortMAtK(m=1, k=2))
    assert len(engine.cancelled) == 1


def test_an_engine_that_cannot_cancel_is_refused(tokenizer):
    engine = ScriptedEngine(tokenizer, dict, without=[Capability.CANCEL])
    with pytest.raises(EngineError, match="short-m@k needs cancel"):
        ShortMAtK().check(engine)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("short-m@k:m=0", "m is 0"),
        ("short-m@k:k=0", "k is 0"),
        ("short-m@k:m=4,k=3", "m is 4, but only 3 think"),
        ("short-m@k:m=9", "m is 9, but only 8 think"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(spelled, message):
    with pytest.raises(MethodError, match=message):
        parse_method(spelled)


def test_it_is_spelled_with_its_sign_and_takes_a_control():
    assert str(parse_method("short-m@k:m=1,k=4+temperature-scaling:t=0.8")) == (
        "short-m@k:m=1,k=4+temperature-scaling:t=0.8"
    )
    assert parse_method("short-m@k:k=6").breadth == 6
