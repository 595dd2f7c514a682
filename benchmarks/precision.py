"""The embedded engine in float32 against half precision, side by side in one run.

    python benchmarks/precision.py --model smollm2-words

Both sides write the same number of tokens after the same prompts: as many rows at once as --batch says, forced to
--tokens tokens each. They take turns, several rounds; the median of the ratios of a round is printed.
"""

import argparse
import asyncio
import json
import os
import statistics
import time

# Before torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.problems import load_problems


async def write(engine: TransformersEngine, prompts: list[list[int]], tokens: int) -> float:
    """Tokens a second of one batch."""
    started = time.perf_counter()
    await asyncio.gather(
        *(
            engine.generate(prompt, Sampling(max_tokens=tokens, ignore_eos=True, seed=seed))
            for seed, prompt in enumerate(prompts)
        )
    )
    return len(prompts) * tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-words")
    parser.add_argument("--problems", default="words:calibration")
    parser.add_argument("--half", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    engines = [
        TransformersEngine.load(given.model, dtype=dtype, threads=given.threads, max_batch=given.batch)
        for dtype in ("float32", given.half)
    ]
    problems = load_problems(given.problems, limit=given.batch).problems
    speeds: list[list[float]] = []
    for number in range(given.rounds + 1):
        row = []
        for engine in engines:
            prompts = [
                engine.thinking.render(engine.tokenizer, [{"role": "user", "content": each.prompt}]).ids
                for each in problems
            ]
            row.append(asyncio.run(write(engine, prompts, given.tokens)))
        if number:  # the first round warms both up, and computes the prompts, which are remembered then
            speeds.append(row)
    for engine in engines:
        engine.close()
    found = {
        **vars(given),
        "tokens_per_second": [round(statistics.median(side)) for side in zip(*speeds, strict=True)],
        "half_over_float32": round(statistics.median(half / full for full, half in speeds), 2),
        "rounds_measured": [[round(each) for each in row] for row in speeds],
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
