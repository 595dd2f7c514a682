"""`satisfice lab`: commands of the embedded tiny reasoner and of the word problems."""

from pathlib import Path
from typing import Annotated

import typer

from satisfice.cli.command import Command, flat
from satisfice.cli.console import console
from satisfice.cli.options import (
    ENGINE,
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
