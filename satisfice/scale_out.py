"""Scale-out: one comparison over many workers, as a Ray job.

Ray Data keeps the workers: it starts them where there is room for one, hands each as many jobs as it may have under
way, starts one anew whose process or machine has died, and gives out its jobs again (its defaults). A worker holds one
of our engines and solves whole problems. The process that a person started asks, grades and writes, so that there is
one run folder, the same as without workers, and nothing else that the machines would have to share.

Ray promises that a job is done at least once; that it is written down once is seen to here.
"""

import asyncio
import logging
import math
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from satisfice import __version__
from satisfice.engines.base import Engine, EngineError, EngineFailed
from satisfice.engines.loading import SETTINGS, given_settings, opened_engine
from satisfice.experiment import Experiment, Job, Progress, check, record, solve_safely
from satisfice.intervention.method import together
from satisfice.problems import GraderPool
from satisfice.run_folder import RunFolder
from satisfice.thinking import ThinkingFormat
from satisfice.trace import Trace

logger = logging.getLogger(__name__)

BATCH = 4
"""Jobs that a worker is handed in one piece. Fewer cost the driver more time, more hold finished traces back."""
SILENCE = 6 * 3600
"""Seconds without a trace from any worker after which a run gives up. Ray gives out a job again as often as its worker
dies, which would be for ever where the job is what kills it."""
DEATHS = 3
"""Workers that may die one after another while they load their engine."""
OBJECT_STORE = 256 << 20
"""Bytes of shared memory of a Ray that is started here: traces on their way weigh little."""


@dataclass(frozen=True)
class Loading:
    """What every worker loads.

    Attributes:
        engine, model, thinking, companions, settings: see `opened_engine`.
    """

    engine: str
    model: str
    thinking: ThinkingFormat | None = None
    companions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def open(self, stack: ExitStack) -> Engine:
        """The engine; it is closed with the stack."""
        return stack.enter_context(
            opened_engine(self.engine, self.model, thinking=self.thinking, companions=self.companions, **self.settings)
        )


# -- in a worker's process


class Worker:
    """An engine in an actor of Ray Data's."""

    def __init__(self, loading: Loading) -> None:
        self._opened = ExitStack()  # never closed: what it holds ends with the process
        self._engine = loading.open(self._opened)

    async def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The traces of some jobs, which run side by side with those of other calls."""
        jobs = [pickle.loads(job) for job in batch["job"]]
        traces = await together(*(solve_safely(self._engine, *job) for job in jobs))
        return {"index": list(batch["index"]), "trace": [trace.to_json() for trace in traces]}


def describe(loading: Loading) -> dict[str, Any] | EngineError:
    """What an engine says of itself, or why it cannot be loaded."""
    with ExitStack() as opened:
        try:
            engine = loading.open(opened)
        except ValueError as error:
            return EngineError(str(error))
        return {**_facts(engine), "version": __version__}


def _facts(engine: Engine) -> dict[str, Any]:
    names = ("name", "digest", "thinking", "capabilities", "end_ids", "context_length", "default_sampling")
    return {
        **{name: getattr(engine, name) for name in names},
        "levels": dict(engine.levels),
        "lacking": dict(engine.lacking),
        "device": str(getattr(engine, "device", "")),
        "companions": {name: _facts(companion) for name, companion in engine.companions.items()},
    }


# -- in the process that asks


class EngineElsewhere(Engine):
    """What the engine of a worker says of itself: all that is asked before a method begins. It writes nothing here."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        companions = {name: EngineElsewhere(each) for name, each in facts["companions"].items()}
        self.__dict__.update({**facts, "companions": companions})

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
        """What `satisfice.experiment.run` does, by the workers; `concurrency` counts the problems of each of them.

        Methods begin in their order, and the first problems of one are under way beside the last of the one before.

        Raises:
            EngineError: see `satisfice.experiment.check`.
            EngineFailed: the workers did not answer all; what they did answer is in the folder.
            OSError: a trace could not be written.
        """
        check(self.engine, experiment)
        progress = progress or Progress()
        done = folder.done()
        queues = {str(method): experiment.jobs(method, done) for method in experiment.methods}
        total = experiment.samples * len(experiment.problems.problems)
        waiting = [(method, total, total - len(jobs)) for method, jobs in queues.items()]

        def begin(method: str) -> None:
            while any(method == name for name, *_ in waiting):
                progress.begin(*waiting.pop(0))

        jobs = [job for queue in queues.values() for job in queue]
        answers = _Answers(len(jobs))

        async def answered(index: int, job: Job) -> None:
            trace = await answers.futures[index]
            begin(str(job.method))
            await record(job, trace, folder, graders, progress)

        if jobs:
            begin(str(jobs[0].method))
            rows = self._rows([pickle.dumps(experiment.asks(job)) for job in jobs], experiment.concurrency)
            with answers.from_thread(rows):
                await together(*(answered(index, job) for index, job in enumerate(jobs)))
        begin(str(experiment.methods[-1]))

    def _rows(self, jobs: Sequence[bytes], concurrency: int) -> Iterator[Mapping[str, Any]]:
        """One row a job, as it is done."""
        import ray

        share = math.ceil(len(jobs) / self._workers)  # of one worker, if all were alike
        batch = min(BATCH, share)
        at_once = math.ceil(min(concurrency, share) / batch)
        dataset = ray.data.from_items(
            [{"index": index, "job": job} for index, job in enumerate(jobs)],
            override_num_blocks=math.ceil(len(jobs) / batch),
        )
        context = dataset.context
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = SILENCE
        context.max_consecutive_actor_init_deaths = DEATHS
        answered = dataset.map_batches(
            Worker,
            batch_size=None,
            fn_constructor_args=[self._loading],
            compute=ray.data.ActorPoolStrategy(
                size=self._workers, max_tasks_in_flight_per_actor=at_once, max_concurrent_calls_per_actor=at_once
            ),
            **self._resources,
        )
        for block in answered.iter_batches(batch_size=None, prefetch_batches=0):
            for index, trace in zip(block["index"], block["trace"], strict=True):
                yield {"index": int(index), "trace": str(trace)}


class _Answers:
    """Traces by the index of their job, brought to the event loop by a thread that waits for Ray."""

    def __init__(self, count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.futures: list[asyncio.Future[Trace]] = [self._loop.create_future() for _ in range(count)]
        self._stopping = threading.Event()

    @contextmanager
    def from_thread(self, rows: Iterator[Mapping[str, Any]]) -> Iterator[None]:
        """Take them from `rows` while the context lasts."""
        thread = threading.Thread(target=self._take, args=(rows,), name="satisfice-ray", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()  # the thread may be waiting for a row; it ends with the next one, or with Ray

    def _take(self, rows: Iterator[Mapping[str, Any]]) -> None:
        failure = None
        try:
            for row in rows:
                if self._stopping.is_set():
                    return
                self._soon(self._settle, row["index"], row["trace"])
        except Exception as error:  # whatever Ray raises, those who wait must hear of it
            failure = error
        self._soon(self._give_up, failure)

    def _soon(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, *arguments)

    def _settle(self, index: int, trace: str) -> None:
        # A worker that died may have answered before: the first answer counts.
        if not self.futures[index].done():
            self.futures[index].set_result(Trace.from_json(trace))

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
    loading = Loading(worker_engine, model, thinking, companions or {}, given_settings(worker_engine, settings))
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
        import ray.data
    except ImportError as error:
        raise EngineError("--engine ray needs Ray: pip install 'satisfice[ray]'") from error
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise EngineError(
            f"Ray Data cannot be driven through Ray's client ({address}): run the command on a machine of the cluster, "
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
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
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

    asking = ray.remote(max_calls=1, **resources)(describe)
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
    return dict(facts)


def _reason(error: BaseException) -> str:
    """The last line of what Ray tells, which is that of the error in the worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _brief(lines[-1] if lines else type(error).__name__)


def _brief(said: object) -> str:
    text = " ".join(str(said).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
