"""Accuracy against the number of steps: a panel a model, a line a difficulty, and where each is highest."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from satisfice.measurement.optimal_length import best_steps
from satisfice.report.figures import COLOURS, POINTS_AN_INCH
from satisfice.report.text import visible
from satisfice.runs.step_sizes import ModelResult

SHADES = ("#9cc3e6", "#5b97d1", "#1d5fae", "#123c70", "#0a2140")
"""From few operators to many."""


def steps_figure(tested: Sequence[ModelResult]) -> Figure:
    """The picture: 95 % intervals as bars, the best number of steps of each difficulty as a large mark."""
    figure = Figure(figsize=(3.4 * len(tested) + 0.8, 3.6), dpi=POINTS_AN_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tested), sharey=True, squeeze=False)[0]
    for axes, each in zip(panels, tested, strict=True):
        difficulties = list(dict.fromkeys(cell.operators for cell in each.cells))
        best = {found.operators: found.cell for found in best_steps(each.cells)}
        for place, operators in enumerate(difficulties):
            colour = SHADES[min(len(SHADES) - 1, place * len(SHADES) // len(difficulties))]
            # Several step sizes may need as many steps: the smallest of them stands for all, as the others only add
            # to what a step has to do.
            smallest = {cell.steps: cell for cell in reversed(each.cells) if cell.operators == operators}
            cells = [smallest[steps] for steps in sorted(smallest)]
            spans = [cell.accuracy for cell in cells]
            axes.errorbar(
                [cell.steps for cell in cells], [100 * span.value for span in spans],
                yerr=[
                    [100 * (span.value - (span.low or 0.0)) for span in spans],
                    [100 * ((span.high or 1.0) - span.value) for span in spans],
                ],
                color=colour, linewidth=1.2, elinewidth=0.8, marker=".", markersize=5, label=f"{operators} operators",
            )  # fmt: skip
            top = best[operators]
            axes.plot(top.steps, 100 * top.accuracy.value, color=colour, marker="o", markersize=9, fillstyle="none")
        axes.set_title(visible(f"{each.model}, {each.parameters:,} parameters"), fontsize=10, color=COLOURS["ink"])
        axes.set_xlabel("steps", color=COLOURS["ink"])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.grid(color=COLOURS["hairline"], linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("right; a circle marks the best", color=COLOURS["ink"])
    panels[-1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure
