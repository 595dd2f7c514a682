"""Carry out a recipe: `satisfice train`.

The result is an ordinary Hugging Face directory (or adapter) with the tokenizer, how the model marks its thinking and
the length instructions that it obeys (`satisfice.json`), a model card made from the run (`README.md`) and every logged
number (`log.jsonl`). The same command goes on from the newest complete checkpoint after an interruption; a recipe,
problems or a model that are not those of the checkpoint are refused.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)

from satisfice.engines.checkpoint import digest_of
from satisfice.levels import write_levels
from satisfice.problems import GraderPool
from satisfice.problems.problem import usual_instruction
from satisfice.problems.sources import ProblemSet
from satisfice.reinforcement.objective import Need, Objective
from satisfice.thinking import ThinkingFormat
from satisfice.training.arguments import accumulation_steps, check_processes, grpo_arguments, lora, world_size
from satisfice.training.card import model_card
from satisfice.training.checkpoints import STATE_FILE, check_decided_by, checkpoints, newest_checkpoint
from satisfice.training.grpo import LengthGRPOTrainer, training_set
from satisfice.training.loading import (
    check_model,
    check_room,
    has_vllm,
    held_out_problems,
    load_model,
    on_hub,
    problems_for,
    thinking_of,
    training_problems,
    wants_vllm,
)
from satisfice.training.recipe import Recipe, RecipeError
from satisfice.training.reference import reference_accuracy
from satisfice.training.rehearsal import small_recipe, tiny_model

CHECKPOINTS = "checkpoints"
"""Inside the directory of the trained model, until it is finished."""
LOG = "log.jsonl"
"""Every logged number; written last of all, so it marks a training as finished."""
HARMLESS = ("architecture", "processes", "save_every", "threads")
"""Keys of a recipe that may change when a training goes on."""
HARMLESS_SETTINGS = ("log", "report_to", "run_name", "save_", "dataloader_", "num_completions_to_print", "disable_tqdm")
"""Beginnings of the settings of TRL that may."""

Show = Callable[[int, int, dict[str, float]], None]
"""Called with the step, the last step and what was logged."""


def refuse_finished(out: Path) -> None:
    """Refuse a directory whose training has come to its end.

    Raises:
        RecipeError: it has.
    """
    if (out / LOG).exists():
        raise RecipeError(f"{out} holds a finished training; give another directory")


def train(
    recipe: Recipe,
    out: Path,
    *,
    show: Show | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train as `recipe` says, into `out`.

    Args:
        recipe: what to do.
        out: directory of the trained model; its `checkpoints` are removed when it is finished.
        show: hears of every logged step.
        say: hears of what goes wrong without failing.

    Returns:
        `out`.

    Raises:
        RecipeError, ObjectiveError: the recipe cannot be carried out here, or `out` holds another training.
    """
    refuse_finished(out)
    if wants_vllm(recipe) and not has_vllm():
        raise RecipeError("grpo.use_vllm is true and vLLM is not installed here: install it, or set it to false")
    problems = training_problems(recipe)
    held_out = held_out_problems(recipe, problems)
    # The split that was taken stands in the checkpoints, in the finished recipe and on the card.
    recipe = recipe.model_copy(
        update={"split": problems.split, "validation_split": held_out.split if held_out else None}
    )
    model, tokenizer = load_model(recipe)
    check_room(recipe, model.config)
    _carry_out(recipe, out, problems, held_out, model, tokenizer, thinking_of(recipe, tokenizer), show, say)
    return out


def dry_run(recipe: Recipe, out: Path, *, show: Show | None = None) -> list[str]:
    """Check what can be checked without the network, and take two steps with a random tiny model.

    Problems, splits and a model directory that are on this machine are read as the training would read them. The two
    steps go through the whole training under the recipe's objective and settings, on the lab's problems.

    Args:
        recipe: what is to be done.
        out: where the training would go; used for scratch files in a folder beside it.
        show: hears of every logged step.

    Returns:
        what was not checked, each in half a sentence.

    Raises:
        RecipeError, ObjectiveError, ProblemsError: the training would fail.
    """
    refuse_finished(out)
    unchecked: list[str] = []
    problems = None
    if on_hub(recipe.problems):
        unchecked.append(f"the data set {recipe.problems} and its split {recipe.split or 'train'} (on the Hub)")
    else:
        problems = training_problems(recipe)
    if recipe.validation and on_hub(recipe.validation):
        unchecked.append(
            f"the data set {recipe.validation} and its split {recipe.validation_split or 'validation'} (on the Hub)"
        )
    elif recipe.validation and problems:
        held_out_problems(recipe, problems)
    elif recipe.validation:
        problems_for(recipe, "validate")
    unchecked += check_model(recipe)
    if wants_vllm(recipe) and not has_vllm():
        unchecked.append("whether vLLM is there where it will be trained (here it is not installed)")
    processes = recipe.processes or world_size()
    accumulation_steps(recipe, processes)
    if processes != world_size():
        unchecked.append(f"the start of {processes} processes (here there are {world_size()})")
    if sharded := [key for key in ("deepspeed", "fsdp") if recipe.grpo.get(key)]:
        unchecked.append(f"how weights are sharded (grpo.{sharded[0]})")
    scratch = out.parent / f".{out.name}.dry-run"
    small = small_recipe(recipe)
    model, tokenizer = tiny_model(recipe, scratch / "tiny", room=small.max_tokens)
    try:
        chosen = training_problems(small)
        thinking = thinking_of(small, tokenizer)
        # A random model gives every reason for alarm.
        _carry_out(
            small, scratch, chosen, held_out_problems(small, chosen), model, tokenizer, thinking, show, lambda _: None
        )
    finally:
        if int(os.environ.get("RANK", 0)) == 0:
            shutil.rmtree(scratch, ignore_errors=True)
    return unchecked


def _carry_out(
    recipe: Recipe,
    out: Path,
    problems: ProblemSet,
    held_out: ProblemSet | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    thinking: ThinkingFormat,
    show: Show | None,
    say: Callable[[str], None],
) -> None:
    """Train with everything loaded."""
    set_seed(recipe.seed)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    objective = recipe.build_objective()
    arguments = grpo_arguments(recipe, out / CHECKPOINTS)
    instruction = usual_instruction(recipe.problems) if recipe.instruction is None else recipe.instruction
    decided_by = {
        "recipe": _deciding(recipe),
        "instruction": instruction,
        "problems": problems.digest[:16],
        "validation": held_out.digest[:16] if held_out else None,
        "model": digest_of(model),
        "thinking": asdict(thinking),
    }
    last = newest_checkpoint(out / CHECKPOINTS)
    if last:
        # Before anything expensive is done; the trainer looks again.
        check_decided_by(last, decided_by)
    reference = None
    if Need.REFERENCE in objective.needs:
        reference = reference_accuracy(recipe, problems.problems, instruction, model, tokenizer, thinking, out)
    prompts = recipe.steps * recipe.prompts_per_step
    validation = None
    if held_out:
        validation = training_set(held_out.problems, len(held_out.problems), instruction=instruction)
    with GraderPool() as graders:
        trainer = LengthGRPOTrainer(
            model,
            objective,
            args=arguments,
            train_dataset=training_set(
                problems.problems, prompts, instruction=instruction, reference_accuracy=reference
            ),
            eval_dataset=validation,
            processing_class=tokenizer,
            thinking=thinking,
            graders=graders,
            in_flight=recipe.in_flight,
            explore=recipe.explore,
            decided_by=decided_by,
            say=say,
            peft_config=lora(recipe),
        )
        check_processes(recipe, trainer.accelerator.num_processes)
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        trainer.add_callback(ShowLogs(show))
        if trainer.accelerator.is_main_process:
            for checkpoint in checkpoints(out / CHECKPOINTS):
                if not (checkpoint / STATE_FILE).is_file():
                    # A kill in the middle of it; TRL would count it among those it keeps.
                    shutil.rmtree(checkpoint)
        trainer.accelerator.wait_for_everyone()
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    _save(trainer, recipe, objective, tokenizer, thinking, out)


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides the weights, as plain data."""
    data = recipe.model_dump(mode="json")
    kept = {key: value for key, value in data.items() if key not in (*HARMLESS, "thinking_format")}
    kept["grpo"] = {key: value for key, value in recipe.grpo.items() if not key.startswith(HARMLESS_SETTINGS)}
    return kept


# -- what is shown and saved


class ShowLogs(TrainerCallback):
    """Hands every log to whoever shows it."""

    def __init__(self, show: Show | None) -> None:
        self.show = show

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called by the trainer with what it logs."""
        if self.show is not None and state.is_world_process_zero and logs:
            self.show(state.global_step, state.max_steps, logs)


def _save(
    trainer: LengthGRPOTrainer,
    recipe: Recipe,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    thinking: ThinkingFormat,
    out: Path,
) -> None:
    trainer.save_model(str(out))  # every process takes part where the weights are sharded
    if not trainer.accelerator.is_main_process:
        return
    tokenizer.save_pretrained(out)
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    generation = GenerationConfig.from_dict(
        {
            **unwrapped.generation_config.to_dict(),
            "do_sample": True,
            "temperature": recipe.temperature,
            "top_p": recipe.top_p,
            "max_new_tokens": recipe.max_tokens,
        }
    )
    generation.save_pretrained(out)
    write_levels(out, objective.instructions, thinking=asdict(thinking), objective=str(objective))
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(exclude_defaults=True), sort_keys=False))
    history = [entry for entry in trainer.state.log_history if "reward" in entry or "eval_accuracy" in entry]
    (out / "README.md").write_text(model_card(recipe, objective, history, str(trainer.args.loss_type)))
    unfinished = out / f"{LOG}.unfinished"
    unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history))
    os.replace(unfinished, out / LOG)
    # Only now, because until then a kill would leave nothing to go on from.
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
