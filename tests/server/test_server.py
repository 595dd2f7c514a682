"""The server as its clients see it: the real `openai` client, and by hand what that one would not send."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from intervention.scripted import ScriptedEngine, follow
from server.running import QUESTION, HeldEngine, serving

from satisfice.engines.base import Capability, Child, EngineError, EngineFailed, Sampling, derive_seed
from satisfice.intervention import METHODS, MethodError, lab_spellings, parse_method
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem
from satisfice.runs.certificate import Certificate, Setting
from satisfice.server.app import Settings, choice_seed
from satisfice.server.meter import Meter, MeteredEngine
from satisfice.server.process import listen, offered
from satisfice.server.protocol import ECHOED
from satisfice.server.wishes import efforts_from
from satisfice.thinking import ThinkingFormat

openai = pytest.importorskip("openai")

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def server(engine):
    efforts = {"low": parse_method("temperature-scaling:t=0.7"), "none": parse_method("no-thinking")}
    with serving(engine, efforts=efforts, max_breadth=100) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def ask(client, method=None, messages=MESSAGES, **options):
    extra = {} if method is None else {"method": method}
    return client.chat.completions.create(model="lab", messages=messages, extra_body=extra, **options)


def collected(stream):
    """The joined deltas, the last chunk of the choice, and the usage."""
    parts = {"reasoning_content": "", "content": ""}
    last = usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            for part in parts:
                parts[part] += getattr(choice.delta, part, None) or ""
            last = choice if choice.finish_reason else last
    return parts["reasoning_content"], parts["content"], last, usage


def solved(engine, method, seed, **changes):
    from dataclasses import replace

    sampling = replace(engine.default_sampling, seed=seed, **changes)
    return asyncio.run(parse_method(method).solve(engine, Problem("p", QUESTION, ""), sampling))


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


# -- what is answered


def test_a_completion_is_what_the_method_writes(client, engine):
    answer = ask(client, "temperature-scaling:t=0.8", seed=3, temperature=0.9, max_tokens=200)
    trace = solved(engine, "temperature-scaling:t=0.8", 3, temperature=0.9, max_tokens=200)
    [choice] = answer.choices
    assert choice.message.content == trace.answer.lstrip() != ""
    assert choice.message.reasoning_content == trace.thinking.lstrip() != ""
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(trace.prompt_ids)
    assert answer.usage.completion_tokens == trace.cost.retained_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens == trace.cost.thinking_tokens
    assert choice.satisfice["method"] == "temperature-scaling:t=0.8"
    assert choice.satisfice["cost"]["thinking_tokens"] == trace.cost.thinking_tokens
    assert choice.satisfice["stop"] == trace.stop
    assert answer.system_fingerprint == f"fp_{engine.digest}"


@pytest.mark.parametrize(
    "method", [method for method in lab_spellings() if not method.startswith("tldr")], ids=lambda m: m.partition(":")[0]
)
def test_a_stream_of_any_method_holds_the_same_text(client, engine, method):
    """Also where a method takes back what the model has written, such as the marker before which it stopped."""
    trace = solved(engine, method, 5, max_tokens=120)
    thinking, answer, last, usage = collected(
        ask(client, method, seed=5, max_tokens=120, stream=True, stream_options={"include_usage": True})
    )
    assert (thinking, answer) == (trace.thinking.lstrip(), trace.answer.lstrip())
    assert usage.completion_tokens == trace.cost.retained_tokens
    assert last.satisfice["cost"]["total_tokens"] == trace.cost.total_tokens


def test_a_stream_comes_while_it_is_written(tokenizer):
    engine = HeldEngine(tokenizer)
    engine.held = False
    with serving(engine) as running:
        chunks = list(ask(running.client(), stream=True))
    assert len([chunk for chunk in chunks if getattr(chunk.choices[0].delta, "reasoning_content", None)]) > 1
    assert chunks[0].choices[0].delta.role == "assistant"


class HastyEngine(HeldEngine):
    """Gives all its tokens in one turn of the event loop."""

    async def generate(self, prompt_ids, sampling, *, on_token, **options):
        generation = await super().generate(prompt_ids, sampling, **options)
        for token in generation.ids:
            on_token(token)
        return generation


def test_tokens_that_are_ready_at_once_share_a_chunk(tokenizer):
    engine = HastyEngine(tokenizer)
    engine.held = False
    with serving(engine) as running:
        fields = {"model": "lab", "messages": MESSAGES, "stream": True}
        body = running.request("POST", "/v1/chat/completions", json.dumps(fields))[2].decode()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in body.splitlines() if line[6:].startswith("{")]
    written = "So 45.\n\n"
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": written, "reasoning": written},
        {"content": "The answer is \\boxed{45}."},
        {},
    ]


class SlowEngine(HeldEngine):
    """Gives no token before the text of the one before has reached the client."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.held = False
        self.read = threading.Event()

    async def generate(self, prompt_ids, sampling, *, on_token, **options):
        generation = await super().generate(prompt_ids, sampling, **options)
        for token in generation.ids:
            on_token(token)
            text = self.tokenizer.decode([token])
            if text.strip() and text not in self.thinking.closers and token not in self.end_ids:
                while not self.read.is_set():
                    await asyncio.sleep(0.001)
                self.read.clear()
        return generation


def test_no_token_waits_for_the_next_one(tokenizer):
    engine = SlowEngine(tokenizer)
    parts = []
    with serving(engine, timeout=20) as running:
        for chunk in ask(running.client(), stream=True):
            delta = chunk.choices[0].delta
            if text := getattr(delta, "reasoning_content", None) or delta.content:
                parts.append(text)
                engine.read.set()
    assert "".join(parts) == "So 45.\n\nThe answer is \\boxed{45}."
    assert len(parts) > 6


def test_a_stream_without_news_holds_a_comment_and_goes_on(tokenizer, monkeypatch):
    monkeypatch.setattr("satisfice.server.app.KEEP_ALIVE", 0.05)
    engine = HeldEngine(tokenizer)
    threading.Timer(0.4, lambda: setattr(engine, "held", False)).start()
    with serving(engine) as running:
        fields = {"model": "lab", "messages": MESSAGES, "stream": True}
        body = running.request("POST", "/v1/chat/completions", json.dumps(fields))[2].decode()
    assert body.count(": still here\n\n") >= 2
    assert body.index("assistant") < body.index(": still here") < body.index("boxed") < body.index("[DONE]")


def test_several_choices_have_seeds_of_their_own_and_the_first_has_the_given_one(client, engine):
    answer = ask(client, seed=11, n=3)
    assert [choice.satisfice["seed"] for choice in answer.choices] == [
        11,
        choice_seed(11, 1),
        choice_seed(11, 2),
    ]
    assert answer.choices[0].message.reasoning_content == solved(engine, "plain", 11).thinking.lstrip()
    assert len({choice.message.reasoning_content for choice in answer.choices}) > 1
    assert answer.usage.completion_tokens == sum(
        choice.satisfice["cost"]["thinking_tokens"] + choice.satisfice["cost"]["answer_tokens"]
        for choice in answer.choices
    )


def test_without_a_seed_every_request_has_its_own_and_says_which(client):
    first, second = (ask(client, max_tokens=3).choices[0].satisfice["seed"] for _ in range(2))
    assert first != second
    again = ask(client, seed=first, max_tokens=3)
    assert again.choices[0].satisfice["seed"] == first


def test_the_limit_ends_a_response_with_length(client):
    answer = ask(client, max_completion_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].message.content == ""


def test_a_conversation_is_rendered_as_a_whole(client, engine):
    messages = [
        {"role": "system", "content": "Use briefly"},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "The answer is \\boxed{45}.", "reasoning_content": "So 45."},
        {"role": "user", "content": [{"type": "text", "text": "What is the result"}, {"type": "text", "text": "?"}]},
    ]
    answer = ask(client, messages=messages)
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in messages[:3]]
    rendered = engine.thinking.render(
        engine.tokenizer, [*plain, {"role": "user", "content": "What is the result?"}]
    ).ids
    assert answer.usage.prompt_tokens == len(rendered)


def test_reasoning_effort_stands_for_a_method(client):
    assert ask(client, reasoning_effort="low").choices[0].satisfice["method"] == "temperature-scaling:t=0.7"
    answer = ask(client, reasoning_effort="none")
    assert answer.choices[0].satisfice["method"] == "no-thinking"
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert not answer.choices[0].message.reasoning_content
    with pytest.raises(openai.BadRequestError, match=r"--effort NAME=METHOD"):
        ask(client, reasoning_effort="high")
    with pytest.raises(openai.BadRequestError, match="leave one of them out"):
        ask(client, "plain", reasoning_effort="low")


def test_efforts_are_the_levels_that_the_model_was_trained_on_unless_the_operator_says_otherwise(tmp_path):
    levels = {"short": "Think briefly.", "medium": "Think normally.", "long": "Think at length."}
    found = efforts_from({"high": "plain"}, levels)
    assert {name: str(method) for name, method in found.items()} == {
        "low": "tldr:level=short", "medium": "tldr:level=medium", "high": "plain",
    }  # fmt: skip
    calibrated = tmp_path / "found.json"
    passed = Setting(method="temperature-scaling:t=0.65", parameter="t", value=0.65, verdict="certified", bound=0.01)
    made = Certificate(
        method="temperature-scaling:t=0.65", baseline="plain", loss="net", max_loss=0.01, confidence=0.95, levels={},
        bound=0.01, ladders={"temperature-scaling": [passed]},
    )  # fmt: skip
    calibrated.write_text(made.model_dump_json())
    assert {name: str(method) for name, method in efforts_from({"low": str(calibrated)}, {}).items()} == {
        "low": "temperature-scaling:t=0.65"
    }
    with pytest.raises(ValueError, match="it is one of none, minimal, low"):
        efforts_from({"lowest": "plain"}, {})
    with pytest.raises(MethodError, match="did you mean 'plain'"):
        efforts_from({"low": "plian"}, {})


def test_models(client):
    assert [model.id for model in client.models.list().data] == ["lab"]
    assert client.models.retrieve("lab").owned_by == "satisfice"
    with pytest.raises(openai.NotFoundError, match="this server has 'lab'"):
        client.models.retrieve("gpt")


# -- what is refused


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "gpt"}, 404, "there is no model 'gpt'"),
        ({"messages": []}, 400, "messages must be one or more objects"),
        ({"messages": [{"role": "assistant", "content": "So"}]}, 400, "the last message must be the user's"),
        ({"messages": [{"role": "tool", "content": "So"}]}, 400, "messages.0.role is 'tool'"),
        ({"messages": [*MESSAGES, {"role": "system", "content": "So"}, *MESSAGES]}, 400, "messages.1.role is 'system'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "content must be a text"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages.0.content must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": {}, "text": "a"}]}]}, 400, "0.content must be a text"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": ["text"], "text": "a"}]}, *MESSAGES]}, 400,
            "messages.0.content must be a text",
        ),
        ({"messages": [{"role": "developer", "content": "Be brief"}]}, 400, "the last message must be the user's"),
        ({"messages": [{**MESSAGES[0], "tool_calls": [{}]}]}, 400, "messages.0.tool_calls is not supported"),
        ({"messages": [{"role": "user", "content": "1, " * 600}]}, 400, "the model's context has 1024 tokens in all"),
        ({"messages": [{"role": "user", "content": "a" * 100_000}]}, 400, "100000 characters"),
        ({"temperature": -1}, 400, "temperature must be within 0..2"),
        ({"temperature": 1e-30}, 400, "it must be 0, or from 0.01 to 2"),
        ({"top_p": -0.1}, 400, "top_p must be within 0..1"),
        ({"top_k": -2}, 400, "top_k must be within -1..1000000"),
        ({"max_tokens": True}, 400, "max_tokens must be a whole number, at least 1"),
        ({"temperature": True}, 400, "temperature must be a number within 0..2"),
        ({"seed": False}, 400, "seed must be a whole number within -9223372036854775808..9223372036854775807"),
        ({"max_tokens": 0}, 400, "max_tokens must be at least 1"),
        ({"stop": 5}, 400, "stop must be"),
        ({"repetition_penalty": 1.1}, 400, "repetition_penalty is not supported"),
        ({"max_thinking_tokens": 50}, 400, "use thinking_token_budget, or method: budget-forcing:max_thinking=N"),
        ({"enable_thinking": False}, 400, "or method: no-thinking"),
        ({"vllm_xargs": {"thinking_temperature": 0.9}}, 400, "use method: temperature-scaling:t=0.9"),
        ({"max_new_tokens": 5}, 400, "use max_completion_tokens"),
        ({"max_completion_token": 5}, 400, "did you mean 'max_completion_tokens'"),
        ({"quantum": 5}, 400, "there is no parameter 'quantum'; leave it out"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, 400, "continuous_usage_stats is not"),
        ({"stream": True, "stream_options": {"include_usag": True}}, 400, "no 'include_usag' in stream_options"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": 7}, *MESSAGES]}, 400, "messages.1.content must be"),
        ({"messages": [{**MESSAGES[0], "type": "function_call"}]}, 400, "messages.0.type is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "reasoning", "text": "a"}]}]}, 400, "must be a text"),
        ({"n": 0}, 400, "n must be at least 1"),
        ({"n": 101}, 400, "this server allows 100"),
        ({"n": 20, "method": "self-consistency:k=6"}, 400, "may write 120 sequences at once"),
        ({"seed": 1 << 70}, 400, "seed must be within -9223372036854775808..9223372036854775807"),
        ({"max_tokens": 321}, 400, "max_tokens is 321; this server allows 320"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "are the same limit and differ"),
        ({"stop": ["So", 5]}, 400, "stop.1 must be a text"),
        ({"logprobs": True}, 400, "logprobs is not supported"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        ({"temperatur": 1}, 400, "there is no parameter 'temperatur', did you mean 'temperature'"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options acts with stream=true only"),
        ({"method": "deeer"}, 400, "there is no method 'deeer', did you mean 'deer'"),
        ({"method": "deer:treshold=1"}, 400, "did you mean 'threshold'"),
        ({"method": 'budget-forcing:wait="\\q"'}, 400, "in double quotes it must be a JSON text"),
        ({"method": "tldr:level=short"}, 400, "was not trained on levels"),
        ({"method": "cothink:outliner=other"}, 400, "has no companion 'other'"),
        ({"method": "x" * 3000}, 400, "method must be a text of at most 2000 characters"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_served_is_refused_with_a_sentence(server, fields, status, message):
    answered, _, body = server.post(**fields)
    assert (answered, set(body["error"])) == (status, {"message", "type", "param", "code"})
    assert message in body["error"]["message"]


def test_parameters_that_ask_for_nothing_are_let_through(client):
    answer = ask(
        client, frequency_penalty=0, presence_penalty=0, logprobs=False, stop=None, tools=[], user="somebody",
        response_format={"type": "text"}, logit_bias={}, max_tokens=3,
    )  # fmt: skip
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("off", "plain"),
    [
        ({"top_p": 0}, {"top_p": 1}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"stop": ""}, {}),
        ({"stop": [""]}, {}),
        ({"max_tokens": -1}, {}),
        ({"repetition_penalty": 1.0, "ignore_eos": False, "chat_template_kwargs": {}, "quantum": None}, {}),
        ({"stream_options": {"continuous_usage_stats": False}, "stream": False}, None),
    ],
)
def test_values_that_mean_off_are_obeyed(server, off, plain):
    status, _, answered = server.post(seed=4, temperature=1.5, **off)
    if plain is None:
        assert answered["error"]["param"] == "stream_options"  # it acts with a stream alone
        return
    assert status == 200
    expected = server.post(seed=4, temperature=1.5, **plain)[2]
    assert answered["choices"][0]["message"] == expected["choices"][0]["message"]


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None},
        {},
        {"content": []},
        {"content": "", "reasoning": "So 45.", "reasoning_details": [{"type": "reasoning.text", "text": "So"}]},
        {"content": None, "type": "message", "id": "msg_1", "status": "completed", "tool_calls": [], "audio": None},
        {"content": [{"type": "thinking", "thinking": "So"}, {"type": "output_text", "text": "", "annotations": []}]},
    ],
)
def test_a_history_as_clients_keep_it_is_served(server, turn):
    messages = [*MESSAGES, {"role": "assistant", **turn}, {"role": "user", "content": QUESTION, "type": "message"}]
    expected = server.post(messages=[*MESSAGES, {"role": "assistant", "content": ""}, *MESSAGES], seed=1, max_tokens=5)
    status, _, answered = server.post(messages=messages, seed=1, max_tokens=5)
    assert (status, answered["usage"]) == (200, expected[2]["usage"])


def test_thinking_has_both_of_its_names(client):
    message = ask(client, seed=3).choices[0].message
    assert message.reasoning == message.reasoning_content != ""
    chunks = list(ask(client, seed=3, stream=True))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    thought = [delta.reasoning for delta in deltas if getattr(delta, "reasoning", None)]
    assert "".join(thought) == message.reasoning
    assert all(getattr(delta, "reasoning", None) == getattr(delta, "reasoning_content", None) for delta in deltas)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "m" * 5000},
        {"model": "\\" * 5000},
        {"method": "plain:" + "k" * 1900 + "=1"},
        {"method": "m\n" * 900},
        {"reasoning_effort": "é" * 5000},
        {"k" * 5000: 1},
        {"messages": [{"role": "r" * 5000, "content": "So"}]},
        {"messages": [{**MESSAGES[0], "f" * 5000: 1}]},
        {"stream": True, "stream_options": {"o" * 5000: 1}},
    ],
)
def test_an_error_repeats_little_of_the_request(server, fields):
    _, _, body = server.post(**fields)
    said = body["error"]["message"]
    for letter in "m\\ékrfo":
        assert letter * ECHOED not in said
    assert len(said) < ECHOED + 150
    assert len(body["error"]["param"] or "") <= ECHOED


def test_what_an_engine_says_is_cut_where_it_repeats_the_request(tokenizer):
    engine = HeldEngine(tokenizer)
    engine.held = False
    with serving(engine) as running:
        for words, cut in (("the upstream refuses " + QUESTION * 9, True), ("lower max_tokens or n; " * 12, False)):
            engine.failure = EngineError(words)
            said = running.post(messages=[{"role": "user", "content": QUESTION * 9}])[2]["error"]["message"]
            assert (said == words.strip()) is not cut
            assert len(said) <= ECHOED or not cut


def test_choices_and_the_samples_of_a_method_draw_from_streams_of_their_own(client, engine):
    """A method's second sample is not the first sample of the second choice."""
    sampled = ask(client, "self-consistency:k=4", seed=1234, n=2, temperature=1.5, max_tokens=100)
    seeds = [choice.satisfice["seed"] for choice in sampled.choices]
    assert seeds == [1234, choice_seed(1234, 1)]
    assert seeds[1] < 1 << 53  # a client that reads numbers as doubles can send it back
    assert choice_seed(1234, 1) not in (derive_seed(1234, "choice/1"), derive_seed(1234, "fork/1"))


def test_a_seed_that_the_server_draws_can_be_sent_back_by_any_client(client):
    seeds = [ask(client, max_tokens=1).choices[0].satisfice["seed"] for _ in range(5)]
    assert all(0 <= seed < 1 << 53 for seed in seeds)
    # Also those of further choices: sent back as JavaScript's number, each gives the same response alone.
    choice = ask(client, max_tokens=9, n=3, seed=5, temperature=1.3).choices[2]
    again = ask(client, max_tokens=9, seed=int(float(choice.satisfice["seed"])), temperature=1.3).choices[0]
    assert again.message == choice.message


@pytest.mark.parametrize("seed", [(1 << 53) + 1, (1 << 63) - 1, -(1 << 63), str((1 << 53) + 1)])
def test_a_seed_of_64_bits_is_taken_as_it_is(server, seed):
    status, _, answered = server.post(seed=seed, max_tokens=3)
    assert (status, answered["choices"][0]["satisfice"]["seed"]) == (200, int(seed))


def test_usage_says_what_was_paid_besides(client):
    answer = ask(client, "self-consistency:k=3", seed=2, n=2)
    costs = [choice.satisfice["cost"] for choice in answer.choices]
    details = answer.usage.completion_tokens_details
    assert details.branch_tokens == sum(cost["branch_tokens"] for cost in costs) > 0
    assert details.probe_tokens == sum(cost["probe_tokens"] for cost in costs)
    assert details.generated_tokens == sum(cost["total_tokens"] for cost in costs)
    assert details.generated_tokens == answer.usage.completion_tokens + details.branch_tokens + details.probe_tokens


def test_an_operator_bounds_what_a_request_may_have_generated(engine):
    with serving(engine, max_request_tokens=700) as running:
        status, _, body = running.post(method="self-consistency:k=4", max_tokens=200)
        assert (status, body["error"]["param"]) == (400, "max_tokens")
        assert "4 responses of 200 tokens each, 800 in all" in body["error"]["message"]
        assert "this server allows 700 a request (--max-request-tokens)" in body["error"]["message"]
        assert running.post(method="self-consistency:k=4", max_tokens=175)[0] == 200
        assert running.post(n=4, max_tokens=200)[0] == 400
        assert running.post(n=3, max_tokens=200)[0] == 200


def test_a_request_that_has_more_generated_on_its_way_is_ended(engine):
    with serving(engine, max_request_tokens=5) as running:
        method = "cothink:outliner=self,max_outline=9"
        status, _, body = running.post(method=method, max_tokens=5, seed=1)
        assert status == 400
        assert "tokens generated and is not finished; this server allows 5 a request" in str(body)
        assert running.metric('satisfice_requests_total{method="cothink",outcome="refused"}') == 1
        assert running.post(method="plain", max_tokens=5, seed=1)[0] == 200


def test_a_meter_counts_what_an_engine_its_companions_and_its_trees_generate(tokenizer):
    engine, other = (ScriptedEngine(tokenizer, follow(tokenizer, "<think>\nSo 45.</think>")) for _ in range(2))
    engine.companions = {"other": other}
    prompt = tokenizer("<|assistant|><think>\n", add_special_tokens=False)["input_ids"]
    sampling = Sampling(temperature=0, max_tokens=3)

    async def use(meter):
        metered = MeteredEngine(engine, meter)
        assert (metered.name, metered.capabilities, metered.end_ids) == (
            engine.name,
            engine.capabilities,
            engine.end_ids,
        )
        await metered.generate(prompt, sampling)
        await metered.companions["other"].generate(prompt, sampling)
        assert meter.spent == 6
        await metered.score([*prompt, 5], len(prompt))
        async with metered.tree(prompt, sampling, top=2, entropy_temperature=1.0) as tree:
            token = tree.root.sampled
            await tree.advance([Child(0, token, 0), Child(0, token, 1)])
            assert (meter.spent, tree.usage.generated) == (8, 2)
            with pytest.raises(EngineError, match="8 tokens generated and is not finished; this server allows 8"):
                await tree.advance([Child(0, token, 0)])
        with pytest.raises(EngineError, match="this server allows 8"):
            await metered.companions["other"].generate(prompt, sampling)

    asyncio.run(use(Meter(8)))


def test_a_full_queue_is_said_before_the_prompt_is_cut_into_tokens(tokenizer, monkeypatch):
    engine = HeldEngine(tokenizer)
    with serving(engine, max_concurrency=1, max_queue=0) as running:
        thread = threading.Thread(target=ask, args=(running.client(),))
        thread.start()
        until(lambda: len(running.chat.jobs) == 1)

        async def never(problem):
            raise AssertionError("it was cut into tokens")

        monkeypatch.setattr(running.chat, "tokenise", never)
        assert running.post()[0] == 429
        engine.held = False
        thread.join(20)


def test_a_long_prompt_is_cut_into_tokens_beside_the_event_loop(tokenizer, monkeypatch):
    engine = HeldEngine(tokenizer, context_length=1 << 20)
    engine.held, engine.failure = False, EngineError("that is enough")
    with serving(engine) as running:
        threads = {}
        encode = type(tokenizer).__call__

        def seen(self, text, *arguments, **options):
            if isinstance(text, str) and len(text) > 1000:
                threads.setdefault(len(text), set()).add(threading.current_thread())
            return encode(self, text, *arguments, **options)

        monkeypatch.setattr(type(tokenizer), "__call__", seen)
        for words in (300, 30_000):
            status, _, body = running.post(messages=[{"role": "user", "content": f"{words} " * words}], max_tokens=5)
            assert (status, body["error"]["message"]) == (400, "that is enough")
        loop = running._thread
        short, *long = (threads[length] for length in sorted(threads))
        assert short == {loop}
        assert long
        assert all(loop not in where for where in long)


@pytest.fixture(scope="module")
def unopened():
    """The lab's tokenizer with a template that leaves it to the model to open thinking."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|><think>\\n", "<|assistant|>")
    return tokenizer


@pytest.mark.parametrize(
    ("text", "thinking", "content"),
    [
        ("So 4. <think>So 45.</think>Therefore", "So 4. So 45.", "Therefore"),
        ("So 45.</think>Therefore", "So 45.", "Therefore"),
        ("<think>So 4.</think>Use 7<think>45.</think>Therefore", "So 4.45.", "Use 7Therefore"),
        ("<think>So 45.</think></think>Therefore", "So 45.", "Therefore"),
        ("<think>So 45.</think>Therefore<think>No", "So 45.No", "Therefore"),
        ("Therefore", "", "Therefore"),
    ],
)
def test_no_marker_reaches_content_and_a_stream_is_the_whole(unopened, text, thinking, content):
    with serving(ScriptedEngine(unopened, follow(unopened, text))) as running:
        whole = running.post()[2]
        message = whole["choices"][0]["message"]
        streamed = collected(ask(running.client(), stream=True))[:2]
    assert (message["reasoning_content"], message["content"]) == streamed == (thinking, content)
    assert (whole["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0) is bool(thinking)


def test_a_stream_begins_where_the_prompt_ends_also_within_a_marker(tokenizer):
    """The lab's prompt ends with a line break, which begins this closing marker."""
    form = ThinkingFormat.custom("<think>", "\nThe answer")
    engine = ScriptedEngine(tokenizer, follow(tokenizer, "<think>\nThe answer is 45."), thinking=form)
    with serving(engine) as running:
        message = running.post()[2]["choices"][0]["message"]
        streamed = collected(ask(running.client(), stream=True))[:2]
    assert (message["reasoning"], message["content"]) == streamed == ("", "is 45.")


# -- what an engine can serve


def test_in_front_of_another_server_it_says_what_can_be_served_there(tokenizer):
    from engines.fake_server import FakeServer

    from satisfice.engines.openai import OpenAIEngine
    from satisfice.lab import WEIGHTS

    prompt = ThinkingFormat.detect(tokenizer).render(tokenizer, MESSAGES).ids
    answer = tokenizer("So 45.\n</think>\n\nThe answer is \\boxed{45}.<|end|>", add_special_tokens=False)["input_ids"]
    upstream = FakeServer(tokenizer, prompt, answer, kind="standard")
    engine = OpenAIEngine.load("fake", base_url=upstream.url, tokenizer=str(WEIGHTS))
    try:
        can, *cannot = offered(engine)
        assert can.startswith(
            f"tokens from openai:fake (standard server at {upstream.url}); methods: plain, no-thinking,"
        )
        assert "no-wait" in can  # by logit_bias
        no_logprobs = (
            "refused here: adaptive-think, best-of-n, deepconf, deer, deer-pro: no logprobs, the server does not say "
        )
        assert any(line.startswith(no_logprobs) for line in cannot)
        assert any(
            line.startswith(
                "refused here: soft-landing, stop-loops, temperature-scaling, thinking-budget: no control, "
            )
            for line in cannot
        )
        with serving(engine, model="fake") as running:
            message = running.post(model="fake", temperature=0)[2]["choices"][0]["message"]
            assert (message["content"], message["reasoning"]) == ("The answer is \\boxed{45}.", "So 45.\n")
            for name in ("deer", "temperature-scaling", "decoding-tree"):
                assert running.post(model="fake", method=name)[0] == 400
    finally:
        engine.close()
        upstream.close()


def test_at_start_the_server_says_what_its_engine_can_serve(engine, tokenizer):
    [everything, levels] = offered(engine)
    assert everything.startswith("tokens from transformers:lab; methods: plain, no-thinking, adaptive-think, ")
    assert levels == "refused here: tldr: the model was not trained on levels"
    bare = HeldEngine(tokenizer)
    bare.capabilities = frozenset({Capability.CANCEL})
    bare.lacking = {Capability.CONTROL: "the server has no plugin", Capability.BIAS: "nor does it obey logit_bias"}
    lines = offered(bare)
    assert "refused here: no-wait: no token bias, nor does it obey logit_bias" in lines
    controls = "soft-landing, stop-loops, temperature-scaling, thinking-budget"
    assert f"refused here: {controls}: no control, the server has no plugin" in lines
    assert "refused here: decoding-tree: no tree" in lines
    assert all(len([line for line in lines if f" {name}," in line or f" {name}:" in line]) <= 1 for name in METHODS)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "lab"}', b"[" * 100_000, b'{"model": "lab", "messages": "x"}',
     b'{"model": "lab", "messages": [1]}', b'{"model": "lab", "temperature": NaN, "messages": [{"role": "user"}]}',
     b'{"model": "lab", "messages": [{"role": "user", "content": "\\ud800"}]}'],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(server, body):
    status, _, answered = server.request("POST", "/v1/chat/completions", body)
    assert status == 400
    assert json.loads(answered)["error"]["message"]


def test_other_paths_methods_types_and_sizes_are_refused_in_the_same_form(engine):
    with serving(engine, max_body=1000) as running:
        for status, arguments in (
            (404, ("GET", "/v1/completions")),
            (405, ("GET", "/v1/chat/completions")),
            (400, ("POST", "/v1/chat/completions", b"{}", {"content-type": "text/plain"})),
            (413, ("POST", "/v1/chat/completions", b" " * 1001)),
        ):
            answered, _, body = running.request(*arguments)
            assert (answered, set(json.loads(body))) == (status, {"error"})
            assert running.metric(f'satisfice_refusals_total{{status="{status}"}}') == 1


def test_keys_are_asked_for_where_there_are_any(engine):
    with serving(engine, api_keys=("first", "second")) as running:
        for key in ("none", "firs", "first "[:3]):
            with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
                ask(running.client(api_key=key))
            with pytest.raises(openai.AuthenticationError):
                running.client(api_key=key).models.list()
        assert running.post(headers={"authorization": "Basic first"})[0] == 401
        assert running.request("GET", "/health")[0] == 200
        assert ask(running.client(api_key="second"), max_tokens=3).usage.completion_tokens == 3


# -- load, time, and clients that go


def test_a_full_queue_is_said_so_and_the_client_comes_back(tokenizer):
    engine = HeldEngine(tokenizer)
    with serving(engine, max_concurrency=1, max_queue=1) as running:
        threads = [threading.Thread(target=ask, args=(running.client(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: len(running.chat.jobs) == 2)
        assert running.metric("satisfice_requests_running") == running.metric("satisfice_requests_waiting") == 1
        status, headers, body = running.post()
        assert (status, headers["retry-after"], body["error"]["code"]) == (429, "1", "rate_limit_exceeded")
        with pytest.raises(openai.RateLimitError):
            ask(running.client())
        threading.Timer(0.5, setattr, (engine, "held", False)).start()
        assert ask(running.client(max_retries=3)).choices[0].message.content == "The answer is \\boxed{45}."
        for thread in threads:
            thread.join(20)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_takes_its_request_out_of_the_engine(tokenizer, stream):
    engine = HeldEngine(tokenizer)
    with serving(engine) as running:
        body = json.dumps({"model": "lab", "messages": MESSAGES, "n": 2, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(HEAD % len(body) + body)
            until(lambda: engine.waiting == 2)
        until(lambda: engine.stopped == 2)
        until(lambda: not running.chat.jobs)
        assert running.metric('satisfice_requests_total{method="plain",outcome="disconnect"}') == 1
        engine.held = False
        assert ask(running.client()).choices[0].finish_reason == "stop"


def test_a_client_that_closes_a_stream_ends_it(client, server, engine):
    def disconnects():
        return server.metric('satisfice_requests_total{method="budget-forcing",outcome="disconnect"}')

    with ask(client, "budget-forcing:ignore=100", stream=True) as stream:
        next(stream)
    until(lambda: disconnects() == 1)
    assert ask(client, max_tokens=3).usage.completion_tokens == 3


def test_a_client_that_goes_while_it_is_still_asking_is_forgotten(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(HEAD % 99 + b"{")
    assert server.request("GET", "/health")[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_its_time(tokenizer, stream):
    engine = HeldEngine(tokenizer)
    with serving(engine, timeout=0.2) as running:
        with pytest.raises(openai.InternalServerError, match=r"not finished within 0.2 s"):
            ask(running.client(), stream=stream)
        assert engine.stopped == 1


def test_an_error_after_the_first_text_ends_the_stream_with_its_sentence(tokenizer):
    engine = HeldEngine(tokenizer)
    engine.held = False
    generate = engine.generate

    async def then_fail(*arguments, **options):
        await generate(*arguments, **options)
        raise EngineFailed("memory is full of secrets")

    engine.generate = then_fail
    with serving(engine) as running:
        stream = ask(running.client(), stream=True)
        with pytest.raises(openai.APIError, match="the engine failed; try again"):
            collected(stream)


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (EngineFailed("memory is full of secrets"), 500, "the engine failed; try again"),
        (RuntimeError("secrets"), 500, "the server failed on this request"),
        (EngineError("too many tokens: lower max_tokens"), 400, "too many tokens: lower max_tokens"),
    ],
)
def test_a_failure_is_one_request_s_own(tokenizer, failure, status, message):
    engine = HeldEngine(tokenizer)
    engine.held, engine.failure = False, failure
    with serving(engine) as running:
        answered, _, body = running.post()
        assert (answered, body["error"]["message"]) == (status, message)
        engine.failure = None
        assert running.post()[0] == 200


# -- what an operator sees


def test_metrics_count_tokens_by_phase_stops_by_cause_and_probes(engine):
    method = next(method for method in lab_spellings() if method.startswith("deer:"))
    with serving(engine) as running:
        facts = [ask(running.client(), method, seed=seed).choices[0].satisfice for seed in range(3)]
        for phase in ("thinking", "answer", "probe"):
            counted = running.metric(f'satisfice_tokens_total{{phase="{phase}"}}')
            assert counted == sum(fact["cost"][f"{phase}_tokens"] for fact in facts) > 0
        probes = running.metric('satisfice_probes_total{method="deer"}')
        assert probes == sum(fact["probes"] for fact in facts) > 0
        for reason in {fact["stop"] for fact in facts}:
            counted = running.metric(f'satisfice_stops_total{{method="deer",reason="{reason}"}}')
            assert counted == sum(fact["stop"] == reason for fact in facts)
        assert running.metric('satisfice_request_seconds_count{method="deer"}') == 3
        assert running.metric('satisfice_requests_total{method="deer",outcome="ok"}') == 3
        assert running.metric("satisfice_requests_running") == 0


def test_the_log_says_what_was_done_and_not_what_was_asked(server, client, caplog):
    caplog.set_level(logging.INFO, "satisfice.server")
    answer = ask(client, messages=[{"role": "user", "content": "Wait, my secret\n"}], max_tokens=3)
    server.request("GET", "/somewhere%1belse")
    until(lambda: len(caplog.messages) >= 2)
    assert answer.id in caplog.messages[0]
    assert "ok plain 3 thinking of 3 tokens" in caplog.messages[0]
    assert "404 GET /somewhere?else" in caplog.messages[1]
    assert not any("secret" in message or "\x1b" in message for message in caplog.messages)


# -- the end


def test_a_signal_lets_running_requests_finish_and_takes_no_more(tokenizer):
    engine = HeldEngine(tokenizer)
    with serving(engine) as running:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(ask(running.client())))
        thread.start()
        until(lambda: engine.waiting == 1)
        running.process.handle_exit(signal.SIGTERM, None)
        status, _, body = running.request("GET", "/health")
        assert (status, json.loads(body)) == (503, {"status": "draining", "requests": 1})
        assert running.post()[0] == 503
        engine.held = False
        thread.join(20)
        assert answers[0].choices[0].finish_reason == "stop"
        until(lambda: running.process.should_exit)


@pytest.mark.parametrize("impatient", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_after_the_time_of_grace_or_a_second_signal_the_rest_is_ended(tokenizer, impatient, stream):
    engine = HeldEngine(tokenizer)
    with serving(engine, grace=60 if impatient else 0.3) as running:
        failures = []

        def wait():
            try:
                ask(running.client(), stream=stream)
            except openai.APIStatusError as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: engine.waiting == 1)
        for _ in range(1 + impatient):
            running.process.handle_exit(signal.SIGINT, None)
        thread.join(20)
        assert [failure.status_code for failure in failures] == [503]
        assert engine.stopped == 1


def test_a_port_that_is_taken_is_said_so():
    with listen("127.0.0.1", 0) as taken, pytest.raises(ValueError, match="choose another --host or --port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_settings_are_checked_at_the_start(tokenizer):
    from satisfice.server.app import ChatServer

    with pytest.raises(EngineError, match="was not trained on levels"):
        ChatServer(HeldEngine(tokenizer), Settings("lab", parse_method("tldr:level=short")))


def test_the_command_serves_until_it_is_told_to_stop():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SATISFICE_API_KEY": "key"}
    command = [sys.executable, "-m", "satisfice.cli", "serve", "lab", "--port", "0", "--effort", "low=no-thinking"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as served:
        try:
            line = next(line for line in served.stderr if "http://" in line)
            url = "http" + line.partition("http")[2].strip()
            answer = ask(openai.OpenAI(base_url=url, api_key="key"), reasoning_effort="low")
            assert answer.choices[0].satisfice["method"] == "no-thinking"
            served.send_signal(signal.SIGTERM)
            rest = served.stderr.read()
            assert served.wait(30) == 0
        finally:
            served.kill()
    assert "ok no-thinking" in rest
    assert rest.rstrip().endswith("ended")
