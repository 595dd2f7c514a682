"""The openai engine against real servers that the tests start: vLLM and llama.cpp's.

    make test-vllm          a virtual environment with vLLM
    make test-llamacpp      SATISFICE_LLAMA_SERVER=path of llama-server, SATISFICE_LLAMA_MODEL=path of a GGUF file

What all servers must do is said once and asked of each.
"""

import asyncio
import importlib.util
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from satisfice.engines.base import Capability, Sampling
from satisfice.engines.openai import OpenAIEngine
from satisfice.intervention import parse_method
from satisfice.intervention.controls import EndScaling, SuppressTokens
from satisfice.lab import WEIGHTS
from satisfice.problems import Problem, load_problems
from satisfice.thinking import ThinkingFormat, decode

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)  # the first test waits for a server


class Served:
    """A running server.

    Attributes:
        url: of the protocol.
        load: makes an engine for its model.
        question: something to ask it.
        busy: whether it is computing.
    """

    def __init__(self, url: str, load: Callable[..., OpenAIEngine], question: str, busy: Callable[[], bool]) -> None:
        self.url, self.load, self.question, self.busy = url, load, question, busy


def _running(command: list[str], health: str, environment: dict[str, str], log: Path) -> subprocess.Popen:
    """Start a server and wait until it answers."""
    with log.open("w") as out:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=out, stderr=subprocess.STDOUT)
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended: {log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(health, timeout=2).read()
            return process
        except OSError:
            time.sleep(0.5)
    process.terminate()
    raise RuntimeError(f"{command[0]} did not come up: {log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _vllm(folder: Path) -> Iterator[Served]:
    python = ROOT / ".venv-vllm" / "bin" / "python"
    here = importlib.util.find_spec("vllm")
    interpreter = sys.executable if here is not None and here.origin else str(python)
    if not Path(interpreter).exists():
        pytest.skip("needs vLLM, here or in .venv-vllm")
    port = _free_port()
    command = [
        interpreter, "-m", "vllm.entrypoints.openai.api_server", "--model", str(WEIGHTS), "--served-model-name", "lab",
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32", "--max-model-len", "1024",
        "--block-size", "32", "--enable-prompt-tokens-details",
    ]  # fmt: skip
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    base = f"http://127.0.0.1:{port}"
    process = _running(command, f"{base}/health", environment, folder / "vllm.log")

    def busy() -> bool:
        metrics = urllib.request.urlopen(f"{base}/metrics").read().decode()
        return any(
            line.startswith("vllm:num_requests_running") and not line.endswith(" 0.0") for line in metrics.splitlines()
        )

    def load(**options: object) -> OpenAIEngine:
        return OpenAIEngine.load("lab", base_url=f"{base}/v1", **{"tokenizer": "lab", **options})

    yield Served(f"{base}/v1", load, load_problems("lab:test", limit=1).problems[0].prompt, busy)
    process.terminate()
    process.wait(30)


def _llamacpp(folder: Path) -> Iterator[Served]:
    binary, model = os.environ.get("SATISFICE_LLAMA_SERVER"), os.environ.get("SATISFICE_LLAMA_MODEL")
    if not binary or not model:
        pytest.skip("needs SATISFICE_LLAMA_SERVER and SATISFICE_LLAMA_MODEL, see docs/openai.md")
    port = _free_port()
    command = [
        binary, "--model", model, "--alias", "served", "--host", "127.0.0.1", "--port", str(port), "--threads", "1",
        "--parallel", "4", "--ctx-size", "8192", "--no-webui", "--slots",
    ]  # fmt: skip
    base = f"http://127.0.0.1:{port}"
    process = _running(command, f"{base}/health", {}, folder / "llama.log")

    def busy() -> bool:
        return b'"is_processing":true' in urllib.request.urlopen(f"{base}/slots").read().replace(b" ", b"")

    def load(**options: object) -> OpenAIEngine:
        thinking = ThinkingFormat.parse("<think>,</think>")
        return OpenAIEngine.load(
            "served", base_url=f"{base}/v1", **{"tokenizer": model, "thinking": thinking, **options}
        )

    yield Served(f"{base}/v1", load, "What is 17 + 25? Think step by step.", busy)
    process.terminate()
    process.wait(30)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(_vllm, id="vllm", marks=pytest.mark.vllm),
        pytest.param(_llamacpp, id="llama.cpp", marks=pytest.mark.llamacpp),
    ],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from request.param(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def engine(served: Served) -> Iterator[OpenAIEngine]:
    engine = served.load()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompt(engine: OpenAIEngine, served: Served) -> list[int]:
    return engine.thinking.render(engine.tokenizer, [{"role": "user", "content": served.question}]).ids


GREEDY = Sampling(temperature=0, top_p=1, max_tokens=60)
DRAWN = Sampling(temperature=1, top_p=0.95, max_tokens=60, seed=3)


def test_it_is_known_what_the_server_can_do(engine):
    assert engine.capabilities >= {Capability.LOGPROBS, Capability.PREFIX_REUSE, Capability.CANCEL}
    assert Capability.BIAS in engine.capabilities
    assert not engine.capabilities & {Capability.ENTROPY, Capability.SCORE, Capability.TREE}
    assert engine.offer.prompt_ids
    assert engine.context_length in (1024, 2048, 8192)


async def test_an_answer_goes_on_from_any_of_its_tokens(engine, prompt):
    """Ids that were read wrongly would lead elsewhere."""
    whole = await engine.generate(prompt, GREEDY)
    assert len(whole.ids) > 20
    for cut in (1, 7, 20):
        rest = await engine.generate([*prompt, *whole.ids[:cut]], replace(GREEDY, max_tokens=60 - cut))
        assert [*whole.ids[:cut], *rest.ids] == whole.ids


async def test_the_same_seed_draws_the_same_and_another_does_not(engine, prompt):
    first, again, other = [
        (await engine.generate(prompt, sampling)).ids for sampling in (DRAWN, DRAWN, replace(DRAWN, seed=4))
    ]
    assert first == again
    assert first != other


async def test_a_stop_ends_with_the_token_that_completes_it(engine, prompt):
    whole = await engine.generate(prompt, GREEDY)
    for place in (5, 12, 19):
        text = decode(engine.tokenizer, whole.ids[place : place + 2])
        stopped = await engine.generate(prompt, replace(GREEDY, stop=(text, "never written")))
        assert (stopped.finish, stopped.stopped_by) == ("stop", text)
        assert stopped.ids == whole.ids[: len(stopped.ids)]
        assert text in decode(engine.tokenizer, stopped.ids)
        assert text not in decode(engine.tokenizer, stopped.ids[:-1])
        assert text not in decode(engine.tokenizer, stopped.ids[: -stopped.stop_tokens])


async def test_a_token_id_stops(engine, prompt):
    whole = await engine.generate(prompt, GREEDY)
    token = whole.ids[9]
    stopped = await engine.generate(prompt, replace(GREEDY, stop_ids=(token,)))
    assert (stopped.stopped_by, stopped.ids) == (token, whole.ids[: whole.ids.index(token) + 1])


async def test_log_probabilities_are_the_models_own_and_belong_to_the_tokens(engine, prompt):
    greedy = await engine.generate(prompt, replace(GREEDY, max_tokens=20), top_logprobs=20)
    for token, logprob, top in zip(greedy.ids, greedy.logprobs, greedy.top_logprobs, strict=True):
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert len(top) == 20
        assert next(iter(top)) == token
        assert top[token] == pytest.approx(logprob)
        assert sum(map(math.exp, top.values())) <= 1 + 1e-4
    # At another temperature and with a truncation the model's own distribution is the same. Both go on from the same
    # stored prompt: llama.cpp rounds 4-bit weights otherwise where it reads more than one token at once.
    cool = await engine.generate(prompt, replace(GREEDY, max_tokens=1), top_logprobs=20)
    hot = replace(DRAWN, temperature=1.7, top_p=0.5, max_tokens=1)
    drawn = await engine.generate(prompt, hot, top_logprobs=20)
    assert list(drawn.top_logprobs[0].values()) == pytest.approx(list(cool.top_logprobs[0].values()), abs=0.02)


async def test_what_was_computed_before_comes_from_the_cache(engine, prompt):
    first = await engine.generate(prompt, replace(GREEDY, max_tokens=50))
    again = await engine.generate([*prompt, *first.ids], replace(GREEDY, max_tokens=2))
    assert again.usage.cached + again.usage.prefilled == len(prompt) + len(first.ids)
    assert again.usage.cached >= (len(prompt) + len(first.ids)) // 32 * 32 - 32
    assert again.usage.cached > 0


async def test_the_end_of_the_text_can_be_passed_by(engine, prompt):
    long = await engine.generate(prompt, replace(GREEDY, ignore_eos=True, max_tokens=300))
    assert (len(long.ids), long.finish) == (300, "length")


async def test_the_end_of_the_text_is_a_token_of_the_answer(engine, prompt):
    ended = await engine.generate(prompt, replace(GREEDY, temperature=0.3, max_tokens=900))
    assert ended.finish == "stop"
    assert ended.stopped_by == ended.ids[-1]
    assert ended.ids[-1] in engine.end_ids


async def test_a_cancelled_request_ends_at_the_server_too(engine, prompt, served):
    seen = []
    endless = replace(DRAWN, ignore_eos=True, max_tokens=900)
    task = asyncio.create_task(engine.generate(prompt, endless, on_token=seen.append))
    while len(seen) < 5:
        await asyncio.sleep(0.02)
    assert await asyncio.to_thread(served.busy)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    written = len(seen)
    deadline = time.monotonic() + 5
    while await asyncio.to_thread(served.busy):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert written < 890


async def test_many_requests_at_once_are_answered_as_one_alone(engine, prompt):
    whole = await engine.generate(prompt, GREEDY)
    prompts = [[*prompt, *whole.ids[:cut]] for cut in range(12)]
    short = replace(GREEDY, max_tokens=8)
    alone = [(await engine.generate(each, short)).ids for each in prompts]
    together = [found.ids for found in await asyncio.gather(*(engine.generate(each, short) for each in prompts))]
    assert len({tuple(ids) for ids in alone}) > 6
    # A matrix product may round differently in another batch, which decides between near ties.
    assert sum(ours == theirs for ours, theirs in zip(together, alone, strict=True)) >= 10
    # No answer is another's.
    assert all(ours[0] == theirs[0] for ours, theirs in zip(together, alone, strict=True))


@pytest.mark.parametrize("spelled", ["plain", "budget-forcing:max_thinking=20", "deer", "self-consistency:k=3"])
async def test_methods_run(spelled, engine, served):
    method = parse_method(spelled)
    method.check(engine)
    trace = await method.solve(engine, Problem("one", served.question, ""), replace(DRAWN, max_tokens=200))
    assert trace.response_ids
    assert trace.cost.thinking_tokens <= 200
    assert trace.cost.prefilled_tokens > 0


@pytest.fixture
def bare(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIEngine]:
    """The engine that there is where the server does not run the plugin."""

    async def no_plugin(*asked: object) -> bool:
        return False

    monkeypatch.setattr("satisfice.engines.openai_offer._has_plugin", no_plugin)
    engine = served.load()
    yield engine
    engine.close()


async def test_a_bias_acts_in_thinking_alone_and_log_probabilities_stay_the_models_own(bare, served):
    assert Capability.CONTROL not in bare.capabilities
    assert Capability.BIAS in bare.capabilities, bare.lacking
    problem = Problem("one", served.question, "")
    rendered = bare.thinking.render(bare.tokenizer, problem.messages())
    free = await bare.generate(rendered.ids, GREEDY, top_logprobs=1)
    # The first token that it thinks is taken away: as likely as before by its own word, and not written.
    word = decode(bare.tokenizer, free.ids[:1]).strip().casefold()
    control = SuppressTokens(words=(word,), state=rendered.state)
    assert free.ids[0] in control.biases(bare.thinking, bare.tokenizer)
    other = await bare.generate(rendered.ids, GREEDY, top_logprobs=20, control=control)
    taken = set(control.biases(bare.thinking, bare.tokenizer))
    assert not taken & set(other.ids[:20])
    assert other.top_logprobs[0][free.ids[0]] == pytest.approx(free.logprobs[0], abs=0.02)
    # Sure to close thinking at once, it writes its answer as it does after a thinking that was closed for it.
    if len(close := bare.thinking.close_ids(bare.tokenizer)) == 1:
        ended = await bare.generate(rendered.ids, GREEDY, control=EndScaling(bias=100, state=rendered.state))
        after = await bare.generate([*rendered.ids, *close], replace(GREEDY, max_tokens=59))
        assert ended.ids == [*close, *after.ids]


async def does_what_it_does_here(spelled, engine):
    """A method acts, and as it acts on the transformers engine."""
    from satisfice.engines.transformers import TransformersEngine

    embedded = TransformersEngine.load("lab")
    method = parse_method(spelled)
    method.check(engine)
    sampling = replace(GREEDY, max_tokens=300)
    same, changed = 0, 0
    for problem in load_problems("lab:test", limit=10).problems:
        trace, other, plain = [
            await which.solve(where, problem, sampling)
            for which, where in ((method, engine), (method, embedded), (parse_method("plain"), embedded))
        ]
        same += trace.response_ids == other.response_ids
        changed += trace.response_ids != plain.response_ids
    embedded.close()
    assert same >= 9
    assert changed >= 9


@pytest.mark.vllm
@pytest.mark.parametrize("served", [pytest.param(_vllm, marks=pytest.mark.vllm)], indirect=True, ids=["vllm"])
@pytest.mark.parametrize("spelled", ["temperature-scaling:mode=bias,bias=10", "no-wait"])
async def test_biases_do_what_controls_do_here(spelled, bare):
    await does_what_it_does_here(spelled, bare)


@pytest.mark.vllm
@pytest.mark.parametrize("served", [pytest.param(_vllm, marks=pytest.mark.vllm)], indirect=True, ids=["vllm"])
async def test_greedy_answers_are_those_of_the_transformers_engine(served, engine):
    from satisfice.engines.transformers import TransformersEngine

    embedded = TransformersEngine.load("lab")
    problems = load_problems("lab:test", limit=10).problems
    same = 0
    for problem in problems:
        trace, other = [
            await parse_method("plain").solve(which, problem, replace(GREEDY, max_tokens=300))
            for which in (engine, embedded)
        ]
        same += trace.response_ids == other.response_ids
        assert trace.prompt_ids == other.prompt_ids
    embedded.close()
    assert same >= 9  # float noise decides a near tie now and then


@pytest.mark.vllm
@pytest.mark.parametrize("served", [pytest.param(_vllm, marks=pytest.mark.vllm)], indirect=True, ids=["vllm"])
@pytest.mark.parametrize("spelled", ["temperature-scaling:t=0.3", "temperature-scaling:mode=bias,bias=10", "no-wait"])
async def test_controls_travel_to_the_plugin_and_do_what_they_do_here(spelled, served, engine):
    await does_what_it_does_here(spelled, engine)
