"""The table of a run on the terminal."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from satisfice.cli.console import NARROWEST, console, printable
from satisfice.cli.options import ReportOptions

if TYPE_CHECKING:
    from satisfice.measurement import Summary
    from satisfice.runs.run_folder import Run


def run_of(folder: Path, how: ReportOptions) -> "Run":
    """A run, with another one as its baseline where one is given."""
    from satisfice.runs.run_folder import against, read_run

    run = read_run(folder)
    return run if how.baseline is None else against(run, read_run(how.baseline))


def summary_of(run: "Run", how: ReportOptions) -> "Summary":
    """The summary of a run that was read."""
    from satisfice.measurement import summarise

    return summarise(run.config, run.traces, how.counting, how.margin, run.failures)


def pairs_table(lines: Sequence[tuple[str, str]]) -> Table:
    """Names and values side by side; a long value goes on below itself."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in lines:
        table.add_row(Text(name), Text(printable(value)))
    return table


def print_summary(result: "Summary") -> None:
    """A row a method: numbers, below them their intervals, and in words below the table what it shows."""
    from satisfice.report import headline
    from satisfice.report.findings import COUNTED

    limit = "" if result.cap is None else f" of {result.cap:,} tokens"
    counts = {row.n for row in result.rows}
    columns = ["right %", "vs base", "thinking", "in all", "saved %", "cut %"]
    if len(counts) > 1:
        columns.insert(0, "n")
    if any(row.failed for row in result.rows):
        columns.append("failed")
    # A cell is two lines, the number and its interval.
    lines = [
        {
            "n": str(row.n),
            "right %": _two_lines(percent(row.accuracy), row.accuracy_low, row.accuracy_high),
            "vs base": _two_lines(
                _signed(row.accuracy_difference), row.accuracy_difference_low, row.accuracy_difference_high, signed=True
            ),
            "thinking": number(row.thinking_tokens),
            "in all": number(row.total_tokens),
            "saved %": _two_lines(percent(row.token_saving), row.token_saving_low, row.token_saving_high),
            "cut %": percent(row.truncated_share),
            "failed": str(row.failed or ""),
        }
        for row in result.rows
    ]
    widths = {
        name: max(len(name), *(len(part) for cells in lines for part in cells[name].split("\n"))) for name in columns
    }
    # What is left of the width is the method's, and where that is too little, thinking goes: all tokens say more.
    if console.width - sum(widths.values()) - 3 - 2 * len(widths) < NARROWEST and "thinking" in columns:
        columns.remove("thinking")
    gap = 2 if console.width - sum(widths[name] for name in columns) - 3 - 2 * len(columns) >= NARROWEST else 1
    room = max(NARROWEST, console.width - sum(widths[name] for name in columns) - 2 - gap * len(columns))
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), collapse_padding=True, header_style="bold")
    table.add_column("method", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row, cells in zip(result.rows, lines, strict=True):
        method = ("* " if row.pareto else "  ") + _broken(printable(row.method), room - 2).replace("\n", "\n  ")
        table.add_row(Text(method), *(Text(cells[name]) for name in columns))
    console.print()
    console.print(table)
    counted = COUNTED[result.convention]
    legend = [
        f"n = {counts.pop():,} problems; right" if len(counts) == 1 else "right",
        f": below it the 95 % interval; vs base: points against {result.baseline} on the same problems; ",
        "thinking, " if "thinking" in columns else "",
        f"in all: mean tokens; saved: {counted} against {result.baseline}; cut: by the token limit{limit}, counted as ",
        f"wrong; *: on the Pareto front of accuracy and {counted}",
    ]
    console.print(Text(printable("".join(legend)), style="dim"), highlight=False)
    if result.attention != "dense":
        console.print(Text(f"decoded with {printable(result.attention)} attention"), highlight=False)
    for note in result.notes:
        console.print(Text(f"note: {printable(note)}", style="yellow"), highlight=False)
    console.print(Text(f"\n{printable(str(headline(result)))}"), highlight=False)


def percent(share: float | None) -> str:
    """In points, "" for none."""
    return "" if share is None else f"{100 * share:.1f}"


def number(value: float | None) -> str:
    """With one decimal, a dash for none."""
    return "–" if value is None else f"{value:.1f}"


def interval(low: float | None, high: float | None) -> str:
    """In points and in brackets, "" for none."""
    return "" if low is None or high is None else f"({100 * low:.1f}…{100 * high:.1f})"


def _signed(share: float | None) -> str:
    return "" if share is None else f"{100 * share + 0.0:+.1f}"


def _two_lines(value: str, low: float | None, high: float | None, signed: bool = False) -> str:
    """A number and below it its interval; a bound that fits no table (of two problems, say) is not spelled out."""
    if not value or low is None or high is None:
        return value
    ends = [f"{100 * end:{'+' if signed else ''}.1f}" if end > -10 else "<-999" for end in (low, high)]
    return f"{value}\n{'…'.join(ends)}"


def _broken(method: str, width: int) -> str:
    """The spelling of a method in lines of some width, broken between its parts where it can be."""
    lines = [""]
    for part in re.split(r"(?<=[:,+| ])", method):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1]) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(lines)
