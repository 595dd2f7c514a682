import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import METHODS, write_run

from satisfice.measurement import Summary, summarise
from satisfice.report.figures import (
    COLOURS,
    Box,
    accuracy_cost_figure,
    lengths_figure,
    place_labels,
    to_inline,
    to_png,
    to_svg,
)
from satisfice.runs.run_folder import Run, read_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {count: read_run(write_run(folder / str(count), problems=12, methods=count)) for count in (5, 16)}


def a_summary(run: Run) -> Summary:
    return summarise(run.config, run.traces)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_few_points_carry_names_and_many_carry_numbers(runs: dict[int, Run]) -> None:
    few = texts(to_svg(accuracy_cost_figure(a_summary(runs[5]))))
    assert set(list(METHODS)[:5]) <= set(few)
    assert "5" not in few
    many = texts(to_svg(accuracy_cost_figure(a_summary(runs[16]))))
    for number, method in enumerate(METHODS, start=1):
        assert many.count(str(number)) == 2, "once at the point, once in the key"
        assert method in many
    narrow = texts(to_svg(accuracy_cost_figure(a_summary(runs[5]), narrow=True)))
    assert {"1", "2", "3", "4", "5"} <= set(narrow)
    assert "no-thinking" not in narrow


@pytest.mark.parametrize("narrow", [False, True])
def test_labels_of_many_points_do_not_overlap(runs: dict[int, Run], narrow: bool) -> None:
    figure = accuracy_cost_figure(a_summary(runs[16]), narrow=narrow)
    extents = {
        text.get_gid(): text.get_window_extent()
        for text in figure.axes[0].texts
        if str(text.get_gid()).startswith("label-")
    }
    assert len(extents) == 16
    boxes = [Box(box.x0, box.y0, box.x1, box.y1) for box in extents.values()]
    assert all(one.overlap(other) == 0 for place, one in enumerate(boxes) for other in boxes[:place])


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.2, 3.0])
def test_labels_of_points_on_one_place_do_not_overlap(runs: dict[int, Run], narrow: bool, spread: float) -> None:
    summary = a_summary(runs[5])
    base = summary.rows[1]
    assert base.cost is not None
    rows = [
        base.model_copy(
            update={"number": number, "method": f"m{number}", "cost": base.cost + spread * (number * 7 % 31)}
        )
        for number in range(1, 31)
    ]
    figure = accuracy_cost_figure(summary.model_copy(update={"rows": rows}), narrow=narrow)
    labels = [text for text in figure.axes[0].texts if str(text.get_gid()).startswith("label-")]
    extents = [text.get_window_extent() for text in labels]
    boxes = [Box(box.x0, box.y0, box.x1, box.y1) for box in extents]
    assert all(one.overlap(other) == 0 for place, one in enumerate(boxes) for other in boxes[:place])
    named: list[int] = []
    for label in labels:
        for part in label.get_text().replace("\n", " ").split(","):
            first, _, last = part.partition("–")
            named += range(int(first), int(last or first) + 1)
    assert sorted(named) == list(range(1, 31)), "every method has its number at a point"
    assert len(labels) == 1 or spread


@given(st.lists(st.tuples(st.integers(20, 380), st.integers(20, 280)), max_size=16))
@settings(deadline=None)
def test_labels_overlap_only_when_they_say_so(anchors: list[tuple[int, int]]) -> None:
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in anchors]
    bounds = Box(0, 0, 400, 300)
    boxes, crowded = place_labels(anchors, [(14.0, 12.0)] * len(anchors), marks, [], bounds)
    assert len(boxes) == len(anchors)
    clear = all(bounds.contains(box) for box in boxes) and all(
        box.overlap(other) == 0 for place, box in enumerate(boxes) for other in [*marks, *boxes[:place]]
    )
    assert clear != crowded


def test_labels_without_room_are_said_to_be_crowded() -> None:
    _, crowded = place_labels([(10, 10)], [(50.0, 10.0)], [], [], Box(0, 0, 20, 20))
    assert crowded


def test_a_figure_in_the_page_follows_its_theme_and_policy(runs: dict[int, Run]) -> None:
    run = runs[5]
    for figure in (accuracy_cost_figure(a_summary(run)), lengths_figure(a_summary(run), run.traces)):
        inline = to_inline(figure, "wide", "Accuracy against cost")
        assert inline.markup.startswith("<svg viewBox=")
        assert 'aria-label="Accuracy against cost"' in inline.markup
        assert "style=" not in inline.markup
        assert "<style" not in inline.markup
        assert "http" not in inline.markup
        assert not re.findall(r'\bid="(?!wide-)', inline.markup)
        targets = re.findall(r'(?:href="|url\()#([^")]+)', inline.markup)
        assert targets
        assert all(f'id="{target}"' in inline.markup for target in targets)
        assert "var(--ink)" in inline.css
        assert not any(colour in inline.css for colour in COLOURS.values())
        classes = set(re.findall(r'class="([^"]+)"', inline.markup))
        assert classes == set(re.findall(r"^\.([\w-]+) \{", inline.css, flags=re.MULTILINE))


def test_a_run_gives_the_same_file_twice(runs: dict[int, Run]) -> None:
    assert to_svg(accuracy_cost_figure(a_summary(runs[5]))) == to_svg(accuracy_cost_figure(a_summary(runs[5])))
    assert to_png(accuracy_cost_figure(a_summary(runs[5]))).startswith(b"\x89PNG\r\n\x1a\n")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", problems=8, methods=2, hostile=True))
    svg = to_svg(accuracy_cost_figure(a_summary(run)))
    assert "<b>bad</b>:$x_1$='\"--></svg>" in texts(svg), "neither markup nor a formula"
    inline = to_inline(lengths_figure(a_summary(run), run.traces), "lengths", "Lengths")
    assert inline.markup.count("</svg>") == 1
    assert "<b>" not in inline.markup


@pytest.mark.parametrize("narrow", [False, True])
def test_a_run_that_has_not_begun_has_pictures(tmp_path: Path, narrow: bool) -> None:
    run = read_run(write_run(tmp_path / "run", problems=0, methods=2))
    assert texts(to_svg(accuracy_cost_figure(a_summary(run), narrow=narrow))) == ["no trace yet"]
    assert texts(to_svg(lengths_figure(a_summary(run), run.traces, narrow=narrow))) == ["no trace yet"]


def test_lengths_have_a_strip_for_each_method(runs: dict[int, Run]) -> None:
    run = runs[16]
    figure = lengths_figure(a_summary(run), run.traces)
    assert len(figure.axes) == 16
    assert len({axes.get_xlim() for axes in figure.axes}) == 1, "one token axis for all"
    for axes, traces in zip(figure.axes, run.traces.values(), strict=True):
        counts = [patch.get_data().values for patch in axes.patches]  # type: ignore[attr-defined]
        assert sum(counts[0]) == sum(trace.correct for trace in traces)
        assert -sum(counts[1]) == sum(not trace.correct for trace in traces)
