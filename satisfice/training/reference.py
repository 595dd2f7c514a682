"""How often the untrained model solves each training problem, for objectives that need to know (`Need.REFERENCE`)."""

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.levels import with_instruction
from satisfice.problems import GraderPool, Problem
from satisfice.thinking import ThinkingFormat
from satisfice.training.recipe import Recipe


def reference_accuracy(
    recipe: Recipe,
    problems: Sequence[Problem],
    instruction: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    thinking: ThinkingFormat,
    out: Path,
) -> list[float]:
    """The share of right answers that the untrained model gives to each problem, measured once and kept in `out`.

    Args:
        recipe: how many responses are sampled, and how.
        problems: what to ask.
        instruction: text after each question.
        model: the untrained model; put into training mode again at the end.
        tokenizer: the model's.
        thinking: how the model marks thinking.
        out: directory of the training.
    """
    engine = TransformersEngine(model, tokenizer, thinking=thinking, threads=recipe.threads)
    asked = [recipe.reference_samples, recipe.max_tokens, recipe.temperature, recipe.top_p, instruction, engine.digest]
    text = json.dumps([*asked, [[problem.prompt, problem.answer] for problem in problems]])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = out / "reference.json"
    try:
        if path.exists() and (kept := json.loads(path.read_text()))["key"] == key:
            return [float(share) for share in kept["accuracy"]]
        with GraderPool() as graders:
            accuracy = asyncio.run(_measure(engine, recipe, problems, instruction, graders))
    finally:
        engine.close()
        model.train()
    if int(os.environ.get("RANK", 0)) == 0:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"key": key, "samples": recipe.reference_samples, "accuracy": accuracy}))
    return accuracy


async def _measure(
    engine: TransformersEngine,
    recipe: Recipe,
    problems: Sequence[Problem],
    instruction: str,
    graders: GraderPool,
) -> list[float]:
    gate = asyncio.Semaphore(4 * engine.max_batch)

    async def right(index: int, problem: Problem, sample: int) -> bool:
        messages = [{"role": "user", "content": with_instruction(problem.prompt, instruction)}]
        prompt = engine.thinking.render(engine.tokenizer, messages)
        sampling = Sampling(
            temperature=recipe.temperature,
            top_p=recipe.top_p,
            max_tokens=recipe.max_tokens,
            seed=recipe.seed + index * recipe.reference_samples + sample,
        )
        async with gate:
            generation = await engine.generate(prompt.ids, sampling)
        done = generation.finish == "stop"
        split = engine.thinking.split(engine.tokenizer, generation.ids[:-1] if done else generation.ids, prompt.state)
        grade = await graders.grade(
            grader=problem.grader, answer=split.answer, gold=problem.answer, finished=done, problem_id=problem.id
        )
        return grade.correct

    async def share(index: int, problem: Problem) -> float:
        verdicts = await asyncio.gather(*(right(index, problem, k) for k in range(recipe.reference_samples)))
        return sum(verdicts) / recipe.reference_samples

    return list(await asyncio.gather(*(share(index, problem) for index, problem in enumerate(problems))))
