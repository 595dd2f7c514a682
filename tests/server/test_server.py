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
from server.running import QUESTION, HeldEngine, serving

from satisfice.engines.base import EngineError, EngineFailed
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import MethodError, parse_method
from satisfice.intervention.method import branch_seed
from satisfice.lab import ALL_METHODS
from satisfice.problems import Problem
from satisfice.server.app import Settings, efforts_from
from satisfice.server.process import listen

openai = pytest.importorskip("openai")

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def engine():
    engine = TransformersEngine.load("lab", max_batch_tokens=1 << 15)
    yield engine
    engine.close()


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
    "method", [method for method in ALL_METHODS if not method.startswith("tldr")], ids=lambda m: m.partition(":")[0]
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


def test_several_choices_have_seeds_of_their_own_and_the_first_has_the_given_one(client, engine):
    answer = ask(client, seed=11, n=3)
    assert [choice.satisfice["seed"] for choice in answer.choices] == [branch_seed(11, index) for index in range(3)]
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
    calibrated.write_text(json.dumps({"method": "temperature-scaling:t=0.65"}))
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
        ({"messages": []}, 400, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "assistant", "content": "So"}]}, 400, "the last message must be the user's"),
        ({"messages": [{"role": "tool", "content": "So"}]}, 400, "messages.0.role is 'tool'"),
        ({"messages": [*MESSAGES, {"role": "system", "content": "So"}, *MESSAGES]}, 400, "messages.1.role is 'system'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "content must be a text"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages.0.content must be a text"),
        ({"messages": [{**MESSAGES[0], "tool_calls": [{}]}]}, 400, "messages.0.tool_calls is not supported"),
        ({"messages": [{"role": "user", "content": "1, " * 600}]}, 400, "the model's context has 1024 tokens in all"),
        ({"messages": [{"role": "user", "content": "a" * 100_000}]}, 400, "100000 characters"),
        ({"temperature": -1}, 400, "temperature: Input should be greater than or equal to 0"),
        ({"temperature": 1e-30}, 400, "it must be 0, or from 0.01 to 2"),
        ({"top_p": 0}, 400, "top_p: Input should be greater than 0"),
        ({"n": 0}, 400, "n: Input should be greater than or equal to 1"),
        ({"n": 101}, 400, "this server allows 100"),
        ({"n": 20, "method": "self-consistency:k=6"}, 400, "may write 120 sequences at once"),
        ({"seed": 1 << 70}, 400, "seed: Input should be less than"),
        ({"max_tokens": 321}, 400, "max_tokens is 321; this server allows 320"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "are the same limit and differ"),
        ({"stop": ["So"]}, 400, "stop is not supported"),
        ({"logprobs": True}, 400, "logprobs is not supported"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        ({"temperatur": 1}, 400, "there is no parameter 'temperatur', did you mean 'temperature'"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options acts with stream=true only"),
        ({"method": "deeer"}, 400, "there is no method 'deeer', did you mean 'deer'"),
        ({"method": "deer:treshold=1"}, 400, "did you mean 'threshold'"),
        ({"method": "tldr:level=short"}, 400, "was not trained on levels"),
        ({"method": "cothink:outliner=other"}, 400, "has no companion 'other'"),
        ({"method": "x" * 3000}, 400, "method: String should have at most 2000 characters"),
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


def test_an_error_behind_the_first_text_ends_the_stream_with_its_sentence(tokenizer):
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
    method = next(method for method in ALL_METHODS if method.startswith("deer:"))
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
