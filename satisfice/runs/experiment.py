"""Run a set of methods over a set of problems: schedule, grade, write down, resume.

Methods run one after another, so that their wall times do not disturb each other; within a method as many
problems are under way as the engine takes. Every finished trace is graded and appended to the run folder before
anything else happens to it.

A response that could not be had is an attempt, never a trace: it is noted beside the traces, counts in no table, and
the next run tries it again. What is transient is tried a few times at once. One failure stops nothing; a run in which
most requests fail stops, because it would only pay for more of them.
"""

import asyncio
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from satisfice.engines.base import (
    Capability,
    Engine,
    EngineClosed,
    EngineError,
    EngineFailed,
    Sampling,
    derive_seed,
    require,
)
from satisfice.intervention import METHODS, Method, MethodError, lab_spellings, parse_method
from satisfice.intervention.method import together
from satisfice.lab import SHIPPED
from satisfice.problems import GRADING_VERSION, GraderError, GraderPool, Problem, ProblemSet
from satisfice.registry import plugins_in_use
from satisfice.runs.run_folder import Key, RunFolder
from satisfice.trace import Attempt, Cost, Trace

ALL = "all"
"""Stands for every method, see `every_method`."""
TRIES = 3
"""How often a response is tried for in one run where the failure is transient."""
PAUSE = 0.5
"""Seconds before the second try; four times as many before each further one."""
MANY_FAILURES = 12
"""Responses that have to fail before a run may stop because most of them do."""
IN_A_ROW = 2
"""How many times what is under way at once has to fail in a row before a run stops, whatever was answered before."""


class RunStopped(RuntimeError):  # noqa: N818
    """Most requests failed, so the run stopped. What is finished is in the folder; the same command goes on."""


@dataclass(frozen=True)
class Task:
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
        logprobs: whether traces keep the log-probabilities of their tokens; a run may be resumed with or without.
    """

    problems: ProblemSet
    methods: Sequence[Method]
    sampling: Sampling
    samples: int = 1
    seed: int = 0
    instruction: str = ""
    system: str = ""
    concurrency: int = 64
    logprobs: bool = False

    def asked(self, problem: Problem) -> Problem:
        """A problem as the model gets it: with the instruction and the system turn."""
        question = f"{problem.prompt}\n\n{self.instruction}" if self.instruction else problem.prompt
        return replace(problem, prompt=question, system=self.system or problem.system)

    def tasks(self, method: Method, done: set[Key]) -> list[Task]:
        """What a method has left to do, in order."""
        return [
            Task(method, problem, sample)
            for sample in range(self.samples)
            for problem in self.problems.problems
            if (str(method), problem.id, sample) not in done
        ]

    def asks(self, task: Task) -> tuple[Method, Problem, Sampling, bool]:
        """What `try_to_solve` takes for a task."""
        seed = sample_seed(self.seed, task.problem.id, task.sample)
        return task.method, self.asked(task.problem), replace(self.sampling, seed=seed), self.logprobs

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
            # Likewise one that reads all says nothing of it.
            **({"attention": str(engine.attention)} if engine.attention.kind != "dense" else {}),
            "problems": {
                "name": self.problems.name,
                "digest": self.problems.digest,
                "n": len(self.problems.problems),
                "skipped": len(self.problems.skipped),
                "grading_version": GRADING_VERSION,
            },
            "methods": [str(method) for method in self.methods],
            "baseline": str(self.methods[0]),
            "samples": self.samples,
            "seed": self.seed,
            "sampling": sampling,
            "instruction": self.instruction,
            "system": self.system,
            "concurrency": self.concurrency,
            **({"logprobs": True} if self.logprobs else {}),
            "versions": versions_of(engine.name),
            **({"plugins": plugins} if (plugins := plugins_in_use()) else {}),
            "device": str(getattr(engine, "device", "")),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }


@dataclass
class Progress:
    """Where an experiment stands, for whoever draws it. Both calls may be replaced.

    Attributes:
        begin: called once a method with its spelling, how many traces it will have and how many are there already.
        advance: called with each new trace.
        fail: called with the last attempt at a response that could not be had.
    """

    begin: Callable[[str, int, int], None] = field(default=lambda method, total, done: None)
    advance: Callable[[Trace], None] = field(default=lambda trace: None)
    fail: Callable[[Attempt], None] = field(default=lambda attempt: None)


@dataclass(frozen=True)
class Outcome:
    """What came of trying for one response.

    Attributes:
        trace: the response, ungraded; None where it could not be had.
        attempts: the tries that failed, in their order.
    """

    trace: Trace | None
    attempts: tuple[Attempt, ...] = ()


@dataclass
class Failures:
    """Counts the outcomes of a run, and stops it where most requests fail.

    A request that the engine refuses, whatever its load, touches nothing but itself: those count only as long as
    nothing at all has been answered.

    Attributes:
        concurrency: responses under way at once.
    """

    concurrency: int = 1
    answered: int = 0
    refused: int = 0
    failed: int = 0
    in_a_row: int = 0

    def count(self, outcome: Outcome) -> None:
        """Take one more outcome in.

        Raises:
            RunStopped: most of what was asked has failed.
        """
        if outcome.trace is not None:
            self.answered += 1
            self.in_a_row = 0
            return
        last = outcome.attempts[-1]
        if last.transient or last.unexpected:
            self.failed += 1
            self.in_a_row += last.transient  # an outage; a method's own fault says nothing of the next problem
        else:
            self.refused += 1
        lost = self.failed if self.answered else self.failed + self.refused
        most = lost >= MANY_FAILURES and lost > self.answered
        if most or self.in_a_row >= max(MANY_FAILURES, IN_A_ROW * self.concurrency):
            which = f"{lost} of {lost + self.answered} responses" if most else f"{self.in_a_row} responses in a row"
            raise RunStopped(f"stopped: {which} could not be had, the last because: {last.error.splitlines()[0]}")


def sample_seed(seed: int, problem_id: str, sample: int) -> int:
    """The seed of one sample of one problem: the same for every method, so that methods are compared paired."""
    return derive_seed(seed, f"sample/{problem_id}/{sample}")


def check(engine: Engine, experiment: Experiment) -> None:
    """Refuse what cannot work before anything is paid for.

    Raises:
        EngineError: a method needs what the engine lacks, such as a companion, or the sampling does not fit the model.
        ValueError: two methods are the same.
    """
    if experiment.logprobs:
        require(engine, frozenset({Capability.LOGPROBS}), "keeping log-probabilities")
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

    Cancelling it leaves a folder that the next run continues, and so does any failure: what could not be had is
    noted in the folder as attempts, and the next run tries it again.

    Raises:
        EngineError: see `check`.
        EngineClosed: the engine was closed on the way.
        RunStopped: most requests failed.
        OSError: a trace could not be written.
    """
    check(engine, experiment)
    progress = progress or Progress()
    failures = Failures(experiment.concurrency)
    done = folder.done()
    for method in experiment.methods:
        tasks = experiment.tasks(method, done)
        total = experiment.samples * len(experiment.problems.problems)
        progress.begin(str(method), total, total - len(tasks))
        gate = asyncio.Semaphore(experiment.concurrency)
        solved = await together(
            *(_solve_one(engine, experiment, task, gate, folder, graders, progress, failures) for task in tasks)
        )
        suspects = [task for task, settled in zip(tasks, solved, strict=True) if not settled]
        # One request may have taken down all that ran beside it, again and again: each gets a try of its own.
        # Alone they take long to fail where the engine is down for good, so these are counted by themselves.
        alone = Failures()
        for task in suspects:
            outcome = await try_to_solve(engine, *experiment.asks(task), tries=1)
            alone.count(await record(task, outcome, folder, graders, progress))


async def _solve_one(
    engine: Engine,
    experiment: Experiment,
    task: Task,
    gate: asyncio.Semaphore,
    folder: RunFolder,
    graders: GraderPool,
    progress: Progress,
    failures: Failures,
) -> bool:
    """Try for one response and write down what came of it; whether that settles it in this run."""
    async with gate:
        outcome = await try_to_solve(engine, *experiment.asks(task))
    outcome = await record(task, outcome, folder, graders, progress, again=True)
    failures.count(outcome)
    return outcome.trace is not None or not outcome.attempts[-1].transient


async def record(
    task: Task, outcome: Outcome, folder: RunFolder, graders: GraderPool, progress: Progress, *, again: bool = False
) -> Outcome:
    """Write down what came of a task: its trace, graded, and the tries that failed.

    Args:
        task: what was tried for.
        outcome: what came of it.
        folder: where it is written.
        graders: judge the answer.
        progress: told of it.
        again: whether what is transient will be tried again in this run.

    Returns:
        what came of it in the end: a response that its grader cannot judge is neither right nor wrong, so it is one
        that could not be had.

    Raises:
        OSError: it could not be written.
    """
    problem, trace = task.problem, outcome.trace
    if trace is not None:
        trace.prompt, trace.sample = problem.prompt, task.sample
        try:
            trace.grade = await graders.grade(
                grader=problem.grader,
                answer=trace.answer,
                gold=problem.answer,
                finished=trace.finished,
                problem_id=problem.id,
            )
        except GraderError as error:
            attempt = failed_attempt(task.method, problem, trace.seed, error, trace.cost)
            outcome, trace = Outcome(None, (*outcome.attempts, attempt)), None
    for attempt in outcome.attempts:
        attempt.sample = task.sample
        folder.note_failure(attempt)
    if trace is None:
        if not (again and outcome.attempts[-1].transient):
            progress.fail(outcome.attempts[-1])
        return outcome
    folder.append(trace)
    progress.advance(trace)
    return outcome


async def try_to_solve(
    engine: Engine, method: Method, problem: Problem, sampling: Sampling, logprobs: bool = False, *, tries: int = TRIES
) -> Outcome:
    """Solve one problem, again where a failure is transient; what goes wrong inside becomes an attempt.

    Args:
        engine, method, problem, sampling: see `Method.solve`.
        logprobs: whether the trace is to hold the log-probabilities of its tokens.
        tries: how often, at most.

    Raises:
        EngineClosed: the engine was closed: that is nothing that this problem's method did.
    """
    attempts: list[Attempt] = []
    while len(attempts) < tries:
        if attempts:
            await asyncio.sleep(PAUSE * 4 ** (len(attempts) - 1))
        draft, started = None, time.perf_counter()
        try:
            draft = method.draft(engine, problem, sampling, logprobs=logprobs)
            return Outcome(await method.complete(draft), tuple(attempts))
        except EngineClosed:
            raise
        except Exception as error:  # one problem's failure must not take the run down
            cost = Cost(seconds=time.perf_counter() - started) if draft is None else draft.cost()
            attempts.append(failed_attempt(method, problem, sampling.seed, error, cost))
            if not attempts[-1].transient:
                break
    return Outcome(None, tuple(attempts))


def failed_attempt(method: Method, problem: Problem, seed: int, error: Exception, cost: Cost) -> Attempt:
    """The record of a try that ended with `error`."""
    said = f"{type(error).__name__}: {error}"
    unexpected = not isinstance(error, (EngineError, MethodError, GraderError))
    if unexpected:
        said = f"{said}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
    return Attempt(
        problem_id=problem.id,
        source=problem.source,
        method=str(method),
        seed=seed,
        error=said,
        transient=isinstance(error, EngineFailed),
        unexpected=unexpected,
        cost=cost,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


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
    for spelled in lab_spellings() if model in SHIPPED else METHODS:
        try:
            method = parse_method(spelled)
            method.check(engine)
        except (MethodError, EngineError) as error:
            left_out.append(str(error))
        else:
            methods.append(method)
    return methods, left_out


def versions_of(engine_name: str) -> dict[str, str]:
    """The versions that may move a number, by package; those of a server that an engine asks are not known here.

    Args:
        engine_name: of an engine, "vllm:MODEL".
    """
    found = {"python": platform.python_version()}
    library = ("vllm",) if engine_name.startswith("vllm:") else ()
    for package in ("satisfice", "torch", "transformers", "math-verify", *library):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
