"""Grading a run again: beside the old grades, with every change said."""

import pytest

from satisfice.problems import GraderError, GraderPool
from satisfice.runs.regrading import read_grades, regrade
from satisfice.runs.run_folder import RunFolder, read_run
from satisfice.trace import Grade, Trace


@pytest.fixture
def run(tmp_path):
    answers = {
        "a": ("The answer is 12.", "12", True),
        "b": ("It was twelve.", "12", True),
        "c": ("20001", "20000", True),
    }
    with RunFolder.create_or_open(tmp_path / "run", {"methods": ["plain"]}) as folder:
        for problem, (answer, gold, correct) in answers.items():
            grade = Grade(correct=correct, extracted=answer, expected=gold, grader="numeric")
            folder.append(Trace(problem_id=problem, method="plain", answer=answer, gold=gold, grade=grade))
        cut = Grade(correct=False, grader="numeric", note="truncated")
        folder.append(Trace(problem_id="d", method="plain", answer="9", gold="9", finished=False, grade=cut))
    return read_run(tmp_path / "run")


def test_new_grades_lie_beside_the_old_ones_and_changes_are_listed(run):
    before = {file.name: file.read_bytes() for file in run.folder.iterdir()}
    with GraderPool(workers=1) as graders:
        found = regrade(run, graders)
    assert [(change.problem_id, change.before.correct, change.after.correct) for change in found.changes] == [
        ("b", True, False)
    ]
    assert (found.graded, found.right_before, found.right_after) == (4, {"plain": 3}, {"plain": 2})
    assert found.file is not None
    grades = {problem: grade for _, problem, _, grade in read_grades(found.file)}
    assert {problem: grade.correct for problem, grade in grades.items()} == {
        "a": True,
        "b": False,
        "c": True,
        "d": False,
    }
    assert {name: (run.folder / name).read_bytes() for name in before} == before


def test_two_graders_are_compared_without_a_file(run):
    files = sorted(run.folder.iterdir())
    with GraderPool(workers=1) as graders:
        found = regrade(run, graders, "numeric", "exact")
    assert [(change.problem_id, change.before.correct, change.after.correct) for change in found.changes] == [
        ("c", False, True)
    ]
    assert (found.file, sorted(run.folder.iterdir())) == (None, files)


def test_what_cannot_be_graded_is_refused_and_leaves_nothing(run):
    with GraderPool(workers=1) as graders, pytest.raises(GraderError, match="no grader 'mth'"):
        regrade(run, graders, "mth")
    with RunFolder.create_or_open(run.folder, {"methods": ["plain"]}) as folder:
        folder.append(Trace(problem_id="e", method="plain", answer="1", gold="1"))
    files = sorted(run.folder.iterdir())
    with GraderPool(workers=1) as graders, pytest.raises(ValueError, match="name one with --grader"):
        regrade(read_run(run.folder), graders)
    assert sorted(run.folder.iterdir()) == files
