"""From a function to a command: groups of options as parameters, and `--methods A B C`.

The parser (typer) knows functions whose parameters are one option each, and has no groups. Here a parameter may be a
group instead, a dataclass of `options.py` whose fields are the options:

    def summary(*, run: RunFolder, report: ReportOptions, as_json: Json = False) -> None: ...

`flat` shows such a function to the parser as one that takes every field by itself, and puts the groups together before
it calls. So an option is declared once, whichever commands take it, and no command passes on options one by one.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand


def flat(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with each field of its groups as a parameter, all of them given by name."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in groups:
            parameters += _of_group(groups[parameter.name])
        else:
            by_name = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
            parameters.append(by_name)

    @wraps(function)
    def call(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        function(**given)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what `inspect` looks for first
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _of_group(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]


SEVERAL = "satisfice.several"
"""Whether the last that was typed is a value of `--methods`, which takes several."""


class Command(TyperCommand):
    """A command that takes several values after one `--methods`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `spread`; everything else is as in any command."""
        for option in self.params:
            if option.name == "methods":
                args = spread(args, option.opts)
                ctx.meta[SEVERAL] = args[-2:-1] == option.opts[:1]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """What the shell offers; where no option asks for a value, that may be one more of `--methods`."""
        if ctx.meta.get(SEVERAL) and not incomplete.startswith("-"):
            option = next(each for each in self.params if each.name == "methods")
            return option.shell_complete(ctx, incomplete)
        return super().shell_complete(ctx, incomplete)


def spread(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """`--methods A B C` as `--methods A --methods B --methods C`, which is what the parser reads.

    Args:
        arguments: those of a command.
        names: of the option that takes several values, the one to use first.
    """
    found: list[str] = []
    taking = False
    for place, argument in enumerate(arguments):
        if argument in names:
            taking = True
            if not arguments[place + 1 :] or arguments[place + 1].startswith("-"):
                # Without a value it must not mean the default. "--" ends the options, so the parser misses the value.
                return [*found, argument]
            continue
        if argument.startswith("-"):
            taking = False
        found.extend([names[0], argument] if taking else [argument])
    return found


def made(name: str, function: Callable[..., None]) -> TyperCommand:
    """The command of that name that calls `function`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, cls=Command)(flat(function))
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand)
    return command
