"""The command line: parses, calls, prints. Everything it does can be done from Python with the same few calls.

One file a command, imported when the command is asked for, so that `satisfice --help` answers at once. To add a command
`do-it`:

1. Write `satisfice/cli/do_it.py` with a function `do_it`. Its parameters, all by name, are groups of options and
   single options from `options.py` (`*, engine: EngineOptions, sampling: SamplingOptions, as_json: Json = False`), in
   the order of their headings in --help. Its docstring is one line, an empty line, what else there is to say, and one
   `Example: satisfice do-it ...`. What is slow to import (torch, transformers, numpy, the engines) is imported inside
   the function.
2. Give it a line in `COMMANDS`, under a heading: the first line of that docstring.

What it refuses it raises as a ValueError with one sentence, which becomes exit status 2; warnings go through
`console.complain`. The tests in `tests/cli/test_options.py` read the table and check all of this.
"""

import logging
import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any

# Loading weights draws a bar of its own, and advice meant for programmers, into ours.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import typer
from typer.core import TyperCommand, TyperGroup

from satisfice import __version__

COMMANDS: dict[str, dict[str, str]] = {
    "Measure": {
        "compare": "Run methods over problems; print the table, write the report. Run it again to resume.",
        "summary": "Print the table of a run, finished or not.",
        "report": "Write a run's report: one self-contained page, a table or the picture.",
        "diagnose": "Is this model verbose, where should it have stopped, and which methods are worth trying?",
        "information": (
            "What each step of the thinkings of a run tells about the answer, and how far they lie from ideal ones."
        ),
        "cost": "What a run cost in operations, memory traffic and money; which model and limit a budget buys.",
        "regrade": "Grade a finished run again without the model, beside the grades that it has.",
        "calibrate": (
            "Certify the setting of a method that saves most for a loss that you allow. Run it again to resume."
        ),
    },
    "Use": {
        "solve": "Solve one question: thinking dimmed, answer bright, the cost at the end.",
        "serve": (
            "Serve a model over HTTP as OpenAI's API, every method included. API keys: SATISFICE_API_KEY=KEY[,KEY...]."
        ),
    },
    "Train": {
        "sample": (
            "Write several responses to each problem into a run folder, for `satisfice curate`. Run it again to resume."
        ),
        "curate": "Make training data of sampled traces, with a card that says what was kept and why the rest was not.",
        "train": "Train a short or controllable model, with an objective or on curated data. Run it again to resume.",
        "evaluate-levels": "Ask a trained model for each of its levels and for none; say whether they are in order.",
    },
    "Look up": {
        "methods": "List every method, or one, with its paper, parameters, defaults and needs.",
        "objectives": "List every training objective, or one, with its paper, parameters, defaults and needs.",
        "doctor": "Say which engines and doors work here, and what to install for the others.",
    },
    "Lab": {
        "lab": "The embedded tiny reasoner and the word problems: train them.",
    },
}
"""The commands with a line on each, under the headings of `satisfice --help`. Their files are named after them."""


class Later(TyperCommand):
    """A command, or a group of them, whose file is imported when it is asked for."""

    def loaded(self) -> TyperCommand | TyperGroup:
        """The command itself.

        It is what its file defines under its name: a function whose parameters are options, or a typer app.
        """
        from satisfice.cli.command import made

        assert self.name is not None
        attribute = self.name.replace("-", "_")
        found = getattr(import_module(f"{__name__}.{attribute}"), attribute)
        if isinstance(found, typer.Typer):
            group = typer.main.get_command(found)
            assert isinstance(group, TyperGroup)
            return group
        return made(self.name, found)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command itself: from here on the parser deals with that alone."""
        return self.loaded().make_context(info_name, args, parent=parent, **extra)


class Commands(TyperGroup):
    """The commands of `COMMANDS`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for heading, commands in COMMANDS.items():
            for name, summary in commands.items():
                self.add_command(Later(name, help=summary, rich_help_panel=heading))


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make small reasoning models stop thinking at the right point.",
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"satisfice {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: every expected mistake becomes one sentence and a non-zero exit."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # warns of the missing time limit, which is ours
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app(prog_name="satisfice")
    except (ValueError, OSError) as error:
        # Everything this package refuses is a ValueError with a sentence for the user; files are the other half.
        from satisfice.cli.console import complain

        complain(f"satisfice: {error}", style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        from satisfice.cli.console import INTERRUPTED

        sys.exit(INTERRUPTED)
