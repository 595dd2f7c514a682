"""Supervised training: rows become what the model is to write, losses in closed values, resuming, chains."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training.setting import policy
from transformers import AutoModelForCausalLM, AutoTokenizer

from satisfice.engines.checkpoint import digest_of
from satisfice.levels import read_levels
from satisfice.supervision.methods.reweighting import MixRatio, PoolReader, Reference
from satisfice.supervision.rows import digest_of_ids
from satisfice.thinking import ThinkingFormat
from satisfice.training.preference import length_dpo, offline_clip, reference_logps
from satisfice.training.recipe import RecipeError, load_recipe
from satisfice.training.rows import Encoder, encode_rows, read_rows, write_arrow
from satisfice.training.sft import MixtureSampler
from satisfice.training.supervised import references_of, rehearse_supervised, train_supervised
from satisfice.training.supervised_recipe import LengthDPO, OfflineClip, SupervisedRecipe, check_supervised, loss_from

QUESTION = "Start with 10. Steps in the order of their letters: c) +5. What is the result?"
SHORT = "<think>\nc) 10+5=15\nSo 15.\n\n</think>\n\nThe answer is \\boxed{15}."
LONG = "<think>\nc) 10+5=15\nSo 15.\n\nWait, let me check.\nc) 10+5=15\n\n</think>\n\nThe answer is \\boxed{15}."


def asked() -> list[dict[str, str]]:
    return [{"role": "user", "content": QUESTION}]


def example(content: str = SHORT, **more: Any) -> dict[str, Any]:
    return {"messages": [*asked(), {"role": "assistant", "content": content}], "tokens": 20, **more}


def pair(chosen: str = SHORT, rejected: str = LONG) -> dict[str, Any]:
    return {
        "prompt": asked(),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def written(folder: Path, rows: list[Any], card: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if card:
        (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def start(tmp_path: Path, tiny_config: Any, tokenizer: Any) -> str:
    folder = tmp_path / "start"
    policy(tiny_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe(model: str, **changes: Any) -> SupervisedRecipe:
    return check_supervised(
        {
            "model": model,
            "steps": 2,
            "rows_per_step": 2,
            "micro_batch": 1,
            "max_tokens": 64,
            "learning_rate": 1e-3,
            "save_every": 1,
            "threads": 1,
            **changes,
        }
    )


def quiet(_: str) -> None:
    pass


def weights(folder: Path | str) -> list[torch.Tensor]:
    return list(AutoModelForCausalLM.from_pretrained(folder).parameters())


# -- rows


def test_a_row_is_what_the_model_writes_behind_the_prompt(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, ThinkingFormat.detect(tokenizer))
    made = encoder.example(example())
    prompt = made["labels"].count(-100)
    # The lab's template opens thinking itself, so nothing of the marker is learned.
    assert tokenizer.decode(made["input_ids"][:prompt]).endswith("<|assistant|><think>\n")
    assert tokenizer.decode(made["input_ids"][prompt:]) == f"{SHORT.removeprefix('<think>' + chr(10))}<|end|>"
    assert made["labels"][prompt:] == made["input_ids"][prompt:]
    without_break = encoder.example(example(SHORT.replace("<think>\n", "<think>")))
    assert without_break == made


def test_a_model_that_opens_its_thinking_itself_learns_to(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tokenizer.chat_template.replace("<think>\\n", "")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    made = Encoder(tokenizer, ThinkingFormat.detect(tokenizer)).example(example())
    prompt = made["labels"].count(-100)
    assert tokenizer.decode(made["input_ids"][prompt:]) == f"{SHORT}<|end|>"


def test_a_response_that_never_closes_its_thinking_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    thinking = ThinkingFormat.detect(tokenizer)
    with pytest.raises(RecipeError, match="never closes it"):
        Encoder(tokenizer, thinking).example(example("The answer is \\boxed{15}."))
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace("<think>\\n", ""))
    made = Encoder(tokenizer, thinking).example(example("The answer is \\boxed{15}."))
    assert tokenizer.decode(made["input_ids"]).endswith("<|assistant|>The answer is \\boxed{15}.<|end|>")


def test_rows_that_are_too_long_are_left_out_whole(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, ThinkingFormat.detect(tokenizer))
    longest = len(encoder.pair(pair())["rejected_ids"])
    rows = [example(SHORT), example(LONG)]
    assert encode_rows(rows, encoder, longest, None).left_out == 0
    kept = encode_rows(rows, encoder, longest - 1, None)
    assert (kept.left_out, kept.kept) == (1, rows[:1])
    assert encode_rows([pair()], encoder, longest - 1, None).left_out == 1
    assert encode_rows(rows, encoder, longest, 10).left_out == 2


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "x"}], "line 1: a row needs 'messages'"),
        ([example(), pair()], "preference rows and others"),
        ([{"messages": asked()}], "the last of the messages must be the assistant's"),
        ([{**pair(), "chosen": "x"}], "'chosen' must be a list"),
        ([example(weight="heavy")], "it must be a number"),
        (["x"], "a row is an object"),
        ([], "holds no rows"),
    ],
)
def test_what_is_no_row_is_refused(tmp_path: Path, rows: list[Any], says: str) -> None:
    folder = written(tmp_path / "data", rows)
    with pytest.raises(RecipeError, match=says):
        read_rows(folder / "data.jsonl")


def test_the_loss_follows_from_the_rows(tmp_path: Path) -> None:
    def usual(*rows: Any) -> str:
        return read_rows(written(tmp_path / "data", list(rows)) / "data.jsonl").usual_loss

    assert usual(example()) == "sft"
    assert usual(pair()) == "length-dpo"
    assert usual(example(weight=1.0)) == "offline-clip"
    assert usual(example(pool="short"), example(pool="long")) == "mixture"
    with pytest.raises(RecipeError, match="there are no data"):
        read_rows(tmp_path / "none.jsonl")


def test_rows_as_an_arrow_data_set(tmp_path: Path) -> None:
    from datasets import load_from_disk

    folder = written(tmp_path / "data", [example(), example(LONG)])
    read = load_from_disk(str(write_arrow(folder / "data.jsonl", tmp_path / "arrow")))
    assert [row["messages"][1]["content"] for row in read] == [SHORT, LONG]


# -- losses in closed values


@pytest.mark.parametrize(("sign", "offset"), [("minus", -math.log(2)), ("plus", math.log(2))])
def test_length_aware_preference(sign: Any, offset: float) -> None:
    loss = LengthDPO(beta=0.5, length=1.0, sign=sign)
    one = torch.tensor([1.0])
    found = length_dpo(one * 3, one, one * 10, one * 20, loss)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-(0.5 * 2 + offset))))
    # A margin asks for more: the gradient of a pair with more compression is larger with minus, smaller with plus.
    delta = torch.zeros(2, requires_grad=True)
    length_dpo(delta, delta.detach(), one * 10, torch.tensor([11.0, 100.0]), loss).sum().backward()
    assert (delta.grad[1] < delta.grad[0]) == (sign == "minus")


def test_offline_clip() -> None:
    def value(difference: float, weight: float, tokens: int = 10, ratio: Any = "token") -> float:
        given = [torch.tensor([number]) for number in (difference, 0.0, float(tokens), weight)]
        return offline_clip(*given, OfflineClip(clip=0.2, ratio=ratio)).item()

    assert value(0.0, 3.0) == -3.0
    assert value(1.0, 2.0) == pytest.approx(-2 * math.exp(0.1))
    assert value(1.0, 2.0, ratio="sequence") == pytest.approx(-2 * 1.2)
    assert value(5.0, 2.0) == pytest.approx(-2.4)  # a gain counts no further
    assert value(5.0, -2.0) == pytest.approx(2 * math.exp(0.5))  # a loss does
    assert value(-5.0, -2.0) == pytest.approx(1.6)


def test_reference_logps_are_those_of_the_response(tokenizer: Any, tiny_model: Any) -> None:
    made = Encoder(tokenizer, ThinkingFormat.detect(tokenizer)).example(example())
    ids = torch.tensor([made["input_ids"]])
    start = made["labels"].count(-100)
    logps = torch.log_softmax(tiny_model(ids).logits[0, :-1].float(), dim=-1)
    expected = sum(float(logps[place - 1, made["input_ids"][place]].detach()) for place in range(start, ids.size(1)))
    assert reference_logps(tiny_model, [made])[0] == pytest.approx(expected, rel=1e-4)


def test_a_likelihood_of_the_very_tokens_under_the_very_model_is_not_computed_again(start: str) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    digest = digest_of(model)
    ids = Encoder(tokenizer, ThinkingFormat.detect(tokenizer)).example(example())["labels"]
    known = {"logprob": -1.25, "ids": digest_of_ids([token for token in ids if token != -100])}

    def row(model_digest: str, **changes: str) -> dict[str, Any]:
        return example(likelihood={**known, **changes}, provenance={"model_digest": model_digest})

    rows = [row(digest), row("another"), row(digest, ids="other tokens"), example(weight=1.0)]
    examples = encode_rows(rows, Encoder(tokenizer, ThinkingFormat.detect(tokenizer)), 64, None).examples
    computed = reference_logps(model, examples[:1])[0]
    assert references_of(model, examples, rows) == pytest.approx([-1.25, *[computed] * 3])


def test_losses_are_read_by_name() -> None:
    assert loss_from({"name": "length-dpo", "sign": "plus"}) == LengthDPO(sign="plus")
    for given, says in (
        ({"name": "dpo-length"}, "did you mean 'length-dpo'"),
        ({"name": "sft", "beta": 1}, "has no parameter 'beta'"),
        ({"name": "length-dpo", "beta": 0}, "the loss length-dpo: beta is 0"),
        ({"name": "offline-clip", "clip": 1.5}, "clip is 1.5; it must be"),
    ):
        with pytest.raises(RecipeError, match=says):
            loss_from(given)


# -- the mixture


def sampler(rows: int = 40) -> MixtureSampler:
    mix = MixRatio(Reference(10, 0.1), Reference(50, 0.9), 10)
    return MixtureSampler(mix, PoolReader(([0, 1, 2], [3, 4])), rows, seed=3, rows_per_step=4)


def test_a_resumed_mixture_draws_what_an_uninterrupted_one_draws() -> None:
    whole = sampler()
    drawn = iter(whole)
    first = [next(drawn) for _ in range(14)]  # two more than three steps have trained on
    assert set(first) & {0, 1, 2}
    assert set(first) & {3, 4}
    whole.hear(3, 50, 0.9)
    state = json.loads(json.dumps(whole.state_dict(3)))
    rest = list(drawn)
    assert len(rest) == 26
    # What is heard after the third step counts from the fifth on, and asks for the short pool.
    assert set(rest[2:]) == {0, 1, 2}
    resumed = sampler()
    resumed.load_state_dict(state)
    assert list(resumed) == first[12:] + rest


# -- training


def test_sft_leaves_an_ordinary_model(tmp_path: Path, start: str) -> None:
    data = written(tmp_path / "data", [example(), example(LONG)] * 3, {"instructions": {"short": "Think briefly."}})
    logs: list[dict[str, float]] = []
    out = train_supervised(
        recipe(start, data=str(data), steps=6, learning_rate=1e-2, validation="lab:calibration", validation_limit=2,
               validate_every=3),
        tmp_path / "out",
        show=lambda step, last, entry: logs.append(entry),
        say=quiet,
    )  # fmt: skip
    losses = [entry["loss"] for entry in logs if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert len([entry for entry in logs if "validation_accuracy" in entry]) == 3
    assert read_levels(out) == {"short": "Think briefly."}
    assert not (out / "checkpoints").exists()
    card = (out / "README.md").read_text()
    assert "| 6 |" in card
    assert "The trained model on 2 of them" in card
    diagnosis = json.loads((out / "diagnosis" / "diagnosis.json").read_text())
    assert (diagnosis["traces"], diagnosis["source"]) == (2, "asked")
    assert {"length_right", "length_wrong", "cut", "repetition", "at_hand"} <= set(diagnosis)
    assert any(not torch.equal(a, b) for a, b in zip(weights(start), weights(out), strict=True))
    with pytest.raises(RecipeError, match="finished training"):
        train_supervised(recipe(start, data=str(data)), out, say=quiet)


@pytest.mark.parametrize("loss", ["sft", "length-dpo", "offline-clip"])
def test_a_step_does_not_depend_on_how_its_rows_are_divided(tmp_path: Path, start: str, loss: str) -> None:
    rows = {
        "sft": [example(SHORT), example(LONG)],
        "length-dpo": [pair(), pair(LONG, LONG.replace("So 15", "So 16"))],
        "offline-clip": [example(weight=1.5), example(LONG, weight=-1.0)],
    }[loss]
    data = written(tmp_path / "data", rows)

    def trained(micro_batch: int) -> list[torch.Tensor]:
        # With plain descent the step is the gradient.
        plan = recipe(start, data=str(data), steps=1, micro_batch=micro_batch, trl={"optim": "sgd"}, learning_rate=1.0)
        return weights(train_supervised(plan, tmp_path / f"out-{micro_batch}", say=quiet))

    one, two, before = trained(1), trained(2), weights(start)
    for a, b, c in zip(one, two, before, strict=True):
        assert torch.allclose(a - c, b - c, atol=1e-4)
    assert max(float((a - c).detach().abs().max()) for a, c in zip(one, before, strict=True)) > 1e-2


@pytest.mark.parametrize("loss", ["length-dpo", "offline-clip", "mixture"])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, start: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "length-dpo": [pair(), pair(SHORT, LONG.replace("15", "16")), pair(), pair()],
        "offline-clip": [example(weight=1.5), example(LONG, weight=-1.0)] * 2,
        "mixture": [example(pool="short"), example(LONG, pool="long")] * 2,
    }[loss]
    more: dict[str, Any] = {}
    if loss == "mixture":
        more = {"validation": "lab:calibration", "validation_limit": 2, "validate_every": 1}
    data = written(tmp_path / "data", rows)
    plan = recipe(start, data=str(data), steps=3, learning_rate=1e-2, **more)
    whole = train_supervised(plan, tmp_path / "whole", say=quiet)

    class KilledError(Exception):
        pass

    def kill(step: int, last: int, entry: dict[str, float]) -> None:
        if step == 2 and "loss" in entry:
            raise KilledError

    with pytest.raises(KilledError):
        train_supervised(plan, tmp_path / "parts", show=kill, say=quiet)
    with pytest.raises(ValueError, match="of another training"):
        train_supervised(plan.model_copy(update={"learning_rate": 1.0}), tmp_path / "parts", say=quiet)
    parts = train_supervised(plan, tmp_path / "parts", say=quiet)
    for one, other in zip(weights(whole), weights(parts), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(weights(start), weights(whole), strict=True))


def test_an_adapter_on_pairs(tmp_path: Path, start: str) -> None:
    data = written(tmp_path / "data", [pair()] * 2)
    logs: list[dict[str, float]] = []
    out = train_supervised(
        recipe(start, data=str(data), adapter={"r": 2}, learning_rate=1e-2), tmp_path / "out",
        show=lambda step, last, entry: logs.append(entry), say=quiet,
    )  # fmt: skip
    assert (out / "adapter_model.safetensors").is_file()
    first = next(entry for entry in logs if "loss/preference" in entry)
    # Before the first step policy and reference are one: what is left is the length term.
    tokens = first["tokens/rejected"] / first["tokens/chosen"]
    assert first["loss/preference"] == pytest.approx(math.log(1 + tokens), rel=1e-3)


@pytest.mark.parametrize("loss", ["sft", "length-dpo", "offline-clip", "mixture"])
def test_a_dry_run_goes_through_the_whole_training(tmp_path: Path, start: str, loss: str) -> None:
    rows = [pair()] if loss == "length-dpo" else [example(weight=1.0, pool="short")]
    more: dict[str, Any] = {"validation": "lab:calibration", "validate_every": 5} if loss == "mixture" else {}
    data = written(tmp_path / "data", rows)
    plan = recipe(start, data=str(data), loss={"name": loss}, **more)
    steps: list[int] = []
    assert rehearse_supervised(plan, tmp_path / "out", show=lambda step, last, entry: steps.append(step)) == []
    assert 2 in steps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "start"]


def test_a_recipe_may_sample_curate_and_train_and_keeps_each_stage(tmp_path: Path) -> None:
    said: list[str] = []
    plan = recipe(
        "lab", supervision={"method": "shortest-correct", "samples": 2}, problems="lab:train", limit=3, steps=1,
        max_tokens=400,
    )  # fmt: skip
    out = train_supervised(plan, tmp_path / "out", say=said.append)
    assert "sampling 2 responses to each of 3 problems" in said
    rows = read_rows(out / "data" / "data.jsonl").rows
    assert 1 <= len(rows) <= 3
    card = json.loads((out / "data" / "card.json").read_text())
    assert card["traces"]["in"] == 6
    assert card["seed"] == 0
    stages = [out / "data" / "card.json", out / "samples" / "traces-plain.jsonl"]
    before = [path.stat().st_mtime_ns for path in stages]
    (out / "log.jsonl").unlink()  # as if it had been killed before the end
    said.clear()
    train_supervised(plan, out, say=said.append)
    assert said == []
    assert [path.stat().st_mtime_ns for path in stages] == before
    # Without the data, the samples are there all the same.
    (out / "log.jsonl").unlink()
    (out / "data" / "card.json").unlink()
    train_supervised(plan, out, say=said.append)
    assert stages[1].stat().st_mtime_ns == before[1]
    assert json.loads(stages[0].read_text())["data_digest"] == card["data_digest"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "either data"),
        ({"data": "x", "supervision": {"method": "sft"}}, "either data"),
        ({"supervision": {"method": "sft"}}, "needs traces"),
        ({"supervision": {"method": "sfft", "traces": ["x"]}}, "did you mean 'sft'"),
        ({"supervision": {"method": "length-levels", "samples": 2}, "problems": "lab:train"}, "raise supervision"),
        ({"data": "x", "loss": {"name": "mixture"}}, "follows held-out problems"),
        ({"data": "x", "trl": {"max_length": 3}}, "set by max_tokens"),
        ({"data": "x", "trl": {"wamup": 3}}, "trl has no setting 'wamup'"),
        ({"data": "x", "row_per_step": 3}, "did you mean 'rows_per_step'"),
        ({"data": "x", "steps": 0}, "steps"),
    ],
)
def test_recipes_that_cannot_be_carried_out(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        recipe("lab", **changes)


def test_rows_and_loss_must_fit(tmp_path: Path, start: str) -> None:
    pairs = written(tmp_path / "pairs", [pair()])
    with pytest.raises(RecipeError, match="cannot learn from"):
        train_supervised(recipe(start, data=str(pairs), loss={"name": "sft"}), tmp_path / "out", say=quiet)
    single = written(tmp_path / "single", [example()])
    with pytest.raises(RecipeError, match="needs a weight"):
        train_supervised(recipe(start, data=str(single), loss={"name": "offline-clip"}), tmp_path / "out", say=quiet)
    with pytest.raises(RecipeError, match="more than 3 tokens"):
        train_supervised(recipe(start, data=str(single), max_tokens=3), tmp_path / "out", say=quiet)
    with pytest.raises(RecipeError, match="cannot be shared evenly"):
        train_supervised(recipe(start, data=str(single), micro_batch=4), tmp_path / "out", say=quiet)


def test_recipes_of_this_repository_are_read(tmp_path: Path) -> None:
    paths = sorted((Path(__file__).parents[2] / "recipes" / "supervision").glob("*.yaml"))
    assert paths
    for path in paths:
        plan = load_recipe(path, ["steps=3"])
        assert isinstance(plan, SupervisedRecipe)
        assert plan.steps == 3
