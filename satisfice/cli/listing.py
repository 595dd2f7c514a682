"""Lists of what there is, for people and for programs: methods, objectives."""

import json
from collections.abc import Sequence
from typing import Any

from rich.padding import Padding
from rich.text import Text

from satisfice.cli.console import console
from satisfice.parameters import in_words


def print_described(described: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Methods or objectives with their papers, needs and parameters, as `describe` gives them."""
    if as_json:
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return
    for entry in described:
        console.print(f"[bold]{entry['name']}[/bold]  {entry['summary']}", highlight=False)
        facts = [f"arXiv {entry['paper']}"] if entry["paper"] else ["baseline"]
        if entry["needs"]:
            facts.append(f"needs {', '.join(entry['needs'])}")
        console.print(f"    [dim]{'; '.join(facts)}[/dim]", highlight=False)
        for parameter in entry["parameters"]:
            _print_parameter(parameter)
        for knob in entry.get("knobs", ()):
            where = "".join(f", {name}={value}" for name, value in knob["where"].items())
            values = ", ".join(map(str, knob["grid"]))
            console.print(f"    [dim]to calibrate: {knob['parameter']}{where} in {values}[/dim]", highlight=False)
        console.print()


def _print_parameter(parameter: dict[str, Any]) -> None:
    default = "none" if parameter["default"] is None else json.dumps(parameter["default"], ensure_ascii=False)
    head = Text(f"    {parameter['name']}", style="cyan")
    # Choices are in the type already.
    bounds = "" if "enum" in parameter["bounds"] else in_words(parameter["bounds"])
    head.append(f" ({', '.join(filter(None, [parameter['type'], bounds, f'default {default}']))})", style="dim")
    console.print(head, highlight=False)
    console.print(Padding(Text(parameter["meaning"]), (0, 0, 0, 8)), highlight=False)
