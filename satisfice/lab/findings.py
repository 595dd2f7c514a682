"""The four findings about verbose reasoners (arXiv 2505.07961), measured on a lab model.

1. Wrong responses are longer than right ones.
2. At most places where the model could stop and goes on, the end marker is among its five likeliest tokens.
3. Accuracy rises with thinking and then saturates: what would be right if thinking were cut after each paragraph.
4. Thinking repeats itself.

The paper's own definitions are not public for all of these; what is measured here is defined here.
"""

import asyncio
from dataclasses import replace
from statistics import mean
from typing import Any

from satisfice.engines.base import Engine, Sampling
from satisfice.intervention import parse_method
from satisfice.measurement import repetition_share
from satisfice.problems import ProblemSet, grade_answer
from satisfice.thinking import decode
from satisfice.trace import Trace

TOP = 5
MOST_PARAGRAPHS = 8


async def measure(engine: Engine, problems: ProblemSet, sampling: Sampling, seed: int) -> dict[str, Any]:
    """The findings over plain responses to `problems`, as plain data ready for JSON.

    Token counts are in tokens, shares and accuracies between 0 and 1, boundaries are paragraph ends of thinking.
    """
    plain = parse_method("plain")
    traces = await asyncio.gather(
        *(
            plain.solve(engine, problem, replace(sampling, seed=seed + index))
            for index, problem in enumerate(problems.problems)
        )
    )
    right = [
        trace.finished and grade_answer(problem.grader, trace.answer, problem.answer).correct
        for trace, problem in zip(traces, problems.problems, strict=True)
    ]
    lengths = [trace.cost.thinking_tokens for trace in traces]
    ranks = await asyncio.gather(*(_untaken_ranks(engine, trace) for trace in traces))
    untaken = [rank for ranked in ranks for rank in ranked]
    curve = await asyncio.gather(
        *(_accuracy_after(engine, traces, problems, sampling, count) for count in range(1, MOST_PARAGRAPHS + 1))
    )
    repetition = [repetition_share(trace.response_ids[slice(*trace.thinking_span)]) for trace in traces]
    return {
        "n": len(traces),
        "accuracy": round(mean(right), 4),
        "truncated_share": round(mean(not trace.finished for trace in traces), 4),
        "thinking_tokens": round(mean(lengths), 1),
        "thinking_tokens_right": _mean([length for length, good in zip(lengths, right, strict=True) if good]),
        "thinking_tokens_wrong": _mean([length for length, good in zip(lengths, right, strict=True) if not good]),
        "untaken_boundaries": len(untaken),
        "end_marker_in_top_5_at_untaken_boundaries": _mean([float(rank < TOP) for rank in untaken], 4),
        "end_marker_likeliest_at_untaken_boundaries": _mean([float(rank == 0) for rank in untaken], 4),
        "accuracy_after_paragraphs": {count + 1: share for count, share in enumerate(curve)},
        "repeated_8_gram_share": _mean(repetition, 4),
        "repeated_8_gram_share_wrong": _mean(
            [share for share, good in zip(repetition, right, strict=True) if not good], 4
        ),
    }


async def _untaken_ranks(engine: Engine, trace: Trace) -> list[int]:
    """The end marker's rank (0 is likeliest) at each paragraph end of a trace after which the model went on."""
    close = engine.thinking.close_ids(engine.tokenizer)[0]
    places = _paragraph_ends(engine, trace)
    ranks = []
    for place in places:
        if place < len(trace.response_ids) and trace.response_ids[place] != close:
            generation = await engine.generate(
                [*trace.prompt_ids, *trace.response_ids[:place]],
                Sampling(temperature=0, max_tokens=1),
                top_logprobs=50,
            )
            assert generation.top_logprobs is not None
            listed = list(generation.top_logprobs[0])
            ranks.append(listed.index(close) if close in listed else len(listed))
    return ranks


async def _accuracy_after(
    engine: Engine, traces: list[Trace], problems: ProblemSet, sampling: Sampling, count: int
) -> float:
    """Accuracy if thinking were closed after `count` paragraphs; responses with fewer keep what they have."""

    async def answer(trace: Trace, index: int) -> bool:
        problem = problems.problems[index]
        ends = _paragraph_ends(engine, trace)
        cut = ends[count - 1] if len(ends) >= count else None
        if cut is None:
            return trace.finished and grade_answer(problem.grader, trace.answer, problem.answer).correct
        kept = trace.response_ids[:cut]
        closing = engine.thinking.forced_close(engine.tokenizer, decode(engine.tokenizer, kept))
        generation = await engine.generate(
            [*trace.prompt_ids, *kept, *closing], replace(sampling, max_tokens=32, seed=trace.seed)
        )
        text = decode(engine.tokenizer, generation.ids)
        return grade_answer(problem.grader, text, problem.answer).correct

    return round(mean(await asyncio.gather(*(answer(trace, index) for index, trace in enumerate(traces)))), 4)


def _paragraph_ends(engine: Engine, trace: Trace) -> list[int]:
    """Indices just behind each blank line inside thinking."""
    blank = engine.tokenizer.convert_tokens_to_ids("\n\n")
    return [place + 1 for place, token in enumerate(trace.response_ids[: trace.thinking_span[1]]) if token == blank]


def _mean(values: list[Any], digits: int = 1) -> float | None:
    return round(mean(values), digits) if values else None
