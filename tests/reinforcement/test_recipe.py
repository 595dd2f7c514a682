"""A recipe is refused as a whole, by the name of the key, before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from satisfice.reinforcement.objective import ObjectiveError
from satisfice.reinforcement.recipe import RecipeError, load_recipe
from satisfice.reinforcement.tldr import TLDR
from satisfice.reinforcement.train import accumulation_steps, grpo_arguments, train

RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    if path.name != "sft.yaml" and path.parent.name != "accelerate"
]
MINIMAL = {
    "model": "lab",
    "objective": {"name": "tldr"},
    "problems": "lab:train",
    "steps": 2,
    "max_tokens": 32,
    "learning_rate": 1e-4,
}


def written(folder: Path, data: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def test_changes_on_the_command_line_win(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    recipe = load_recipe(path, ["learning_rate=2e-5", "objective.price_short=0.7", "grpo.epsilon_high=0.28"])
    assert recipe.learning_rate == 2e-5
    assert recipe.build_objective() == TLDR(price_short=0.7)
    assert recipe.grpo == {"epsilon_high": 0.28}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lerning_rate=1", "there is no key 'lerning_rate', did you mean 'learning_rate'"),
        ("steps=0", "steps is 0: input should be greater than or equal to 1"),
        ("steps=many", "steps is 'many'"),
        ("responses_per_prompt=1", "responses_per_prompt is 1"),
        ("grpo.epsilon_hihg=0.3", "grpo has no setting 'epsilon_hihg', did you mean 'epsilon_high'"),
        ("grpo.num_generations=4", "grpo.num_generations is set by responses_per_prompt"),
        ("grpo.scale_rewards=none", "grpo has no setting 'scale_rewards'"),
        ("adapter.rank=4", "there is no key 'adapter.rank'"),
        ("model.name=x", "model holds a value, no keys"),
        ("steps", "must look like key=value"),
        ("explore.bias=6", "set in_flight to true"),
        ("explore.share=0.5", "the key 'explore.bias' is missing"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(written(tmp_path, MINIMAL), [change])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"name": "tdlr"}, "there is no objective 'tdlr', did you mean 'tldr'"),
        ({"name": "tldr", "price_shrt": 0.5}, "did you mean 'price_short'"),
        ({"name": "tldr", "price_short": 1.5}, "price_short must lie between"),
        ({}, "there is no objective ''"),
    ],
)
def test_a_wrong_objective_is_named(tmp_path: Path, objective: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError) as error:
        load_recipe(written(tmp_path, {**MINIMAL, "objective": objective}))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is no YAML"), ("", "holds no keys"), ("- 1", "holds no keys"), ("model: lab", "'objective' is missing")],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(written(tmp_path, text))
    assert message in str(error.value)
    with pytest.raises(RecipeError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_the_batch_in_trls_terms(tmp_path: Path) -> None:
    path = written(tmp_path, {**MINIMAL, "prompts_per_step": 4, "responses_per_prompt": 4, "micro_batch": 2})
    recipe = load_recipe(path)
    arguments = grpo_arguments(recipe, tmp_path)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 8)
    assert arguments.generation_batch_size == 16
    assert accumulation_steps(recipe, processes=2) == 4
    with pytest.raises(RecipeError, match="cannot share evenly"):
        accumulation_steps(recipe, processes=3)
    with pytest.raises(RecipeError, match="TRL refuses"):
        grpo_arguments(load_recipe(path, ["schedule=sideways"]), tmp_path)


def test_a_share_of_a_group_is_at_least_one_response_and_a_dry_run_has_one_too(tmp_path: Path) -> None:
    path = written(tmp_path, {**MINIMAL, "in_flight": True, "responses_per_prompt": 8})
    with pytest.raises(RecipeError, match="of a group of 8 that is less than one response"):
        load_recipe(path, ["explore.bias=6", "explore.share=0.1"])
    train(load_recipe(path, ["explore.bias=6", "explore.share=0.2"]), tmp_path / "out", dry_run=True)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_recipe_takes_two_steps(path: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    train(load_recipe(path), tmp_path / "out", dry_run=True, show=lambda step, last, logs: seen.append(step))
    assert seen[:2] == [1, 2]
