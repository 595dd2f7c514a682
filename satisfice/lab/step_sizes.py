"""Train small models from scratch on the trees of `satisfice.lab.trees`, and let them solve problems in steps.

As in arXiv 2502.07266: GPT-2 models of several sizes, step sizes drawn evenly, the size's token read and written, AdamW
with decay 0.05 and betas 0.9 and 0.98, cosine to a tenth, gradients clipped at 1, no dropout, greedy answers. Ours,
because it is to take minutes on one thread: fewer operators, smaller models, far fewer problems, and so a larger
learning rate, and a larger weight on the values, which are few among the tokens that are only copied.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as functional
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import GPT2Config, GPT2LMHeadModel

from satisfice.lab import trees
from satisfice.lab.trees import Tree

TEST_BATCH = 256
"""Problems that are solved at once."""
SPARE = 8
"""Tokens that a solution may be longer than the right one; what goes on is cut off and wrong."""
SAVE_EVERY = 100
"""Steps between two checkpoints, and two lines on the terminal."""


class Size(BaseModel):
    """One model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads")
        return self


class StepsRecipe(BaseModel):
    """Everything that decides the weights and the problems that they are tested on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    # the problems
    fewest_operators: int = Field(2, ge=1)
    most_operators: int = Field(ge=2)
    largest_step: int = Field(ge=1, description="largest step size in training and test")
    swapped: float = Field(0.5, ge=0, le=1, description="share of additions whose digit is the right child")
    # the models, from small to large
    models: dict[str, Size] = Field(min_length=1)
    # the training
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(50, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    value_weight: float = Field(1.0, gt=0, description="how often a step's value counts, against its other tokens")
    threads: int = Field(1, ge=1)
    # the test
    test_operators: list[int] = Field(min_length=1)
    test_problems: int = Field(ge=1, description="of each number of operators and step size")

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.fewest_operators > self.most_operators:
            raise ValueError(f"fewest_operators {self.fewest_operators} is above most_operators {self.most_operators}")
        beyond = [each for each in self.test_operators if not self.fewest_operators <= each <= self.most_operators]
        if beyond:
            raise ValueError(
                f"test_operators {beyond} lie outside of training's {self.fewest_operators} to {self.most_operators}"
            )
        return self

    @property
    def width(self) -> int:
        """Tokens of the longest question."""
        return 2 * self.most_operators + 1

    def sizes(self, operators: int) -> range:
        """Step sizes that a problem of so many operators is solved with."""
        return range(1, min(self.largest_step, operators) + 1)


def load_steps_recipe(path: Path) -> StepsRecipe:
    """The recipe in a YAML file; unknown or ill-typed keys are refused by name."""
    return StepsRecipe.model_validate(yaml.safe_load(path.read_text()) or {})


def train(recipe: StepsRecipe, name: str, out: Path, log: Callable[[str], None] = print) -> GPT2LMHeadModel:
    """Train one of the recipe's models into `out`; an interrupted training goes on from its last checkpoint.

    A model that is there already is read.
    """
    if (out / "config.json").exists():
        return GPT2LMHeadModel.from_pretrained(out)
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    rng = random.Random(f"{recipe.seed}/{name}")
    model = _build(recipe, recipe.models[name])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, first = out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        version, numbers, gauss = state["rng"]
        rng.setstate((version, tuple(numbers), gauss))
        first = state["step"]
    for step in range(first, recipe.steps):
        progress = step / recipe.steps
        rate = recipe.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, recipe.warmup_steps))
        ids, labels = batch(recipe, rng)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        weights = torch.where(ids[:, :-1] == trees.EQUALS, recipe.value_weight, 1.0) * (labels[:, 1:] >= 0)
        losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        loss = (losses.view_as(weights) * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0:
            version, numbers, gauss = rng.getstate()
            state = {"rng": [version, list(numbers), gauss], "step": step + 1}
            state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, out / "checkpoint.new")
            (out / "checkpoint.new").replace(checkpoint)
            log(f"{name}: step {step + 1} of {recipe.steps}, loss {loss.item():.3f}")
    model.eval()
    model.save_pretrained(out)
    checkpoint.unlink(missing_ok=True)
    return model


def batch(recipe: StepsRecipe, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of shape (B, T): problems of one number of operators, so that little is padding.

    Labels are those of solutions; -100 elsewhere, which `cross_entropy` leaves out.
    """
    operators = rng.randint(recipe.fewest_operators, recipe.most_operators)
    rows: list[tuple[list[int], list[int]]] = []
    while len(rows) < recipe.batch_size:
        tree = trees.draw(rng, operators, recipe.swapped)
        if not tree.held_out:
            size = rng.choice(recipe.sizes(operators))
            rows.append((trees.prompt(tree, size, recipe.width), tree.solution(size)))
    longest = max(len(prompt) + len(solution) for prompt, solution in rows)
    ids = torch.full((len(rows), longest), trees.PAD)
    labels = torch.full((len(rows), longest), -100)
    for row, (prompt, solution) in enumerate(rows):
        whole = torch.tensor(prompt + solution)
        ids[row, : len(whole)] = whole
        labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    return ids, labels


def held_out(recipe: StepsRecipe, operators: int) -> list[Tree]:
    """The test problems of so many operators: the same for all models and step sizes, none of them in training."""
    rng, found = random.Random(f"{recipe.seed}/test/{operators}"), list[Tree]()
    while len(found) < recipe.test_problems:
        tree = trees.draw(rng, operators, recipe.swapped)
        if tree.held_out:
            found.append(tree)
    return found


@torch.inference_mode()
def solve(recipe: StepsRecipe, model: GPT2LMHeadModel, problems: list[Tree], size: int) -> list[bool]:
    """Whether the model's greedy solution in steps of `size` ends with the right value, for each problem.

    All problems must have as many operators.
    """
    verdicts = []
    for start in range(0, len(problems), TEST_BATCH):
        part = problems[start : start + TEST_BATCH]
        ids = torch.tensor([trees.prompt(tree, size, recipe.width) for tree in part])
        written: Any = model.generate(  # type: ignore[misc]
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=len(part[0].solution(size)) + SPARE, eos_token_id=trees.END, pad_token_id=trees.PAD,
        )  # fmt: skip
        for tree, row in zip(part, written[:, ids.shape[1] :].tolist(), strict=True):
            verdicts.append(trees.final_answer(row) == tree.answer)
    return verdicts


def _build(recipe: StepsRecipe, size: Size) -> GPT2LMHeadModel:
    """A freshly initialised GPT-2 with room for the longest problem in the smallest steps."""
    # The longest solution is that in steps of one: two tokens an operator, four more a step.
    longest = recipe.width + 2 + 6 * recipe.most_operators + SPARE
    config = GPT2Config(
        vocab_size=trees.SIZES_FROM + recipe.largest_step + 1,
        n_positions=longest,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # Ours: at the usual 0.02 so narrow a model learns nothing but the form for hundreds of steps.
        initializer_range=size.width**-0.5,
        bos_token_id=None,
        eos_token_id=trees.END,
        pad_token_id=trees.PAD,
    )
    return GPT2LMHeadModel(config)
