"""Accuracy against eFLOPs: every model, method and limit of some runs, and the front of what can be deployed."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from satisfice.measurement.frontier import Point, front
from satisfice.report.figures import COLOURS, POINTS_AN_INCH
from satisfice.report.text import visible

MARKERS = "osD^vPX*"


def frontier_figure(points: Sequence[Point]) -> Figure:
    """The picture: one mark a model and method, cost on a logarithmic axis; filled at the limit of the run itself."""
    figure = Figure(figsize=(9.0, 5.0), dpi=POINTS_AN_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = list(dict.fromkeys((point.model, point.method) for point in points))
    best = front(points)
    for model, method in lines:
        own = sorted((p for p in points if (p.model, p.method) == (model, method)), key=lambda point: point.cost)
        marker = MARKERS[lines.index((model, method)) % len(MARKERS)]
        colour = COLOURS["front" if any(point in best for point in own) else "dominated"]
        x, y = [point.cost for point in own], [100 * point.accuracy for point in own]
        axes.plot(x, y, color=colour, linewidth=0.8, marker=marker, markersize=5, fillstyle="none", zorder=2)
        whole = [point for point in own if point.cap is None]
        axes.plot(
            [point.cost for point in whole], [100 * point.accuracy for point in whole], color=colour, marker=marker,
            markersize=8, linestyle="none", zorder=3, label=visible(f"{model} {method}").replace("$", r"\$")[:60],
        )  # fmt: skip
    axes.step(
        [point.cost for point in best], [100 * point.accuracy for point in best], where="post",
        color=COLOURS["front"], linewidth=1.4, zorder=1,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("eFLOPs a response, mean; probes, branches and prefill included", color=COLOURS["ink"])
    axes.set_ylabel("accuracy; what a limit cuts off is wrong", color=COLOURS["ink"])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.grid(color=COLOURS["hairline"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure
