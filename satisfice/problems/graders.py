"""What each grader accepts as equal to the gold answer.

    math                  the same value: plain numbers exactly, everything else by math-verify
    numeric[:TOLERANCE]   the same number up to a relative tolerance, 1e-4 unless given
    exact                 the same text, apart from case, runs of white space, quotation marks and a final full stop
    choice                the same option letter
    reasoning-gym:NAME    the full score of that generator's own scorer

A grade is made in two steps, because some answers cannot be compared safely. `settle` finds the answer and settles
what plain comparison can settle; it is quick on any input. `judge` does the rest with computer algebra, which a
hostile answer can keep busy for ever or make eat all memory: it belongs in a process that may be killed
(`satisfice.problems.grading`).
"""

import importlib
import math
import re
from decimal import Decimal
from fractions import Fraction

from satisfice.problems import gym
from satisfice.problems.extraction import THOUSANDS, extract_answer, first_number, unstyled
from satisfice.trace import Grade

GRADERS = ("math", "numeric", "exact", "choice", "reasoning-gym:NAME")

NUMERIC_TOLERANCE = 1e-4
"""Relative tolerance of "numeric": that of the Qwen2.5-Math grader. It takes 20001 for 20000."""

_PLAIN_NUMBER = re.compile(rf"[-+−]?(?:(?:{THOUSANDS}|\d+)(?:\.\d*)?|\.\d+)")
_SCIENTIFIC = re.compile(r"(?P<factor>.+?)\s?(?:\\times|\\cdot|×)\s?10\s?\^\s?\{?\s?(?P<power>[-+]?\d+)\s?\}?")
_FRACTION = re.compile(r"(?P<sign>[-+]?)(?:\\[dt]?frac\{(-?\d+)\}\{(\d+)\}|(\d+)\s?/\s?(\d+))")


class GraderError(ValueError):
    """There is no such grader, or it cannot grade this problem."""


def check_grader(grader: str) -> None:
    """Refuse a grader that does not exist.

    Raises:
        GraderError: with the names of those that do.
    """
    name, _, parameter = grader.partition(":")
    if name == "numeric" and parameter:
        try:
            tolerance = float(parameter)
        except ValueError:
            tolerance = math.nan
        if not 0 <= tolerance < 1:
            raise GraderError(f"the tolerance of grader {grader!r} is no number from 0 to below 1")
    elif not (grader in GRADERS[:4] or (name == "reasoning-gym" and parameter)):
        raise GraderError(f"there is no grader {grader!r}; use one of {', '.join(GRADERS)}")


def grade_answer(grader: str, answer: str, gold: str, problem_id: str = "") -> Grade:
    """The grade of a finished answer, computed in this process.

    For a text that this program did not choose use `GraderPool`: here a hostile one may never come back.

    Args:
        grader: one of `GRADERS`.
        answer: what was written after thinking.
        gold: the gold answer as the problem gives it.
        problem_id: needed by reasoning-gym graders only, which make the problem again from it.

    Raises:
        GraderError: there is no such grader, or it does not fit the problem.
    """
    grade, settled = settle(grader, answer, gold)
    if not settled:
        prepare(grader)
        grade.correct, grade.note = judge(grader, grade.extracted or "", gold, problem_id)
    return grade


def settle(grader: str, answer: str, gold: str) -> tuple[Grade, bool]:
    """The grade as far as plain comparison goes, and whether that settles it; if not, `judge` has the verdict.

    Raises:
        GraderError: there is no such grader.
    """
    check_grader(grader)
    name = grader.partition(":")[0]
    grade = Grade(correct=False, expected=gold, grader=grader)
    gold_number = plain_number(gold)

    if name == "choice":
        grade.extracted = extract_answer(answer, "choice")
        grade.expected = extract_answer(gold.upper(), "choice") or gold
        grade.correct = grade.extracted == grade.expected
    elif name == "exact":
        grade.extracted = extract_answer(answer, "text")
        grade.correct = grade.extracted is not None and _same_text(grade.extracted, gold)
    elif name == "numeric":
        grade.extracted = extract_answer(answer, "number")
        tolerance = float(grader.partition(":")[2] or NUMERIC_TOLERANCE)
        grade.correct = grade.extracted is not None and _close(grade.extracted, gold, tolerance)
    elif name == "math":
        grade.extracted = extract_answer(answer, "math" if gold_number is None else "number")
        number = None if grade.extracted is None else plain_number(grade.extracted)
        if number is not None and gold_number is not None:
            grade.correct = number == gold_number
        elif grade.extracted is not None:
            grade.correct = _tidy(grade.extracted) == _tidy(gold)
            return grade, grade.correct
    else:
        grade.extracted = extract_answer(answer, "text" if gold_number is None else "number")
        if grade.extracted is not None:
            return grade, False

    if grade.extracted is None:
        grade.note = "no answer found"
    return grade, True


def prepare(grader: str) -> None:
    """Import what `judge` needs, so that the time for one answer is not spent on imports."""
    importlib.import_module("math_verify" if grader == "math" else "reasoning_gym")


def judge(grader: str, extracted: str, gold: str, problem_id: str) -> tuple[bool, str]:
    """Whether an extracted answer is right where that takes algebra or a scorer, and a note where one is needed.

    Raises:
        GraderError: a reasoning-gym problem cannot be made again, or is another one than was answered.
    """
    try:
        return math_equal(extracted, gold) if grader == "math" else (gym.full_score(extracted, gold, problem_id), "")
    except gym.GymError as error:
        raise GraderError(str(error)) from error
    except Exception as error:
        # Several scorers of reasoning-gym raise on text that they cannot read; such an answer is a wrong one.
        return False, f"grader raised {type(error).__name__}"


def math_equal(extracted: str, gold: str) -> tuple[bool, str]:
    """math-verify's verdict on two expressions, without a time limit of its own, and a note where one is needed."""
    from math_verify import parse, verify

    # In a box a whole answer is read as LaTeX; bare fractions and intervals would be read in part or not at all.
    wanted = parse(f"\\boxed{{{_tidy(gold)}}}", parsing_timeout=None)
    given = parse(f"\\boxed{{{_tidy(extracted)}}}", parsing_timeout=None)
    if not wanted:
        return False, "math-verify cannot read the gold answer: only the same text would be right"
    return bool(verify(wanted, given, timeout_seconds=None)), ""


def plain_number(text: str) -> Decimal | None:
    """The exact value of a whole or decimal number such as 025, -3.50, 1,000 or $1{,}000$, None for all else."""
    text = _tidy(text)
    if not _PLAIN_NUMBER.fullmatch(text):
        return None
    return Decimal(re.sub(r"[,{}\\!]", "", text).replace("−", "-"))


def _close(extracted: str, gold: str, tolerance: float) -> bool:
    given, wanted = _value(extracted), _value(gold)
    return given is not None and wanted is not None and math.isclose(given, wanted, rel_tol=tolerance)


def _value(text: str) -> float | None:
    """The number that `text` states, its unit ignored: decimal, scientific or a fraction of whole numbers."""
    number = first_number(text)
    if number is None:
        return None
    number = re.sub(r",\\!|\{,\}|\\,|,", "", number).replace("−", "-")
    try:
        if scientific := _SCIENTIFIC.fullmatch(number):
            return float(f"{scientific['factor']}e{scientific['power']}")
        if fraction := _FRACTION.fullmatch(number):
            above, below = (int(part) for part in fraction.groups()[1:] if part is not None)
            return float(Fraction(above, below)) * (-1 if fraction["sign"] == "-" else 1)
        return float(number)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _tidy(text: str) -> str:
    """`text` without what surrounds a formula: dollar signs, LaTeX's math brackets, spaces."""
    text = re.sub(r"(?<!\\)\$", "", text).strip()
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(opening) and text.endswith(closing):
            text = text[2:-2].strip()
    return text


def _same_text(left: str, right: str) -> bool:
    def normalised(text: str) -> str:
        return " ".join(unstyled(_tidy(text)).split()).removesuffix(".").strip("\"'“”‘’` ").casefold()

    return normalised(left) == normalised(right)
