"""What a dry run trains: the recipe in small, with a tiny model, on the lab's problems."""

from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from satisfice.lab import SHIPPED, WEIGHTS
from satisfice.training.arguments import world_size
from satisfice.training.recipe import BaseRecipe, Recipe, RecipeError


def small_recipe(recipe: Recipe) -> Recipe:
    """The same recipe in two steps of a few short responses to the lab's problems, on this machine."""
    processes = world_size()
    elsewhere = ("vllm", "deepspeed", "fsdp")
    objective, room = recipe.build_objective(), 16
    while objective.obstacle(room):
        room *= 2
    return recipe.model_copy(
        update={
            "problems": "lab:train",
            "validation": recipe.validation and "lab:calibration",
            **dict.fromkeys(("limit", "split", "columns", "grader", "validation_split"), None),
            "steps": 2,
            "prompts_per_step": 2 * processes,
            "responses_per_prompt": 2,
            # Of two responses at least one explores.
            "explore": recipe.explore and recipe.explore.model_copy(update={"share": max(0.5, recipe.explore.share)}),
            "micro_batch": 2,
            "max_tokens": room,
            "validation_limit": 2 * processes,
            "reference_samples": 1,
            "processes": None,
            "grpo": {key: value for key, value in recipe.grpo.items() if not key.startswith(("use_vllm", *elsewhere))},
        }
    )


def tiny_model(recipe: BaseRecipe, folder: Path, room: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random model of a few thousand parameters with the architecture of the recipe's, and the lab's tokenizer.

    It has room for prompts of the lab and `room` tokens of response.
    """
    architecture = recipe.architecture
    try:
        source = str(SHIPPED.get(recipe.model, recipe.model))
        architecture = architecture or AutoConfig.from_pretrained(source).model_type
    except OSError as error:
        raise RecipeError(
            f"the configuration of {recipe.model} is not available: say architecture: qwen2 (or what it is) in the "
            "recipe"
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
        max_position_embeddings=1024 + room,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # From a directory, because TRL loads the frozen reference of a divergence term from where the model came from.
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer
