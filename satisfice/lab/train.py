"""Train the lab's reasoner from scratch with transformers' Trainer: `satisfice lab train`.

One recipe, one seed, one directory of ordinary Hugging Face files. An interrupted training continues from its
last checkpoint when the same command is given again.
"""

import random
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from satisfice.lab.arithmetic import chains
from satisfice.lab.teacher import LEVEL_INSTRUCTIONS, Habits, examples
from satisfice.lab.tokenizer import build_tokenizer


class Recipe(BaseModel):
    """Everything that decides the weights. Token counts are in tokens, lengths of text in characters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    # the teacher
    slip: float = Field(Habits.slip, ge=0, lt=1)
    check_slip: float = Field(Habits.check_slip, ge=0, lt=1)
    stop: float = Field(Habits.stop, gt=0, le=1)
    stop_decay: float = Field(Habits.stop_decay, ge=0)
    most_rounds: int = Field(Habits.most_rounds, ge=1)
    heed: float = Field(Habits.heed, ge=1)
    echo: float = Field(Habits.echo, ge=0, le=1)
    longest_thinking: int = Field(900, ge=100, description="characters; about 2.25 a token")
    direct_share: float = Field(0.03, ge=0, lt=1)
    instructed_share: float = Field(0.5, ge=0, lt=1)
    long_share: float = Field(0.15, ge=0, lt=1, description="of chains longer than those of lab:train")
    # the model
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 3
    heads: int = 4
    # the training
    steps: int = Field(3600, ge=1)
    batch_size: int = Field(24, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    level_steps: int = Field(300, ge=0, description="steps of the second stage")
    settling_steps: int = Field(500, ge=0, description="steps of the third stage")
    settling_learning_rate: float = Field(1e-3, gt=0)
    threads: int = Field(1, ge=1)
    # how the finished model is sampled by default
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(960, ge=1)

    @property
    def habits(self) -> Habits:
        """The teacher's part of the recipe."""
        return Habits(self.slip, self.check_slip, self.stop, self.stop_decay, self.most_rounds, self.heed, self.echo)


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; unknown or ill-typed keys are refused by name."""
    return Recipe.model_validate(yaml.safe_load(path.read_text()) or {})


def encode(tokenizer: PreTrainedTokenizerBase, example: dict[str, str | None]) -> dict[str, list[int]]:
    """Token ids and labels of one example; only what the model itself must write carries loss."""
    messages = [{"role": "user", "content": str(example["prompt"])}]
    direct, answer = example["thinking"] is None, str(example["answer"])
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=not direct, tokenize=False
    )
    # The template of the direct form already wrote the blank line that otherwise starts the answer.
    written = answer.lstrip() if direct else f"{example['thinking']}</think>{answer}"
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    written_ids = [*tokenizer(written, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {
        "input_ids": prompt_ids + written_ids,
        "attention_mask": [1] * (len(prompt_ids) + len(written_ids)),
        "labels": [-100] * len(prompt_ids) + written_ids,
    }


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A freshly initialised Llama of the recipe's size."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(recipe: Recipe, out: Path) -> Path:
    """Train from `recipe` into `out` and return it; an interrupted training goes on from its last checkpoint.

    Three stages. The first groups examples by length, which wastes little on padding, but the mean over a batch's
    tokens then weighs an ending in a batch of short examples more than a going-on in a batch of long ones, and the
    model learns to stop sooner than its teacher. The third draws examples at random, which sets that right. The second
    has short chains with a level each and an opener that always goes with it: after a hundred steps of these the model
    begins to see the level, which it did not in a thousand of the others.
    """
    torch.set_num_threads(recipe.threads)
    set_seed(recipe.seed)
    tokenizer = build_tokenizer()
    rng = random.Random(recipe.seed)
    count = (recipe.steps + recipe.settling_steps) * recipe.batch_size
    short, long = chains("train", recipe.seed), chains("rare", recipe.seed)
    problems = [next(long if rng.random() < recipe.long_share else short) for _ in range(count)]
    rows = examples(rng, problems, recipe.habits, recipe.longest_thinking, recipe.direct_share, recipe.instructed_share)
    dataset = [encode(tokenizer, row) for row in rows]
    model = build_model(recipe, tokenizer)
    first = recipe.steps * recipe.batch_size
    shortest = islice((chain for chain in short if len(chain.steps) <= 3), recipe.level_steps * recipe.batch_size)
    faithful = replace(recipe.habits, echo=1.0)
    levels = [
        encode(tokenizer, row) for row in examples(rng, list(shortest), faithful, 300, 0.0, 1.0, [LEVEL_INSTRUCTIONS])
    ]
    for name, part, steps in (
        ("grouped", dataset[:first], recipe.steps),
        ("levels", levels, recipe.level_steps),
        ("settling", dataset[first:], recipe.settling_steps),
    ):
        model = _stage(recipe, model, tokenizer, part, out / "checkpoints" / name, steps, grouped=name == "grouped")
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        max_new_tokens=recipe.max_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(), sort_keys=False))
    shutil.rmtree(out / "checkpoints")
    return out


def _stage(
    recipe: Recipe,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    dataset: list[dict[str, list[int]]],
    folder: Path,
    steps: int,
    *,
    grouped: bool,
) -> LlamaForCausalLM:
    """One stage of the training: `steps` steps over `dataset`, or its result where it was done before."""
    done = folder / "done"
    if done.exists():
        return LlamaForCausalLM.from_pretrained(done)
    if not steps:
        return model
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate if grouped else recipe.settling_learning_rate,
        weight_decay=recipe.weight_decay,
        adam_beta2=0.98,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps if grouped else recipe.warmup_steps // 10,
        train_sampling_strategy="group_by_length" if grouped else "random",
        logging_steps=50,
        save_steps=250,
        save_total_limit=1,
        report_to="none",
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,  # type: ignore[arg-type]  # any sized, indexable collection is accepted
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
    model.save_pretrained(done)
    return model
