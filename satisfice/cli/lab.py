"""`satisfice lab`: commands of the embedded tiny reasoner and of the word problems."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from satisfice.cli.command import Command, flat
from satisfice.cli.console import complain, console, printable
from satisfice.cli.options import (
    ENGINE,
    TRAINING,
    Json,
    Recipe,
    Trained,
)
from satisfice.cli.train import require_train

lab = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The embedded tiny reasoner and the word problems: train them.",
)


@lab.command("train", cls=Command)
@flat
def train(
    recipe: Annotated[Path, typer.Option(rich_help_panel="Training", help="YAML; see recipes/lab/sft.yaml.")],
    out: Trained,
) -> None:
    """Train the lab's reasoner from scratch. Run it again to resume.

    Example: satisfice lab train --recipe recipes/lab/sft.yaml --out runs/lab-model
    """
    require_train()
    from satisfice.lab.train import load_recipe
    from satisfice.lab.train import train as carry_out

    console.print(f"trained {carry_out(load_recipe(recipe), out)}", highlight=False)


@lab.command("steps", cls=Command)
@flat
def steps(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(rich_help_panel=TRAINING, help="Folder of the models, the table, the picture.")],
    as_json: Json = False,
) -> None:
    """How many steps of thinking are best? Trains small models on sums and tests them in every step size (2502.07266).

    Run it again to resume.

    Example: satisfice lab steps recipes/trees/steps.yaml --out runs/steps
    """
    from satisfice.lab.step_sizes import load_steps_recipe
    from satisfice.measurement.optimal_length import best_steps
    from satisfice.report import to_svg
    from satisfice.report.step_sizes import steps_figure
    from satisfice.runs.run_folder import write_atomically
    from satisfice.runs.step_sizes import run

    tested = run(load_steps_recipe(recipe), out, complain)
    picture = out / "steps.svg"
    write_atomically(picture, to_svg(steps_figure(tested)))
    if as_json:
        data = [each.model_dump() | {"best": [best.model_dump() for best in best_steps(each.cells)]} for each in tested]
        print(json.dumps(data, indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("model", "operators", "best steps", "may be as good", "right % there", "fitted N*"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for each in tested:
        for best in best_steps(each.cells):
            span = best.cell.accuracy
            table.add_row(
                printable(each.model), str(best.operators), str(best.cell.steps), f"{best.fewest} to {best.most}",
                f"{100 * span.value:.1f} ({100 * (span.low or 0):.1f} to {100 * (span.high or 0):.1f})",
                f"{each.fit.best(best.operators):.1f}" if each.fit.found else "none",
            )  # fmt: skip
    console.print(table)
    if not all(each.fit.found for each in tested):
        console.print("none: no M and C fit these accuracies, because the model makes too few errors, or other ones")
    console.print(f"\npicture  {picture}", highlight=False, markup=False)


@lab.command("fine-tune", cls=Command)
@flat
def fine_tune(recipe: Recipe, out: Trained) -> None:
    """Teach a pretrained model to think about word problems. Run it again to resume.

    Example: satisfice lab fine-tune recipes/smollm2/sft.yaml --out runs/smollm2-words
    """
    require_train()
    from satisfice.training.words_sft import fine_tune as carry_out
    from satisfice.training.words_sft import load_words_recipe

    console.print(f"trained {carry_out(load_words_recipe(recipe), out)}", highlight=False)


@lab.command("merge", cls=Command)
@flat
def merge(
    adapter: Annotated[Path, typer.Argument(help="Directory of an adapter made by `lab fine-tune`.")],
    out: Trained,
    model: Annotated[
        str | None,
        typer.Option(rich_help_panel=ENGINE, help="The model below it, where it is not the one it names."),
    ] = None,
) -> None:
    """Make an ordinary model directory of an adapter and the model that it belongs to.

    Example: satisfice lab merge runs/smollm2-words --out runs/smollm2-merged
    """
    require_train()
    from satisfice.training.words_sft import merge as carry_out

    console.print(f"merged into {carry_out(adapter, out, model)}", highlight=False)
