"""AdaptThink (arXiv 2505.13417): learn from both ways to answer, with thinking and without, when thinking pays."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from satisfice.lazy import Tensor
from satisfice.reinforcement.objective import Need, Objective, ObjectiveError, Rollouts


@dataclass(frozen=True)
class AdaptThink(Objective):
    """A small bonus for answering without thinking, measured against the accuracy of the model before the training.

        A = correct - c_ref + delta * direct

    c_ref is the share of right answers that the frozen model gives to the problem, thinking (`Rollouts.
    reference_accuracy`; 16 samples a problem in the paper). It stands in place of a group baseline, so A is the reward
    itself and a group may have advantages of one sign: direct answers are favoured as a whole where they are right at
    least as often as the reference less delta. Formula and default are the paper's and its code's.

    A right response is always rewarded above a wrong one of its group, because delta < 1.

    In the paper half of the responses are forced by setting their first token to the closing marker, and the loss
    weighs that token by its probability under the policy over 0.5. That weight belongs to the trainer; see
    docs/objectives/adaptthink.md for what is different without it.

    Attributes:
        delta: bonus for a direct answer: how much accuracy it may cost.
    """

    name: ClassVar[str] = "adaptthink"
    summary: ClassVar[str] = "favours answering without thinking where that is about as often right"
    paper: ClassVar[str] = "2505.13417 (AdaptThink)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE, Need.DIRECT})
    direct_share: ClassVar[float] = 0.5

    delta: Annotated[float, Field(gt=0, lt=1)] = 0.05

    def rewards(self, rollouts: Rollouts) -> Tensor:
        if rollouts.reference_accuracy is None:
            raise ObjectiveError(
                f"{self.name} needs the accuracy of the model before the training on each problem "
                "(Rollouts.reference_accuracy)"
            )
        reference = rollouts.reference_accuracy.double()[:, None]
        return rollouts.correct.double() - reference + self.delta * rollouts.direct.double()

    def advantages(self, rollouts: Rollouts, rewards: Tensor) -> Tensor:
        return rewards

    def inactive(self, rollouts: Rollouts) -> str:
        if bool(rollouts.direct.all()) or not bool(rollouts.direct.any()):
            every = "every" if bool(rollouts.direct.any()) else "no"
            return (
                f"{every} response was made to answer without thinking, so there is nothing to choose between: have "
                "half of each group asked directly, and take at least two responses a prompt"
            )
        return ""
