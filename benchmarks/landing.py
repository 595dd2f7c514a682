"""What it costs to end thinking by what is seen of it: tokens a processor second of the transformers engine with a
rule for every row, as ratios to the same engine without any control, within one run.

The arms take turns in an order that changes from round to round, so that whatever else the machine does falls on all of
them alike. The rules cannot be met (a stretch of half the window, a mean that no text has), and every response is as
long as the others, so that all arms write the same number of tokens: what is measured is the work of the rule, not
what it saves. A cap that is never reached stands beside them, as the rules are parts of a budget.

    python benchmarks/landing.py --rounds 10
"""

import argparse
import asyncio
import random
import time
from collections.abc import Mapping

import numpy as np

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention.controls import ConfidenceRule, LoopRule, ThinkingBudget
from satisfice.problems import load_problems

LANDING = {"most": 100_000, "hint": "So ", "hint_at": 99_000, "grace": 10, "grace_end": "sentence"}
SURE = ConfidenceRule(below=-1000.0, window=64)
ARMS: Mapping[str, Mapping[str, object] | None] = {
    "nothing": None,
    "a cap": {"most": 100_000},
    "a soft landing": LANDING,
    "loops, window 256": {"loops": LoopRule(ngram=128, repeats=2, window=256)},
    "loops, window 1024": {"loops": LoopRule(ngram=512, repeats=2, window=1024)},
    "loops, window 4096": {"loops": LoopRule(ngram=2048, repeats=2, window=4096)},
    "confidence of the token": {"confidence": SURE},
    "confidence of a group": {"confidence": ConfidenceRule(below=-1000.0, window=64, top=20)},
    "all of it": LANDING | {"loops": LoopRule(ngram=512, repeats=2, window=1024), "confidence": SURE},
}


async def write(engine: TransformersEngine, arm: str, rows: int, length: int) -> float:
    """Processor seconds in which an arm writes `rows` responses of `length` tokens."""
    values = ARMS[arm]
    problems = load_problems("lab:train", limit=rows).problems
    prompts = [engine.thinking.render(engine.tokenizer, problem.messages()) for problem in problems]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=length, ignore_eos=True)
    begin = time.process_time()
    await asyncio.gather(
        *(
            engine.generate(
                prompt.ids,
                sampling,
                control=None if values is None else ThinkingBudget(state=prompt.state, **values),  # type: ignore[arg-type]
            )
            for prompt in prompts
        )
    )
    return time.process_time() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    given = parser.parse_args()
    engine = TransformersEngine.load(given.model, max_batch=given.rows)
    spent: dict[str, list[float]] = {arm: [] for arm in ARMS}
    order, draw = list(ARMS), random.Random(0)
    for arm in order:
        asyncio.run(write(engine, arm, given.rows, given.length))  # to warm up
    for _ in range(given.rounds):
        draw.shuffle(order)
        for arm in order:
            spent[arm].append(asyncio.run(write(engine, arm, given.rows, given.length)))
    engine.close()
    plain = np.array(spent["nothing"])
    print(f"{given.rows} rows, {given.length} tokens each, {given.rounds} rounds")
    print(f"nothing: {given.rows * given.length / np.median(plain):.0f} tokens a processor second")
    for arm, seconds in spent.items():
        low, middle, high = np.quantile(plain / np.array(seconds), (0.25, 0.5, 0.75))
        more = (np.median(seconds) - np.median(plain)) / given.length * 1000
        print(f"{arm:24} ratio {middle:.2f} ({low:.2f} to {high:.2f}), {more:+.2f} ms a step")


if __name__ == "__main__":
    main()
