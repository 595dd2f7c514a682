"""The openai engine against a scripted server over real HTTP."""

import asyncio
from dataclasses import replace

import pytest
from engines.fake_server import QUESTION, Fault, sampled

from satisfice.engines.base import Capability, EngineError, EngineFailed
from satisfice.engines.control_setting import decode_control
from satisfice.engines.openai import OpenAIEngine
from satisfice.intervention import parse_method
from satisfice.problems import Problem
from satisfice.thinking import decode

# -- the contract, in every dialect


async def test_an_answer_is_the_servers_token_by_token(kind, serve, load, prompt, answer):
    engine = load(serve(kind))
    seen = []
    generation = await engine.generate(prompt, sampled(), on_token=seen.append)
    assert generation.ids == answer
    assert (generation.finish, generation.stopped_by, generation.stop_tokens) == ("stop", answer[-1], 1)
    assert seen == answer
    assert generation.usage.forward_passes == len(answer)
    assert generation.usage.prefilled + generation.usage.cached == len(prompt)


async def test_a_limit_is_kept(kind, serve, load, prompt, answer):
    engine = load(serve(kind))
    generation = await engine.generate(prompt, sampled(max_tokens=5))
    assert (generation.ids, generation.finish, generation.stopped_by) == (answer[:5], "length", None)


async def test_the_token_that_completes_a_stop_is_kept_and_ends_the_request(kind, serve, load, prompt, answer):
    server = serve(kind, pause=0.005)
    engine = load(server)
    generation = await engine.generate(prompt, sampled(stop=("</think>", "never")))
    assert (generation.finish, generation.stopped_by) == ("stop", "</think>")
    text = decode(engine.tokenizer, generation.ids)
    assert text.endswith("</think>")
    assert "</think>" not in decode(engine.tokenizer, generation.ids[: -generation.stop_tokens])
    assert generation.ids == answer[: len(generation.ids)]
    assert generation.usage.generated < len(answer)
    # vLLM is told of the stop, the others are cut off.
    assert ("stop" in server.requests[0]) == (kind == "vllm")


async def test_more_stops_than_the_protocol_takes_are_looked_for_here(serve, load, prompt, answer):
    server = serve("vllm", pause=0.005)
    engine = load(server)
    stops = ("never", "nowhere", "not at all", "at no time", "</think>")
    generation = await engine.generate(prompt, sampled(stop=stops))
    assert server.requests[0]["stop"] == list(stops[:4])
    assert (generation.finish, generation.stopped_by) == ("stop", "</think>")
    assert decode(engine.tokenizer, generation.ids).endswith("</think>")
    assert generation.ids == answer[: len(generation.ids)]


async def test_tokens_that_came_in_one_message_with_a_stop_are_thrown_away(serve, load, prompt, answer):
    server = serve("llamacpp", chunk=4)
    engine = load(server)
    generation = await engine.generate(prompt, sampled(stop=("15",)))
    assert "15" not in decode(engine.tokenizer, generation.ids[: -generation.stop_tokens])
    assert generation.ids == answer[: len(generation.ids)]
    assert generation.usage.generated >= len(generation.ids)


async def test_a_lookahead_is_written_where_the_stop_is_found_here(serve, load, prompt, answer):
    wait = sampled(stop=("Wait",), lookahead=("Wait",))
    ahead = await load(serve("llamacpp")).generate(prompt, wait)
    exact = await load(serve("vllm")).generate(prompt, wait)
    assert len(ahead.ids) == len(exact.ids) + 1
    assert ahead.stop_tokens == exact.stop_tokens + 1


async def test_stop_ids_end_an_answer_or_are_refused(kind, serve, load, prompt, answer):
    engine = load(serve(kind))
    if kind == "standard":
        with pytest.raises(EngineError, match="stop_ids"):
            await engine.generate(prompt, sampled(stop_ids=(answer[3],)))
        return
    generation = await engine.generate(prompt, sampled(stop_ids=(answer[3],)))
    first = answer.index(answer[3])
    assert (generation.ids, generation.stopped_by) == (answer[: first + 1], answer[3])


async def test_a_stop_that_only_the_server_sees_is_still_a_stop(serve, load, prompt, answer, monkeypatch):
    """Where its text is put together in another way than the tokenizer here does it."""
    server = serve()
    engine = load(server)
    monkeypatch.setattr(engine, "token_bytes", [b""] * len(engine.tokenizer))
    monkeypatch.setattr(server, "stop_reason", "</think>")
    generation = await engine.generate(prompt, sampled(stop=("</think>",)))
    assert (generation.finish, generation.stopped_by, generation.stop_tokens) == ("stop", "</think>", 1)


async def test_log_probabilities_come_by_token_id(kind, serve, load, prompt, answer):
    engine = load(serve(kind))
    if kind == "standard":
        with pytest.raises(EngineError, match="which tokens it wrote"):
            await engine.generate(prompt, sampled(), top_logprobs=2)
        return
    generation = await engine.generate(prompt, sampled(max_tokens=3), top_logprobs=2)
    assert generation.logprobs == [-1.0] * 3
    assert [list(top.items()) for top in generation.top_logprobs] == [
        [(token, -1.0), (token + 1, -1.25)] for token in answer[:3]
    ]
    with pytest.raises(EngineError, match="20 at most"):
        await engine.generate(prompt, sampled(max_tokens=3), top_logprobs=21)


async def test_a_prompt_that_was_served_before_counts_as_cached(serve, load, prompt):
    engine = load(serve("llamacpp"))
    first = await engine.generate(prompt, sampled(stop=("15",)))
    again = await engine.generate(prompt, sampled(stop=("15",)))
    assert again.usage.cached == len(prompt) - 1
    assert again.usage.prefilled == 1
    assert first.usage.prefilled > 1


async def test_seeds_differ_by_seed_and_by_place_and_fit_every_server(serve, load, prompt, answer):
    server = serve()
    engine = load(server)
    await engine.generate(prompt, sampled(seed=1 << 60))
    await engine.generate(prompt, sampled(seed=1 << 60))
    await engine.generate(prompt, sampled(seed=7))
    await engine.generate([*prompt, answer[0]], sampled(seed=7))
    seeds = [request["seed"] for request in server.requests]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 1 << 31 for seed in seeds)


async def test_what_the_sampling_says_is_what_the_server_gets(kind, serve, load, prompt):
    server = serve(kind)
    await load(server).generate(prompt, sampled(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, max_tokens=9))
    (request,) = server.requests
    told = {name: request[name] for name in ("temperature", "top_p", "top_k", "min_p", "max_tokens")}
    assert told == {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "max_tokens": 9}
    assert isinstance(request["prompt"], str) == (kind == "standard")


async def test_parameters_outside_of_the_protocol_are_sent_only_where_they_say_something(serve, load, prompt):
    server = serve("standard")
    await load(server).generate(prompt, sampled())
    assert not {"top_k", "min_p", "ignore_eos"} & server.requests[0].keys()


def test_an_engine_serves_several_event_loops(serve, load, prompt, answer):
    engine = load(serve(), max_batch=1)
    for _ in range(2):

        async def three():
            return await asyncio.gather(*(engine.generate(prompt, sampled()) for _ in range(3)))

        assert all(generation.ids == answer for generation in asyncio.run(three()))


async def test_a_prompt_that_does_not_fit_is_refused_before_it_is_sent(serve, load, prompt):
    server = serve(context_length=len(prompt) + 10)
    engine = load(server)
    with pytest.raises(EngineError, match="lower max_tokens to 10 or less"):
        await engine.generate(prompt, sampled(max_tokens=11))
    assert server.requests == []


async def test_a_method_runs_on_every_server_that_it_can_run_on(kind, serve, load):
    engine = load(serve(kind))
    problem = Problem("one", QUESTION, "45")
    for spelled in ("plain", "budget-forcing:max_thinking=60"):
        trace = await parse_method(spelled).solve(engine, problem, sampled())
        assert trace.answer.strip() == "The answer is \\boxed{45}."
        assert trace.finished


async def test_a_control_travels_to_a_server_that_runs_the_plugin(serve, load, prompt):
    server = serve(plugin=True)
    engine = load(server)
    assert Capability.CONTROL in engine.capabilities
    method = parse_method("temperature-scaling:t=0.5")
    trace = await method.solve(engine, Problem("one", QUESTION, "45"), sampled())
    assert trace.finished
    sent = decode_control(server.requests[0]["vllm_xargs"]["satisfice_control"])
    assert sent == replace(method.control(engine.thinking), state=trace_state(engine, prompt))


def trace_state(engine: OpenAIEngine, prompt: list[int]) -> int:
    messages = [{"role": "user", "content": QUESTION}]
    rendered = engine.thinking.render(engine.tokenizer, messages)
    assert rendered.ids == prompt
    return rendered.state


async def test_a_control_is_refused_where_nobody_would_obey_it(kind, serve, load, prompt):
    engine = load(serve(kind))
    method = parse_method("temperature-scaling:t=0.5")
    with pytest.raises(EngineError, match=r"temperature-scaling needs control.*does not run satisfice's plugin"):
        method.check(engine)
    with pytest.raises(EngineError, match="does not offer control"):
        await engine.generate(prompt, sampled(), control=method.control(engine.thinking))


# -- what a server can do


def test_capabilities_follow_from_what_the_server_does(kind, serve, load):
    engine = load(serve(kind))
    offered = {
        "vllm": {Capability.BIAS, Capability.LOGPROBS, Capability.PREFIX_REUSE, Capability.CANCEL},
        "llamacpp": {Capability.BIAS, Capability.LOGPROBS, Capability.PREFIX_REUSE, Capability.CANCEL},
        "standard": {Capability.BIAS, Capability.PREFIX_REUSE},
    }
    assert engine.capabilities == offered[kind]
    assert set(engine.lacking) == set(Capability) - engine.capabilities
    assert engine.offer.finds_stops == (kind == "vllm")
    assert engine.context_length == 1024


@pytest.mark.parametrize(
    ("changes", "capability", "reason"),
    [
        ({"caches": False}, Capability.PREFIX_REUSE, "--enable-prompt-tokens-details"),
        ({"processed": True}, Capability.LOGPROBS, "after temperature"),
        ({"refuses": {"logprobs"}}, Capability.LOGPROBS, "20 most likely"),
    ],
)
def test_a_method_is_refused_with_what_is_missing_and_why(changes, capability, reason, serve, load):
    engine = load(serve(**changes))
    assert capability not in engine.capabilities
    with pytest.raises(EngineError, match=f"deer needs {capability}.*openai:fake does not offer.*{reason}"):
        parse_method("deer").check(engine)
    parse_method("plain").check(engine)


def test_a_server_that_refuses_unknown_parameters_is_spoken_to_in_the_protocol(serve, load):
    engine = load(serve("vllm", refuses={"return_token_ids", "samplers"}))
    assert engine.offer.dialect.name == "standard"
    assert engine.offer.prompt_ids


async def test_a_server_that_adds_the_first_token_itself_is_not_sent_it_twice(serve, load, prompt, checkpoint):
    assert prompt[0] == checkpoint.tokenizer.bos_token_id
    server = serve("standard", adds_bos=True)
    engine = load(server)
    await engine.generate(prompt, sampled(max_tokens=1))
    assert server._ids(server.requests[0]["prompt"]) == prompt


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"completes": False}, "chat completions cannot"),
        ({"lists": ["a", "b"]}, "does not serve fake, but a, b"),
        ({"refuses": {"seed"}}, "seed is not known here"),
        ({"key": "right"}, "refuses the key.*OPENAI_API_KEY"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_when_it_is_loaded(changes, said, serve, load):
    with pytest.raises(EngineError, match=said):
        load(serve(**changes))


def test_the_tokenizer_of_another_model_is_found_out(serve, load, monkeypatch):
    server = serve("standard")
    monkeypatch.setattr(server, "_ids", lambda prompt: [1] * 3)
    with pytest.raises(EngineError, match=r"makes 3 tokens .* --tokenizer"):
        load(server)


def test_a_key_is_read_from_the_environment_and_never_told(serve, load, monkeypatch, capfd):
    server = serve(key="sk-secret-key")
    monkeypatch.setenv("MY_KEY", "sk-secret-key")
    engine = load(server, api_key_env="MY_KEY")
    assert "sk-secret" not in f"{vars(engine)} {engine.device} {engine.name}"
    monkeypatch.setenv("MY_KEY", "sk-other-secret")
    with pytest.raises(EngineError) as refused:
        load(server, api_key_env="MY_KEY")
    assert "sk-" not in str(refused.value)
    assert "sk-" not in "".join(capfd.readouterr())


def test_a_key_that_was_asked_for_must_be_there(serve, load, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(EngineError, match=r"NO_SUCH_KEY.*is not set"):
        load(serve(), api_key_env="NO_SUCH_KEY")


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        ("<html>hello</html>", {"Content-Type": "text/html"}, "no completion: <html>hello"),
        ('{"detail": "hello"}', {}, 'no completion: .*"hello"'),
        ('{"choices": [', {}, "no JSON"),
    ],
)
def test_a_page_that_is_no_completion_is_shown(body, headers, said, serve, load):
    with pytest.raises(EngineError, match=said):
        load(serve(faults=[Fault(body=body, headers=headers)]))


@pytest.mark.parametrize("url", ["127.0.0.1:1", "ftp://host/v1", "http://"])
def test_a_base_url_must_be_one(url):
    with pytest.raises(EngineError, match="must look like http"):
        OpenAIEngine.load("fake", base_url=url, tokenizer="lab")


def test_a_base_url_holds_no_password():
    with pytest.raises(EngineError, match="environment variable") as refused:
        OpenAIEngine.load("fake", base_url="http://me:hidden@127.0.0.1/v1", tokenizer="lab")
    assert "hidden" not in str(refused.value)


def test_a_server_that_is_not_there_is_named(serve):
    server = serve()
    url = server.url
    server._http.server_close()
    with pytest.raises(EngineFailed, match=f"cannot reach {url}"):
        OpenAIEngine.load("fake", base_url=url, tokenizer="lab", max_retries=0)


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EngineError, match="--tokenizer"):
        OpenAIEngine.load(str(tmp_path), base_url="http://127.0.0.1:1/v1")
