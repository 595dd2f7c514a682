"""A problem source: chains of additions in the lab's own words, as many steps as asked for: `sums:3`."""

import random
from collections.abc import Iterator
from typing import ClassVar

from satisfice.problems import Problem, ProblemsError, ProblemSource


class Sums(ProblemSource):
    """Start with a number and add to it."""

    name: ClassVar[str] = "sums"
    summary: ClassVar[str] = "chains of additions"

    def load(self, what: str, limit: int | None, seed: int) -> Iterator[Problem]:
        if not what.isdecimal() or not 1 <= int(what) <= 9:
            raise ProblemsError(f"sums:{what} must name how many steps, from 1 to 9, as in sums:3")
        for number in range(limit or 100):
            chance = random.Random(f"{seed}/{number}")  # the same problem whatever the limit is
            start, steps = chance.randint(1, 9), [chance.randint(1, 9) for _ in range(int(what))]
            told = ", ".join(f"{letter}) +{step}" for letter, step in zip("abcdefghi", steps, strict=False))
            question = f"Start with {start}. Steps in the order of their letters: {told}. What is the result?"
            yield Problem(f"sums/{what}/{number}", question, str(start + sum(steps)), f"sums:{what}")
