"""What became of every problem under every method, small enough to be kept, and the tables that follow from it.

    python benchmarks/outcomes.py keep docs/results/smollm2.csv.gz runs/words runs/early
    python benchmarks/outcomes.py table docs/results/smollm2.csv.gz --problems words:test

`keep` reads run folders that `satisfice compare` has made and writes one line a problem and method: whether it was
answered right, thinking tokens, tokens in all, and whether the limit cut it off. The runs should be finished: of one
that was stopped, the responses that are there are the short ones. `table` prints, for a set of problems, each method
against plain decoding of one model, paired by problem; and against caps on thinking that write as many tokens in all,
whose accuracy is interpolated between the two nearest (plain decoding is the unbounded end), with bootstrap intervals
over the same draws of problems.
"""

import argparse
import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from supervision import percent, points, shown

from satisfice.measurement import statistics
from satisfice.measurement.columns import Columns
from satisfice.runs.run_folder import read_run, write_atomically

DRAWS = 4000
CAPS = "budget-forcing:"


class Key(NamedTuple):
    """Which responses: of a model, by a method, to a set of problems."""

    problems: str
    model: str
    method: str


class Outcome(NamedTuple):
    """What became of one problem.

    Attributes:
        right: 1 where it was answered right.
        thinking, total: tokens, as in `satisfice.trace.CONVENTIONS`.
        cut: 1 where the limit cut it off.
    """

    right: int
    thinking: int
    total: int
    cut: int


Outcomes = dict[Key, dict[str, Outcome]]


def keep(file: Path, folders: Sequence[Path]) -> None:
    """Write what became of the problems of some runs; those that `file` holds stay, unless they are in a run again."""
    found = read(file) if file.exists() else {}
    for folder in folders:
        run = read_run(folder)
        name = run.config["problems"]["name"]
        for method, traces in run.traces.items():
            columns = Columns.of(traces)
            values = zip(
                columns.rows(), columns.right, columns.cost("thinking"), columns.cost("total"), columns.truncated,
                strict=True,
            )  # fmt: skip
            model = run.config["model"].removeprefix("transformers:")
            if Path(model).is_absolute():
                model = Path(model).name  # of a model that was trained here its folder's name, and not where that lies
            found[Key(name, model, method)] = {
                problem: Outcome(int(right), int(thinking), int(total), int(cut))
                for (problem, _), right, thinking, total, cut in values
            }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*Key._fields, "problem", *Outcome._fields))
    for key in sorted(found):
        for problem, outcome in sorted(found[key].items()):
            writer.writerow((*key, problem, *outcome))
    # No time of writing in the file, so that the same outcomes are the same bytes.
    write_atomically(file, gzip.compress(text.getvalue().encode(), mtime=0))


def read(file: Path) -> Outcomes:
    """What `keep` wrote."""
    found: Outcomes = {}
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            outcome = Outcome(*(int(row[name]) for name in Outcome._fields))
            found.setdefault(Key(*(row[name] for name in Key._fields)), {})[row["problem"]] = outcome
    return found


def table(found: Outcomes, problems: str, base: str) -> str:
    """As markdown: every method on these problems against `plain` of the model `base`."""
    mine = {key: outcomes for key, outcomes in found.items() if key.problems == problems}
    plain = mine[Key(problems, base, "plain")]
    caps = [outcomes for key, outcomes in mine.items() if key.model == base and key.method.startswith(CAPS)]
    lines = [
        "| method | n | right (95 %) | against plain, points | thinking tokens | saved | in all | cut off | "
        "against caps of as many tokens in all, points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    order = sorted(mine, key=lambda key: (key.model != base, key.method != "plain", key.method.partition(":")[0],
                                          -np.mean([outcome.thinking for outcome in mine[key].values()])))  # fmt: skip
    for key in order:
        outcomes = mine[key]
        both = [problem for problem in plain if problem in outcomes]
        right = [[bool(outcomes[problem].right)] for problem in both]
        thinking = [[float(outcomes[problem].thinking)] for problem in both]
        accuracy = statistics.accuracy(right)
        assert accuracy is not None
        difference, saved, matched = "", "", ""
        if outcomes is not plain:
            gain = statistics.accuracy_difference(right, [[bool(plain[problem].right)] for problem in both])
            assert gain is not None
            difference = shown(gain, points)
            saving = statistics.saving(thinking, [[float(plain[problem].thinking)] for problem in both])
            saved = "" if saving is None else shown(saving, percent)
            if key.model == base and not key.method.startswith(CAPS):
                matched = _against_caps(outcomes, plain, caps)
        total = np.mean([outcomes[problem].total for problem in both])
        cut = np.mean([outcomes[problem].cut for problem in both])
        name = f"`{key.method}`" if key.model == base else f"{key.model}, `{key.method}`"
        lines.append(
            f"| {name} | {len(both):,} | {shown(accuracy, percent)} | {difference} "
            f"| {np.mean(thinking):.1f} | {saved} | {total:.1f} | {percent(cut)} | {matched} |"
        )
    return "\n".join(lines)


def _against_caps(
    ours: Mapping[str, Outcome], plain: Mapping[str, Outcome], caps: Sequence[Mapping[str, Outcome]]
) -> str:
    """The difference of accuracy to a cap with the same mean of tokens in all, and words where there is none."""
    both = [problem for problem in plain if problem in ours and all(problem in each for each in caps)]
    if not caps or not both:
        return ""
    tables = [np.array([each[problem] for problem in both], dtype=float)[:, [0, 2]] for each in (ours, *caps, plain)]
    length, *others = (each[:, 1].mean() for each in tables)
    if length < min(others):
        return "shorter than the shortest"
    if length > max(others):
        return "longer than plain"
    draws = np.random.default_rng(0).integers(len(both), size=(DRAWS, len(both)))
    differences = [_difference(tables, rows) for rows in draws]
    low, high = np.quantile(differences, (0.025, 0.975))
    value = _difference(tables, np.arange(len(both)))
    return shown(statistics.Estimate(value, float(low), float(high)), points)


def _difference(tables: Sequence[NDArray[np.float64]], rows: NDArray[np.int64]) -> float:
    """Accuracy of the first less that of the others at its length, on some problems; (n, 2) right and tokens each."""
    (right, length), *others = (each[rows].mean(axis=0) for each in tables)
    rights, lengths = zip(*sorted(map(tuple, others), key=lambda other: other[1]), strict=True)
    return float(right - np.interp(length, lengths, rights))


def main() -> None:
    """Keep outcomes, or print a table of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    kept = commands.add_parser("keep")
    kept.add_argument("file", type=Path)
    kept.add_argument("runs", type=Path, nargs="+")
    shown = commands.add_parser("table")
    shown.add_argument("file", type=Path)
    shown.add_argument("--problems", default="words:test")
    shown.add_argument("--model", default="smollm2-words", help="whose plain decoding all others are compared with")
    given = parser.parse_args()
    if given.command == "keep":
        keep(given.file, given.runs)
        return
    found = read(given.file)
    if Key(given.problems, given.model, "plain") not in found:
        there = ", ".join(sorted({f"{key.problems} of {key.model}" for key in found if key.method == "plain"}))
        raise SystemExit(f"{given.file} has no plain responses of {given.model} to {given.problems}; it has {there}")
    print(table(found, given.problems, given.model))


if __name__ == "__main__":
    main()
