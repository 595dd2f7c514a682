"""Carry out a recipe: `satisfice train`.

The result is an ordinary Hugging Face directory (or adapter) with the tokenizer, the length instructions that the
model obeys (`satisfice.json`), a model card made from the run (`README.md`) and every logged number (`log.jsonl`).
The same command goes on from the last checkpoint after an interruption.
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Template
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.lab import SHIPPED, WEIGHTS
from satisfice.levels import with_instruction, write_levels
from satisfice.problems import GraderPool, Problem, load_problems
from satisfice.problems.problem import usual_instruction
from satisfice.reinforcement.objective import Objective
from satisfice.reinforcement.recipe import Recipe, RecipeError
from satisfice.reinforcement.trainer import LengthGRPOTrainer, training_set

CHECKPOINTS = "checkpoints"
"""Inside the directory of the trained model, until it is finished."""

Show = Callable[[int, int, dict[str, float]], None]
"""Called with the step, the last step and what was logged."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    dry_run: bool = False,
    show: Show | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train as `recipe` says, into `out`.

    Args:
        recipe: what to do.
        out: directory of the trained model; its `checkpoints` are removed when it is finished.
        dry_run: take two steps with a random tiny model of the same architecture, to see that everything fits.
        show: hears of every logged step.
        say: hears of what goes wrong without failing.

    Returns:
        `out`.

    Raises:
        RecipeError, ObjectiveError: the recipe cannot be carried out here.
    """
    set_seed(recipe.seed)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    if (out / "log.jsonl").exists() and not dry_run:
        raise RecipeError(f"{out} holds a finished training; give another directory")
    objective = recipe.build_objective()
    recipe = _small(recipe) if dry_run else recipe
    problems = load_problems(
        recipe.problems, limit=recipe.limit or _needed(recipe), split=recipe.split, columns=recipe.columns,
        grader=recipe.grader, seed=recipe.seed,
    ).problems  # fmt: skip
    arguments = grpo_arguments(recipe, out / CHECKPOINTS)
    model, tokenizer = _tiny_model(recipe, out / "tiny") if dry_run else _load_model(recipe)
    instruction = usual_instruction(recipe.problems) if recipe.instruction is None else recipe.instruction
    reference = None
    if "reference" in objective.needs:
        reference = _reference_accuracy(recipe, problems, instruction, model, tokenizer, out)
    prompts = recipe.steps * recipe.prompts_per_step
    validation = None
    if recipe.validation:
        held_out = load_problems(recipe.validation, limit=recipe.validation_limit, seed=recipe.seed).problems
        validation = training_set(held_out, len(held_out), instruction=instruction)
    with GraderPool() as graders:
        trainer = LengthGRPOTrainer(
            model,
            objective,
            args=arguments,
            train_dataset=training_set(problems, prompts, instruction=instruction, reference_accuracy=reference),
            eval_dataset=validation,
            processing_class=tokenizer,
            thinking=recipe.thinking(),
            graders=graders,
            in_flight=recipe.in_flight,
            explore=recipe.explore,
            say=say,
            peft_config=_adapter(recipe),
        )
        _check_processes(recipe, trainer.accelerator.num_processes)
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        trainer.add_callback(_Show(show))
        last = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
        trainer.train(resume_from_checkpoint=None if dry_run else last)
    if not dry_run:
        _save(trainer, recipe, objective, tokenizer, out)
    elif trainer.accelerator.is_main_process:
        shutil.rmtree(out, ignore_errors=True)
    return out


# -- from the recipe to TRL's terms


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


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def grpo_arguments(recipe: Recipe, folder: Path) -> GRPOConfig:
    """TRL's configuration for a recipe.

    Raises:
        RecipeError: the batch does not divide, or TRL refuses a setting.
    """
    on_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(recipe, _world_size()),
        "num_generations": recipe.responses_per_prompt,
        "max_completion_length": recipe.max_tokens,
        "temperature": recipe.temperature,
        "top_p": recipe.top_p,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup_steps,
        "beta": recipe.kl,
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "seed": recipe.seed,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "gradient_checkpointing": on_gpu,
        "logging_steps": 1,
        "report_to": "none",
        # Lengths decide what is learned here, so a response that was cut off must not vanish from the loss.
        "mask_truncated_completions": False,
    }
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


def _needed(recipe: Recipe) -> int:
    return recipe.steps * recipe.prompts_per_step


def _check_processes(recipe: Recipe, processes: int) -> None:
    """Some launchers start one process where several were asked for, and say nothing."""
    if recipe.processes not in (None, processes):
        raise RecipeError(
            f"the recipe asks for {recipe.processes} processes and {processes} are there: start it with torchrun "
            f"--nproc-per-node {recipe.processes} (on CPUs accelerate launch starts a single one)"
        )


def _load_model(recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = str(SHIPPED.get(recipe.model, recipe.model))
    dtype = torch.bfloat16 if torch.cuda.is_available() and recipe.adapter else torch.float32
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        return model, AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load the model {recipe.model}: {' '.join(str(error).split())}") from error


def _adapter(recipe: Recipe) -> Any:
    if recipe.adapter is None:
        return None
    from peft import LoraConfig

    adapter = recipe.adapter
    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        task_type="CAUSAL_LM",
    )


# -- a dry run


def _small(recipe: Recipe) -> Recipe:
    """The same recipe in two steps of a few short responses to the lab's problems, on this machine."""
    processes = _world_size()
    elsewhere = ("vllm", "deepspeed", "fsdp")
    return recipe.model_copy(
        update={
            "problems": "lab:train",
            "validation": recipe.validation and "lab:calibration",
            **dict.fromkeys(("limit", "split", "columns", "grader"), None),
            "steps": 2,
            "prompts_per_step": 2 * processes,
            "responses_per_prompt": 2,
            # Of two responses at least one explores.
            "explore": recipe.explore and recipe.explore.model_copy(update={"share": max(0.5, recipe.explore.share)}),
            "micro_batch": 2,
            "max_tokens": 16,
            "validation_limit": 2 * processes,
            "reference_samples": 1,
            "processes": None,
            "grpo": {key: value for key, value in recipe.grpo.items() if not key.startswith(("use_vllm", *elsewhere))},
        }
    )


def _tiny_model(recipe: Recipe, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random model of a few thousand parameters with the architecture of the recipe's, and the lab's tokenizer."""
    architecture = recipe.architecture
    try:
        source = str(SHIPPED.get(recipe.model, recipe.model))
        architecture = architecture or AutoConfig.from_pretrained(source).model_type
    except OSError as error:
        raise RecipeError(
            f"the configuration of {recipe.model} is not at hand: say architecture: qwen2 (or what it is) in the recipe"
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # From a directory, because TRL loads the frozen reference of a divergence term from where the model came from.
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer


# -- the untrained model's accuracy


def _reference_accuracy(
    recipe: Recipe,
    problems: Sequence[Problem],
    instruction: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
) -> list[float]:
    """The share of right answers that the untrained model gives to each problem, measured once and kept."""
    engine = TransformersEngine(model, tokenizer, thinking=recipe.thinking(), threads=recipe.threads)
    asked = [recipe.reference_samples, recipe.max_tokens, recipe.temperature, recipe.top_p, instruction, engine.digest]
    text = json.dumps([*asked, [[problem.prompt, problem.answer] for problem in problems]])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = out / "reference.json"
    try:
        if path.exists() and (kept := json.loads(path.read_text()))["key"] == key:
            return [float(share) for share in kept["accuracy"]]
        with GraderPool() as graders:
            accuracy = asyncio.run(_measure(engine, recipe, problems, instruction, graders))
    finally:
        engine.close()
        model.train()
    if int(os.environ.get("RANK", 0)) == 0:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"key": key, "samples": recipe.reference_samples, "accuracy": accuracy}))
    return accuracy


async def _measure(
    engine: TransformersEngine,
    recipe: Recipe,
    problems: Sequence[Problem],
    instruction: str,
    graders: GraderPool,
) -> list[float]:
    gate = asyncio.Semaphore(4 * engine.max_batch)

    async def right(index: int, problem: Problem, sample: int) -> bool:
        messages = [{"role": "user", "content": with_instruction(problem.prompt, instruction)}]
        prompt = engine.thinking.render(engine.tokenizer, messages)
        sampling = Sampling(
            temperature=recipe.temperature,
            top_p=recipe.top_p,
            max_tokens=recipe.max_tokens,
            seed=recipe.seed + index * recipe.reference_samples + sample,
        )
        async with gate:
            generation = await engine.generate(prompt.ids, sampling)
        done = generation.finish == "stop"
        split = engine.thinking.split(engine.tokenizer, generation.ids[:-1] if done else generation.ids, prompt.state)
        grade = await graders.grade(
            grader=problem.grader, answer=split.answer, gold=problem.answer, finished=done, problem_id=problem.id
        )
        return grade.correct

    async def share(index: int, problem: Problem) -> float:
        verdicts = await asyncio.gather(*(right(index, problem, k) for k in range(recipe.reference_samples)))
        return sum(verdicts) / recipe.reference_samples

    return list(await asyncio.gather(*(share(index, problem) for index, problem in enumerate(problems))))


# -- what is shown and saved


class _Show(TrainerCallback):
    """Hands every log to whoever shows it."""

    def __init__(self, show: Show | None) -> None:
        self.show = show

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.show is not None and state.is_world_process_zero and logs:
            self.show(state.global_step, state.max_steps, logs)


def _save(
    trainer: LengthGRPOTrainer, recipe: Recipe, objective: Objective, tokenizer: PreTrainedTokenizerBase, out: Path
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
    write_levels(out, getattr(objective, "instructions", {}), objective=str(objective))
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(exclude_defaults=True), sort_keys=False))
    history = [entry for entry in trainer.state.log_history if "reward" in entry or "eval_accuracy" in entry]
    (out / "README.md").write_text(_card(recipe, objective, history))
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    # Last, because it marks the training as finished.
    (out / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history))


CARD = Template(
    """---
library_name: transformers
{%- if recipe.model not in shipped %}
base_model: {{ recipe.model }}
{%- endif %}
tags: [satisfice, reasoning, grpo{% if recipe.adapter %}, lora{% endif %}]
---
# {{ recipe.model }} with {{ objective.name }}

Trained by satisfice from `{{ recipe.model }}` with the objective `{{ objective }}`
({{ objective.summary }}{% if objective.paper %}; arXiv {{ objective.paper }}{% endif %}) on `{{ recipe.problems }}`:
{{ recipe.steps }} steps of {{ recipe.prompts_per_step }} prompts with {{ recipe.responses_per_prompt }} responses each,
temperature {{ recipe.temperature }}, at most {{ recipe.max_tokens }} tokens, seed {{ recipe.seed }}. `recipe.yaml` has
every setting, `log.jsonl` every number.
{% if levels %}
## Levels

Put one of these behind the question, after an empty line; without any the model was trained too.
{% for level, instruction in levels.items() %}
* {{ level }}: `{{ instruction }}`
{%- endfor %}

    satisfice evaluate-levels THIS_DIRECTORY --problems ...
{% endif %}
## What the training saw

Means over rollouts on training problems, of the first and the last {{ window }} steps; no held-out result.

| | first | last |
|---|---|---|
{%- for name, first, last in rows %}
| {{ name }} | {{ first }} | {{ last }} |
{%- endfor %}
"""
)


def _card(recipe: Recipe, objective: Objective, history: Sequence[dict[str, float]], window: int = 10) -> str:
    steps = [entry for entry in history if "reward" in entry]
    names = ["accuracy", "completions/mean_length", "thinking_tokens", "truncated", "reward_violations"]
    names += sorted({name for entry in steps for name in entry if name.startswith("levels/")})

    def mean(entries: Sequence[dict[str, float]], name: str) -> str:
        values = [entry[name] for entry in entries if entry.get(name) is not None]
        return f"{sum(values) / len(values):.3g}" if values else ""

    rows = [(name, mean(steps[:window], name), mean(steps[-window:], name)) for name in names]
    levels = getattr(objective, "instructions", {})
    return (
        f"{CARD.render(recipe=recipe, shipped=SHIPPED, objective=objective, rows=rows, levels=levels, window=window)}\n"
    )
