"""ThinkPrune: a hard limit that the prompt states, lowered in rounds (arXiv 2504.01296)."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from satisfice.lazy import Tensor
from satisfice.parameters import Noun
from satisfice.reinforcement.objective import Condition, Need, Objective, ObjectiveError, Rollouts, stated_budgets

Instruction = Annotated[str, Field(pattern=r"\{budget\}"), Noun("a text with {budget} where the limit goes")]


@dataclass
class ThinkPrune(Objective):
    """A right answer earns 1 if it is within the limit that its prompt states; everything else earns 0.

        r = c * [L <= limit]

    The limit falls from round to round (2504.01296: 4000, 3000, 2000 tokens). Conditions have to be drawn as training
    goes on, not beforehand: those of a step state the limit of its round. A response is judged by the limit that its
    own prompt states. A right answer beyond it is worth no more than a wrong one. That is the method, and it is counted
    as a violation.

    Attributes:
        limits: tokens, one limit a round, falling; the paper's.
        steps_per_round: steps until the next limit, a step being one batch of rollouts; ours. The paper trains each
            round from a checkpoint of the one before, in one case of step 180.
        instruction: text after the question; {budget} is where the limit goes (wording ours).
    """

    name: ClassVar[str] = "thinkprune"
    summary: ClassVar[str] = "a right answer counts only within a limit in the prompt, which falls in rounds"
    paper: ClassVar[str] = "2504.01296 (ThinkPrune)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.BUDGET})

    limits: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (4000, 3000, 2000)
    steps_per_round: PositiveInt = 180
    instruction: Instruction = "Answer within {budget} tokens."
    _step: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(later >= earlier for earlier, later in zip(self.limits, self.limits[1:], strict=False)):
            raise ObjectiveError(f"thinkprune: each round's limit must be below the one before, unlike {self.limits}")

    def _limit(self, done: int) -> int:
        """Tokens, once so many steps are done."""
        return self.limits[min(done // self.steps_per_round, len(self.limits) - 1)]

    def condition(self, rng: random.Random) -> Condition:
        limit = self._limit(self._step)
        return Condition(self.instruction.replace("{budget}", str(limit)), budget=limit)

    def update(self, rollouts: Rollouts) -> None:
        self._step += 1

    def rewards(self, rollouts: Rollouts) -> Tensor:
        return (rollouts.correct & (rollouts.lengths <= stated_budgets(self.name, rollouts))).double()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        match state:
            case {"step": int(step)} if len(state) == 1 and step >= 0:
                self._step = step
            case _:
                raise ObjectiveError(f"the state of thinkprune is its step, not {dict(state)}")

    def inactive(self, rollouts: Rollouts) -> str:
        # The prompts of this step were drawn before its update.
        limit = self._limit(max(self._step - 1, 0))
        if bool((rollouts.budgets > limit).all()):
            return (
                f"the limit has fallen to {limit} tokens, but the prompts still state {int(rollouts.budgets.min())}; "
                "draw conditions as training goes on"
            )
        if not bool((rollouts.truncated | (rollouts.lengths > rollouts.budgets[:, None])).any()):
            return f"no response is beyond the limit of {limit} tokens; lower it"
        return ""
