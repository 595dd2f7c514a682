"""JSON Schemas of recipes, for editors: `make schemas` writes them into recipes/.

Keys, types and bounds are those that are checked when a recipe is read; what an objective takes follows from its name.
What two keys have to do with each other is not said here: `satisfice train --dry-run` checks that.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from satisfice.lab.step_sizes import StepsRecipe
from satisfice.lab.train import Recipe as LabRecipe
from satisfice.parameters import describe_parameters, meaning, parameter_types, schema_of
from satisfice.reinforcement import OBJECTIVES, Objective
from satisfice.training.recipe import OURS, Exploration, Recipe
from satisfice.training.supervised_recipe import LOSSES, SupervisedRecipe, Supervision
from satisfice.training.supervised_recipe import OURS as SUPERVISED_OURS
from satisfice.training.words_sft import WordsRecipe

DIALECT = "http://json-schema.org/draft-07/schema#"
"""Of JSON Schema: what editors for YAML read."""


def recipe_schema() -> dict[str, Any]:
    """The schema of `satisfice train` recipes, with one definition for each objective."""
    schema = _plain(Recipe.model_json_schema())
    _describe(Recipe, schema["properties"])
    _describe(Exploration, schema["$defs"]["Exploration"]["properties"])
    schema["properties"]["objective"] = {
        "description": meaning(Recipe, "objective"),
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": list(OBJECTIVES)}},
        # Not one of all: an editor then speaks of the parameters of the objective that is named.
        "allOf": [
            {
                "if": {"required": ["name"], "properties": {"name": {"const": name}}},
                "then": {"$ref": f"#/$defs/{name}"},
            }
            for name in OBJECTIVES
        ],
    }
    schema["properties"]["grpo"]["propertyNames"] = {"not": {"enum": list(OURS)}}
    schema["$defs"] |= {name: _objective(kind) for name, kind in OBJECTIVES.items()}
    return {"$schema": DIALECT, "title": "a recipe of satisfice train", **schema}


def supervised_schema() -> dict[str, Any]:
    """The schema of `satisfice train` recipes with `data` or `supervision`, with one definition for each loss."""
    schema = _plain(SupervisedRecipe.model_json_schema())
    _describe(SupervisedRecipe, schema["properties"])
    _describe(Supervision, schema["$defs"]["Supervision"]["properties"])
    schema["properties"]["loss"] = {
        "description": meaning(SupervisedRecipe, "loss"),
        "type": "object",
        "properties": {
            "name": {"enum": list(LOSSES)},
            # Without a name the loss follows from the rows, so any parameter may fit.
            **{key: _plain(schema_of(hint)) for kind in LOSSES.values() for key, hint in parameter_types(kind).items()},
        },
        "additionalProperties": False,
    }
    schema["properties"]["trl"]["propertyNames"] = {"not": {"enum": list(SUPERVISED_OURS)}}
    schema["oneOf"] = [{"required": ["data"]}, {"required": ["supervision"]}]
    return {"$schema": DIALECT, "title": "a recipe of satisfice train on data", **schema}


def _describe(model: type[BaseModel], properties: dict[str, Any]) -> None:
    for key in properties:
        if said := meaning(model, key):
            properties[key]["description"] = said


def _objective(kind: type[Objective]) -> dict[str, Any]:
    hints = parameter_types(kind)
    parameters = {
        entry["name"]: {
            **_plain(schema_of(hints[entry["name"]])),
            "default": entry["default"],
            "description": entry["meaning"],
        }
        for entry in describe_parameters(kind)
    }
    return {
        "description": kind.summary,
        "type": "object",
        "properties": {"name": {"const": kind.name}, **parameters},
        "required": ["name"],
        "additionalProperties": False,
    }


def _model(model: type[BaseModel], title: str) -> dict[str, Any]:
    return {"$schema": DIALECT, "title": title, **_plain(model.model_json_schema())}


def _plain(schema: Any) -> Any:
    """A schema without what editors have no use for: generated titles, descriptions for programmers, our own words."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _plain(each) for key, each in schema.items() if key not in ("title", "noun", "because")}
    if "properties" in found:
        found["properties"] = {key: _plain(each) for key, each in schema["properties"].items()}
        found.pop("description", None)
    return found


def schemas() -> dict[str, str]:
    """The text of every schema, by its path inside recipes/."""
    made = {
        "schema.json": recipe_schema(),
        "supervision/schema.json": supervised_schema(),
        "lab/schema.json": _model(LabRecipe, "a recipe of satisfice lab train"),
        "trees/schema.json": _model(StepsRecipe, "a recipe of satisfice lab steps"),
        "smollm2/schema.json": _model(WordsRecipe, "a recipe of satisfice lab fine-tune"),
    }
    return {path: json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for path, schema in made.items()}


if __name__ == "__main__":
    for path, text in schemas().items():
        (Path(sys.argv[1]) / path).write_text(text)
