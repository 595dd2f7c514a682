import asyncio
import importlib.util
import sys

import pytest

from satisfice.problems import GraderError, GraderPool, ProblemsError, load_problems

# Importing reasoning-gym takes seconds in every worker, and must never happen in this process.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs the extra [gym]"),
]


def test_problems_are_made_in_another_process_from_name_seed_and_size():
    loaded = load_problems("reasoning-gym:chain_sum", limit=3, seed=5)
    assert loaded.name == "reasoning-gym:chain_sum"
    assert [problem.id for problem in loaded.problems] == [f"chain_sum/seed5/size3/{n}" for n in range(3)]
    assert {problem.grader for problem in loaded.problems} == {"reasoning-gym:chain_sum"}
    assert load_problems("reasoning-gym:chain_sum", limit=3, seed=6).digest != loaded.digest
    assert "reasoning_gym" not in sys.modules


def test_sets_that_follow_the_hash_seed_are_the_same_every_time():
    first, second = (load_problems("reasoning-gym:word_ladder", limit=3).digest for _ in range(2))
    assert first == second


async def test_the_own_scorer_judges_and_only_the_full_score_counts():
    problems = load_problems("reasoning-gym:chain_sum", limit=2).problems
    with GraderPool(workers=1) as pool:

        async def note_and_verdict(answer, problem):
            grade = await pool.grade(
                grader=problem.grader, answer=answer, gold=problem.answer, finished=True, problem_id=problem.id
            )
            return grade.correct, grade.note

        for problem in problems:
            assert await note_and_verdict(rf"\boxed{{{problem.answer}}}", problem) == (True, "")
            assert await note_and_verdict(f"The answer is {problem.answer}.", problem) == (True, "")
            # The scorer itself gives part of its score to a text that holds the answer somewhere.
            assert await note_and_verdict(rf"\boxed{{{problem.answer} or so}}", problem) == (False, "")
            assert await note_and_verdict("no idea", problem) == (False, "no answer found")


async def test_a_scorer_that_raises_means_wrong():
    problem = load_problems("reasoning-gym:prime_factorization", limit=1).problems[0]
    with GraderPool(workers=1) as pool:
        grade = await pool.grade(
            grader=problem.grader, answer=r"\boxed{no idea}", gold=problem.answer, finished=True, problem_id=problem.id
        )
    assert (grade.correct, grade.note) == (False, "grader raised ValueError")


async def test_a_scorer_that_evaluates_the_answer_as_python_cannot_be_made_to_act(tmp_path):
    problem = load_problems("reasoning-gym:spiral_matrix", limit=1).problems[0]
    folder = tmp_path / "made by the answer"
    answer = rf"\boxed{{[__import__('os').mkdir('{folder}')]}}"
    with GraderPool(workers=1) as pool:
        grade = await pool.grade(
            grader=problem.grader, answer=answer, gold=problem.answer, finished=True, problem_id=problem.id
        )
    assert not grade.correct
    assert not folder.exists()


async def test_a_problem_without_one_gold_answer():
    problem = load_problems("reasoning-gym:graph_color", limit=1).problems[0]
    assert problem.answer == "(any valid answer)"
    with GraderPool(workers=1) as pool:
        grade = await pool.grade(
            grader=problem.grader, answer=r'\boxed{{"0": 1}}', gold=problem.answer, finished=True, problem_id=problem.id
        )
    assert (grade.correct, grade.note) == (False, "")


def test_another_problem_than_was_answered_is_not_graded():
    async def grade(problem_id, gold):
        with GraderPool(workers=1) as pool:
            return await pool.grade(
                grader="reasoning-gym:chain_sum", answer=r"\boxed{1}", gold=gold, finished=True, problem_id=problem_id
            )

    with pytest.raises(GraderError, match="makes another problem for 'chain_sum/seed0/size1/0'"):
        asyncio.run(grade("chain_sum/seed0/size1/0", "no number"))
    with pytest.raises(GraderError, match="problem id 'x' does not name a reasoning-gym problem"):
        asyncio.run(grade("x", "1"))


def test_an_unknown_set_gets_the_nearest_names():
    with pytest.raises(ProblemsError, match=r"no set 'chainsum'; the nearest are chain_sum"):
        load_problems("reasoning-gym:chainsum")
    with pytest.raises(ProblemsError, match="no set '';"):
        load_problems("reasoning-gym:")


def test_a_set_that_needs_configuration_is_refused():
    with pytest.raises(ProblemsError, match="cannot make 'composite' with its default configuration"):
        load_problems("reasoning-gym:composite")
