"""What LengthGRPOTrainer costs over TRL's GRPOTrainer: time of a step, side by side in one run.

    python benchmarks/training.py --steps 6 --rounds 3

Both train the lab's model on the same prompts with a learning rate of 0 and the same seed, so both generate the same
tokens and compute the same loss; what differs is who grades, gathers and computes advantages. Rounds alternate, the
first step of each is not counted, and the ratio of each round is printed: single ratios are noisy.
"""

import argparse
import tempfile
import time
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from satisfice.lab import WEIGHTS
from satisfice.problems import load_problems
from satisfice.problems.graders import grade_answer
from satisfice.reinforcement.objectives.dr_grpo import DrGRPO
from satisfice.training.grpo import LengthGRPOTrainer, training_set


class Clock(TrainerCallback):
    """Wall seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def correct(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """What a user of plain TRL writes: the text after the marker, graded."""
    texts = [completion[0]["content"].rpartition("</think>")[2] for completion in completions]
    return [float(grade_answer("math", text, gold).correct) for text, gold in zip(texts, answer, strict=True)]


def step_seconds(ours: bool, arguments: argparse.Namespace) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    problems = load_problems("lab:train", limit=16 * arguments.steps).problems
    dataset = training_set(problems, 16 * arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, max_steps=arguments.steps, per_device_train_batch_size=128, num_generations=8,
            max_completion_length=arguments.max_tokens, learning_rate=0.0, temperature=1.0, seed=arguments.seed,
            use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False, report_to="none",
            save_strategy="no", disable_tqdm=True, scale_rewards="none",
        )  # fmt: skip
        if ours:
            trainer: GRPOTrainer = LengthGRPOTrainer(
                model, DrGRPO(), args=config, train_dataset=dataset, processing_class=tokenizer, say=lambda _: None
            )
        else:
            trainer = GRPOTrainer(model, correct, args=config, train_dataset=dataset, processing_class=tokenizer)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    return clock.seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ratios = []
    for number in range(arguments.rounds):
        order = (False, True) if number % 2 == 0 else (True, False)
        seconds = {ours: step_seconds(ours, arguments) for ours in order}
        ratios.append(median(seconds[True]) / median(seconds[False]))
        print(
            f"round {number}: TRL {median(seconds[False]):.2f} s a step, ours {median(seconds[True]):.2f} s, "
            f"ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"median ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
