"""One step of a training as a record, from prompts to advantages.

    asked      what each prompt says about length, and who begins or helps to end its response
    written    the responses
    rewarded   grades, rewards and advantages of all processes' groups

Each stage takes the record and gives one that holds more; none changes what it was given. The trainer (`grpo.py`) has
the stages; what they do is in `writing.py` and `reading.py`. Here is the record, and how its advantages get into TRL's
batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor

from satisfice.intervention.controls import EndScaling
from satisfice.levels import LEVELS
from satisfice.reinforcement.objective import Rollouts, violations
from satisfice.thinking import Prompt


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """A batch of responses. What a later stage finds is empty until then.

    B responses of this process, asked and written:

    Attributes:
        rows: (B,) rows of the data set with what each prompt is told about length: "prompt", "level", "budget".
        prompts: (B,) the same prompts, rendered.
        direct: (B,) bool, which responses begin by closing their thinking.
        controls: (B,) what makes endings likelier while a response is written; None where nothing does.
        responses: (B,) token ids; where thinking was closed for the model, with the tokens that did so.
        beside: what TRL's generation gives beside the responses: log-probabilities where vLLM wrote them.

    P prompts with G responses each, of all processes, on the CPU, rewarded. In a validation G is 1, the reward is
    whether the answer is right, and nothing is learned:

    Attributes:
        correct: (P, G) bool, whether the answer is right.
        rewards: (P, G) float64.
        advantages: (P, G) float64, or (P, G, T) where the objective has one for each token.
        cut: (P, G) int64, how many tokens of each response are learned from; None where nothing is cut.
    """

    rows: list[dict[str, Any]]
    prompts: list[Prompt]
    direct: list[bool]
    controls: list[EndScaling | None]
    responses: list[list[int]] = field(default_factory=list)
    beside: tuple[Any, ...] = ()
    correct: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.bool))
    rewards: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64))
    advantages: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64))
    cut: Tensor | None = None

    @property
    def explored(self) -> list[bool]:
        """(B,) which responses are written with endings made likelier."""
        return [control is not None for control in self.controls]

    @property
    def reward_columns(self) -> Tensor:
        """(P * G, 2) float32, whether each response is right and its reward: the two rewards that TRL shows."""
        return torch.stack([self.correct.flatten().float(), self.rewards.flatten().float()], dim=1)

    @property
    def shown_advantages(self) -> list[float]:
        """(P * G,) the advantage of each response, where it has one for each token their mean."""
        whole = self.advantages.flatten(0, 1)
        each: Tensor = whole if whole.ndim == 1 else whole.sum(1) / (whole != 0).sum(1).clamp(min=1)
        return each.tolist()


def first_row(rows: int) -> int:
    """Place of this process's first response among those of all processes, each of which has so many."""
    return int(PartialState().process_index) * rows


def local_rows(gathered: Tensor) -> Tensor:
    """This process's rows of something that was gathered, (N, ...) to (B, ...)."""
    rows = len(gathered) // PartialState().num_processes
    return gathered[first_row(rows) :][:rows]


def put_advantages(step: TrainingStep, batch: dict[str, Any]) -> dict[str, Any]:
    """TRL's batch with the step's advantages, (B,) or (B, T), and with what was cut off left out of the loss."""
    mask = batch["completion_mask"]
    advantages = local_rows(step.advantages.flatten(0, 1))
    if advantages.ndim == 2:
        advantages = torch.nn.functional.pad(advantages, (0, max(0, mask.shape[1] - advantages.shape[1])))
        advantages = advantages[:, : mask.shape[1]]
    changed = {"advantages": advantages.to(device=mask.device, dtype=torch.float32)}
    if step.cut is not None:
        keep = local_rows(step.cut.flatten()).to(mask.device)
        kept = mask * (torch.arange(mask.shape[1], device=mask.device) < keep[:, None])
        changed |= {"completion_mask": kept, "num_items_in_batch": gather(kept.sum()).sum()}
    return batch | changed


# -- what is logged


def without_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """A micro-batch of TRL's without the columns that are padding in all of its rows.

    TRL pads to the longest prompt and response of the whole step, and few micro-batches hold those. The columns have
    mask 0, so no loss sees them.

    Args:
        batch: with prompts (B, P), padded on the left, and what belongs to response tokens (B, T), padded on the right.
    """
    asked, written = batch["prompt_mask"], batch["completion_mask"]
    first, longest = int((asked.sum(0) == 0).sum()), max(1, int((written.sum(0) > 0).sum()))
    prompts = {name: batch[name][:, first:] for name in ("prompt_ids", "prompt_mask")}
    responses = {
        name: value[:, :longest]
        for name, value in batch.items()
        if name not in prompts and isinstance(value, Tensor) and value.shape == written.shape
    }
    return {**batch, **prompts, **responses}


def training_metrics(rollouts: Rollouts, thinking_tokens: Tensor, rewards: Tensor) -> dict[str, float]:
    """How the model does, by what it wrote by itself; what was written for it stands under names of its own.

    Args:
        rollouts: (P, G) of them.
        thinking_tokens: (P, G) int64.
        rewards: (P, G) float64.
    """
    found: dict[str, float] = {}

    def log(name: str, values: Tensor) -> None:
        if values.numel():
            found[name] = values.double().mean().item()

    for prefix, chosen in (("", rollouts.own), ("explored/", rollouts.explored), ("direct/", rollouts.direct)):
        log(f"{prefix}accuracy", rollouts.correct[chosen])
        log(f"{prefix}tokens", rollouts.lengths[chosen])
        log(f"{prefix}thinking_tokens", thinking_tokens[chosen])
        log(f"{prefix}truncated", rollouts.truncated[chosen])
    found["reward_violations"] = float(violations(rewards, rollouts.correct))
    means = []
    for index, level in enumerate(LEVELS):
        asked = (rollouts.levels == index)[:, None] & rollouts.own
        if bool(asked.any()):
            log(f"levels/{level}/accuracy", rollouts.correct[asked])
            log(f"levels/{level}/tokens", rollouts.lengths[asked])
            log(f"levels/{level}/truncated", rollouts.truncated[asked])
            means.append(rollouts.lengths[asked].double().mean().item())
    if len(means) == len(LEVELS):
        found["levels/ordered"] = float(means[0] < means[1] < means[2])
    return found


def validation_metrics(measured: Sequence[Sequence[float]]) -> dict[str, float]:
    """Means over the problems of a validation.

    Args:
        measured: a row for each response, with the columns of `reading.MEASURED`: the problem, then its numbers.
    """
    by_problem: dict[float, list[Sequence[float]]] = {}
    for problem, *numbers in measured:
        by_problem.setdefault(problem, []).append(numbers)
    # A problem that filled up the last batch of several processes was answered more than once.
    means = torch.tensor([torch.tensor(rows).double().mean(0).tolist() for rows in by_problem.values()]).mean(0)
    names = ("accuracy", "tokens", "thinking_tokens", "truncated")
    found = dict(zip(names, means.tolist(), strict=True))
    return {**found, "reward": found["accuracy"]}
