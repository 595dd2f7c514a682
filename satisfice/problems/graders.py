"""What each grader accepts as equal to the gold answer.

    math                  the same value: numbers, text, times, congruences by comparisons of their own, formulas by
                          math-verify
    numeric[:TOLERANCE]   the same number up to a relative tolerance, 1e-4 unless given
    exact                 the same text, apart from case, runs of white space, quotation marks and a final full stop
    choice[:OPTIONS]      the same option letter, of the first OPTIONS of the alphabet
    reasoning-gym:NAME    the full score of that generator's own scorer

More of them come from other packages and from plugin files: see `Grader`.

A grade is made in two steps, because some answers cannot be compared safely. `settle` finds the answer and settles
what plain comparison can settle; it is quick on any input. `judge` does the rest with computer algebra, which a
hostile answer can keep busy forever or make eat all memory: it belongs in a process that may be killed
(`satisfice.problems.grading`).
"""

import importlib
import math
import re
from abc import ABC, abstractmethod
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import Field

from satisfice.parameters import BelowOne, convert
from satisfice.problems import gym
from satisfice.problems.choices import MOST_OPTIONS
from satisfice.problems.comparison import read, same_answer
from satisfice.problems.extraction import THOUSANDS, extract_answer, first_number, unstyled
from satisfice.problems.notation import for_algebra
from satisfice.problems.quantities import mixed_as_fractions
from satisfice.problems.spelling import respell
from satisfice.registry import Registry
from satisfice.trace import Grade

GRADING_VERSION = 3
"""Counts up whenever an answer may be graded otherwise than before, so that a run is not graded half by each."""

NUMERIC_TOLERANCE = 1e-4
"""Relative tolerance of "numeric": that of the Qwen2.5-Math grader. It takes 20001 for 20000."""

_PLAIN_NUMBER = re.compile(rf"[-+−]?(?:(?:{THOUSANDS}|\d+)(?:\.\d*)?|\.\d+)")
_SCIENTIFIC = re.compile(r"(?P<factor>.+?)\s?(?:\\times|\\cdot|×)\s?10\s?\^\s?\{?\s?(?P<power>[-+]?\d+)\s?\}?")
_POWER = re.compile(r"(-?\d{1,9}(?:\.\d{1,9})?)\s*\^\s*(?:\{\s*(-?\d{1,3})\s*\}|(\d{1,3}))")
_NO_NUMBER = re.compile(
    r"\\(?:pm|mp|sqrt|pi|binom|leq|geq|neq|ldots)(?![A-Za-z])|[!<>^]|\d\s*[A-Za-z](?![A-Za-z])|\d\s+(?:of|or|and|to|out)\b"
)
_CONSTANT_COMMAND = re.compile(r"\\(?:frac|sqrt|pi|cdot|times|left|right|binom)(?![A-Za-z])")
_FRACTION = re.compile(r"(?P<sign>[-+]?)(?:\\[dt]?frac\{(-?\d+)\}\{(\d+)\}|(\d+)\s?/\s?(\d+))")


class GraderError(ValueError):
    """There is no such grader, or it cannot grade this problem."""


class Grader(ABC):
    """Says whether an answer is right. Whoever writes one gives it a name, `find` and `equal`.

    A grader is spelled `name` or `name:parameter`. `find` runs where strategies vote, so it must be quick; `equal`
    runs in a process of its own, which is killed when it is busy with one answer for too long.

    Class attributes:
        name: as spelled.
        summary: what it does, in one line.
        takes: what its parameter is, as "TOLERANCE"; "" where it takes none.
        needs_parameter: whether it means nothing without one.

    Attributes:
        parameter: what stands after the colon.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    takes: ClassVar[str] = ""
    needs_parameter: ClassVar[bool] = False

    def __init__(self, parameter: str = "") -> None:
        self.parameter = parameter
        if (parameter and not self.takes) or (self.needs_parameter and not parameter):
            raise GraderError(f"there is no grader {self.spelled!r}; use one of {known_graders()}")

    def _read(self, what: str, hint: Any, default: Any) -> Any:
        """The parameter as its annotation says, or the default where there is none."""
        try:
            return convert(self.parameter, hint) if self.parameter else default
        except ValueError as error:
            raise GraderError(f"{what} of grader {self.spelled!r} is wrong: {error}") from None

    @property
    def spelled(self) -> str:
        """The grader as problems name it."""
        return f"{self.name}:{self.parameter}" if self.parameter else self.name

    @abstractmethod
    def find(self, answer: str) -> str | None:
        """The answer within what was written after thinking, None where there is none; without the gold answer."""

    @abstractmethod
    def equal(self, found: str, gold: str) -> bool:
        """Whether the answer that was found is right."""

    def settle(self, answer: str, gold: str) -> tuple[Grade, bool]:
        """The grade as far as it can be had at once, and whether that settles it; if not, `judge` has the verdict."""
        grade = Grade(correct=False, expected=gold, grader=self.spelled, extracted=self.find(answer))
        return grade, grade.extracted is None

    def judge(self, found: str, gold: str, problem_id: str) -> tuple[bool, str]:
        """The verdict on an answer that `settle` has not settled, and a note where one is needed."""
        return bool(self.equal(found, gold)), ""

    def prepare(self) -> None:  # noqa: B027 - most need nothing
        """Import what `judge` needs."""


GRADERS: Registry[Grader] = Registry(
    Grader, "grader", "satisfice.graders", "satisfice.problems.graders",
    first=("math", "numeric", "exact", "choice", "reasoning-gym"), parameters=False,
)  # fmt: skip
"""Every grader by name."""


def known_graders() -> str:
    """All graders as they are spelled, for a message."""
    return ", ".join(f"{name}:{kind.takes}" if kind.needs_parameter else name for name, kind in GRADERS.items())


def grader_named(grader: str) -> Grader:
    """The grader that is spelled so.

    Raises:
        GraderError: there is none, with the names of those that exist, or its parameter does not fit.
    """
    name, _, parameter = grader.partition(":")
    if name not in GRADERS:
        raise GraderError(f"there is no grader {grader!r}; use one of {known_graders()}")
    return GRADERS[name](parameter)


def check_grader(grader: str) -> None:
    """Refuse a grader that does not exist.

    Raises:
        GraderError: with the names of those that do.
    """
    grader_named(grader)


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
    grade, settled = grader_named(grader).settle(answer, gold)
    if grade.extracted is None:
        grade.note = "no answer found"
        settled = True
    return grade, settled


def prepare(grader: str) -> None:
    """Import what `judge` needs, so that the time for one answer is not spent on imports."""
    grader_named(grader).prepare()


def judge(grader: str, extracted: str, gold: str, problem_id: str) -> tuple[bool, str]:
    """Whether an extracted answer is right where that takes algebra or a scorer, and a note where one is needed.

    Raises:
        GraderError: a reasoning-gym problem cannot be made again, or is another one than was answered.
    """
    try:
        return grader_named(grader).judge(extracted, gold, problem_id)
    except (GraderError, gym.GymError) as error:
        raise GraderError(str(error)) from error
    except Exception as error:
        # Several scorers of reasoning-gym raise on text that they cannot read; such an answer is a wrong one.
        return False, f"grader raised {type(error).__name__}"


class Math(Grader):
    """The same value: numbers, text, times, congruences by comparisons of their own, formulas by math-verify."""

    name: ClassVar[str] = "math"
    summary: ClassVar[str] = "the same value, by comparisons of our own and by math-verify"

    def find(self, answer: str) -> str | None:
        """A box or a phrase goes before the last number."""
        found = extract_answer(answer, "math")
        return extract_answer(answer, "number") if found is None else found

    def equal(self, found: str, gold: str) -> bool:
        return self.judge(found, gold, "")[0]

    def settle(self, answer: str, gold: str) -> tuple[Grade, bool]:
        grade = Grade(correct=False, expected=gold, grader=self.spelled)
        wanted, gold_number = _marked(gold), plain_number(gold)
        is_number = gold_number is not None or read(wanted).number is not None
        grade.extracted = extract_answer(answer, "number" if is_number else "math")
        if read(wanted).words is not None:
            grade.extracted = _words_said(grade.extracted, answer)
        number = None if grade.extracted is None else plain_number(grade.extracted)
        if number is not None and gold_number is not None:
            grade.correct = number == gold_number
        elif grade.extracted is not None:
            same = _tidy(grade.extracted) == _tidy(wanted) or same_answer(grade.extracted, wanted)
            grade.correct = bool(same)
            return grade, same is not None
        return grade, True

    def judge(self, found: str, gold: str, problem_id: str) -> tuple[bool, str]:
        return math_equal(found, gold)

    def prepare(self) -> None:
        importlib.import_module("math_verify")


class Numeric(Grader):
    """The same number up to a relative tolerance."""

    name: ClassVar[str] = "numeric"
    summary: ClassVar[str] = "the same number up to a relative tolerance"
    takes: ClassVar[str] = "TOLERANCE"

    def __init__(self, parameter: str = "") -> None:
        super().__init__(parameter)
        self.tolerance: float = self._read("the tolerance", BelowOne, NUMERIC_TOLERANCE)

    def find(self, answer: str) -> str | None:
        return extract_answer(answer, "number")

    def equal(self, found: str, gold: str) -> bool:
        return _close(found, gold, self.tolerance)

    def settle(self, answer: str, gold: str) -> tuple[Grade, bool]:
        return _at_once(self, answer, gold)


class Exact(Grader):
    """The same text, apart from case, runs of white space, quotation marks and a final full stop."""

    name: ClassVar[str] = "exact"
    summary: ClassVar[str] = "the same text, apart from case, white space, quotation marks and a final full stop"

    def find(self, answer: str) -> str | None:
        return extract_answer(answer, "text")

    def equal(self, found: str, gold: str) -> bool:
        return _same_text(found, gold)

    def settle(self, answer: str, gold: str) -> tuple[Grade, bool]:
        return _at_once(self, answer, gold)


class Choice(Grader):
    """The same option letter, of the first so many of the alphabet."""

    name: ClassVar[str] = "choice"
    summary: ClassVar[str] = "the same option letter"
    takes: ClassVar[str] = "OPTIONS"

    def __init__(self, parameter: str = "") -> None:
        super().__init__(parameter)
        self.options: int = self._read(
            "the number of options", Annotated[int, Field(ge=2, le=MOST_OPTIONS)], MOST_OPTIONS
        )

    def find(self, answer: str) -> str | None:
        return extract_answer(answer, "choice", self.options)

    def equal(self, found: str, gold: str) -> bool:
        return found == (extract_answer(gold.upper(), "choice") or gold)

    def settle(self, answer: str, gold: str) -> tuple[Grade, bool]:
        grade, settled = _at_once(self, answer, gold)
        grade.expected = extract_answer(gold.upper(), "choice") or gold
        return grade, settled


class ReasoningGym(Grader):
    """The full score of the scorer of one of reasoning-gym's generators."""

    name: ClassVar[str] = "reasoning-gym"
    summary: ClassVar[str] = "the full score of that generator's own scorer"
    takes: ClassVar[str] = "NAME"
    needs_parameter: ClassVar[bool] = True

    def find(self, answer: str) -> str | None:
        """A single line goes before the last number."""
        found = extract_answer(answer, "text")
        return extract_answer(answer, "number") if found is None else found

    def equal(self, found: str, gold: str) -> bool:
        return found == gold

    def settle(self, answer: str, gold: str) -> tuple[Grade, bool]:
        extracted = extract_answer(answer, "text" if plain_number(gold) is None else "number")
        return Grade(correct=False, expected=gold, grader=self.spelled, extracted=extracted), extracted is None

    def judge(self, found: str, gold: str, problem_id: str) -> tuple[bool, str]:
        return gym.full_score(found, gold, problem_id), ""

    def prepare(self) -> None:
        importlib.import_module("reasoning_gym")


def _at_once(grader: Grader, answer: str, gold: str) -> tuple[Grade, bool]:
    """The grade of a grader whose comparison is quick on any input."""
    grade, _ = Grader.settle(grader, answer, gold)
    grade.correct = grade.extracted is not None and grader.equal(grade.extracted, gold)
    return grade, True


def math_equal(extracted: str, gold: str) -> tuple[bool, str]:
    """math-verify's verdict on two expressions, without a time limit of its own, and a note where one is needed."""
    from math_verify import parse, verify

    def parsed(text: str) -> list[Any]:
        # In a box a whole answer is read as LaTeX; bare fractions and intervals would be read in part or not at all.
        return list(parse(f"\\boxed{{{text}}}", parsing_timeout=None))

    answer, needed = for_algebra(
        mixed_as_fractions(_exact_part(respell(extracted))), mixed_as_fractions(respell(_marked(gold)))
    )
    wanted = parsed(needed)
    if not wanted:
        return False, "math-verify cannot read the gold answer: only the same text would be right"
    found = parsed(answer)
    if not (verify(wanted, found, timeout_seconds=None) or _same_complex(wanted, found)):
        return False, ""
    if _differ(wanted, found):
        return False, "values below the precision of math-verify"
    # Of an equation the algebra takes the last side; that is worth nothing if the sides before it are other numbers.
    sides = answer.split("=")
    for before, after in pairwise(sides):
        constants = [side for side in (before, after) if _is_constant(side)]
        if len(constants) == 2 and not verify(parsed(before), parsed(after), timeout_seconds=None):
            return False, "the answer is a false equation"
    return True, ""


def _same_complex(left: list[Any], right: list[Any]) -> bool:
    """Whether two numbers with an imaginary unit, which math-verify reads as a variable, are the same."""
    import sympy

    values = []
    for side in (left, right):
        if not side or not isinstance(side[0], sympy.Expr) or {str(one) for one in side[0].free_symbols} - {"i"}:
            return False
        values.append(side[0].subs(dict.fromkeys(side[0].free_symbols, sympy.I)))
    if not any(side[0].free_symbols for side in (left, right)):
        return False
    return bool(abs(sympy.N(values[0] - values[1], 30)) < 1e-12)


def _differ(left: list[Any], right: list[Any]) -> bool:
    """Whether both are exact rational numbers, and different ones: math-verify compares what is left after rounding."""
    import sympy

    def exact(side: list[Any]) -> Any:
        if side and isinstance(side[0], sympy.Expr) and all(atom.is_Rational for atom in side[0].atoms()):
            return side[0].doit()
        return None

    values = (exact(left), exact(right))
    return all(value is not None and value.is_Rational for value in values) and values[0] != values[1]


def plain_number(text: str) -> Decimal | None:
    """The exact value of a whole or decimal number such as 025, -3.50, 1,000 or $1{,}000$, None for all else."""
    text = _tidy(text)
    if not _PLAIN_NUMBER.fullmatch(text):
        return None
    return Decimal(re.sub(r"[,{}\\!]", "", text).replace("−", "-"))


def _words_said(extracted: str | None, answer: str) -> str | None:
    """The words that answer where words are expected: a text of one short line, or what stands before a reason."""
    if extracted is None and len(answer) <= 60:
        extracted = extract_answer(answer, "text")
    return extracted and (re.split(r"[,;]?\s+(?:because|since|as)\s", extracted)[0] or extracted)


def _close(extracted: str, gold: str, tolerance: float) -> bool:
    given, wanted = _value(extracted), _value(_marked(gold))
    return given is not None and wanted is not None and math.isclose(given, wanted, rel_tol=tolerance)


def _value(text: str) -> float | None:
    """The number that `text` states, its unit ignored: decimal, scientific or a fraction of whole numbers."""
    reading = read(text)
    if reading.contradicts:
        return None
    if reading.number is not None:
        return float(reading.number.value)
    if power := _POWER.fullmatch(respell(text)):
        return float(power[1]) ** int(power[2] or power[3]) if abs(int(power[2] or power[3])) <= 300 else None
    if reading.items or _NO_NUMBER.search(respell(text)):
        return None
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


def _marked(gold: str) -> str:
    """The answer that a gold answer marks with boxes; the whole of it where there is none."""
    return (extract_answer(gold, "math") or gold) if "\\boxed" in gold or "\\fbox" in gold else gold


def _exact_part(text: str) -> str:
    """`text` without what stands after an "approximately equal": "x = 1/3 \\approx 0.33" gives 1/3."""
    before, sign, after = text.partition("\\approx")
    if not sign:
        return text
    return before.strip() if "=" in before or _is_constant(before) else after.strip()


def _is_constant(side: str) -> bool:
    """Whether one side of an equation is a number, written with digits and without variables."""
    return any(map(str.isdigit, side)) and re.search(r"[A-Za-z]", _CONSTANT_COMMAND.sub("", side)) is None


def _same_text(left: str, right: str) -> bool:
    def normalised(text: str) -> str:
        return " ".join(unstyled(_tidy(text)).split()).removesuffix(".").strip("\"'“”‘’` ").casefold()

    return normalised(left) == normalised(right)
