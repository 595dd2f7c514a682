"""Word problems in plain English with one whole number as the answer, for small language models that reason.

A problem is a story (see `satisfice.lab.stories`), a number to start with and two to six arithmetic steps on it. Every
number that occurs lies in 2..60 and what is added or taken away at once in 2..12; beside small packs ("3 bags with 4
apples each"), only 2 and 3 are multiplied or divided by. So a model of a hundred million parameters can learn the
arithmetic from a few thousand examples.

Splits are held out by construction: a problem belongs to exactly one of them by a hash of its story and arithmetic, so
the same problem with other names or other words is in the same split. `longer` has more steps than `train` ever has;
`other` has stories that `train` never has.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from satisfice.lab.stories import COMPARISON_QUESTIONS, COMPARISONS, STORIES, Story

SPLITS = ("train", "calibration", "test", "longer", "other")
STEPS = range(2, 5)
"""Numbers of arithmetic steps: 2 easy, 3 medium, 4 hard."""
LONGER_STEPS = range(5, 7)
"""Numbers of steps in the split `longer`."""
SMALLEST, LARGEST = 2, 60
"""Bounds of every number of a problem; from 2 on a plural is always right."""
STARTS = range(5, 31)
AMOUNTS = range(2, 13)
"""What is added or taken away at once."""
PACKS, IN_A_PACK = range(2, 5), range(2, 7)
"""How many packs there are, and how much is in each."""
PREFIXES = ("then", "later", "after that,", "soon")
PREFIX_SHARE = 0.35
ADVERBIALS = frozenset(("after", "at", "by", "for", "from", "in", "on", "only", "through", "to", "within"))
"""Words that begin a clause which says itself when it happens; it gets no prefix."""
COMPARISON_SHARE = 0.3
"""Of problems about things that somebody owns: how many end with a comparison."""

WOMEN = ("Anna", "Clara", "Eva", "Grace", "Iris", "Kate", "Mia", "Olga", "Rosa", "Tina", "Lucy", "Emma")
MEN = ("Tom", "Ben", "David", "Frank", "Henry", "Jack", "Leo", "Noah", "Paul", "Sam", "Max", "Peter")


@dataclass(frozen=True)
class Calculation:
    """`left sign right`, a step of the arithmetic; the sign is one of + - * /."""

    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        """What it comes to."""
        return apply(self.sign, self.left, self.right)


@dataclass(frozen=True)
class Event:
    """Something that happens in a story.

    Attributes:
        kind: its operation: "+", "-", "+*", "-*", "*2", "*3", "/2" or "/3".
        clause: what happens, in the words of the problem, as in the middle of a sentence.
        sentence: the same as it stands in the problem.
        amount: what is added or taken away at once; the factor or divisor of the last four kinds.
        packs: how many times that happens; 1 unless the kind has two signs.
    """

    kind: str
    clause: str
    sentence: str
    amount: int
    packs: int = 1

    def calculations(self, value: int) -> tuple[Calculation, ...]:
        """The one or two steps by which this event changes `value`."""
        if len(self.kind) == 2 and self.kind[1] == "*":
            product = Calculation(self.packs, "*", self.amount)
            return product, Calculation(value, self.kind[0], product.result)
        return (Calculation(value, self.kind[0], self.amount),)


@dataclass(frozen=True)
class WordProblem:
    """A story in words with its arithmetic.

    Attributes:
        story: the key of its template.
        things: what is counted, in the plural.
        start: the number in its opening.
        opening: its first sentence.
        events: what happens, in order.
        question: its last sentence.
    """

    story: str
    things: str
    start: int
    opening: str
    events: tuple[Event, ...]
    question: str

    @property
    def prompt(self) -> str:
        """The whole text."""
        return " ".join([self.opening, *(event.sentence for event in self.events), self.question])

    @property
    def calculations(self) -> tuple[Calculation, ...]:
        """All arithmetic steps, in order."""
        value, done = self.start, list[Calculation]()
        for event in self.events:
            done += event.calculations(value)
            value = done[-1].result
        return tuple(done)

    @property
    def answer(self) -> int:
        """The number that is asked for."""
        return self.calculations[-1].result

    @property
    def split(self) -> str:
        """The split this problem belongs to, by its story, its number of steps and a hash of its arithmetic."""
        if any(story.key == self.story and story.held_out for story in STORIES):
            return "other"
        if len(self.calculations) in LONGER_STEPS:
            return "longer"
        changes = [(event.kind, event.amount, event.packs) for event in self.events]
        identity = f"{self.story}/{self.start}/{changes}"
        bucket = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big") % 10
        return "train" if bucket < 8 else ("calibration" if bucket == 8 else "test")


def apply(sign: str, left: int, right: int) -> int:
    """`left sign right`; a division is exact or refused.

    Raises:
        ValueError: the division leaves a remainder.
    """
    if sign == "/":
        if left % right:
            raise ValueError(f"{left} is not divisible by {right}")
        return left // right
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def problems(split: str, seed: int) -> Iterator[WordProblem]:
    """An endless stream of distinct problems of one split, the same for the same seed.

    Raises:
        ValueError: the split is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"words has no split {split!r}; use one of {', '.join(SPLITS)}")
    rng = random.Random(f"words/{split}/{seed}")
    stories = [story for story in STORIES if story.held_out == (split == "other")]
    steps = LONGER_STEPS if split == "longer" else STEPS
    seen: set[str] = set()
    while True:
        problem = random_problem(rng, rng.choice(stories), rng.choice(steps))
        if problem.split == split and problem.prompt not in seen:
            seen.add(problem.prompt)
            yield problem


def random_problem(rng: random.Random, story: Story, steps: int) -> WordProblem:
    """A problem of `steps` arithmetic steps whose every number lies within the bounds."""
    people = [(name, "he his him") for name in MEN] + [(name, "she her her") for name in WOMEN]
    (name, forms), (friend, _) = rng.sample(people, 2)
    things = rng.choice(story.things)
    pronoun, possessive, object_form = forms.split()
    words = {"n": name, "f": friend, "t": things, "p": pronoun, "r": possessive, "o": object_form}
    while True:
        start = rng.choice(STARTS)
        opening = _sentence(rng.choice(story.openings), x=start, **words)
        compared = story.owned and rng.random() < COMPARISON_SHARE
        events = _events(rng, story, start, steps, compared, words)
        if events is not None:
            break
    question = _sentence(rng.choice(COMPARISON_QUESTIONS if compared else story.questions), **words)
    return WordProblem(story.key, things, start, opening, events, question)


def _events(
    rng: random.Random, story: Story, value: int, steps: int, compared: bool, words: dict[str, str]
) -> tuple[Event, ...] | None:
    """Events of exactly `steps` steps in all, or None where the draw led nowhere."""
    events: list[Event] = []
    # What the other person was given must not contradict what is said of him or her in the end.
    unused = [text for text in story.events if not (compared and "{f}" in text)]
    while steps:
        comparing = compared and steps == 1
        room = steps - 1 if compared and not comparing else steps
        fitting = [text for text in (COMPARISONS if comparing else unused) if _steps(text) <= room]
        # In random order the first whose numbers stay within the bounds.
        for text in rng.sample(fitting, len(fitting)):
            kind, template = text.split(" ", 1)
            packs, amount = _numbers(rng, kind)
            if (changed := _changed(kind, value, amount, packs)) is not None:
                break
        else:
            return None
        clause = template.format(a=amount, b=packs, **words)
        prefix = ""
        if events and story.told_in_time and not comparing and clause.split()[0] not in ADVERBIALS:
            prefix = f"{rng.choice(PREFIXES)} " if rng.random() < PREFIX_SHARE else ""
        events.append(Event(kind, clause, _sentence(f"{prefix}{clause}."), amount, packs))
        value, steps = changed, steps - _steps(text)
        # A sentence comes once a problem: twice the same would read like a mistake.
        unused = [other for other in unused if other != text]
    return tuple(events)


def _steps(text: str) -> int:
    """How many arithmetic steps an event of a story takes."""
    return 2 if text.startswith(("+*", "-*")) else 1


def _numbers(rng: random.Random, kind: str) -> tuple[int, int]:
    """How many times an event of this kind happens, and its amount, factor or divisor."""
    if kind in ("+", "-"):
        return 1, rng.choice(AMOUNTS)
    if kind[1] == "*":
        return rng.choice(PACKS), rng.choice(IN_A_PACK)
    return 1, int(kind[1])


def _changed(kind: str, value: int, amount: int, packs: int) -> int | None:
    """The value after an event, or None where it would leave the bounds or a remainder."""
    if kind[0] == "/" and value % amount:
        return None
    total = apply(kind[0], value, amount * packs)
    return total if SMALLEST <= total <= LARGEST else None


def _sentence(template: str, **words: object) -> str:
    text = template.format(**words) if words else template
    return text[0].upper() + text[1:]
