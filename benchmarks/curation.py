"""Curation of a large synthetic pool: traces a second and memory, for each curation that needs no model.

    python benchmarks/curation.py --traces 1000000 --samples 8

The pool is written as a run folder is, all first samples, then all second ones, so that the samples of a problem lie
far apart. Each curation runs in a process of its own; memory is what that process held at most, and what it held before
it began. Processor time is told because on a machine with other work it says more than wall time.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import resource
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from satisfice.runs.curation import Pool, curate
from satisfice.runs.run_folder import RunFolder
from satisfice.supervision import CURATIONS, parse_curation
from satisfice.thinking import FAMILIES
from satisfice.trace import Cost, Grade, Trace


def write(folder: Path, traces: int, samples: int) -> None:
    """A run folder of traces with 100 to 400 tokens, six of ten right, one of fifty cut off."""
    config = {
        "model": "synthetic", "methods": ["plain"], "samples": samples, "thinking": asdict(FAMILIES["think-tags"]),
    }  # fmt: skip
    RunFolder.create_or_open(folder, config).close()
    rng = random.Random(0)
    with (folder / "traces-plain.jsonl").open("w") as file:
        for number in range(traces):
            sample, problem = divmod(number, traces // samples)
            tokens = rng.randint(100, 400)
            right = rng.random() < 0.6
            finished = rng.random() > 0.02
            thinking = (
                "x is 3, so we add.\n\n" * (tokens // 12) + "So 15.\n\n" + "Wait, check again.\n\n" * (tokens // 20)
            )
            trace = Trace(
                problem_id=f"p{problem}", source="synthetic", prompt="What is it?", gold="15", method="plain",
                sample=sample, seed=number, thinking=thinking, answer="\n\nThe answer is \\boxed{15}.",
                finished=finished, response_ids=[rng.randrange(1000) for _ in range(tokens)],
                thinking_span=(0, tokens - 8), cost=Cost(thinking_tokens=tokens - 8, answer_tokens=8),
                grade=Grade(correct=right and finished, extracted="15", expected="15", grader="math"),
            )  # fmt: skip
            file.write(trace.to_json() + "\n")


def measure(name: str, folder: Path, out: Path, found: "multiprocessing.Queue[dict[str, float]]") -> None:
    """Curate once, in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began, used = time.perf_counter(), time.process_time()
    pool = Pool([folder])
    indexed = time.perf_counter()
    done = asyncio.run(curate(parse_curation(name), pool, out))
    ended, spent = time.perf_counter(), time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found.put(
        {
            "rows": done.card["rows"],
            "index_s": indexed - began,
            "seconds": ended - began,
            "processor_s": spent,
            "traces_a_processor_second": pool.traces / spent,
            "megabytes_before": before,
            "megabytes_peak": peak,
        }
    )


def main() -> None:
    """Write the pool, curate it with each curation, print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=None)
    given = parser.parse_args()
    names = [name for name, kind in CURATIONS.items() if not kind().needs_engine]
    names.append("tokensqueeze:refine_steps=false")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        write(folder, given.traces, given.samples)
        size = (folder / "traces-plain.jsonl").stat().st_size / 1e6
        print(json.dumps({"traces": given.traces, "samples": given.samples, "megabytes": round(size)}), flush=True)
        for number, name in enumerate(given.only or names):
            found = context.Queue()
            process = context.Process(target=measure, args=(name, folder, Path(scratch) / f"data-{number}", found))
            process.start()
            result = found.get()
            process.join()
            print(json.dumps({"curation": name, **{key: round(value, 1) for key, value in result.items()}}), flush=True)


if __name__ == "__main__":
    main()
