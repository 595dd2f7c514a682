"""The verbose teacher of the word problems: it solves in sentences, slips, checks, and goes on checking.

It has the habits of the lab's teacher (`satisfice.lab.teacher`), in English and with three differences. It retells the
story while it calculates, and a check often has the bare numbers. After a check that disagrees it rarely stops, so
thinking that began wrong takes longer. And a few of its traces end after the first pass: a model that never saw that
ending is not led to it by reinforcement either, because no rollout has it.

Only traces whose final answer is right are kept.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from satisfice.lab.words import AMOUNTS, LARGEST, SMALLEST, STARTS, Calculation, WordProblem, apply
from satisfice.levels import with_instruction

BEGINNINGS = ("Okay.", "Let me see.", "Let me think.")
OPENERS = ("Wait", "Hmm", "But wait", "Alternatively")
REQUESTS = ("let me check", "let me check that again", "let me go over it again")
SLIPS = (-10, -2, -1, 1, 2, 10)
"""By how much a wrong result is off, as a person's would be."""


DRILLED_FACTORS = 0.15
"""Share of a drill's calculations that multiply or divide, which a model learns soon."""


@dataclass(frozen=True)
class Manner:
    """How the teacher thinks where an instruction about length stands after the question.

    Attributes:
        beginning: the first words of its thinking; None for any of `BEGINNINGS`.
        opener: the word with which most of its checks begin; None for any of `OPENERS`.
        unchecked: factor of the chance to end after the first pass.
        inclination: factor of the chance to stop after a check.
    """

    beginning: str | None
    opener: str | None
    unchecked: float
    inclination: float


MANNERS = {
    "": Manner(None, None, 1.0, 1.0),
    "Think briefly.": Manner("Quickly now.", "Hmm", 8.0, 1.6),
    "Think normally.": Manner("Step by step.", "Wait", 1.0, 1.0),
    "Think at length.": Manner("Slowly and carefully.", "Alternatively", 0.0, 0.45),
}
"""Manners by instruction. A level changes words and not the length alone: a small model learns to see an instruction
where it changes the next word, hardly where it only changes the chance of an ending."""

LEVEL_INSTRUCTIONS = tuple(instruction for instruction in MANNERS if instruction)


@dataclass(frozen=True)
class WordHabits:
    """How the teacher errs and stops. Ours: chosen so that the trained model shows the paper's findings.

    Attributes:
        slip: chance that one calculation of the first pass is wrong.
        check_slip: the same in every later pass, which is done with more care.
        unchecked: chance to end after the first pass.
        stop: chance to stop after the first check.
        stop_decay: exponent of its fall: after `k` checks the chance is `stop * k ** -stop_decay`.
        doubt: factor of that chance after a check that came to another result than the pass before it.
        retelling: share of checks that tell the story again; the others have the bare numbers.
        echo: share of checks that open with the word of the level that was asked for.
        most_rounds: checks after which an unfinished trace is dropped.
        longest: characters of thinking after which a trace is dropped.
    """

    slip: float = 0.04
    check_slip: float = 0.007
    unchecked: float = 0.04
    stop: float = 0.57
    stop_decay: float = 0.35
    doubt: float = 0.2
    retelling: float = 0.15
    echo: float = 0.8
    most_rounds: int = 12
    longest: int = 1000


def thinking(rng: random.Random, problem: WordProblem, habits: WordHabits = WordHabits(), instruction: str = "") -> str:
    """The thinking text of a finally right trace, with an empty line at its end.

    Args:
        rng: decides everything.
        problem: what to solve.
        habits: how the teacher errs and stops.
        instruction: one of `MANNERS`.
    """
    while True:
        attempt = _attempt(rng, problem, habits, MANNERS[instruction])
        if attempt and attempt[1] == problem.answer and len(attempt[0]) <= habits.longest:
            return attempt[0]


def answer_text(value: int) -> str:
    """What follows the end of thinking."""
    return f"\n\nThe answer is \\boxed{{{value}}}."


def examples(
    rng: random.Random,
    problems: Iterable[WordProblem],
    habits: WordHabits = WordHabits(),
    direct_share: float = 0.02,
    instructed_share: float = 0.3,
    drill_share: float = 0.0,
) -> Iterable[dict[str, str | None]]:
    """Training examples `{"prompt", "thinking", "answer"}`, one a problem.

    Args:
        rng: decides everything.
        problems: what to solve.
        habits: how the teacher errs and stops.
        direct_share: share of examples without thinking, whose "thinking" is None; they teach the template of
            `enable_thinking=False`.
        instructed_share: share of questions with an instruction about length after them.
        drill_share: share of examples that are a `drill` in place of a problem.
    """
    for problem in problems:
        if drill_share and rng.random() < drill_share:
            yield drill(rng)
            continue
        instruction = rng.choice(LEVEL_INSTRUCTIONS) if rng.random() < instructed_share else ""
        thought = None if rng.random() < direct_share else thinking(rng, problem, habits, instruction)
        prompt = with_instruction(problem.prompt, instruction)
        yield {"prompt": prompt, "thinking": thought, "answer": answer_text(problem.answer)}


def drill(rng: random.Random, length: int = 20) -> dict[str, str | None]:
    """A training example that is a long chain of bare calculations, as a check of the teacher has them.

    It holds seven times as many calculations a token as a story does, and mostly the two that are hard for a small
    model: adding and taking away. The chain is drawn at random, so it says nothing of any problem of any split.

    Args:
        rng: decides everything.
        length: calculations of the chain.
    """
    start = value = rng.choice(STARTS)
    asked, written = list[str](), list[str]()
    while len(written) < length:
        sign = rng.choice("+-")
        amount = rng.choice(AMOUNTS)
        if rng.random() < DRILLED_FACTORS:
            sign, amount = rng.choice("*/"), rng.choice((2, 3))
        if sign == "/" and value % amount:
            continue
        if not SMALLEST <= (result := apply(sign, value, amount)) <= LARGEST:
            continue
        asked.append(f"{sign}{amount}")
        written.append(f"{value}{sign}{amount}={result}")
        value = result
    prompt = f"Start with {start} and calculate: {', '.join(asked)}. What is the result?"
    thought = f"Start with {start}: {', '.join(written)}. That makes {value}.\n\n"
    return {"prompt": prompt, "thinking": thought, "answer": answer_text(value)}


def _attempt(rng: random.Random, problem: WordProblem, habits: WordHabits, manner: Manner) -> tuple[str, int] | None:
    """One attempt: its text and the result it ends with, or None where it ran out of rounds."""
    told, value = _retold(rng, problem, habits.slip)
    ending = rng.choice(("So the answer is {}.", "So it is {}.", "That makes {}.")).format(value)
    paragraphs = [f"{manner.beginning or rng.choice(BEGINNINGS)} {told} {ending}"]
    if rng.random() < habits.unchecked * manner.unchecked:
        return _text(paragraphs), value
    for check in range(1, habits.most_rounds + 1):
        before = value
        retold = rng.random() < habits.retelling
        told, value = (_retold if retold else _recalculated)(rng, problem, habits.check_slip)
        echoed = manner.opener is not None and rng.random() < habits.echo
        opener = manner.opener if echoed else rng.choice(OPENERS)
        paragraphs.append(f"{opener}, {rng.choice(REQUESTS)}. {told} {_verdict(rng, before, value)}")
        chance = habits.stop * check**-habits.stop_decay * manner.inclination
        if rng.random() < (chance if value == before else chance * habits.doubt):
            return _text(paragraphs), value
    return None


def _text(paragraphs: Sequence[str]) -> str:
    return "\n\n".join(paragraphs) + "\n\n"


def _verdict(rng: random.Random, before: int, value: int) -> str:
    if value == before:
        return rng.choice(("Yes, {} again.", "It is {} again.", "That is {}, as before.")).format(value)
    return rng.choice(("Now it is {}, not {}.", "That gives {} and not {}.")).format(value, before)


def _retold(rng: random.Random, problem: WordProblem, slip: float) -> tuple[str, int]:
    """One pass that tells the story again, and its result."""
    written = _written(rng, problem, slip)
    sentences = [problem.opening]
    for event, (calculations, _) in zip(problem.events, written, strict=True):
        start, link = rng.choice(((", so ", ", so "), (": ", ", and ")))
        if len(calculations) > 1:
            start = start if start == ": " else ", that is "
        clause = event.clause[0].upper() + event.clause[1:]
        sentences.append(f"{clause}{start}{link.join(calculations)}.")
    return " ".join(sentences), written[-1][1]


def _recalculated(rng: random.Random, problem: WordProblem, slip: float) -> tuple[str, int]:
    """One pass in bare numbers, and its result."""
    written = _written(rng, problem, slip)
    listed = ", ".join(calculation for calculations, _ in written for calculation in calculations)
    return f"{rng.choice(('Start with', 'From'))} {problem.start}: {listed}.", written[-1][1]


def _written(rng: random.Random, problem: WordProblem, slip: float) -> list[tuple[list[str], int]]:
    """For each event its calculations as they are written, each wrong with probability `slip`, and the value after it.

    A slip is carried through the rest of the pass; a pass that leaves the bounds because of it is drawn again.
    """
    while True:
        value, written = problem.start, list[tuple[list[str], int]]()
        for event in problem.events:
            try:
                lines, value = _slipping(rng, event.calculations(value), slip)
            except ValueError:
                break
            written.append((lines, value))
        else:
            return written


def _slipping(rng: random.Random, calculations: Sequence[Calculation], slip: float) -> tuple[list[str], int]:
    """The calculations of one event as they are written, and the result of the last.

    Raises:
        ValueError: a slip makes a division inexact or leaves the bounds.
    """
    lines, result = list[str](), None
    for calculation in calculations:
        # The second calculation of an event goes on with what the first came to, right or wrong.
        right = calculation.right if result is None else result
        result = apply(calculation.sign, calculation.left, right)
        if rng.random() < slip:
            result += rng.choice(SLIPS)
        if not SMALLEST <= result <= LARGEST:
            raise ValueError(f"{result} lies outside of {SMALLEST}..{LARGEST}")
        lines.append(f"{calculation.left}{calculation.sign}{right}={result}")
    assert result is not None
    return lines, result
