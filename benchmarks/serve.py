"""What HTTP costs: the same requests through `satisfice serve` and straight to the engine, side by side in one run.

    python benchmarks/serve.py --requests 32 --clients 16 --rounds 5

The server is a process of its own; the direct side is an engine in this process. Both take turns, whole responses and
streams, on the same questions with the same seeds, so both write the same tokens. The clients read bytes from a socket
and look into the last chunk alone, since a client that builds an object of every chunk costs more than what is measured
(`--client openai` is one that does).

Printed are tokens per second over those of the direct side, and the same by processor time: what the direct side spends
a token, over what the server's process spends. Median over the rounds, smallest, largest. The first number counts the
clients' own work where they share a core with the server; the second does not, and other work on the machine hardly
moves it. Then microseconds of processor time a token, of the direct side, of the server's event loop (its first thread)
and of the server's other threads, which are the engine's.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import psutil

from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import parse_method
from satisfice.lab.arithmetic import chains
from satisfice.problems import Problem

Ask = Callable[[int, str], Awaitable[int]]
"""Send the question with this seed, read the whole response, and return how many tokens it has."""


async def in_turns(ask: Ask, questions: Sequence[str], clients: int) -> tuple[float, int]:
    """Seconds and tokens of all questions, `clients` of them at once."""
    turn = asyncio.Semaphore(clients)

    async def one(seed: int, question: str) -> int:
        async with turn:
            return await ask(seed, question)

    started = time.perf_counter()
    tokens = await asyncio.gather(*(one(seed, question) for seed, question in enumerate(questions)))
    return time.perf_counter() - started, sum(tokens)


def straight(engine: TransformersEngine, method: str) -> Ask:
    """Without a server."""

    async def ask(seed: int, question: str) -> int:
        sampling = replace(engine.default_sampling, seed=seed)
        trace = await parse_method(method).solve(engine, Problem("q", question, ""), sampling)
        return trace.cost.retained_tokens

    return ask


@asynccontextmanager
async def socket_client(url: str, method: str, stream: bool):
    """Through the server, with a client that reads bytes: a connection a request, closed at its end."""
    place = urlsplit(url)

    async def ask(seed: int, question: str) -> int:
        wish = {"model": "lab", "messages": [{"role": "user", "content": question}], "seed": seed, "method": method}
        if stream:
            wish |= {"stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps(wish).encode()
        head = (
            f"POST {place.path}/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(head.encode() + body)
        received = await reader.read()
        writer.close()
        return int(received.rpartition(b'"completion_tokens":')[2].lstrip().partition(b",")[0])

    yield ask


@asynccontextmanager
async def openai_client(url: str, method: str, stream: bool):
    """Through the server, with the client that most use."""
    import openai

    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:

        async def ask(seed: int, question: str) -> int:
            options = {"stream_options": {"include_usage": True}} if stream else {}
            response = await client.chat.completions.create(
                model="lab", messages=[{"role": "user", "content": question}], seed=seed, stream=stream,
                extra_body={"method": method}, **options,
            )  # fmt: skip
            if not stream:
                return response.usage.completion_tokens
            return sum([chunk.usage.completion_tokens async for chunk in response if chunk.usage])

        yield ask


CLIENTS = {"socket": socket_client, "openai": openai_client}


async def through(client, questions: Sequence[str], clients: int) -> tuple[float, int]:
    """Seconds and tokens through the server."""
    async with client as ask:
        return await in_turns(ask, questions, clients)


def processor_seconds(process: psutil.Process) -> tuple[float, float]:
    """Of the server: its event loop's thread, and all others."""
    times = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    loop = times.pop(process.pid)
    return loop, sum(process.cpu_times()[:2]) - loop  # threads that have ended count too


def spread(values: Sequence[float]) -> list[float]:
    """Median, smallest, largest."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", default="plain")
    parser.add_argument("--client", choices=CLIENTS, default="socket")
    options = parser.parse_args()
    problems = chains("calibration", 0)
    questions = [next(problems).prompt for _ in range(options.requests)]
    engine = TransformersEngine.load("lab")
    command = [sys.executable, "-m", "satisfice.cli", "serve", "lab", "--port", "0"]
    environment = {**os.environ, "SATISFICE_API_KEY": ""}
    kinds = ("whole", "stream")
    speed: dict[str, list[float]] = {kind: [] for kind in kinds}
    work: dict[str, list[float]] = {kind: [] for kind in kinds}
    per_token: dict[str, list[float]] = {
        name: [] for name in ("direct", *(f"{k}_{p}" for k in kinds for p in ("event_loop", "engine")))
    }
    direct_speed: list[float] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "http://" in line)
            url = "http" + line.partition("http")[2].strip()
            threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
            process = psutil.Process(server.pid)
            for number in range(-1, options.rounds):
                before = time.process_time()
                seconds, tokens = asyncio.run(in_turns(straight(engine, options.method), questions, options.clients))
                own = time.process_time() - before
                for kind in kinds:
                    earlier = processor_seconds(process)
                    client = CLIENTS[options.client](url, options.method, kind == "stream")
                    took, same = asyncio.run(through(client, questions, options.clients))
                    assert same == tokens, "both sides must write the same tokens"
                    loop, others = (now - then for now, then in zip(processor_seconds(process), earlier, strict=True))
                    if number >= 0:  # the first round warms both up
                        speed[kind].append(seconds / took)
                        work[kind].append(own / (loop + others))
                        per_token[f"{kind}_event_loop"].append(loop / tokens * 1e6)
                        per_token[f"{kind}_engine"].append(others / tokens * 1e6)
                if number >= 0:
                    per_token["direct"].append(own / tokens * 1e6)
                    direct_speed.append(tokens / seconds)
        finally:
            server.terminate()
            server.wait()
    engine.close()
    found = {
        **vars(options),
        "tokens_a_round": tokens,
        "direct_tokens_per_second": round(statistics.median(direct_speed)),
        **{f"{kind}_speed_over_direct": spread(values) for kind, values in speed.items()},
        **{f"{kind}_tokens_a_processor_second_over_direct": spread(values) for kind, values in work.items()},
        "microseconds_a_token": {name: spread(values) for name, values in per_token.items()},
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
