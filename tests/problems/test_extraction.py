import time

import pytest

from satisfice.problems import extract_answer
from satisfice.problems.extraction import first_number, last_box


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"So \boxed{42}.", "42"),
        (r"\boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"\boxed{5} no, wait: \boxed{7}", "7"),
        (r"\fbox{8}", "8"),
        (r"\boxed {9}", "9"),
        (r"\boxed 5", "5"),
        (r"it is $\boxed 42$.", "42"),
        (r"\boxed 42.", "42"),
        (r"\boxed\frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a\\}", r"a\\"),
        ("\\boxed{1\n2}", "1\n2"),
        (r"\boxed{4 \text{ or } \boxed{6}}", "6"),
        (r"\boxed{}", None),
        (r"\boxed{  }", None),
        (r"\boxed{42", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed", None),
        (r"put it in \boxed.", None),
        (r"\boxed) and later {5}", None),
        (r"\boxedness{3}", None),
        ("42", None),
    ],
)
def test_last_box(text, content):
    assert last_box(text) == content


def test_a_box_that_is_not_closed_is_not_replaced_by_an_earlier_answer():
    text = r"First \boxed{5}. The answer is 6. Then again \boxed{7"
    assert [extract_answer(text, kind) for kind in ("math", "number", "choice", "text")] == [None] * 4


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The answer is 5 but \boxed{6} holds.", "6"),
        ("The answer is 3. No: the answer is 4.", "4"),
        ("The final answer is: $\\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        ("**Final Answer:** (3, 4)\n\nDone.", "(3, 4)"),
        ("Final answer\n\nAnswer:\n\\[ x^2 + 1 \\]\nas wanted", "x^2 + 1"),
        (r"the answer is \(2\pi\).", r"2\pi"),
        ("The answer to the question is x + 1.", "x + 1"),
        ("answer = 2x", "2x"),
        ("The answers are 3 and 5.", "3 and 5"),
        ("The answer is not 5.", None),
        ("There is an answer.", None),
        ("I computed 12.", None),
        ("", None),
    ],
)
def test_math_answers_come_from_a_box_or_a_phrase(text, answer):
    assert extract_answer(text, "math") == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 12 eggs and sells 9", "9"),
        ("That makes 1,234 in all.", "1,234"),
        ("It costs $18.50.", "18.50"),
        ("We get -7", "-7"),
        ("We get 10-7", "7"),
        ("half, or .5", ".5"),
        ("which is 3/4", "3/4"),
        (r"which is \frac{3}{4}", r"\frac{3}{4}"),
        (r"about 6.02 \times 10^{23}", r"6.02 \times 10^{23}"),
        ("about 1.5e-3 in x2", "1.5e-3"),
        ("The answer is 72 clips for 48 friends.", "72"),
        ("The answer is x = 3 + 4 = 7 apples. I used 2 steps.", "7"),
        (r"The answer is $\sqrt{16}$.", r"\sqrt{16}"),
        ("The answer is unknown.", "unknown"),
        ("none at all", None),
    ],
)
def test_numeric_answers_fall_back_to_the_last_number(text, number):
    assert extract_answer(text, "number") == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{(B)}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\textbf{(B)}\ 12}", "B"),
        (r"\boxed{B. 12}", "B"),
        (r"\boxed{12}", None),
        (r"\boxed{Bob}", None),
        ("A is wrong. answer: B", "B"),
        ("The answer is (b).", "B"),
        ("**Answer:** **C**", "C"),
        ("The answer is option D, as A fails", "D"),
        (r"The answer is $\text{D}$", "D"),
        ("The answer is a matter of taste. So (C)", "C"),
        ("(A) fails, so (B)", "B"),
        ("It must be B.", "B"),
        ("C) is it", "C"),
        ("B", "B"),
        ("A long story", None),
        ("I think U.S. law", None),
    ],
)
def test_choices(text, letter):
    assert extract_answer(text, "choice") == letter


def test_free_text_is_taken_whole_only_as_a_single_line():
    assert extract_answer(" Paris \n", "text") == "Paris"
    assert extract_answer("The answer is Paris.", "text") == "Paris"
    assert extract_answer("Well.\nParis", "text") is None
    assert extract_answer("Paris", "math") is None


def test_first_number_after_the_last_equals_sign():
    assert first_number("3 + 4 = 7 apples in 2 bags") == "7"
    assert first_number("7 =") == "7"
    assert first_number("none") is None


@pytest.mark.parametrize("kind", ["math", "number", "choice", "text"])
@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 20_000,
        "\\boxed{" + "{" * 100_000,
        "answer is" + " " * 100_000 + "not",
        ("answer to " + " " * 90) * 1_000,
        "1,111" * 20_000,
        "-" * 100_000,
        "$" * 100_000,
        "the answer is $" + "\\(" * 50_000,
        "\\text" + " " * 100_000,
        "\n" * 100_000,
        "(A" * 50_000,
        "\\boxed{" * 20_000 + "5" + "}" * 20_000,
        "\\boxed{5}," * 20_000,
        "\\boxed{}" * 20_000,
        "$ " * 50_000,
        "\\begin{align}" * 9_000,
        "<answer>" * 20_000 + "</answer>" * 5_000,
        "#### 5\n" * 20_000,
        "so " * 30_000,
        "the answer is " + "so " * 30_000,
        "$5$ and " * 20_000,
        "答案是" * 30_000,
        "1 000 " * 20_000,
        "option " * 15_000,
    ],
    ids=lambda text: text[:12].strip() or "white space",
)
def test_long_texts_take_linear_time(text, kind):
    # A pattern that backtracks over 100,000 characters takes minutes; the bound leaves room for a busy machine.
    start = time.process_time()
    extract_answer(text, kind)
    assert time.process_time() - start < 2
