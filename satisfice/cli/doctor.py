"""`satisfice doctor`."""

import json
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from satisfice.cli.console import FAILED, console
from satisfice.cli.options import Json

if TYPE_CHECKING:
    from satisfice.hosts.doors import Door, Finding


def doctor(*, as_json: Json = False) -> None:
    """Say which engines and doors work here, and what to install for the others.

    It looks at what is installed and imports none of it. Exit status 1 where the basic installation is not complete.

    Example: satisfice doctor --json
    """
    from satisfice import __version__
    from satisfice.hosts.doors import DOORS, Door, examine

    basic = examine(Door("basic installation", "part", "what everything needs"))
    examined = [(door, examine(door)) for door in DOORS]
    complete = all(each.fits for each in basic)
    if as_json:
        entries = [
            {
                "name": door.name,
                "kind": door.kind,
                "does": door.does,
                "works": complete and all(each.fits for each in findings),
                "packages": [vars(each) for each in findings],
                "install": "" if all(each.fits for each in findings) else _remedy(door),
            }
            for door, findings in examined
        ]
        told = {"satisfice": __version__, "python": platform.python_version(), "complete": complete, "doors": entries}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        console.print(f"satisfice {__version__}, Python {platform.python_version()}", highlight=False)
        _print_basic(basic)
        for kind, heading in (("engine", "Engines"), ("door", "Doors"), ("part", "Other parts")):
            console.print(f"\n[bold]{heading}[/bold]")
            for door, findings in examined:
                if door.kind == kind:
                    _print_door(door, findings, complete)
    if not complete:
        raise typer.Exit(FAILED)


def _print_basic(findings: "Sequence[Finding]") -> None:
    wrong = [each for each in findings if not each.fits]
    if wrong:
        console.print(f"[red]not complete[/red]: {_said(wrong)}; pip install -e . in a clone", highlight=False)
        return
    shown = [f"{each.package} {each.found}" for each in findings if each.package in ("torch", "transformers")]
    console.print(f"complete: {', '.join(shown)} and {len(findings) - len(shown)} more", highlight=False)


def _print_door(door: "Door", findings: "Sequence[Finding]", complete: bool) -> None:
    wrong = [each for each in findings if not each.fits]
    mark = "[green]works[/green]  " if complete and not wrong else "[yellow]missing[/yellow]"
    console.print(f"  {mark}  [cyan]{door.name}[/cyan]  {door.does}", highlight=False, soft_wrap=True)
    if wrong and (door.extra or door.host):
        console.print(f"           {_said(wrong)}: {_remedy(door)}", highlight=False, markup=False, soft_wrap=True)


def _said(wrong: "Sequence[Finding]") -> str:
    return ", ".join(
        f"{each.package} is not installed"
        if each.found is None
        else f"{each.package} is {each.found}, needed {each.needed}"
        for each in wrong
    )


def _remedy(door: "Door") -> str:
    if door.host:
        return f"install {door.host} as it says itself, and satisfice beside it"
    extra = f"'.[{door.extra}]'" if door.extra else "."
    return f"in a clone of satisfice, pip install -e {extra}"
