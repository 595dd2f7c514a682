"""InfoGain and InfoBias of a run (2505.18237): the engine calls, and the readings of a run.

InfoGain asks the model at every boundary of a thinking how likely each candidate answer is, with all of the thinking
before it. The paper's program asks about each segment alone, which its text contradicts; that is not done here.
InfoBias needs no model.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

from satisfice.engines.base import Capability, Engine, EngineError
from satisfice.measurement.answer_steps import AnswerSteps, Information, answers_bias, program_bias, step_numbers
from satisfice.measurement.course import Course
from satisfice.problems import GraderPool
from satisfice.runs.diagnosis import CUE, answer_key, follow, method_of
from satisfice.runs.run_folder import Run
from satisfice.thinking import decode, encode_after
from satisfice.trace import Trace


def of_run(
    run: Run, method: str | None = None, followed: Sequence[AnswerSteps] = (), ideal: Run | None = None
) -> Information:
    """The information of one method of a run.

    Args:
        run: the run.
        method: as spelled; the baseline of the run unless given.
        followed: thinkings that were followed with the model, for InfoGain.
        ideal: another run on the same problems, whose baseline's thinkings stand for ideal ones, for InfoBias in the
            program's form.

    Raises:
        ValueError: the run has no such method or no trace of it, or the ideal run does not fit.
    """
    method = method_of(run, method)
    traces = run.traces[method]
    answers, golds = [], []
    for trace in traces:
        said = trace.grade.extracted if trace.grade is not None and not trace.truncated else None
        golds.append(answer_key(trace.expected) or "")
        # A right answer may be spelled otherwise than the gold one.
        answers.append(golds[-1] if trace.correct else answer_key(said) or "")
    if not answers:
        raise ValueError(f"{method} has no trace yet, so there is nothing to look at")
    bias, error = answers_bias(answers, golds)
    fields: dict[str, object] = step_numbers(followed) if followed else {}
    fields |= {} if ideal is None else _against_ideal(run, method, ideal)
    return Information.model_validate(
        fields | {"method": method, "answers_bias": bias, "answers_bias_error": error, "responses": len(answers)}
    )


def _against_ideal(run: Run, method: str, ideal: Run) -> dict[str, object]:
    own, other = _by_problem(run.traces[method]), _by_problem(ideal.traces[method_of(ideal, None)])
    digests = [(each.config.get("problems") or {}).get("digest") for each in (run, ideal)]
    if digests[0] != digests[1]:
        raise ValueError(f"{ideal.folder} is a run of other problems than {run.folder}")
    samples = min((min(len(own[name]), len(other.get(name, []))) for name in own), default=0)
    if samples < 2:
        raise ValueError(
            f"InfoBias compares several thinkings of each problem, and some problem has {samples} in {run.folder} or "
            f"{ideal.folder}: make both runs with --samples 2 or more"
        )
    texts = [{name: [trace.thinking for trace in part[name][:samples]] for name in own} for part in (own, other)]
    lengths = {name: sum(trace.cost.thinking_tokens for trace in own[name]) / len(own[name]) for name in own}
    thinking = [name for name in own if lengths[name] > 0]
    if not thinking:
        raise ValueError(f"{method} does not think in {run.folder}, so there is no InfoBias")
    return program_bias(
        {name: texts[0][name] for name in thinking},
        {name: texts[1][name] for name in thinking},
        lengths,
        {name: 2 * sum(trace.correct for trace in own[name]) > len(own[name]) for name in own},
    )


def _by_problem(traces: Sequence[Trace]) -> dict[str, list[Trace]]:
    found: dict[str, list[Trace]] = {}
    for trace in traces:
        found.setdefault(trace.problem_id, []).append(trace)
    return found


async def follow_answers(
    engine: Engine, traces: Sequence[Trace], graders: GraderPool, *, cue: str = CUE
) -> list[AnswerSteps]:
    """How likely each candidate answer is at each boundary of some thinkings, asked of the model that wrote them.

    Candidates of a thinking are its gold answer and what the model answers at any of its boundaries.

    Args:
        engine: the model.
        traces: graded.
        graders: judge the trial answers.
        cue: what stands after the closed thinking.

    Raises:
        EngineError: the engine cannot score, or gives no probabilities, or a trace has no ids.
    """
    if Capability.SCORE not in engine.capabilities:
        raise EngineError(f"{engine.name} cannot say how likely a given answer is, which InfoGain needs")
    courses = await follow(engine, traces, graders, cue=cue)
    return list(
        await asyncio.gather(
            *(_steps(engine, trace, course, cue) for trace, course in zip(traces, courses, strict=True))
        )
    )


async def _steps(engine: Engine, trace: Trace, course: Course, cue: str) -> AnswerSteps:
    spelled: dict[str, Counter[str]] = {}
    for answer in course.shown:
        if (key := answer_key(answer)) is not None and answer is not None:
            spelled.setdefault(key, Counter())[answer.strip()] += 1
    # The gold answer as the model spells it, where it ever does: another spelling would be unlikely for that alone.
    gold = spelled.pop(answer_key(trace.expected) or "", Counter([trace.expected])).most_common(1)[0][0]
    candidates = [gold, *(counts.most_common(1)[0][0] for counts in spelled.values())]

    async def at(place: int) -> list[float]:
        kept = trace.response_ids[:place]
        closing = engine.thinking.forced_close(engine.tokenizer, decode(engine.tokenizer, kept))
        before = [*trace.prompt_ids, *kept, *closing, *encode_after(engine.tokenizer, cue)]
        scores = await asyncio.gather(
            *(
                engine.score([*before, *encode_after(engine.tokenizer, candidate + "}")], len(before))
                for candidate in candidates
            )
        )
        return [float(sum(score.logprobs)) for score in scores]

    return AnswerSteps(
        problem_id=trace.problem_id,
        sample=trace.sample,
        right=trace.correct and not trace.truncated,
        places=course.places,
        candidates=candidates,
        log_probabilities=list(await asyncio.gather(*map(at, course.places))),
    )
