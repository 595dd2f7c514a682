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
    with pytest.raises(ProblemsError, match="has 40 problems, this copy 83"):
        load_problems("amc23", data_dir=tmp_path)
    with pytest.raises(ProblemsError, match=r"say where .* lies with --data-dir"):
        load_problems("minerva")
    with pytest.raises(ProblemsError, match=r"there is no .*minerva\.jsonl"):
        load_problems("minerva", data_dir=tmp_path)
    assert len(SUITES) == 8


GPQA = {
    "Question": " Which? ", "Correct Answer": "right\n", "Incorrect Answer 1": "a", "Incorrect Answer 2": "b",
    "Incorrect Answer 3": "c", "Record ID": "rec1",
}  # fmt: skip
ROWS = {  # as the columns of each copy were published, with the gold answer that is to come out
    "math500": ({"problem": "1?", "solution": "so 7", "answer": "p - q", "unique_id": "test/a/1.json"}, "p - q"),
    "amc23": ({"id": 0, "question": "1?", "answer": 27.0, "url": ""}, "27"),
    "aime24": ({"ID": "2024-II-4", "Problem": "1?", "Solution": "", "Answer": 33}, "33"),
    "aime25": ({"problem": "1?", "answer": "070", "id": "0"}, "070"),
    "olympiadbench": ({"id": 1606, "question": "1?", "final_answer": ["$\\frac12$"]}, "\\frac12"),
    "gsm8k": ({"question": "1?", "answer": "so\n#### 18"}, "18"),
    "gpqa-diamond": (GPQA, None),
}


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hub with one row of every suite, as often as it has problems; records what was asked for."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, config, *, split, revision):
        asked.append((path, config, split, revision))
        name = next(name for name, suite in SUITES.items() if suite.hub and suite.hub.path == path)
        named = {"ID", "id", "unique_id", "Record ID"} & set(ROWS[name][0])
        wanted = SUITES[name].rows[-1]
        rows = [dict(ROWS[name][0]) for _ in range(wanted)]
        for number, row in enumerate(rows):
            row.update({column: f"{row[column]}/{number}" for column in named})
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("name", ROWS)
def test_a_suite_comes_from_the_hub_at_a_pinned_revision(hub, name):
    loaded = load_problems(name, limit=3)
    assert hub == [(SUITES[name].hub.path, SUITES[name].hub.config, SUITES[name].hub.split, SUITES[name].hub.revision)]
    assert len(hub[0][3]) == 40
    assert (loaded.name, len(loaded.problems)) == (name, 3)
    assert str(SUITES[name].samples) in loaded.notes[0]
    assert ROWS[name][1] in (None, loaded.problems[0].answer)
    with pytest.raises(ProblemsError, match="takes no split"):
        load_problems(name, split="test")


def test_options_of_gpqa_are_shuffled_once_for_all(hub):
    problem = load_problems("gpqa-diamond", limit=1).problems[0]
    options = dict(line.split(". ") for line in problem.prompt.split("\n\n")[1].splitlines())
    assert sorted(options.values()) == ["a", "b", "c", "right"]
    assert options[problem.answer] == "right"
    assert problem.grader == "choice:4"
    first = [SUITES["gpqa-diamond"].hub.record(GPQA | {"Question": f"{n}?"})["answer"] for n in range(400)]
    assert all(70 < first.count(place) < 130 for place in range(4))


def test_another_copy_on_the_hub_is_refused_and_one_that_is_not_there_says_how_else(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"problem": "?"}] * 30)
    with pytest.raises(ProblemsError, match="has no column 'answer'"):
        load_problems("aime25")
    with pytest.raises(ProblemsError, match="has 500 problems, this copy 30"):
        load_problems("math500")

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ProblemsError, match=r"cannot be loaded: no route; --data-dir DIR reads aime25\.jsonl"):
        load_problems("aime25")
