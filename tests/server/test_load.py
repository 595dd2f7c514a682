"""Many clients at once, some of which go, some of which talk nonsense: nobody gets what is another's, nothing grows."""

import asyncio
import gc
import random
from dataclasses import replace

import psutil
import pytest
from server.running import serving

from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import lab_spellings, parse_method
from satisfice.lab.arithmetic import chains
from satisfice.problems import Problem

openai = pytest.importorskip("openai")

CLIENTS = 64
ROUNDS = 4
MAX_TOKENS = 80
METHODS = [
    *(method for method in lab_spellings() if method.partition(":")[0] in ("plain", "temperature-scaling", "no-wait")),
    *(method for method in lab_spellings() if method.partition(":")[0] in ("deer", "entrocut", "adaptive-think")),
    "budget-forcing:ignore=1,max_thinking=60",
    "no-thinking",
    "self-consistency:k=3",
    "best-of-n:n=2",
    "fractured:n=2,depths=2,m=1,max_solution=16",
    "decoding-tree:traces=2,tau_v=0.2,max_active=6",
    "self-consistency:k=2+temperature-scaling:t=0.7",
]
NONSENSE = [
    {"method": "deer:threshold=2"},
    {"method": "adaptive-think:width=200000"},
    {"temperature": -1},
    {"messages": [{"role": "user"}]},
    {"max_tokens": 10**9},
    {"n": 10**9},
    {"nonsense": 1},
]


async def expected(engine, cases):
    """What each case writes where nobody else asks for anything."""
    texts = []
    for method, question, seed in cases:
        sampling = replace(engine.default_sampling, max_tokens=MAX_TOKENS, seed=seed)
        trace = await parse_method(method).solve(engine, Problem("p", question, ""), sampling)
        texts.append((trace.thinking.lstrip(), trace.answer.lstrip(), trace.cost.total_tokens))
    return texts


async def answered(client, case, stream):
    """The same through the server."""
    method, question, seed = case
    response = await client.chat.completions.create(
        model="lab", messages=[{"role": "user", "content": question}], seed=seed, max_tokens=MAX_TOKENS, stream=stream,
        extra_body={"method": method},
    )  # fmt: skip
    if not stream:
        [choice] = response.choices
        return choice.message.reasoning_content, choice.message.content, choice.satisfice["cost"]["total_tokens"]
    thinking, answer, total = "", "", None
    async for chunk in response:
        for choice in chunk.choices:
            thinking += getattr(choice.delta, "reasoning_content", None) or ""
            answer += choice.delta.content or ""
            total = choice.satisfice["cost"]["total_tokens"] if choice.finish_reason else total
    return thinking, answer, total


async def one_client(client, index, cases, texts, rng):
    """Asks once; returns what it did."""
    act = rng.random()
    place = rng.randrange(len(cases))
    if act < 0.15:
        fields = {"model": "lab", "messages": [{"role": "user", "content": "So"}], **rng.choice(NONSENSE)}
        with pytest.raises(openai.BadRequestError):
            await client.post("/chat/completions", body=fields, cast_to=object)
        return "refused"
    if act < 0.35:
        try:
            async with asyncio.timeout(rng.random()):
                await answered(client, cases[place], stream=index % 2 == 0)
        except TimeoutError:
            return "aborted"
    assert await answered(client, cases[place], stream=index % 2 == 0) == texts[place], cases[place]
    return "answered"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_mixed_methods_aborts_and_nonsense_leave_everybody_else_alone_and_memory_flat():
    engine = TransformersEngine.load("lab", max_batch_tokens=1 << 15, max_cached_tokens=1 << 12)
    rng = random.Random(0)
    questions = chains("calibration", 0)
    cases = [(METHODS[i % len(METHODS)], next(questions).prompt, 1000 + i) for i in range(3 * len(METHODS))]
    texts = asyncio.run(expected(engine, cases))
    did = {"answered": 0, "aborted": 0, "refused": 0}
    resident = []
    with serving(engine, max_concurrency=48) as running:

        async def once():
            async with openai.AsyncOpenAI(
                base_url=f"http://127.0.0.1:{running.port}/v1", api_key="none", max_retries=0, timeout=300
            ) as client:
                return await asyncio.gather(*(one_client(client, i, cases, texts, rng) for i in range(CLIENTS)))

        for _ in range(ROUNDS):
            for act in asyncio.run(once()):
                did[act] += 1
            gc.collect()
            resident.append(psutil.Process().memory_info().rss / 2**20)
        assert running.request("GET", "/health")[0] == 200
        assert not running.chat.jobs
        assert running.chat.running == 0
        assert running.metric("satisfice_requests_waiting") == 0
    assert not engine._running
    assert not engine._waiting
    assert not engine._forest.trees
    engine.close()
    print(did, [round(mebibytes) for mebibytes in resident])
    assert min(did.values()) > ROUNDS
    assert resident[-1] - resident[0] < 40, resident
