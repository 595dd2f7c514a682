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
    below, above, width = 0.65 + 0.24 * len(marks), 0.35, 9.0
    height = below + above + sum(heights[panel] + 0.3 for panel in panels)
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
    for place, (name, tokens) in enumerate(sorted(marks.items(), key=lambda mark: mark[1])):
        axes.annotate(
            f"{name}: {tokens:,}" + (f" of {course.tokens:,}" if name == "the answer settles" else ""),
            (tokens, 0), xycoords=("data", "axes fraction"), xytext=(0, -46 - 17 * place), textcoords="offset points",
            fontsize=9, color=COLOURS["ink"], ha="left" if tokens < 0.6 * end else "right", va="center",
            parse_math=False, arrowprops={"arrowstyle": "-", "color": COLOURS["hairline"], "relpos": (0, 0.5)},
        )  # fmt: skip
    return figure


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
    for place, chance, rank in zip(course.places, chances, course.end_rank, strict=True):
        axes.plot([place, place], [0, chance], color=COLOURS["front"], linewidth=2, zorder=3)
        axes.text(place, chance + 0.03, f"{rank + 1}.", fontsize=8, color=COLOURS["muted"], ha="center", va="bottom")
    axes.set_ylim(0, 1.2)
    _title(axes, "probability that thinking is closed at each boundary, with the end marker's rank")


def _answers(axes: Axes, course: Course) -> None:
    places = [*course.places, course.tokens]
    last = None
    for index, (start, stop) in enumerate(pairwise(places)):
        shown = course.shown[index]
        role = "dominated" if shown is None else "correct" if course.right_at[index] else "wrong"
        axes.barh(0, max(stop - start, 0), left=start, height=0.8, color=COLOURS[role], zorder=2)
        if shown is not None and shown != last:
            axes.text(
                start, 0.5, visible(shown)[:12], fontsize=9, color=COLOURS["ink"], va="bottom", ha="left",
                parse_math=False,
            )  # fmt: skip
        last = shown
    axes.set_ylim(-0.4, 1.1)
    asked = "if thinking were closed there" if course.source == "asked" else "that the thinking has stated"
    _title(axes, f"the answer {asked}: blue-green is right, orange wrong")


def _title(axes: Axes, text: str) -> None:
    axes.text(0, 1.04, text, transform=axes.transAxes, fontsize=9.5, color=COLOURS["ink"], va="bottom", ha="left")
