"""Controls by the protocol's `logit_bias`: in thinking and nowhere else, and as they are on the transformers engine."""

import asyncio
import math
import pickle
import time

import pytest
from engines.fake_server import QUESTION, FakeServer, Fault, sampled
from engines.lab_server import LabServer

from satisfice.engines.base import Capability, EngineError, EngineFailed, Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import parse_method
from satisfice.intervention.controls import EndScaling, SuppressTokens, ThinkingBudget
from satisfice.problems import Problem, load_problems
from satisfice.runs.scale_out import EngineElsewhere, _facts
from satisfice.thinking import ThinkingFormat, decode

WAITING = "10 + 5 = 15.\nWait, let me check.\n10 + 5 = 15.\n</think>\n\nThe answer is \\boxed{45}."
"""What the scripted model likes best: a second thought."""
PLAIN = "10 + 5 = 15.\n15 * 3 = 45.\n</think>\n\nWait, let me check.\nThe answer is \\boxed{45}."
"""What it writes where it cannot have one: it comes in the answer."""
AGAIN = "10 + 5 = 15.\n</think>\n\n15.<think>\n15 * 3 = 45.\n</think>\n\nWait, let me check.\n45."
"""What opens thinking a second time."""


@pytest.fixture
def ids(checkpoint):
    """The tokens of a text, with the end of the text."""

    def encode(text):
        found = checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert checkpoint.tokenizer.unk_token_id not in found
        return [*found, checkpoint.tokenizer.eos_token_id]

    return encode


@pytest.fixture
def control(checkpoint):
    """No "wait" while thinking, which the prompt has opened."""
    thinking = ThinkingFormat.detect(checkpoint.tokenizer)
    return SuppressTokens(words=("wait",), state=thinking.automaton(checkpoint.tokenizer).thinking_state)


@pytest.fixture
def waiting(serve, ids):
    """A server whose model likes a second thought best."""

    def make(kind="vllm", others=(PLAIN,), **changes):
        return serve(kind, answer=ids(WAITING), others=[ids(text) for text in others], **changes)

    return make


def biased(server: FakeServer) -> list[bool]:
    return ["logit_bias" in request for request in server.requests]


def closed(engine, ids):
    """How many tokens there are up to the first closing marker, with it."""
    return next(n for n in range(1, len(ids) + 1) if "</think>" in decode(engine.tokenizer, ids[:n]))


# -- the same as everywhere


@pytest.fixture(scope="module")
def embedded():
    engine = TransformersEngine.load("lab")
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "spelled",
    ["temperature-scaling:mode=bias,bias=10", "no-wait", "budget-forcing:max_thinking=30+no-wait"],
)
async def test_answers_are_those_of_the_transformers_engine(spelled, kind, embedded, checkpoint, load):
    server = LabServer(checkpoint.tokenizer, [], [], kind)
    try:
        engine = load(server)
        method, sampling = parse_method(spelled), Sampling(temperature=0, top_p=1, max_tokens=150)
        method.check(engine)
        changed = 0
        for problem in load_problems("lab:test", limit=3).problems:
            trace = await method.solve(engine, problem, sampling)
            same, plain = [await each.solve(embedded, problem, sampling) for each in (method, parse_method("plain"))]
            assert trace.response_ids == same.response_ids
            assert (trace.stop, trace.thinking_span) == (same.stop, same.thinking_span)
            assert trace.cost.thinking_tokens == same.cost.thinking_tokens
            changed += trace.response_ids != plain.response_ids
        assert changed
        assert any(biased(server))
    finally:
        server.close()


# -- where it acts


async def test_a_bias_acts_while_the_model_thinks_and_not_in_the_answer(kind, waiting, load, prompt, ids, control):
    server = waiting(kind)
    engine = load(server)
    assert (await engine.generate(prompt, sampled())).ids == ids(WAITING)
    server.requests.clear()
    seen = []
    generation = await engine.generate(prompt, sampled(), control=control, on_token=seen.append)
    assert generation.ids == seen == ids(PLAIN)
    assert (generation.finish, generation.stopped_by, generation.stop_tokens) == ("stop", ids(PLAIN)[-1], 1)
    assert biased(server) == [True, False]
    wait = engine.tokenizer.convert_tokens_to_ids("Wait")
    assert server.requests[0]["logit_bias"] == {str(wait): -100.0}
    first = closed(engine, ids(PLAIN))
    assert [request["max_tokens"] for request in server.requests] == [200, 200 - first]
    assert len({request["seed"] for request in server.requests}) == 2
    assert server._ids(server.requests[1]["prompt"]) == [*prompt, *ids(PLAIN)[:first]]


async def test_a_bias_of_the_marker_ends_thinking_sooner(kind, waiting, load, prompt, ids):
    sooner = "10 + 5 = 15.\n</think>\n\n15."
    server = waiting(kind, others=(sooner,))
    engine = load(server)
    state = engine.thinking.automaton(engine.tokenizer).thinking_state
    for bias, text in ((1.5, WAITING), (2.5, sooner)):  # the other path is 2 nats below
        generation = await engine.generate(prompt, sampled(), control=EndScaling(bias=bias, state=state))
        assert generation.ids == ids(text)
    (close,) = engine.thinking.close_ids(engine.tokenizer)
    assert server.requests[-2]["logit_bias"] == {str(close): 2.5}


async def test_thinking_that_is_opened_again_is_biased_again(kind, serve, load, prompt, ids, control):
    server = serve(kind, answer=ids(AGAIN.replace("15 * 3", "Wait, let me check.\n15 * 3")), others=[ids(AGAIN)])
    engine = load(server)
    generation = await engine.generate(prompt, sampled(), control=control)
    assert generation.ids == ids(AGAIN)
    assert biased(server) == [True, False, True, False]


async def test_nothing_is_biased_before_thinking_begins(kind, serve, load, prompt, ids):
    text = "Wait, let me check.\n<think>\n15 * 3 = 45.\n</think>\n\nWait, let me check.\n45."
    server = serve(kind, answer=ids(text.replace("15 * 3", "Wait, let me check.\n15 * 3")), others=[ids(text)])
    generation = await load(server).generate(prompt, sampled(), control=SuppressTokens(words=("wait",), state=0))
    assert generation.ids == ids(text)
    assert biased(server) == [False, True, False]


async def test_a_server_that_joins_tokens_is_cut_at_the_marker(waiting, load, prompt, ids, control):
    server = waiting("llamacpp", chunk=4)
    engine = load(server)
    generation = await engine.generate(prompt, sampled(), control=control)
    first = closed(engine, ids(PLAIN))
    assert first % 4, "what follows the marker came with it, under the bias"
    assert generation.ids == ids(PLAIN)
    assert generation.usage.generated > generation.usage.forward_passes == len(generation.ids)


async def test_vllm_is_told_where_to_stop_and_others_are_cut_off(kind, waiting, load, prompt, ids, control, caplog):
    server = waiting(kind, pause=0.003)
    engine = load(server)
    generation = await engine.generate(prompt, sampled(stop=("a", "b", "c", "d")), control=control)
    assert generation.stopped_by == "a"
    if kind == "vllm":
        assert [request["stop"] for request in server.requests] == [
            ["</think>", "a", "b", "c"],
            ["<think>", "a", "b", "c"],
        ]
    assert generation.usage.generated < len(ids(PLAIN))
    assert not any("goes on after the end" in line for line in caplog.messages)


async def test_a_control_that_changes_nothing_is_one_plain_request(waiting, load, prompt, ids):
    server = waiting()
    engine = load(server)
    assert (await engine.generate(prompt, sampled(), control=EndScaling())).ids == ids(WAITING)
    assert biased(server) == [False]


async def test_a_server_with_the_plugin_gets_the_control_and_no_bias(waiting, load, prompt, control):
    server = waiting(plugin=True)
    engine = load(server)
    assert {Capability.CONTROL, Capability.BIAS} <= engine.capabilities
    await engine.generate(prompt, sampled(), control=control)
    assert biased(server) == [False]
    assert "vllm_xargs" in server.requests[0]
    engine.check_control(ThinkingBudget(most=3))


# -- one generation


async def test_what_it_cost_is_the_sum(kind, waiting, load, prompt, ids, control):
    server = waiting(kind, caches=kind != "standard")
    engine = load(server)
    usage = (await engine.generate(prompt, sampled(), control=control)).usage
    written, first = len(ids(PLAIN)), closed(engine, ids(PLAIN))
    assert usage.prefilled + usage.cached == 2 * len(prompt) + first
    assert usage.forward_passes == written
    assert usage.generated == written - (kind == "standard")  # there the end of the text has none and is not sent
    assert (usage.cached > 0) == (kind != "standard")


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
async def test_log_probabilities_of_all_parts_are_together(kind, waiting, load, prompt, ids, control):
    generation = await load(waiting(kind)).generate(prompt, sampled(), control=control, top_logprobs=2)
    assert generation.logprobs == [-1.0] * len(ids(PLAIN))
    assert [next(iter(top)) for top in generation.top_logprobs] == ids(PLAIN)


async def test_the_marker_may_be_the_callers_stop(kind, waiting, load, prompt, ids, control):
    server = waiting(kind)
    engine = load(server)
    generation = await engine.generate(prompt, sampled(stop=("</think>", "never")), control=control)
    assert generation.ids == ids(PLAIN)[: closed(engine, ids(PLAIN))]
    assert (generation.finish, generation.stopped_by, generation.stop_tokens) == ("stop", "</think>", 1)
    assert biased(server) == [True]
    assert server.requests[0].get("stop", ["</think>", "never"]) == ["</think>", "never"]


async def test_a_stop_may_begin_before_the_marker_and_end_after_it(kind, waiting, load, prompt, ids, control, caplog):
    server = waiting(kind, pause=0.003)
    engine = load(server)
    generation = await engine.generate(prompt, sampled(stop=(".\n</think>\n\n",)), control=control)
    first = closed(engine, ids(PLAIN))
    assert generation.ids == ids(PLAIN)[: first + 1]
    assert generation.stopped_by == ".\n</think>\n\n"
    assert ".\n</think>\n\n" in decode(engine.tokenizer, generation.ids[-generation.stop_tokens :])
    assert biased(server) == [True, False]
    assert not any("goes on after the end" in line for line in caplog.messages)


@pytest.mark.parametrize(("room", "asked"), [(-1, 1), (0, 1), (1, 2)])
async def test_a_limit_at_the_marker(room, asked, kind, waiting, load, prompt, ids, control):
    server = waiting(kind)
    engine = load(server)
    limit = closed(engine, ids(PLAIN)) + room
    generation = await engine.generate(prompt, sampled(max_tokens=limit), control=control)
    assert (generation.ids, generation.finish, generation.stopped_by) == (ids(PLAIN)[:limit], "length", None)
    assert len(server.requests) == asked
    assert server.requests[-1]["max_tokens"] == (1 if room == 1 else limit)


# -- what goes wrong


async def test_a_connection_that_drops_in_any_part_is_taken_up_there(kind, waiting, load, prompt, ids, control):
    server = waiting(kind)
    engine = load(server)
    server.faults = [Fault(drop_after=3), Fault(), Fault(drop_after=2)]
    seen = []
    generation = await engine.generate(prompt, sampled(), control=control, on_token=seen.append)
    assert generation.ids == seen == ids(PLAIN)
    assert biased(server) == [True, True, False, False]
    first = closed(engine, ids(PLAIN))
    assert [request["max_tokens"] for request in server.requests] == [200, 197, 200 - first, 198 - first]


async def test_a_connection_that_drops_at_the_marker_loses_nothing(kind, waiting, load, prompt, ids, control):
    server = waiting(kind)
    engine = load(server)
    first = closed(engine, ids(PLAIN))
    for before in (1, 0):
        server.requests.clear()
        server.faults = [Fault(drop_after=first - before)]
        assert (await engine.generate(prompt, sampled(), control=control)).ids == ids(PLAIN)
        assert biased(server) == ([True, True, False] if before else [True, False])


async def test_tries_are_those_of_the_whole_answer(waiting, load, prompt, control):
    server = waiting()
    engine = load(server, max_retries=1)
    server.faults = [Fault(drop_after=3), Fault(), Fault(drop_after=2)]
    with pytest.raises(EngineFailed, match=r"dropped the connection .*, after 2 tries; .* tokens of the"):
        await engine.generate(prompt, sampled(), control=control)


async def test_a_marker_that_the_server_alone_sees_is_none(waiting, load, prompt, ids, control, monkeypatch):
    server = waiting(stop_reason="</think>")
    engine = load(server)
    usual = server._continuation
    cuts = [3]

    def continuation(given, body):
        new, finish = usual(given, body)
        return (new[: cuts.pop()], "stop") if cuts else (new, finish)

    monkeypatch.setattr(server, "_continuation", continuation)
    assert (await engine.generate(prompt, sampled(), control=control)).ids == ids(PLAIN)
    assert biased(server) == [True, True, False]


async def test_requests_of_one_answer_keep_to_the_rate(waiting, load, prompt, control):
    server = waiting()
    await load(server, requests_per_minute=300).generate(prompt, sampled(), control=control)
    first, second = server.times
    assert second - first > 0.19


async def test_a_cancelled_answer_ends_its_second_request_too(waiting, load, prompt, ids, control):
    server = waiting(pause=0.02)
    engine = load(server)
    seen = []
    task = asyncio.create_task(engine.generate(prompt, sampled(), control=control, on_token=seen.append))
    while len(seen) <= closed(engine, ids(PLAIN)):
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadline = time.monotonic() + 3
    while server.at_once or not server.given_up:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert biased(server) == [True, False]


# -- what is refused


@pytest.mark.parametrize(
    ("spelled", "said"),
    [
        ("temperature-scaling:t=0.9", r"needs control.*plugin.*; mode=bias needs token bias alone, which it offers$"),
        ("thinking-budget:max_thinking=9", r"needs control, which openai:fake does not offer.*plugin"),
        ("temperature-scaling:mode=bias,bias=101", r"temperature-scaling: .* a bias of 101 is beyond the -100\.\.100"),
        ("budget-forcing+temperature-scaling:mode=bias,bias=-100.5", "a bias of -100.5 is beyond"),
    ],
)
def test_a_method_whose_control_is_no_bias_is_refused_at_the_start(spelled, said, waiting, load):
    with pytest.raises(EngineError, match=said):
        parse_method(spelled).check(load(waiting()))


def test_workers_refuse_at_the_start_what_their_engines_would(waiting, load):
    engine = load(waiting())
    elsewhere = EngineElsewhere(pickle.loads(pickle.dumps(_facts(engine))))
    for spelled in ("temperature-scaling:mode=bias,bias=101", "temperature-scaling:t=0.5", "thinking-budget"):
        with pytest.raises(EngineError) as here:
            parse_method(spelled).check(engine)
        with pytest.raises(EngineError) as there:
            parse_method(spelled).check(elsewhere)
        assert str(there.value) == str(here.value)
    parse_method("no-wait").check(elsewhere)


@pytest.mark.parametrize("spelled", ["no-wait", "temperature-scaling:mode=bias,bias=100", "deer+no-wait"])
def test_a_method_whose_control_is_a_bias_is_not(spelled, waiting, load):
    parse_method(spelled).check(load(waiting()))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (EndScaling(gain=0.1), "a gain multiplies .*: take a bias"),
        (EndScaling(gain=0.1, bias=1), "a gain multiplies"),
        (ThinkingBudget(most=9), "ThinkingBudget is more than a constant bias"),
        (EndScaling(bias=1e3), "beyond the"),
        (EndScaling(bias=math.inf), "beyond the"),
    ],
)
async def test_a_control_that_is_no_bias_is_refused_before_anything_is_sent(asked, said, waiting, load, prompt):
    server = waiting()
    engine = load(server)
    for refused in (engine.generate(prompt, sampled(), control=asked), asyncio.to_thread(engine.check_control, asked)):
        with pytest.raises(EngineError, match=rf"^openai:fake does not offer control \(.*plugin.*\), and .*{said}"):
            await refused
    assert server.requests == []


async def test_a_marker_of_several_tokens_is_no_constant_bias(waiting, load, prompt, ids):
    engine = load(waiting(), thinking=ThinkingFormat.custom("<think>", "= 45.\n"))
    assert len(engine.thinking.close_ids(engine.tokenizer)) > 1
    with pytest.raises(EngineError, match=r"the closing marker '= 45.\\n' is \d tokens"):
        parse_method("temperature-scaling:mode=bias,bias=1").check(engine)
    parse_method("no-wait").check(engine)
    with pytest.raises(EngineError, match=r"one of the words is a token of the closing marker.*leave that word out"):
        parse_method('no-wait:words="wait|="').check(engine)
    # Words can be taken away there, up to the marker's last token.
    state = engine.thinking.automaton(engine.tokenizer).thinking_state
    generation = await engine.generate(prompt, sampled(), control=SuppressTokens(words=("wait",), state=state))
    assert generation.ids == ids(PLAIN)


def test_the_closing_marker_stays_possible_though_it_is_a_word(checkpoint):
    tokenizer = checkpoint.tokenizer
    wait, hmm = tokenizer.convert_tokens_to_ids(["Wait", "Hmm"])
    closing = ThinkingFormat.custom("<think>", "Wait")
    assert SuppressTokens(words=("wait", "hmm")).biases(closing, tokenizer) == {hmm: -math.inf}
    other = ThinkingFormat.custom("<think>", "Hmm")
    assert SuppressTokens(words=("wait", "hmm")).biases(other, tokenizer) == {wait: -math.inf}


# -- what a server is found to do


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"obeys_bias": False}, r"the server does not obey logit_bias: a bias of 100 did not make it write '</think>'"),
        ({"refuses": {"logit_bias"}}, "the server refuses logit_bias"),
    ],
)
async def test_a_server_that_does_not_obey_is_found_out(changes, said, kind, waiting, load, prompt, control):
    server = waiting(kind, **changes)
    engine = load(server)
    assert not {Capability.BIAS, Capability.CONTROL} & engine.capabilities
    with pytest.raises(EngineError, match=rf"^no-wait needs token bias, which openai:fake does not offer.*{said}"):
        parse_method("no-wait").check(engine)
    with pytest.raises(EngineError, match=rf"^openai:fake does not offer token bias: {said}"):
        await engine.generate(prompt, sampled(), control=control)
    assert server.requests == []


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_log_probabilities_after_the_bias_are_found_out(kind, waiting, load):
    engine = load(waiting(kind, biased_logprobs=True))
    assert Capability.LOGPROBS in engine.capabilities
    assert "those after logit_bias" in engine.lacking[Capability.BIAS]


def test_a_server_of_texts_that_hides_the_marker_offers_none(waiting, load, checkpoint):
    close = checkpoint.tokenizer.convert_tokens_to_ids("</think>")
    assert "'</think>', or not as text" in load(waiting("standard", hides={close})).lacking[Capability.BIAS]
    assert Capability.BIAS in load(waiting("vllm", hides={close})).capabilities  # which says the ids


def test_what_is_missing_is_said_at_the_start(waiting, load, caplog):
    load(waiting(obeys_bias=False))
    (said,) = [line for line in caplog.messages if "does not offer" in line]
    assert "token bias (the server does not obey logit_bias" in said


async def test_a_method_with_a_bias_makes_one_trace(kind, waiting, load, ids):
    engine = load(waiting(kind))
    trace = await parse_method("no-wait").solve(engine, Problem("one", QUESTION, "45"), sampled())
    assert trace.response_ids == ids(PLAIN)
    assert (trace.stop, trace.finished) == ("marker", True)
    assert trace.answer.strip() == "Wait, let me check.\nThe answer is \\boxed{45}."
    assert "Wait" not in trace.thinking
