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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from supervision import MAX_TOKENS, Comparison, asked, compared, percent, points, satisfice, shown, trained

from satisfice.report.figures import COLOURS, POINTS_AN_INCH, to_png

RECIPE = Path(__file__).parents[1] / "recipes" / "lab" / "tldr.yaml"
SCALED = "temperature-scaling:t=0.85"
SHORT = "tldr:level=short"
SHORT_SCALED = "tldr:level=short+temperature-scaling:t=0.85"


@dataclass(frozen=True)
class Rung:
    """A model and how it is asked.

    Attributes:
        name: as the table and the picture have it.
        model: "lab", "lab-tldr", or one of `TRAINED`.
        method: a method as `compare` spells it.
        colour: in the picture, of `COLOURS`.
    """

    name: str
    model: str
    method: str
    colour: str = "wrong"


RUNGS = (
    Rung("fine-tuned on long traces", "lab", "plain"),
    Rung("+ intervention", "lab", SCALED),
    Rung("+ supervision", "supervised", "plain", "correct"),
    Rung("+ supervision, intervention", "supervised", SCALED, "correct"),
    Rung("+ reinforcement", "lab-tldr", SHORT, "front"),
    Rung("+ reinforcement, intervention", "lab-tldr", SHORT_SCALED, "front"),
    Rung("+ supervision, reinforcement", "both", SHORT, "front"),
    Rung("+ all three", "both", SHORT_SCALED, "front"),
)


TRAINED = ("supervised", "both")
"""The models that are trained here, and have no name elsewhere."""


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


def table(found: Sequence[tuple[Rung, Comparison]]) -> str:
    """As markdown."""
    lines = [
        "| rung | model, method | n | right (95 %) | against the first, points | thinking tokens | saved | cut off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, (rung, measured) in enumerate(found):
        is_first = number == 0
        cells = [
            rung.name,
            f"{rung.model if rung.model in TRAINED else f'`{rung.model}`'}, `{rung.method}`",
            f"{measured.problems:,}",
            shown(measured.accuracy, percent),
            "" if is_first else shown(measured.difference, points),
            f"{measured.tokens:.1f}",
            "" if is_first else shown(measured.saving, percent),
            percent(measured.cut[1], 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(found: Sequence[tuple[Rung, Comparison]]) -> Figure:
    """Accuracy with its interval against mean thinking tokens, numbered as the rungs are."""
    figure = Figure(figsize=(8.6, 4.2), dpi=POINTS_AN_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes, found)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw(
    axes: Axes, found: Sequence[tuple[Rung, Comparison]], numbered: Callable[[Comparison], bool] = lambda _: True
) -> None:
    """The rungs on axes; `numbered` says which of them get their number beside them."""
    for number, (rung, measured) in enumerate(found, 1):
        span, is_scaled = measured.accuracy, "temperature-scaling" in rung.method
        y, low, high = (100 * (each or 0) for each in (span.value, span.low, span.high))
        colour = COLOURS[rung.colour]
        axes.errorbar(
            measured.tokens, y, yerr=[[y - low], [high - y]], color=colour, marker="o", markersize=6, elinewidth=1,
            fillstyle="none" if is_scaled else "full", linestyle="none", label=f"{number}  {rung.name}",
        )  # fmt: skip
        if numbered(measured):
            # A rung and the same with temperature scaling often stand on each other.
            axes.annotate(
                str(number), (measured.tokens, y), xytext=(-11, 5) if is_scaled else (5, -11),
                textcoords="offset points", fontsize=9, color=COLOURS["ink"], annotation_clip=True,
            )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel("thinking tokens of a response, mean", color=COLOURS["ink"])
    axes.set_ylabel("accuracy (95 %)", color=COLOURS["ink"])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.grid(color=COLOURS["hairline"], linewidth=0.6)
    axes.set_axisbelow(True)


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
    asked_of = [(rung, compared([folders[rung.model]], rung.method, folders["lab"])) for rung in RUNGS]
    found = [(rung, comparison) for rung, comparison in asked_of if comparison is not None]
    print(f"{given.problems}, temperature 1.0, at most {MAX_TOKENS} tokens\n\n{table(found)}")
    if given.picture:
        given.picture.write_bytes(to_png(picture(found)))


if __name__ == "__main__":
    main()
