"""A recipe in TRL's and peft's terms."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from trl import GRPOConfig

from satisfice.training.recipe import BaseRecipe, Recipe, RecipeError

if TYPE_CHECKING:
    from satisfice.training.supervised_recipe import SupervisedRecipe


def accumulation_steps(recipe: Recipe, processes: int) -> int:
    """Passes of `micro_batch` responses that each of so many processes makes before an optimizer step.

    Raises:
        RecipeError: the batch does not divide.
    """
    responses, together = recipe.prompts_per_step * recipe.responses_per_prompt, recipe.micro_batch * processes
    if responses % together:
        raise RecipeError(
            f"{recipe.prompts_per_step} prompts with {recipe.responses_per_prompt} responses are {responses} responses "
            f"a step, which {processes} processes with a micro_batch of {recipe.micro_batch} cannot share evenly: "
            "change micro_batch or prompts_per_step"
        )
    return responses // together


def world_size() -> int:
    """How many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def leave_process_group() -> None:
    """Let go of the other processes, if there are any; after this no training can begin in this process.

    A process that ends without it still has gloo's or NCCL's threads, and now and then aborts, its work done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def usual_settings(recipe: "Recipe | SupervisedRecipe", folder: Path, accumulation: int) -> dict[str, Any]:
    """What TRL is told for every kind of training.

    Args:
        recipe: of either kind.
        folder: for checkpoints.
        accumulation: micro-batches of one step in each process.
    """
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup_steps,
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "seed": recipe.seed,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "gradient_checkpointing": on_gpu,
        "logging_steps": 1,
        "report_to": "none",
    }


def grpo_arguments(recipe: Recipe, folder: Path) -> GRPOConfig:
    """TRL's configuration for a recipe.

    Raises:
        RecipeError: the batch does not divide, or TRL refuses a setting.
    """
    settings: dict[str, Any] = {
        **usual_settings(recipe, folder, accumulation_steps(recipe, world_size())),
        "num_generations": recipe.responses_per_prompt,
        "max_completion_length": recipe.max_tokens,
        "temperature": recipe.temperature,
        "top_p": recipe.top_p,
        "beta": recipe.kl,
        # Lengths decide what is learned here, so a response that was cut off must not vanish from the loss.
        "mask_truncated_completions": False,
    }
    if loss_type := recipe.build_objective().loss_type:
        settings["loss_type"] = loss_type
    if recipe.validation:
        settings |= {
            "eval_strategy": "steps" if recipe.validate_every else "no",
            "eval_steps": recipe.validate_every or None,
            "eval_on_start": True,
            "num_generations_eval": 1,
            "per_device_eval_batch_size": recipe.micro_batch,
        }
    try:
        return GRPOConfig(**{**settings, **recipe.grpo})
    except (ValueError, TypeError) as error:
        raise RecipeError(f"TRL refuses the recipe: {' '.join(str(error).split())}") from error


def check_processes(recipe: BaseRecipe, processes: int) -> None:
    """Some launchers start one process where several were asked for, and say nothing."""
    if recipe.processes not in (None, processes):
        raise RecipeError(
            f"the recipe asks for {recipe.processes} processes and {processes} are there: start it with torchrun "
            f"--nproc-per-node {recipe.processes} (on CPUs accelerate launch starts a single one)"
        )


def lora(recipe: BaseRecipe) -> LoraConfig | None:
    """The recipe's adapter for peft; None where all weights are trained."""
    if recipe.adapter is None:
        return None
    adapter = recipe.adapter
    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        task_type="CAUSAL_LM",
    )
