"""What long rows cost the short ones beside them in the transformers engine.

    python benchmarks/buckets.py
    python benchmarks/buckets.py --model smollm2-words --dtype bfloat16 --rows 64 --tokens 20

Two ratios, measured in this process, several rounds in turns, with the median and the range of all rounds:

1. the time of 15 short rows beside one of 8,000 tokens in a room of 20,000, over their time alone. A tiny model of
   random weights, because the lab's has no room for 8,000 tokens;
2. tokens a second of rows of mixed lengths, in buckets over in one. Prompts are known beforehand, so that it is all
   decoding. Their lengths are 60 and an exponential of mean 250, 1,000 at most, or what the model has room for.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from satisfice.engines import rows
from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine

SHORT, LONG, ROOM = 15, 8_000, 20_000


def tiny() -> TransformersEngine:
    """One layer of random weights that has room for long rows."""
    tokenizer = TransformersEngine.load("lab").tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=2 * LONG,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    return TransformersEngine(
        model, tokenizer, threads=1, max_batch=SHORT + 1, max_batch_tokens=ROOM, max_cached_tokens=0
    )


def ids(rng: random.Random, length: int) -> list[int]:
    """A prompt."""
    return [rng.randrange(8, 200) for _ in range(length)]


async def beside(engine: TransformersEngine, long: bool) -> float:
    """Seconds of short rows, 100 tokens after 100, beside a long row or alone."""
    rng = random.Random(0)
    written = Sampling(temperature=0, top_p=1, max_tokens=100, ignore_eos=True)
    task = None
    if long:
        begun = asyncio.Event()
        endless = Sampling(temperature=0, top_p=1, max_tokens=LONG, ignore_eos=True)
        task = asyncio.create_task(engine.generate(ids(rng, LONG), endless, on_token=lambda _: begun.set()))
        await begun.wait()
    started = time.perf_counter()
    await asyncio.gather(*(engine.generate(ids(rng, 100), written) for _ in range(SHORT)))
    seconds = time.perf_counter() - started
    if task is not None:
        task.cancel()
    return seconds


async def mixed(engine: TransformersEngine, prompts: Sequence[list[int]], count: int) -> float:
    """Processor seconds of `count` tokens after each prompt, all at once."""
    written = Sampling(temperature=0, top_p=1, max_tokens=count, ignore_eos=True)
    started = time.process_time()
    await asyncio.gather(*(engine.generate(prompt, written) for prompt in prompts))
    return time.process_time() - started


def said(what: str, ratios: Sequence[float]) -> str:
    """The median of the ratios and their range."""
    return f"{what}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)"


async def main() -> None:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    engine = tiny()
    await beside(engine, long=True)
    ratios = []
    for _ in range(options.rounds):
        alone = await beside(engine, long=False)
        engine.peak_batch = 0
        ratios.append(await beside(engine, long=True) / alone)
    print(said(f"15 short rows beside one of {LONG:,} tokens, {engine.peak_batch} at once, time over alone", ratios))
    engine.close()

    rng = random.Random(0)
    first = rows.FIRST_LENGTH
    loaded = TransformersEngine.load(options.model, dtype=options.dtype, threads=1, max_batch=options.rows)
    most = min(1_000, loaded.context_length - options.tokens)
    prompts = [ids(rng, min(most, 60 + int(rng.expovariate(1 / 250)))) for _ in range(options.rows)]
    await mixed(loaded, prompts, 1)
    ratios = []
    for _ in range(options.rounds):
        seconds = []
        for length in (first, 1 << 20):
            rows.FIRST_LENGTH = length
            loaded._rows.clear()  # nothing runs between rounds
            seconds.append(await mixed(loaded, prompts, options.tokens))
        ratios.append(seconds[1] / seconds[0])
    print(
        said(f"{options.model}, {options.rows} rows of mixed lengths, tokens a second in buckets over in one", ratios)
    )
    loaded.close()


if __name__ == "__main__":
    asyncio.run(main())
