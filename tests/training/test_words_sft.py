"""Fine-tuning on the word problems, with a tiny model whose tokenizer knows bytes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("trl")

from satisfice.engines import pretrained
from satisfice.engines.base import EngineError
from satisfice.engines.transformers import TransformersEngine
from satisfice.lab import ADAPTERS
from satisfice.lab.words_teacher import WordHabits
from satisfice.levels import read_levels, write_levels
from satisfice.thinking import Phase, ThinkingFormat
from satisfice.training import words_sft
from satisfice.training.loading import check_model, load_model
from satisfice.training.recipe import Recipe
from satisfice.training.words_sft import (
    CHAT_TEMPLATE,
    WEIGHTS_FILE,
    WordsRecipe,
    encode,
    export_adapter,
    fine_tune,
    load_words_recipe,
    merge,
    training_rows,
)

RECIPES = Path(__file__).parents[2] / "recipes" / "smollm2"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: index for index, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(made), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=2048, tie_word_embeddings=True,
            eos_token_id=made.eos_token_id, pad_token_id=made.eos_token_id, bos_token_id=None,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tokenizer(base):
    made = AutoTokenizer.from_pretrained(base)
    made.chat_template = CHAT_TEMPLATE
    return made


def small(base: Path, **changed) -> WordsRecipe:
    settings = {"steps": 4, "decay_steps": 1, "examples_per_step": 2, "warmup_steps": 1, "save_every": 2, "rank": 2}
    return WordsRecipe(model=str(base), **{**settings, **changed})


def test_the_shipped_recipes_are_read_and_a_mistake_is_refused(tmp_path):
    names = ("sft-passes.yaml", "sft-arithmetic.yaml", "sft.yaml")
    stages = passes, arithmetic, habits = [load_words_recipe(RECIPES / name) for name in names]
    assert {stage.model for stage in stages} == {"smollm2"}
    assert habits.habits == WordHabits()
    assert passes.habits == WordHabits(unchecked=0.9)
    assert arithmetic.drill_share > 0
    # No stage is shown what an earlier one was.
    assert arithmetic.first_example == passes.steps * passes.examples_per_step
    assert habits.first_example == arithmetic.first_example + arithmetic.steps * arithmetic.examples_per_step
    (tmp_path / "bad.yaml").write_text("stepps: 3\n")
    with pytest.raises(ValidationError, match="stepps"):
        load_words_recipe(tmp_path / "bad.yaml")


def test_an_example_is_the_prompt_of_decoding_and_then_what_carries_loss(tokenizer):
    example = {"prompt": "Two and 2?", "thinking": "It is 4.\n\n", "answer": "\n\nThe answer is \\boxed{4}."}
    row = encode(tokenizer, example)
    thinking = ThinkingFormat.detect(tokenizer)
    prompt = thinking.render(tokenizer, [{"role": "user", "content": "Two and 2?"}])
    assert row["input_ids"][: len(prompt.ids)] == prompt.ids
    assert row["completion_mask"] == [0] * len(prompt.ids) + [1] * (len(row["input_ids"]) - len(prompt.ids))
    split = thinking.split(tokenizer, row["input_ids"][len(prompt.ids) : -1], prompt.state)
    assert split.thinking == "It is 4.\n\n"
    assert split.answer == "\n\nThe answer is \\boxed{4}."
    assert row["input_ids"][-1] == tokenizer.eos_token_id


def test_an_example_without_thinking_is_the_prompt_of_no_thinking(tokenizer):
    row = encode(tokenizer, {"prompt": "2?", "thinking": None, "answer": "\n\nThe answer is \\boxed{2}."})
    thinking = ThinkingFormat.detect(tokenizer)
    prompt = thinking.render(tokenizer, [{"role": "user", "content": "2?"}], thinking=False)
    assert thinking.automaton(tokenizer).phase(prompt.state) is Phase.ANSWER
    assert row["input_ids"][: len(prompt.ids)] == prompt.ids
    assert tokenizer.decode(row["input_ids"][len(prompt.ids) : -1]) == "The answer is \\boxed{2}."


def test_a_later_stage_goes_on_where_the_first_ended(base, tokenizer):
    whole = training_rows(tokenizer, small(base, steps=10))
    later = training_rows(tokenizer, small(base, steps=4, first_example=12))
    assert whole[12:] == later
    assert training_rows(tokenizer, small(base, steps=6)) == whole[:12]


def test_a_training_gives_an_adapter_that_can_be_merged_and_gone_on_from(base, tmp_path):
    out = fine_tune(small(base), tmp_path / "adapter")
    names = {path.name for path in out.iterdir()}
    configurations = {"adapter_config.json", "chat_template.jinja", "generation_config.json"}
    assert names == {WEIGHTS_FILE, "recipe.yaml", "log.jsonl", *configurations}
    weights = load_file(out / WEIGHTS_FILE)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert WordsRecipe(**yaml.safe_load((out / "recipe.yaml").read_text())) == small(base)
    with pytest.raises(ValueError, match="finished training"):
        fine_tune(small(base), out)

    merged = merge(out, tmp_path / "merged")
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (base, merged))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    engine = TransformersEngine.load(str(merged))
    try:
        assert engine.thinking.name == "think-tags"
    finally:
        engine.close()

    later = fine_tune(small(base, adapter=str(out), first_example=8, steps=2, decay_steps=0), tmp_path / "later")
    again = load_file(later / WEIGHTS_FILE)
    assert again.keys() == weights.keys()
    assert any(not torch.equal(again[name], weights[name]) for name in weights)


def test_an_interrupted_training_ends_as_if_it_had_not_been(base, tmp_path, monkeypatch):
    whole = fine_tune(small(base), tmp_path / "whole")
    saved = words_sft.SFTTrainer._save_checkpoint

    def interrupted(self, *args, **kwargs):
        saved(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(words_sft.SFTTrainer, "_save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(small(base), tmp_path / "parts")
    monkeypatch.undo()
    parts = fine_tune(small(base), tmp_path / "parts")
    left, right = load_file(whole / WEIGHTS_FILE), load_file(parts / WEIGHTS_FILE)
    assert all(torch.allclose(left[name].float(), right[name].float(), atol=1e-3) for name in left)


def test_an_interrupted_training_can_be_given_fewer_steps(base, tmp_path, monkeypatch):
    saved = words_sft.SFTTrainer._save_checkpoint

    def interrupted(self, *args, **kwargs):
        saved(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(words_sft.SFTTrainer, "_save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(small(base, steps=50, decay_steps=2, learning_rate=0.01), tmp_path / "out")
    monkeypatch.undo()
    out = fine_tune(small(base, steps=7, decay_steps=4, learning_rate=0.01), tmp_path / "out")
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 7
    assert next(entry["learning_rate"] for entry in log if entry["step"] == 5) < 0.01


def test_an_export_is_half_the_size_and_as_near_as_bfloat16_is(base, tokenizer, tmp_path):
    exported = fine_tune(small(base, steps=2), tmp_path / "adapter")
    again = export_adapter(exported, tmp_path / "copy", "elsewhere", tokenizer)
    left, right = load_file(exported / WEIGHTS_FILE), load_file(again / WEIGHTS_FILE)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert json.loads((again / "adapter_config.json").read_text())["base_model_name_or_path"] == "elsewhere"
    assert (again / WEIGHTS_FILE).stat().st_mode & 0o777 == 0o644, "others may read what is shipped"


def test_an_export_keeps_the_levels_that_were_trained(base, tokenizer, tmp_path):
    exported = fine_tune(small(base, steps=2), tmp_path / "adapter")
    assert read_levels(export_adapter(exported, tmp_path / "without", "smollm2", tokenizer)) == {}
    levels = {"short": "Be quick.", "long": "Take your time."}
    write_levels(exported, levels)
    assert read_levels(export_adapter(exported, tmp_path / "with", "smollm2", tokenizer)) == levels


def test_merging_needs_an_adapter(tmp_path):
    with pytest.raises(ValueError, match="holds no adapter_config"):
        merge(tmp_path, tmp_path / "out")


def test_an_adapter_of_the_packaged_model_is_a_model_by_its_folder_or_name(base, tokenizer, tmp_path, monkeypatch):
    exported = fine_tune(small(base, steps=2), tmp_path / "adapter")
    adapter = export_adapter(exported, tmp_path / "words", "smollm2", tokenizer)
    monkeypatch.setattr(pretrained, "packaged_smollm2", lambda: (str(base), None))
    monkeypatch.setitem(ADAPTERS, "smollm2-words", adapter)
    second = export_adapter(exported, tmp_path / "second", "smollm2-words", tokenizer)
    once, twice = (load_file(exported / WEIGHTS_FILE), AutoModelForCausalLM.from_pretrained(base))
    module = "model.layers.0.mlp.up_proj"
    change = once[f"base_model.model.{module}.lora_B.weight"].float() @ (
        once[f"base_model.model.{module}.lora_A.weight"].float()
    )
    scale = small(base).alpha / small(base).rank
    for name, times in (("smollm2-words", 1), (str(adapter), 1), (str(second), 2)):
        loaded = pretrained.load_pretrained(name, device="cpu")
        wanted = twice.get_submodule(module).weight + times * scale * change
        assert torch.allclose(loaded.network.get_submodule(module).weight, wanted, atol=1e-5), name
        assert loaded.tokenizer.chat_template == CHAT_TEMPLATE
        assert loaded.network.generation_config.temperature == words_sft.TEMPERATURE
    recipe = Recipe(
        model="smollm2-words", objective={"name": "tldr"}, problems="words:train", steps=1, prompts_per_step=1,
        responses_per_prompt=2, max_tokens=8, learning_rate=1e-4,
    )  # fmt: skip
    network, trained = load_model(recipe)
    assert network.name_or_path == "smollm2-words"
    assert all(weight.requires_grad for weight in network.parameters())  # a recipe without an adapter trains them all
    assert check_model(recipe) == []  # it is here, and not on the Hub
    assert trained.chat_template == CHAT_TEMPLATE
    assert torch.allclose(
        network.get_submodule(module).weight, twice.get_submodule(module).weight + scale * change, atol=1e-5
    )


def test_an_installed_package_has_no_adapters_and_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setitem(ADAPTERS, "smollm2-words", tmp_path / "nowhere")
    with pytest.raises(EngineError, match="in a clone of satisfice, in recipes/smollm2/weights"):
        pretrained.load_pretrained("smollm2-words")
