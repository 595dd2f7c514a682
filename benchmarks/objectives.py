"""Every training objective under one budget of rollouts: what it does to the lab's reasoner.

    python benchmarks/objectives.py --out runs/objectives                  # all nineteen, three seeds: two hours or so
    python benchmarks/objectives.py --out runs/objectives --table          # what is finished so far, nothing is run

Each objective is trained by `recipes/lab/objectives.yaml` with its own parameters below, then asked the reported
problems at the temperature of the training, as is the untrained model, under the same seed. Seeds come one after the
other, each with all objectives, so whatever is finished is balanced. One process, one thread. A finished objective and
seed is a file `NAME-SEED.json` and is not run again; an unfinished one goes on from its checkpoint.

Responses may take 960 tokens where they are asked, so that the limit does not decide the comparison; the share
that is cut off stands in the table for both sides. Trainings have the recipe's own limit.

The interval of a difference in accuracy knows two causes of chance. Problems: the differences to the untrained model,
averaged over seeds, one a problem; seeds: the mean differences, one a seed. Variance(mean) = variance over seeds /
seeds + variance over problems / problems, which counts what is left of the sampling twice and so is wide rather than
narrow; t by Satterthwaite's degrees of freedom. `p` is that of the same t, by Holm's method over all rows of the table.
With one seed there is neither. In a simulation with three seeds of 500 problems the interval covered 94 to 99 % for a
nominal 95 %, less of it the more seeds differ, with two seeds 89 to 99 %.
"""

import argparse
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance
from typing import Any

# Before torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from scipy import stats

from satisfice.reinforcement import OBJECTIVES

RECIPE = Path(__file__).parents[1] / "recipes" / "lab" / "objectives.yaml"
MAX_TOKENS = 960
SETTINGS: dict[str, list[str]] = {
    "l1-exact": ["min_budget=40", "max_budget=180", "step=10"],
    "l1-max": ["min_budget=40", "max_budget=180", "step=10"],
    "aalc": ["l_max=320", "target=0.9"],
    "dler": ["limit=120"],
    "laser": ["target=100"],
    "laser-d": ["lower=60", "interval=20", "every=10"],
    "thinkprune": ["limits=[160, 120, 90]", "steps_per_round=13", "instruction=Think for at most {budget} tokens."],
    "dapo-overlong": ["limit=160", "cache=80"],
}
"""Parameters in tokens, on the scale of the lab, set before anything was measured; all others are the defaults."""
FURTHER = {"aalc": ["validation=lab:calibration", "validation_limit=100", "validate_every=10"]}
"""Further keys of the recipe."""
ASKED: dict[str, list[str]] = {
    "l1-exact": ["", "Think for exactly 60 tokens."],
    "l1-max": ["", "Think for at most 60 tokens."],
    "thinkprune": ["", "Think for at most 90 tokens."],
    "tldr": ["", "Think briefly.", "Think normally.", "Think at length."],
}
"""Instructions after the question, for objectives that train on some; the others are asked without."""


FORMAT = 1


# -- running


def satisfice(*arguments: str) -> None:
    """The command line, in this process."""
    from satisfice.cli import app

    app(args=list(arguments), standalone_mode=False)


def asked(model: str, folder: Path, instruction: str, plan: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """The reported problems, answered by a model: one record a problem, by id."""
    from satisfice.measurement.summary import is_correct
    from satisfice.runs.run_folder import read_run

    satisfice(
        "compare", model, "--problems", plan["problems"], "--limit", str(plan["limit"]), "--methods", "plain",
        "--instruction", instruction, "--temperature", "1.0", "--max-tokens", str(plan["max_tokens"]),
        "--seed", str(seed), "--threads", "1", "--out", str(folder / f"asked-{_slug(instruction)}"),
    )  # fmt: skip
    traces = read_run(folder / f"asked-{_slug(instruction)}").traces["plain"]
    return [
        {
            "id": trace.problem_id,
            "correct": is_correct(trace),
            "tokens": trace.cost.thinking_tokens,
            "cut": not trace.finished,
        }
        for trace in sorted(traces, key=lambda trace: str(trace.problem_id))
    ]


def _slug(instruction: str) -> str:
    return instruction.strip(".").replace(" ", "-").lower() or "plainly"


def measure(name: str, seed: int, out: Path, plan: dict[str, Any]) -> None:
    """Train an objective under a seed and ask the result; done once."""
    path = out / f"{name}-{seed}.json"
    if path.exists():
        return
    folder = out / f"{name}-{seed}"
    violations = None
    if name == "untrained":
        model = "lab"
    else:
        model = str(folder)
        if not (folder / "log.jsonl").exists():
            keys = [f"seed={seed}", f"objective.name={name}", *FURTHER.get(name, [])]
            keys += [f"objective.{setting}" for setting in SETTINGS.get(name, [])]
            satisfice("train", str(RECIPE), "--out", str(folder), *(f"--set={key}" for key in keys))
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        violations = mean(step["reward_violations"] for step in log if "reward_violations" in step)
    found = {text: asked(model, folder, text, plan, seed) for text in ASKED.get(name, [""])}
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"plan": plan, "violations": violations, "asked": found}))
    os.replace(unfinished, path)


# -- the table


@dataclass(frozen=True)
class Difference:
    """A mean difference over seeds and problems; interval and p are None with fewer than two seeds or problems."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def pooled(differences: Sequence[Sequence[float]]) -> Difference:
    """The mean of one row of differences a seed, one number a problem, in the same order for all seeds."""
    by_seed = [mean(row) for row in differences]
    by_problem = [mean(column) for column in zip(*differences, strict=True)]
    value = mean(by_seed)
    if len(by_seed) < 2 or len(by_problem) < 2:
        return Difference(value)
    parts = [variance(values) / len(values) for values in (by_seed, by_problem)]
    total = sum(parts)
    if total == 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    freedom = total**2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (by_seed, by_problem), strict=True)
    )
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    p = 2 * float(stats.t.sf(abs(value) / math.sqrt(total), freedom))
    return Difference(value, value - half, value + half, p)


def holm(values: Sequence[float]) -> list[float]:
    """p values, corrected so that the chance of any wrong rejection among them stays what it is for one."""
    corrected, highest = [1.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def table(out: Path, names: Sequence[str], plan: dict[str, Any]) -> str:
    """What is finished, as markdown."""
    rows: list[tuple[str, str, list[int], Difference, dict[str, float]]] = []
    for name in names:
        finished = {}
        for path in sorted(out.glob(f"{name}-*.json")):
            seed = path.stem.removeprefix(f"{name}-")
            base = out / f"untrained-{seed}.json"
            if seed.isdigit() and base.exists():
                finished[int(seed)] = (_read(path, plan), _read(base, plan)["asked"][""])
        for instruction in ASKED.get(name, [""]) if finished else []:
            differences, seeds = [], []
            for _, (ours, base) in sorted(finished.items()):
                mine = ours["asked"][instruction]
                assert [row["id"] for row in mine] == [row["id"] for row in base]
                differences.append([a["correct"] - b["correct"] for a, b in zip(mine, base, strict=True)])
                seeds.append(_facts(mine, base) | {"violations": ours["violations"]})
            averaged = {key: mean(seed[key] for seed in seeds) for key in seeds[0]}
            averaged |= {
                f"{end} saved": pick(seed["saved"] for seed in seeds) for end, pick in (("low", min), ("high", max))
            }
            rows.append((name, instruction, sorted(finished), pooled(differences), averaged))
    corrected = iter(holm([row[3].p for row in rows if row[3].p is not None]))
    columns = (
        "objective", "asked", "seeds", "accuracy", "difference in points (95 %)", "p (Holm)", "thinking tokens",
        "saved (seeds)", "cut off, untrained / trained", "violations a step",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, instruction, seeds, difference, of in rows:
        interval = "" if difference.low is None else f" ({100 * difference.low:+.1f} … {100 * difference.high:+.1f})"
        p = "" if difference.p is None else f"{next(corrected):.3f}"
        lines.append(
            f"| [`{name}`](../objectives/{name}.md) | {instruction or '-'} | {len(seeds)} | {of['accuracy']:.1%} | "
            f"{100 * difference.value:+.1f}{interval} | {p} | {of['tokens']:.0f} | {of['saved']:.0%} "
            f"({of['low saved']:.0%} … {of['high saved']:.0%}) | {of['base cut']:.1%} / {of['cut']:.1%} | "
            f"{of['violations']:.1f} |"
        )
    untrained = [_read(path, plan)["asked"][""] for path in sorted(out.glob("untrained-*.json"))]
    if untrained:
        right, tokens, cut = (mean(mean(row[key] for row in seed) for seed in untrained) for key in FACTS)
        lines.append(
            f"\nThe untrained model: {right:.1%} right, {tokens:.0f} thinking tokens, {cut:.2%} cut off, over "
            f"{len(untrained)} seeds of {plan['limit']} problems of {plan['problems']}, at most {plan['max_tokens']} "
            "tokens."
        )
    return "\n".join(lines)


FACTS = ("correct", "tokens", "cut")


def _facts(mine: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        "accuracy": mean(row["correct"] for row in mine),
        "tokens": mean(row["tokens"] for row in mine),
        "saved": 1 - sum(row["tokens"] for row in mine) / sum(row["tokens"] for row in base),
        "cut": mean(row["cut"] for row in mine),
        "base cut": mean(row["cut"] for row in base),
    }


def _read(path: Path, plan: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    before = content["plan"]
    changed = [f"{key} {before.get(key)} -> {value}" for key, value in plan.items() if before.get(key) != value]
    if changed:
        raise SystemExit(f"{path} was measured otherwise ({'; '.join(changed)}): give another --out")
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--problems", default="lab:test")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS)
    parser.add_argument("--table", action="store_true", help="print what is finished, and run nothing")
    arguments = parser.parse_args()
    plan = {
        "problems": arguments.problems, "limit": arguments.limit, "max_tokens": arguments.max_tokens,
        "recipe": hashlib.sha256(RECIPE.read_bytes()).hexdigest()[:12], "format": FORMAT,
    }  # fmt: skip
    if not arguments.table:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for seed in arguments.seeds:
            for name in ("untrained", *arguments.objectives):
                measure(name, seed, arguments.out, plan)
    print(table(arguments.out, arguments.objectives, plan))


if __name__ == "__main__":
    main()
