"""The picture of a data card: how long right traces were, and how long the rows are that were made of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from satisfice.report.figures import COLOURS

BINS = 40


def write_lengths(before: Mapping[int, int], after: Mapping[int, int], path: Path) -> Path:
    """Draw two histograms over one axis of tokens, as a PNG.

    Args:
        before: how many right traces had so many tokens.
        after: how many rows have so many tokens.
        path: of the file.
    """
    longest = max([1, *before, *after])
    edges = np.linspace(0, longest, min(BINS, longest) + 1)

    def shares(counts: Mapping[int, int]) -> list[float]:
        total = sum(counts.values()) or 1
        return [100 * number / total for number in counts.values()]

    with rc_context({"font.size": 9, "axes.edgecolor": COLOURS["hairline"], "text.color": COLOURS["ink"]}):
        figure = Figure(figsize=(6, 3), layout="constrained", facecolor=COLOURS["paper"])
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for counts, name, colour in ((before, "right traces", COLOURS["dominated"]), (after, "rows", COLOURS["front"])):
            axes.hist(
                list(counts), bins=edges.tolist(), weights=shares(counts), histtype="stepfilled", alpha=0.6,
                color=colour, label=name,
            )  # fmt: skip
        axes.set_xlabel("tokens of the response")
        axes.set_ylabel("share, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path, dpi=120)
    return path
