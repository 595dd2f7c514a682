"""Training from the command line: a recipe that runs, mistakes in one sentence, levels of a trained model."""

import json
from pathlib import Path

import pytest
from reinforcement.training import policy

from satisfice import cli
from satisfice.levels import write_levels
from satisfice.reinforcement.recipe import RecipeError

RECIPE = str(Path(__file__).parents[1] / "recipes" / "lab" / "tldr.yaml")


def run(*arguments: str) -> int | None:
    """The exit code, where the command gives one."""
    return cli.app(args=list(arguments), standalone_mode=False)


def test_a_dry_run_leaves_nothing(tmp_path, capsys):
    run("train", RECIPE, "--out", str(tmp_path / "out"), "--dry-run", "--set", "objective.price_short=0.7")
    assert "the recipe runs" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_wrong_key_is_one_sentence(tmp_path):
    with pytest.raises(RecipeError, match="there is no key 'stepz', did you mean 'steps'"):
        run("train", RECIPE, "--out", str(tmp_path / "out"), "--set", "stepz=4")
    assert not (tmp_path / "out").exists()


def test_objectives_are_listed_with_their_parameters(capsys):
    run("objectives", "--json")
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert len(listed) >= 19
    assert {"price_short", "unlabelled"} <= {parameter["name"] for parameter in listed["tldr"]["parameters"]}
    run("objectives")
    assert "2505.07961" in capsys.readouterr().out


def test_levels_that_are_not_in_order_fail_the_command(tmp_path, tiny_config, tokenizer, capsys):
    model = tmp_path / "model"
    policy(tiny_config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    same = dict.fromkeys(("short", "medium", "long"), "Think briefly.")
    write_levels(model, same)
    code = run(
        "evaluate-levels", str(model), "--problems", "lab:calibration", "--limit", "3", "--max-tokens", "12",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 1
    assert "levels NOT in order: short" in capsys.readouterr().out
