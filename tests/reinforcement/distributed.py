"""Run by `test_two_processes.py`, alone and under torchrun: one step on the same responses, however divided."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from reinforcement.training import make_trainer, policy
from transformers import AutoTokenizer

from satisfice.lab import WEIGHTS
from satisfice.reinforcement import objective_from
from satisfice.reinforcement.trainer import LengthGRPOTrainer

torch.set_num_threads(1)
GROUP = 4


def replay(trainer: LengthGRPOTrainer) -> None:
    """Let row `r` of the whole batch have the same response however the batch is divided."""

    def generate(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        first = trainer.accelerator.process_index * len(prompt_ids)
        trainer._direct = [False] * len(prompt_ids)
        close, end = trainer.processing_class.convert_tokens_to_ids(["</think>", "<|end|>"])
        responses = []
        for row in range(first, first + len(prompt_ids)):
            thinking, answer = 2 + (5 * row) % 7, 1 + row % 2
            responses.append([*[20 + row] * thinking, close, *[30] * answer, *([end] if row % 5 else [])])
        return responses, None

    trainer._generate_single_turn = generate  # type: ignore[method-assign]


def main(folder: Path, name: str, rows: int, config: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    trainer = make_trainer(
        folder / "out", policy(config), tokenizer, objective_from(name, {}), prompts=3, num_generations=GROUP,
        per_device_train_batch_size=rows, max_completion_length=12,
    )  # fmt: skip
    replay(trainer)
    seen: dict[str, Any] = {"world": trainer.accelerator.num_processes}
    inner = trainer._calculate_rewards

    def calculate(*args: Any) -> Any:
        rewards = inner(*args)
        seen["rewards"] = rewards.tolist()
        seen["advantages"] = trainer._advantages.tolist()
        seen["local"] = trainer._local(trainer._advantages).tolist()
        return rewards

    trainer._calculate_rewards = calculate  # type: ignore[method-assign]
    trainer.train()
    (folder / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
