"""Every gold answer of a benchmark is right by our grader, if you have the files: SATISFICE_DATA says where."""

import asyncio
import os
from pathlib import Path

import pytest

from satisfice.problems import GraderPool, load_problems
from satisfice.problems.suites import SUITES

DATA = os.environ.get("SATISFICE_DATA")


@pytest.mark.skipif(DATA is None, reason="SATISFICE_DATA names no directory of benchmarks")
@pytest.mark.parametrize("name", SUITES)
def test_every_gold_answer_is_right(name):
    assert DATA is not None
    if not (Path(DATA) / f"{name}.jsonl").exists():
        pytest.skip(f"no {name}.jsonl in SATISFICE_DATA")
    problems = load_problems(name, data_dir=DATA).problems

    async def grade():
        with GraderPool() as pool:
            return await asyncio.gather(
                *(
                    pool.grade(
                        grader=each.grader, answer=f"So \\boxed{{{each.answer}}}.", gold=each.answer, finished=True
                    )
                    for each in problems
                )
            )

    grades = asyncio.run(grade())
    assert [each.id for each, grade in zip(problems, grades, strict=True) if not grade.correct] == []
