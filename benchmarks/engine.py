"""The embedded engine against Transformers' own `generate`, side by side in one run.

    python benchmarks/engine.py --model lab
    python benchmarks/engine.py --model smollm2 --requests 128 --batch 16 --mean 40

Four questions, each answered with a ratio measured in this process:

1. tokens per second on requests of heavy-tailed lengths, against static batches of the same size;
2. what a control on every request costs, as a share of tokens per second;
3. how many prompt positions eight samples of one prompt compute;
4. how many prompt positions a probe after k thinking tokens computes.

Lengths are drawn from a Pareto distribution and forced (no end-of-text stop), so both sides write the same number
of tokens. The two sides take turns, several rounds; the median of the per-round ratios is printed.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence

import torch

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention.controls import EndScaling
from satisfice.lab.arithmetic import chains
from satisfice.thinking import ThinkingFormat


def workload(engine: TransformersEngine, requests: int, mean: float, longest: int) -> list[tuple[list[int], int]]:
    """Prompts and forced response lengths, the same for every run."""
    rng = random.Random(0)
    questions = chains("calibration", 0)
    jobs = []
    for _ in range(requests):
        messages = [{"role": "user", "content": next(questions).prompt}]
        # Pareto with shape 1.3: most responses are short, a few are many times the mean.
        length = min(longest, max(4, int(mean * 0.3 * rng.paretovariate(1.3))))
        jobs.append((engine.thinking.render(engine.tokenizer, messages).ids, length))
    return jobs


def static(engine: TransformersEngine, jobs: Sequence[tuple[list[int], int]], batch: int) -> float:
    """Seconds of `model.generate` over static batches, each as long as its longest request."""
    pad = engine.tokenizer.pad_token_id or 0
    started = time.perf_counter()
    for first in range(0, len(jobs), batch):
        part = jobs[first : first + batch]
        width = max(len(prompt) for prompt, _ in part)
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt, _ in part])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in part])
        longest = max(length for _, length in part)
        with torch.inference_mode():
            engine.model.generate(
                ids, attention_mask=mask, max_new_tokens=longest, min_new_tokens=longest, do_sample=True,
                temperature=1.0, top_p=1.0, top_k=0, pad_token_id=pad,
            )  # fmt: skip
    return time.perf_counter() - started


async def in_flight(
    engine: TransformersEngine, jobs: Sequence[tuple[list[int], int]], control: EndScaling | None = None
) -> float:
    """Seconds of the embedded engine over the same requests."""
    started = time.perf_counter()
    await asyncio.gather(
        *(
            engine.generate(
                prompt,
                Sampling(temperature=1.0, top_p=1.0, max_tokens=length, ignore_eos=True, seed=index),
                control=control,
            )
            for index, (prompt, length) in enumerate(jobs)
        )
    )
    return time.perf_counter() - started


async def measure(options: argparse.Namespace) -> dict[str, object]:
    thinking = None if options.model == "lab" else ThinkingFormat.custom("<think>", "</think>")
    # A store of past prefixes would save the second round its prompts, which the other side has to compute.
    engine = TransformersEngine.load(
        options.model, thinking=thinking, threads=options.threads, max_batch=options.batch, max_cached_tokens=0
    )
    torch.set_num_threads(options.threads)
    jobs = workload(engine, options.requests, options.mean, options.longest)
    tokens = sum(length for _, length in jobs)
    await in_flight(engine, jobs[: options.batch])  # warm up
    static(engine, jobs[: options.batch], options.batch)
    ratios, overheads, speeds = [], [], []
    for _ in range(options.rounds):
        theirs = static(engine, jobs, options.batch)
        ours = await in_flight(engine, jobs)
        ratios.append(theirs / ours)
        speeds.append(tokens / ours)
    for round_number in range(options.rounds * 2):
        sides = {}
        for name in ("plain", "control") if round_number % 2 else ("control", "plain"):
            sides[name] = await in_flight(engine, jobs, EndScaling(gain=0.1, state=15) if name == "control" else None)
        overheads.append(sides["control"] / sides["plain"] - 1)
    engine.close()

    reuse = TransformersEngine.load(options.model, thinking=thinking, threads=options.threads, max_batch=options.batch)
    prompt = jobs[0][0]
    samples = await asyncio.gather(
        *(reuse.generate(prompt, Sampling(max_tokens=24, ignore_eos=True, seed=seed)) for seed in range(8))
    )
    thought = samples[0].ids
    probe_ids = reuse.tokenizer("So 12. Yes.", add_special_tokens=False)["input_ids"]
    probe = await reuse.generate([*prompt, *thought, *probe_ids], Sampling(max_tokens=2, ignore_eos=True))
    reuse.close()
    return {
        "model": options.model,
        "requests": options.requests,
        "batch": options.batch,
        "threads": options.threads,
        "tokens": tokens,
        "longest_over_mean": round(max(length for _, length in jobs) * len(jobs) / tokens, 1),
        "tokens_per_second": round(statistics.median(speeds)),
        "speed_over_static_generate": round(statistics.median(ratios), 2),
        "speed_over_static_generate_rounds": [round(ratio, 2) for ratio in ratios],
        "control_overhead_percent": round(100 * statistics.median(overheads), 1),
        "control_overhead_percent_rounds": [round(100 * overhead, 1) for overhead in overheads],
        "prompt_tokens": len(prompt),
        "eight_samples_prefilled_tokens": sum(sample.usage.prefilled for sample in samples),
        "probe_own_tokens": len(probe_ids),
        "probe_prefilled_tokens": probe.usage.prefilled,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mean", type=float, default=80)
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
