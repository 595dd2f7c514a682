"""`satisfice train`."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from satisfice.cli.console import INTERRUPTED, complain, console
from satisfice.cli.options import TRAINING, Plugins, Recipe, Trained
from satisfice.cli.progress import drawn
from satisfice.cli.tables import pairs_table

if TYPE_CHECKING:
    from satisfice.training.recipe import Recipe as Plan
    from satisfice.training.supervised_recipe import SupervisedRecipe


def require_train() -> None:
    """Refuse to train without the packages that it takes.

    Raises:
        ValueError: they are not installed.
    """
    if find_spec("accelerate") is None:
        raise ValueError("training needs the train extra: in a clone of satisfice, pip install -e '.[train]'")


def _called(plan: "Plan | SupervisedRecipe") -> str:
    from satisfice.training.supervised_recipe import SupervisedRecipe

    if isinstance(plan, SupervisedRecipe):
        return plan.supervision.method if plan.supervision else str(plan.data)
    return str(plan.objective.get("name"))


def train(
    recipe: Recipe,
    out: Trained,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            rich_help_panel=TRAINING,
            help="key=value on top of the recipe, as objective.price_short=0.7.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            rich_help_panel=TRAINING,
            help="Check what can be checked here; two steps with a random tiny model.",
        ),
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Train a short or controllable model, with an objective or on curated data. Run it again to resume.

    Example: satisfice train recipes/lab/tldr.yaml --out runs/tldr --set objective.price_short=0.7
    """
    require_train()
    from satisfice.levels import LEVELS
    from satisfice.training.arguments import leave_process_group
    from satisfice.training.recipe import load_recipe
    from satisfice.training.run import dry_run as rehearse
    from satisfice.training.run import train as carry_out
    from satisfice.training.supervised_recipe import SupervisedRecipe

    plan = load_recipe(recipe, change or [])
    main_process = int(os.environ.get("RANK", 0)) == 0
    bars = drawn(disable=not main_process)
    task = bars.add_task(_called(plan), total=2 if dry_run else plan.steps, rates="loading")

    def show(step: int, last: int, logs: dict[str, float]) -> None:
        if "reward" not in logs:
            if "validation_accuracy" in logs:
                found = f"{logs['validation_accuracy']:.1%} right, {logs['validation_tokens']:.0f} tokens"
                bars.console.print(f"step {step}: {found} on held-out problems")
            elif "loss" in logs:
                bars.update(task, completed=step, total=last, rates=f"loss {logs['loss']:.3g}")
            if "eval_accuracy" in logs:
                bars.console.print(f"step {step}: {logs['eval_accuracy']:.1%} right on held-out problems")
            return
        rates = f"{logs.get('accuracy', 0):.0%} right, {logs.get('tokens', 0):.0f} tokens"
        levels = {level: logs.get(f"levels/{level}/tokens") for level in LEVELS}
        if told := [f"{level} {tokens:.0f}" for level, tokens in levels.items() if tokens is not None]:
            rates += f" ({', '.join(told)})"
        bars.update(task, completed=step, total=last, rates=rates)

    def say(sentence: str) -> None:
        if main_process:
            complain(f"warning: {sentence}")

    try:
        with bars:
            if isinstance(plan, SupervisedRecipe):
                from satisfice.training.supervised import rehearse_supervised, train_supervised

                if dry_run:
                    unchecked = rehearse_supervised(plan, out, show=show)
                else:
                    train_supervised(plan, out, show=show, say=say)
            elif dry_run:
                unchecked = rehearse(plan, out, show=show)
            else:
                carry_out(plan, out, show=show, say=say)
    except KeyboardInterrupt:
        complain(f"\ninterrupted: run the same command again to go on from the last checkpoint in {out}")
        raise typer.Exit(INTERRUPTED) from None
    leave_process_group()
    if main_process and dry_run:
        console.print("the recipe runs: two steps with a random tiny model, on the lab's problems", highlight=False)
        for what in unchecked:
            console.print(f"not checked: {what}", highlight=False)
    elif main_process:
        _print_diagnosis(out / "diagnosis" / "diagnosis.json")
        console.print(f"trained {out}", highlight=False)


def _print_diagnosis(path: Path) -> None:
    """What the trained model did on held-out problems, where it was asked."""
    if not path.exists():
        return
    from satisfice.cli.diagnose import lines_of
    from satisfice.measurement.diagnosis import Diagnosis

    found = json.loads(path.read_text())
    found.pop("advice", None)
    console.print(pairs_table(lines_of(Diagnosis.model_validate(found))))
