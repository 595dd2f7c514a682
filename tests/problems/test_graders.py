import pytest

from satisfice.problems import GraderError, grade_answer
from satisfice.problems.graders import check_grader, plain_number, settle


def correct(answer, gold, grader="math"):
    return grade_answer(grader, answer, gold).correct


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{1000}", "1,000"),
        (r"\boxed{1{,}000}", "1000"),
        (r"\boxed{1,\!000}", "1000"),
        (r"\boxed{25}", "025"),
        (r"\boxed{025}", "25"),
        (r"\boxed{$25$}", "25"),
        (r"\boxed{27.0}", "27"),
        (r"\boxed{−3}", "-3"),
        (r"\boxed{+3}", "3"),
        (r"\boxed{.5}", "0.50"),
        (r"\boxed{42.}", "42"),
        ("I found it: 42", "42"),
        ("The answer is 42.", "42"),
        (r"\boxed{5} hm, \boxed{7}", "7"),
        (r"\boxed{12345678901234567890123}", "12345678901234567890123"),
    ],
)
def test_plain_numbers_are_settled_without_algebra(answer, gold):
    grade, settled = settle("math", answer, gold)
    assert settled
    assert grade.correct
    assert (grade.expected, grade.grader, grade.note) == (gold, "math", "")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{5} hm, \boxed{7}", "5"),
        (r"\boxed{20001}", "20000"),
        (r"\boxed{12345678901234567890124}", "12345678901234567890123"),
        (r"\boxed{-5}", "5"),
        (r"\boxed{100}", "1000"),
        (r"\boxed{1.0001}", "1"),
        ("42 eggs in 3 boxes", "42"),
    ],
)
def test_other_plain_numbers_are_wrong(answer, gold):
    grade, settled = settle("math", answer, gold)
    assert settled
    assert not grade.correct


@pytest.mark.parametrize("text", ["", "-", ".", "1,00", "1,0000", "1 000", "1e3", "1/2", "50%", "x", "1.2.3", "--1"])
def test_not_plain_numbers(text):
    assert plain_number(text) is None


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{\frac12}", "1/2"),
        (r"\boxed{0.5}", r"\frac{1}{2}"),
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"The answer is $\frac{1}{2}$.", r"\frac{1}{2}"),
        (r"\boxed{[0,1)}", "[0,1)"),
        (r"\boxed{(-\infty, 2]}", "x \\le 2"),
        (r"\boxed{36}", r"\$36"),
        (r"\boxed{\$36}", "36"),
        (r"\boxed{50\%}", "50"),
        (r"\boxed{3, 1, 2}", "1, 2, 3"),
        (r"\boxed{x = 3}", "3"),
        (r"\boxed{42\text{ cm}}", "42"),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}"),
        (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}"),
        (r"The answer is $\sqrt{16}$.", "4"),
        (r"\boxed{\(\frac{3}{4}\)}", "$\\frac{3}{4}$"),
    ],
)
def test_equal_by_algebra(answer, gold):
    assert correct(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{(0,1)}", "[0,1)"),
        (r"\boxed{(0,1]}", "[0,1)"),
        (r"\boxed{3}", "1, 2, 3"),
        (r"\boxed{0.333}", r"\frac{1}{3}"),
        (r"\boxed{x+1}", "x+2"),
        (r"\boxed{\frac{1}{2}} or rather \boxed{\frac{1}{3}}", r"\frac{1}{2}"),
        (r"The answer is $\sqrt{16}$.", "16"),
    ],
)
def test_not_equal_by_algebra(answer, gold):
    assert not correct(answer, gold)


@pytest.mark.parametrize("answer", ["", "I do not know", r"\boxed{}", r"\boxed{5} or \boxed{7", "x marks it"])
def test_no_answer_is_wrong_and_says_so(answer):
    grade = grade_answer("math", answer, "x + 1")
    assert (grade.correct, grade.extracted, grade.note) == (False, None, "no answer found")


def test_numeric_has_a_relative_tolerance():
    assert correct(r"\boxed{20001}", "20000", "numeric")
    assert not correct(r"\boxed{20003}", "20000", "numeric")
    assert correct(r"\boxed{20003}", "20000", "numeric:0.001")
    assert not correct(r"\boxed{20001}", "20000", "numeric:0")
    assert correct(r"\boxed{0.0}", "0", "numeric")
    assert not correct(r"\boxed{0.0000001}", "0", "numeric")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{6.02 \times 10^{23}}", "6.02e23"),
        (r"\boxed{x = 3.0 \text{ m/s}}", "3"),
        (r"\boxed{-3/4}", "-0.75"),
        (r"\boxed{-\frac{3}{4}}", "-0.75"),
        (r"\boxed{1{,}500}", "1500"),
        ("so 1,500 dollars", r"\$1500"),
    ],
)
def test_numeric_reads_numbers(answer, gold):
    assert correct(answer, gold, "numeric")


@pytest.mark.parametrize("answer", [r"\boxed{1/0}", r"\boxed{x}", "none", r"\boxed{" + "9" * 5000 + "/3}"])
def test_numeric_survives_what_is_no_number(answer):
    assert not correct(answer, "3", "numeric")


def test_exact_ignores_case_space_quotes_and_a_full_stop():
    for answer in ("paris", r"\boxed{\text{Paris}}", "The answer is 'Paris'.", " PARIS. "):
        assert correct(answer, "Paris", "exact"), answer
    assert correct(r"\boxed{New   York}", "new york", "exact")
    assert not correct(r"\boxed{Pari s}", "Paris", "exact")
    assert not correct("", "Paris", "exact")


def test_choice_compares_letters():
    assert correct(r"\boxed{\text{B}}", "B", "choice")
    assert correct("so (B)", "(b)", "choice")
    assert not correct("so (A)", "B", "choice")
    grade = grade_answer("choice", "no letter", "B")
    assert (grade.correct, grade.note) == (False, "no answer found")


@pytest.mark.parametrize("grader", ["math", "exact", "choice", "numeric", "numeric:1e-3", "reasoning-gym:chain_sum"])
def test_graders_that_exist(grader):
    check_grader(grader)


@pytest.mark.parametrize("grader", ["maths", "", "reasoning-gym:", "reasoning-gym", "math:1"])
def test_unknown_graders_are_refused_with_the_known_ones(grader):
    with pytest.raises(ValueError, match=r"no grader.*math, numeric, exact, choice, reasoning-gym:NAME"):
        grade_answer(grader, "1", "1")


@pytest.mark.parametrize("grader", ["numeric:x", "numeric:-1", "numeric:1", "numeric:nan"])
def test_impossible_tolerances_are_refused(grader):
    with pytest.raises(GraderError, match=r"the tolerance of grader .* it must be .*at least 0 and below 1"):
        check_grader(grader)


@pytest.mark.parametrize("grader", ["choice:1", "choice:27", "choice:2.5", "choice:x", "choice:-3"])
def test_impossible_numbers_of_options_are_refused(grader):
    with pytest.raises(GraderError, match=r"the number of options of grader .* it must be .*within 2\.\.26"):
        check_grader(grader)


@pytest.mark.parametrize(("grader", "answer", "gold"), [("choice:4.0", "(B)", "B"), ("numeric:1e-2", "100.5", "100")])
def test_what_is_taken_as_a_parameter_is_graded_with(grader, answer, gold):
    check_grader(grader)
    assert grade_answer(grader, answer, gold).correct
