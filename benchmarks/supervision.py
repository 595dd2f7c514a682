"""Every curation from one pool of samples under one budget of training: what it does to the lab's reasoner.

    python benchmarks/supervision.py --out runs/supervision                    # all of them, one seed, 1,000 problems
    python benchmarks/supervision.py --out runs/supervision --names truncate-at-answer --seeds 0 1 2 --limit 4000
    python benchmarks/supervision.py --out runs/supervision --table                  # what is finished, nothing is run

One process, one thread. The pool is sampled once, each curation makes its data of it (SETTINGS below),
`recipes/supervision/budget.yaml` trains on them, and the result is asked held-out problems at the temperature of the
pool and under the seed of the untrained model. Every stage is kept and the same command goes on where it was stopped.

Intervals are 95 %, paired by problem: `satisfice.measurement.statistics`. Over several training seeds the samples of a
problem are its answers by each trained model, against the untrained one's single answer; the spread of trainings shows
beside it as the lowest and the highest of them. Seconds are of the processor.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from satisfice.measurement import statistics
from satisfice.measurement.columns import Columns
from satisfice.runs.run_folder import read_run

RECIPE = Path(__file__).parents[1] / "recipes" / "supervision" / "budget.yaml"
POOL = ("lab:train", 500, 8)
"""Problems, how many of them, samples of each."""
MAX_TOKENS = 960
SETTINGS = {
    "sft": "sft",
    "shortest-correct": "shortest-correct",
    "truncate-at-answer": "truncate-at-answer",
    "truncate-shortest": "truncate-at-answer:most=4,taken=shortest",
    "length-levels": "length-levels",
    "o1-pruner": "o1-pruner",
    "reweighting": "reweighting:easy=0.9,hard=0.8",
    "pir": "pir:most=2,rounding=ceil",
    "tokensqueeze": "tokensqueeze:candidates=8,limit=0.05",
}
"""Curations as they are spelled here; what differs from the defaults was chosen by what the pool holds, or on
`lab:calibration`, before anything was asked of the reported problems."""
FURTHER = {"reweighting": ["validation=lab:calibration", "validation_limit=100", "validate_every=40"]}
"""Further keys of the recipe."""
ASKED = {"length-levels": ["plain", "tldr:level=short"]}
"""Methods that the trained model is asked with, besides those of --methods; plain unless given."""


def satisfice(*arguments: str) -> None:
    """The command line, in this process."""
    from satisfice.cli import app

    app(args=list(arguments), standalone_mode=False)


@contextmanager
def timed(path: Path) -> Iterator[None]:
    """Add the processor seconds of a stage to a file of numbers."""
    before = json.loads(path.read_text()) if path.exists() else 0.0
    began = time.process_time()
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(before + time.process_time() - began))


# -- stages


def sampled(out: Path) -> Path:
    """The pool."""
    problems, limit, samples = POOL
    folder = out / "pool"
    if not (folder / "summary.json").exists():
        with timed(out / "seconds" / "pool.json"):
            satisfice(
                "sample", "lab", "--problems", problems, "--limit", str(limit), "--samples", str(samples),
                "--threads", "1", "--max-batch", "128", "--out", str(folder),
            )  # fmt: skip
    return folder


def curated(out: Path, name: str) -> Path:
    """The data of one curation."""
    folder = out / "data" / name
    if not (folder / "card.json").exists():
        with timed(out / "seconds" / f"data-{name}.json"):
            satisfice(
                "curate", SETTINGS[name], "--traces", str(sampled(out)), "--model", "lab", "--threads", "1",
                "--out", str(folder),
            )  # fmt: skip
    return folder


def trained(out: Path, name: str, seed: int, changes: Sequence[str]) -> Path:
    """A model on these data."""
    slug = "-".join([name, str(seed), *(change.replace("=", "") for change in changes)])
    folder = out / "models" / slug
    if not (folder / "log.jsonl").exists():
        keys = [f"data={curated(out, name)}", f"seed={seed}", *FURTHER.get(name, []), *changes]
        with timed(out / "seconds" / f"train-{slug}.json"):
            satisfice("train", str(RECIPE), "--out", str(folder), *(f"--set={key}" for key in keys))
    return folder


def asked(out: Path, model: str, problems: str, limit: int, methods: Sequence[str]) -> Path:
    """A model's answers."""
    folder = out / "asked" / f"{Path(model).name}-{problems.replace(':', '-')}-{limit}"
    satisfice(
        "compare", model, "--problems", problems, "--limit", str(limit), "--methods", *methods, "--temperature", "1.0",
        "--max-tokens", str(MAX_TOKENS), "--seed", "0", "--threads", "1", "--max-batch", "128", "--out", str(folder),
    )  # fmt: skip
    return folder


# -- the table


Answers = Mapping[str, tuple[bool, int, bool]]
"""Of each problem whether it was answered right, thinking tokens, and whether it was cut off."""


def by_problem(folder: Path, method: str) -> Answers:
    """The answers of a run, by a method."""
    columns = Columns.of(read_run(folder).traces[method])
    return {
        problem: (bool(right), int(tokens), bool(cut))
        for (problem, _), right, tokens, cut in zip(
            columns.rows(), columns.right, columns.count("thinking_tokens"), columns.truncated, strict=True
        )
    }


@dataclass(frozen=True)
class Comparison:
    """One model, or several trainings of it, against the untrained one on the problems that all were asked.

    Attributes:
        problems: number of problems.
        accuracy: of the trainings, mean over problems and trainings, with its interval.
        untrained: accuracy of the untrained model, a share.
        tokens: mean thinking tokens of the trainings.
        difference: of the accuracies, paired, a share.
        saving: of the thinking tokens, a share.
        spread: difference of each training.
        cut: shares of responses that the limit of tokens cut off, of the untrained model and of the trainings.
    """

    problems: int
    accuracy: statistics.Estimate
    untrained: float
    tokens: float
    difference: statistics.Estimate
    saving: statistics.Estimate
    spread: list[float]
    cut: tuple[float, float]


def compared(folders: Sequence[Path], method: str, base: Path) -> Comparison | None:
    """The answers in `folders`, one of each training, by a method, against `plain` in `base`.

    None where a model was not asked so, or not yet.
    """
    if any(not folder.exists() or method not in read_run(folder).traces for folder in folders):
        return None
    return comparison([by_problem(folder, method) for folder in folders], by_problem(base, "plain"))


def comparison(ours: Sequence[Answers], untrained: Answers) -> Comparison | None:
    """The answers of trainings against those of the untrained model; None where no problem was asked of all."""
    problems = [problem for problem in untrained if all(problem in each for each in ours)]
    right = [[each[problem][0] for each in ours] for problem in problems]
    tokens = [[float(each[problem][1]) for each in ours] for problem in problems]
    base_right = [[untrained[problem][0]] for problem in problems]
    accuracy, difference = statistics.accuracy(right), statistics.accuracy_difference(right, base_right)
    if accuracy is None or difference is None:
        return None
    n = len(problems)
    return Comparison(
        problems=n,
        accuracy=accuracy,
        untrained=sum(untrained[problem][0] for problem in problems) / n,
        tokens=sum(map(sum, tokens)) / n / len(ours),
        difference=difference,
        saving=statistics.saving(tokens, [[float(untrained[problem][1])] for problem in problems]),
        spread=[sum(each[problem][0] - untrained[problem][0] for problem in problems) / n for each in ours],
        cut=(
            sum(untrained[problem][2] for problem in problems) / n,
            sum(each[problem][2] for each in ours for problem in problems) / len(ours) / n,
        ),
    )


def percent(share: float, places: int = 1) -> str:
    """A share as the pages write it."""
    return f"{100 * share:.{places}f} %"


def points(share: float) -> str:
    """A difference of shares as the pages write it, in points."""
    return f"{100 * share:+.1f}"


def shown(estimate: statistics.Estimate, form: Callable[[float], str]) -> str:
    """A value with its interval."""
    return f"{form(estimate.value)} ({form(estimate.low or 0)} … {form(estimate.high or 0)})"


def row(name: str, method: str, folders: Sequence[Path], base: Path) -> str | None:
    """A line of the table; None where a model was not asked so, or not yet."""
    found = compared(folders, method, base)
    if found is None:
        return None
    seeds = f" ({points(min(found.spread))} … {points(max(found.spread))})" if len(folders) > 1 else ""
    cells = [
        f"`{name}`",
        method,
        f"{found.problems:,}",
        f"{len(folders)}{seeds}",
        shown(found.saving, percent),
        f"{percent(found.untrained)} → {percent(found.accuracy.value)}",
        shown(found.difference, points),
        " / ".join(percent(share, 2) for share in found.cut),
    ]
    return f"| {' | '.join(cells)} |"


def table(out: Path, problems: str) -> str:
    """All that is finished, as markdown."""
    columns = (
        "curation", "asked", "n", "seeds (lowest … highest)", "saved, of the thinking tokens", "accuracy",
        "difference in points, paired", "cut off, untrained / trained",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    suffix = f"-{problems.replace(':', '-')}-"
    groups: dict[tuple[str, str], list[Path]] = {}
    for folder in sorted((out / "asked").glob(f"*{suffix}*")):
        model, _, limit = folder.name.rpartition(suffix)
        name, _, seed = model.rpartition("-")
        groups.setdefault((name if seed.isdigit() else model, limit), []).append(folder)
    for (name, limit), folders in groups.items():
        bases = [path for (model, _), (path, *_) in groups.items() if model == "lab" and _size(path) >= int(limit)]
        if name in SETTINGS and bases:  # benchmarks/ladder.py asks other models, too
            for method in sorted({method for folder in folders for method in read_run(folder).traces}):
                if line := row(name, method, [f for f in folders if method in read_run(f).traces], bases[0]):
                    lines.append(line)
    return "\n".join([*lines, "", *costs(out)])


def _size(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def costs(out: Path) -> list[str]:
    """What each curation and training has cost."""
    lines = ["| curation | rows | tokens of a row | written and read by the model | seconds: data, training |"]
    lines.append("|---|---|---|---|---|")
    for name in SETTINGS:
        path = out / "data" / name / "card.json"
        if not path.exists():
            continue
        card: dict[str, Any] = json.loads(path.read_text())
        cost = card.get("cost")
        spent = "–" if not cost else f"{cost['generated']:,} tokens, {cost['forward_passes']:,} passes"
        seconds = [
            json.loads(file.read_text()) if file.exists() else None
            for file in (out / "seconds" / f"data-{name}.json", out / "seconds" / f"train-{name}-0.json")
        ]
        shown = " / ".join("–" if each is None else f"{each:.0f}" for each in seconds)
        lines.append(f"| `{name}` | {card['rows']:,} | {card['tokens']['after']['mean']:.0f} | {spent} | {shown} |")
    return lines


def main() -> None:
    """Run what is asked for, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/supervision"))
    parser.add_argument("--names", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--problems", default="lab:test")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", default=["plain"])
    parser.add_argument("--set", nargs="*", default=[], dest="changes", help="keys of the recipe, for a trial")
    parser.add_argument("--table", action="store_true", help="print what is finished, and run nothing")
    given = parser.parse_args()
    if not given.table:
        suffix = f"lab-{given.problems.replace(':', '-')}-"
        if not any(_size(folder) >= given.limit for folder in (given.out / "asked").glob(f"{suffix}*")):
            asked(given.out, "lab", given.problems, given.limit, ["plain"])
        for name in given.names:
            for seed in given.seeds:
                model = trained(given.out, name, seed, given.changes)
                methods = list(dict.fromkeys([*given.methods, *ASKED.get(name, [])]))
                asked(given.out, str(model), given.problems, given.limit, methods)
    print(table(given.out, given.problems))


if __name__ == "__main__":
    main()
