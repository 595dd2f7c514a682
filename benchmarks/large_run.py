"""What reading a very large run takes: writes a synthetic run, then measures each command in a process of its own.

    python benchmarks/large_run.py FOLDER [TRACES]

Prints seconds and peak memory of summary, report, cost and diagnose. The run has four methods and 60 thinking tokens a
trace on average; nothing in it was written by a model.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

METHODS = ("plain", "temperature-scaling:t=0.9", "deer:tau=0.95", "budget-forcing:budget=60")
COMMANDS = (
    ("summary", []),
    ("report", []),
    ("cost", ["--params", "0.6e6", "--layers", "3", "--heads", "4", "--kv-heads", "4", "--head-dim", "32"]),
    ("diagnose", []),
)


def write(folder: Path, traces: int) -> None:
    """A finished run of so many traces."""
    problems = traces // len(METHODS)
    folder.mkdir(parents=True)
    config = {
        "schema_version": 1,
        "model": "synthetic",
        "methods": list(METHODS),
        "baseline": METHODS[0],
        "problems": {"name": "synthetic", "digest": "0", "n": problems},
        "samples": 1,
        "seed": 0,
        "sampling": {"temperature": 0.6, "max_tokens": 240},
        "files": {method: f"traces-{number}.jsonl" for number, method in enumerate(METHODS)},
    }
    (folder / "run.json").write_text(json.dumps(config))
    for number, method in enumerate(METHODS):
        draw = random.Random(number)
        with (folder / f"traces-{number}.jsonl").open("w") as file:
            for problem in range(problems):
                file.write(json.dumps(_trace(draw, method, problem)) + "\n")


def _trace(draw: random.Random, method: str, problem: int) -> dict[str, object]:
    length = min(240, int(draw.lognormvariate(3.9, 0.6)))
    finished, right = length < 240, draw.random() < 0.8
    said = str(problem % 97 if right else problem % 97 + 1)
    ids = [draw.randrange(30_000) for _ in range(length + 8)]
    return {
        "schema_version": 2, "problem_id": f"synthetic/{problem:07d}", "prompt": "How many?", "gold": str(problem % 97),
        "method": method, "prompt_ids": list(range(20)), "response_ids": ids, "thinking_span": [0, length],
        "thinking": f"So {said}.\n\n" * (length // 6), "answer": f"The answer is \\boxed{{{said}}}.",
        "stop": "marker" if finished else "token limit", "finished": finished,
        "cost": {"thinking_tokens": length, "answer_tokens": 8, "prefilled_tokens": 20, "forward_passes": length + 8},
        "grade": {"correct": right and finished, "extracted": said, "expected": str(problem % 97), "grader": "numeric"},
    }  # fmt: skip


def main(folder: Path, traces: int) -> None:
    if not folder.exists():
        write(folder, traces)
    size = sum(file.stat().st_size for file in folder.glob("traces-*.jsonl")) / 1e9
    print(f"{traces:,} traces, {size:.2f} GB")
    for command, options in COMMANDS:
        started = time.perf_counter()
        with (folder / f"{command}.out").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "satisfice.cli", command, str(folder), *options], stdout=output, stderr=output
            )
            _, status, usage = os.wait4(process.pid, 0)
        seconds, peak = time.perf_counter() - started, usage.ru_maxrss / 1e3
        print(f"{command:10} {seconds:7.1f} s  {peak:7.0f} MB  exit {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)
