"""The picture of a calibration: along the knob what is lost, with its upper bound, and what is thought."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from satisfice.report.figures import COLOURS, POINTS_AN_INCH, to_png, to_svg
from satisfice.report.text import visible
from satisfice.runs.certificate import Certificate, Setting
from satisfice.runs.run_folder import write_atomically

WIDTH = 4.6
"""Of one method's part, in inches."""


def certificate_figure(certificate: Certificate) -> Figure:
    """One column a method: above the mean loss with its upper bound, below the tokens; what is certified is filled.

    Settings stand in their order from harmless to bold; those that were not tried are left out.
    """
    rows = {name: [each for each in row if each.loss is not None] for name, row in certificate.ladders.items()}
    rows = {name: row for name, row in rows.items() if row}
    figure = Figure(figsize=(WIDTH * max(1, len(rows)), 4.4), dpi=POINTS_AN_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    if not rows:
        figure.text(0.5, 0.5, "no setting was tried", ha="center", color=COLOURS["muted"])
        return figure
    panels = figure.subplots(2, len(rows), squeeze=False, sharex="col", height_ratios=(3, 2))
    for column, (name, row) in enumerate(rows.items()):
        above, below = panels[:, column]
        _losses(above, row, certificate)
        _tokens(below, row, certificate)
        above.set_title(visible(name), fontsize=10, color=COLOURS["ink"], loc="left", parse_math=False)
        below.set_xticks(range(len(row)), [f"{each.value}" for each in row], fontsize=9)
        below.set_xlabel(f"{row[0].parameter}, from harmless to bold", fontsize=9, color=COLOURS["ink"])
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(colors=COLOURS["muted"], labelsize=9)
            axes.grid(axis="y", color=COLOURS["hairline"], linewidth=0.6)
            axes.set_axisbelow(True)
            axes.set_xlim(-0.5, len(row) - 0.5)
    panels[0, 0].set_ylabel(f"{certificate.loss} loss", fontsize=9, color=COLOURS["ink"])
    convention = certificate.saving.convention if certificate.saving else "counted"
    panels[1, 0].set_ylabel(f"{convention} tokens", fontsize=9, color=COLOURS["ink"])
    return figure


def _losses(axes: Axes, row: Sequence[Setting], certificate: Certificate) -> None:
    for place, setting in enumerate(row):
        loss, bound = setting.loss or 0.0, setting.bound if setting.bound is not None else 1.0
        certified = setting.verdict == "certified"
        colour = COLOURS["front"] if certified else COLOURS["dominated"]
        axes.plot([place, place], [loss, bound], color=colour, linewidth=1.4)
        axes.plot([place - 0.12, place + 0.12], [bound, bound], color=colour, linewidth=1.4)
        face = colour if certified else COLOURS["paper"]
        axes.plot([place], [loss], marker="o", markersize=6, color=colour, markerfacecolor=face)
        if setting.method == certificate.method:
            axes.annotate(
                "chosen", (place, loss), (0, -7), textcoords="offset points", ha="center", va="top", fontsize=9,
                color=colour,
            )  # fmt: skip
    axes.axhline(certificate.max_loss, color=COLOURS["wrong"], linewidth=1, linestyle="--")
    axes.text(
        len(row) - 0.52, certificate.max_loss, f"at most {certificate.max_loss:.1%}", ha="right", va="bottom",
        fontsize=9, color=COLOURS["wrong"],
    )  # fmt: skip
    # A setting that was given up early has a bound near 1, which would flatten the rest.
    bounds = [each.bound for each in row if each.bound is not None and each.verdict == "certified"]
    losses = [each.loss or 0.0 for each in row]
    top = max(3 * certificate.max_loss, 1.2 * max([*bounds, *losses, 0.0]))
    low = min(0.0, *losses)
    axes.set_ylim(low - 0.12 * (top - low), top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def _tokens(axes: Axes, row: Sequence[Setting], certificate: Certificate) -> None:
    for place, setting in enumerate(row):
        colour = COLOURS["front"] if setting.verdict == "certified" else COLOURS["dominated"]
        axes.bar([place], [setting.tokens or 0.0], width=0.5, color=colour)
        axes.plot(
            [place - 0.32, place + 0.32], [setting.baseline_tokens or 0.0] * 2, color=COLOURS["ink"], linewidth=1.2
        )


def write_picture(certificate: Certificate, path: str | Path) -> Path:
    """Draw it into a file, by its ending .svg or .png.

    Raises:
        ValueError: the file has another ending.
    """
    path = Path(path)
    figure = certificate_figure(certificate)
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"{path} cannot be drawn: give a file that ends in .svg or .png")
    write_atomically(path, to_svg(figure) if path.suffix == ".svg" else to_png(figure))
    return path
