"""AALC, adaptive accuracy-length control (arXiv 2506.20160): no price on length before accuracy is near its target."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt

from satisfice.lazy import Tensor
from satisfice.parameters import Share
from satisfice.reinforcement.objective import Need, Objective, ObjectiveError, Rollouts


@dataclass(frozen=True)
class AALC(Objective):
    """A length term that stays silent until validation accuracy is close to its target, and then comes in smoothly.

        r_acc = min(1, validation accuracy / target)
        r_len = min(1, L / l_max)                         1 for a truncated response
        R_len = 1 - min(r_acc ^ beta, r_len)
        Att   = gamma + (1 - gamma) (1 - r_acc)
        R     = Att * correct + weight * R_len

    Formula and defaults are those of the official code, and of the paper as others restate it; what differs is marked
    as ours. Tokens beyond `l_max * r_acc ^ beta` cost nothing more, so far from the target no length costs anything:
    with beta = 128, r_acc = 0.95 prices the first 0.1 % of l_max, 0.99 the first 28 %.

    A right response is always rewarded above a wrong one.

    Attributes:
        target: validation accuracy to reach. The code's is 1, which few models come near: set it to what yours can
            reach. A rule that raises it during training is commented out in the code and left out here.
        beta: how late the length term comes in.
        gamma: weight of correctness once the target is met.
        weight: of the length term. The code's 1e-6 counts on a far smaller number than TRL's 1e-4 being added to
            the standard deviation, which would swallow it; this default is ours.
        gated: reward a right response's length only (ours). The code rewards a wrong one's too, which in a group
            without a right response is all there is to learn.
        l_max: tokens from which on a response counts as longest.
    """

    name: ClassVar[str] = "aalc"
    summary: ClassVar[str] = "prices length only once validation accuracy comes near its target"
    paper: ClassVar[str] = "2506.20160 (AALC)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.VALIDATION})

    target: Share = 1.0
    beta: PositiveFloat = 128.0
    gamma: Share = 0.9
    weight: PositiveFloat = 0.1
    gated: bool = True
    l_max: PositiveInt = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        # Otherwise a short wrong response could be rewarded above a long right one.
        if not self.gated and self.weight >= self.gamma:
            raise ObjectiveError(
                f"{self.name}: weight is {self.weight}; it must be below gamma, {self.gamma}, where gated is false"
            )

    def reached(self, rollouts: Rollouts) -> float:
        """r_acc, the share of the target that is reached; 0 before the first validation."""
        return min(1.0, (rollouts.validation_accuracy or 0.0) / self.target)

    def rewards(self, rollouts: Rollouts) -> Tensor:
        reached = self.reached(rollouts)
        length = (rollouts.lengths.double() / self.l_max).clamp(max=1).masked_fill(rollouts.truncated, 1)
        short = 1 - length.clamp(max=reached**self.beta)
        if self.gated:
            short = short * rollouts.correct
        attention = self.gamma + (1 - self.gamma) * (1 - reached)
        return attention * rollouts.correct + self.weight * short

    def inactive(self, rollouts: Rollouts) -> str:
        if rollouts.validation_accuracy is None:
            return "there is no validation accuracy yet, so lengths do not matter before the first validation"
        reached = self.reached(rollouts)
        priced = self.l_max * reached**self.beta
        counted = rollouts.lengths[rollouts.correct] if self.gated else rollouts.lengths
        if not counted.numel() or int(counted.min()) < priced:
            return ""
        if reached == 1:
            return (
                f"no response that counts is shorter than l_max, {self.l_max} tokens, so none is rewarded: raise l_max"
            )
        return (
            f"at a validation accuracy of {rollouts.validation_accuracy:.3g} only the first {priced:.3g} tokens have a "
            f"price and every response is longer: unless accuracy still rises, lower target from {self.target:g}"
        )
