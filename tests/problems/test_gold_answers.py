"""Every gold answer of public sets must equal itself: runs where SATISFICE_DATA names a folder with their files."""

import os
import random
from pathlib import Path

import pytest

from satisfice.problems import GraderPool, load_problems
from satisfice.problems.graders import math_equal

DATA = Path(os.environ.get("SATISFICE_DATA", "/nonexistent"))


@pytest.mark.skipif(not DATA.is_dir(), reason="SATISFICE_DATA names no folder with math500.jsonl and the like")
@pytest.mark.parametrize("name", ["math500", "olympiadbench_math_en", "aime24", "amc23", "gsm8k_test"])
def test_math_verify_accepts_every_gold_answer_against_itself(name):
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    problems = load_problems(str(path)).problems
    # Not grade_answer: that takes identical texts for equal without asking math-verify.
    refused = [problem.id for problem in problems if not math_equal(problem.answer, problem.answer)[0]]
    assert (len(refused), refused) == (0, [])


@pytest.mark.skipif(not DATA.is_dir(), reason="SATISFICE_DATA names no folder with math500.jsonl and the like")
@pytest.mark.parametrize("name", ["math500", "olympiadbench_math_en", "aime24", "amc23", "gsm8k_test"])
def test_every_gold_answer_in_a_box_is_right_and_another_one_is_not(name):
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    golds = [problem.answer for problem in load_problems(str(path)).problems]
    draw = random.Random(0)
    pairs = [(gold, gold) for gold in golds] + [tuple(draw.sample(golds, 2)) for _ in range(200)]
    with GraderPool(workers=1) as pool:
        grades = pool.grade_all(
            [
                {"grader": "math", "answer": rf"\boxed{{{given}}}", "gold": gold, "finished": True}
                for given, gold in pairs
            ]
        )
    wrong = [pair for pair, grade in zip(pairs, grades, strict=True) if grade.correct is not (pair[0] == pair[1])]
    assert wrong == []
