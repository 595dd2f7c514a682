"""One thinking as a picture: how sure the model was, what it would have answered, and where each method stopped."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from satisfice.measurement.course import Course
from satisfice.report.figures import COLOURS, POINTS_AN_INCH
from satisfice.report.text import visible

SURE = 0.95
"""Confidence of a trial answer at which DEER stops, by its paper's default."""

WINDOW = 8
"""Tokens over which the entropy is averaged."""

WIDTH = 9.0
"""Inches of the figure."""
CHARACTER = 0.078
"""Inches that a character of a label takes at most, on average; decides which labels would cover each other."""
ROW = 17
"""Points from one label of a stop to the next."""


def timeline_figure(course: Course, stops: Mapping[str, int] | None = None) -> Figure:
    """A course from left to right, in tokens of thinking.

    Above the entropy of the next token, in the middle the probability of the end marker at each boundary, below the
    answer at each; what nobody asked is left out. Lines mark where the answer settled, where a rule would have stopped
    and where each method did.

    Args:
        course: of one response.
        stops: thinking tokens that other methods took for the same problem and sample, by their names.
    """
    marks = {**rule_stops(course), **{visible(name): tokens for name, tokens in (stops or {}).items()}}
    panels = ["answers"]
    panels = ["marker", *panels] if course.end_logprob else panels
    panels = ["entropy", *panels] if course.entropies else panels
    heights = {"entropy": 1.2, "marker": 1.2, "answers": 0.75}
    below, above, width = 0.7 + ROW / 72 * len(marks), 0.35, WIDTH
    height = below + above + sum(heights[panel] + 0.3 for panel in panels) - 0.3
    figure = Figure(figsize=(width, height), dpi=POINTS_AN_INCH)
    FigureCanvasAgg(figure)
    end = max([course.tokens, 1, *marks.values()])
    top = height - above
    for panel in panels:
        axes = figure.add_axes(
            (0.14 / width, (top - heights[panel]) / height, 1 - 0.28 / width, heights[panel] / height)
        )
        top -= heights[panel] + 0.3
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(COLOURS["muted"])
        axes.tick_params(colors=COLOURS["muted"], labelbottom=panel == "answers", labelleft=False, left=False)
        axes.set_xlim(-0.01 * end, 1.02 * end)
        for tokens in marks.values():
            axes.axvline(tokens, color=COLOURS["hairline"], linewidth=1, zorder=1)
        {"entropy": _entropy, "marker": _marker, "answers": _answers}[panel](axes, course)
    axes.set_xlabel("thinking tokens", color=COLOURS["ink"], fontsize=10, loc="right")
    axes.xaxis.label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    _name_stops(axes, heights["answers"], marks, end, course.tokens)
    return figure


def _name_stops(axes: Axes, inches: float, marks: Mapping[str, int], end: int, tokens: int) -> None:
    """The names of the marks below an axes, `inches` high, each at a line that leads down from its place.

    Names stand right of their line, or left of it near the right end. The order keeps lines from names: of those on the
    right the rightmost first, of those on the left the rightmost last.
    """
    left = sorted((mark for mark in marks.items() if mark[1] >= 0.6 * end), key=lambda mark: mark[1])
    right = sorted((mark for mark in marks.items() if mark[1] < 0.6 * end), key=lambda mark: -mark[1])
    for place, (name, at) in enumerate([*left, *right]):
        down, aside = -46 - ROW * place, 4 if at < 0.6 * end else -4
        axes.plot(
            [at, at], [0, (down - 4) / 72 / inches], transform=axes.get_xaxis_transform(), clip_on=False,
            color=COLOURS["hairline"], linewidth=1, zorder=0,
        )  # fmt: skip
        axes.annotate(
            f"{name}: {at:,}" + (f" of {tokens:,}" if name == "the answer settles" else ""),
            (at, 0), xycoords=("data", "axes fraction"), xytext=(aside, down), textcoords="offset points",
            fontsize=9, color=COLOURS["ink"], ha="left" if aside > 0 else "right", va="center", parse_math=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip


def rule_stops(course: Course) -> dict[str, int]:
    """Where rules that need nothing but the course would have stopped; those that never would are left out."""
    found = {"the answer settles": course.settled_at} if course.known else {}
    inner = [index for index, place in enumerate(course.places) if place > 0]
    if course.confidence:
        sure = [index for index in inner if course.confidence[index] > SURE]
        likeliest = [index for index in inner if course.end_rank[index] == 0]
        for name, places in ((f"trial answer {SURE:g} sure (deer)", sure), ("end marker likeliest", likeliest)):
            if places:
                found[name] = course.places[places[0]]
    return found


def _entropy(axes: Axes, course: Course) -> None:
    values = np.asarray(course.entropies)
    axes.plot(np.arange(values.size), values, color=COLOURS["hairline"], linewidth=0.6, zorder=2)
    smooth = np.convolve(values, np.ones(WINDOW) / WINDOW, mode="valid")
    axes.plot(np.arange(smooth.size) + WINDOW / 2, smooth, color=COLOURS["front"], linewidth=1.4, zorder=3)
    axes.set_ylim(0, None)
    _title(axes, f"entropy of the next token in nats (line: mean of {WINDOW}); up to {values.max():.2f}")


def _marker(axes: Axes, course: Course) -> None:
    chances = np.exp(course.end_logprob)
    span, written = _span(axes), list[tuple[float, float]]()
    for place, chance, rank in zip(course.places, chances, course.end_rank, strict=True):
        axes.plot([place, place], [0, chance], color=COLOURS["front"], linewidth=2, zorder=3)
        # Three signs wide, and an eighth of the panel high: a rank that would cover another is left out.
        if any(abs(place - x) < 3 * span and abs(chance - y) < 0.15 for x, y in written):
            continue
        written.append((place, chance))
        axes.text(place, chance + 0.03, f"{rank + 1}.", fontsize=8, color=COLOURS["muted"], ha="center", va="bottom")
    axes.set_ylim(0, 1.2)
    _title(axes, "probability that thinking is closed at each boundary, with the end marker's rank")


def _answers(axes: Axes, course: Course) -> None:
    places = [*course.places, course.tokens]
    changes: list[tuple[int, str]] = []
    for index, (start, stop) in enumerate(pairwise(places)):
        shown = course.shown[index]
        role = "dominated" if shown is None else "correct" if course.right_at[index] else "wrong"
        axes.barh(0, max(stop - start, 0), left=start, height=0.8, color=COLOURS[role], zorder=2)
        if shown is not None and (index == 0 or shown != course.shown[index - 1]):
            changes.append((start, visible(shown)))
    # From the last on, so that the one that stays is there; what has no room is left out, its colour says enough.
    until, span = axes.get_xlim()[1], _span(axes)
    for start, text in reversed(changes):
        room = int((until - start) / span)
        if room < min(len(text), 3):
            continue
        label = text if len(text) <= room else text[: room - 1] + "…"
        axes.text(
            start, 0.5, label, fontsize=9, color=COLOURS["ink"], va="bottom", ha="left", parse_math=False, zorder=4,
        )  # fmt: skip
        until = start
    axes.set_ylim(-0.4, 1.1)
    asked = "if thinking were closed there" if course.source == "asked" else "that the thinking has stated"
    _title(axes, f"the answer {asked}: blue-green is right, orange wrong")


def _span(axes: Axes) -> float:
    """Thinking tokens that a character of a label is wide."""
    low, high = axes.get_xlim()
    return (high - low) / (axes.get_position().width * WIDTH) * CHARACTER


def _title(axes: Axes, text: str) -> None:
    axes.text(0, 1.04, text, transform=axes.transAxes, fontsize=9.5, color=COLOURS["ink"], va="bottom", ha="left")
