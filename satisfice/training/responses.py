"""What every binding to a training library shares: rows of a data set going in, graded responses coming out."""

import atexit
import functools
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from satisfice.levels import LEVELS, with_instruction
from satisfice.problems import GraderPool, Problem
from satisfice.reinforcement.objective import Condition, Need, Objective, ObjectiveError
from satisfice.thinking import Phase, Split, ThinkingFormat


def training_rows(
    problems: Sequence[Problem],
    prompts: int,
    *,
    instruction: str = "",
    reference_accuracy: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """The prompts of a training: problems in their order, repeated until there are `prompts` rows.

    Args:
        problems: what to ask.
        prompts: how many rows.
        instruction: text after each question and before the objective's own, as in `satisfice compare`.
        reference_accuracy: share of right answers of the untrained model, one a problem.
    """
    rows = []
    for row in range(prompts):
        index = row % len(problems)
        problem = problems[index]
        messages = [{"role": "user", "content": with_instruction(problem.prompt, instruction)}]
        if problem.system:
            messages.insert(0, {"role": "system", "content": problem.system})
        rows.append(
            {
                "prompt": messages,
                "problem": index,
                "problem_id": problem.id,
                "answer": problem.answer,
                "grader": problem.grader,
                "reference_accuracy": -1.0 if reference_accuracy is None else float(reference_accuracy[index]),
            }
        )
    return rows


def under(row: Mapping[str, Any], condition: Condition) -> dict[str, Any]:
    """A row with what its prompt is told about length: the text after its question, the level and the budget."""
    *before, question = row["prompt"]
    asked = {**question, "content": with_instruction(question["content"], condition.instruction)}
    level = -1 if condition.level is None else LEVELS.index(condition.level)
    return {**row, "prompt": [*before, asked], "level": level, "budget": condition.budget or 0}


def with_conditions(rows: Sequence[Mapping[str, Any]], objective: Objective, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose conditions are drawn once and for all, for trainings that take a finished data set.

    Args:
        rows: from `training_rows`, or any with chat messages under "prompt".
        objective: draws the conditions.
        seed: of the draws.

    Raises:
        ObjectiveError: what this objective tells prompts changes as the training goes on.
    """
    check_fixed_conditions(objective)
    rng = random.Random(seed)
    return [under(row, objective.condition(rng)) for row in rows]


def unmet_needs(objective: Objective, given: Collection[Need]) -> str:
    """What this objective needs beyond what is given, for a sentence; "" where nothing is."""
    return " and ".join(sorted(objective.needs - set(given)))


def check_fixed_conditions(objective: Objective) -> None:
    """Refuse an objective that needs new prompts as the training goes on, where the data set is finished before.

    Raises:
        ObjectiveError: it is one.
    """
    if objective.draws_conditions and objective.follows_training:
        raise ObjectiveError(
            f"{objective.name} changes what prompts say as the training goes on, which a finished data set cannot "
            "follow: train with `satisfice train` or LengthGRPOTrainer"
        )


@dataclass(frozen=True)
class Responses:
    """Graded responses, in the order in which they were given.

    Attributes:
        ids: token ids of each, as far as it was kept.
        splits: into thinking and answer.
        finished: whether it came to an end, by itself or by being cut.
        correct: whether its answer is right; never for one that is not finished.
    """

    ids: list[list[int]]
    splits: list[Split]
    finished: list[bool]
    correct: list[bool]


def grade_responses(
    rows: Sequence[Mapping[str, Any]],
    completion_ids: Sequence[Sequence[int]],
    states: Sequence[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    thinking: ThinkingFormat,
    graders: GraderPool,
    ends: Collection[int | None],
    keep: Sequence[int] | None = None,
) -> Responses:
    """Split and grade responses.

    Args:
        rows: "grader", "answer" and "problem_id" of each response's problem.
        completion_ids: token ids of each response.
        states: of the thinking format's automaton at the end of each prompt.
        tokenizer: the model's.
        thinking: how the model marks thinking.
        graders: grades the answers.
        ends: ids that end a response.
        keep: how many tokens of each response count; all unless given. One that was cut is judged by what is left of
            it.

    Raises:
        GraderError: a grader does not exist or does not fit its problem.
    """
    keep = [len(ids) for ids in completion_ids] if keep is None else keep
    kept, splits, finished = [], [], []
    for whole, state, size in zip(completion_ids, states, keep, strict=True):
        ids = list(whole[:size])
        ended = bool(ids) and ids[-1] in ends
        kept.append(ids)
        splits.append(thinking.split(tokenizer, ids[:-1] if ended else ids, state))
        finished.append(ended or len(ids) < len(whole))
    grades = graders.grade_all(
        [
            {
                "grader": row["grader"],
                "answer": split.answer,
                "gold": row["answer"],
                "finished": done,
                "problem_id": row["problem_id"],
            }
            for row, split, done in zip(rows, splits, finished, strict=True)
        ]
    )
    return Responses(kept, splits, finished, [grade.correct for grade in grades])


def opened_by_template(tokenizer: PreTrainedTokenizerBase, thinking: ThinkingFormat) -> bool:
    """Whether a chat template opens thinking by itself, so that a response begins in the middle of it."""
    asked = replace(thinking, force_open=False).render(tokenizer, [{"role": "user", "content": "?"}])
    return thinking.automaton(tokenizer).phase(asked.state) is Phase.THINKING


def state_after(tokenizer: PreTrainedTokenizerBase, thinking: ThinkingFormat, prompt: str) -> int:
    """The state of the thinking's automaton at the end of a prompt that is given as text.

    Only what stands where the response begins decides: what the text holds before it, such as an example of a response
    or a question about markers, opens and closes nothing. Where the tokenizer has a chat template that begins a
    response with a header, the response begins after the last one of these. Elsewhere a marker counts at the very end.
    """
    automaton = thinking.automaton(tokenizer)
    if tokenizer.chat_template:
        asked = replace(thinking, force_open=False).render(tokenizer, [{"role": "user", "content": _QUESTION}])
        header = asked.text.rpartition(_QUESTION)[2].partition(thinking.open)[0]
        if header.strip() and header in prompt:
            return automaton.run_text(prompt.rpartition(header)[2])
    end = prompt.rstrip()
    last = next((marker for marker in (thinking.open, thinking.close) if end.endswith(marker)), "")
    return automaton.run_text(last)


_QUESTION = "satisfice-question"
"""A text that no template writes, to find where the user's words end in a rendered prompt."""


@functools.cache
def shared_graders() -> GraderPool:
    """The grader pool of this process, for code that has no place to close one; it ends with the process."""
    pool = GraderPool()
    atexit.register(pool.close)
    return pool
