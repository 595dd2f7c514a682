"""The experiment on step sizes: models, tests, fit and picture in one folder; and the command."""

import json

import pytest
import yaml

from satisfice import cli
from satisfice.lab.step_sizes import StepsRecipe
from satisfice.measurement.optimal_length import Cell, Fit, best_steps
from satisfice.report.step_sizes import steps_figure
from satisfice.runs.step_sizes import ModelResult, run

RECIPE = {
    "most_operators": 3, "largest_step": 2, "swapped": 0.5, "steps": 1, "batch_size": 4, "learning_rate": 1e-3,
    "models": {"a": {"layers": 1, "width": 8, "heads": 1}, "b": {"layers": 1, "width": 8, "heads": 2}},
    "test_operators": [2, 3], "test_problems": 6,
}  # fmt: skip


def test_what_is_done_is_not_done_again_and_another_recipe_is_refused(tmp_path):
    recipe = StepsRecipe.model_validate(RECIPE)
    first = run(recipe, tmp_path, lambda _: None)
    assert [(cell.operators, cell.size, cell.steps, cell.n) for cell in first[0].cells] == [
        (2, 1, 2, 6), (2, 2, 1, 6), (3, 1, 3, 6), (3, 2, 2, 6),
    ]  # fmt: skip
    assert [each.model for each in first] == ["a", "b"]
    said = []
    assert run(recipe, tmp_path, said.append) == first
    assert said == []
    with pytest.raises(ValueError, match="models of another recipe"):
        run(StepsRecipe.model_validate(RECIPE | {"steps": 2}), tmp_path)


def test_the_command_prints_a_row_a_difficulty_and_draws(tmp_path, monkeypatch, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    for options in ([], ["--json"]):
        arguments = ["satisfice", "lab", "steps", tmp_path / "r.yaml", "--out", tmp_path / "out", *options]
        monkeypatch.setattr("sys.argv", list(map(str, arguments)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        told = capsys.readouterr().out
    assert (tmp_path / "out" / "steps.svg").read_text().count("<svg") == 1
    assert [each["best"][1]["operators"] for each in json.loads(told)] == [3, 3]


def cell(operators, size, right, n=100):
    return Cell(operators=operators, size=size, steps=-(-operators // size), n=n, right=right)


def test_the_best_number_of_steps_and_what_may_be_as_good():
    cells = [cell(12, 1, 60), cell(12, 2, 90), cell(12, 3, 90), cell(12, 4, 84), cell(12, 6, 20), cell(4, 1, 99)]
    twelve, four = best_steps(cells)
    assert (twelve.cell.steps, twelve.fewest, twelve.most) == (4, 3, 6)  # of equals the fewest; 84 of 100 is not less
    assert (four.operators, four.cell.steps) == (4, 4)


def test_the_picture_has_a_panel_a_model_and_the_smallest_step_of_equal_numbers():
    cells = [cell(7, 1, 50), cell(7, 2, 80), cell(7, 3, 70), cell(7, 4, 60), cell(7, 5, 10), cell(3, 1, 100)]
    tested = ModelResult(model="a", parameters=1000, cells=cells, fit=Fit(6.0, 20.0, 1.0, 0.1))
    figure = steps_figure([tested, tested])
    panel = figure.axes[1]
    drawn = panel.containers[0].lines[0]
    assert drawn.get_xdata().tolist() == [2, 3, 4, 7]
    assert drawn.get_ydata().tolist() == [60, 70, 80, 50]
