"""Small models that solve sums in steps: their batches, their training, what is tested."""

import random
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from satisfice.lab import trees
from satisfice.lab.step_sizes import StepsRecipe, batch, held_out, load_steps_recipe, solve, train

TINY = {
    "most_operators": 3, "largest_step": 2, "swapped": 0.5, "models": {"tiny": {"layers": 1, "width": 8, "heads": 1}},
    "steps": 2, "batch_size": 4, "learning_rate": 1e-3, "test_operators": [2, 3], "test_problems": 5,
}  # fmt: skip


def test_only_solutions_carry_loss_and_held_out_problems_are_never_trained_on():
    recipe = StepsRecipe.model_validate(TINY | {"batch_size": 64})
    questions = {tuple(tree.question) for operators in (2, 3) for tree in held_out(recipe, operators)}
    for seed in range(5):
        ids, labels = batch(recipe, random.Random(seed))
        begin = recipe.width
        assert set(ids[:, begin].tolist()) == {trees.BEGIN}
        assert (labels[:, : begin + 2] == -100).all()
        for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
            solution = [token for token in label if token != -100]
            assert solution[-1] == trees.END
            assert solution == row[begin + 2 : begin + 2 + len(solution)]
            assert tuple(token for token in row[:begin] if token != trees.PAD) not in questions


def test_a_model_is_trained_once_and_the_same_for_a_seed(tmp_path):
    recipe = StepsRecipe.model_validate(TINY)
    said = []
    first = train(recipe, "tiny", tmp_path / "one", said.append)
    again = train(recipe, "tiny", tmp_path / "two")
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name])
    (tmp_path / "two" / "mark").touch()
    read = train(recipe.model_copy(update={"steps": 10_000}), "tiny", tmp_path / "two")
    assert torch.equal(read.lm_head.weight, again.lm_head.weight)
    assert len(solve(recipe, first, held_out(recipe, 3), 2)) == 5


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("satisfice.lab.step_sizes.SAVE_EVERY", 2)
    recipe = StepsRecipe.model_validate(TINY | {"steps": 5})
    whole = train(recipe, "tiny", tmp_path / "whole", lambda _: None)

    def interrupt(line):
        if "step 4 of 5" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, "tiny", tmp_path / "cut", interrupt)
    said = []
    resumed = train(recipe, "tiny", tmp_path / "cut", said.append)
    assert said == []  # one step was left
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name])
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()


def test_a_right_solution_is_right_and_another_value_is_wrong():
    class Reads:
        """Writes the right solution, with another last digit for every second problem."""

        def __init__(self, problems, size):
            self.rows = [tree.solution(size) for tree in problems]
            for row in self.rows[1::2]:
                row[-2] = (row[-2] + 1) % 10

        def generate(self, input_ids, **_):
            return torch.cat([input_ids, torch.tensor(self.rows)], dim=1)

    recipe = StepsRecipe.model_validate(TINY)
    problems = held_out(recipe, 3)
    assert solve(recipe, Reads(problems, 2), problems, 2) == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test_operators": [9]}, r"\[9\] lie outside of training's 2 to 3"),
        ({"models": {"odd": {"layers": 1, "width": 9, "heads": 2}}}, "a width of 9 cannot be shared by 2 heads"),
        ({"fewest_operators": 4}, "fewest_operators 4 is above"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change, said):
    with pytest.raises(ValidationError, match=said):
        StepsRecipe.model_validate(TINY | change)


def test_the_shipped_recipe_is_one():
    recipe = load_steps_recipe(Path(__file__).parents[2] / "recipes" / "trees" / "steps.yaml")
    assert len(recipe.models) >= 2
    assert set(recipe.test_operators) <= set(range(recipe.fewest_operators, recipe.most_operators + 1))
