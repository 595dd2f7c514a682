"""`satisfice evaluate-levels`."""

from itertools import pairwise
from pathlib import Path

import typer

from satisfice.cli.console import FAILED, console
from satisfice.cli.options import (
    EngineOptions,
    ProblemOptions,
    PromptOptions,
    ReportOptions,
    RunOptions,
    SamplingOptions,
    WorkerOptions,
)
from satisfice.cli.running import run_methods


def evaluate_levels(
    *,
    engine: EngineOptions,
    problems: ProblemOptions,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    run: RunOptions,
    report: ReportOptions,
    workers: WorkerOptions,
) -> None:
    """Ask a trained model for each of its levels and for none; say whether they are in order.

    Example: satisfice evaluate-levels lab-tldr --problems lab:test --limit 100
    """
    from satisfice.levels import LEVELS

    spelled = {level: f"tldr:level={level}" for level in LEVELS}
    summary = run_methods(
        ["plain", *spelled.values()],
        lambda problem_set: f"{Path(engine.model).name}-{problem_set}-levels",
        engine=engine,
        workers=workers,
        problems=problems,
        prompt=prompt,
        sampling=sampling,
        run=run,
        report=report,
    )
    rows = {row.method: row for row in summary.rows}
    lengths = [rows[method].thinking_tokens or 0.0 for method in spelled.values()]
    ordered = all(shorter < longer for shorter, longer in pairwise(lengths))
    said = ", ".join(f"{level} {length:.1f}" for level, length in zip(spelled, lengths, strict=True))
    console.print(f"levels {'in order' if ordered else 'NOT in order'}: {said} thinking tokens", highlight=False)
    if not ordered:
        raise typer.Exit(FAILED)
