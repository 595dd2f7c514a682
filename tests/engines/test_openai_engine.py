"""The openai engine against a scripted server over real HTTP."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from engines.fake_server import FakeServer, Fault

from satisfice.engines.base import Capability, EngineError, EngineFailed, Sampling
from satisfice.engines.checkpoint import Checkpoint
from satisfice.engines.control import decode_control
from satisfice.engines.openai import OpenAIEngine
from satisfice.intervention import parse_method
from satisfice.problems import Problem
from satisfice.thinking import ThinkingFormat, decode

QUESTION = "Start with 10. Steps in the order of their letters: c) +5, d) *3. What is the result?"
RESPONSE = "10 + 5 = 15.\n15 * 3 = 45.\nWait, let me check.\n10 + 5 = 15.\n</think>\n\nThe answer is \\boxed{45}."


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.read("lab")


@pytest.fixture(scope="module")
def prompt(checkpoint: Checkpoint) -> list[int]:
    thinking = ThinkingFormat.detect(checkpoint.tokenizer)
    return thinking.render(checkpoint.tokenizer, [{"role": "user", "content": QUESTION}]).ids


@pytest.fixture(scope="module")
def answer(checkpoint: Checkpoint) -> list[int]:
    ids = checkpoint.tokenizer(RESPONSE, add_special_tokens=False)["input_ids"]
    assert checkpoint.tokenizer.unk_token_id not in ids
    return [*ids, checkpoint.tokenizer.eos_token_id]


@pytest.fixture
def serve(checkpoint: Checkpoint, prompt: list[int], answer: list[int]) -> Iterator[Callable[..., FakeServer]]:
    servers = []

    def make(kind: str = "vllm", **changes: object) -> FakeServer:
        servers.append(FakeServer(checkpoint.tokenizer, prompt, answer, kind))
        for name, value in changes.items():
            assert hasattr(servers[-1], name)
            setattr(servers[-1], name, value)
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def load() -> Iterator[Callable[..., OpenAIEngine]]:
    engines = []

    def make(server: FakeServer, **options: object) -> OpenAIEngine:
        engines.append(OpenAIEngine.load("fake", base_url=server.url, **{"tokenizer": "lab", **options}))
        server.requests.clear()
        server.times.clear()
        server.most_at_once = server.given_up = 0
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(params=["vllm", "llamacpp", "standard"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sampled(**changes: object) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 200, **changes})


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
    monkeypatch.setattr(engine, "_token_bytes", [b""] * len(engine.tokenizer))
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
    assert trace.error is None
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


# -- faults


async def test_too_many_requests_are_waited_for_as_long_as_the_server_says(serve, load, prompt, answer):
    server = serve()
    engine = load(server)
    server.faults = [Fault(429, {"Retry-After": "0.3"})]
    generation = await engine.generate(prompt, sampled())
    assert generation.ids == answer
    assert 0.3 <= server.times[1] - server.times[0] < 2


async def test_errors_of_the_server_are_tried_again_with_growing_pauses_that_differ(serve, load, prompt, answer):
    server = serve()
    engine = load(server)
    server.faults = [Fault(500), Fault(503)]
    assert (await engine.generate(prompt, sampled())).ids == answer
    first, second = (after - before for before, after in zip(server.times, server.times[1:], strict=False))
    assert 0.375 <= first < 0.9
    assert 0.75 <= second < 1.5


async def test_a_server_that_keeps_failing_is_given_up_with_a_sentence(serve, load, prompt):
    server = serve()
    engine = load(server, max_retries=1)
    server.faults = [Fault(500)] * 2
    with pytest.raises(EngineFailed, match=r"answers 500, after 2 tries: scripted"):
        await engine.generate(prompt, sampled())
    assert len(server.requests) == 2


async def test_a_request_that_the_server_refuses_is_not_tried_again(serve, load, prompt):
    server = serve()
    engine = load(server)
    server.refuses = {"temperature"}
    with pytest.raises(EngineError, match="answers 400: temperature is not known here") as refused:
        await engine.generate(prompt, sampled())
    assert not isinstance(refused.value, EngineFailed)
    assert len(server.requests) == 1


async def test_silence_ends_at_the_time_limit(serve, load, prompt, answer):
    server = serve()
    engine = load(server, timeout=0.3, max_retries=1)
    server.faults = [Fault(silent=1.5)]
    assert (await engine.generate(prompt, sampled())).ids == answer
    server.faults = [Fault(silent=1.5)] * 2
    with pytest.raises(EngineFailed, match=r"silent for 0\.3 s, after 2 tries"):
        await engine.generate(prompt, sampled())


async def test_a_long_answer_is_not_bounded_by_the_time_limit(serve, load, prompt, answer):
    server = serve(pause=0.02)
    engine = load(server, timeout=0.25)
    started = time.monotonic()
    assert (await engine.generate(prompt, sampled())).ids == answer
    assert time.monotonic() - started > 0.25
    assert len(server.requests) == 1


async def test_a_dropped_answer_goes_on_behind_the_tokens_that_had_come(kind, serve, load, prompt, answer):
    server = serve(kind)
    engine = load(server)
    server.faults = [Fault(drop_after=4), Fault(drop_after=2)]
    seen = []
    generation = await engine.generate(prompt, sampled(), on_token=seen.append)
    assert generation.ids == seen == answer
    assert (generation.finish, generation.usage.generated) == ("stop", len(answer) - (kind == "standard"))
    assert [request["max_tokens"] for request in server.requests] == [200, 196, 194]
    # What was sent again is paid for again.
    assert generation.usage.prefilled + generation.usage.cached == 3 * len(prompt) + 4 + 6
    if kind != "standard":
        assert server.requests[1]["prompt"] == [*prompt, *answer[:4]]


async def test_a_stop_may_be_cut_by_a_dropped_connection(serve, load, prompt, answer):
    server = serve("llamacpp")
    engine = load(server)
    place = (await engine.generate(prompt, sampled(stop=("= 45",)))).ids
    server.faults = [Fault(drop_after=len(place) - 1)]
    generation = await engine.generate(prompt, sampled(stop=("= 45",)))
    assert (generation.ids, generation.stopped_by) == (place, "= 45")


async def test_an_answer_that_drops_too_often_is_given_up(serve, load, prompt):
    server = serve()
    engine = load(server, max_retries=1)
    server.faults = [Fault(drop_after=1)] * 2
    with pytest.raises(EngineFailed, match="dropped one answer 2 times"):
        await engine.generate(prompt, sampled())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(event='{"choices": [{"text": '), "no JSON"),
        (Fault(event='{"object": "something else"}'), "no completion"),
        (Fault(event='{"choices": [{"index": 0}]}'), "no completion"),
        (Fault(event="7"), "no completion"),
        (Fault(event='{"error": {"message": "out of memory"}}'), "out of memory"),
        (Fault(finish="content_filter"), "content_filter"),
    ],
)
async def test_what_cannot_be_read_is_an_error_that_shows_it(fault, said, serve, load, prompt):
    server = serve()
    engine = load(server)
    server.faults = [fault]
    # The first message alone says little; an answer with tokens in it is ended by the end token, not by a reason.
    with pytest.raises(EngineError, match=said):
        await engine.generate(prompt, sampled(ignore_eos=True) if fault.finish else sampled())


async def test_one_failed_request_does_not_disturb_another(serve, load, prompt, answer):
    server = serve()
    engine = load(server)
    server.faults = [Fault(event="7")]
    results = await asyncio.gather(*(engine.generate(prompt, sampled()) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, EngineError) for result in results) == 1
    assert sum(not isinstance(result, Exception) and result.ids == answer for result in results) == 3


async def test_a_cancelled_request_closes_its_connection(serve, load, prompt):
    server = serve(pause=0.02)
    engine = load(server)
    task = asyncio.create_task(engine.generate(prompt, sampled()))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if server.given_up and not server.at_once:
            break
        await asyncio.sleep(0.02)
    assert (server.given_up, server.at_once) == (1, 0)


async def test_no_more_requests_are_under_way_than_allowed(serve, load, prompt):
    server = serve(pause=0.005)
    engine = load(server, max_batch=2)
    await asyncio.gather(*(engine.generate(prompt, sampled(max_tokens=5)) for _ in range(6)))
    assert (server.most_at_once, len(server.requests)) == (2, 6)


async def test_requests_are_spaced_by_their_rate(serve, load, prompt):
    server = serve()
    engine = load(server, requests_per_minute=600)
    await asyncio.gather(*(engine.generate(prompt, sampled(max_tokens=2)) for _ in range(4)))
    spaces = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert all(space > 0.05 for space in spaces)
    assert sum(spaces) >= 0.28


async def test_a_closed_engine_says_so(serve, load, prompt):
    server = serve(pause=0.02)
    engine = load(server)
    running = asyncio.create_task(engine.generate(prompt, sampled()))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(engine.close)
    for request in (running, engine.generate(prompt, sampled())):
        with pytest.raises(EngineFailed, match="closed"):
            await request


# -- what a server can do


def test_capabilities_follow_from_what_the_server_does(kind, serve, load):
    engine = load(serve(kind))
    offered = {
        "vllm": {Capability.LOGPROBS, Capability.PREFIX_REUSE, Capability.CANCEL},
        "llamacpp": {Capability.LOGPROBS, Capability.PREFIX_REUSE, Capability.CANCEL},
        "standard": {Capability.PREFIX_REUSE},
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
