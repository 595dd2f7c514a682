"""Editors are told of a recipe what its reader would say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from satisfice.parameters import parameter_types
from satisfice.reinforcement import OBJECTIVES
from satisfice.training.recipe import check_recipe
from satisfice.training.schema import recipe_schema, schemas

RECIPES = Path(__file__).parents[2] / "recipes"
OURS = [path for path in sorted(RECIPES.rglob("*.yaml")) if path.parent.name != "accelerate"]
MINIMAL = {
    "model": "lab",
    "objective": {"name": "tldr"},
    "problems": "lab:train",
    "steps": 2,
    "max_tokens": 32,
    "learning_rate": 1e-4,
}


@pytest.fixture(scope="module")
def checker() -> Draft7Validator:
    return Draft7Validator(recipe_schema())


@pytest.mark.parametrize("path", schemas())
def test_the_files_are_what_the_code_says(path: str) -> None:
    assert (RECIPES / path).read_text() == schemas()[path], "make schemas writes them"
    Draft7Validator.check_schema(json.loads(schemas()[path]))


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_recipe_names_its_schema_and_keeps_to_it(path: Path) -> None:
    first = path.read_text().partition("\n")[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, f"{path} does not say in its first line which schema it has"
    Draft7Validator(json.loads((path.parent / named[1]).read_text())).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"objective": {"name": "tdlr"}}, "objective/name"),
        ({"objective": {"price_short": 0.5}}, "objective"),
        ({"objective": {"name": "tldr", "price_shrt": 0.5}}, "objective"),
        ({"objective": {"name": "laser", "price_short": 0.5}}, "objective"),
        ({"objective": {"name": "tldr", "price_short": 1}}, "objective/price_short"),
        ({"objective": {"name": "crt", "window": 0}}, "objective/window"),
        ({"objective": {"name": "thinkprune", "limits": []}}, "objective/limits"),
        ({"objective": {"name": "thinkprune", "limits": [9, 0]}}, "objective/limits/1"),
        ({"objective": {"name": "l1-max", "instruction": "Think."}}, "objective/instruction"),
        ({"objective": {"name": "tldr", "shape": "round"}}, "objective/shape"),
        ({"steps": 0}, "steps"),
        ({"lerning_rate": 1}, ""),
        ({"explore": {"share": 0.5}}, "explore"),
        ({"adapter": {"rank": 4}}, "adapter"),
        ({"grpo": {"num_generations": 4}}, "grpo"),
    ],
    ids=str,
)
def test_what_the_reader_refuses_an_editor_marks(checker: Draft7Validator, changes: dict[str, Any], where: str) -> None:
    found = list(checker.iter_errors({**MINIMAL, **changes}))
    assert "/".join(map(str, found[0].absolute_path)) == where
    with pytest.raises(ValueError, match=r"."):
        check_recipe({**MINIMAL, **changes})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_there_with_all_its_parameters_and_their_defaults(
    checker: Draft7Validator, name: str
) -> None:
    defined = recipe_schema()["$defs"][name]
    assert list(defined["properties"]) == ["name", *parameter_types(OBJECTIVES[name])]
    given = {key: each["default"] for key, each in defined["properties"].items() if key != "name"}
    assert all(each["description"] for key, each in defined["properties"].items() if key != "name")
    checker.validate(json.loads(json.dumps({**MINIMAL, "objective": {"name": name, **given}})))
