"""`satisfice regrade`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from satisfice.cli.console import console, printable
from satisfice.cli.options import PROBLEMS, Grader, Json, RunFolder

if TYPE_CHECKING:
    from satisfice.trace import Grade

SHOWN = 40
"""Changes that are listed on the terminal; --json has all."""


def regrade(
    *,
    run: RunFolder,
    grader: Grader = None,
    against: Annotated[
        str | None,
        typer.Option(rich_help_panel=PROBLEMS, help="Another grader to compare with, instead of the run's grades."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Grade a finished run again without the model, beside the grades that it has.

    Without --grader each response is graded by its own, as that judges today. The run itself is never changed: new
    grades go into a file of their own in its folder, and every verdict that changed is listed with what both read.

    Example: satisfice regrade runs/lab-lab-test --grader exact
    """
    from satisfice.problems import GraderPool
    from satisfice.runs.regrading import regrade as carry_out
    from satisfice.runs.run_folder import read_run

    with GraderPool() as graders:
        found = carry_out(read_run(run), graders, grader, against)
    if as_json:
        data: dict[str, Any] = {
            "before": found.before,
            "after": found.after,
            "file": None if found.file is None else str(found.file),
            "graded": found.graded,
            "right_before": found.right_before,
            "right_after": found.right_after,
            "changes": [
                {**asdict(change), "before": change.before.model_dump(), "after": change.after.model_dump()}
                for change in found.changes
            ],
        }
        print(json.dumps(data, indent=2, ensure_ascii=False))
        return
    for change in found.changes[:SHOWN]:
        _say(
            f"{change.method} on {change.problem_id}, sample {change.sample}, gold {change.gold}: "
            f"{_read(change.before)} by {found.before}, {_read(change.after)} by {found.after}"
        )
    if len(found.changes) > SHOWN:
        _say(f"and {len(found.changes) - SHOWN:,} more (--json has all)")
    for method, before in found.right_before.items():
        _say(f"{method}: {before:,} right by {found.before}, {found.right_after[method]:,} by {found.after}")
    _say(f"{len(found.changes):,} of {found.graded:,} verdicts differ")
    if found.file is not None:
        console.print(f"\ngrades  {found.file}", highlight=False, markup=False)


def _read(grade: "Grade") -> str:
    read = "no answer" if grade.extracted is None else repr(grade.extracted)
    return f"{'right' if grade.correct else 'wrong'} ({read}{', ' + grade.note if grade.note else ''})"


def _say(text: str) -> None:
    console.print(Text(printable(text)), highlight=False)
