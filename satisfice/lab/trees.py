"""Sums of digits modulo 10, solved in steps of a chosen size: the synthetic task of arXiv 2502.07266.

A problem is a binary tree of T additions in prefix notation. Every inner node has a digit as a child, so the tree is as
deep as it has operators, and which child the digit is varies. It is solved from the deepest addition up, t of them a
step; a token that names t stands between question and solution. So the number of steps, ceil(T / t), is chosen from
outside, and nothing else changes with it:

    + 3 + + 2 5 7 <begin> <2>  ++257=4 newline +34=7 <end>

Ours: a question stands at the end of a field as wide as the longest one, so that small models need not find where it
ends.
"""

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

DIGITS = "0123456789"
PAD, PLUS, EQUALS, NEWLINE, BEGIN, END = range(10, 16)
SIGNS = {PAD: ".", PLUS: "+", EQUALS: "=", NEWLINE: "\n", BEGIN: "<begin>", END: "<end>"}
SIZES_FROM = 16
"""The token of a step size t is `SIZES_FROM` + t."""


@dataclass(frozen=True)
class Tree:
    """One problem.

    Attributes:
        innermost: the digits of the deepest addition.
        others: for every addition above it, from the deepest up: its digit, and whether that is its left child.
    """

    innermost: tuple[int, int]
    others: tuple[tuple[int, bool], ...]

    @property
    def operators(self) -> int:
        """T, the number of additions."""
        return 1 + len(self.others)

    @property
    def answer(self) -> int:
        """The sum modulo 10."""
        return (sum(self.innermost) + sum(digit for digit, _ in self.others)) % 10

    @property
    def question(self) -> list[int]:
        """The tokens of the whole expression, 2 T + 1."""
        return _around([PLUS, *self.innermost], self.others)

    @property
    def held_out(self) -> bool:
        """Whether it is one of the tenth of all problems that is for tests alone, by a hash of the question."""
        return zlib.crc32(bytes(self.question)) % 10 == 0

    def solution(self, size: int) -> list[int]:
        """The tokens of the solution in steps of `size` additions; the last step may be smaller."""
        tokens: list[int] = []
        inner, value, done = [PLUS, *self.innermost], sum(self.innermost) % 10, 1
        until = min(size, self.operators)
        while True:
            part = self.others[done - 1 : until - 1]
            value = (value + sum(digit for digit, _ in part)) % 10
            tokens += [*_around(inner, part), EQUALS, value]
            if until == self.operators:
                return [*tokens, END]
            tokens.append(NEWLINE)
            inner, done, until = [value], until, min(until + size, self.operators)


def draw(rng: random.Random, operators: int, swapped: float) -> Tree:
    """A problem of T additions.

    Args:
        rng: where it comes from.
        operators: T, at least 1.
        swapped: share of additions whose digit is the right child.
    """
    innermost = (rng.randrange(10), rng.randrange(10))
    return Tree(innermost, tuple((rng.randrange(10), rng.random() >= swapped) for _ in range(operators - 1)))


def steps(operators: int, size: int) -> int:
    """N, the number of steps."""
    return math.ceil(operators / size)


def prompt(tree: Tree, size: int, width: int) -> list[int]:
    """Tokens of the question at the end of a field of `width` tokens, the start sign and the step size."""
    question = tree.question
    return [PAD] * (width - len(question)) + question + [BEGIN, SIZES_FROM + size]


def text(tokens: Sequence[int]) -> str:
    """Tokens as people read them."""
    return "".join(
        DIGITS[token] if token < 10 else SIGNS[token] if token in SIGNS else f"<{token - SIZES_FROM}>"
        for token in tokens
    )


def final_answer(tokens: Sequence[int]) -> int | None:
    """The value that a finished solution ends with, None where it is cut off or ends otherwise."""
    if END not in tokens:
        return None
    written = list(tokens[: tokens.index(END)])
    return written[-1] if len(written) > 1 and written[-2] == EQUALS and written[-1] < 10 else None


def _around(inner: list[int], others: Sequence[tuple[int, bool]]) -> list[int]:
    """An expression with more additions around it, from the deepest up."""
    left: list[int] = []
    right: list[int] = []
    for digit, first in others:
        left = [PLUS, digit, *left] if first else [PLUS, *left]
        right += [] if first else [digit]
    return [*left, *inner, *right]
