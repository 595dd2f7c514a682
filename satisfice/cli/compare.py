"""`satisfice compare`."""

from satisfice.cli.options import (
    Calibrated,
    EngineOptions,
    Methods,
    Plugins,
    ProblemOptions,
    PromptOptions,
    ReportOptions,
    RunOptions,
    SamplingOptions,
    WorkerOptions,
)
from satisfice.cli.running import run_methods


def compare(
    *,
    methods: Methods = None,
    calibrated: Calibrated = None,
    plugin: Plugins = None,
    engine: EngineOptions,
    problems: ProblemOptions,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    run: RunOptions,
    report: ReportOptions,
    workers: WorkerOptions,
) -> None:
    """Run methods over problems; print the table, write the report. Run it again to resume.

    With --calibrated the certified method and its baseline are among the methods.

    Example: satisfice compare lab --methods plain temperature-scaling:t=0.85 no-wait --limit 100
    """
    from satisfice.lab import DEMO_METHODS

    run_methods(
        methods or ([] if calibrated else list(DEMO_METHODS.get(engine.model, ("plain", "temperature-scaling")))),
        lambda problem_set: f"{engine.model}-{problem_set}",
        calibrated=calibrated,
        engine=engine,
        workers=workers,
        problems=problems,
        prompt=prompt,
        sampling=sampling,
        run=run,
        report=report,
    )
