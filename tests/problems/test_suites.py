"""Benchmarks by name, from the reader's files."""

import json

import pytest

from satisfice.problems import ProblemsError, load_problems
from satisfice.problems.suites import SUITES


def write(file, rows):
    file.write_text("".join(json.dumps({"problem": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(rows)))


def test_a_suite_is_read_from_its_file_and_says_what_to_know(tmp_path):
    write(tmp_path / "aime24.jsonl", 30)
    loaded = load_problems("aime24", data_dir=tmp_path, limit=5)
    assert (loaded.name, len(loaded.problems), {problem.grader for problem in loaded.problems}) == (
        "aime24",
        5,
        {"math"},
    )
    assert "64 samples" in loaded.notes[0]
    assert "3.3 points" in loaded.notes[0]
    assert load_problems("aime24", data_dir=tmp_path, grader="numeric").problems[0].grader == "numeric"


def test_both_sizes_of_olympiadbench_are_taken_and_said(tmp_path):
    for rows in (674, 675):
        write(tmp_path / "olympiadbench.jsonl", rows)
        assert f"{rows} problems" in load_problems("olympiadbench", data_dir=tmp_path, limit=1).notes[0]


def test_another_set_is_refused(tmp_path):
    write(tmp_path / "amc23.jsonl", 83)
    with pytest.raises(ProblemsError, match="has 40 problems, this file 83"):
        load_problems("amc23", data_dir=tmp_path)
    with pytest.raises(ProblemsError, match=r"say where .* lies with --data-dir"):
        load_problems("math500")
    with pytest.raises(ProblemsError, match=r"there is no .*minerva\.jsonl"):
        load_problems("minerva", data_dir=tmp_path)
    assert len(SUITES) == 8
