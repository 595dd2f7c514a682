"""Every training objective under one budget of rollouts: what it does to the lab's reasoner.

    python benchmarks/objectives.py --out runs/objectives --seeds 0
    python benchmarks/objectives.py --out runs/objectives --seeds 0 1 2 --objectives tldr kimi

Each objective is trained by `recipes/lab/objectives.yaml` with its own parameters below, then asked the reported
problems at the temperature of the training, as is the untrained model, under the same seed. What is finished is not
done again. Prints one row an objective and question, averaged over seeds.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from satisfice.measurement import statistics
from satisfice.measurement.summary import is_correct
from satisfice.reinforcement import OBJECTIVES
from satisfice.run_folder import Run, read_run

RECIPE = Path(__file__).parents[1] / "recipes" / "lab" / "objectives.yaml"
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
"""Instructions behind the question, for objectives that train on some; the others are asked without."""


def satisfice(*arguments: str) -> None:
    """The command line, in a process of its own."""
    subprocess.run([sys.executable, "-m", "satisfice.cli", *arguments], check=True)


def asked(model: str, out: Path, instruction: str, arguments: argparse.Namespace, seed: int) -> Run:
    """The reported problems, answered by a model."""
    folder = out / f"asked-{instruction.strip('.').replace(' ', '-').lower() or 'plainly'}"
    satisfice(
        "compare", model, "--problems", arguments.problems, "--limit", str(arguments.limit), "--methods", "plain",
        "--instruction", instruction, "--temperature", "1.0", "--seed", str(seed), "--out", str(folder),
    )  # fmt: skip
    return read_run(folder)


def compare(run: Run, base: Run) -> dict[str, float]:
    """Accuracy and tokens, and the paired differences from the untrained model."""
    ours, theirs = ({trace.problem_id: trace for trace in side.traces["plain"]} for side in (run, base))
    ids = sorted(ours)
    difference = statistics.accuracy_difference(
        [[is_correct(ours[key])] for key in ids], [[is_correct(theirs[key])] for key in ids]
    )
    assert difference is not None
    assert difference.low is not None
    assert difference.high is not None
    return {
        "accuracy": mean(is_correct(ours[key]) for key in ids),
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "tokens": mean(ours[key].cost.thinking_tokens for key in ids),
        "saved": 1 - sum(ours[k].cost.thinking_tokens for k in ids) / sum(theirs[k].cost.thinking_tokens for k in ids),
        "cut": mean(not ours[key].finished for key in ids),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--problems", default="lab:test")
    parser.add_argument("--limit", type=int, default=400)
    arguments = parser.parse_args()
    bases = {seed: asked("lab", arguments.out / f"untrained-{seed}", "", arguments, seed) for seed in arguments.seeds}
    rows: list[tuple[str, str, list[dict[str, float]]]] = []
    for name in arguments.objectives:
        found: dict[str, list[dict[str, float]]] = {instruction: [] for instruction in ASKED.get(name, [""])}
        for seed in arguments.seeds:
            out = arguments.out / f"{name}-{seed}"
            if not (out / "log.jsonl").exists():
                keys = [f"seed={seed}", f"objective.name={name}", *FURTHER.get(name, [])]
                keys += [f"objective.{setting}" for setting in SETTINGS.get(name, [])]
                satisfice("train", str(RECIPE), "--out", str(out), *(f"--set={key}" for key in keys))
            log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
            violations = mean(step["reward_violations"] for step in log if "reward_violations" in step)
            for instruction, measured in found.items():
                measured.append(compare(asked(str(out), out, instruction, arguments, seed), bases[seed]))
                measured[-1]["violations"] = violations
        rows += [(name, instruction, measured) for instruction, measured in found.items()]
    columns = ("accuracy", "difference (95 %)", "thinking tokens", "saved", "cut off", "violations a step")
    print(f"\n| objective | asked | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for name, instruction, measured in rows:
        of = {key: mean(seed[key] for seed in measured) for key in measured[0]}
        # The interval is that of one seed's problems; with several seeds the spread between them stands beside it.
        each = ", ".join(f"{100 * seed['difference']:+.1f}" for seed in measured)
        spread = f" (seeds {each})" if len(measured) > 1 else ""
        print(
            f"| {name} | {instruction or '-'} | {of['accuracy']:.1%} | {100 * of['difference']:+.1f} "
            f"({100 * of['low']:+.1f} to {100 * of['high']:+.1f}){spread} | {of['tokens']:.0f} | {of['saved']:.0%} | "
            f"{of['cut']:.1%} | {of['violations']:.1f} |"
        )


if __name__ == "__main__":
    main()
