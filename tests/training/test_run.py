"""`train` leaves an ordinary model directory, goes on where it was killed, and says what it has seen."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training.setting import policy
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from satisfice.engines.transformers import TransformersEngine
from satisfice.levels import read_levels
from satisfice.problems import ProblemsError
from satisfice.reinforcement.objective import ObjectiveError
from satisfice.training.loading import has_vllm
from satisfice.training.recipe import Recipe, RecipeError, check_recipe
from satisfice.training.run import dry_run, train

module = importlib.import_module("satisfice.training.run")


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
    unchecked = dry_run(plan, tmp_path / "out", show=lambda step, last, logs: seen.append(step))
    assert seen[:2] == [1, 2]
    assert not list(tmp_path.iterdir())
    assert "the weights of somebody/not-here (on the Hub)" in unchecked
    assert any("how the model marks its thinking" in what for what in unchecked)


def lines(path: Path, *numbers: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = [{"question": f"What is {number} + 1?", "answer": str(number + 1)} for number in numbers]
    path.write_text("".join(json.dumps(problem) + "\n" for problem in asked))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": "nothing.jsonl"}, "there is no file nothing.jsonl"),
        ({"problems": "lab:tarin"}, "the lab has no split 'tarin'"),
        ({"model": "./no/such/model"}, "cannot load the model ./no/such/model"),
        ({"prompts_per_step": 3}, "cannot share evenly"),
        ({"validation": "nothing.jsonl"}, "there is no file nothing.jsonl"),
        ({"model": "lab", "max_tokens": 4000}, "lower max_tokens"),
    ],
)
def test_a_dry_run_refuses_what_the_training_would(
    tmp_path: Path, start: str, changes: dict[str, Any], message: str
) -> None:
    plan = recipe(changes.get("model", start), **{key: value for key, value in changes.items() if key != "model"})
    with pytest.raises(ValueError, match=message):
        dry_run(plan, tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        train(plan, tmp_path / "out", say=quiet)


def test_a_dry_run_says_what_it_did_not_check(tmp_path: Path, start: str) -> None:
    assert dry_run(recipe(start), tmp_path / "out") == []
    elsewhere = recipe(
        "somebody/not-here", architecture="qwen2", problems="somebody/some-problems", split="first", processes=2,
        micro_batch=2,
        thinking_format="think-tags", grpo={"use_vllm": True},
    )  # fmt: skip
    unchecked = dry_run(elsewhere, tmp_path / "out")
    assert "the data set somebody/some-problems and its split first (on the Hub)" in unchecked
    assert "the start of 2 processes (here there are 1)" in unchecked
    assert not any("marks its thinking" in what for what in unchecked)
    if not has_vllm():
        assert any("vLLM" in what for what in unchecked)
        with pytest.raises(RecipeError, match="vLLM is not installed here"):
            train(elsewhere, tmp_path / "out", say=quiet)


def test_a_model_that_does_not_tell_how_it_thinks(tmp_path: Path, start: str) -> None:
    path = Path(start) / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    tokens = (Path(start) / "tokenizer.json").read_text()
    path.write_text(json.dumps(settings).replace("think>", "ponder>"))
    (Path(start) / "tokenizer.json").write_text(tokens.replace("think>", "ponder>"))
    template = Path(start) / "chat_template.jinja"
    if template.is_file():
        template.write_text(template.read_text().replace("think>", "ponder>"))
    for carry_out in (dry_run, train):
        with pytest.raises(RecipeError, match=r"say it in the recipe.* thinking_format: '<think>,</think>'"):
            carry_out(recipe(start), tmp_path / "out")
    # What the recipe says is kept with the model, and whoever opens it knows.
    out = train(recipe(start, thinking_format="<ponder>,</ponder>"), tmp_path / "out", say=quiet)
    engine = TransformersEngine.load(str(out), threads=1)
    assert (engine.thinking.open, engine.thinking.close) == ("<ponder>", "</ponder>")
    assert engine.levels["short"] == "Think briefly."
    engine.close()


# -- splits


def test_a_directory_with_a_test_file_is_trained_on_its_train_file(tmp_path: Path, start: str) -> None:
    folder = tmp_path / "sums"
    lines(folder / "train.jsonl", 1, 2, 3, 4)
    lines(folder / "test.jsonl", 11, 12, 13, 14)
    asked: list[str] = []
    inner = module.training_set

    def spy(problems: Any, *args: Any, **kwargs: Any) -> Any:
        asked.extend(problem.prompt for problem in problems)
        return inner(problems, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "training_set", spy)
        out = train(recipe(start, problems=str(folder)), tmp_path / "out", say=quiet)
    assert sorted(asked) == [f"What is {n} + 1?" for n in (1, 2, 3, 4)]
    assert "split `train`" in (out / "README.md").read_text()
    assert "split: train" in (out / "recipe.yaml").read_text()


def test_without_a_train_split_one_must_be_named(tmp_path: Path, start: str) -> None:
    folder = tmp_path / "sums"
    lines(folder / "test.jsonl", 11, 12, 13, 14)
    for carry_out in (dry_run, train):
        with pytest.raises(ProblemsError, match=r"has no split 'train': say which one to train on \(it has test\)"):
            carry_out(recipe(start, problems=str(folder)), tmp_path / "out")


def test_validation_never_takes_the_test_split_by_itself_nor_what_is_trained_on(tmp_path: Path, start: str) -> None:
    folder = tmp_path / "sums"
    lines(folder / "train.jsonl", 1, 2, 3, 4)
    lines(folder / "test.jsonl", 11, 12)
    validated = {"problems": str(folder), "validation": str(folder), "validate_every": 1}
    with pytest.raises(ProblemsError, match="has no split 'validation': say which one to validate on"):
        train(recipe(start, **validated), tmp_path / "out", say=quiet)
    with pytest.raises(RecipeError, match=r"4 of the 4 problems .* are trained on as well"):
        train(recipe(start, **validated, validation_split="train"), tmp_path / "out", say=quiet)
    lines(folder / "validation.jsonl", 21, 22)
    out = train(recipe(start, **validated), tmp_path / "out", say=quiet)
    assert "split `validation`" in " ".join((out / "README.md").read_text().split())


# -- going on


@pytest.fixture
def interrupted(tmp_path: Path, start: str) -> Path:
    """A training of four steps that was killed in its third."""

    def kill(step: int, last: int, logs: dict[str, float]) -> None:
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(recipe(start, steps=4), tmp_path / "out", say=quiet, show=kill)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, r"recipe\.learning_rate 0\.001 -> 0\.5"),
        ({"temperature": 0.5}, r"recipe\.temperature 1\.0 -> 0\.5"),
        ({"objective": {"name": "tldr", "price_short": 0.7}}, r"recipe\.objective\.price_short none -> 0\.7"),
        ({"problems": "lab:rare"}, r"recipe\.problems lab:train -> lab:rare; problems [0-9a-f]+ -> [0-9a-f]+"),
        ({"steps": 5}, r"recipe\.steps 4 -> 5"),
        ({"grpo": {"epsilon": 0.3}}, r"recipe\.grpo\.epsilon none -> 0\.3"),
    ],
)
def test_another_recipe_does_not_go_on(interrupted: Path, start: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        train(recipe(start, **{"steps": 4, **changes}), interrupted, say=quiet)


def test_another_model_or_other_problems_under_the_same_name_do_not_go_on(
    tmp_path: Path, start: str, tiny_config: Any
) -> None:
    path = lines(tmp_path / "sums.jsonl", 1, 2, 3, 4)
    plan = recipe(start, problems=str(path))

    def kill(step: int, last: int, logs: dict[str, float]) -> None:
        if step == 2:
            raise KilledError

    with pytest.raises(KilledError):
        train(plan, tmp_path / "out", say=quiet, show=kill)
    lines(path, 1, 2, 3, 5)
    with pytest.raises(ObjectiveError, match=r"\(problems [0-9a-f]+ -> [0-9a-f]+\)"):
        train(plan, tmp_path / "out", say=quiet)
    lines(path, 1, 2, 3, 4)
    policy(tiny_config, seed=3).save_pretrained(start)
    with pytest.raises(ObjectiveError, match=r"\(model [0-9a-f]+ -> [0-9a-f]+\)"):
        train(plan, tmp_path / "out", say=quiet)


def test_what_decides_no_weights_may_change(interrupted: Path, start: str) -> None:
    out = train(recipe(start, steps=4, save_every=2, grpo={"logging_steps": 2}), interrupted, say=quiet)
    assert (out / "log.jsonl").is_file()


def test_a_kill_within_a_checkpoint_costs_that_checkpoint_only(interrupted: Path, start: str, tmp_path: Path) -> None:
    newest = interrupted / "checkpoints" / "checkpoint-2"
    (newest / "objective.json").unlink()
    (newest / "optimizer.pt").write_bytes(b"half of it")
    seen: list[int] = []
    resumed = train(
        recipe(start, steps=4), interrupted, say=quiet, show=lambda step, last, logs: seen.append(step)
    )  # fmt: skip
    assert seen[0] == 2
    assert same_weights(train(recipe(start, steps=4), tmp_path / "whole", say=quiet), resumed)


def test_nothing_is_deleted_before_the_log_is_written(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = recipe(start)
    whole = train(plan, tmp_path / "whole", say=quiet)

    def kill(*args: Any, **kwargs: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", kill)
        with pytest.raises(KilledError):
            train(plan, tmp_path / "out", say=quiet)
    assert (tmp_path / "out" / "log.jsonl").read_text().count("\n") == (whole / "log.jsonl").read_text().count("\n")
    # Before the log is there, the same command goes on and ends in the same weights.
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_levels", kill)
        with pytest.raises(KilledError):
            train(plan, tmp_path / "again", say=quiet)
    assert not (tmp_path / "again" / "log.jsonl").exists()
    assert same_weights(train(plan, tmp_path / "again", say=quiet), whole)


def test_a_card_compares_what_the_model_wrote_by_itself(tmp_path: Path, start: str) -> None:
    plan = recipe(start, in_flight=True, explore={"share": 0.5, "bias": 9}, steps=4)
    out = train(plan, tmp_path / "out", say=quiet)
    card = (out / "README.md").read_text()
    assert "Only responses that the model wrote by itself count here" in card
    logs = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    first = [entry["tokens"] for entry in logs if "reward" in entry][:2]
    assert f"| tokens | {sum(first) / 2:.3g} |" in card
    assert "reward_violations" not in card


def test_as_many_processes_as_were_asked_for(tmp_path: Path, start: str) -> None:
    with pytest.raises(RecipeError, match="asks for 2 processes and 1 are there: start it with torchrun"):
        train(recipe(start, processes=2), tmp_path / "out", say=quiet)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot load the model"):
        train(recipe(str(tmp_path / "nothing")), tmp_path / "out", say=quiet)
