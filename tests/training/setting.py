"""What the tests of training share: a fresh tiny policy, problems, a grader without a mind, a recording objective."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import GRPOConfig

from satisfice.problems import Problem
from satisfice.reinforcement.objective import Condition, Normalisation, Objective, Rollouts
from satisfice.trace import Grade
from satisfice.training.grpo import LengthGRPOTrainer, training_set
from satisfice.training.step import TrainingStep

PROBLEMS = [Problem(f"p{index}", f"Start with {index + 10}. ", str(index), grader="exact") for index in range(12)]


class Graders:
    """Calls an answer right when its text has an even number of characters."""

    def grade_all(self, answers: Sequence[Mapping[str, Any]]) -> list[Grade]:
        return [Grade(correct=given["finished"] and len(given["answer"]) % 2 == 0) for given in answers]

    def close(self) -> None:
        pass


@dataclass
class Recording(Objective):
    """Rewards right answers and remembers what it was shown."""

    name: ClassVar[str] = "recording"
    summary: ClassVar[str] = "for tests"
    paper: ClassVar[str] = ""
    normalisation: ClassVar[Normalisation] = "group-mean"

    seen: list[Rollouts] = field(default_factory=list, repr=False)
    conditions: list[Condition] = field(default_factory=list, repr=False)
    updates: int = 0

    def condition(self, rng: Any) -> Condition:
        return rng.choice(self.conditions) if self.conditions else Condition()

    def update(self, rollouts: Rollouts) -> None:
        self.updates += 1

    def rewards(self, rollouts: Rollouts) -> torch.Tensor:
        self.seen.append(rollouts)
        return rollouts.correct.double() + rollouts.lengths / 1000

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]

    def __str__(self) -> str:
        return self.name


def policy(tiny_config: Mapping[str, Any], seed: int = 0) -> LlamaForCausalLM:
    """Random weights that end a response after about ten tokens, so that lengths differ and there is much to learn."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**tiny_config, "initializer_range": 0.05}))
    with torch.no_grad():
        # All hidden states get a component in common, and the end-of-text token answers to it.
        model.model.embed_tokens.weight[:, 0] += 0.5
        model.lm_head.weight[tiny_config["eos_token_id"], 0] += 0.6
    return model


def arguments(folder: Path, **changes: Any) -> GRPOConfig:
    return GRPOConfig(
        **{
            "output_dir": str(folder),
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 12,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **changes,
        }
    )


def make_trainer(
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    *,
    prompts: int = 2,
    reference: Sequence[float] | None = None,
    eval_dataset: Any = None,
    options: Mapping[str, Any] | None = None,
    **changes: Any,
) -> LengthGRPOTrainer:
    """A trainer on `PROBLEMS`; `changes` go into TRL's configuration."""
    return LengthGRPOTrainer(
        model,
        objective,
        args=arguments(folder, **changes),
        train_dataset=training_set(PROBLEMS, prompts, reference_accuracy=reference),
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        graders=Graders(),
        **(options or {}),
    )


def after(trainer: LengthGRPOTrainer, stage: str) -> list[TrainingStep]:
    """Every step as it comes out of a stage of the trainer, once it trains."""
    steps: list[TrainingStep] = []
    inner = getattr(trainer, stage)

    def recorded(given: Any) -> TrainingStep:
        steps.append(inner(given))
        return steps[-1]

    setattr(trainer, stage, recorded)
    return steps


def leave() -> None:
    """End a script that did its work, without taking the interpreter apart.

    A thread of some library that wants the interpreter while it goes can abort the process, which was seen twice under
    torchrun on a busy machine.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
