"""The two pictures: accuracy against cost, and how long right and wrong responses are."""

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from satisfice.measurement import Columns, Row, Summary
from satisfice.report.findings import COUNTED
from satisfice.report.text import visible
from satisfice.trace import Trace

COLOURS = {
    "ink": "#1c222b",
    "muted": "#6a7280",
    "hairline": "#dfe2e7",
    "paper": "#fffffe",
    "front": "#1d5fae",
    "dominated": "#8d95a3",
    "correct": "#17808f",
    "wrong": "#c8602a",
}
"""One colour a role. In the page each becomes the CSS variable of its name, so that the pictures follow the theme."""

POINTS_AN_INCH = 72
"""Figures are laid out at this resolution: then a pixel of the layout is a point of the SVG."""

KEY_LINE = 0.22
"""Height of a line of the key to the numbers, in inches."""

SAME = 0.25
"""Methods that stand closer than this share a label, in points: their marks cannot be told apart."""

MOST_NAMES = 8
"""With more methods than this the points are numbered: their names would cover the picture."""


def accuracy_cost_figure(summary: Summary, *, narrow: bool = False) -> Figure:
    """Accuracy (with its 95 % interval) against mean cost, one point a method, and the Pareto front as a line.

    Points carry the names of their methods where the names find room, and else the numbers of the table, explained
    at the side; points that stand on each other share a label. The narrow picture, for phones, always has numbers and
    leaves explaining them to the page.
    """
    rows = [row for row in summary.rows if row.accuracy is not None]
    named = not narrow and len(rows) <= MOST_NAMES
    figure = _accuracy_cost(summary, rows, named=named, narrow=narrow)
    if figure is None:
        figure = _accuracy_cost(summary, rows, named=False, narrow=narrow)
        assert figure is not None
    return figure


def lengths_figure(
    summary: Summary, traces_by_method: Mapping[str, Sequence[Trace]], *, narrow: bool = False
) -> Figure:
    """Thinking lengths of each method on one axis: the right traces upwards, the wrong ones downwards.

    A triangle marks each mean. Every method has its own scale of counts, or one with a spike would flatten the rest.
    """
    rows = [row for row in summary.rows if row.n]
    width, strip, top, bottom = (4.7, 0.95, 0.15, 0.6) if narrow else (9.0, 0.85, 0.15, 0.55)
    height = top + bottom + strip * max(1, len(rows))
    figure = Figure(figsize=(width, height), dpi=POINTS_AN_INCH)
    FigureCanvasAgg(figure)
    if not rows:
        _nothing_yet(figure)
        return figure

    shown = {row.method: Columns.of(traces_by_method[row.method]) for row in rows}
    lengths = {method: columns.count("thinking_tokens") for method, columns in shown.items()}
    right = {method: columns.right for method, columns in shown.items()}
    longest = max(1, *(int(lengths[row.method].max()) for row in rows))
    edges = np.linspace(0, longest, (28 if narrow else 48) + 1)

    left_margin, right_margin = 0.14 / width, 1 - 0.14 / width
    for place, row in enumerate(rows):
        floor = (bottom + strip * (len(rows) - 1 - place)) / height
        axes = figure.add_axes((left_margin, floor, right_margin - left_margin, strip * 0.72 / height))
        histograms = [
            np.histogram(lengths[row.method][part], edges)[0] for part in (right[row.method], ~right[row.method])
        ]
        tallest = max(int(part.max()) for part in histograms)
        means = (row.thinking_tokens_correct, row.thinking_tokens_wrong)
        for counts, mean, sign, role in zip(histograms, means, (1, -1), ("correct", "wrong"), strict=True):
            axes.stairs(sign * counts, edges, fill=True, color=COLOURS[role], linewidth=0)
            if mean is not None:
                axes.plot([mean, mean], [0, sign * tallest], color=COLOURS[role], linewidth=1.2)
                axes.plot([mean], [sign * tallest], marker="v" if sign > 0 else "^", color=COLOURS[role], markersize=5)
        axes.axhline(0, color=COLOURS["muted"], linewidth=0.6)
        axes.set_xlim(-0.006 * longest, 1.006 * longest)
        axes.set_ylim(-1.15 * tallest, 1.15 * tallest)
        _bare(axes)
        last = place == len(rows) - 1
        axes.set_yticks([])
        axes.tick_params(axis="x", labelbottom=last)
        axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(_THOUSANDS)
        axes.grid(axis="x", color=COLOURS["hairline"], linewidth=0.6)
        axes.set_axisbelow(True)
        facts = "" if row.wrong_over_right is None else f"wrong ones {row.wrong_over_right:.1f} × as long"
        limit = 30 if narrow else 70
        axes.text(
            0, 1.03, _shortened(f"{row.number}  {visible(row.method)}", limit), transform=axes.transAxes,
            fontsize=10, color=COLOURS["ink"], parse_math=False, va="bottom",
        )  # fmt: skip
        axes.text(1, 1.03, facts, transform=axes.transAxes, fontsize=9, color=COLOURS["muted"], ha="right", va="bottom")
        if last:
            axes.set_xlabel("thinking tokens", color=COLOURS["ink"], fontsize=10)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as a self-contained SVG file on white; its text stays text."""
    return _svg(figure, transparent=False)


@dataclass(frozen=True)
class Inline:
    """An SVG for the page.

    Attributes:
        markup: an `svg` element with classes instead of style attributes, which the page's policy forbids.
        css: the rules of these classes.
    """

    markup: str
    css: str


def to_inline(figure: Figure, prefix: str, label: str) -> Inline:
    """The figure as an element of the page, in the colours of its theme.

    Args:
        figure: the figure.
        prefix: starts every id and class in it, so that several figures can stand in one page.
        label: what the picture shows, for those who do not see it; plain letters.
    """
    svg = _svg(figure, transparent=True)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    rules: dict[str, str] = {}

    def as_class(match: re.Match[str]) -> str:
        name = rules.setdefault(match[1], f"{prefix}-{len(rules)}")
        return f'class="{name}"'

    svg = re.sub(r'\bstyle="([^"]*)"', as_class, svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', svg, count=1
    )
    css = "\n".join(f".{name} {{ {declarations} }}" for declarations, name in rules.items())
    for role, colour in COLOURS.items():
        css = css.replace(colour, f"var(--{role})")
    return Inline(svg, css)


def _svg(figure: Figure, *, transparent: bool) -> str:
    # The salt makes ids, and with the empty date the whole file, the same for the same run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "satisfice"}):
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=transparent, facecolor="none" if transparent else "white",
            metadata={"Date": None},
        )  # fmt: skip
    return buffer.getvalue()


_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


def _accuracy_cost(summary: Summary, rows: Sequence[Row], *, named: bool, narrow: bool) -> Figure | None:
    """The picture; None where names were asked for and do not all find room."""
    width, height = (4.7, 4.0) if narrow else (9.0, max(4.6, 0.6 + KEY_LINE * len(rows)))
    figure = Figure(figsize=(width, height), dpi=POINTS_AN_INCH)
    FigureCanvasAgg(figure)
    if not rows:
        _nothing_yet(figure)
        return figure
    key = [] if named or narrow else [_shortened(visible(row.method), 44) for row in rows]
    key_width = max((_text_size(figure, name)[0] for name in key), default=0) / POINTS_AN_INCH + 0.55 if key else 0
    left, bottom, gap = 0.62, 0.58, 0.16
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - gap - key_width) / width, (height - bottom - 0.34) / height)
    )
    _bare(axes)
    axes.grid(color=COLOURS["hairline"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(_THOUSANDS)
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel(f"{COUNTED[summary.convention]} a response, mean", color=COLOURS["ink"], fontsize=10)
    axes.text(
        0, 1.03, "accuracy, with its 95 % interval", transform=axes.transAxes, fontsize=10, color=COLOURS["ink"],
        ha="left", va="bottom",
    )  # fmt: skip

    spots = [_spot(row) for row in rows]
    costs = [cost for cost, *_ in spots]
    lowest, highest = min(low for _, _, low, _ in spots), max(high for *_, high in spots)
    room = max(1.5, 0.08 * (highest - lowest))
    # Cost begins at 0, so that distances are savings; accuracy does not, or nothing could be told apart.
    axes.set_xlim(0, max(1.0, *costs) * 1.08)
    axes.set_ylim(max(-1.5, lowest - room), min(101.5, highest + room))

    front = sorted((cost, value) for row, (cost, value, *_) in zip(rows, spots, strict=True) if row.pareto)
    axes.step(
        [cost for cost, _ in front], [value for _, value in front], where="post", color=COLOURS["front"], linewidth=1.2,
        zorder=2,
    )  # fmt: skip
    marks, lines = [], _step_boxes(axes, front)
    for row, (cost, value, low, high) in zip(rows, spots, strict=True):
        colour = COLOURS["front" if row.pareto else "dominated"]
        bar = axes.plot([cost, cost], [low, high], color=colour, linewidth=1, zorder=3, solid_capstyle="butt")
        bar[0].set_gid(f"interval-{row.number}")
        marker = axes.plot(
            [cost], [value], color=colour, linestyle="none", zorder=4,
            marker="s" if row.method == summary.baseline else "o", markersize=8,
        )  # fmt: skip
        marker[0].set_gid(f"point-{row.number}")
        x, y = axes.transData.transform((cost, value))
        marks.append(Box(x - 5, y - 5, x + 5, y + 5))
        (_, lower), (_, upper) = axes.transData.transform([(cost, low), (cost, high)])
        lines.append(Box(x - 1, lower, x + 1, upper))

    anchors = [tuple(axes.transData.transform((cost, value))) for cost, value, *_ in spots]
    window = axes.get_window_extent()
    bounds = Box(window.x0, window.y0, window.x1, window.y1)
    # Front first: its labels get the best places.
    order = sorted(range(len(rows)), key=lambda place: not rows[place].pareto)
    reach = SAME
    while True:
        groups = _groups([anchors[place] for place in order], reach)
        members = [[order[place] for place in group] for group in groups]
        labels = [
            _shortened(visible(rows[group[0]].method), 40)
            if named
            else _numbers([rows[place].number for place in group])
            for group in members
        ]
        boxes, crowded = place_labels(
            [anchors[group[0]] for group in members], [_text_size(figure, label) for label in labels], marks, lines,
            bounds,
        )  # fmt: skip
        if named and (crowded or len(groups) < len(rows)):
            return None
        if not any(one.overlap(other) for one, other in itertools.combinations(boxes, 2)):
            break
        # Points that stand close share a label; the more crowded the picture, the more of them.
        reach *= 1.5
        if reach > max(bounds.right, bounds.high):
            break
    for group, label, box in zip(members, labels, boxes, strict=True):
        row, (x, y) = rows[group[0]], anchors[group[0]]
        colour = _name_colour(summary, row)
        text_x, text_y = axes.transData.inverted().transform(((box.left + box.right) / 2, (box.low + box.high) / 2))
        axes.text(
            text_x, text_y, label, fontsize=9.5, color=colour, ha="center", va="center", parse_math=False,
            zorder=3.5, bbox={"facecolor": COLOURS["paper"], "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        ).set_gid(f"label-{row.number}")  # fmt: skip
        near = (min(max(x, box.left), box.right), min(max(y, box.low), box.high))
        if math.dist((x, y), near) > 13:
            ends = axes.transData.inverted().transform([(x, y), near])
            axes.plot(ends[:, 0], ends[:, 1], color=COLOURS["muted"], linewidth=0.6, zorder=2.5)

    for place, (row, name) in enumerate(zip(rows, key, strict=bool(key))):
        for text, from_right, side in ((str(row.number), key_width - 0.42, "right"), (name, key_width - 0.5, "left")):
            figure.text(
                1 - from_right / width, 1 - (0.42 + KEY_LINE * place) / height, text, fontsize=9.5, ha=side,
                va="center", color=_name_colour(summary, row), parse_math=False,
            )  # fmt: skip
    return figure


@dataclass(frozen=True)
class Box:
    """A rectangle in points; y grows upwards."""

    left: float
    low: float
    right: float
    high: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.high, other.high) - max(self.low, other.low)
        return across * up if across > 0 and up > 0 else 0.0

    def contains(self, other: "Box") -> bool:
        """Whether the other lies wholly inside."""
        return (
            self.left <= other.left and self.right >= other.right and self.low <= other.low and self.high >= other.high
        )


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    marks: Sequence[Box],
    lines: Sequence[Box],
    bounds: Box,
) -> tuple[list[Box], bool]:
    """A box for the label of each anchor: near it, and clear of the marks and of each other where there is room.

    Greedy, in the order given: each label takes the best of some places around its anchor.

    Args:
        anchors: (x, y) in points.
        sizes: (width, height) in points.
        marks: what labels must not cover; the anchors' own marks are among them.
        lines: what labels should not cover, but may rather than stand far off.
        bounds: what labels must not leave.

    Returns:
        The boxes, and whether any of them covers a mark or another label, or leaves the bounds.
    """
    boxes: list[Box] = []
    crowded = False
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        candidates: list[tuple[bool, float, int, Box]] = []
        for radius in (7, 12, 18, 26, 36, 48):
            for angle in (0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 340, 200):
                across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                centre_x, centre_y = x + across * (radius + width / 2), y + up * (radius + height / 2)
                box = Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
                # Two labels on each other cannot be read; one on a mark can, where there is no other place.
                covered = 20 * sum(box.overlap(other) for other in boxes) + sum(box.overlap(mark) for mark in marks)
                forbidden = covered + (0 if bounds.contains(box) else 1e6)
                unwelcome = sum(box.overlap(other) for other in lines) + 1.2 * radius
                candidates.append((forbidden > 0, forbidden + unwelcome, len(candidates), box))
        covers, _, _, best = min(candidates)
        crowded = crowded or covers
        boxes.append(best)
    return boxes, crowded


def _groups(anchors: Sequence[tuple[float, ...]], reach: float) -> list[list[int]]:
    """Places of the anchors that share a label: those within `reach` points of the first of their group."""
    groups: list[list[int]] = []
    for place, anchor in enumerate(anchors):
        near = [group for group in groups if math.dist(anchors[group[0]], anchor) < reach]
        if near:
            near[0].append(place)
        else:
            groups.append([place])
    return groups


def _numbers(numbers: Sequence[int]) -> str:
    """Numbers as runs, "1-3, 7", four runs a line."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    return ",\n".join(", ".join(shown[start : start + 4]) for start in range(0, len(shown), 4))


def _step_boxes(axes: Axes, front: Sequence[tuple[float, float]]) -> list[Box]:
    """The front's line as thin boxes in points."""
    boxes = []
    for start, end in itertools.pairwise(front):
        (x, y), (next_x, next_y) = axes.transData.transform([start, end])
        boxes += [Box(x, y - 1, next_x, y + 1), Box(next_x - 1, y, next_x + 1, next_y)]
    return boxes


def _name_colour(summary: Summary, row: Row) -> str:
    return COLOURS["ink" if row.pareto or row.method == summary.baseline else "muted"]


def _spot(row: Row) -> tuple[float, float, float, float]:
    """Where a method stands: cost, accuracy and its interval, the last three in percent."""
    assert row.cost is not None
    assert row.accuracy is not None
    assert row.accuracy_low is not None
    assert row.accuracy_high is not None
    return row.cost, 100 * row.accuracy, 100 * row.accuracy_low, 100 * row.accuracy_high


def _text_size(figure: Figure, text: str) -> tuple[float, float]:
    probe = figure.text(0, 0, text, fontsize=9.5, parse_math=False)
    extent = probe.get_window_extent()
    probe.remove()
    return extent.width + 4, extent.height + 2


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_facecolor("none")
    axes.tick_params(colors=COLOURS["muted"], labelsize=9, length=0)


def _nothing_yet(figure: Figure) -> None:
    figure.text(0.5, 0.5, "no trace yet", color=COLOURS["muted"], ha="center", va="center", fontsize=11)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
