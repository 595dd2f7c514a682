"""Progress on the terminal: a bar for each method, and what comes of it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from satisfice.cli.console import NARROWEST, errors

if TYPE_CHECKING:
    from satisfice.runs import experiment
    from satisfice.trace import Attempt, Trace

WIDE = 100
"""Columns of a terminal from which on progress is drawn in full."""


def drawn(disable: bool = False) -> Progress:
    """Bars on the terminal; where it is narrow, what matters stays: the bar itself goes, and long names are cut."""
    wide = errors.width >= WIDE
    name = None if wide else Column(no_wrap=True, max_width=max(NARROWEST, errors.width - 48))
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=name),
        *([BarColumn(bar_width=24)] if wide else []),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}"),
        *([TimeElapsedColumn()] if wide else []),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=errors,
        disable=disable,
    )


@contextmanager
def bars(failed: "list[Attempt] | None" = None) -> "Iterator[experiment.Progress]":
    """The progress of an experiment, drawn as a bar for each method; attempts that failed go into `failed`."""
    from satisfice.runs import experiment

    shown = drawn()
    tasks: dict[str, tuple[TaskID, Counter[str]]] = {}

    def begin(method: str, total: int, done: int) -> None:
        tasks[method] = shown.add_task(method, total=total, completed=done, rates=""), Counter()

    def advance(trace: "Trace") -> None:
        # Calibration begins what it measures under names of its own, one after another.
        task, counts = tasks.get(trace.method) or tasks[next(reversed(tasks))]
        counts["traces"] += 1
        counts["tokens"] += trace.cost.total_tokens
        counts["correct"] += trace.correct
        elapsed = shown.tasks[task].elapsed or 1e-9
        rates = (
            f"{counts['traces'] / elapsed:5.1f}/s "
            + (f"{counts['tokens'] / elapsed:6.0f} tok/s " if errors.width >= WIDE else "")
            + f"{counts['correct'] / counts['traces']:4.0%} right"
        )
        if counts["failed"]:
            rates += f" [red]{counts['failed']} failed[/red]"
        shown.update(task, advance=1, rates=rates)

    def fail(attempt: "Attempt") -> None:
        if failed is not None:
            failed.append(attempt)
        task, counts = tasks[attempt.method]
        counts["failed"] += 1
        shown.update(task, rates=f"[red]{counts['failed']} failed[/red]")

    with shown:
        yield experiment.Progress(begin, advance, fail)
