"""`satisfice report`."""

from pathlib import Path
from typing import Annotated

import typer

from satisfice.cli.console import console
from satisfice.cli.options import OUTPUT, ReportOptions, RunFolder


def report(
    *,
    run: RunFolder,
    report: ReportOptions,
    format: Annotated[str, typer.Option(rich_help_panel=OUTPUT, help="html, md, csv, json, png or svg.")] = "html",
    out: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="File to write; by default inside the run folder.")
    ] = None,
) -> None:
    """Write a run's report: one self-contained page, a table or the picture.

    Example: satisfice report runs/lab-lab-test --format md
    """
    from satisfice.report import report as write

    written = write(
        run, format=format, out=out, convention=report.counting, baseline=report.baseline, margin=report.margin
    )
    console.print(str(written), highlight=False)
