"""The lab's problems: chains of arithmetic with one verifiable answer.

A chain starts with a number and applies lettered operations from left to right; every intermediate result stays
within 0..99 and every operand within 2..9, so that a tiny model can learn all facts and a person can check them.
The letters run on from a random first one.

Splits are held out by construction: a chain belongs to exactly one of them by a hash of its arithmetic, so no
generator, seed or size can leak a reported problem into training. Chains of six to eight steps are in `longer`, or in
`rare`, of which the lab's reasoner sees a few; `train` has none, so whatever is trained on it finds `longer` longer
than anything it has seen. `certify` is for certificates, of which thousands of problems are asked: the same tenth of
all chains as `calibration`, without those that parameters were chosen on.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

OPERATIONS = ("+", "-", "*")
OPERANDS = range(2, 10)
LARGEST = 99
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPLITS = ("train", "calibration", "certify", "test", "longer", "rare")
LENGTHS = range(2, 6)
"""Numbers of operations: 2 easy, 3-4 medium, 5 hard."""
LONGER_LENGTHS = range(6, 9)
"""Numbers of operations in the splits `longer` and `rare`."""
CHOSEN_ON = 2000
"""So many of the first chains of `calibration` were used to choose parameters; none of them is in `certify`."""


@dataclass(frozen=True)
class Chain:
    """`start` followed by `steps`, each an (operation, operand) pair, applied from left to right.

    `first_letter` is the index in `LETTERS` of the letter of the first step.
    """

    start: int
    steps: tuple[tuple[str, int], ...]
    first_letter: int = 0

    @property
    def prompt(self) -> str:
        """The question."""
        steps = zip(self.letters, self.steps, strict=True)
        listed = ", ".join(f"{letter}) {operation}{operand}" for letter, (operation, operand) in steps)
        return f"Start with {self.start}. Steps in the order of their letters: {listed}. What is the result?"

    @property
    def letters(self) -> str:
        """The letters of the steps."""
        return LETTERS[self.first_letter : self.first_letter + len(self.steps)]

    @property
    def answer(self) -> int:
        """The result of all steps."""
        value = self.start
        for operation, operand in self.steps:
            value = apply(operation, value, operand)
        return value

    @property
    def split(self) -> str:
        """The split this chain belongs to, by a hash of its arithmetic.

        Short chains: 80 % train, 10 % calibration (`certify` is a part of it), 10 % test. Longer ones: 80 % rare, 20 %
        longer. The letters do not count: a chain in another dress is in the same split.
        """
        arithmetic = f"{self.start}{self.steps}"
        bucket = int.from_bytes(hashlib.sha256(arithmetic.encode()).digest()[:4], "big") % 10
        if len(self.steps) in LONGER_LENGTHS:
            return "rare" if bucket < 8 else "longer"
        return "train" if bucket < 8 else ("calibration" if bucket == 8 else "test")


def apply(operation: str, left: int, right: int) -> int:
    """`left operation right` for one of `OPERATIONS`."""
    if operation == "+":
        return left + right
    return left - right if operation == "-" else left * right


def random_chain(rng: random.Random, length: int) -> Chain:
    """A chain of `length` operations whose intermediate results all lie in 0..99."""
    value = start = rng.randint(1, 60)
    steps = []
    for _ in range(length):
        operation, operand = rng.choice(OPERATIONS), rng.choice(OPERANDS)
        while not 0 <= apply(operation, value, operand) <= LARGEST:
            operation, operand = rng.choice(OPERATIONS), rng.choice(OPERANDS)
        value = apply(operation, value, operand)
        steps.append((operation, operand))
    return Chain(start, tuple(steps), rng.randrange(len(LETTERS) - length + 1))


def chains(split: str, seed: int) -> Iterator[Chain]:
    """An endless stream of distinct chains of one split, the same for the same seed.

    Raises:
        ValueError: the split is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"the lab has no split {split!r}; use one of {', '.join(SPLITS)}")
    rng = random.Random(f"{split}/{seed}")
    lengths = LONGER_LENGTHS if split in ("longer", "rare") else LENGTHS
    tenth, chosen_on = split, set[tuple[int, tuple[tuple[str, int], ...]]]()
    if split == "certify":
        tenth = "calibration"
        chosen_on = {(chain.start, chain.steps) for chain in islice(chains(tenth, 0), CHOSEN_ON)}
    seen: set[Chain] = set()
    while True:
        chain = random_chain(rng, rng.choice(lengths))
        if chain.split == tenth and chain not in seen and (chain.start, chain.steps) not in chosen_on:
            seen.add(chain)
            yield chain
