"""`satisfice calibrate`."""

import asyncio
import hashlib
import json
import shlex
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from satisfice.cli.certified import warn_of_time
from satisfice.cli.console import FAILED, INTERRUPTED, complain, console
from satisfice.cli.options import (
    PROMISE,
    RUN,
    Concurrency,
    Confidence,
    Counting,
    EngineOptions,
    Json,
    MaxLoss,
    Methods,
    Plugins,
    ProblemOptions,
    PromptOptions,
    SamplingOptions,
    slug,
)
from satisfice.cli.progress import bars

if TYPE_CHECKING:
    from satisfice.runs.certificate import Certificate

_promise = partial(typer.Option, rich_help_panel=PROMISE)
_run = partial(typer.Option, rich_help_panel=RUN)


@dataclass(frozen=True)
class PromiseOptions:
    """What is to be promised of the setting that is looked for."""

    max_loss: MaxLoss = 0.01
    confidence: Confidence = 0.95
    loss: Annotated[
        str,
        _promise(
            help="net: what accuracy falls by, gains paying for losses. harm: right before, wrong now. disagreement: "
            "another answer, which needs no gold answers."
        ),
    ] = "net"
    holdout: Annotated[float, _promise(help="Share of the problems held back, on which the saving is measured.")] = 0.3
    grid: Annotated[
        list[str] | None,
        _promise(help="Values to try from harmless to bold, as t=0.95,0.9 or deer:threshold=0.99,0.9."),
    ] = None


@dataclass(frozen=True)
class CalibrationOptions:
    """Where a calibration is kept."""

    runs: Annotated[
        Path | None, _run(help="Folder of the calibration; by default in runs/, named after what is promised of what.")
    ] = None
    out: Annotated[Path | None, _run(help="File for the certificate; by default in that folder.")] = None
    concurrency: Concurrency = None
    counting: Counting = None


def calibrate(
    *,
    methods: Methods = None,
    plugin: Plugins = None,
    engine: EngineOptions,
    problems: ProblemOptions,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    promise: PromiseOptions,
    run: CalibrationOptions,
    as_json: Json = False,
) -> None:
    """Certify the setting of a method that saves most for a loss that you allow. Run it again to resume.

    Spell methods without what is varied. Ask problems that you will not report on; more of them may be added later
    with a larger --limit. That none qualifies is a result, too.

    Example: satisfice calibrate lab --methods temperature-scaling --max-loss 0.05 --limit 600
    """
    from satisfice.problems import GraderPool
    from satisfice.report.certificate import write_picture
    from satisfice.runs.calibration import Promise, check_enough, ladders
    from satisfice.runs.calibration import calibrate as certify
    from satisfice.runs.experiment import Experiment, RunStopped
    from satisfice.runs.run_folder import write_atomically
    from satisfice.trace import Cost

    if not methods:
        raise ValueError("say what to calibrate, for example --methods temperature-scaling")
    loss: Any = promise.loss
    wanted = Promise(promise.max_loss, promise.confidence, loss, promise.holdout)
    # What cannot be read is refused before a model is loaded.
    settings = [each for found in ladders(methods, promise.grid, sys.maxsize) for each in found.settings]
    if run.counting is not None:
        Cost().count(run.counting)
    problem_set = problems.loaded(
        engine.model, sampling.seed, own="lab:certify", without_gold=promise.loss == "disagreement"
    )
    check_enough(wanted, len(methods), len(problem_set.problems))
    folder = run.runs or Path("runs") / folder_name(
        engine,
        problem_set.name,
        promise,
        [methods, promise.grid, asdict(sampling), asdict(prompt), {**asdict(problems), "limit": None}],
    )
    again = "the same command goes on from there"
    with engine.opened(settings) as opened:
        warn_of_time(settings, opened)
        over = sampling.over(opened)
        experiment = Experiment(
            problem_set,
            (),
            over,
            seed=sampling.seed,
            instruction=prompt.instruction_for(problem_set),
            system=prompt.system,
            concurrency=run.concurrency or engine.max_batch,
        )
        command = shlex.join(["satisfice", *sys.argv[1:]])
        found = ladders(methods, promise.grid, over.max_tokens)
        try:
            with bars() as progress, GraderPool() as graders:
                certificate = asyncio.run(
                    certify(
                        opened, experiment, found, wanted, folder, graders, progress, convention=run.counting,
                        command=command,
                    )
                )  # fmt: skip
        except RunStopped as stopped:
            complain(f"satisfice: {stopped}; {again}", style="red")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            complain(f"\ninterrupted: what is finished is in {folder}; {again}")
            raise typer.Exit(INTERRUPTED) from None
    written = Path(certificate.path)
    if run.out is not None:
        write_atomically(run.out, written.read_bytes())
        written = run.out
    picture = write_picture(certificate, folder / "calibration.svg")
    failing = [each.method for row in certificate.ladders.values() for each in row if each.verdict == "failing"]
    if as_json:
        print(json.dumps(certificate.model_dump(), indent=2))
    else:
        _print(certificate, written, picture, engine.model)
    if failing:
        complain(
            f"satisfice: too many responses of {', '.join(failing)} could not be had, so it is not certified; {again}",
            style="red",
        )
        raise typer.Exit(FAILED)


def folder_name(engine: EngineOptions, problems: str, promise: PromiseOptions, others: Any) -> str:
    """The name of a calibration's folder: calibrations that differ in anything that decides them have two.

    Args:
        engine, problems, promise: what can be read in the name.
        others: everything else that decides, but for the number of problems, to which more may be added.
    """
    decides = [engine.engine_name, engine.thinking_format, engine.companion, promise.holdout, others]
    digest = hashlib.sha256(json.dumps(decides, default=str).encode()).hexdigest()[:8]
    name = f"{engine.model}-{problems}-{promise.loss}-{promise.max_loss:g}-at-{promise.confidence:g}-{digest}"
    return f"{slug(name)}-calibration"


def _print(certificate: "Certificate", written: Path, picture: Path, model: str) -> None:
    from satisfice.runs.calibration import sentences

    for line in sentences(certificate):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"\ncertificate  {written}\npicture      {picture}", highlight=False, markup=False, soft_wrap=True)
    if certificate.method is not None:
        console.print(
            f"to use it    satisfice solve {shlex.quote(model)} --calibrated {shlex.quote(str(written))} "
            "QUESTION",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
