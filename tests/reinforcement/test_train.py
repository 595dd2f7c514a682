"""`train` leaves an ordinary model directory, goes on where it was killed, and says what it has seen."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reinforcement.training import policy
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from satisfice.engines.transformers import TransformersEngine
from satisfice.levels import read_levels
from satisfice.reinforcement.recipe import Recipe, RecipeError, check_recipe
from satisfice.reinforcement.train import train


@pytest.fixture
def start(tmp_path: Path, tiny_config: Any, tokenizer: Any) -> str:
    """A directory with a tiny model, as somebody would bring it."""
    folder = tmp_path / "start"
    policy(tiny_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe(model: str, **changes: Any) -> Recipe:
    return check_recipe(
        {
            "model": model,
            "objective": {"name": "tldr"},
            "problems": "lab:train",
            "steps": 2,
            "prompts_per_step": 2,
            "responses_per_prompt": 2,
            "micro_batch": 4,
            "max_tokens": 16,
            "learning_rate": 1e-3,
            "save_every": 1,
            **changes,
        }
    )


def same_weights(left: Path | str, right: Path | str) -> bool:
    one, other = (AutoModelForCausalLM.from_pretrained(folder).parameters() for folder in (left, right))
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def quiet(_: str) -> None:
    pass


def test_the_result_is_an_ordinary_model(tmp_path: Path, start: str) -> None:
    seen: list[int] = []
    out = train(recipe(start), tmp_path / "out", say=quiet, show=lambda step, last, logs: seen.append(step))
    assert seen[:2] == [1, 2]
    assert read_levels(out) == {
        "short": "Think briefly.", "medium": "Think normally.", "long": "Think at length."
    }  # fmt: skip
    assert GenerationConfig.from_pretrained(out).max_new_tokens == 16
    card = (out / "README.md").read_text()
    assert "2505.07961" in card
    assert "Think briefly." in card
    logs = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logs if "reward" in entry] == [1, 2]
    assert not (out / "checkpoints").exists()
    assert len(AutoTokenizer.from_pretrained(out)) == len(AutoTokenizer.from_pretrained(start))
    assert not same_weights(start, out)
    with pytest.raises(RecipeError, match="holds a finished training"):
        train(recipe(start), out, say=quiet)


def test_an_adapter_is_loaded_with_its_base_by_the_engine(tmp_path: Path, start: str) -> None:
    out = train(recipe(start, adapter={"r": 2}), tmp_path / "out", say=quiet)
    assert (out / "adapter_config.json").is_file()
    engine = TransformersEngine.load(str(out), threads=1)
    assert engine.levels["short"] == "Think briefly."
    engine.close()


class KilledError(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, start: str) -> None:
    def kill(step: int, last: int, logs: dict[str, float]) -> None:
        if step == 3:
            raise KilledError

    plan = recipe(start, steps=4, save_every=2)
    whole = train(plan, tmp_path / "whole", say=quiet)
    with pytest.raises(KilledError):
        train(plan, tmp_path / "broken", say=quiet, show=kill)
    assert (tmp_path / "broken" / "checkpoints" / "checkpoint-2").is_dir()
    resumed = train(plan, tmp_path / "broken", say=quiet)
    assert same_weights(whole, resumed)
    assert not same_weights(whole, start)


def test_the_untrained_models_accuracy_is_measured_once(tmp_path: Path, start: str) -> None:
    plan = recipe(start, objective={"name": "crt"}, reference_samples=2, steps=1)
    out = train(plan, tmp_path / "out", say=quiet)
    kept = json.loads((out / "reference.json").read_text())
    assert len(kept["accuracy"]) == 2
    assert all(share in (0.0, 0.5, 1.0) for share in kept["accuracy"])


def test_validation(tmp_path: Path, start: str) -> None:
    plan = recipe(start, objective={"name": "aalc"}, validation="lab:calibration", validation_limit=4, validate_every=1)
    out = train(plan, tmp_path / "out", say=quiet)
    logs = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logs if "eval_accuracy" in entry] == [0, 1, 2]


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_a_dry_run_takes_two_steps_with_a_tiny_model_of_the_same_kind(tmp_path: Path, architecture: str) -> None:
    seen: list[int] = []
    plan = recipe("somebody/not-here", architecture=architecture, steps=500, max_tokens=8000)
    out = train(plan, tmp_path / "out", dry_run=True, say=quiet, show=lambda step, last, logs: seen.append(step))
    assert seen[:2] == [1, 2]
    assert not out.exists()


def test_as_many_processes_as_were_asked_for(tmp_path: Path, start: str) -> None:
    with pytest.raises(RecipeError, match="asks for 2 processes and 1 are there: start it with torchrun"):
        train(recipe(start, processes=2), tmp_path / "out", say=quiet)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot load the model"):
        train(recipe(str(tmp_path / "nothing")), tmp_path / "out", say=quiet)
