"""`satisfice objectives`."""

from typing import Annotated

import typer

from satisfice.cli import completion
from satisfice.cli.listing import print_described
from satisfice.cli.options import Json, Plugins


def objectives(
    name: Annotated[
        str | None, typer.Argument(autocompletion=completion.objectives, help="Of one objective; all unless given.")
    ] = None,
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """List every training objective, or one, with its paper, parameters, defaults and needs.

    Example: satisfice objectives tldr
    """
    from satisfice.reinforcement import OBJECTIVES, describe_objective, objective_named

    kinds = OBJECTIVES.values() if name is None else [objective_named(name)]
    print_described([describe_objective(kind) for kind in kinds], as_json)
