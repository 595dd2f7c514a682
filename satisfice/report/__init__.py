"""A run made readable: one page with the picture, the table and every trace, or one of its parts as a file."""

import json
from pathlib import Path

from satisfice.measurement import MARGIN, Summary, summarise
from satisfice.report.figures import accuracy_cost_figure, lengths_figure, to_png, to_svg
from satisfice.report.findings import Headline, accuracy_claim, headline, saving_claim
from satisfice.report.html_page import MAX_TRACES, page
from satisfice.report.tables import markdown, to_csv
from satisfice.report.timeline import timeline_figure
from satisfice.runs.run_folder import Run, against, read_run, write_atomically

__all__ = [
    "FORMATS",
    "Headline",
    "accuracy_claim",
    "accuracy_cost_figure",
    "headline",
    "lengths_figure",
    "markdown",
    "page",
    "report",
    "saving_claim",
    "timeline_figure",
    "to_csv",
    "to_png",
    "to_svg",
    "write_report",
]

FORMATS = {
    "html": "report.html",
    "md": "report.md",
    "csv": "report.csv",
    "png": "accuracy-cost.png",
    "svg": "accuracy-cost.svg",
    "json": "summary.json",
}
"""The formats of a report, and the file of each in the run folder."""


def report(
    run_folder: str | Path,
    format: str = "html",
    out: str | Path | None = None,
    convention: str | None = None,
    max_traces: int = MAX_TRACES,
    baseline: str | Path | None = None,
    margin: float = MARGIN,
) -> Path:
    """Write a report of a run, finished or not, and say where.

    Args:
        run_folder: the run.
        format: one of `FORMATS`: the page, the table as Markdown, CSV or JSON, or the picture as PNG or SVG.
        out: the file to write; by default the one that `FORMATS` names, in the run folder.
        convention: the counting convention of cost, saving and Pareto front (`satisfice.trace.CONVENTIONS`); by
            default "total" where any method spent tokens beside its response, else "thinking".
        max_traces: how many traces of each method the page holds at most.
        baseline: another run, of another model on the same problems, whose baseline this one is compared with.
        margin: the loss of accuracy, as a share, that a method which "keeps the accuracy" must rule out.

    Raises:
        ValueError: there is no such format or convention, `max_traces` is below 1, there is no run, a file of it
            is damaged, or the baseline is of other problems.
    """
    _check(format, max_traces)
    run = read_run(run_folder)
    if baseline is not None:
        run = against(run, read_run(baseline))
    summary = summarise(run.config, run.traces, convention, margin, run.failures)
    return write_report(run, summary, format, out, max_traces)


def write_report(
    run: Run, summary: Summary, format: str = "html", out: str | Path | None = None, max_traces: int = MAX_TRACES
) -> Path:
    """The same of a run that was read already, with its summary.

    Raises:
        ValueError: there is no such format, or `max_traces` is below 1.
    """
    _check(format, max_traces)
    content: str | bytes
    if format == "html":
        content = page(run, summary, max_traces)
    elif format == "md":
        content = markdown(summary)
    elif format == "csv":
        content = to_csv(summary)
    elif format == "png":
        content = to_png(accuracy_cost_figure(summary))
    elif format == "svg":
        content = to_svg(accuracy_cost_figure(summary))
    else:
        content = json.dumps(summary.model_dump(), indent=2, ensure_ascii=False) + "\n"
    path = Path(out) if out is not None else run.folder / FORMATS[format]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def _check(format: str, max_traces: int) -> None:
    if format not in FORMATS:
        raise ValueError(f"no report format {format!r}; use one of {', '.join(FORMATS)}")
    if max_traces < 1:
        raise ValueError(f"a page needs at least one trace of each method, not {max_traces}")
