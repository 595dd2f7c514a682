"""The verbose teacher: it solves a chain step by step, slips, checks, and goes on checking long after it is right.

What the traces must teach, because the field's findings are about exactly these habits:

* thinking pays: the first pass is sloppy and the checks are careful, so accuracy rises with thinking and then
  saturates;
* the teacher does not know when to stop: after a check it stops with a chance that *falls* with every further
  check, whatever the check said, which makes the number of rounds heavy-tailed and the tail pure repetition.

Only traces whose final answer is right are kept (rejection sampling), as for the traces that small models are
distilled on.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from satisfice.lab.arithmetic import LARGEST, Chain, apply

OPENERS = ("Wait", "Hmm", "Alternatively", "But wait")
REQUESTS = ("let me check", "let me verify", "let me check again")
LEVEL_INSTRUCTIONS = ("Think briefly.", "Think normally.", "Think at length.")
BUDGETS = tuple(
    f"Think for {bound} {count} tokens." for bound in ("exactly", "at most") for count in range(20, 200, 10)
)
INSTRUCTIONS = (LEVEL_INSTRUCTIONS, BUDGETS)
"""What some questions say of length: levels and budgets, half each. The teacher hardly follows them, see `Habits`."""
ECHOES = {"briefly": "Hmm", "normally": "Wait", "at length": "Alternatively"}
"""The opener that goes with a level. A model of this size notices an instruction where it changes the next word; what
changes the chance of an ending alone it did not learn to see."""
CHARACTERS_PER_TOKEN = 2.25
"""By which the teacher, who writes text, judges how many tokens it has spent."""


@dataclass(frozen=True)
class Habits:
    """How the teacher errs and stops. Ours: chosen so that the trained model shows the paper's findings.

    Attributes:
        slip: chance that one step of the first pass is computed wrongly.
        check_slip: the same in every later pass, which is done with more care.
        stop: chance to stop after the first check; an unchecked first pass is never the end.
        stop_decay: exponent of its fall: after `k` checks the chance is `stop * k ** -stop_decay`.
        most_rounds: checks after which an unfinished trace is dropped.
        heed: how little an instruction about length moves the chance to stop: it is multiplied by this where the
            instruction asks for less than there is, divided where it asks for more.
        echo: chance that a check opens with the word of the level that was asked for.
    """

    slip: float = 0.06
    check_slip: float = 0.01
    stop: float = 0.30
    stop_decay: float = 0.3
    most_rounds: int = 16
    heed: float = 2.0
    echo: float = 0.7

    def inclination(self, instruction: str, thinking: str) -> float:
        """The factor of the chance to stop after `thinking`."""
        if not instruction or "normally" in instruction:
            return 1.0
        if budget := re.search(r"\d+", instruction):
            enough = len(thinking) / CHARACTERS_PER_TOKEN >= int(budget[0])
        else:
            enough = "briefly" in instruction
        return self.heed if enough else 1 / self.heed


def opener(rng: random.Random, habits: Habits, instruction: str) -> str:
    """The word with which a check begins."""
    echoes = [word for level, word in ECHOES.items() if level in instruction]
    return echoes[0] if echoes and rng.random() < habits.echo else rng.choice(OPENERS)


def slipped(rng: random.Random, value: int) -> int:
    """A wrong result near the right one: off by 1, 2 or 10, as a person's would be."""
    candidates = [value + delta for delta in (-10, -2, -1, 1, 2, 10) if 0 <= value + delta <= LARGEST]
    return rng.choice(candidates)


def compute(rng: random.Random, chain: Chain, slip: float) -> tuple[list[str], int]:
    """One pass over the chain: its lines and the result, each step wrong with probability `slip`.

    A slip is carried through the rest of the pass; a pass that leaves 0..99 because of it is drawn again.
    """
    while True:
        lines, value = [], chain.start
        for letter, (operation, operand) in zip(chain.letters, chain.steps, strict=True):
            result = apply(operation, value, operand)
            if 0 <= result <= LARGEST and rng.random() < slip:
                result = slipped(rng, result)
            if not 0 <= result <= LARGEST:
                break
            lines.append(f"{letter}) {value}{operation}{operand}={result}\n")
            value = result
        else:
            return lines, value


def think(rng: random.Random, chain: Chain, habits: Habits, instruction: str) -> tuple[str, int] | None:
    """One attempt: the thinking text and the answer it ends with, or None where it ran out of rounds."""
    lines, value = compute(rng, chain, habits.slip)
    paragraphs = ["".join(lines) + f"So {value}."]
    for check in range(1, habits.most_rounds + 1):
        lines, value = compute(rng, chain, habits.check_slip)
        opening = f"{opener(rng, habits, instruction)}, {rng.choice(REQUESTS)}.\n"
        paragraphs.append(opening + "".join(lines) + f"So {value}.")
        thinking = "\n\n".join(paragraphs) + "\n\n"
        if rng.random() < habits.stop * check**-habits.stop_decay * habits.inclination(instruction, thinking):
            return thinking, value
    return None


def solve(rng: random.Random, chain: Chain, habits: Habits, longest: int, instruction: str = "") -> str:
    """The thinking text of a finally right trace of at most `longest` characters."""
    while True:
        attempt = think(rng, chain, habits, instruction)
        if attempt and attempt[1] == chain.answer and len(attempt[0]) <= longest:
            return attempt[0]


def answer_text(value: int) -> str:
    """What follows the end-of-thinking marker."""
    return f"\n\nThe answer is \\boxed{{{value}}}."


def examples(
    rng: random.Random,
    chains: Sequence[Chain],
    habits: Habits,
    longest: int,
    direct_share: float,
    instructed_share: float,
    instructions: Sequence[Sequence[str]] = INSTRUCTIONS,
) -> list[dict[str, str | None]]:
    """Training examples `{"prompt", "thinking", "answer"}`; a share of them has no thinking and is marked None.

    The direct examples teach the template of `enable_thinking=False` only: their closing marker belongs to the
    prompt and carries no loss, so they do not teach the model to skip thinking by itself.

    Another share of the questions ends with an instruction about length, which the thinking hardly follows: the model
    can read such words, but they mean little to it until reinforcement gives them a meaning.
    """
    rows: list[dict[str, str | None]] = []
    for chain in chains:
        instruction = rng.choice(rng.choice(instructions)) if rng.random() < instructed_share else ""
        thinking = None if rng.random() < direct_share else solve(rng, chain, habits, longest, instruction)
        prompt = f"{chain.prompt}\n\n{instruction}" if instruction else chain.prompt
        rows.append({"prompt": prompt, "thinking": thinking, "answer": answer_text(chain.answer)})
    return rows
