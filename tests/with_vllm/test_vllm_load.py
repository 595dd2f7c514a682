"""The server under load: 64 clients at once, each with wishes of its own, some of which make no sense and some of
which are given up half-way. Nobody sees anybody else's tokens, and the server's memory stays where it is."""

import asyncio
import json
import random
import urllib.request
from collections import Counter

import psutil
import pytest
from with_vllm.server import QUESTIONS

httpx = pytest.importorskip("httpx")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

CLIENTS = 64
WORDS = ["Wait", "Hmm", "Maybe", "Question", "Result", "Therefore", "hundred", "exactly"]
"""Each client of a kind is forced to write one of these, so that a token in a wrong row shows."""


def memory(server):
    """Resident bytes of the server and the processes that it started."""
    root = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in [root, *root.children(recursive=True)])


def interruptions(server):
    """How often a response had to give way to another one, and was computed again."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_preemptions_total"))


async def ask(client, server, **body):
    settings = {"model": "lab", "max_tokens": 40, "temperature": 0, "skip_special_tokens": False}
    return await client.post(f"{server.url}/v1/chat/completions", json=settings | body)


async def one_request(client, server, chance):
    """One request of a random kind, and whether its answer is the one that was asked for."""
    messages = [{"role": "user", "content": chance.choice(QUESTIONS)}]
    word, most = chance.choice(WORDS), chance.randrange(0, 12)
    kind = chance.choice(["cue", "ending", "close", "never", "none", "bad", "typo", "abort", "samples", "answer"])
    if kind == "abort":
        body = {"model": "lab", "messages": messages, "stream": True, "max_tokens": 300, "ignore_eos": True}
        body["vllm_xargs"] = {"thinking_bias": -100, "max_thinking_tokens": 250, "answer_cue": word}
        async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                if chance.random() < 0.3:
                    break
        return kind, True
    xargs = {
        "cue": {"thinking_bias": -100, "max_thinking_tokens": most, "answer_cue": word},
        "ending": {"thinking_bias": 100, "min_thinking_endings": 2, "wait_word": word},
        "close": {"thinking_bias": 100},
        "never": {"thinking_bias": -100, "suppress_reflection": True},
        "none": {},
        "bad": {"thinking_temperature": chance.choice([0, -1, "x", [1]])},
        "typo": {"max_thinking_token": 3},
        "samples": {"thinking_bias": -100, "max_thinking_tokens": most, "answer_cue": word},
        "answer": {"thinking_bias": -100, "answer_tokens": 25, "answer_cue": word},
    }[kind]
    more = {"n": 3, "temperature": 1.0} if kind == "samples" else {}
    answer = await ask(client, server, messages=messages, vllm_xargs=xargs, **more)
    if kind in ("bad", "typo"):
        return kind, answer.status_code == 400 and "thinking" in answer.json()["error"]["message"]
    if answer.status_code != 200:
        return kind, False
    texts = [choice["message"]["content"] for choice in answer.json()["choices"]]
    forced = f"</think>\n\n{word}"
    good = {
        "cue": lambda text: forced in text,
        "ending": lambda text: text.startswith(f"{word}{word}</think>"),
        "close": lambda text: text.startswith("</think>"),
        "never": lambda text: "</think>" not in text and "Wait" not in text and "Hmm" not in text,
        "none": lambda text: text == PLAIN[messages[0]["content"]],
        "samples": lambda text: forced in text,
        "answer": lambda text: forced in text,
    }[kind]
    return kind, all(map(good, texts))


PLAIN: dict[str, str] = {}


async def load(server, requests, seed):
    """Counts of right and wrong answers by kind, over `requests` requests of each of the clients."""
    counts: dict[tuple[str, bool], int] = {}
    limits = httpx.Limits(max_connections=CLIENTS)

    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def one_client(number):
            chance = random.Random(seed * 1000 + number)
            for _ in range(requests):
                outcome = await one_request(client, server, chance)
                counts[outcome] = counts.get(outcome, 0) + 1

        await asyncio.gather(*(one_client(number) for number in range(CLIENTS)))
    return counts


def test_64_clients_get_what_each_of_them_asked_for(server):
    for question in QUESTIONS:
        PLAIN[question] = server.text(question, max_tokens=40)
    asyncio.run(load(server, 2, seed=0))  # whatever is made on first use is there now
    counts: Counter[tuple[str, bool]] = Counter()
    resident = [memory(server)]
    for number in range(1, 5):
        counts += Counter(asyncio.run(load(server, 3, seed=number)))
        resident.append(memory(server))
    print(json.dumps({f"{kind} {'right' if right else 'wrong'}": n for (kind, right), n in sorted(counts.items())}))
    print(f"resident memory in MiB, before and after each round: {[n // 2**20 for n in resident]}")
    print(f"interruptions by lack of memory for keys and values: {interruptions(server)}")
    assert counts.total() == 4 * 3 * CLIENTS
    assert [outcome for outcome in counts if not outcome[1]] == []
    assert resident[-1] - resident[1] < 20 * 2**20
    assert interruptions(server) > 0
    assert server.text(vllm_xargs={"thinking_bias": 100}).startswith("</think>")  # and it is still alive
    assert server.text(max_tokens=40) == PLAIN[QUESTIONS[0]]
