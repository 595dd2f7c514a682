"""Steps of a thinking: joined they are the text, and nothing that belongs together is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satisfice.supervision.steps import StepKind, ending_like, first_step, marked_kind, segment

SPLITTERS = ("paragraph", "sentence", "marker")
PIECES = st.sampled_from(
    [
        "So 3.",
        "\n\n",
        "\n",
        " ",
        "Wait",
        "$x",
        "$",
        "$$",
        "```",
        "```py\n",
        "\\[",
        "\\]",
        "`",
        "é",
        "。",
        "e.g. ",
        "Let me check",
    ]
)


@given(st.lists(PIECES, max_size=25).map("".join), st.sampled_from(SPLITTERS))
def test_joined_steps_are_the_text(text, splitter):
    steps = segment(text, splitter)
    assert "".join(steps) == (text if text.strip() else "")
    assert all(step.strip() for step in steps)


@given(st.lists(PIECES, max_size=25).map("".join), st.sampled_from(SPLITTERS))
def test_the_first_complete_step_is_one_that_more_text_does_not_change(text, splitter):
    end = first_step(text, splitter)
    if end is not None:
        assert text[:end].strip()
        longer = first_step(f"{text}x", splitter)
        # Only white space behind the boundary could still have grown.
        assert longer is not None
        assert longer >= end or text[longer:end].strip() == ""


@pytest.mark.parametrize(
    ("text", "splitter", "steps"),
    [
        ("one\n\ntwo\n \nthree", "paragraph", ["one\n\n", "two\n \n", "three"]),
        ("\n\none\n\n\n\ntwo\n\n", "paragraph", ["\n\none\n\n\n\n", "two\n\n"]),
        ("no boundary at all", "paragraph", ["no boundary at all"]),
        ("   \n\n ", "paragraph", []),
        ("", "sentence", []),
        ("Take 3.5. It is e.g. small! Why?\nNext", "sentence", ["Take 3.5. ", "It is e.g. small! ", "Why?\n", "Next"]),
        ("1. First\n2. Second", "sentence", ["1. First\n", "2. Second"]),
        ("Thus:\nx = 1\nDone", "sentence", ["Thus:\nx = 1\n", "Done"]),
        ("所以是三。接着看。", "sentence", ["所以是三。", "接着看。"]),
        ("Über alles: é. Ça va. ", "sentence", ["Über alles: é. ", "Ça va. "]),
        ("We add. It is 4. Wait, is it? Yes. Alternatively count.", "marker",
         ["We add. It is 4. ", "Wait, is it? Yes. ", "Alternatively count."]),
        ("We add. But wait, no.", "marker", ["We add. ", "But wait, no."]),
        # formulas and code
        ("a\n\n$$x\n\ny$$\n\nb", "paragraph", ["a\n\n", "$$x\n\ny$$\n\n", "b"]),
        ("\\[ x.\n\ny \\] z", "paragraph", ["\\[ x.\n\ny \\] z"]),
        ("\\begin{align}a\n\nb\\end{align}\n\nc", "paragraph", ["\\begin{align}a\n\nb\\end{align}\n\n", "c"]),
        ("so\n\n```py\nx = 1\n\ny = 2\n```\n\nend", "paragraph", ["so\n\n", "```py\nx = 1\n\ny = 2\n```\n\n", "end"]),
        ("so\n\n  ```\na\n\nb", "paragraph", ["so\n\n  ", "```\na\n\nb"]),
        ("$a. b$ is. So", "sentence", ["$a. b$ is. ", "So"]),
        ("Use `a. b` now. Go", "sentence", ["Use `a. b` now. ", "Go"]),
        # a sum of money opens no formula, and a formula that is never closed is none
        ("It costs $5. And then $6. Fine.", "sentence", ["It costs $5. ", "And then $6. ", "Fine."]),
        ("an open \\[ x\n\nnext", "paragraph", ["an open \\[ x\n\n", "next"]),
        ("\\$5. Then $x. y$", "sentence", ["\\$5. ", "Then $x. y$"]),
    ],
)  # fmt: skip
def test_steps(text, splitter, steps):
    assert segment(text, splitter) == steps


@pytest.mark.parametrize(
    ("text", "splitter", "end"),
    [
        ("one\n\ntwo", "paragraph", 5),
        ("one\n", "paragraph", None),
        ("```\na\n\nb", "paragraph", None),
        ("```\na\n\n", "paragraph", None),
        ("\\[ a\n\n", "paragraph", None),
        ("$$ a\n\n", "paragraph", None),
        ("\n\n", "paragraph", None),
        ("So 3. ", "sentence", 6),
        ("So 3.", "sentence", None),
    ],
)
def test_first_step_of_a_text_that_is_being_written(text, splitter, end):
    assert first_step(text, splitter) == end


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ("Wait, that cannot be. Therefore 3.", StepKind.VERIFICATION),
        ("Therefore 3. Wait.", StepKind.PROGRESSIVE),
        ("ALTERNATIVELY, let me check", StepKind.MULTI_METHOD),
        ("Let’s try a different approach", StepKind.MULTI_METHOD),
        ("This is wrong: I misread", StepKind.CORRECTION),
        ("awaiting nothing, unfirstly", None),
        ("a) 3+4=7", None),
    ],
)
def test_kinds_by_marker(step, kind):
    assert marked_kind(step) is kind


def test_an_edited_thinking_ends_as_the_whole_one_did():
    assert ending_like("a\n\n", "a\n\nb\n") == "a\n"
    assert ending_like("a\n\n", "a\n\nb") == "a"
