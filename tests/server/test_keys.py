"""Stops and the keys of other servers, as clients see them: each acts or is refused by name."""

import asyncio
from dataclasses import replace

import pytest
from server.running import QUESTION, serving

from satisfice.intervention import parse_method
from satisfice.problems import Problem

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def server(engine):
    with serving(engine, efforts={"low": parse_method("temperature-scaling:t=0.7")}) as running:
        yield running


def free(engine, seed):
    sampling = replace(engine.default_sampling, seed=seed, max_tokens=320)
    return asyncio.run(parse_method("plain").solve(engine, Problem("p", QUESTION, ""), sampling))


def streamed(server, **fields):
    parts, last, usage = {"reasoning_content": "", "content": ""}, None, None
    stream = server.client().chat.completions.create(
        model="lab", messages=[{"role": "user", "content": QUESTION}], stream=True,
        stream_options={"include_usage": True}, extra_body=fields,
    )  # fmt: skip
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            for part in parts:
                parts[part] += getattr(choice.delta, part, None) or ""
            last = choice if choice.finish_reason else last
    return parts, last, usage


@pytest.mark.parametrize("stop", ["boxed", "\n\n", " is \\box", ["nowhere", "boxed"]])
def test_a_stop_acts_on_the_content_whole_and_streamed(server, engine, stop):
    trace = free(engine, 3)
    text = "boxed" if isinstance(stop, list) else stop
    status, _, body = server.post(seed=3, stop=stop)
    [choice] = body["choices"]
    assert status == 200
    assert choice["message"]["content"] == trace.answer.lstrip().partition(text)[0]
    assert choice["message"]["reasoning_content"] == trace.thinking.lstrip()
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == (text if text in trace.answer.lstrip() else None)
    parts, last, usage = streamed(server, seed=3, stop=stop)
    assert parts["content"] == choice["message"]["content"]
    assert parts["reasoning_content"] == choice["message"]["reasoning_content"]
    assert (last.finish_reason, last.stop_reason) == ("stop", choice["stop_reason"])
    assert usage.completion_tokens == body["usage"]["completion_tokens"] <= trace.cost.retained_tokens


def test_a_stop_in_thinking_is_meant_literally(server, engine):
    thinking = free(engine, 3).thinking.lstrip()
    fields = {"seed": 3, "stop": "=", "stop_in_thinking": True}
    message = server.post(**fields)[2]["choices"][0]["message"]
    assert message["content"] == ""
    assert message["reasoning_content"] == thinking.partition("=")[0] != thinking
    parts, last, _ = streamed(server, **fields)
    assert parts["reasoning_content"] == message["reasoning_content"]
    assert (parts["content"], last.finish_reason) == ("", "stop")


def test_strategies_of_several_chains_obey_stops(server):
    body = server.post(seed=1, n=2, method="self-consistency:k=3", stop="boxed", temperature=1.2)[2]
    for choice in body["choices"]:
        assert "boxed" not in choice["message"]["content"]
    costs = [choice["satisfice"]["cost"] for choice in body["choices"]]
    assert body["usage"]["completion_tokens_details"]["generated_tokens"] == sum(cost["total_tokens"] for cost in costs)


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({"thinking_token_budget": 30}, "budget-forcing:max_thinking=30"),
        ({"thinking_token_budget": -1}, "plain"),
        ({"reasoning": {"max_tokens": 0}}, "budget-forcing:max_thinking=0"),
        ({"reasoning": {"max_tokens": 9}, "thinking_token_budget": 9}, "budget-forcing:max_thinking=9"),
        ({"reasoning": {"effort": "low"}}, "temperature-scaling:t=0.7"),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "low"}, "temperature-scaling:t=0.7"),
        ({"reasoning_effort": "none"}, "no-thinking"),
        ({"reasoning": {"enabled": False}}, "no-thinking"),
        ({"reasoning": {"enabled": True}}, "plain"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "no-thinking"),
        ({"chat_template_kwargs": {"thinking": False, "enable_thinking": False}}, "no-thinking"),
        ({"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 30},
         "budget-forcing:max_thinking=30"),
    ],
)  # fmt: skip
def test_keys_of_other_servers_stand_for_methods(server, fields, method):
    status, _, body = server.post(seed=1, **fields)
    assert status == 200, body
    assert body["choices"][0]["satisfice"]["method"] == method


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thinking_token_budget": 5, "method": "plain"}, "method and thinking_token_budget both say how to think"),
        ({"reasoning": {"max_tokens": 5, "effort": "low"}}, "reasoning.effort and reasoning.max_tokens both say"),
        ({"reasoning": {"enabled": False}, "chat_template_kwargs": {"enable_thinking": True}}, "another key asks for"),
        ({"reasoning_effort": ""}, "reasoning_effort '' means nothing to this server"),
        ({"reasoning": {"effort": ""}}, "reasoning_effort '' means nothing to this server"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary is not supported"),
        ({"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs.documents is not supported"),
        ({"thinking_token_budget": -5}, "thinking_token_budget must be"),
        ({"thinking_token_budget": True}, "thinking_token_budget must be"),
        ({"stop": ["a"] * 17}, "stop must be"),
        ({"stop": "a" * 201}, "stop.0 must be"),
        ({"stop": "a", "include_stop_str_in_output": True}, "include_stop_str_in_output is not supported"),
    ],
)
def test_what_contradicts_itself_or_is_not_there_is_refused_by_name(server, fields, message):
    status, _, body = server.post(**fields)
    assert status == 400
    assert message in body["error"]["message"]


@pytest.mark.parametrize("fields", [{"reasoning": {"exclude": True}}, {"include_reasoning": False}])
def test_thinking_can_be_left_out_of_the_response_and_is_still_counted(server, fields):
    body = server.post(seed=1, **fields)[2]
    assert set(body["choices"][0]["message"]) == {"role", "content"}
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    parts, _, _ = streamed(server, seed=1, **fields)
    assert parts == {"reasoning_content": "", "content": body["choices"][0]["message"]["content"]}


def test_a_budget_keeps_the_control_of_the_servers_own_method(engine):
    for own, capped in (
        ("temperature-scaling:t=0.8", "budget-forcing:max_thinking=20+temperature-scaling:t=0.8"),
        ('budget-forcing:max_thinking=50,cue="So "', 'budget-forcing:max_thinking=20,cue="So "'),
        ("deer", "budget-forcing:max_thinking=20"),
    ):
        with serving(engine, method=parse_method(own)) as running:
            body = running.post(seed=1, thinking_token_budget=20)[2]
            assert body["choices"][0]["satisfice"]["method"] == capped
    with serving(engine, method=parse_method("no-thinking")) as running:
        for fields, method in (({}, "no-thinking"), ({"reasoning": {"enabled": True}}, "plain")):
            assert running.post(seed=1, **fields)[2]["choices"][0]["satisfice"]["method"] == method
