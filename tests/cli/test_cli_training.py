"""Training from the command line: a recipe that runs, mistakes in one sentence, levels of a trained model."""

import json
import re
from pathlib import Path

import pytest
from rich.progress import Progress
from training.setting import policy

from satisfice import cli
from satisfice.levels import write_levels
from satisfice.training.recipe import RecipeError

RECIPE = str(Path(__file__).parents[2] / "recipes" / "lab" / "tldr.yaml")


def run(*arguments: str) -> int | None:
    """The exit code, where the command gives one."""
    return cli.app(args=list(arguments), standalone_mode=False)


def test_a_dry_run_leaves_nothing(tmp_path, capsys):
    run("train", RECIPE, "--out", str(tmp_path / "out"), "--dry-run", "--set", "objective.price_short=0.7")
    said = capsys.readouterr().out
    assert "the recipe runs" in said
    assert "not checked" not in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_what_it_did_not_check(tmp_path, capsys):
    real = str(Path(RECIPE).parents[1] / "qwen3-1.7b" / "tldr.yaml")
    run("train", real, "--out", str(tmp_path / "out"), "--dry-run")
    said = " ".join(capsys.readouterr().out.split())
    assert "not checked: the data set agentica-org/DeepScaleR-Preview-Dataset and its split train" in said
    assert "not checked: the weights of Qwen/Qwen3-1.7B" in said
    assert "not checked: the start of 8 processes" in said


def test_the_progress_line_names_its_numbers(tmp_path, monkeypatch, capsys):
    shown = []
    inner = Progress.update

    def update(self, task, **changes):
        shown.append(changes.get("rates", ""))
        return inner(self, task, **changes)

    monkeypatch.setattr(Progress, "update", update)
    changes = ["steps=2", "prompts_per_step=8", "responses_per_prompt=2", "micro_batch=16", "max_tokens=24"]
    run("train", RECIPE, "--out", str(tmp_path / "out"), *(f"--set={change}" for change in changes))
    assert len(shown) == 2
    for line in shown:
        assert re.fullmatch(r"\d+% right, \d+ tokens \(((short|medium|long) \d+(, )?)+\)", line)


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


def test_one_objective_is_shown_and_the_nearest_suggested(capsys):
    run("objectives", "thinkprune", "--json")
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["name"] == "thinkprune"
    assert "budget" in entry["needs"]
    run("objectives", "kimi")
    told = capsys.readouterr().out
    assert told.startswith("kimi")
    assert "thinkprune" not in told
    with pytest.raises(ValueError, match="there is no objective 'thinkprun', did you mean 'thinkprune'"):
        run("objectives", "thinkprun")


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
