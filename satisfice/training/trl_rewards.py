"""An objective as a reward function for TRL's own trainers, where nothing but the reward function can be changed.

TRL computes the advantages itself, shows a reward function only the responses of its own process, and saves no state
for it. Objectives that need more than that are refused here; `LengthGRPOTrainer` trains them all.
"""

import json
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, RLOOConfig

from satisfice.engines.checkpoint import end_of_text_ids
from satisfice.problems import GraderPool
from satisfice.reinforcement.objective import Need, Objective, ObjectiveError, Rollouts, violations
from satisfice.thinking import ThinkingFormat
from satisfice.training.alarms import Alarms
from satisfice.training.responses import (
    grade_responses,
    shared_graders,
    state_after,
    unmet_needs,
)

SCALE_REWARDS = {"group-std": "group", "group-mean": "none", "leave-one-out": "none"}
"""The `scale_rewards` under which GRPO's advantages are those of an objective's normalisation.

"none" gives "leave-one-out" times (G - 1) / G, the same for all responses; `RLOOTrainer` gives it exactly.
"""

_INSTEAD = "train with `satisfice train` or LengthGRPOTrainer"


def as_reward_function(
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    args: GRPOConfig | RLOOConfig,
    *,
    answer: str = "answer",
    grader: str = "math",
    thinking: ThinkingFormat | None = None,
    model: str | PreTrainedModel | None = None,
    ends: Collection[int] = (),
    graders: GraderPool | None = None,
) -> "RewardFunction":
    """A reward function for `GRPOTrainer` or `RLOOTrainer`.

        objective = objective_from("laser", {"target": 2000})
        args = GRPOConfig(num_generations=8, scale_rewards="group", max_completion_length=4096, ...)
        reward = as_reward_function(objective, tokenizer, args)
        GRPOTrainer(model, reward_funcs=[reward], args=args, processing_class=tokenizer, train_dataset=...)

    Set `scale_rewards="group"` for an objective with the normalisation "group-std" and "none" for "group-mean" and
    "leave-one-out". `RLOOConfig` fits the last two as it is.

    The data set has the gold answer in the column `answer`. Columns "grader" and "problem_id", as `training_rows` makes
    them, are read where they are there; so are "level" and "budget", which objectives that put something about length
    into the prompt cannot do without: make them with `with_conditions`.

    Args:
        objective: one without a state and without advantages of its own.
        tokenizer: the one that the trainer gets as `processing_class`.
        args: the trainer's configuration.
        answer: the column of the gold answer.
        grader: grades the answers where there is no such column; one of `satisfice.problems.GRADERS`.
        thinking: how the model marks thinking; detected from the tokenizer unless given.
        model: the model or where it comes from; its generation config says which tokens end a response, often more
            than the tokenizer's one. Looked for where the tokenizer comes from unless given.
        ends: further ids that end a response.
        graders: one that is shared by the process unless given.

    Raises:
        ObjectiveError: TRL cannot give what the objective needs, or `args` would change what it rewards.
    """
    _check(objective, args)
    return RewardFunction(
        objective,
        tokenizer,
        size=int(args.num_generations),
        max_length=int(args.max_completion_length),
        answer=answer,
        grader=grader,
        thinking=thinking or ThinkingFormat.detect(tokenizer),
        ends={*_ends(model, tokenizer), *ends},
        graders=graders,
    )


def _ends(model: str | PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a response."""
    if isinstance(model, PreTrainedModel):
        return end_of_text_ids(model.generation_config, tokenizer)
    place = model or tokenizer.name_or_path
    try:
        return end_of_text_ids(GenerationConfig.from_pretrained(place) if place else None, tokenizer)
    except (OSError, ValueError) as error:
        if model:
            raise ObjectiveError(
                f"which tokens end a response of {model} cannot be read ({' '.join(str(error).split())}): pass the "
                "model itself, or name them with ends=..."
            ) from error
        return end_of_text_ids(None, tokenizer)  # a tokenizer alone


class RewardFunction:
    """What `as_reward_function` makes; can be pickled unless it was given graders of its own."""

    def __init__(
        self,
        objective: Objective,
        tokenizer: PreTrainedTokenizerBase,
        *,
        size: int,
        max_length: int,
        answer: str,
        grader: str,
        thinking: ThinkingFormat,
        ends: Collection[int],
        graders: GraderPool | None,
    ) -> None:
        self.__name__ = objective.name
        self.objective = objective
        self._alarms = Alarms(warnings.warn)
        self._tokenizer = tokenizer
        self._size = size
        self._max_length = max_length
        self._answer = answer
        self._grader = grader
        # TRL renders the prompts, and opens no thinking that the template does not open.
        self._thinking = replace(thinking, force_open=False)
        self._ends = {tokenizer.pad_token_id, *ends}
        self._graders = graders

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[float]:
        """The rewards of this process's responses.

        Raises:
            ObjectiveError: a group is spread over several processes, or the data lacks a column.
        """
        self._check_layout(prompts)
        responses = grade_responses(
            self._rows(len(prompts), columns),
            completion_ids,
            self._states(prompts),
            tokenizer=self._tokenizer,
            thinking=self._thinking,
            graders=self._graders or shared_graders(),
            ends=self._ends,
        )
        told = {}
        if self.objective.draws_conditions:
            for column, name in (("level", "levels"), ("budget", "budgets")):
                if column not in columns:
                    raise ObjectiveError(
                        f"{self.objective.name} goes by what its prompts are told about length, and the data has no "
                        f"column {column!r}: make its rows with satisfice.training.responses.with_conditions"
                    )
                told[name] = torch.tensor(columns[column][:: self._size], dtype=torch.int64)
        rollouts = Rollouts.of(
            torch.tensor([len(ids) for ids in responses.ids]).reshape(-1, self._size),
            torch.tensor(responses.correct).reshape(-1, self._size),
            ~torch.tensor(responses.finished).reshape(-1, self._size),
            max_length=self._max_length,
            **told,
        )
        rewards = self.objective.rewards(rollouts)
        self._alarms.check(self.objective, rollouts, rewards)
        if log := columns.get("log_metric"):
            log("accuracy", rollouts.correct.double().mean().item())
            log("truncated", rollouts.truncated.double().mean().item())
            log("reward_violations", float(violations(rewards, rollouts.correct)))
        return [float(reward) for reward in rewards.flatten()]

    def _check_layout(self, prompts: Sequence[Any]) -> None:
        size = self._size
        whole = len(prompts) % size == 0
        if not whole or any(prompts[row] != prompts[row - row % size] for row in range(len(prompts))):
            raise ObjectiveError(
                f"{self.objective.name} compares the responses of a group, but the {len(prompts)} responses of this "
                f"process are not whole groups of num_generations={size}: let num_generations divide "
                "per_device_train_batch_size times gradient_accumulation_steps on each process (and "
                f"per_device_eval_batch_size), or {_INSTEAD}"
            )

    def _rows(self, count: int, columns: dict[str, Any]) -> list[dict[str, Any]]:
        if self._answer not in columns:
            raise ObjectiveError(
                f"the data has no column {self._answer!r} with the gold answers: name the right one with answer=..."
            )
        graders = columns.get("grader", [self._grader] * count)
        ids = columns.get("problem_id", [""] * count)
        return [
            {"answer": str(gold), "grader": grader, "problem_id": problem_id}
            for gold, grader, problem_id in zip(columns[self._answer], graders, ids, strict=True)
        ]

    def _states(self, prompts: Sequence[Any]) -> list[int]:
        """The thinking automaton's state at the end of each prompt; a group shares one prompt."""
        states: dict[str, int] = {}
        for prompt in prompts[:: self._size]:
            states[json.dumps(prompt)] = (
                state_after(self._tokenizer, self._thinking, prompt)
                if isinstance(prompt, str)
                else self._thinking.render(self._tokenizer, prompt).state
            )
        return [states[json.dumps(prompt)] for prompt in prompts]


def _check(objective: Objective, args: GRPOConfig | RLOOConfig) -> None:
    """Refuse, before anything is trained, what TRL's own trainers cannot do or would undo."""
    name = objective.name
    # All responses are the model's own there, budgets come from `with_conditions`, and the loss is in `args`.
    if needs := unmet_needs(objective, {Need.OWN, Need.BUDGET, Need.LOSS_TYPE}):
        raise ObjectiveError(f"{name} needs {needs}, which TRL does not give: {_INSTEAD}")
    if obstacle := objective.obstacle(int(args.max_completion_length)):
        raise ObjectiveError(obstacle)
    loss = args.loss_type if isinstance(args, GRPOConfig) else objective.loss_type  # RLOOConfig has none
    if objective.loss_type not in (None, loss):
        warnings.warn(
            f"{name} is described with the loss {objective.loss_type} and trained under {loss}, so only a part of the "
            f"method is in force: set loss_type={objective.loss_type!r}",
            stacklevel=3,
        )
    if objective.follows_training:
        raise ObjectiveError(
            f"{name} has a state that follows the training, and TRL would neither share it among processes nor save "
            f"it: {_INSTEAD}"
        )
    if objective.cuts_responses:
        raise ObjectiveError(f"{name} cuts responses, which a reward function cannot: {_INSTEAD}")
    if objective.own_advantages or objective.normalisation not in SCALE_REWARDS:
        raise ObjectiveError(
            f"{name} has advantages of its own, and TRL would compute others from its rewards: {_INSTEAD}"
        )
    if isinstance(args, RLOOConfig):
        given, wanted = ("batch" if args.normalize_advantages else "none"), SCALE_REWARDS[objective.normalisation]
        setting = "normalize_advantages=False" if wanted == "none" else "GRPOConfig with scale_rewards='group'"
    else:
        given, wanted = args.scale_rewards, SCALE_REWARDS[objective.normalisation]
        setting = f"scale_rewards={wanted!r}"
    if given != wanted:
        raise ObjectiveError(f"the advantages of {name} are by {objective.normalisation}: use {setting}")
    if isinstance(args, GRPOConfig) and args.multi_objective_aggregation != "sum_then_normalize":
        raise ObjectiveError(
            f"normalize_then_sum would change the advantages of {name}: use "
            "multi_objective_aggregation='sum_then_normalize'"
        )
    if args.num_generations_eval not in (None, args.num_generations):
        raise ObjectiveError(
            f"a reward function is not told when it validates: leave out num_generations_eval, so that groups are "
            f"{args.num_generations} there too"
        )
