"""Running methods over problems from the command line: what `compare` and `evaluate-levels` have in common."""

import asyncio
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from satisfice.cli.certified import certificate_of, warn_of_differences, warn_of_time
from satisfice.cli.console import FAILED, INTERRUPTED, complain, console
from satisfice.cli.options import (
    EngineOptions,
    ProblemOptions,
    PromptOptions,
    ReportOptions,
    RunOptions,
    SamplingOptions,
    WorkerOptions,
    slug,
)
from satisfice.cli.progress import bars
from satisfice.cli.tables import print_summary, summary_of

if TYPE_CHECKING:
    from satisfice.measurement import Summary
    from satisfice.runs.experiment import Experiment
    from satisfice.runs.run_folder import RunFolder
    from satisfice.trace import Attempt


def run_methods(
    spelled: list[str],
    name_folder: Callable[[str], str],
    *,
    engine: EngineOptions,
    workers: WorkerOptions,
    problems: ProblemOptions,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    run: RunOptions,
    report: ReportOptions,
    calibrated: Path | None = None,
    logprobs: bool = False,
) -> "Summary":
    """Run methods over problems into a folder, print the table and write the report.

    Args:
        spelled: the methods, the baseline first.
        name_folder: what the run folder in runs/ is called by default, from the name of the problem set.
        calibrated: certificate whose method and baseline are among them.
        logprobs: whether traces keep the log-probabilities of their tokens, where the engine gives them.

    Raises:
        typer.Exit: some responses could not be had, which was said, or the run was interrupted.
    """
    from satisfice.engines.base import Capability
    from satisfice.report import write_report
    from satisfice.runs.experiment import ALL, Experiment, check, every_method, methods_from
    from satisfice.runs.run_folder import ATTEMPTS, RunFolder, against, read_run

    certificate = certificate_of(calibrated, "plain")
    if certificate is not None:
        both = [certificate.baseline, str(certificate.method)]
        spelled = [*both, *(each for each in spelled if each not in both)]
    asked = methods_from(spelled)
    problem_set = problems.loaded(engine.model, sampling.seed)
    reads = "" if engine.attention in (None, "dense") else f"-{engine.attention}"
    folder = run.out or Path("runs") / slug(name_folder(problem_set.name) + reads)
    with workers.opened(engine, asked) as (opened, start):
        every, left_out = every_method(engine.model, opened)
        if ALL in spelled and left_out:
            complain(f"left out of all: {'; '.join(left_out)}")
        experiment = Experiment(
            problem_set,
            methods_from(spelled, every),
            sampling.over(opened),
            run.samples,
            sampling.seed,
            prompt.instruction_for(problem_set),
            prompt.system,
            run.concurrency or 2 * engine.max_batch,
            logprobs and Capability.LOGPROBS in opened.capabilities,
        )
        if logprobs and not experiment.logprobs:
            complain(f"no log-probabilities are kept, because {opened.name} gives none")
        check(opened, experiment)
        warn_of_time(experiment.methods, opened)
        warn_of_differences(certificate, opened, experiment.sampling, experiment.instruction, experiment.system)
        if certificate is not None and certificate.asked.get("problems_digest") == problem_set.digest:
            complain(f"warning: {calibrated} was calibrated on these very problems: compare on others")
        command = shlex.join(["satisfice", *sys.argv[1:]])
        with RunFolder.create_or_open(folder, experiment.configuration(opened, command)) as run_folder:
            for warning in run_folder.warnings:
                complain(f"warning: {warning}")
            if report.baseline is not None:
                # What cannot be paired is refused before it is run.
                against(read_run(folder), read_run(report.baseline))
            failed = carry_out(start, experiment, run_folder)
            done = read_run(folder)
            summary = summary_of(done, report)
            run_folder.write_summary(summary.model_dump())
    if report.baseline is not None:
        done = against(done, read_run(report.baseline))
        summary = summary_of(done, report)
    print_summary(summary)
    page = write_report(done, summary)
    console.print(f"\nreport  {page}", highlight=False)
    if failed:
        complain(
            f"satisfice: {len(failed)} responses could not be had and are in no table, the last because: "
            f"{failed[-1].error.splitlines()[0]}; each is noted in {folder / ATTEMPTS}, and the same command tries "
            "them again",
            style="red",
        )
        raise typer.Exit(FAILED)
    return summary


def carry_out(start: Any, experiment: "Experiment", run_folder: "RunFolder") -> "list[Attempt]":
    """The run with a bar for each method; Ctrl-C leaves a folder that can be resumed. Returns what failed."""
    from satisfice.problems import GraderPool
    from satisfice.runs.experiment import RunStopped

    failed: list[Attempt] = []
    try:
        with bars(failed) as progress, GraderPool() as graders:
            asyncio.run(start(experiment, run_folder, graders, progress))
    except RunStopped as stopped:
        complain(f"satisfice: {stopped}; {_kept(run_folder)}, and the same command goes on from there", style="red")
        raise typer.Exit(FAILED) from None
    except OSError as error:  # a disk that is full, most often
        raise OSError(f"{error}; {_kept(run_folder)}, and the same command goes on from there") from error
    except KeyboardInterrupt:
        complain(f"\ninterrupted: {_kept(run_folder)}; run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None
    return failed


def _kept(run_folder: "RunFolder") -> str:
    return f"{len(run_folder.done())} finished traces are in {run_folder.path}"
