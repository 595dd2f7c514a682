"""What a step of the plugin costs on vLLM's runner V1, without vLLM: `apply` on the stand-ins of its tests.

    python benchmarks/plugin.py

Two processors take turns in one process on the same logits and tokens: "host" is told of its tokens on the CPU, where
runner V1 has them, and "device" by tensors, as runner V2 does and V1 did before `ControlBatch.follow`. Every row writes
ordinary tokens while it thinks. Printed are microseconds of processor time a step, median over the rounds, and the
median, smallest and largest ratio of a round.

Arms: "temperature" has a temperature for every row, "cap" a cap that is far away,
"all" every key, "mixed" these in turns, with rows that ask for nothing.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import test_vllm_plugin as stand_ins

sys.modules.update(stand_ins.vllm_of(v2=False))
processor_module = importlib.import_module("satisfice.vllm_plugin.processor")

ALL = {
    "thinking_temperature": 0.9,
    "thinking_bias": 0.1,
    "suppress_reflection": 1,
    "max_thinking_tokens": 100_000,
    "soft_thinking_tokens": 99_999,
    "min_thinking_endings": 1,
}
TEMPERATURE, CAP = {"thinking_temperature": 0.9}, {"max_thinking_tokens": 100_000}
ARMS = {"temperature": [TEMPERATURE], "cap": [CAP], "all": [ALL], "mixed": [TEMPERATURE, CAP, {}, ALL]}


def told_on_the_device(table) -> None:
    """Have a table observe by tensors what it is told on the host."""

    def follow(tokens: np.ndarray, slots: np.ndarray) -> None:
        table.observe(torch.tensor(tokens.tolist()), torch.from_numpy(slots))

    table.follow = follow


class Side:
    """A processor and its requests, all thinking."""

    def __init__(self, wishes: list[dict], batch: int, vocabulary: int, on_device: bool) -> None:
        settings = stand_ins.config(scheduler_config=SimpleNamespace(async_scheduling=False, max_num_seqs=batch))
        settings.model_config.get_vocab_size = lambda: vocabulary
        self.processor = processor_module.ThinkingControls(settings, "cpu", False)
        if on_device:
            told_on_the_device(self.processor._table)
        self.outputs: list[list[int]] = [[] for _ in range(batch)]
        added = []
        for row, output in enumerate(self.outputs):
            asked = stand_ins.parameters(**wishes[row % len(wishes)])
            asked.max_tokens = 200_000
            added.append((row, asked, stand_ins.PROMPT, output))
        self.processor.update_state(stand_ins.update(added=added))

    def step(self, logits: torch.Tensor, tokens: list[int]) -> float:
        """Seconds of processor time of one step, after these tokens."""
        for output, token in zip(self.outputs, tokens, strict=True):
            output.append(token)
        begin = time.process_time()
        self.processor.apply(logits)
        return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[len(stand_ins.LAB), 151_936])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    ordinary = np.array([token for digit in "0123456789" for token in stand_ins.ids(digit)])
    for vocabulary in options.vocabularies:
        for batch in options.batches:
            logits = torch.randn((batch, vocabulary), generator=generator)
            for arm, wishes in ARMS.items():
                sides = {name: Side(wishes, batch, vocabulary, name == "device") for name in ("device", "host")}
                seconds: dict[str, list[float]] = {name: [] for name in sides}
                for number in range(-1, options.rounds):
                    tokens = rng.choice(ordinary, (options.steps, batch)).tolist()
                    for name, side in sides.items():
                        spent = sum(side.step(logits, row) for row in tokens)
                        if number >= 0:  # the first round warms up
                            seconds[name].append(spent / options.steps * 1e6)
                ratios = [host / device for device, host in zip(*seconds.values(), strict=True)]
                found = {
                    "vocabulary": vocabulary,
                    "batch": batch,
                    "arm": arm,
                    **{name: round(statistics.median(values)) for name, values in seconds.items()},
                    "host_over_device": [round(f(ratios), 2) for f in (statistics.median, min, max)],
                }
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
