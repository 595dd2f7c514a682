"""Columns of traces: the same numbers as the traces, rows by problem, pairs."""

import numpy as np

from satisfice.measurement import columns as module
from satisfice.measurement.columns import Columns, pairs
from satisfice.trace import Cost, Grade, Trace


def a_trace(problem: str, sample: int = 0, thinking: int = 10, extracted: str | None = "a", **others) -> Trace:
    return Trace(
        problem_id=problem, sample=sample, method="plain", thinking="x", response_ids=[1] * thinking,
        thinking_span=(0, thinking), cost=Cost(thinking_tokens=thinking, answer_tokens=2, probe_tokens=3),
        grade=Grade(correct=True, extracted=extracted), **others,
    )  # fmt: skip


def test_columns_are_what_the_traces_say(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)  # so that rows come from several chunks
    columns = Columns.of([a_trace(f"p{n % 4}", n // 4, n) for n in range(8)])
    assert columns.count("thinking_tokens").tolist() == list(range(8))
    assert columns.cost("total").tolist() == [n + 5 for n in range(8)]
    assert [columns.row(n) for n in (0, 5)] == [("p0", 0), ("p1", 1)]
    columns.add(a_trace("p9"))
    assert (len(columns), columns.row(8)) == (9, ("p9", 0))
    assert Columns.of(columns) is columns


def test_rows_are_grouped_by_problem_in_the_order_of_ids_and_samples():
    columns = Columns.of([a_trace("b", 1, 4), a_trace("a", 0, 3), a_trace("b", 0, 2)])
    groups = columns.by_problem()
    assert [group.tolist() for group in groups.of(columns.count("thinking_tokens"))] == [[3], [2, 4]]
    assert groups.only(groups.sizes == 2).rows.tolist() == [2, 0]
    assert groups.rows_where(np.array([False, True, True])).sizes.tolist() == [2]
    assert len(Columns().by_problem()) == 0


def test_pairs_match_problem_and_sample():
    ours = Columns.of([a_trace("b", 1), a_trace("a"), a_trace("c"), a_trace("b", 0)])
    base = Columns.of([a_trace("a", 1), a_trace("b", 0), a_trace("b", 1)])
    groups, rows = pairs(ours, base)
    assert [ours.row(row) for row in groups.rows] == [("b", 0), ("b", 1)] == [base.row(row) for row in rows]
    assert len(groups) == 1
    for one, other in ((ours, Columns()), (Columns(), base), (ours, Columns.of([a_trace("z")]))):
        groups, rows = pairs(one, other)
        assert (len(groups), rows.size) == (0, 0)


def test_what_repeats_what_has_no_grade_and_what_is_cut():
    columns = Columns.of([a_trace("a"), a_trace("a", 1), a_trace("a", finished=False, stop="token limit")])
    assert columns.repeated() == 2
    assert columns.right.tolist() == [True, True, False]
    assert columns.never_closed.tolist() == [False, False, True]
    assert columns.ungraded is None
    columns.add(Trace(problem_id="b", method="plain"))
    assert columns.ungraded == 3


def test_votes_are_equal_where_answers_are():
    votes = Columns.of([a_trace("a", n, extracted=text) for n, text in enumerate(["5", " 5 ", "7", None, ""])]).votes
    assert votes[0] == votes[1] != votes[2]
    assert votes[3] == votes[4] == 0


def test_a_loop_and_a_text_without_ids():
    loop = a_trace("a", thinking=200)
    text = Trace(problem_id="b", method="plain", thinking="words", grade=Grade(correct=True))
    columns = Columns.of([loop, text])
    assert columns.looping.tolist() == [True, False]
    assert np.isnan(columns.repetition).tolist() == [False, True]
