"""The ladder on a real language model, from the outcomes that `benchmarks/outcomes.py` keeps: docs/results/smollm2.md.

    python benchmarks/smollm2.py docs/results/smollm2.csv.gz --picture docs/results/smollm2.png

Everything is compared, paired by problem, with plain decoding of the first model; what was not kept is left out.
Nothing is run here.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from ladder import Rung, draw, table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from outcomes import Key, Outcome, read
from supervision import Answers, Comparison, comparison

from satisfice.report.figures import COLOURS, POINTS_AN_INCH, to_png

PROBLEMS = "words:test"
WORDS, SHORT, TLDR = "smollm2-words", "smollm2-short", "smollm2-tldr"
RUNGS = (
    Rung("fine-tuned on long traces", WORDS, "plain"),
    Rung("cap of 150", WORDS, "budget-forcing:max_thinking=150", "muted"),
    Rung("cap of 110", WORDS, "budget-forcing:max_thinking=110", "muted"),
    Rung("cap of 72", WORDS, "budget-forcing:max_thinking=72", "muted"),
    Rung("ramp towards a cap of 160", WORDS, "thinking-budget:max_thinking=160", "ink"),
    Rung("deer", WORDS, "deer", "ink"),
    Rung("entrocut", WORDS, "entrocut:tau=0.1", "ink"),
    Rung("temperature scaling, t=0.95", WORDS, "temperature-scaling:t=0.95"),
    Rung("temperature scaling, t=0.9", WORDS, "temperature-scaling"),
    Rung("supervision", SHORT, "plain", "correct"),
    Rung("TLDR, no level", TLDR, "plain", "front"),
    Rung("TLDR, short", TLDR, "tldr:level=short", "front"),
    Rung("TLDR, medium", TLDR, "tldr:level=medium", "front"),
    Rung("TLDR, long", TLDR, "tldr:level=long", "front"),
)


def answers(outcomes: Mapping[str, Outcome]) -> Answers:
    """As `supervision.comparison` takes them."""
    return {problem: (bool(each.right), each.thinking, bool(each.cut)) for problem, each in outcomes.items()}


def picture(found: Sequence[tuple[Rung, Comparison]]) -> Figure:
    """Accuracy against thinking tokens: all of it, and beside it the corner where most rungs stand."""
    figure = Figure(figsize=(11.2, 4.2), dpi=POINTS_AN_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    whole, corner = figure.subplots(1, 2, width_ratios=(1, 1.15))
    draw(whole, found, numbered=lambda measured: not _in_corner(measured))
    draw(corner, found)
    inside = [measured for _, measured in found if _in_corner(measured)]
    left, right = min(each.tokens for each in inside) - 4, max(each.tokens for each in inside) + 6
    low, high = 100 * min(each.accuracy.low or 0 for each in inside) - 0.6, 95.5
    whole.set_xlim(right=1.08 * max(measured.tokens for _, measured in found))
    corner.set_xlim(left, right)
    corner.set_ylim(low, high)
    corner.set_ylabel("")
    whole.indicate_inset((left, low, right - left, high - low), edgecolor=COLOURS["muted"])
    corner.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _in_corner(measured: Comparison) -> bool:
    return measured.accuracy.value > 0.8 and measured.tokens < 150


def main() -> None:
    """Print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    kept = read(given.file)
    plain = answers(kept[Key(PROBLEMS, WORDS, "plain")])
    asked = [(rung, kept.get(Key(PROBLEMS, rung.model, rung.method), {})) for rung in RUNGS]
    compared = [(rung, comparison([answers(outcomes)], plain)) for rung, outcomes in asked]
    found = [(rung, measured) for rung, measured in compared if measured is not None]
    print(table(found))
    if given.picture:
        given.picture.write_bytes(to_png(picture(found)))


if __name__ == "__main__":
    main()
