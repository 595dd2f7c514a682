"""Grade a finished run again without its model, beside the grades that it has: a run is never rewritten."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TextIO

from satisfice.problems import GRADING_VERSION, GraderPool
from satisfice.problems.graders import check_grader
from satisfice.runs.run_folder import Run
from satisfice.trace import Grade, Trace

BATCH = 2_000
"""Traces that are held at once."""


@dataclass(frozen=True)
class Change:
    """One response on whose answer two gradings differ.

    Attributes:
        method, problem_id, sample: which.
        gold: the expected answer as the problem set gives it.
        before, after: both verdicts, with what each read as the answer.
    """

    method: str
    problem_id: str
    sample: int
    gold: str
    before: Grade
    after: Grade


@dataclass
class Regrading:
    """What came of grading again.

    Attributes:
        before, after: what the two gradings are called.
        file: where the new grades are, None where two graders were compared only.
        graded: responses.
        right_before, right_after: how many are right by method.
        changes: those whose verdict differs.
    """

    before: str
    after: str
    file: Path | None = None
    graded: int = 0
    right_before: dict[str, int] = field(default_factory=dict)
    right_after: dict[str, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)


def regrade(run: Run, graders: GraderPool, grader: str | None = None, against: str | None = None) -> Regrading:
    """Grade every response of a run again.

    Args:
        run: the run.
        graders: judge the answers.
        grader: for all of them; unless given that of each trace, in the version of today.
        against: another grader to compare with instead of the grades in the run.

    Returns:
        what changed. Unless two graders are compared, the new grades lie in the run folder in a file of their own, one
        line a trace: method, problem_id, sample, grade.

    Raises:
        GraderError: there is no such grader, or it does not fit the problems.
        ValueError: a trace has no grade, so there is none to name its grader.
    """
    for name in (grader, against):
        if name is not None:
            check_grader(name)
    found = Regrading(against or "the run", grader or f"the run's graders, version {GRADING_VERSION}")
    if against is not None:
        _compare(run, graders, grader, against, found, None)
        return found
    slug = re.sub(r"[^\w.]+", "-", grader or "own")
    file = run.folder / f"grades-{slug}-version-{GRADING_VERSION}.jsonl"
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with unfinished.open("w") as lines:
            _compare(run, graders, grader, None, found, lines)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    found.file = file
    return found


def _compare(
    run: Run, graders: GraderPool, grader: str | None, against: str | None, found: Regrading, lines: TextIO | None
) -> None:
    for method, traces in run.traces.items():
        found.right_before[method] = found.right_after[method] = 0
        rest = iter(traces)
        while batch := list(islice(rest, BATCH)):
            after = _grades(batch, graders, grader)
            before = _grades(batch, graders, against) if against else [_own(trace) for trace in batch]
            for trace, old, new in zip(batch, before, after, strict=True):
                found.graded += 1
                found.right_before[method] += old.correct
                found.right_after[method] += new.correct
                if old.correct != new.correct:
                    found.changes.append(Change(method, trace.problem_id, trace.sample, trace.gold, old, new))
                if lines is not None:
                    lines.write(_line(method, trace, new))


def read_grades(file: Path) -> Iterator[tuple[str, str, int, Grade]]:
    """Method, problem, sample and grade of each line that `regrade` wrote."""
    with file.open() as lines:
        for line in lines:
            record = json.loads(line)
            grade = Grade.model_validate(record["grade"])
            yield record["method"], record["problem_id"], record["sample"], grade


def _grades(traces: Iterable[Trace], graders: GraderPool, grader: str | None) -> list[Grade]:
    return graders.grade_all(
        [
            {
                "grader": grader or _own(trace).grader,
                "answer": trace.answer,
                "gold": trace.gold,
                "finished": trace.finished,
                "problem_id": trace.problem_id,
            }
            for trace in traces
        ]
    )


def _own(trace: Trace) -> Grade:
    if trace.grade is None or not trace.grade.grader:
        raise ValueError(
            f"{trace.method!r} on problem {trace.problem_id!r} does not say by which grader it was graded: name one "
            "with --grader"
        )
    return trace.grade


def _line(method: str, trace: Trace, grade: Grade) -> str:
    record = {
        "method": method,
        "problem_id": trace.problem_id,
        "sample": trace.sample,
        "grade": grade.model_dump(),
    }
    return json.dumps(record) + "\n"
