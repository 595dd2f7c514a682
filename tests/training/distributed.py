"""Run by `test_two_processes.py`, alone and under torchrun: one step on the same responses, however divided."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from training.setting import after, leave, make_trainer, policy
from transformers import AutoTokenizer

from satisfice.lab import WEIGHTS
from satisfice.reinforcement import objective_from
from satisfice.training.arguments import leave_process_group
from satisfice.training.grpo import LengthGRPOTrainer
from satisfice.training.step import TrainingStep, first_row, local_rows

torch.set_num_threads(1)
GROUP = 4


def replay(trainer: LengthGRPOTrainer) -> None:
    """Let row `r` of the whole batch have the same response however the batch is divided."""

    def written(step: TrainingStep) -> TrainingStep:
        rows = len(step.rows)
        close, end = trainer.processing_class.convert_tokens_to_ids(["</think>", "<|end|>"])
        responses = []
        for row in range(first_row(rows), first_row(rows) + rows):
            thinking, answer = 2 + (5 * row) % 7, 1 + row % 2
            responses.append([*[20 + row] * thinking, close, *[30] * answer, *([end] if row % 5 else [])])
        return replace(step, responses=responses, beside=(None,))

    trainer._written = written  # type: ignore[method-assign]


def main(folder: Path, name: str, rows: int, config: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    trainer = make_trainer(
        folder / "out", policy(config), tokenizer, objective_from(name, {}), prompts=3, num_generations=GROUP,
        per_device_train_batch_size=rows, max_completion_length=12,
    )  # fmt: skip
    replay(trainer)
    seen: dict[str, Any] = {"world": trainer.accelerator.num_processes}
    steps = after(trainer, "_rewarded")
    trainer.train()
    (step,) = steps
    seen["rewards"] = step.reward_columns.tolist()
    seen["advantages"] = step.advantages.flatten(0, 1).tolist()
    seen["local"] = local_rows(step.advantages.flatten(0, 1)).tolist()
    (folder / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(seen))
    leave_process_group()
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
