"""The embedded default: its problems, its teacher, its tokenizer, its training and what it ships."""

import json
import random
import re
from itertools import islice
from pathlib import Path
from statistics import mean

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from satisfice.lab import DEMO_METHODS, SHIPPED, TLDR_WEIGHTS, WEIGHTS
from satisfice.lab.arithmetic import LARGEST, LENGTHS, LONGER_LENGTHS, SPLITS, Chain, apply, chains
from satisfice.lab.teacher import Habits, examples, solve
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.lab.train import Recipe, encode, load_recipe, train
from satisfice.levels import read_levels

RECIPE = Path(__file__).parents[2] / "recipes" / "lab" / "sft.yaml"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_a_chain_is_solved_from_left_to_right():
    chain = Chain(10, (("+", 5), ("*", 3), ("-", 9)), first_letter=2)
    assert chain.prompt == (
        "Start with 10. Steps in the order of their letters: c) +5, d) *3, e) -9. What is the result?"
    )
    assert chain.answer == (10 + 5) * 3 - 9


def test_splits_share_no_arithmetic_whatever_the_seed():
    sets = {
        split: {(chain.start, chain.steps) for seed in (0, 1) for chain in islice(chains(split, seed), 800)}
        for split in SPLITS
        if split != "certify"
    }
    for left in sets:
        for right in sets:
            assert left == right or not sets[left] & sets[right]
    dressed = Chain(7, (("+", 2), ("+", 3)), 0).split, Chain(7, (("+", 2), ("+", 3)), 9).split
    assert dressed[0] == dressed[1]


def test_problems_for_certificates_are_in_no_other_split_and_nothing_was_chosen_on_them():
    certify = list(islice(chains("certify", 0), 1500))
    chosen_on = {(chain.start, chain.steps) for chain in islice(chains("calibration", 0), 2000)}
    assert not {(chain.start, chain.steps) for chain in certify} & chosen_on
    assert {chain.split for chain in certify} == {"calibration"}, "the tenth that neither training nor tests touch"
    assert {len(chain.steps) for chain in certify} == set(LENGTHS)


def test_chains_stay_in_their_world_and_repeat_for_a_seed():
    for split, lengths in (("test", LENGTHS), ("longer", LONGER_LENGTHS), ("rare", LONGER_LENGTHS)):
        found = list(islice(chains(split, 3), 300))
        assert found == list(islice(chains(split, 3), 300))
        assert {len(chain.steps) for chain in found} == set(lengths)
        for chain in found:
            value = chain.start
            for operation, operand in chain.steps:
                value = apply(operation, value, operand)
                assert 0 <= value <= LARGEST
    with pytest.raises(ValueError, match="the lab has no split 'tset'"):
        next(chains("tset", 0))


def test_the_teacher_ends_right_starts_sloppy_and_stops_late():
    rng = random.Random(0)
    habits = Habits()
    first_right, checks = [], []
    for chain in islice(chains("train", 0), 400):
        paragraphs = solve(rng, chain, habits, 900).strip().split("\n\n")
        results = [int(re.search(r"So (\d+)\.$", paragraph)[1]) for paragraph in paragraphs]
        assert results[-1] == chain.answer
        first_right.append(results[0] == chain.answer)
        checks.append(len(results) - 1)
    assert 0.6 < sum(first_right) / 400 < 0.95
    assert min(checks) == 1  # an unchecked first pass is never the end
    assert sum(count >= 8 for count in checks) > 10  # the heavy tail
    assert sum(count == 1 for count in checks) > 80


@given(st.integers(0, 10**6))
def test_everything_the_teacher_writes_survives_the_tokenizer(seed):
    tokenizer = build_tokenizer()
    chain = next(chains("train", seed))
    text = chain.prompt + solve(random.Random(seed), chain, Habits(), 900)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_only_what_the_model_writes_carries_loss(tokenizer):
    chain = next(chains("train", 0))
    row = examples(random.Random(0), [chain], Habits(), 900, direct_share=0.0, instructed_share=0.0)[0]
    encoded = encode(tokenizer, row)
    prompt = [token for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label == -100]
    assert tokenizer.decode(prompt).endswith("<think>\n")
    direct = encode(tokenizer, {**row, "thinking": None})
    written = tokenizer.decode([label for label in direct["labels"] if label != -100])
    assert written == f"The answer is \\boxed{{{chain.answer}}}.<|end|>"


def test_the_teacher_hardly_follows_what_is_said_of_length(tokenizer):
    asked = list(islice(chains("train", 0), 1600))
    rows = examples(random.Random(0), asked, Habits(), 900, direct_share=0.0, instructed_share=0.5)
    instructed = [row for row, chain in zip(rows, asked, strict=True) if row["prompt"] != chain.prompt]
    assert 700 < len(instructed) < 900
    for row in instructed:
        assert row["prompt"].rpartition("\n\n")[2].startswith("Think ")
        assert tokenizer.unk_token_id not in tokenizer(row["prompt"])["input_ids"]
    briefly, normally, at_length = (
        [len(row["thinking"]) for row in instructed if word in row["prompt"]]
        for word in ("briefly", "normally", "at length")
    )
    assert mean(briefly) < mean(normally) < mean(at_length)
    assert max(briefly) > mean(at_length)
    for word, level in (("Hmm", "briefly"), ("Wait", "normally"), ("Alternatively", "at length")):
        with_it, without = (
            [f"\n\n{word}, " in row["thinking"] for row in instructed if (level in row["prompt"]) == named]
            for named in (True, False)
        )
        assert mean(with_it) > 0.7 > 0.6 > mean(without)


@pytest.mark.parametrize(
    ("instruction", "characters", "factor"),
    [
        ("", 500, 1),
        ("Think normally.", 500, 1),
        ("Think briefly.", 1, 2),
        ("Think at length.", 500, 1 / 2),
        ("Think for at most 100 tokens.", 224, 1 / 2),
        ("Think for exactly 100 tokens.", 225, 2),
    ],
)
def test_an_instruction_moves_the_chance_to_stop(instruction, characters, factor):
    assert Habits(heed=2).inclination(instruction, "x" * characters) == factor


def test_a_recipe_names_what_is_wrong(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("slipp: 0.1\n")
    with pytest.raises(ValidationError, match="slipp"):
        load_recipe(path)
    path.write_text("slip: 2\n")
    with pytest.raises(ValidationError, match="slip"):
        load_recipe(path)


def test_training_writes_ordinary_files_and_resumes(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = Recipe(
        steps=3,
        level_steps=2,
        settling_steps=2,
        batch_size=2,
        hidden_size=16,
        intermediate_size=16,
        layers=1,
        heads=2,
        warmup_steps=1,
    )
    train(recipe, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.num_hidden_layers == 1
    assert tokenizer.decode(tokenizer("So 7.", add_special_tokens=False)["input_ids"]) == "So 7."
    assert yaml.safe_load((tmp_path / "model" / "recipe.yaml").read_text()) == recipe.model_dump()
    assert not (tmp_path / "model" / "checkpoints").exists()
    again = train(recipe, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()


def test_what_ships_fits_and_is_what_the_recipe_makes(tokenizer):
    from transformers import AutoTokenizer

    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 5_000_000
    shipped = AutoTokenizer.from_pretrained(WEIGHTS)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template
    assert yaml.safe_load((WEIGHTS / "recipe.yaml").read_text()) == load_recipe(RECIPE).model_dump()
    generation = json.loads((WEIGHTS / "generation_config.json").read_text())
    assert generation["max_new_tokens"] == 960


def test_the_trained_one_ships_beside_it_and_knows_its_levels(tokenizer):
    from transformers import AutoTokenizer

    assert sum(file.stat().st_size for folder in SHIPPED.values() for file in folder.iterdir()) < 10_000_000
    assert AutoTokenizer.from_pretrained(TLDR_WEIGHTS).get_vocab() == tokenizer.get_vocab()
    recipe = yaml.safe_load((TLDR_WEIGHTS / "recipe.yaml").read_text())
    written = yaml.safe_load((RECIPE.parent / "tldr.yaml").read_text())
    decisive = ("model", "objective", "steps", "learning_rate", "schedule", "explore", "kl")
    assert {key: recipe.get(key) for key in decisive} == {key: written.get(key) for key in decisive}
    assert read_levels(TLDR_WEIGHTS) == {
        "short": "Think briefly.", "medium": "Think normally.", "long": "Think at length."
    }  # fmt: skip
    assert set(DEMO_METHODS) == set(SHIPPED)


def test_the_demo_methods_exist():
    from satisfice.intervention import parse_method

    for methods in DEMO_METHODS.values():
        assert [str(parse_method(spelled)) for spelled in methods] == list(methods)
