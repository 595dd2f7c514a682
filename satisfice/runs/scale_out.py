"""Scale-out: one comparison over many workers, as a Ray job.

A worker is an actor of Ray's: it holds one of our engines and solves whole problems, as many side by side as it may.
Ray finds room for it, on this machine or another. The process that a person started asks, grades and writes, so that
there is one run folder, the same as without workers, and nothing else that the machines would have to share.

A worker whose process or machine has died is replaced, and what was under way in it is suspect: one of these tasks may
be what killed it. Given out again at once, side by side, it would kill healthy ones again and again. So suspects wait
until all others are answered, and are then run one at a time in each worker; a task that is alone in a worker that dies
is given up as a failed attempt, which the next run tries again.
"""

import asyncio
import logging
import math
import os
import pickle
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, NoReturn

from satisfice import __version__
from satisfice.engines.base import Capability, Engine, EngineError, EngineFailed, Sampling
from satisfice.engines.control_setting import Control
from satisfice.engines.loading import SETTINGS, given_settings, opened_engine
from satisfice.engines.openai_bias import bias_for
from satisfice.intervention import METHODS
from satisfice.intervention.method import Method, together
from satisfice.problems import GraderPool, Problem
from satisfice.registry import PluginFile, load_file, loaded_files
from satisfice.runs.experiment import (
    Experiment,
    Failures,
    Outcome,
    Progress,
    Task,
    check,
    failed_attempt,
    record,
    try_to_solve,
)
from satisfice.runs.run_folder import RunFolder
from satisfice.thinking import ThinkingFormat
from satisfice.trace import Cost

logger = logging.getLogger(__name__)

SILENCE = 3600
"""Seconds without an answer from any worker after which a run gives up: for workers that hang, since one that dies is
noticed at once. The longest single response must fit into it."""
DEATHS = 3
"""Workers that may die one after another while they load their engine."""
POLL = 5.0
"""Seconds for which Ray is waited for in one piece."""
OBJECT_STORE = 256 << 20
"""Bytes of shared memory of a Ray that is started here: traces on their way weigh little."""


@dataclass(frozen=True)
class Loading:
    """What every worker loads.

    Attributes:
        engine, model, thinking, companions, settings: see `opened_engine`.
        plugins: files that hold methods which the workers are to know.
    """

    engine: str
    model: str
    thinking: ThinkingFormat | None = None
    companions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    plugins: Sequence[PluginFile] = ()

    def open(self, stack: ExitStack) -> Engine:
        """The engine, once the plugins are loaded; it is closed with the stack.

        Raises:
            EngineError: the engine cannot be loaded.
            PluginError: a plugin cannot.
        """
        for plugin in self.plugins:
            load_file(plugin)
        return stack.enter_context(
            opened_engine(self.engine, self.model, thinking=self.thinking, companions=self.companions, **self.settings)
        )


# -- in a worker's process


class EngineActor:
    """An engine in an actor of Ray's."""

    def __init__(self, loading: Loading) -> None:
        self._opened = ExitStack()  # never closed: what it holds ends with the process
        self._engine = loading.open(self._opened)

    async def ready(self) -> None:
        """Answers once the engine is loaded."""

    async def solve(self, task: bytes) -> bytes:
        """The outcome of a task, which runs side by side with others. Nothing is raised: what fails is an outcome."""
        method, problem, sampling, *logprobs = pickle.loads(task)
        try:
            outcome = await try_to_solve(self._engine, method, problem, sampling, *logprobs)
        except Exception as error:  # an engine that was closed
            outcome = Outcome(None, (failed_attempt(method, problem, sampling.seed, error, Cost()),))
        return pickle.dumps(outcome)


def describe_engine(loading: Loading) -> dict[str, Any] | EngineError:
    """What an engine says of itself, or why it cannot be loaded."""
    with ExitStack() as opened:
        try:
            engine = loading.open(opened)
        except ValueError as error:
            return EngineError(str(error))
        return {**_facts(engine), "version": __version__, "packages": _packages()}


def _packages() -> dict[str, str]:
    """Versions of the packages that offer methods here, by their names."""
    return {point.dist.name: point.dist.version for point in entry_points(group=METHODS.group) if point.dist}


def _facts(engine: Engine) -> dict[str, Any]:
    names = (
        "name", "digest", "thinking", "capabilities", "end_ids", "context_length", "default_sampling", "attention"
    )  # fmt: skip
    return {
        **{name: getattr(engine, name) for name in names},
        "levels": dict(engine.levels),
        "lacking": dict(engine.lacking),
        "device": str(getattr(engine, "device", "")),
        "companions": {name: _facts(companion) for name, companion in engine.companions.items()},
        # What stands in for controls is said in tokens.
        "tokenizer": None if Capability.CONTROL in engine.capabilities else engine.tokenizer,
    }


# -- in the process that asks


class EngineElsewhere(Engine):
    """What the engine of a worker says of itself: all that is asked before a method begins. It writes nothing here."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        companions = {name: EngineElsewhere(each) for name, each in facts["companions"].items()}
        self.__dict__.update({**facts, "companions": companions})

    def check_control(self, control: Control) -> None:
        """See `Engine.check_control`."""
        if Capability.CONTROL not in self.capabilities:
            bias_for(self, control)

    async def generate(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused: tokens come from the workers."""
        raise EngineError(f"{self.name} is held by workers, which solve whole problems: see RayWorkers.run")

    async def score(self, *arguments: Any) -> NoReturn:
        """Refused: scores come from the workers."""
        await self.generate()


class RayWorkers:
    """Workers that are about to hold one engine each; from `ray_workers`.

    Attributes:
        engine: what their engine says of itself.
    """

    def __init__(
        self, loading: Loading, workers: int, resources: Mapping[str, float], facts: Mapping[str, Any]
    ) -> None:
        self.engine = EngineElsewhere({**facts, "device": f"{_amount(workers, 'Ray worker')}: {facts['device']}"})
        self._loading = loading
        self._workers = workers
        self._resources = resources

    async def run(
        self, experiment: Experiment, folder: RunFolder, graders: GraderPool, progress: Progress | None = None
    ) -> None:
        """What `satisfice.runs.experiment.run` does, by the workers; `concurrency` counts the problems of each of them.

        Methods begin in their order, and the first problems of one are under way beside the last of the one before.

        Raises:
            EngineError: see `satisfice.runs.experiment.check`.
            EngineFailed: the workers did not answer all; what they did answer is in the folder.
            RunStopped: most requests failed.
            OSError: a trace could not be written.
        """
        check(self.engine, experiment)
        progress = progress or Progress()
        done = folder.done()
        queues = {str(method): experiment.tasks(method, done) for method in experiment.methods}
        total = experiment.samples * len(experiment.problems.problems)
        waiting = [(method, total, total - len(tasks)) for method, tasks in queues.items()]

        def begin(method: str) -> None:
            while any(method == name for name, *_ in waiting):
                progress.begin(*waiting.pop(0))

        tasks = [task for queue in queues.values() for task in queue]
        outcomes = _Outcomes(len(tasks))
        failures = Failures(experiment.concurrency * self._workers)

        async def answered(index: int, task: Task) -> None:
            outcome = await outcomes.futures[index]
            if isinstance(outcome, str):
                outcome = _given_up(*experiment.asks(task), outcome)
            begin(str(task.method))
            failures.count(await record(task, outcome, folder, graders, progress))

        if tasks:
            begin(str(tasks[0].method))
            rows = self._rows([pickle.dumps(experiment.asks(task)) for task in tasks], experiment.concurrency)
            with outcomes.from_thread(rows):
                await together(*(answered(index, task) for index, task in enumerate(tasks)))
        begin(str(experiment.methods[-1]))

    def _rows(self, tasks: Sequence[bytes], concurrency: int) -> Iterator[tuple[int, bytes | str]]:
        """The index of each task and its outcome, as it is done; for one that kills its worker, how that died.

        Raises:
            EngineFailed: the workers cannot load their engine, or none of them answers.
        """
        workers = min(self._workers, len(tasks))
        pool = _Pool(self._loading, workers, self._resources, min(concurrency, math.ceil(len(tasks) / workers)))
        try:
            yield from pool.run(tasks)
        finally:
            pool.close()


@dataclass(eq=False)
class _Seat:
    """One worker's place.

    Attributes:
        actor: the worker that has it now.
        loading: its promise to say when it is ready; None once it has.
        under_way: tasks by the promise of their outcome.
    """

    actor: Any
    loading: Any
    under_way: dict[Any, int] = field(default_factory=dict)


class _Pool:
    """Workers of Ray's, each replaced when it dies.

    Args:
        loading: what each of them loads.
        workers: how many.
        resources: what each of them takes of its machine, by Ray's names.
        at_once: tasks under way in each of them at once at most.
    """

    def __init__(self, loading: Loading, workers: int, resources: Mapping[str, float], at_once: int) -> None:
        import ray

        self._ray = ray
        # Replaced here and not by Ray, which would not say which of two deaths a task had seen.
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": at_once + 1, **resources}
        self._actors = ray.remote(**options)(EngineActor)
        self._loading = loading
        self._at_once = at_once
        self._alone: set[int] = set()
        self._deaths_in_loading = 0
        self._seats = [self._seat() for _ in range(workers)]

    def close(self) -> None:
        """End the workers."""
        for seat in self._seats:
            self._kill(seat)

    def run(self, tasks: Sequence[bytes]) -> Iterator[tuple[int, bytes | str]]:
        """See `RayWorkers._rows`."""
        fresh, suspects = deque(range(len(tasks))), deque[int]()
        heard = time.monotonic()
        while fresh or suspects or any(seat.under_way for seat in self._seats):
            for seat in self._seats:
                self._hand_out(seat, tasks, fresh, suspects)
            promises = [each for seat in self._seats for each in ([seat.loading] if seat.loading else seat.under_way)]
            kept, _ = self._ray.wait(promises, timeout=POLL)
            if kept:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE:
                raise EngineFailed(f"no worker has answered anything for {SILENCE / 60:g} minutes")
            for promise in kept:
                seat = next(each for each in self._seats if promise == each.loading or promise in each.under_way)
                yield from self._settled(seat, promise, suspects)

    def _seat(self) -> _Seat:
        actor = self._actors.remote(self._loading)
        return _Seat(actor, actor.ready.remote())

    def _hand_out(self, seat: _Seat, tasks: Sequence[bytes], fresh: deque[int], suspects: deque[int]) -> None:
        """As many tasks as a worker may have; suspects one by one, and when nothing else is left."""
        if seat.loading is not None:
            return
        while fresh and len(seat.under_way) < self._at_once:
            index = fresh.popleft()
            seat.under_way[seat.actor.solve.remote(tasks[index])] = index
        if suspects and not seat.under_way:
            index = suspects.popleft()
            seat.under_way[seat.actor.solve.remote(tasks[index])] = index
            self._alone.add(index)

    def _settled(self, seat: _Seat, promise: Any, suspects: deque[int]) -> Iterator[tuple[int, bytes | str]]:
        """What came of a promise: an outcome, a worker that is ready, or one that died."""
        exceptions = self._ray.exceptions
        try:
            kept = self._ray.get(promise)
        except exceptions.RayTaskError as error:  # not that it died: what it raised, most likely while it loaded
            raise EngineFailed(f"a worker failed: {_reason(error)}") from error
        except exceptions.RayError as error:
            yield from self._died(seat, error, suspects)
            return
        if promise == seat.loading:
            seat.loading, self._deaths_in_loading = None, 0
        else:
            yield seat.under_way.pop(promise), kept

    def _died(self, seat: _Seat, error: Exception, suspects: deque[int]) -> Iterator[tuple[int, bytes | str]]:
        """Put another worker into a seat, and its tasks among the suspects or out of the run."""
        how = _reason(error)
        if seat.loading is not None:
            self._deaths_in_loading += 1
            if self._deaths_in_loading >= DEATHS:
                raise EngineFailed(f"{DEATHS} workers died one after another while they loaded their engine: {how}")
        found: list[tuple[int, bytes]] = []
        # What was finished before the worker died is not lost.
        for promise, index in seat.under_way.items():
            with suppress(self._ray.exceptions.RayError):
                found.append((index, self._ray.get(promise, timeout=0)))
        yield from found
        lost = sorted(set(seat.under_way.values()) - {index for index, _ in found})
        self._kill(seat)
        self._seats[self._seats.index(seat)] = self._seat()
        if lost:
            logger.warning(
                "a worker died with %s under way (%s): another one takes its place",
                _amount(len(lost), "problem"),
                how,
            )
        for index in lost:
            if index in self._alone or self._at_once == 1:
                yield index, how
            else:
                suspects.append(index)

    def _kill(self, seat: _Seat) -> None:
        with suppress(Exception):  # it is dead, or the connection is
            self._ray.kill(seat.actor)


class _Outcomes:
    """Outcomes by the index of their task, brought to the event loop by a thread that waits for Ray."""

    def __init__(self, count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.futures: list[asyncio.Future[Outcome | str]] = [self._loop.create_future() for _ in range(count)]
        self._stopping = threading.Event()

    @contextmanager
    def from_thread(self, rows: Iterator[tuple[int, bytes | str]]) -> Iterator[None]:
        """Take them from `rows` while the context lasts."""
        thread = threading.Thread(target=self._take, args=(rows,), name="satisfice-ray", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()  # the thread may be waiting for a row; it ends with the next one, or with Ray

    def _take(self, rows: Iterator[tuple[int, bytes | str]]) -> None:
        failure = None
        try:
            for index, outcome in rows:
                if self._stopping.is_set():
                    return
                self._soon(self._settle, index, outcome)
        except Exception as error:  # whatever Ray raises, those who wait must hear of it
            failure = error
        self._soon(self._give_up, failure)

    def _soon(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, *arguments)

    def _settle(self, index: int, outcome: bytes | str) -> None:
        # A worker that died may have answered before: the first answer counts.
        if not self.futures[index].done():
            self.futures[index].set_result(outcome if isinstance(outcome, str) else pickle.loads(outcome))

    def _give_up(self, failure: Exception | None) -> None:
        missing = [future for future in self.futures if not future.done()]
        why = _reason(failure) if failure else "Ray ended without them"
        for future in missing[:1]:  # whoever waits for the others is told by the one
            future.set_exception(
                EngineFailed(
                    f"{len(missing)} of {len(self.futures)} problems were not solved: {why}; the others are in the run "
                    "folder, and the same command goes on from there"
                )
            )


def _given_up(method: Method, problem: Problem, sampling: Sampling, logprobs: bool, how: str) -> Outcome:
    """What is recorded of a task that was alone in a worker that died."""
    error = EngineFailed(
        f"the process of a worker died while it solved this problem and nothing else ({how}): most often for want of "
        "memory, so lower --max-tokens, --max-batch or --max-batch-tokens"
    )
    return Outcome(None, (failed_attempt(method, problem, sampling.seed, error, Cost()),))


@contextmanager
def ray_workers(
    model: str,
    *,
    workers: int = 2,
    worker_engine: str = "transformers",
    gpus_per_worker: float | None = None,
    ray_address: str | None = None,
    thinking: ThinkingFormat | None = None,
    companions: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[RayWorkers]:
    """Workers on a Ray cluster, whose engine has been asked what it can do.

    Connects to the cluster at `ray_address`, or in the environment variable RAY_ADDRESS, or that this process is
    connected to already; else Ray is started on this machine, and ended with the context.

    Args:
        model: as the workers' engine takes it; every machine must be able to load it.
        workers: how many.
        worker_engine: what each of them holds: "transformers", "vllm" or "openai".
        gpus_per_worker: GPUs of each worker, also less than 1; by default 1 where the cluster has any and the workers
            compute themselves, else none. A worker takes as many CPUs as it has `threads`, or 1.
        ray_address: "auto" for the cluster that this machine is part of, or HOST:PORT.
        thinking, companions, settings: see `satisfice.engines.loading.opened_engine`.

    Raises:
        EngineError: Ray is not installed or cannot be reached, the workers do not fit on this machine, or their engine
            cannot be loaded; the message says what to do.
    """
    if worker_engine not in SETTINGS:
        raise EngineError(f"a worker holds one of {', '.join(SETTINGS)}, not {worker_engine!r}")
    given = given_settings(worker_engine, settings)
    loading = Loading(worker_engine, model, thinking, companions or {}, given, loaded_files())
    with _connected(ray_address) as own:
        resources = _resources(loading, workers, gpus_per_worker, own)
        yield RayWorkers(loading, workers, resources, _described(loading, resources))


@contextmanager
def _connected(address: str | None) -> Iterator[bool]:
    """A connection to Ray; gives whether it was started here, for nobody else."""
    # What Ray's own code writes to a driver's terminal is written for its programmers; so is that it obeys here.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # The thread that waits for traces may outlive an interrupted run, and must not start Ray once more.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        import ray
    except ImportError as error:
        raise EngineError("--engine ray needs Ray: in a clone of satisfice, pip install -e '.[ray]'") from error
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise EngineError(
            f"workers cannot be driven through Ray's client ({address}): run the command on a machine of the cluster, "
            "or hand it in with `ray job submit`"
        )
    own = address == "local"
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if own else {}
    try:
        _require_listener(address)
        with _no_stderr():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"cannot connect to Ray at {address} ({_brief(error)}): start it there with `ray start --head`, or leave "
            "--ray-address and RAY_ADDRESS out to run on this machine alone"
        ) from error
    try:
        yield own
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Fail at once where nobody listens: Ray itself tries for minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Nothing that is written to the terminal's second stream while the context lasts arrives, from C++ either."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _resources(loading: Loading, workers: int, gpus: float | None, own: bool) -> dict[str, float]:
    """What each worker takes of its machine, by Ray's names.

    Raises:
        EngineError: this machine is all there is, and has too little for so many.
    """
    import ray

    there = ray.cluster_resources()
    if gpus is None:
        gpus = 1.0 if there.get("GPU") and loading.engine != "openai" else 0.0
    wanted = {"num_cpus": float(loading.settings.get("threads") or 1), "num_gpus": gpus}
    cpus_there, gpus_there = there.get("CPU", 0.0), there.get("GPU", 0.0)
    if workers * wanted["num_cpus"] > cpus_there or workers * gpus > gpus_there:
        sentence = (
            f"{workers} workers with {_amount(wanted['num_cpus'], 'CPU')} and {_amount(gpus, 'GPU')} each need more "
            f"than the {_amount(cpus_there, 'CPU')} and {_amount(gpus_there, 'GPU')} of "
        )
        if own:
            raise EngineError(f"{sentence}this machine: lower --workers, --threads or --gpus-per-worker")
        logger.warning("%sthe Ray cluster: those that do not fit wait for room", sentence)
    return wanted


def _amount(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _described(loading: Loading, resources: Mapping[str, float]) -> dict[str, Any]:
    """What the engine says of itself in a process that ends with it, so that its memory is free for the workers.

    Raises:
        EngineError: it cannot be loaded, or the code there is another than here.
    """
    import ray

    asking = ray.remote(max_calls=1, **resources)(describe_engine)
    try:
        facts = ray.get(asking.remote(loading))
    except ray.exceptions.RayError as error:
        raise EngineFailed(f"the workers cannot load {loading.model}: {_reason(error)}") from error
    if isinstance(facts, EngineError):
        raise facts
    if facts["version"] != __version__:
        raise EngineError(
            f"the workers have satisfice {facts['version']} and this process has {__version__}: install the same "
            "version on every machine of the cluster"
        )
    for package, version in _packages().items():
        if facts["packages"].get(package) != version:
            there = facts["packages"].get(package, "none")
            raise EngineError(
                f"the workers have {there} of package {package} and this process has {version}: install the same "
                "version on every machine of the cluster"
            )
    return dict(facts)


def _reason(error: BaseException) -> str:
    """The last line of what Ray tells, which is that of the error in the worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _brief(lines[-1] if lines else type(error).__name__)


def _brief(said: object) -> str:
    text = " ".join(str(said).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
