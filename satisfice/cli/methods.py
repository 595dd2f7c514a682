"""`satisfice methods`."""

from typing import Annotated

import typer

from satisfice.cli import completion
from satisfice.cli.listing import print_described
from satisfice.cli.options import Json, Plugins


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.one_method, help="Of one method, as it is given to --methods; all unless given."
        ),
    ] = None,
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """List every method, or one, with its paper, parameters, defaults and needs.

    Example: satisfice methods budget-forcing
    """
    from satisfice.intervention import METHODS, describe, read_method

    # Also of a method as spelled in a run, or of several joined by plus.
    kinds = METHODS.values() if name is None else [kind for kind, _ in read_method(name)]
    print_described([describe(kind) for kind in kinds], as_json)
