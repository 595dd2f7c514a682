"""What a recipe names, loaded: problems, the model with its tokenizer, how it marks its thinking; or why it is not."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from satisfice.engines.base import EngineError
from satisfice.engines.pretrained import load_pretrained
from satisfice.lab import ADAPTERS, SHIPPED
from satisfice.problems import load_problems
from satisfice.problems.sources import SOURCES, ProblemSet, Purpose
from satisfice.thinking import ThinkingFormat, UnknownThinkingFormat
from satisfice.training.recipe import BaseRecipe, Recipe, RecipeError

# -- problems


def problems_for(recipe: Recipe, purpose: Purpose) -> ProblemSet:
    """The problems that a recipe names to "train" on or to "validate" with."""
    if purpose == "train":
        return load_problems(
            recipe.problems, limit=recipe.limit or recipe.steps * recipe.prompts_per_step, split=recipe.split,
            columns=recipe.columns, grader=recipe.grader, seed=recipe.seed, purpose="train",
        )  # fmt: skip
    assert recipe.validation is not None
    same = recipe.validation == recipe.problems
    return load_problems(
        recipe.validation, limit=recipe.validation_limit, split=recipe.validation_split,
        columns=recipe.columns if same else None, grader=recipe.grader if same else None, seed=recipe.seed,
        purpose="validate",
    )  # fmt: skip


def training_problems(recipe: Recipe) -> ProblemSet:
    """What to train on."""
    return problems_for(recipe, "train")


def held_out_problems(recipe: Recipe, problems: ProblemSet) -> ProblemSet | None:
    """What to validate on.

    Raises:
        RecipeError: some of it is trained on.
    """
    if not recipe.validation:
        return None
    held_out = problems_for(recipe, "validate")
    asked = {problem.prompt for problem in problems.problems}
    both = sum(problem.prompt in asked for problem in held_out.problems)
    if both:
        raise RecipeError(
            f"{both} of the {len(held_out.problems)} problems of {recipe.validation} that validation would ask are "
            f"trained on as well: give validation problems that {recipe.problems} does not hold"
        )
    return held_out


def on_hub(name: str) -> bool:
    """Whether this names something on the Hub and nothing on this machine."""
    return bool(
        re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", name)
        and not (":" in name and name.partition(":")[0] in SOURCES)
        and not name.endswith((".jsonl", ".gz"))
        and not Path(name).exists()
    )


# -- the model


def load_model(recipe: BaseRecipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The recipe's model, in single precision unless a GPU trains an adapter of it, and its tokenizer.

    Raises:
        RecipeError: it cannot be loaded.
    """
    source = str(SHIPPED.get(recipe.model, recipe.model))
    dtype = torch.bfloat16 if torch.cuda.is_available() and recipe.adapter else torch.float32
    if recipe.model in ADAPTERS:
        try:
            loaded = load_pretrained(recipe.model, dtype=str(dtype).removeprefix("torch."), device="cpu")
        except EngineError as error:
            raise RecipeError(str(error)) from error
        # An adapter that is trained of it says by this name what it belongs to.
        loaded.network.name_or_path = recipe.model
        loaded.network.requires_grad_(True)  # merging leaves weights frozen; without an adapter all of them are trained
        return loaded.network, loaded.tokenizer
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        return model, AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load the model {recipe.model}: {' '.join(str(error).split())}") from error


def thinking_of(recipe: BaseRecipe, tokenizer: PreTrainedTokenizerBase) -> ThinkingFormat:
    """How the model marks its thinking.

    Raises:
        RecipeError: it is not told and cannot be found out.
    """
    try:
        return recipe.thinking() or ThinkingFormat.detect(tokenizer, str(SHIPPED.get(recipe.model, recipe.model)))
    except UnknownThinkingFormat as error:
        raise RecipeError(
            f"{recipe.model} does not tell how it marks its thinking: say it in the recipe, by a family or by its two "
            "markers, as thinking_format: '<think>,</think>'"
        ) from error


def wants_vllm(recipe: Recipe) -> bool:
    """Whether vLLM is to write the responses."""
    return bool(recipe.grpo.get("use_vllm"))


def has_vllm() -> bool:
    """Whether vLLM is installed here."""
    return importlib.util.find_spec("vllm") is not None


def check_room(recipe: BaseRecipe, config: Any) -> None:
    """Refuse responses that are longer than the model of this configuration has room for.

    Raises:
        RecipeError: it has less room.
    """
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    if room is not None and recipe.max_tokens >= room:
        raise RecipeError(
            f"max_tokens is {recipe.max_tokens}, and {recipe.model} has room for {room} tokens, the prompt's included: "
            "lower max_tokens"
        )


def check_model(recipe: BaseRecipe) -> list[str]:
    """What can be seen of a recipe's model on this machine without loading its weights.

    Returns:
        what cannot, each in half a sentence: a model on the Hub.

    Raises:
        RecipeError: it could not be trained.
    """
    if recipe.model in (*SHIPPED, *ADAPTERS) or not on_hub(recipe.model):
        check_directory(recipe)
        return []
    unchecked = [f"the weights of {recipe.model} (on the Hub)"]
    if recipe.thinking() is None:
        unchecked.append("how the model marks its thinking (its tokenizer is on the Hub)")
    return unchecked


def check_directory(recipe: BaseRecipe) -> None:
    """What can be seen of a model on this machine without loading its weights.

    Raises:
        RecipeError: it could not be trained.
    """
    if recipe.model in ADAPTERS:
        if not (ADAPTERS[recipe.model] / "adapter_config.json").is_file():
            raise RecipeError(f"cannot load the model {recipe.model}: {ADAPTERS[recipe.model]} is in a clone only")
        return
    source = Path(SHIPPED.get(recipe.model, recipe.model))
    if not source.is_dir():
        raise RecipeError(f"cannot load the model {recipe.model}: there is no such directory")
    try:
        config, tokenizer = AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load the model {recipe.model}: {' '.join(str(error).split())}") from error
    if not [*source.glob("*.safetensors"), *source.glob("*.bin")]:
        raise RecipeError(f"cannot load the model {recipe.model}: the directory holds no weights")
    check_room(recipe, config)
    thinking_of(recipe, tokenizer)
