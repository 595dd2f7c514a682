"""Many workers, one run folder: what they are asked, what they answer, and what happens when one of them dies."""

import asyncio
import functools
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest

from satisfice import cli
from satisfice.cli.console import INTERRUPTED
from satisfice.engines.base import EngineError, EngineFailed, Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.problems import GraderPool, load_problems
from satisfice.runs.experiment import Experiment, Progress, methods_from, run
from satisfice.runs.run_folder import RunFolder, read_run
from satisfice.runs.scale_out import (
    SILENCE,
    EngineActor,
    Loading,
    RayWorkers,
    _Pool,
    _resources,
    describe_engine,
    ray_workers,
)

NOT_THE_SAME = ("seconds", "prefilled_tokens", "cached_tokens", "forward_passes")
"""What a trace cost that depends on who else was in the batch, and on which worker knew the beginning of its prompt."""


class HereWorkers(RayWorkers):
    """Two workers in this process that answer in turns, the second one's first answers twice, as after a death."""

    def __init__(self, loading, fail_after=None):
        super().__init__(loading, 2, {}, pickle.loads(pickle.dumps(describe_engine(loading))))
        self.answered = []
        self.fail_after = fail_after

    def _rows(self, tasks, concurrency):
        workers = [EngineActor(self._loading), EngineActor(self._loading)]
        for index in reversed(range(len(tasks))):
            if index == self.fail_after:
                raise RuntimeError("ray.exceptions.SomeError: traceback\n\nActorDiedError: the disk burns")
            for _ in range(1 + index % 2):
                self.answered.append(index)
                yield index, asyncio.run(workers[index % 2].solve(tasks[index]))


@pytest.fixture
def loading():
    return Loading("transformers", "lab")


@pytest.fixture
def experiment():
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=30)
    methods = methods_from(["plain", "temperature-scaling:t=0.7"])
    return Experiment(load_problems("lab:test", limit=2), methods, sampling, samples=2, concurrency=4)


def execute(solve, engine, experiment, folder, progress=None):
    with RunFolder.create_or_open(folder, experiment.configuration(engine)) as run_folder, GraderPool() as graders:
        asyncio.run(solve(experiment, run_folder, graders, progress))
    return read_run(folder)


def here(experiment, folder):
    engine = TransformersEngine.load("lab")
    try:
        return execute(lambda *rest: run(engine, *rest), engine, experiment, folder)
    finally:
        engine.close()


def told(run):
    """Everything that does not depend on the company a trace was made in."""
    found = {}
    for method, traces in run.traces.items():
        for trace in traces:
            record = trace.model_dump()
            for key in NOT_THE_SAME:
                record["cost"].pop(key)
            assert (method, trace.problem_id, trace.sample) not in found
            found[method, trace.problem_id, trace.sample] = record
    return found


def test_workers_write_the_run_that_one_process_writes(loading, experiment, tmp_path):
    workers = HereWorkers(loading)
    begun, advanced = [], Counter()
    progress = Progress(lambda *what: begun.append(what), lambda trace: advanced.update([trace.method]))
    result = execute(workers.run, workers.engine, experiment, tmp_path / "workers", progress)
    alone = here(experiment, tmp_path / "alone")
    assert told(result) == told(alone)
    for record in told(result).values():
        assert record["response_ids"]
        assert record["grade"]
    assert len(workers.answered) > 8  # what came twice was written once
    assert begun == [("plain", 4, 0), ("temperature-scaling:t=0.7", 4, 0)]
    assert set(advanced.values()) == {4}
    assert result.config["device"] == "2 Ray workers: cpu"
    changed = {key for key in result.config if result.config[key] != alone.config[key]}
    assert changed <= {"device", "created"}  # so either may go on with the other's run


def test_what_is_missing_is_asked_again_and_nothing_else(loading, experiment, tmp_path):
    first = HereWorkers(loading, fail_after=2)
    with pytest.raises(EngineFailed, match="3 of 8 problems were not solved: ActorDiedError: the disk burns;"):
        execute(first.run, first.engine, experiment, tmp_path / "run")
    kept = read_run(tmp_path / "run").traces
    assert sum(map(len, kept.values())) == 5
    files = {path: path.read_bytes() for path in (tmp_path / "run").glob("traces-*.jsonl")}
    second = HereWorkers(loading)
    begun = []
    progress = Progress(lambda *what: begun.append(what))
    result = execute(second.run, second.engine, experiment, tmp_path / "run", progress)
    assert begun == [("plain", 4, 1), ("temperature-scaling:t=0.7", 4, 4)]
    assert set(second.answered) == set(range(3))
    assert all(path.read_bytes().startswith(lines) for path, lines in files.items())
    assert len(told(result)) == 8
    third = HereWorkers(loading, fail_after=0)  # nothing is left, so no worker is started
    execute(third.run, third.engine, experiment, tmp_path / "run")


class DiedError(Exception):
    """Stands in for what Ray raises of a worker that died."""


class FakeRay:
    """Workers in this process that do nothing until they are waited for, and die of some tasks.

    Attributes:
        deadly: what of the tasks kills its worker.
        started, killed: workers so far.
        met: for each deadly moment, all tasks that were under way in that worker.
        alive: whether new workers can load at all.
    """

    exceptions = SimpleNamespace(RayError=DiedError, RayTaskError=ZeroDivisionError)

    def __init__(self, deadly=(), alive=True):
        self.deadly, self.alive = set(deadly), alive
        self.started, self.killed, self.met = 0, [], []
        self.orders = []

    def remote(self, **options):
        assert (options["max_restarts"], options["max_task_retries"]) == (0, 0)

        def begin(loading):
            self.started += 1
            actor = SimpleNamespace(number=self.started, dead=not self.alive)
            actor.ready = SimpleNamespace(remote=lambda: self._promise(actor, None))
            actor.solve = SimpleNamespace(remote=lambda task: self._promise(actor, task))
            return actor

        return lambda cls: SimpleNamespace(remote=begin)

    def _promise(self, actor, task):
        self.orders.append(SimpleNamespace(actor=actor, task=task, kept=False))
        order = self.orders[-1]
        return type("Promise", (), {"order": order})()

    def wait(self, promises, timeout):
        return promises[:1], promises[1:]

    def get(self, promise, timeout=None):
        order = promise.order
        if timeout == 0 and not order.kept:
            raise DiedError
        if order.task in self.deadly and not order.actor.dead:
            self.met.append([each.task for each in self.orders if each.actor is order.actor and not each.kept])
            order.actor.dead = True
        if order.actor.dead:
            raise DiedError("a long story\n\nit was killed")
        order.kept = True
        return b"" if order.task is None else order.task

    def kill(self, actor):
        self.killed.append(actor.number)


def pooled(ray, monkeypatch, tasks, workers=2, at_once=4):
    monkeypatch.setitem(sys.modules, "ray", ray)
    pool = _Pool(Loading("transformers", "lab"), workers, {}, at_once)
    try:
        return list(pool.run(tasks))
    finally:
        pool.close()


def test_jobs_that_kill_their_worker_starve_no_others_and_are_given_up_alone(monkeypatch, caplog):
    tasks = [bytes([index]) for index in range(16)]
    ray = FakeRay(deadly=[tasks[1], tasks[6], tasks[9], tasks[14]])
    rows = pooled(ray, monkeypatch, tasks)
    assert sorted(index for index, _ in rows) == list(range(16))  # each once
    for index, outcome in rows:
        assert outcome == ("it was killed" if tasks[index] in ray.deadly else tasks[index])
    # In company first, and then alone: no healthy one dies twice with a deadly one.
    assert sum(len(company) == 1 for company in ray.met) == 4
    assert max(Counter(task for company in ray.met for task in company).values()) == 2
    assert ray.started == 2 + len(ray.met)
    assert set(ray.killed) >= set(range(ray.started - 1, ray.started + 1))
    assert "another one takes its place" in caplog.text


def test_with_one_job_at_a_time_a_death_says_it_all(monkeypatch):
    ray = FakeRay(deadly=[b"c"])
    rows = dict(pooled(ray, monkeypatch, [b"a", b"b", b"c", b"d"], workers=1, at_once=1))
    assert rows == {0: b"a", 1: b"b", 2: "it was killed", 3: b"d"}
    assert ray.met == [[b"c"]]


def test_workers_that_all_die_while_they_load_end_the_run(monkeypatch):
    ray = FakeRay(alive=False)
    with pytest.raises(EngineFailed, match=r"3 workers died one after another while they loaded .*: it was killed"):
        pooled(ray, monkeypatch, [b"a", b"b"])
    assert ray.started <= 5


def test_workers_that_say_nothing_end_the_run(monkeypatch):
    ray = FakeRay()
    ray.wait = lambda promises, timeout: ([], promises)
    monkeypatch.setattr("satisfice.runs.scale_out.SILENCE", 0)
    with pytest.raises(EngineFailed, match="no worker has answered anything for 0 minutes"):
        pooled(ray, monkeypatch, [b"a"])


class DeadlyWorkers(HereWorkers):
    """One task kills its worker."""

    def _rows(self, tasks, concurrency):
        for index, outcome in super()._rows(tasks, concurrency):
            yield index, "killed for want of memory" if index == 3 else outcome


def test_a_job_that_kills_its_worker_is_an_attempt_that_the_next_run_makes_again(loading, experiment, tmp_path):
    workers = DeadlyWorkers(loading)
    failed = []
    progress = Progress(fail=failed.append)
    result = execute(workers.run, workers.engine, experiment, tmp_path / "run", progress)
    assert len(told(result)) == 7
    task = experiment.tasks(experiment.methods[0], set())[3]
    (attempt,) = failed
    assert (attempt.method, attempt.problem_id, attempt.sample) == (str(task.method), task.problem.id, task.sample)
    assert attempt.transient
    assert "and nothing else (killed for want of memory)" in attempt.error
    again = HereWorkers(loading)
    assert len(told(execute(again.run, again.engine, experiment, tmp_path / "run"))) == 8
    assert set(again.answered) == {0}  # the one that was lost


async def test_a_worker_raises_nothing_but_says_what_was(loading, experiment):
    worker = EngineActor(loading)
    worker._engine.close()
    task = experiment.tasks(experiment.methods[0], set())[0]
    outcome = pickle.loads(await worker.solve(pickle.dumps(experiment.asks(task))))
    assert outcome.trace is None
    assert "closed" in outcome.attempts[0].error


def test_silence_that_ends_a_run_is_a_matter_of_minutes():
    assert SILENCE <= 3600


def test_a_trace_that_cannot_be_written_ends_the_run_and_its_thread(loading, experiment, tmp_path):
    workers = HereWorkers(loading)

    def full(trace):
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        execute(workers.run, workers.engine, experiment, tmp_path / "run", Progress(advance=full))
    threads = [thread for thread in threading.enumerate() if thread.name == "satisfice-ray"]
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert len(set(workers.answered)) < 8


def test_methods_are_checked_by_what_a_worker_says_before_any_job(experiment, tmp_path):
    workers = HereWorkers(Loading("transformers", "lab", companions={"helper": "lab"}))
    engine = workers.engine
    assert (engine.name, engine.companions["helper"].name) == ("transformers:lab", "transformers:lab")
    methods_from(["cothink:outliner=helper"])[0].check(engine)
    with pytest.raises(EngineError, match="was not trained on levels"):
        methods_from(["tldr:level=short"])[0].check(engine)
    too_long = Experiment(experiment.problems, experiment.methods, Sampling(max_tokens=1 << 20))
    with pytest.raises(EngineError, match="lower max_tokens"):
        execute(workers.run, engine, too_long, tmp_path / "run")
    assert not workers.answered
    with pytest.raises(EngineError, match="held by workers, which solve whole problems"):
        asyncio.run(engine.generate([1], Sampling()))


def test_what_cannot_be_loaded_is_a_sentence_that_travels():
    found = pickle.loads(pickle.dumps(describe_engine(Loading("transformers", "./no/such/directory"))))
    assert isinstance(found, EngineError)
    assert "there is no model directory ./no/such/directory" in str(found)


def test_without_ray_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    needed = re.escape("--engine ray needs Ray: in a clone of satisfice, pip install -e '.[ray]'")
    with pytest.raises(EngineError, match=f"^{needed}$"), ray_workers("lab"):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"worker_engine": "ray"}, "a worker holds one of transformers, vllm, openai, not 'ray'"),
        ({"worker_engine": "vllm", "gguf_file": "x"}, "--gguf-file goes with --engine transformers, not with vllm"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_ray_starts(settings, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=said), ray_workers("lab", **settings):
        pass


@pytest.fixture
def cluster(monkeypatch):
    """Stands in for Ray, and for what it says of its machines."""

    def has(**resources):
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(cluster_resources=lambda: resources))

    return has


def test_a_worker_takes_a_gpu_where_there_are_any_and_as_many_cpus_as_threads(cluster):
    loading = Loading("vllm", "lab", settings={"threads": 3})
    cluster(CPU=64.0, GPU=8.0)
    assert _resources(loading, 8, None, own=True) == {"num_cpus": 3.0, "num_gpus": 1.0}
    assert _resources(loading, 8, 0.5, own=True) == {"num_cpus": 3.0, "num_gpus": 0.5}
    assert _resources(Loading("openai", "served"), 8, None, own=True) == {"num_cpus": 1.0, "num_gpus": 0.0}
    cluster(CPU=64.0)
    assert _resources(loading, 8, None, own=True) == {"num_cpus": 3.0, "num_gpus": 0.0}


def test_workers_that_do_not_fit_are_refused_on_this_machine_and_wait_on_a_cluster(cluster, caplog):
    cluster(CPU=2.0)
    loading = Loading("transformers", "lab")
    said = "3 workers with 1 CPU and 0 GPUs each need more than the 2 CPUs and 0 GPUs of this machine: lower --workers"
    with pytest.raises(EngineError, match=said):
        _resources(loading, 3, None, own=True)
    assert _resources(loading, 3, None, own=False) == {"num_cpus": 1.0, "num_gpus": 0.0}
    assert "than the 2 CPUs and 0 GPUs of the Ray cluster: those that do not fit wait" in caplog.text


# -- with Ray: half a minute each on a machine with nothing else to do


COMPARE = (
    "compare", "lab", "--limit", "32", "--methods", "plain", "temperature-scaling:t=0.7", "--concurrency", "8",
)  # fmt: skip


def written(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("traces-*.jsonl"))


def wait_until(true, process, seconds=400):
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.1)


def actors(process):
    """The worker processes of a run."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::EngineActor"):
                    found.append(child)
    return found


@pytest.fixture
def started(tmp_path):
    """Starts a run in a process group of its own; ends what is left of it."""
    processes = []

    def start(*more):
        command = [sys.executable, "-m", "satisfice.cli", *COMPARE, "--engine", "ray", "--workers", "2"]
        log = (tmp_path / "log").open("ab")
        # In the background SIGINT is ignored, and children inherit that.
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        started = subprocess.Popen([*command, *more], stdout=log, stderr=log, start_new_session=True, preexec_fn=heed)
        processes.append(started)
        return processes[-1]

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def compare_here(monkeypatch):
    """The same comparison in this process, without Ray."""

    def compare(*more):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["satisfice", *COMPARE, *more])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        assert not ended.value.code

    return compare


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_worker_that_is_killed_loses_nothing_and_doubles_nothing(started, compare_here, tmp_path):
    folder = tmp_path / "run"
    process = started("--out", str(folder))
    wait_until(lambda: written(folder) >= 8 and len(actors(process)) == 2, process)
    before = {actor.pid for actor in actors(process)}
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: {actor.pid for actor in actors(process)} - before, process)  # Ray starts another one
    assert written(folder) < 64
    assert process.wait(400) == 0, (tmp_path / "log").read_text()
    result = read_run(folder)
    assert [len(traces) for traces in result.traces.values()] == [32, 32]
    assert written(folder) == 64
    assert (folder / "report.html").exists()
    compare_here("--out", str(tmp_path / "alone"))
    assert told(result) == told(read_run(tmp_path / "alone"))  # the same texts for the same tokens, on one engine


class Fatal(str):
    """A question that ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_problems_that_kill_their_worker_starve_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problems = load_problems("lab:test", limit=16)
    deadly = [problem.id for problem in problems.problems[1::4]]
    for problem in problems.problems[1::4]:
        object.__setattr__(problem, "prompt", Fatal(problem.prompt))
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=60)
    experiment = Experiment(problems, methods_from(["plain"]), sampling, concurrency=8)
    failed, healthy = [], []
    started = time.monotonic()
    progress = Progress(advance=lambda trace: healthy.append(time.monotonic() - started), fail=failed.append)
    with ray_workers("lab", workers=2) as workers:
        result = execute(workers.run, workers.engine, experiment, tmp_path / "run", progress)
    assert sorted(attempt.problem_id for attempt in failed) == sorted(deadly)
    assert len(result.traces["plain"]) == 12
    print(f"12 healthy problems after {healthy[-1]:.0f} s, the end after {time.monotonic() - started:.0f} s")
    assert healthy[-1] < 300


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_an_interrupted_run_goes_on_without_ray_and_leaves_no_process(started, compare_here, tmp_path, capsys):
    folder = tmp_path / "run"
    process = started("--out", str(folder))
    wait_until(lambda: written(folder) >= 4, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    assert process.wait(60) == INTERRUPTED
    assert "run the same command again" in " ".join((tmp_path / "log").read_text().split())
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    finished = written(folder)
    assert finished < 64
    lines = {path: path.read_bytes() for path in folder.glob("traces-*.jsonl")}
    compare_here("--out", str(folder))
    assert written(folder) == 64
    assert all(path.read_bytes().startswith(kept) for path, kept in lines.items())
    assert "device" in capsys.readouterr().err  # the run says that it was made on other devices
    assert all(len(traces) == 32 for traces in read_run(folder).traces.values())


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_bad_model_or_a_bad_address_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match=r"^there is no model directory \./missing"), ray_workers("./missing"):
        pass
    client = r"^workers cannot be driven through Ray's client .*ray job submit"
    with pytest.raises(EngineError, match=client), ray_workers("lab", ray_address="ray://127.0.0.1:10001"):
        pass
    nobody = r"^cannot connect to Ray at 127.0.0.1:1 .*ray start --head"
    with pytest.raises(EngineError, match=nobody), ray_workers("lab", ray_address="127.0.0.1:1"):
        pass
