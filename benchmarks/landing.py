"""What a step costs that watches thinking: processor time of `look`, `apply` and `observe` with a rule for every row.

Beside each rule's time stands its ratio to a decoding step of the lab's model with as many rows and no control, in the
same round: arms and engine take turns, in an order that changes from round to round, so that whatever else the
machine does falls on all of them alike. The rules cannot be met (a stretch of half the window, a mean no text has), so
nothing is forced: what is measured is the work, not what it saves. A cap that is never reached stands beside them,
because every rule is a part of a budget.

The lab's vocabulary is tiny, and the confidence of a token takes a softmax over it: `--vocabulary 151936` makes the
logits as wide as those of a Qwen3, with the lab's model left as it is.

    python benchmarks/landing.py --rounds 15
"""

import argparse
import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from satisfice.engines.base import Sampling
from satisfice.engines.control_batch import ControlBatch, Markers
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention.controls import ConfidenceRule, LoopRule, ThinkingBudget
from satisfice.problems import load_problems

LANDING: dict[str, Any] = {"most": 100_000, "hint": "So ", "hint_at": 99_000, "grace": 10, "grace_end": "sentence"}
SURE = ConfidenceRule(below=-1000.0, window=64)
ARMS: Mapping[str, dict[str, Any]] = {
    "a cap": {"most": 100_000},
    "a soft landing": LANDING,
    "loops, window 256": {"loops": LoopRule(ngram=128, repeats=2, window=256)},
    "loops, window 1024": {"loops": LoopRule(ngram=512, repeats=2, window=1024)},
    "loops, window 4096": {"loops": LoopRule(ngram=2048, repeats=2, window=4096)},
    "confidence of the token": {"confidence": SURE},
    "confidence of a group": {"confidence": ConfidenceRule(below=-1000.0, window=64, top=20)},
    "all of it": LANDING | {"loops": LoopRule(ngram=512, repeats=2, window=1024), "confidence": SURE},
}
CALLS = 50
"""Steps of an arm in one round."""


def step_time(batch: ControlBatch, logits: torch.Tensor, slots: torch.Tensor) -> float:
    """Processor milliseconds of one step."""
    tokens = torch.randint(8, 190, (CALLS, len(slots)))
    begin = time.process_time()
    for chosen in tokens:
        batch.look(logits, slots)
        batch.apply(logits, slots)
        batch.observe(chosen, slots)
    return (time.process_time() - begin) / CALLS * 1000


def decoding_time(engine: TransformersEngine, rows: int) -> float:
    """Processor milliseconds of one decoding step of the engine, with all that it does besides."""
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=CALLS, ignore_eos=True)
    problems = load_problems("lab:train", limit=rows).problems
    prompts = [engine.thinking.render(engine.tokenizer, problem.messages()).ids for problem in problems]

    async def write() -> None:
        await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in prompts))

    begin = time.process_time()
    asyncio.run(write())
    return (time.process_time() - begin) / CALLS * 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=0, help="width of the logits; the lab's unless given")
    given = parser.parse_args()
    torch.set_num_threads(1)
    engine = TransformersEngine.load("lab", device="cpu", max_batch=given.rows)
    width = given.vocabulary or len(engine.tokenizer)
    markers = Markers(engine.thinking, engine.tokenizer, width)
    thinking = engine.thinking.automaton(engine.tokenizer).thinking_state
    slots, logits = torch.arange(given.rows), torch.randn((given.rows, width))
    batches = {}
    for arm, values in ARMS.items():
        control = ThinkingBudget(state=thinking, **values)
        batches[arm] = control.batch(markers, given.rows)
        for slot in range(given.rows):
            batches[arm].admit(slot, control)
    spent: dict[str, list[float]] = {arm: [] for arm in ("decoding", *ARMS)}
    order, draw = list(spent), random.Random(0)
    for turn in range(given.rounds + 1):  # the first one warms up
        draw.shuffle(order)
        for arm in order:
            took = decoding_time(engine, given.rows) if arm == "decoding" else step_time(batches[arm], logits, slots)
            if turn:
                spent[arm].append(took)
    engine.close()
    decoding = np.array(spent.pop("decoding"))
    print(f"{given.rows} rows, {width} tokens in the vocabulary, {given.rounds} rounds of {CALLS} steps")
    print(f"a decoding step of the lab's model: {np.median(decoding):.2f} ms of processor time")
    for arm, taken in spent.items():
        low, middle, high = np.quantile(taken, (0.25, 0.5, 0.75))
        share = np.median(np.array(taken) / decoding)
        print(f"{arm:24} {middle:.3f} ms a step ({low:.3f} to {high:.3f}), {share:.1%} of a decoding step")


if __name__ == "__main__":
    main()
