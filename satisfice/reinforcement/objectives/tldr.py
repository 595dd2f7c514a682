"""TLDR: a price on length, set by the level that the prompt asks for (arXiv 2505.07961).

The reward is the task's, less a penalty on length, and each level has a penalty of its own: that much is known of the
paper, second-hand. The shape of the penalty, its size, the wording of the levels and everything else here are ours.
"""

import random
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from satisfice.lazy import Tensor, torch
from satisfice.levels import LEVELS
from satisfice.parameters import Because, Probability, Text
from satisfice.reinforcement.objective import Condition, Normalisation, Objective, ObjectiveError, Rollouts

Shape = Literal["linear", "clipped", "group-relative"]


Price = Annotated[
    float, Field(gt=-1, lt=1), Because("beyond that a right answer may be worth no more than a wrong one")
]


@dataclass(frozen=True)
class TLDR(Objective):
    """A right answer earns 1, and every response pays for its length what the level in its prompt asks.

        r = c - price(level) * s(L)

        linear:          s(L) = L / token limit
        clipped:         s(L) = min(L, cap) / cap
        group-relative:  s(L) = (L - shortest) / (longest - shortest) of the group, 0 where all are equally long

    s lies between 0 and 1 and every price between -1 and 1, so a right answer still beats any wrong one. A negative
    price pays for length: it holds a level where it is while the others, of the same weights, become shorter.
    All responses of a group share one level. The form r = c - penalty with one penalty a level is the paper's
    (2505.07961, from a digest of its text); everything else, every default included, is ours.

    Attributes:
        price_short: what a response of full length pays where the prompt asks for a short one; between -1 and 1.
        price_medium: the same for medium.
        price_long: the same for long; 0 leaves length alone, below 0 is paid for it.
        price_unlabelled: the same for a prompt that names no level; that of medium unless given.
        shape: how the price grows with length: "linear", "clipped" or "group-relative".
        cap: tokens from which on a longer response pays no more; for shape=clipped, and needed there.
        price_wrong: whether wrong answers pay too, as the formula has it. Then a group without a right answer is taught
            to be short; without it such a group teaches nothing.
        unlabelled: share of prompts that name no level, so that the model also works without one.
        instruction_short: text after the question that asks for a short response.
        instruction_medium: the same for medium.
        instruction_long: the same for long.
        scaling: how rewards become advantages: "group-std" (plain GRPO), "group-mean", "batch" or "leave-one-out".
            Division by each group's own deviation cancels the price in groups where all are right, so that short and
            medium would pull equally there; "batch" divides all groups by one number and keeps the prices apart.
    """

    name: ClassVar[str] = "tldr"
    summary: ClassVar[str] = "a price on length, set by the level in the prompt: short, medium or long"
    paper: ClassVar[str] = "2505.07961 (TLDR)"
    normalisation: ClassVar[Normalisation] = "batch"

    price_short: Price = 0.5
    price_medium: Price = 0.25
    price_long: Price = 0.0
    price_unlabelled: Price | None = None
    shape: Shape = "linear"
    cap: PositiveInt | None = None
    price_wrong: bool = True
    unlabelled: Probability = 0.25
    instruction_short: Text = "Think briefly."
    instruction_medium: Text = "Think normally."
    instruction_long: Text = "Think at length."
    scaling: Normalisation = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "normalisation", self.scaling)
        if (self.shape == "clipped") != (self.cap is not None):
            raise ObjectiveError("tldr: cap and shape=clipped go together; give both or neither")
        if len(set(self.instructions.values())) < len(LEVELS):
            raise ObjectiveError("tldr: the instructions of the three levels must differ")

    @property
    def instructions(self) -> dict[str, str]:
        """The text of each level."""
        return dict(zip(LEVELS, (self.instruction_short, self.instruction_medium, self.instruction_long), strict=True))

    def _prices(self) -> tuple[float, ...]:
        """Of each level in order, and of no level last."""
        unlabelled = self.price_medium if self.price_unlabelled is None else self.price_unlabelled
        return self.price_short, self.price_medium, self.price_long, unlabelled

    def condition(self, rng: random.Random) -> Condition:
        if rng.random() < self.unlabelled:
            return Condition()
        level = rng.choice(LEVELS)
        return Condition(self.instructions[level], level=level)

    def rewards(self, rollouts: Rollouts) -> Tensor:
        due = self._price(rollouts)[:, None] * self._share(rollouts)
        if not self.price_wrong:
            due = due * rollouts.correct
        return rollouts.correct.double() - due

    def _price(self, rollouts: Rollouts) -> Tensor:
        """(P,) float64. Prompts without a level have index -1, which is the last."""
        return torch.tensor(self._prices(), dtype=torch.float64)[rollouts.levels]

    def _share(self, rollouts: Rollouts) -> Tensor:
        """(P, G) float64 from 0 to 1, how much of the price each response pays."""
        lengths = rollouts.lengths.double()
        if self.shape == "group-relative":
            shortest, longest = lengths.amin(dim=1, keepdim=True), lengths.amax(dim=1, keepdim=True)
            # Where all are equally long the numerator is 0.
            return (lengths - shortest) / (longest - shortest).clamp(min=1)
        whole = rollouts.max_length if self.cap is None else self.cap
        return lengths.clamp(max=whole) / whole

    def inactive(self, rollouts: Rollouts) -> str:
        if not any(self._prices()):
            return "every price is 0, so length costs nothing at any level"
        if self.cap is not None and bool((rollouts.lengths >= self.cap).all()):
            return f"every response is at least as long as the cap of {self.cap} tokens and pays the same; raise cap"
        return ""
