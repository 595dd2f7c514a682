"""What a training is made of: one flat YAML file, checked as a whole before anything is loaded."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from satisfice.parameters import misfit, nearest, shown
from satisfice.reinforcement import Need, Objective, objective_from
from satisfice.thinking import ThinkingFormat

if TYPE_CHECKING:
    from satisfice.training.supervised_recipe import SupervisedRecipe


class RecipeError(ValueError):
    """A recipe that cannot be carried out; the message names the key."""


class Adapter(BaseModel):
    """Train a LoRA adapter instead of all weights; see peft's `LoraConfig`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | str = "all-linear"


class Exploration(BaseModel):
    """Tries endings that the model hardly ever tries itself (ours).

    In a share of each group's responses the end marker is made likelier while they are written, less and less so until
    nothing is left of it at the last step. They are learned from as if the model had written them by itself: weighted
    by how likely that was, an ending that it never tries would teach nothing. Where responses are used for several
    updates (num_iterations), their old log-probabilities are therefore the model's own at the time, without the bias.
    How well the model does is read from the other responses only.

    Attributes:
        share: of the responses of each group.
        bias: added to the end marker's logit at the first step, in nats: 6 makes an ending 400 times as likely.
        levels: in responses to prompts of which levels; "unlabelled" are those that name none. All unless given. Where
            length is free or paid, early endings would be tried to no end but to be unlearned, everywhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(0.25, gt=0, le=1)
    bias: float = Field(gt=0, le=100)
    levels: tuple[Literal["unlabelled", "short", "medium", "long"], ...] = ("unlabelled", "short", "medium", "long")

    def obstacle(self, *, in_flight: bool, group: int) -> str:
        """Why this cannot work with groups of so many responses, in a sentence; "" where it can."""
        if not in_flight:
            return (
                "explore makes endings likelier in responses that the transformers engine writes: set in_flight to "
                "true, or leave explore out"
            )
        if self.share * group < 1:
            return f"explore.share is {self.share:g}: of a group of {group} that is less than one response"
        return ""

    def count(self, group: int) -> int:
        """How many responses of a group of so many explore."""
        return math.floor(self.share * group)


class BaseRecipe(BaseModel):
    """What every training says: the keys that both kinds of recipes have, each with the same meaning in both.

    `Recipe` and `SupervisedRecipe` describe them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str
    limit: int | None = Field(None, ge=1)
    split: str | None = None
    columns: dict[str, str] | None = None
    grader: str | None = None
    instruction: str | None = None
    validation: str | None = None
    validation_split: str | None = None
    validation_limit: int = Field(200, ge=1)
    validate_every: int = Field(0, ge=0)
    thinking_format: str | None = None
    seed: int = 0
    steps: int = Field(ge=1)
    processes: int | None = Field(None, ge=1)
    max_tokens: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    schedule: str = "constant"
    warmup_steps: int = Field(0, ge=0)
    save_every: int = Field(50, ge=1)
    adapter: Adapter | None = None
    architecture: str = ""
    threads: int | None = Field(None, ge=1)

    def thinking(self) -> ThinkingFormat | None:
        """The thinking format, where the recipe names one."""
        return ThinkingFormat.parse(self.thinking_format) if self.thinking_format else None


class Recipe(BaseRecipe):
    """Everything that decides the trained weights.

    Attributes:
        model: lab, a directory or a Hub id.
        objective: its `name` and its parameters.
        problems: what to train on: a JSONL file, lab:train, a Hub data set, reasoning-gym:NAME.
        limit: of these the first so many.
        split: of a data set; its "train" unless given, and never another one without being told.
        columns, grader: as in `satisfice compare`.
        instruction: text after each question; by default the usual one for maths, none for the lab.
        validation: held-out problems; their accuracy is logged, and objectives that follow it need it.
        validation_split: where they are a data set; its "validation" unless given.
        validation_limit: of these the first so many.
        validate_every: steps between two validations; there is one before the first step. 0 for no further one.
        reference_samples: responses to each training problem by which the untrained model's accuracy is measured, for
            objectives that compare with it.
        thinking_format: a family name or "OPEN,CLOSE", where it is not detected.
        seed: decides every random number.
        steps: optimizer steps.
        prompts_per_step: prompts of one step.
        responses_per_prompt: rollouts of each prompt, the group.
        micro_batch: responses that one device takes through the model at once.
        processes: how many processes there must be; refused at the start where there are not as many.
        max_tokens: of one response.
        temperature, top_p: of the rollouts.
        learning_rate, schedule, warmup_steps: of AdamW.
        in_flight: write the responses with the transformers engine, whose batch lets a finished response go: faster
            than TRL's own generation where lengths differ, on a device that holds the whole model. In half precision
            (`grpo.bf16`, the default on a GPU, or `grpo.fp16`) a copy of the weights, adapter merged, writes them.
            With vLLM (`grpo.use_vllm`) or sharded weights it must be false.
        explore: makes endings likelier in a share of the rollouts; see `Exploration`. Needs in_flight.
        kl: weight of the divergence from the untrained model (TRL's beta).
        save_every: steps between two checkpoints.
        adapter: train a LoRA adapter.
        grpo: further settings of TRL's GRPOConfig, by their names there. `loss_type` is the objective's where it names
            one.
        architecture: model type (qwen2, qwen3, llama, ...) of the tiny model that --dry-run builds where the real one's
            configuration is not available.
        threads: CPU threads.
    """

    objective: dict[str, Any]
    problems: str
    reference_samples: int = Field(4, ge=1)
    prompts_per_step: int = Field(16, ge=1)
    responses_per_prompt: int = Field(8, ge=2)
    micro_batch: int = Field(16, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    in_flight: bool = False
    explore: Exploration | None = None
    kl: float = Field(0.0, ge=0)
    grpo: dict[str, Any] = Field(default_factory=dict)

    def build_objective(self) -> Objective:
        """The objective.

        Raises:
            ObjectiveError: there is no such objective or parameter.
        """
        parameters = dict(self.objective)
        return objective_from(str(parameters.pop("name", "")), parameters)


def load_recipe(path: Path, changes: Sequence[str] = ()) -> "Recipe | SupervisedRecipe":
    """The recipe in a YAML file, with changes spelled `key=value` or `objective.key=value` on top.

    One that says `data` or `supervision` is of supervised training.

    Raises:
        RecipeError: the file cannot be read, or a key or value does not fit; the message names it.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RecipeError(f"there is no recipe {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no YAML: {_one_line(error)}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no text file: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds no keys; see recipes/lab/tldr.yaml for what a recipe looks like")
    for change in changes:
        _set(data, change)
    if "data" in data or "supervision" in data:
        from satisfice.training.supervised_recipe import check_supervised

        return check_supervised(data, str(path))
    return check_recipe(data, str(path))


def check_recipe(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """The recipe in plain data; `where` it came from is named in errors.

    Raises:
        RecipeError: a key or value does not fit, or they do not fit together.
    """
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {sentence(error, Recipe)}") from error
    # What this raises is a sentence of its own.
    objective = recipe.build_objective()
    try:
        recipe.thinking()
    except ValueError as error:
        raise RecipeError(f"{where}: thinking_format: {error}") from error
    known = _grpo_settings()
    ours = {"reward_weights", "scale_rewards", *OURS}
    for key in recipe.grpo:
        if key in OURS:
            raise RecipeError(f"{where}: grpo.{key} is set by {OURS[key]}; leave it out of grpo")
        if key not in known or key in ours:
            raise RecipeError(f"{where}: grpo has no setting {key!r}{nearest(key, known - ours)}")
    settings = {"num_generations": recipe.responses_per_prompt, "max_completion_length": recipe.max_tokens}
    if obstacle := unmet(objective, settings | recipe.grpo, in_flight=recipe.in_flight, explore=recipe.explore):
        raise RecipeError(f"{where}: {obstacle}")
    if Need.VALIDATION in objective.needs and not (recipe.validation and recipe.validate_every):
        missing = "validate_every" if recipe.validation else "validation"
        raise RecipeError(
            f"{where}: {objective.name} follows the accuracy on held-out problems, and the key {missing!r} is missing: "
            "say which problems (validation) and how many steps lie between two validations (validate_every)"
        )
    if recipe.grpo.get("save_total_limit", 2) == 1:
        raise RecipeError(
            f"{where}: grpo.save_total_limit is 1, and a kill while that one checkpoint is written would leave none: "
            "keep 2 or more"
        )
    return recipe


def unmet(objective: Objective, settings: Mapping[str, Any], *, in_flight: bool, explore: Exploration | None) -> str:
    """Why this objective cannot be trained under these settings of TRL's GRPOConfig, in a sentence; "" where it can.

    Args:
        objective: the objective.
        settings: by their names in GRPOConfig; what is not there has TRL's default.
        in_flight: whether the transformers engine writes the responses.
        explore: what is explored.
    """
    group = settings["num_generations"]
    if obstacle := objective.obstacle(settings["max_completion_length"]):
        return obstacle
    if explore and (obstacle := explore.obstacle(in_flight=in_flight, group=group)):
        return obstacle
    if in_flight and (settings.get("use_vllm") or settings.get("deepspeed") or settings.get("fsdp")):
        return (
            "in_flight writes responses with the model as it lies on one device: set it to false where vLLM writes "
            "them (use_vllm) or the weights are sharded (FSDP, DeepSpeed)"
        )
    loss, by = settings.get("loss_type", "dapo"), settings.get("importance_sampling_level", "token")
    if objective.per_token and settings.get("use_liger_kernel"):
        return (
            f"{objective.name} has an advantage for each token, which Liger's fused loss cannot take: set "
            "use_liger_kernel to false"
        )
    if objective.per_token and (loss in ("luspo", "vespo") or by == "sequence"):
        return (
            f"{objective.name} has an advantage for each token, but the loss {loss} with importance sampling by {by} "
            "takes one a response: use dapo, grpo, bnpo or dr_grpo by token"
        )
    if Need.DIRECT in objective.needs and settings.get("use_vllm"):
        return (
            f"{objective.name} begins {objective.direct_share:.0%} of each group with a closing marker, for which vLLM "
            "gives no log-probabilities: set use_vllm to false"
        )
    explored = explore.count(group) if explore and "unlabelled" in explore.levels else 0
    if Need.OWN in objective.needs and explored + math.ceil(objective.direct_share * group) >= group:
        return (
            f"{objective.name} follows what the model writes by itself, and all {group} responses of a group would "
            "explore: lower explore.share"
        )
    if Need.BUDGET in objective.needs and not objective.draws_conditions:
        return f"{objective.name} goes by a budget in each prompt, but states none (Objective.condition)"
    return ""


OURS = {
    "output_dir": "--out",
    "max_steps": "steps",
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "prompts_per_step, responses_per_prompt and micro_batch",
    "num_generations": "responses_per_prompt",
    "max_completion_length": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup_steps",
    "beta": "kl",
    "save_steps": "save_every",
    "seed": "seed",
    "eval_steps": "validate_every",
}
"""Settings of GRPOConfig that a key of the recipe decides."""


def _grpo_settings() -> set[str]:
    from trl import GRPOConfig

    return {field.name for field in dataclasses.fields(GRPOConfig)}


def _set(data: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {change!r} must look like key=value, for example learning_rate=1e-5")
    *path, last = key.strip().split(".")
    for part in path:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise RecipeError(f"--set {change!r}: {part} holds a value, no keys")
    try:
        data[last] = _number(yaml.safe_load(value))
    except yaml.YAMLError as error:
        reason = f"what follows {key.strip()}= is no YAML value: {_one_line(error)}"
        raise RecipeError(f"--set {change!r}: {reason}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-5 for a text, which is never what is meant here."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    """What is wrong with a recipe of some kind, in one sentence."""
    # A misspelled key is missing under its right name too, and the misspelling is what helps. Of missing keys those
    # come first that only this kind of recipe has.
    shared = BaseRecipe.model_fields
    first = min(
        error.errors(),
        key=lambda found: (
            found["type"] != "extra_forbidden",
            found["type"] == "missing" and found["loc"][0] in shared,
        ),
    )
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        *inside, last = map(str, first["loc"])
        parts: dict[str, type[BaseModel]] = {"adapter": Adapter, "explore": Exploration}
        near = nearest(last, (parts.get(inside[0], kind) if inside else kind).model_fields)
        return f"there is no key {key!r}{near}" + (f" within {inside[0]}" if inside and near else "")
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"{key} is {shown(first['input'])}; it {misfit(kind, first)}"
