"""From the responses of a step to what an objective sees.

Each process grades what it has written and finds in the text what the objective needs to know of it. The numbers of all
processes are put together, so that a group is whole wherever its responses were written.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from satisfice.engines.transformers import TransformersEngine
from satisfice.problems import GraderPool
from satisfice.reinforcement.objective import Need, Rollouts, Step
from satisfice.reinforcement.segments import Judge, estimate_importance, first_right_answer, redundancy, split_steps
from satisfice.thinking import ThinkingFormat, decode
from satisfice.training.responses import Responses, grade_responses
from satisfice.training.step import TrainingStep, local_rows

MEASURED = ("problems", "correct", "lengths", "thinking", "truncated")
"""Numbers that every reader of a response needs, in the order in which `Reader.graded` gives them."""


@dataclass(kw_only=True)
class Reader:
    """Reads the responses of a training.

    Attributes:
        tokenizer: the model's.
        thinking: how the model marks thinking.
        graders: grades answers.
        judge: finds the first right answer in a thinking; comparison of text where it is None.
        ends: ids that end a response.
        engine: opens the policy as it stands, to estimate the importance of steps by it.
        group: responses of a group.
        max_length: the token limit of a response.
    """

    tokenizer: PreTrainedTokenizerBase
    thinking: ThinkingFormat
    graders: GraderPool
    judge: Judge | None
    ends: Collection[int | None]
    engine: Callable[[], AbstractContextManager[TransformersEngine]]
    group: int
    max_length: int

    def rollouts(
        self,
        step: TrainingStep,
        needs: Collection[Need],
        validation_accuracy: float | None,
        cut: Tensor | None = None,
    ) -> tuple[Rollouts, Tensor]:
        """The responses of all processes as an objective sees them, and their (P, G) int64 thinking tokens.

        Args:
            step: asked and written.
            needs: what the objective needs to know.
            validation_accuracy: share of held-out problems that are answered rightly.
            cut: (P, G) int64, to how many tokens each response is cut before it is graded; all of them unless given.
        """
        keep = None if cut is None else local_rows(cut.flatten()).tolist()
        responses, columns = self.graded(step, keep)
        columns |= {
            "levels": [row["level"] for row in step.rows],
            "budgets": [row["budget"] for row in step.rows],
            "direct": [int(direct) for direct in step.direct],
            "explored": [int(explored) for explored in step.explored],
        }
        if Need.BOUNDARY in needs:
            columns |= self.boundaries(step, responses)
        found = gathered(columns, self.group)
        thinking_tokens = found.pop("thinking")
        others: dict[str, Any] = {name: found.pop(name)[:, 0] for name in ("problems", "levels", "budgets")}
        if Need.REFERENCE in needs:
            others["reference_accuracy"] = gathered_shares([row["reference_accuracy"] for row in step.rows], self.group)
        if Need.STEPS in needs:
            others["steps"] = gathered_groups(self.importance(step, responses), self.group)
        rollouts = Rollouts.of(
            found.pop("lengths"),
            found.pop("correct").bool(),
            found.pop("truncated").bool(),
            max_length=self.max_length,
            direct=found.pop("direct").bool(),
            explored=found.pop("explored").bool(),
            validation_accuracy=validation_accuracy,
            **found,
            **others,
        )
        return rollouts, thinking_tokens

    def graded(self, step: TrainingStep, keep: Sequence[int] | None = None) -> tuple[Responses, dict[str, list[int]]]:
        """The responses, cut to `keep` tokens where that is given, and of each its problem, grade and lengths, (B,)."""
        responses = grade_responses(
            step.rows,
            step.responses,
            [prompt.state for prompt in step.prompts],
            tokenizer=self.tokenizer,
            thinking=self.thinking,
            graders=self.graders,
            ends=self.ends,
            keep=keep,
        )
        columns = (
            [row["problem"] for row in step.rows],
            [int(right) for right in responses.correct],
            [len(ids) for ids in responses.ids],
            [split.thinking_tokens for split in responses.splits],
            [int(not done) for done in responses.finished],
        )
        return responses, dict(zip(MEASURED, columns, strict=True))

    def boundaries(self, step: TrainingStep, responses: Responses) -> dict[str, list[int]]:
        """Where the first right answer stands in right responses, and how redundant the rest is, both (B,)."""
        boundaries, counts = [], []
        for row, ids, split, right in zip(step.rows, responses.ids, responses.splits, responses.correct, strict=True):
            boundary = -1
            if right:
                question = row["prompt"][-1]["content"]
                boundary = first_right_answer(self.tokenizer, ids, split.span, question, row["answer"], self.judge)
            boundaries.append(boundary)
            counts.append(redundancy(decode(self.tokenizer, ids[boundary:])) if boundary >= 0 else 0)
        return {"boundaries": boundaries, "redundancy": counts}

    def importance(self, step: TrainingStep, responses: Responses) -> list[list[Step]]:
        """(B,) the steps of each right response's thinking, and how much each moved the policy towards the answer."""

        async def estimated(engine: TransformersEngine, index: int) -> list[Step]:
            if not responses.correct[index]:
                return []
            ids, gold = responses.ids[index], step.rows[index]["answer"]
            ends = split_steps(self.tokenizer, ids, responses.splits[index].span, self.thinking)
            return await estimate_importance(engine, step.prompts[index], ids, ends, gold)

        async def estimate(engine: TransformersEngine) -> list[list[Step]]:
            return await asyncio.gather(*(estimated(engine, index) for index in range(len(step.rows))))

        with self.engine() as engine:
            return asyncio.run(estimate(engine))


def gathered(columns: Mapping[str, Sequence[int]], group: int) -> dict[str, Tensor]:
    """Numbers of this process's responses, (B,) each, as those of all processes, (P, group) int64 each."""
    local = torch.tensor(list(columns.values()), device=PartialState().device).T.contiguous()
    whole: Tensor = gather(local).cpu()
    return {name: whole[:, index].reshape(-1, group) for index, name in enumerate(columns)}


def gathered_shares(shares: Sequence[float], group: int) -> Tensor:
    """A share for each response's prompt, (B,), as that of each prompt of all processes, (P,) float64."""
    # In single precision on the way, because some devices have no double.
    local = torch.tensor(shares, dtype=torch.float64).to(PartialState().device, torch.float32)
    whole: Tensor = gather(local).cpu().double()
    return whole.reshape(-1, group)[:, 0]


def gathered_groups(items: Sequence[Any], group: int) -> list[list[Any]]:
    """Anything of this process's responses, (B,), as that of all processes, P lists of `group`."""
    whole = gather_object(list(items))
    return [whole[start : start + group] for start in range(0, len(whole), group)]
