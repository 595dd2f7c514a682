"""Recipes of supervised training: the same flat YAML file, with `data` or `supervision` where others have `objective`.

One loader reads both kinds; see `recipe.load_recipe`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from satisfice.parameters import check_parameters, nearest, no_parameter, parameter_types
from satisfice.supervision import Curation, parse_curation
from satisfice.training.recipe import BaseRecipe, RecipeError, sentence

# -- losses


@dataclass(frozen=True)
class SFTLoss:
    """Imitation: mean negative log-likelihood of all tokens of the responses of a batch."""

    name: ClassVar[str] = "sft"


@dataclass(frozen=True)
class LengthDPO:
    """TokenSqueeze's loss (arXiv 2511.13223) on pairs of a chosen and a longer rejected response.

        preference L_DPO + (1 - preference) L_SFT
        L_DPO = -log sigma(beta (log pi/ref(chosen) - log pi/ref(rejected)) -+ length log(|rejected| / |chosen|))

    L_SFT is the mean over pairs of the mean over the chosen response's tokens. The sign of the length term is not
    settled: with "minus" more is demanded of pairs that differ much in length, with "plus" less.

    Attributes:
        beta: of the preference; not stated in the paper, 0.1 is ours.
        length: weight of the length term; 1 in the paper.
        sign: of the length term, "minus" or "plus".
        preference: share of the preference in the loss; 0.5 in the paper.
    """

    name: ClassVar[str] = "length-dpo"

    beta: Annotated[float, Field(gt=0)] = 0.1
    length: Annotated[float, Field(ge=0)] = 1.0
    sign: Literal["minus", "plus"] = "minus"
    preference: Annotated[float, Field(ge=0, le=1)] = 0.5


@dataclass(frozen=True)
class OfflineClip:
    """O1-Pruner's loss (arXiv 2501.12570) on weighted samples of the reference model.

        -min(r R, clip(r, 1 - clip, 1 + clip) R),  R the weight of the row

    Attributes:
        clip: how far the ratio counts; 0.2 in the released code.
        ratio: r of the whole "sequence", as the paper has it, or the geometric mean of those of its "token"s, as in the
            code.
    """

    name: ClassVar[str] = "offline-clip"

    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    ratio: Literal["token", "sequence"] = "token"


@dataclass(frozen=True)
class Mixture:
    """TL;DR's mixture (arXiv 2506.02678): imitation of a short and a long pool, mixed anew at every validation.

    The untrained model is the reference of long thinking, measured on the validation problems before the first step.

    Attributes:
        eta: size of a step of the weights; 4 in the paper.
        smoothing: the paper's c, what both pools keep of an even share.
        short_tokens: tokens that a model of short thinking writes on the validation problems; unless given, the mean of
            the short pool (ours).
        short_accuracy: its share of right answers there; 0 unless given, so that a loss of accuracy counts as a share
            of what the untrained model has (ours).
    """

    name: ClassVar[str] = "mixture"

    eta: Annotated[float, Field(ge=0)] = 4.0
    smoothing: Annotated[float, Field(ge=0, le=1)] = 1e-4
    short_tokens: Annotated[float, Field(gt=0)] | None = None
    short_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.0


Loss = SFTLoss | LengthDPO | OfflineClip | Mixture
LOSSES: dict[str, type[Loss]] = {loss.name: loss for loss in (SFTLoss, LengthDPO, OfflineClip, Mixture)}
"""Every loss by name."""


# -- recipes


class Supervision(BaseModel):
    """Where the data of a training come from, if not from a file: sampled, curated, each kept in the out directory.

    Attributes:
        method: a curation as spelled, such as tokensqueeze:alpha=0.2.
        traces: run folders of the model's samples; sampled from `problems` unless given.
        samples: responses to each problem, where they are sampled.
        companions: further models by the names under which the curation asks for them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    traces: tuple[str, ...] = ()
    samples: int = Field(8, ge=1)
    companions: dict[str, str] = Field(default_factory=dict)


class SupervisedRecipe(BaseRecipe):
    """Everything that decides the trained weights. Keys that `Recipe` has too mean the same here.

    Attributes:
        model: lab, a directory or a Hub id.
        data: a file of rows, or a folder that `satisfice curate` has written.
        supervision: makes the data instead; see `Supervision`.
        loss: its `name` and its parameters; what fits the rows unless given.
        problems, limit, split, columns, grader, instruction: what samples are drawn for.
        validation, validation_split, validation_limit, validate_every: held-out problems; accuracy and tokens on them
            are logged before the first step and every so many steps.
        diagnose: how many of these are asked after the training for its diagnostics (arXiv 2505.07961): lengths of
            right and of wrong responses, share cut off, repetition, rank of the end marker at boundaries.
        thinking_format: a family name or "OPEN,CLOSE", where it is not detected.
        seed: decides every random number.
        steps: optimizer steps.
        rows_per_step: rows of one step.
        micro_batch: rows that one device takes through the model at once.
        processes: how many processes there must be.
        max_tokens: of one response; rows with a longer one are left out and counted. Also of sampled responses.
        temperature, top_p: of samples and of validation; what the model's authors recommend unless given.
        learning_rate, schedule, warmup_steps: of AdamW.
        save_every: steps between two checkpoints.
        adapter: train a LoRA adapter.
        trl: further settings of TRL's SFTConfig or, for length-dpo, DPOConfig, by their names there.
        architecture: model type of the tiny model that --dry-run builds.
        threads: CPU threads.
    """

    data: str | None = None
    supervision: Supervision | None = None
    loss: dict[str, Any] = Field(default_factory=dict)
    problems: str | None = None
    diagnose: int = Field(50, ge=0)
    rows_per_step: int = Field(16, ge=1)
    micro_batch: int = Field(1, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    trl: dict[str, Any] = Field(default_factory=dict)

    def curation(self) -> Curation | None:
        """The curation of a recipe that makes its data.

        Raises:
            CurationError: there is no such curation or parameter.
        """
        return parse_curation(self.supervision.method) if self.supervision else None

    def build_loss(self, usual: str) -> Loss:
        """The loss, with the name that is usual for the rows where the recipe gives none.

        Raises:
            RecipeError: there is no such loss or parameter, or a value does not fit.
        """
        return loss_from({"name": usual, **self.loss})


def loss_from(given: Mapping[str, Any]) -> Loss:
    """The loss of that name with these parameters.

    Raises:
        RecipeError: there is none, or a parameter does not fit.
    """
    parameters = dict(given)
    name = str(parameters.pop("name", ""))
    if name not in LOSSES:
        raise RecipeError(f"there is no loss {name!r}{nearest(name, LOSSES)}; there are {', '.join(LOSSES)}")
    kind = LOSSES[name]
    for key in parameters:
        if key not in parameter_types(kind):
            raise RecipeError(no_parameter(f"the loss {name}", key, parameter_types(kind)))
    loss = kind(**parameters)
    check_parameters(loss, f"the loss {name}", RecipeError)
    return loss


OURS = {
    "output_dir": "--out",
    "max_steps": "steps",
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "rows_per_step and micro_batch",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup_steps",
    "save_steps": "save_every",
    "seed": "seed",
    "beta": "loss.beta",
    "loss_type": "loss",
    "max_length": "max_tokens",
    "packing": "the encoding of rows",
    "completion_only_loss": "the encoding of rows",
    "assistant_only_loss": "the encoding of rows",
    "ignore_data_skip": "the loss",
    "eval_strategy": "validate_every",
    "eval_steps": "validate_every",
}
"""Settings of TRL that a key of the recipe decides."""


def check_supervised(data: dict[str, Any], where: str = "recipe") -> SupervisedRecipe:
    """The recipe in plain data; `where` it came from is named in errors.

    Raises:
        RecipeError, CurationError: a key or value does not fit, or they do not fit together.
    """
    try:
        recipe = SupervisedRecipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {sentence(error, SupervisedRecipe)}") from error
    if (recipe.data is None) == (recipe.supervision is None):
        raise RecipeError(f"{where}: say either data, a file of rows, or supervision, which makes them")
    curation = recipe.curation()
    if recipe.supervision and not recipe.supervision.traces and not recipe.problems:
        raise RecipeError(
            f"{where}: supervision needs traces, run folders of the model's samples, or problems to sample for"
        )
    supervision = recipe.supervision
    if curation and supervision and not supervision.traces and supervision.samples < curation.samples:
        raise RecipeError(
            f"{where}: {curation.name} compares at least {curation.samples} responses to each problem: raise "
            "supervision.samples"
        )
    try:
        loss = recipe.build_loss(curation.loss if curation else "sft")
        recipe.thinking()
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error
    if isinstance(loss, Mixture) and not (recipe.validation and recipe.validate_every):
        raise RecipeError(
            f"{where}: the loss mixture follows held-out problems: say which (validation) and how many steps lie "
            "between two validations (validate_every)"
        )
    known = trl_settings(loss)
    for key in recipe.trl:
        if key in OURS:
            raise RecipeError(f"{where}: trl.{key} is set by {OURS[key]}; leave it out of trl")
        if key not in known:
            raise RecipeError(f"{where}: trl has no setting {key!r}{nearest(key, known)}")
    if recipe.trl.get("save_total_limit", 2) == 1:
        raise RecipeError(
            f"{where}: trl.save_total_limit is 1, and a kill while that one checkpoint is written would leave none: "
            "keep 2 or more"
        )
    return recipe


def accumulation(recipe: SupervisedRecipe, processes: int) -> int:
    """Passes of `micro_batch` rows that each of so many processes makes before an optimizer step.

    Raises:
        RecipeError: the batch does not divide.
    """
    together = recipe.micro_batch * processes
    if recipe.rows_per_step % together:
        raise RecipeError(
            f"{recipe.rows_per_step} rows a step cannot be shared evenly by {processes} processes with a micro_batch "
            f"of {recipe.micro_batch}: change micro_batch or rows_per_step"
        )
    return math.ceil(recipe.rows_per_step / together)


def trl_settings(loss: Loss) -> set[str]:
    """Names of the settings that TRL has for a loss."""
    from trl import DPOConfig, SFTConfig

    config = DPOConfig if isinstance(loss, LengthDPO) else SFTConfig
    return {each.name for each in dataclasses.fields(config)}


def data_file(name: str) -> Path:
    """The file of rows that a recipe names, itself or by its folder."""
    path = Path(name)
    return path / "data.jsonl" if path.is_dir() else path
