"""L1: a number of tokens in the prompt, and a reward for keeping to it (arXiv 2503.04697).

LCPO-Exact and LCPO-Max of section 3 of the paper. Lengths are those of the whole response, as in its code.
"""

import random
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from satisfice.lazy import Tensor
from satisfice.parameters import Noun, Share
from satisfice.reinforcement.objective import Condition, Need, Objective, ObjectiveError, Rollouts, stated_budgets

Instruction = Annotated[str, Field(pattern=r"\{budget\}"), Noun("a text with {budget} where the number goes")]


@dataclass(frozen=True)
class _Budgeted(Objective):
    """A budget in each prompt, and a slope for the tokens off it.

    Attributes:
        min_budget: tokens, the smallest budget; the paper's.
        max_budget: tokens, the largest budget; the paper's.
        step: tokens between two budgets that can be drawn; with the paper's 1 every number can.
        instruction: text after the question; {budget} is where the number goes (wording ours).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.BUDGET})

    min_budget: PositiveInt = 100
    max_budget: PositiveInt = 4000
    step: PositiveInt = 1
    alpha: Share | None = None
    instruction: Instruction = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_budget > self.max_budget:
            raise ObjectiveError(
                f"{self.name}: budgets go from min_budget to max_budget, at least 1 token, not from {self.min_budget} "
                f"to {self.max_budget}"
            )

    @property
    @abstractmethod
    def slope(self) -> float:
        """What one token off the budget costs."""

    def condition(self, rng: random.Random) -> Condition:
        budget = rng.randrange(self.min_budget, self.max_budget + 1, self.step)
        return Condition(self.instruction.replace("{budget}", str(budget)), budget=budget)


@dataclass(frozen=True)
class L1Exact(_Budgeted):
    """A right answer earns 1, and every response pays for each token above or below its budget.

        r = c - alpha * |n - L|

    c is 1 for a right answer and 0 for a wrong one, n the budget in the prompt, L the length (LCPO-Exact, 2503.04697
    section 3). A right answer more than 1/alpha tokens off, 3333 with the paper's values, falls below a wrong one that
    keeps to its budget; such violations are counted, not prevented.

    Attributes:
        alpha: what one token off the budget costs; unless given 1.2 / max_budget, which is the paper's 0.0003 at its
            budgets and keeps its proportions at others (ours).
    """

    name: ClassVar[str] = "l1-exact"
    summary: ClassVar[str] = "a number of tokens in the prompt; each token above or below it costs"
    paper: ClassVar[str] = "2503.04697 (L1-Exact)"

    instruction: Instruction = "Think for exactly {budget} tokens."

    @property
    def slope(self) -> float:
        """What one token off the budget costs."""
        return 1.2 / self.max_budget if self.alpha is None else self.alpha

    def rewards(self, rollouts: Rollouts) -> Tensor:
        off = (stated_budgets(self.name, rollouts) - rollouts.lengths).abs()
        return rollouts.correct.double() - self.slope * off


@dataclass(frozen=True)
class L1Max(_Budgeted):
    """A right answer earns more the further it stays below its budget, up to 1, and nothing far above it.

        r = c * clip(alpha * (n - L) + delta, 0, 1)

    c is 1 for a right answer and 0 for a wrong one, n the budget in the prompt, L the length (LCPO-Max, 2503.04697
    section 3). A right answer delta/alpha tokens above its budget, 500 with the defaults, earns 0 and is worth no more
    than a wrong one; such ties are counted as violations, not prevented.

    Attributes:
        alpha: what one token costs; unless given 4 / max_budget: 0.001 at the paper's budgets, the value in the code
            behind its results (the paper prints none), in proportion at others (ours).
        delta: reward of a right answer exactly at its budget; the paper's.
    """

    name: ClassVar[str] = "l1-max"
    summary: ClassVar[str] = "a largest number of tokens in the prompt; a right answer earns less near and above it"
    paper: ClassVar[str] = "2503.04697 (L1-Max)"

    instruction: Instruction = "Think for at most {budget} tokens."
    delta: Share = 0.5

    @property
    def slope(self) -> float:
        """What one token costs."""
        return 4 / self.max_budget if self.alpha is None else self.alpha

    def rewards(self, rollouts: Rollouts) -> Tensor:
        below = stated_budgets(self.name, rollouts) - rollouts.lengths
        return rollouts.correct * (self.slope * below + self.delta).clamp(0, 1)

    def inactive(self, rollouts: Rollouts) -> str:
        rewards = self.rewards(rollouts)
        if bool(rollouts.correct.any()) and bool(((rewards == 1) | ~rollouts.correct).all()):
            return "every right response is so far below its budget that it earns all there is; draw smaller budgets"
        return ""
