"""What an objective is: a pure function from groups of rollouts to rewards and advantages.

An objective sees gathered groups and nothing else: no trainer, no tokenizer, no process, no text. Whoever trains
(TRL, verl, a test) fills in `Rollouts`, and gets rewards and advantages back. What changes during training, a
schedule, a phase, a target, is the objective's state: it changes in `update` only, from gathered numbers only, so
every process holds the same, and it is saved and restored with the checkpoint.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar, Literal

from satisfice.lazy import Tensor, torch
from satisfice.parameters import check_parameters

Normalisation = Literal["group-std", "group-mean", "batch", "leave-one-out"]
"""How rewards become advantages; see `normalise`."""

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
"""How the losses of tokens are added up, by TRL's names."""

EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as TRL does. Rewards that differ by much less are lost in it."""


class ObjectiveError(ValueError):
    """An objective or a parameter that does not exist or does not fit, or rollouts that it cannot reward."""


class Need(StrEnum):
    """What an objective cannot do without. Whoever trains refuses an objective whose needs it cannot meet."""

    BOUNDARY = "boundary"
    """`Rollouts.boundaries` and `Rollouts.redundancy`."""
    STEPS = "steps"
    """`Rollouts.steps`."""
    REFERENCE = "reference"
    """`Rollouts.reference_accuracy`."""
    VALIDATION = "validation"
    """`Rollouts.validation_accuracy`, measured before the first step and again and again after it."""
    DIRECT = "direct"
    """A share of each group, `direct_share`, that is made to answer without thinking, and `Rollouts.direct`."""
    BUDGET = "budget"
    """A budget in each prompt, drawn from `condition`, and `Rollouts.budgets`."""
    LOSS_TYPE = "loss type"
    """That the losses of tokens are added up as `loss_type` says."""
    OWN = "own rollouts"
    """Some rollouts of each group that the model wrote by itself (`Rollouts.own`): a schedule reads them."""


@dataclass(frozen=True)
class Condition:
    """What all rollouts of one prompt are told about length.

    Attributes:
        instruction: text after the question, in the same turn; "" for none.
        level: one of `satisfice.levels.LEVELS`, None for none.
        budget: tokens, None for none.
    """

    instruction: str = ""
    level: str | None = None
    budget: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """P prompts with G responses each, gathered from all processes. Everything lives on the CPU.

    Attributes:
        lengths: (P, G) int64, tokens of each response, thinking and answer; a truncated one at its full length.
        correct: (P, G) bool, whether its answer was graded as right; never for a truncated one.
        truncated: (P, G) bool, whether it ran into the token limit.
        max_length: the token limit.
        problems: (P,) int64, which problem each prompt asks; the same number for the same problem.
        levels: (P,) int64, index into `satisfice.levels.LEVELS`, -1 for none.
        budgets: (P,) int64 tokens, 0 for none.
        direct: (P, G) bool, which responses were made to answer without thinking.
        explored: (P, G) bool, which responses were written with endings made likelier; never one that is direct.
        boundaries: (P, G) int64, tokens up to and including the first right answer in the response, for objectives that
            need "boundary"; -1 where there is none.
        redundancy: (P, G) int64, phrases of self-reflection after that boundary, counted with it.
        steps: for objectives that need "steps": P lists of G responses, each a list of `Step`; empty where thinking has
            none.
        reference_accuracy: (P,) float64, share of right answers that the frozen model from before the training gives to
            each problem; None unless the objective needs "reference".
        validation_accuracy: share of held-out problems that are answered rightly, None before the first
            validation; for objectives that need "validation".
    """

    lengths: Tensor
    correct: Tensor
    truncated: Tensor
    max_length: int
    problems: Tensor
    levels: Tensor
    budgets: Tensor
    direct: Tensor
    explored: Tensor
    boundaries: Tensor
    redundancy: Tensor
    steps: list[list[list["Step"]]] = field(default_factory=list)
    reference_accuracy: Tensor | None = None
    validation_accuracy: float | None = None

    @classmethod
    def of(
        cls,
        lengths: Tensor,
        correct: Tensor,
        truncated: Tensor | None = None,
        *,
        max_length: int | None = None,
        **others: Any,
    ) -> "Rollouts":
        """Rollouts with everything that is not given left empty.

        Raises:
            ObjectiveError: shapes do not agree, or a truncated response counts as correct.
        """
        lengths, correct = torch.as_tensor(lengths).long(), torch.as_tensor(correct).bool()
        if lengths.ndim != 2 or correct.shape != lengths.shape:
            raise ObjectiveError(
                f"rollouts need lengths and correct of one shape (prompts, responses), not {tuple(lengths.shape)} and "
                f"{tuple(correct.shape)}"
            )
        prompts = lengths.shape[0]
        truncated = torch.zeros_like(correct) if truncated is None else torch.as_tensor(truncated).bool()
        if bool((truncated & correct).any()):
            raise ObjectiveError("a truncated response has no answer: grade it as wrong")
        given: dict[str, Any] = {
            "problems": torch.arange(prompts),
            "levels": torch.full((prompts,), -1),
            "budgets": torch.zeros(prompts, dtype=torch.int64),
            "direct": torch.zeros_like(correct),
            "explored": torch.zeros_like(correct),
            "boundaries": torch.full_like(lengths, -1),
            "redundancy": torch.zeros_like(lengths),
            **others,
        }
        return cls(
            lengths=lengths,
            correct=correct,
            truncated=truncated,
            max_length=int(lengths.max()) if max_length is None else max_length,
            **given,
        )

    @property
    def own(self) -> Tensor:
        """(P, G) bool, which responses the model wrote by itself: what says how good and how long it is by now.

        Those that are direct or explored are learned from like these, but they are not what the model would write.
        """
        return ~(self.direct | self.explored)


@dataclass(frozen=True)
class Step:
    """One step of a thinking.

    Attributes:
        end: tokens of the response up to and including this step.
        importance: how much the step moved the model towards the right answer; 0 or more.
    """

    end: int
    importance: float


class Objective(ABC):
    """A named way to reward length. Subclasses are dataclasses; their fields are the parameters.

    Annotations state the parameters' bounds, and are checked here. A subclass with rules or state of its own writes a
    `__post_init__` that begins with `super().__post_init__()`.

    Class attributes:
        name: as spelled in recipes.
        summary: what it does, in one line.
        paper: arXiv number and name, or "" for one without.
        normalisation: how its rewards become advantages.
        needs: what it cannot do without. Whoever trains refuses an objective whose needs it cannot meet.
        direct_share: share of each group that is made to answer without thinking; above 0 where that is needed.
        loss_type: how the losses of tokens are to be added up; None where the method does not say.
        per_token: whether `token_advantages` gives something.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    normalisation: ClassVar[Normalisation] = "group-std"
    needs: ClassVar[frozenset[Need]] = frozenset()
    direct_share: ClassVar[float] = 0.0
    loss_type: ClassVar[LossType | None] = None
    per_token: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_parameters(self, self.name, ObjectiveError)

    @property
    def instructions(self) -> dict[str, str]:
        """The text after the question by level, in the order of `satisfice.levels.LEVELS`; empty without levels."""
        return {}

    def obstacle(self, max_length: int) -> str:
        """Why it cannot work on responses of at most so many tokens, in a sentence; "" where it can."""
        return ""

    def condition(self, rng: random.Random) -> Condition:
        """What the next prompt is told about length; all rollouts of its group share it."""
        return Condition()

    def update(self, rollouts: Rollouts) -> None:  # noqa: B027 -- most objectives have no state
        """Bring the state up to date with the rollouts of a new step, before they are rewarded."""

    def cut(self, rollouts: Rollouts) -> Tensor | None:
        """(P, G) int64: tokens that each response is cut to before it is graded again; None where nothing is cut."""
        return None

    @abstractmethod
    def rewards(self, rollouts: Rollouts) -> Tensor:
        """(P, G) float64."""

    def advantages(self, rollouts: Rollouts, rewards: Tensor) -> Tensor:
        """(P, G) float64, by `normalisation` unless the objective has its own."""
        return normalise(rewards, self.normalisation)

    def token_advantages(self, rollouts: Rollouts, advantages: Tensor) -> Tensor | None:
        """(P, G, T) float64 with T the longest of `lengths`, 0 after a response's end; None where every token of a
        response has its response's advantage."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data, for JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ObjectiveError: the state is not one of this objective.
        """
        if state:
            raise ObjectiveError(f"{self.name} has no state, but the checkpoint holds {', '.join(sorted(state))}")

    def inactive(self, rollouts: Rollouts) -> str:
        """One sentence where the length term cannot act at present, "" where it can."""
        return ""

    # What whoever trains must know of a method before the first rollout. It follows from which of the methods above an
    # objective has of its own, so that there is nothing to declare and nothing to forget.

    @property
    def draws_conditions(self) -> bool:
        """Whether it tells prompts anything about length (`condition`)."""
        return type(self).condition is not Objective.condition

    @property
    def follows_training(self) -> bool:
        """Whether it has a state that moves with the training (`update`)."""
        return type(self).update is not Objective.update

    @property
    def cuts_responses(self) -> bool:
        """Whether it may cut responses and have them graded again (`cut`)."""
        return type(self).cut is not Objective.cut

    @property
    def own_advantages(self) -> bool:
        """Whether its advantages are others than `normalisation` makes of its rewards."""
        return type(self).advantages is not Objective.advantages or self.per_token

    def __str__(self) -> str:
        """The name and every parameter that is not its default."""
        changed = [
            f"{parameter.name}={getattr(self, parameter.name)}"
            for parameter in fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
            if parameter.init and getattr(self, parameter.name) != parameter.default
        ]
        return f"{self.name}:{','.join(changed)}" if changed else self.name


def normalise(rewards: Tensor, how: Normalisation) -> Tensor:
    """Advantages from (P, G) rewards.

    * "group-std": minus the group's mean, divided by its standard deviation (sample form) plus `EPSILON` (GRPO).
    * "group-mean": minus the group's mean (Dr. GRPO).
    * "batch": minus the group's mean, then divided by the standard deviation of the whole batch plus `EPSILON` (DLER,
      REINFORCE++ with a baseline).
    * "leave-one-out": minus the mean of the group's other rewards (RLOO).

    A group of one has advantage 0, under every one of them, and so has a group of equal rewards.
    """
    # Rounding in the mean would leave a group of equal rewards with advantages of 1e-16, which are not zero.
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    centred = (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(equal, 0.0)
    size = rewards.shape[1]
    if size == 1:
        return torch.zeros_like(rewards)
    if how == "group-std":
        return centred / (rewards.std(dim=1, keepdim=True) + EPSILON)
    if how == "batch":
        return centred / (centred.std() + EPSILON)
    if how == "leave-one-out":
        return centred * size / (size - 1)
    return centred


def over_tokens(advantages: Tensor, lengths: Tensor) -> Tensor:
    """(P, G) advantages spread over (P, G, T) tokens, 0 after each response's end."""
    columns = torch.arange(int(lengths.max()))
    return advantages[..., None] * (columns < lengths[..., None])


def violations(rewards: Tensor, correct: Tensor) -> int:
    """How many wrong responses are rewarded at least as much as a right one of their group."""
    lowest_right = rewards.masked_fill(~correct, float("inf")).amin(dim=1, keepdim=True)
    return int(((rewards >= lowest_right) & ~correct).sum())


def among_correct(lengths: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation, both (P, 1) float64, of the lengths of each group's right responses.

    Both are 0 where there is none; the deviation is 0 where there is one.
    """
    weight = correct.double()
    count = weight.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (lengths * weight).sum(dim=1, keepdim=True) / count
    variance = ((lengths - mean) ** 2 * weight).sum(dim=1, keepdim=True) / count
    return mean, variance.sqrt()


def stated_budgets(name: str, rollouts: Rollouts) -> Tensor:
    """(P, 1) float64, the budget that each prompt states.

    Raises:
        ObjectiveError: a prompt states none, though the objective of that name goes by it.
    """
    without = (rollouts.budgets < 1).nonzero()
    if len(without):
        raise ObjectiveError(
            f"{name} rewards a response by the budget in its prompt, and prompt {int(without[0])} of this batch states "
            f"none: draw the conditions of all prompts from this objective"
        )
    return rollouts.budgets.double()[:, None]
