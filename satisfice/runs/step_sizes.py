"""Which number of steps is best for which model and difficulty: the experiment of arXiv 2502.07266 on the lab's trees.

Small models of several sizes are trained (`satisfice.lab.step_sizes`), each solves held-out problems in every step
size, and the formula of the paper is fitted to each model's counts. What was done before is not done again.
"""

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from satisfice.lab.step_sizes import StepsRecipe, held_out, solve, train
from satisfice.lab.trees import steps
from satisfice.measurement.optimal_length import Cell, Fit, fit
from satisfice.runs.run_folder import write_atomically


class ModelResult(BaseModel):
    """One model's accuracy by difficulty and step size.

    Attributes:
        model: its name in the recipe.
        parameters: how many it has.
        cells: one for each number of operators and step size, in that order.
        fit: of the paper's formula to them.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    parameters: int
    cells: list[Cell]
    fit: Fit


def run(recipe: StepsRecipe, out: Path, log: Callable[[str], None] = print) -> list[ModelResult]:
    """Train and test every model of the recipe into `out`, in the recipe's order.

    `out` gets a folder a model, each with its `tested.json`, and `recipe.json`.

    Raises:
        ValueError: `out` holds the models of another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "recipe.json"
    if kept.exists() and json.loads(kept.read_text()) != recipe.model_dump():
        raise ValueError(f"{out} holds models of another recipe (recipe.json): name another --out")
    write_atomically(kept, json.dumps(recipe.model_dump(), indent=2) + "\n")
    return [_tested(recipe, name, out / name, log) for name in recipe.models]


def _tested(recipe: StepsRecipe, name: str, out: Path, log: Callable[[str], None]) -> ModelResult:
    done = out / "tested.json"
    if done.exists():
        return ModelResult.model_validate_json(done.read_text())
    model = train(recipe, name, out, log)
    cells = []
    for operators in recipe.test_operators:
        problems = held_out(recipe, operators)
        for size in recipe.sizes(operators):
            right = sum(solve(recipe, model, problems, size))
            place = {"operators": operators, "size": size, "steps": steps(operators, size)}
            cells.append(Cell(**place, n=len(problems), right=right))
        log(f"{name}: tested on {operators} operators")
    found = fit([(cell.operators, cell.steps, cell.n, cell.right) for cell in cells])
    tested = ModelResult(model=name, parameters=model.num_parameters(), cells=cells, fit=found)
    write_atomically(done, tested.model_dump_json(indent=2) + "\n")
    return tested
