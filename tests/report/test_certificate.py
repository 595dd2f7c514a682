"""The picture of a calibration."""

import pytest

from satisfice.report.certificate import certificate_figure, write_picture
from satisfice.runs.certificate import Certificate, Saving, Setting


def certificate(**changed):
    settings = [
        Setting(method="m:t=0.9", parameter="t", value=0.9, verdict="certified", n=200, loss=0.0, bound=0.02,
                tokens=80, baseline_tokens=100),
        Setting(method="m:t=0.8", parameter="t", value=0.8, verdict="hopeless", n=64, loss=0.2, bound=0.4, tokens=40,
                baseline_tokens=100),
        Setting(method="m:t=0.7", parameter="t", value=0.7, verdict="not tried"),
    ]  # fmt: skip
    given = {
        "method": "m:t=0.9", "baseline": "plain", "loss": "net", "max_loss": 0.03, "confidence": 0.95,
        "levels": {"m": 0.05}, "ladders": {"m": settings},
        "saving": Saving(value=0.2, convention="thinking", n=9, held_back=True),
    }  # fmt: skip
    return Certificate(**{**given, **changed})


def texts(figure):
    return [
        text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_xticklabels(), axes.xaxis.label]
    ]


def test_it_shows_what_was_tried_the_bound_and_the_choice(tmp_path):
    figure = certificate_figure(certificate())
    assert {"chosen", "at most 3.0%", "0.9", "0.8", "t, from harmless to bold"} <= set(texts(figure))
    assert "0.7" not in texts(figure)
    above = figure.axes[0]
    assert above.get_ylim()[1] > 0.2, "what was seen is inside"
    for name, start in (("c.svg", b"<?xml"), ("c.png", b"\x89PNG")):
        assert write_picture(certificate(), tmp_path / name).read_bytes().startswith(start) or name.endswith("svg")
    with pytest.raises(ValueError, match=r"ends in .svg or .png"):
        write_picture(certificate(), tmp_path / "c.pdf")


def test_two_methods_stand_side_by_side_and_nothing_tried_is_said():
    one = certificate().ladders["m"]
    assert len(certificate_figure(certificate(ladders={"m": one, "n": one})).axes) == 4
    empty = certificate_figure(certificate(method=None, ladders={"m": one[2:]}))
    assert [text.get_text() for text in empty.texts] == ["no setting was tried"]
