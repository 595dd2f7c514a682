"""Wall time of one comparison by Ray workers, as a ratio to one process, in the same run.

    python benchmarks/scale_out.py --workers 2 --limit 200 --rounds 3

Starting Ray and loading the engines is told apart from the rest: it is paid once a command, whatever its length.
Processor time is that of all processes, Ray's own included: on a machine with other work it says more than wall time.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from satisfice.engines.transformers import TransformersEngine
from satisfice.problems import GraderPool, load_problems
from satisfice.runs.experiment import Experiment, Progress, methods_from, run
from satisfice.runs.run_folder import RunFolder
from satisfice.runs.scale_out import ray_workers


def processor_seconds() -> float:
    """What this process and all that it has started have used so far."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def timed(solve: Any, engine: Any, experiment: Experiment) -> dict[str, float]:
    """Seconds to the first trace and from there to the last, processor seconds between them, and tokens written."""
    arrivals: list[tuple[float, float]] = []
    tokens: list[int] = []

    def arrived(trace: Any) -> None:
        tokens.append(trace.cost.total_tokens)
        if len(tokens) in (1, len(experiment.methods) * len(experiment.problems.problems)):
            arrivals.append((time.perf_counter(), processor_seconds()))

    with tempfile.TemporaryDirectory() as folder, GraderPool() as graders:
        config = experiment.configuration(engine)
        with RunFolder.create_or_open(Path(folder) / "run", config) as run_folder:
            begun = time.perf_counter()
            asyncio.run(solve(experiment, run_folder, graders, Progress(advance=arrived)))
    (first, used), (last, used_at_last) = arrivals
    return {"first": first - begun, "rest": last - first, "processor": used_at_last - used, "tokens": sum(tokens)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="lab")
    parser.add_argument("--problems", default="lab:test")
    parser.add_argument("--methods", nargs="+", default=["plain"])
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=32, help="Problems under way at once, in each worker.")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    problems, methods = load_problems(options.problems, limit=options.limit), methods_from(options.methods)

    def experiment(engine: Any) -> Experiment:
        return Experiment(problems, methods, engine.default_sampling, concurrency=options.concurrency)

    rounds = []
    for _ in range(options.rounds):
        alone = TransformersEngine.load(options.model)
        one = timed(lambda *rest, engine=alone: run(engine, *rest), alone, experiment(alone))
        alone.close()
        begun = time.perf_counter()
        with ray_workers(options.model, workers=options.workers) as workers:
            started = time.perf_counter() - begun
            many = timed(workers.run, workers.engine, experiment(workers.engine))
        rounds.append({"one process": one, "workers": many, "Ray started, engine described": started})
        print(json.dumps(rounds[-1]), flush=True)
    for what in ("rest", "processor"):
        ratios = [each["workers"][what] / each["one process"][what] for each in rounds]
        print(f"{what}, workers to one process: median {statistics.median(ratios):.2f} of {ratios}")


if __name__ == "__main__":
    main()
