"""Is this model verbose, and where should it have stopped? The calls that find out, and the readings of a run.

A run alone says how long right and wrong responses are, how many are cut off or loop, and which answers the thinking
states on its way. With the model at hand each boundary is asked: what would it answer if its thinking were closed
here, and how likely was it to close it itself? The numbers are put together in `satisfice.measurement.diagnosis`.

These are the findings of arXiv 2505.07961 about verbose reasoners; its definitions are not public for all of them, so
what is measured is defined here.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from satisfice.engines.base import Capability, Engine, EngineError, Sampling
from satisfice.intervention.answers import canonical
from satisfice.intervention.probing import boxed
from satisfice.measurement.advice import Advice, advise
from satisfice.measurement.columns import Columns
from satisfice.measurement.course import Course
from satisfice.measurement.diagnosis import Diagnosis, diagnose
from satisfice.problems import GraderPool
from satisfice.problems.stated import stated_answers
from satisfice.runs.run_folder import Run
from satisfice.thinking import decode, encode_after, token_bytes
from satisfice.trace import Trace

CUE = "The answer is \\boxed{"
"""What stands after the closed thinking of a trial answer; the model fills the box."""

MOST_READ = 1_000
"""Responses whose texts are read for answers, unless told otherwise: evenly over the run."""
MOST_ASKED = 100
"""Responses that are followed with the model, unless told otherwise."""
MOST_BOUNDARIES = 12
"""Boundaries of a thinking that are asked at most, evenly over it; besides the one before any thinking."""
ANSWER_TOKENS = 32
"""Tokens of a trial answer at most."""
LISTED = 50
"""Likeliest tokens among which the end marker is looked for."""


def of_run(run: Run, method: str | None = None, courses: Sequence[Course] | None = None) -> Diagnosis:
    """The diagnosis of one method of a run, from what the run holds and the courses that were followed with a model.

    Args:
        run: the run.
        method: as spelled; the baseline of the run unless given.
        courses: of the model; where there are none, those that the texts state are read.

    Raises:
        ValueError: the run has no such method, or no trace of it, or one without a grade.
    """
    method = method_of(run, method)
    columns = Columns.of(run.traces[method])
    if (row := columns.ungraded) is not None:
        problem, sample = columns.row(row)
        raise ValueError(f"{method!r} on problem {problem!r}, sample {sample} has no grade: grade the run first")
    if courses is None:
        courses = [read_course(trace) for trace in spread(run.traces[method], MOST_READ)]
    return diagnose(
        columns,
        courses,
        model=str(run.config.get("model", "")),
        problems=str((run.config.get("problems") or {}).get("name", "")),
        method=method,
        cap=(run.config.get("sampling") or {}).get("max_tokens"),
    )


def method_of(run: Run, method: str | None) -> str:
    """The method that is meant.

    Raises:
        ValueError: the run has none of that name.
    """
    method = method or run.config.get("baseline") or run.config["methods"][0]
    if method not in run.traces:
        raise ValueError(f"{run.folder} has no method {method!r}, but {', '.join(run.traces)}")
    return method


def spread(traces: Sequence[Trace], most: int) -> list[Trace]:
    """At most so many traces, evenly over all."""
    places = np.linspace(0, len(traces) - 1, min(most, len(traces))).round().astype(int)
    return [traces[int(place)] for place in places]


def read_course(trace: Trace) -> Course:
    """The course of a thinking as its text states it. Places in tokens are in proportion to characters."""
    grader = trace.grade.grader if trace.grade is not None else "math"
    gold, final = answer_key(trace.expected), _final(trace)
    tokens, characters = trace.cost.thinking_tokens, max(1, len(trace.thinking))
    # A right answer may be spelled otherwise than the gold one.
    right_keys = {gold, final} if trace.correct else {gold}
    stated = stated_answers(trace.thinking, grader) if tokens else []
    keys = [answer_key(answer) for _, answer in stated]
    return Course(
        problem_id=trace.problem_id,
        sample=trace.sample,
        source="read",
        tokens=tokens,
        final=final,
        right=trace.correct and not trace.truncated,
        places=[round(tokens * end / characters) for end, _ in stated],
        answers=keys,
        shown=[answer for _, answer in stated],
        right_at=[key is not None and key in right_keys for key in keys],
    )


async def follow(
    engine: Engine, traces: Sequence[Trace], graders: GraderPool, *, cue: str = CUE, entropies: bool = False
) -> list[Course]:
    """The courses of some traces, asked of the model that wrote them.

    Args:
        engine: the model. The traces must hold token ids of its tokenizer.
        traces: graded.
        graders: judge the trial answers.
        cue: see `CUE`.
        entropies: whether to score every token of the thinking, too.

    Raises:
        EngineError: the engine gives no probabilities, or a trace has no ids.
    """
    if Capability.LOGPROBS not in engine.capabilities:
        raise EngineError(f"{engine.name} gives no log-probabilities, so its end marker cannot be looked at")
    if any(trace.thinking and not trace.response_ids for trace in traces):
        raise EngineError("the traces hold texts and no token ids: make the run again with an engine that gives them")
    table = token_bytes(engine.tokenizer)  # made once: a real vocabulary takes a good part of a second
    return list(await asyncio.gather(*(_follow(engine, table, trace, graders, cue, entropies) for trace in traces)))


async def _follow(
    engine: Engine, table: Sequence[bytes], trace: Trace, graders: GraderPool, cue: str, entropies: bool
) -> Course:
    thinking = trace.thinking_span[1]
    pieces = [table[token] for token in trace.response_ids[:thinking]]
    # Behind the closing marker there is nothing to ask.
    inside = thinking - (len(engine.thinking.close_ids(engine.tokenizer)) if trace.stop == "marker" else 0)
    ends = [place for place in paragraph_ends(pieces) if place < inside]
    places = [0, *(ends[int(each)] for each in _evenly(len(ends), MOST_BOUNDARIES))]
    # The end of the thinking itself: where the model closed it.
    places += [inside] if inside > places[-1] else []
    asked = await asyncio.gather(*(_ask(engine, trace, place, cue) for place in places))
    grader = trace.grade.grader if trace.grade is not None else "math"
    grades = await asyncio.gather(
        *(
            graders.grade(
                grader=grader, answer=f"\\boxed{{{each.answer or ''}}}", gold=trace.gold,
                finished=each.answer is not None, problem_id=trace.problem_id,
            )
            for each in asked
        )
    )  # fmt: skip
    scored: list[float] = []
    if entropies and thinking and Capability.SCORE in engine.capabilities:
        ids = [*trace.prompt_ids, *trace.response_ids[:thinking]]
        scored = (await engine.score(ids, len(trace.prompt_ids))).entropies
    close = engine.thinking.close_ids(engine.tokenizer)[0]
    entropies_of_answers = [each.entropy for each in asked if each.entropy is not None]
    return Course(
        problem_id=trace.problem_id,
        sample=trace.sample,
        source="asked",
        tokens=thinking,
        final=_final(trace),
        right=trace.correct and not trace.truncated,
        places=places,
        answers=[answer_key(each.answer) for each in asked],
        shown=[each.answer for each in asked],
        right_at=[grade.correct for grade in grades],
        confidence=[each.confidence for each in asked],
        answer_entropy=entropies_of_answers if len(entropies_of_answers) == len(asked) else [],
        end_rank=[each.rank for each in asked],
        end_logprob=[each.logprob for each in asked],
        taken=[trace.response_ids[place : place + 1] == [close] for place in places],
        entropies=scored,
    )


@dataclass(frozen=True)
class _Asked:
    """The trial answer at a place, its confidence and the entropy of its first token in nats, None where the engine
    gives none; rank and natural log-probability of the end marker there."""

    answer: str | None
    confidence: float
    entropy: float | None
    rank: int
    logprob: float


async def _ask(engine: Engine, trace: Trace, place: int, cue: str) -> "_Asked":
    """What a model says at a place of its own thinking."""
    kept = trace.response_ids[:place]
    before = [*trace.prompt_ids, *kept]
    closing = engine.thinking.forced_close(engine.tokenizer, decode(engine.tokenizer, kept))
    entropy = Capability.ENTROPY in engine.capabilities
    next_token, trial = await asyncio.gather(
        engine.generate(before, Sampling(temperature=0, top_p=1, max_tokens=1), top_logprobs=LISTED),
        engine.generate(
            [*before, *closing, *encode_after(engine.tokenizer, cue)],
            Sampling(temperature=0, top_p=1, max_tokens=ANSWER_TOKENS, stop=("}",)),
            top_logprobs=1,
            entropy=entropy,
        ),
    )
    assert next_token.top_logprobs is not None
    listed = next_token.top_logprobs[0]
    close = engine.thinking.close_ids(engine.tokenizer)[0]
    rank = list(listed).index(close) if close in listed else len(listed)
    logprob = listed.get(close, min(listed.values()))
    answer = boxed(cue, decode(engine.tokenizer, trial.ids))
    said = trial.logprobs or []
    confidence = math.exp(sum(said) / len(said)) if answer and said else 0.0
    first = trial.entropies[0] if trial.entropies else None
    return _Asked(answer or None, confidence, first, rank, logprob)


def paragraph_ends(pieces: Sequence[bytes]) -> list[int]:
    """Tokens before each place after an empty line; of a text without one, after a line.

    Args:
        pieces: the bytes of each token.
    """
    text, starts = b"".join(pieces), np.cumsum([len(piece) for piece in pieces])
    for separator in (b"\n\n", b"\n"):
        ends: list[int] = []
        at = text.find(separator)
        while at >= 0:
            token = int(np.searchsorted(starts, at + len(separator))) + 1
            if token < len(pieces) and (not ends or token > ends[-1]):
                ends.append(token)
            at = text.find(separator, at + len(separator))
        if ends:
            return ends
    return []


def _evenly(n: int, most: int) -> list[int]:
    return [int(place) for place in np.linspace(0, n - 1, min(n, most)).round()] if n else []


def answer_key(answer: str | None) -> str | None:
    """What answers that are the same share, as a text."""
    return None if answer is None or not answer.strip() else repr(canonical(answer))


def _final(trace: Trace) -> str | None:
    return answer_key(trace.grade.extracted) if trace.grade is not None and not trace.truncated else None


def told(found: Diagnosis, advice: Sequence[Advice] | None = None) -> dict[str, Any]:
    """A diagnosis with its advice as plain data, ready for JSON."""
    advice = advise(found) if advice is None else advice
    return {**found.model_dump(), "advice": [each.model_dump() for each in advice]}
