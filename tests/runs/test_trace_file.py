"""A file of traces that is read once and asked for single ones."""

import pytest

from satisfice.runs.trace_file import RunFolderError, TraceFile
from satisfice.trace import Cost, Trace


def a_trace(problem: str, sample: int = 0) -> Trace:
    return Trace(
        problem_id=problem, sample=sample, method="plain", thinking="é\u2028ü", prompt_ids=[1000], response_ids=[1000],
        cost=Cost(thinking_tokens=len(problem)),
    )  # fmt: skip


def written(path, *traces: Trace, torn: str = ""):
    path.write_text("".join(trace.to_json() + "\n" for trace in traces) + torn)
    return path


def test_it_is_a_list_that_holds_no_trace(tmp_path):
    traces = [a_trace(problem) for problem in ("a", "bb", "ccc")]
    file = TraceFile(written(tmp_path / "t.jsonl", *traces, torn='{"problem_id": "d"'), "plain")
    assert (len(file), list(file), file[1], file[-1], file[1:]) == (3, traces, traces[1], traces[2], traces[1:])
    assert file.columns.count("thinking_tokens").tolist() == [1, 2, 3]
    with pytest.raises(IndexError):
        file[3]


def test_what_is_appended_later_is_not_part_of_it(tmp_path):
    path = written(tmp_path / "t.jsonl", a_trace("a"))
    file = TraceFile(path, "plain")
    written(path, a_trace("a"), a_trace("b"))
    assert [trace.problem_id for trace in file] == ["a"]


def test_a_file_that_is_not_there_is_empty(tmp_path):
    file = TraceFile(tmp_path / "none.jsonl", "plain")
    assert (len(file), list(file), len(file.columns)) == (0, [], 0)


def test_token_ids_are_one_object_each(tmp_path):
    trace = next(iter(TraceFile(written(tmp_path / "t.jsonl", a_trace("a")), "plain")))
    assert trace.prompt_ids[0] is trace.response_ids[0]


def test_a_line_that_stands_there_twice_is_named_by_its_number(tmp_path):
    path = written(tmp_path / "t.jsonl", a_trace("a"), a_trace("a", 1), a_trace("b"), a_trace("a", 1))
    with pytest.raises(RunFolderError, match="line 4: problem 'a', sample 1 stands there a second time"):
        TraceFile(path, "plain")
    with pytest.raises(RunFolderError, match="line 1 is a trace of 'plain', but this file is for 'deer'"):
        TraceFile(path, "deer")
