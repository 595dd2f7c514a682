"""A grader: the same remainder. `remainder:10` takes 13 for 3."""

import re
from typing import ClassVar

from satisfice.problems import Grader, GraderError


class Remainder(Grader):
    """The same whole number, up to multiples of its parameter."""

    name: ClassVar[str] = "remainder"
    summary: ClassVar[str] = "the same remainder"
    takes: ClassVar[str] = "MODULUS"
    needs_parameter: ClassVar[bool] = True

    def __init__(self, parameter: str = "") -> None:
        super().__init__(parameter)
        if not parameter.isdecimal() or int(parameter) < 2:
            raise GraderError(f"grader {self.spelled!r} must name a modulus of 2 or more, as in remainder:10")
        self.modulus = int(parameter)

    def find(self, answer: str) -> str | None:
        numbers = re.findall(r"-?\d+", answer)
        return numbers[-1] if numbers else None

    def equal(self, found: str, gold: str) -> bool:
        return (int(found) - int(gold)) % self.modulus == 0
