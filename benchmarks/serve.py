"""What HTTP costs: the same requests through `satisfice serve` and straight to the engine, side by side in one run.

    python benchmarks/serve.py --requests 32 --clients 16 --rounds 5

The server is a process of its own, asked by the `openai` client; the direct side is an engine in this process. Both
take turns, whole responses and streams, on the same questions with the same seeds, so both write the same tokens.
Printed are tokens per second, and the processor time of the server alone, over those of the direct side: median over
the rounds, smallest, largest. The speed counts the clients' own work where they share a core with the server.
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
from collections.abc import Sequence
from dataclasses import replace

import openai
import psutil

from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import parse_method
from satisfice.lab.arithmetic import chains
from satisfice.problems import Problem


async def direct(engine: TransformersEngine, method: str, questions: Sequence[str], clients: int) -> tuple[float, int]:
    """Seconds and retained tokens without a server."""
    turn = asyncio.Semaphore(clients)

    async def one(seed: int, question: str) -> int:
        async with turn:
            sampling = replace(engine.default_sampling, seed=seed)
            trace = await parse_method(method).solve(engine, Problem("q", question, ""), sampling)
            return trace.cost.retained_tokens

    started = time.perf_counter()
    tokens = await asyncio.gather(*(one(seed, question) for seed, question in enumerate(questions)))
    return time.perf_counter() - started, sum(tokens)


async def served(url: str, method: str, questions: Sequence[str], clients: int, stream: bool) -> tuple[float, int]:
    """The same through the server."""
    turn = asyncio.Semaphore(clients)

    async def one(client: openai.AsyncOpenAI, seed: int, question: str) -> int:
        async with turn:
            options = {"stream_options": {"include_usage": True}} if stream else {}
            response = await client.chat.completions.create(
                model="lab", messages=[{"role": "user", "content": question}], seed=seed, stream=stream,
                extra_body={"method": method}, **options,
            )  # fmt: skip
            if not stream:
                return response.usage.completion_tokens
            return sum([chunk.usage.completion_tokens async for chunk in response if chunk.usage])

    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:
        await one(client, 0, questions[0])  # opens the connection
        started = time.perf_counter()
        tokens = await asyncio.gather(*(one(client, seed, question) for seed, question in enumerate(questions)))
        return time.perf_counter() - started, sum(tokens)


def spread(values: Sequence[float]) -> list[float]:
    """Median, smallest, largest."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", default="plain")
    options = parser.parse_args()
    problems = chains("calibration", 0)
    questions = [next(problems).prompt for _ in range(options.requests)]
    engine = TransformersEngine.load("lab")
    command = [sys.executable, "-m", "satisfice.cli", "serve", "lab", "--port", "0"]
    environment = {**os.environ, "SATISFICE_API_KEY": ""}
    speed: dict[str, list[float]] = {"whole": [], "stream": []}
    work: dict[str, list[float]] = {"whole": [], "stream": []}
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
                seconds, tokens = asyncio.run(direct(engine, options.method, questions, options.clients))
                own = time.process_time() - before
                for kind in speed:
                    before = sum(process.cpu_times()[:2])
                    stream = kind == "stream"
                    took, same = asyncio.run(served(url, options.method, questions, options.clients, stream))
                    assert same == tokens, "both sides must write the same tokens"
                    if number >= 0:  # the first round warms both up
                        speed[kind].append(seconds / took)
                        work[kind].append((sum(process.cpu_times()[:2]) - before) / own)
                if number >= 0:
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
        **{f"{kind}_server_processor_time_over_direct": spread(values) for kind, values in work.items()},
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
