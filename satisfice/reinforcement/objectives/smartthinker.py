"""Step-level length control in the spirit of SmartThinker (arXiv 2507.04348); its formulas are partly reconstructed."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt

from satisfice.lazy import Tensor, torch
from satisfice.parameters import Because, BelowOne, Probability
from satisfice.reinforcement.objective import EPSILON, Need, Objective, ObjectiveError, Rollouts, Step


@dataclass(frozen=True)
class SmartThinker(Objective):
    """Each step of a right response may be as long as its share of the importance; what is longer is rewarded less.

        share_j  = importance_j / sum of importances          1 / N where all are 0
        target_j = share_j * budget
        over_j   = (length_j - target_j) / (budget / N)       mean over the steps: L / budget - 1
        many     = (N - mean N) / mean N
        r_j      = (1 - k1 sigmoid(over_j)) (1 - k2 sigmoid(many))     right, within 0..1
        r_j      = -1                                                   wrong

    N is the number of steps of the response, L its thinking, and the means are over the group's right responses. The
    response's reward is the mean of its steps' rewards, so a right one is always rewarded above a wrong one. A response
    without steps counts as a single one, as long as itself.

    Advantages are a generalised advantage estimate over steps instead of tokens, without a critic:

        d_j = (r_j - b) / (s + eps)       b, s: the group's mean and standard deviation of step rewards, in which every
                                          response weighs the same
        A_j = sum over k >= j of decay^(k - j) d_k / sum over k >= j of decay^(k - j)

    Every token of step j has A_j; tokens after the last step have the response's advantage, the mean of d over its
    steps. The baseline is the same at every step, so of a GAE's gamma and lambda only the product acts: decay. Dividing
    by the sum of the weights keeps a thinking of many steps from being louder than one of few.

    Of all this, the two factors of a right response's reward, that rewards are given to steps and propagated along
    them, and that importance is estimated online are the paper's, as a survey restates them. What goes into the
    factors, the baseline, the penalty of a wrong response (the paper's varies with a quantity that is not public) and
    all values are ours. The paper's warm start by fine-tuning and its clipping by difficulty are not part of this.

    Attributes:
        k1: how much a step's overshoot can cost.
        k2: how much the number of steps can cost.
        decay: how far the rewards of later steps count for a step; 0 for not at all.
        budget: tokens of thinking for a response; 0 for the mean of the group's right responses.
    """

    name: ClassVar[str] = "smartthinker"
    summary: ClassVar[str] = "rewards steps that are no longer than their importance (partly reconstructed)"
    paper: ClassVar[str] = "2507.04348 (SmartThinker, in its spirit)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.STEPS})
    per_token: ClassVar[bool] = True

    k1: Annotated[float, Field(gt=0, lt=1)] = 0.5
    k2: BelowOne = 0.2
    decay: Probability = 0.9
    budget: Annotated[NonNegativeInt, Because("0 takes the mean of the group's right responses")] = 0

    def rewards(self, rollouts: Rollouts) -> Tensor:
        groups = self.step_rewards(rollouts)
        return torch.stack([torch.stack([steps.mean() for steps in group]) for group in groups])

    def advantages(self, rollouts: Rollouts, rewards: Tensor) -> Tensor:
        mean, deviation = _over_steps(self.step_rewards(rollouts), rewards)
        return (rewards - mean) / (deviation + EPSILON) * (rewards.shape[1] > 1)

    def token_advantages(self, rollouts: Rollouts, advantages: Tensor) -> Tensor:
        groups = self.step_rewards(rollouts)
        mean, deviation = _over_steps(groups, self.rewards(rollouts))
        columns = torch.arange(int(rollouts.lengths.max()))
        result = advantages[..., None] * (columns < rollouts.lengths[..., None])
        if rollouts.lengths.shape[1] == 1:
            return result
        for row, group in enumerate(groups):
            for column, steps in enumerate(group):
                if rollouts.correct[row, column]:
                    along = _along((steps - mean[row]) / (deviation[row] + EPSILON), self.decay)
                    begin = 0
                    for step, advantage in zip(_steps(rollouts, row, column), along, strict=True):
                        result[row, column, begin : step.end] = advantage
                        begin = step.end
        return result

    def inactive(self, rollouts: Rollouts) -> str:
        right = [_steps(rollouts, *map(int, place)) for place in rollouts.correct.nonzero()]
        if right and not any(step.importance for steps in right for step in steps):
            return (
                "no step of a right response has any importance, so all steps of a response share its budget equally: "
                "look whether thinking is found and divided into paragraphs, and whether importance is estimated"
            )
        return ""

    def step_rewards(self, rollouts: Rollouts) -> list[list[Tensor]]:
        """r_j for each step of each response: P lists of G tensors, (N,) float64; (1,) for a wrong response.

        Raises:
            ObjectiveError: there are no steps for some responses, or steps that do not fit theirs.
        """
        prompts, size = rollouts.lengths.shape
        if len(rollouts.steps) != prompts or any(len(group) != size for group in rollouts.steps):
            raise ObjectiveError(
                f"{self.name} needs the steps of each response (Rollouts.steps), {prompts} lists of {size} each"
            )
        return [self._group(rollouts, row) for row in range(prompts)]

    def _group(self, rollouts: Rollouts, row: int) -> list[Tensor]:
        size = rollouts.lengths.shape[1]
        right = {column: _steps(rollouts, row, column) for column in range(size) if rollouts.correct[row, column]}
        mean_length = sum(steps[-1].end for steps in right.values()) / max(1, len(right))
        mean_count = sum(len(steps) for steps in right.values()) / max(1, len(right))
        budget = self.budget or mean_length
        rewards = []
        for column in range(size):
            if column not in right:
                rewards.append(torch.tensor([-1.0], dtype=torch.float64))
                continue
            steps = right[column]
            ends = torch.tensor([0, *(step.end for step in steps)], dtype=torch.float64)
            over = len(steps) * (ends.diff() / budget - _shares(steps))
            many = torch.tensor(len(steps) / mean_count - 1, dtype=torch.float64)
            rewards.append((1 - self.k1 * over.sigmoid()) * (1 - self.k2 * many.sigmoid()))
        return rewards


def _steps(rollouts: Rollouts, row: int, column: int) -> list[Step]:
    length = int(rollouts.lengths[row, column])
    steps = rollouts.steps[row][column] or [Step(length, 0.0)]
    ends = [0, *(step.end for step in steps)]
    if not all(before < after for before, after in pairwise(ends)) or ends[-1] > length:
        raise ObjectiveError(
            f"steps must end one after the other within a response of {length} tokens, not at {ends[1:]}"
        )
    if not all(0 <= step.importance < float("inf") for step in steps):
        raise ObjectiveError(f"importance must be 0 or more, not {[step.importance for step in steps]}")
    return steps


def _shares(steps: list[Step]) -> Tensor:
    """Each step's share of the importance, (N,) float64 with sum 1."""
    importance = torch.tensor([step.importance for step in steps], dtype=torch.float64)
    total = importance.sum()
    return importance / total if total > 0 else torch.full_like(importance, 1 / len(steps))


def _over_steps(groups: list[list[Tensor]], rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation, both (P, 1), of each group's step rewards; responses weigh the same."""
    mean = rewards.mean(dim=1, keepdim=True)
    spread = [[((steps - centre) ** 2).mean() for steps in group] for group, centre in zip(groups, mean, strict=True)]
    return mean, torch.stack([torch.stack(group) for group in spread]).mean(dim=1, keepdim=True).sqrt()


def _along(signal: Tensor, decay: float) -> Tensor:
    """For each step the mean of its signal and the later ones, each weighing `decay` times the one before; (N,)."""
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    result = []
    for value in signal.flip(0):
        total, weight = value + decay * total, 1 + decay * weight
        result.append(total / weight)
    return torch.stack(result).flip(0)
