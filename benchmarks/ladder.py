"""The ladder of the founding paper's title on the lab: intervention, supervision, reinforcement, all three together.

    python benchmarks/ladder.py --out runs/supervision --limit 4000 --picture docs/results/ladder.png
    python benchmarks/ladder.py --out runs/supervision --limit 4000 --table       # what is finished, nothing is run

One process, one thread. It goes on in the folder of `benchmarks/supervision.py`: the supervised rung is that
benchmark's model on `truncate-shortest` (training seed 0), and reinforcement from there is `recipes/lab/tldr.yaml` with
that model to begin with, nothing else changed. `t` is the one chosen on `lab:calibration` for the lab
(docs/results/lab.md) and is used on every rung as it is. Every model is asked the same problems at temperature 1.0
under one seed; intervals are 95 %, paired by problem with the lab's `plain`. One training a rung.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from supervision import MAX_TOKENS, asked, by_problem, satisfice, trained

from satisfice.measurement import statistics
from satisfice.report.figures import COLOURS, POINTS_AN_INCH, to_png
from satisfice.runs.run_folder import read_run

RECIPE = Path(__file__).parents[1] / "recipes" / "lab" / "tldr.yaml"
SCALED = "temperature-scaling:t=0.85"
SHORT = "tldr:level=short"
SHORT_SCALED = "tldr:level=short+temperature-scaling:t=0.85"


@dataclass(frozen=True)
class Rung:
    """A model and how it is asked.

    Attributes:
        name: as the table and the picture have it.
        model: "lab", "lab-tldr", or one of the two that are trained here: "supervised" and "both".
        method: a method as `compare` spells it.
    """

    name: str
    model: str
    method: str


RUNGS = (
    Rung("fine-tuned on long traces", "lab", "plain"),
    Rung("+ intervention", "lab", SCALED),
    Rung("+ supervision", "supervised", "plain"),
    Rung("+ supervision, intervention", "supervised", SCALED),
    Rung("+ reinforcement", "lab-tldr", SHORT),
    Rung("+ reinforcement, intervention", "lab-tldr", SHORT_SCALED),
    Rung("+ supervision, reinforcement", "both", SHORT),
    Rung("+ all three", "both", SHORT_SCALED),
)


def model_of(out: Path, rung: Rung) -> str:
    """The model of a rung; trained first where it must be."""
    if rung.model == "supervised":
        return str(trained(out, "truncate-shortest", 0, []))
    if rung.model == "both":
        folder = out / "models" / "supervised-then-tldr"
        if not (folder / "log.jsonl").exists():
            start = trained(out, "truncate-shortest", 0, [])
            satisfice("train", str(RECIPE), "--out", str(folder), f"--set=model={start}", "--set=architecture=llama")
        return str(folder)
    return rung.model


@dataclass(frozen=True)
class Point:
    """What was measured on a rung.

    Attributes:
        rung: which.
        problems: number of problems.
        accuracy: share of them that was answered right, with its 95 % interval.
        tokens: mean thinking tokens.
        difference: of the accuracy against the first rung, paired, in points.
        saving: of the thinking tokens against the first rung, a share.
        cut: share of responses that the limit of tokens cut off.
    """

    rung: Rung
    problems: int
    accuracy: statistics.Estimate
    tokens: float
    difference: statistics.Estimate
    saving: statistics.Estimate
    cut: float


def measured(rungs: Sequence[tuple[Rung, Path]]) -> list[Point]:
    """The rungs that were asked, against the first one."""
    first = by_problem(rungs[0][1], rungs[0][0].method)
    points = []
    for rung, folder in rungs:
        if not folder.exists() or rung.method not in read_run(folder).traces:
            continue
        ours = by_problem(folder, rung.method)
        problems = [problem for problem in first if problem in ours]
        right, tokens = [[ours[p][0]] for p in problems], [[float(ours[p][1])] for p in problems]
        base_right, base_tokens = [[first[p][0]] for p in problems], [[float(first[p][1])] for p in problems]
        accuracy, difference = statistics.accuracy(right), statistics.accuracy_difference(right, base_right)
        assert accuracy is not None
        assert difference is not None
        points.append(
            Point(
                rung, len(problems), accuracy, sum(t for (t,) in tokens) / len(problems), difference,
                statistics.saving(tokens, base_tokens), sum(ours[p][2] for p in problems) / len(problems),
            )
        )  # fmt: skip
    return points


def shown(estimate: statistics.Estimate, form: str, factor: float = 1) -> str:
    """A value with its interval."""
    value, low, high = (factor * (each or 0) for each in (estimate.value, estimate.low, estimate.high))
    return f"{form.format(value)} ({form.format(low)} … {form.format(high)})"


def table(points: Sequence[Point]) -> str:
    """As markdown."""
    lines = [
        "| rung | model, method | n | right (95 %) | against the first, points | thinking tokens | saved | cut off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in points:
        is_first = point.rung == RUNGS[0]
        cells = [
            point.rung.name,
            f"`{point.rung.model}`, `{point.rung.method}`",
            f"{point.problems:,}",
            shown(point.accuracy, "{:.1%}"),
            "" if is_first else shown(point.difference, "{:+.1f}", 100),
            f"{point.tokens:.1f}",
            "" if is_first else shown(point.saving, "{:.1%}"),
            f"{point.cut:.2%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(points: Sequence[Point]) -> Figure:
    """Accuracy with its interval against mean thinking tokens, numbered as the rungs are."""
    figure = Figure(figsize=(8.6, 4.2), dpi=POINTS_AN_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, point in enumerate(points, 1):
        y, low, high = (100 * (each or 0) for each in (point.accuracy.value, point.accuracy.low, point.accuracy.high))
        reinforced = point.rung.model in ("lab-tldr", "both")
        colour = COLOURS["front"] if reinforced else COLOURS["wrong" if point.rung.model == "lab" else "correct"]
        axes.errorbar(
            point.tokens, y, yerr=[[y - low], [high - y]], color=colour, marker="o", markersize=6, elinewidth=1,
            fillstyle="none" if point.rung.method in (SCALED, SHORT_SCALED) else "full", linestyle="none",
            label=f"{number}  {point.rung.name}",
        )  # fmt: skip
        # A rung and the same with temperature scaling often stand on each other.
        beside = (-11, 5) if point.rung.method in (SCALED, SHORT_SCALED) else (5, -11)
        axes.annotate(
            str(number), (point.tokens, y), xytext=beside, textcoords="offset points", fontsize=9, color=COLOURS["ink"]
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("thinking tokens of a response, mean", color=COLOURS["ink"])
    axes.set_ylabel("accuracy (95 %)", color=COLOURS["ink"])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.grid(color=COLOURS["hairline"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def main() -> None:
    """Run what is missing, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/supervision"))
    parser.add_argument("--problems", default="lab:test")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--table", action="store_true", help="print what is finished, and run nothing")
    given = parser.parse_args()
    models = {rung.model: [each.method for each in RUNGS if each.model == rung.model] for rung in RUNGS}
    folders: dict[str, Path] = {}
    for model, methods in models.items():
        rung = next(each for each in RUNGS if each.model == model)
        name = model_of(given.out, rung)
        folders[model] = given.out / "asked" / f"{Path(name).name}-{given.problems.replace(':', '-')}-{given.limit}"
        if not given.table:
            assert asked(given.out, name, given.problems, given.limit, methods) == folders[model]
    points = measured([(rung, folders[rung.model]) for rung in RUNGS])
    print(f"{given.problems}, temperature 1.0, at most {MAX_TOKENS} tokens\n\n{table(points)}")
    if given.picture:
        given.picture.write_bytes(to_png(picture(points)))


if __name__ == "__main__":
    main()
