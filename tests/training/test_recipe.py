"""A recipe is refused as a whole, by the name of the key, before anything is loaded."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from satisfice.reinforcement.objective import ObjectiveError
from satisfice.reinforcement.objectives.tldr import TLDR
from satisfice.training.arguments import accumulation_steps, grpo_arguments
from satisfice.training.recipe import RecipeError, check_recipe, load_recipe
from satisfice.training.run import dry_run

RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    if not path.name.startswith("sft") and path.parent.name not in ("accelerate", "supervision", "trees")
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
        ("steps=0", "steps is 0; it must be at least 1"),
        ("steps=many", "steps is 'many'"),
        ("responses_per_prompt=1", "responses_per_prompt is 1"),
        ("grpo.epsilon_hihg=0.3", "grpo has no setting 'epsilon_hihg', did you mean 'epsilon_high'"),
        ("grpo.num_generations=4", "grpo.num_generations is set by responses_per_prompt"),
        ("grpo.scale_rewards=none", "grpo has no setting 'scale_rewards'"),
        ("adapter.rank=4", "there is no key 'adapter.rank'"),
        ("model.name=x", "model holds a value, no keys"),
        ("steps", "must look like key=value"),
        ("instruction={", "what follows instruction= is no YAML value"),
        ("learning_rate=.inf", "learning_rate is inf; it must be a finite number above 0"),
        ("explore.bias=6", "set in_flight to true"),
        ("explore.share=0.5", "the key 'explore.bias' is missing"),
        ("explore.shaer=0.5", "there is no key 'explore.shaer', did you mean 'share' within explore"),
        ("adapter.alhpa=8", "there is no key 'adapter.alhpa', did you mean 'alpha' within adapter"),
        ("thinking_format=<think>", "thinking_format: "),
        ("grpo.save_total_limit=1", "a kill while that one checkpoint is written would leave none"),
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
        ({"name": "tldr", "price_short": 1.5}, "price_short is 1.5; it must be above -1 and below 1"),
        ({}, "there is no objective ''"),
    ],
)
def test_a_wrong_objective_is_named(tmp_path: Path, objective: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError) as error:
        load_recipe(written(tmp_path, {**MINIMAL, "objective": objective}))
    assert message in str(error.value)


NEEDS: list[tuple[dict[str, Any], str]] = [
    ({"objective": {"name": "aalc"}}, "the key 'validation' is missing"),
    ({"objective": {"name": "aalc"}, "validation": "lab:calibration"}, "the key 'validate_every' is missing"),
    ({"objective": {"name": "dapo-overlong", "cache": 32}}, "cache must be below the limit"),
    (
        {"objective": {"name": "crt"}, "in_flight": True, "explore": {"share": 1.0, "bias": 9}},
        "follows what the model writes by itself, and all 8 responses of a group would explore",
    ),
    (
        {"objective": {"name": "laser-d"}, "in_flight": True, "explore": {"share": 1.0, "bias": 9}},
        "follows what the model writes by itself",
    ),
    ({"objective": {"name": "depo"}, "grpo": {"use_liger_kernel": True}}, "set use_liger_kernel to false"),
    ({"objective": {"name": "depo"}, "grpo": {"loss_type": "luspo"}}, "takes one a response"),
    (
        {"objective": {"name": "smartthinker"}, "grpo": {"importance_sampling_level": "sequence"}},
        "takes one a response",
    ),
    ({"objective": {"name": "adaptthink"}, "grpo": {"use_vllm": True}}, "set use_vllm to false"),
    ({"in_flight": True, "grpo": {"use_vllm": True}}, "set it to false where vLLM writes them"),
]


@pytest.mark.parametrize(("changes", "message"), NEEDS, ids=[message[:40] for _, message in NEEDS])
def test_what_an_objective_needs_is_checked_when_the_recipe_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        check_recipe({**MINIMAL, **changes})


def test_a_recipe_that_gives_what_is_needed_is_taken() -> None:
    check_recipe({**MINIMAL, "objective": {"name": "aalc"}, "validation": "lab:calibration", "validate_every": 5})
    check_recipe({**MINIMAL, "objective": {"name": "dapo-overlong", "cache": 31}})
    half = {"share": 0.5, "bias": 9}
    check_recipe({**MINIMAL, "objective": {"name": "crt"}, "in_flight": True, "explore": half})
    # Endings are tried at a level that crt has none of.
    others = {"share": 1.0, "bias": 9, "levels": ["short"]}
    check_recipe({**MINIMAL, "objective": {"name": "crt"}, "in_flight": True, "explore": others})


def test_the_loss_is_the_objectives_unless_the_recipe_says_another(tmp_path: Path) -> None:
    def loss(**changes: Any) -> str:
        return str(grpo_arguments(check_recipe({**MINIMAL, "prompts_per_step": 2, **changes}), tmp_path).loss_type)

    assert loss(objective={"name": "dr-grpo"}) == "dr_grpo"
    assert loss(objective={"name": "dr-grpo"}, grpo={"loss_type": "bnpo"}) == "bnpo"
    assert loss() == "dapo"


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is no YAML"), ("", "holds no keys"), ("- 1", "holds no keys"), ("model: lab", "'objective' is missing")],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(written(tmp_path, text))
    assert message in str(error.value)
    (tmp_path / "weights.bin").write_bytes(b"\x93\xff")
    with pytest.raises(RecipeError, match=r"weights.bin is no text file"):
        load_recipe(tmp_path / "weights.bin")
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
    dry_run(load_recipe(path, ["explore.bias=6", "explore.share=0.2"]), tmp_path / "out")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_recipe_takes_two_steps(path: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    dry_run(load_recipe(path), tmp_path / "out", show=lambda step, last, logs: seen.append(step))
    assert seen[:2] == [1, 2]
    assert not list(tmp_path.iterdir())


def test_recipes_for_real_models_name_their_split() -> None:
    hub = [recipe for recipe in map(load_recipe, RECIPES) if not recipe.problems.startswith(("lab:", "words:"))]
    assert len(hub) >= 2
    assert {recipe.split for recipe in hub} == {"train"}
