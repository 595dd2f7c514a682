"""`satisfice sample`."""

from typing import Annotated

import typer

from satisfice.cli.options import (
    OUTPUT,
    EngineOptions,
    ProblemOptions,
    PromptOptions,
    ReportOptions,
    RunOptions,
    SamplingOptions,
    WorkerOptions,
)
from satisfice.cli.running import run_methods

METHOD = "plain"
"""What writes the traces that curation reads."""


def sample(
    *,
    engine: EngineOptions,
    problems: ProblemOptions,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    run: RunOptions,
    workers: WorkerOptions,
    logprobs: Annotated[
        bool,
        typer.Option(
            "--logprobs/--no-logprobs",
            rich_help_panel=OUTPUT,
            help="Keep the log-probability of every token, where the engine gives them.",
        ),
    ] = True,
) -> None:
    """Write several responses to each problem into a run folder, for `satisfice curate`. Run it again to resume.

    Example: satisfice sample lab --problems lab:train --limit 300 --samples 8 --out runs/samples
    """
    run_methods(
        [METHOD],
        lambda problem_set: f"{engine.model}-{problem_set}-samples",
        engine=engine,
        workers=workers,
        problems=problems,
        prompt=prompt,
        sampling=sampling,
        run=run,
        report=ReportOptions(),
        logprobs=logprobs,
    )
