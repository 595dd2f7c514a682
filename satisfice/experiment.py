"""Run a set of methods over a set of problems: schedule, grade, write down, resume.

Methods run one after another, so that their wall times do not disturb each other; within a method as many
problems are under way as the engine takes. Every finished trace is graded and appended to the run folder before
anything else happens to it. A problem on which a method fails becomes a trace with its error and stops nothing.
"""

import asyncio
import hashlib
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from satisfice.engines.base import Engine, EngineError, Sampling
from satisfice.intervention import METHODS, Method, MethodError, parse_method
from satisfice.intervention.method import together
from satisfice.lab import ALL_METHODS, SHIPPED
from satisfice.problems import GraderPool, Problem, ProblemSet
from satisfice.run_folder import Key, RunFolder
from satisfice.trace import Grade, Trace

ALL = "all"
"""Stands for every method, see `every_method`."""


@dataclass(frozen=True)
class Job:
    """One response to be had.

    Attributes:
        method: how.
        problem: as its set has it.
        sample: which of the responses to this problem, from 0.
    """

    method: Method
    problem: Problem
    sample: int


@dataclass(frozen=True)
class Experiment:
    """What to run.

    Attributes:
        problems: the problem set.
        methods: methods, the baseline first.
        sampling: shared by all methods; its seed is replaced by one for each problem and sample.
        samples: responses to each problem.
        seed: of the whole experiment.
        instruction: text after each question, in the same turn; "" for none.
        system: the system turn; "" for none.
        concurrency: problems under way at once.
    """

    problems: ProblemSet
    methods: Sequence[Method]
    sampling: Sampling
    samples: int = 1
    seed: int = 0
    instruction: str = ""
    system: str = ""
    concurrency: int = 64

    def asked(self, problem: Problem) -> Problem:
        """A problem as the model gets it: with the instruction and the system turn."""
        question = f"{problem.prompt}\n\n{self.instruction}" if self.instruction else problem.prompt
        return replace(problem, prompt=question, system=self.system or problem.system)

    def jobs(self, method: Method, done: set[Key]) -> list[Job]:
        """What a method has left to do, in order."""
        return [
            Job(method, problem, sample)
            for sample in range(self.samples)
            for problem in self.problems.problems
            if (str(method), problem.id, sample) not in done
        ]

    def asks(self, job: Job) -> tuple[Method, Problem, Sampling]:
        """What `solve_safely` takes for a job."""
        seed = sample_seed(self.seed, job.problem.id, job.sample)
        return job.method, self.asked(job.problem), replace(self.sampling, seed=seed)

    def configuration(self, engine: Engine, command: str = "") -> dict[str, Any]:
        """What run.json says: everything that decides the numbers, and with which versions they were made."""
        sampling = asdict(self.sampling)
        del sampling["seed"]
        companions = {
            name: {"model": companion.name, "model_digest": companion.digest}
            for name, companion in engine.companions.items()
        }
        return {
            "schema_version": 1,
            "command": command,
            "model": engine.name,
            "model_digest": engine.digest,
            "thinking": asdict(engine.thinking),
            # A run of one model says nothing of companions, as before there were any: it can still be resumed.
            **({"companions": companions} if companions else {}),
            "problems": {
                "name": self.problems.name,
                "digest": self.problems.digest,
                "n": len(self.problems.problems),
                "skipped": len(self.problems.skipped),
            },
            "methods": [str(method) for method in self.methods],
            "baseline": str(self.methods[0]),
            "samples": self.samples,
            "seed": self.seed,
            "sampling": sampling,
            "instruction": self.instruction,
            "system": self.system,
            "concurrency": self.concurrency,
            "versions": _versions(),
            "device": str(getattr(engine, "device", "")),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }


@dataclass
class Progress:
    """Where an experiment stands, for whoever draws it. Both calls may be replaced.

    Attributes:
        begin: called once a method with its spelling, how many traces it will have and how many are there already.
        advance: called with each new trace.
    """

    begin: Callable[[str, int, int], None] = field(default=lambda method, total, done: None)
    advance: Callable[[Trace], None] = field(default=lambda trace: None)


def sample_seed(seed: int, problem_id: str, sample: int) -> int:
    """The seed of one sample of one problem: the same for every method, so that methods are compared paired."""
    digest = hashlib.sha256(f"{seed}/{problem_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check(engine: Engine, experiment: Experiment) -> None:
    """Refuse what cannot work before anything is paid for.

    Raises:
        EngineError: a method needs what the engine lacks, such as a companion, or the sampling does not fit the model.
        ValueError: two methods are the same.
    """
    spelled = [str(method) for method in experiment.methods]
    for method in experiment.methods:
        method.check(engine)
        if spelled.count(str(method)) > 1:
            raise ValueError(f"the method {method} is given twice")
    if experiment.sampling.max_tokens >= engine.context_length:
        raise EngineError(
            f"max_tokens is {experiment.sampling.max_tokens}, but {engine.name} holds {engine.context_length} tokens, "
            "prompt included: lower max_tokens"
        )


async def run(
    engine: Engine, experiment: Experiment, folder: RunFolder, graders: GraderPool, progress: Progress | None = None
) -> None:
    """Run whatever of `experiment` the folder does not hold yet.

    Cancelling the task leaves a folder that the next run continues.

    Raises:
        EngineError: see `check`.
        OSError: a trace could not be written.
    """
    check(engine, experiment)
    progress = progress or Progress()
    done = folder.done()
    for method in experiment.methods:
        jobs = experiment.jobs(method, done)
        total = experiment.samples * len(experiment.problems.problems)
        progress.begin(str(method), total, total - len(jobs))
        gate = asyncio.Semaphore(experiment.concurrency)
        # A method's own failures become traces; what is raised here comes from the folder or the grader.
        await together(*(_solve_one(engine, experiment, job, gate, folder, graders, progress) for job in jobs))


async def _solve_one(
    engine: Engine,
    experiment: Experiment,
    job: Job,
    gate: asyncio.Semaphore,
    folder: RunFolder,
    graders: GraderPool,
    progress: Progress,
) -> None:
    async with gate:
        trace = await solve_safely(engine, *experiment.asks(job))
    await record(job, trace, folder, graders, progress)


async def record(job: Job, trace: Trace, folder: RunFolder, graders: GraderPool, progress: Progress) -> None:
    """Grade the trace of a job and write it down.

    Raises:
        OSError: it could not be written.
    """
    problem = job.problem
    trace.prompt, trace.sample = problem.prompt, job.sample
    if trace.error is None:
        trace.grade = await graders.grade(
            grader=problem.grader,
            answer=trace.answer,
            gold=problem.answer,
            finished=trace.finished,
            problem_id=problem.id,
        )
    else:
        trace.grade = Grade(correct=False, expected=problem.answer, grader=problem.grader, note="error")
    folder.append(trace)
    progress.advance(trace)


async def solve_safely(engine: Engine, method: Method, problem: Problem, sampling: Sampling) -> Trace:
    """Solve one problem; whatever goes wrong inside becomes a trace with its error."""
    started = time.perf_counter()
    try:
        return await method.solve(engine, problem, sampling)
    except Exception as error:  # one problem's failure must not take the run down
        trace = Trace(
            problem_id=problem.id,
            source=problem.source,
            gold=problem.answer,
            method=str(method),
            seed=sampling.seed,
            stop="error",
            finished=False,
            error=f"{type(error).__name__}: {error}",
        )
        trace.cost.seconds = time.perf_counter() - started
        if not isinstance(error, EngineError):
            trace.error = f"{trace.error}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
        return trace


def methods_from(spelled: Sequence[str], every: Sequence[Method] = ()) -> list[Method]:
    """The methods of a command line; the baseline `plain`, where it is given, comes first.

    Args:
        spelled: methods as spelled; where "all" is among them, a method that comes up twice is taken once.
        every: what "all" stands for.

    Raises:
        MethodError: a method cannot be read.
    """
    methods = [parse_method(text) for text in spelled if text != ALL]
    if ALL in spelled:
        methods = list({str(method): method for method in [*every, *methods]}.values())
    return sorted(methods, key=lambda method: str(method) != "plain")


def every_method(model: str, engine: Engine) -> tuple[list[Method], list[str]]:
    """What "all" stands for: the lab's own spellings for the lab, for any other model every method by its defaults.

    Returns:
        the methods; and one sentence for each that is left out, because it has a parameter without a default or
        needs what this engine lacks.
    """
    methods, left_out = [], []
    for spelled in ALL_METHODS if model in SHIPPED else METHODS:
        try:
            method = parse_method(spelled)
            method.check(engine)
        except (MethodError, EngineError) as error:
            left_out.append(str(error))
        else:
            methods.append(method)
    return methods, left_out


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("satisfice", "torch", "transformers", "math-verify"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
