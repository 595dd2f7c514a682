"""Repetition, loops, and the place from which an answer never changed."""

import random

import pytest

from satisfice.measurement.advice import advise
from satisfice.measurement.columns import Columns
from satisfice.measurement.course import Course
from satisfice.measurement.diagnosis import Measured, diagnose
from satisfice.measurement.verbosity import (
    outcome_efficiency,
    overthinking_share,
    process_efficiency,
    settled,
    tail_period,
)
from satisfice.trace import Cost, Grade, Trace


def prose(n: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1000) for _ in range(n)]


@pytest.mark.parametrize("period", [1, 7, 40, 200])
def test_a_loop_is_found_with_its_period(period):
    pattern = list(range(period))
    looping = prose(100) + pattern * (64 // period + 4)
    assert tail_period(looping) == period
    assert tail_period(looping[: -period // 2 or None]) == period  # its last copy is cut
    assert tail_period([*looping, 999]) is None  # it has left the loop


def test_what_repeats_twice_or_shortly_is_no_loop():
    assert tail_period(prose(500)) is None
    assert tail_period(prose(50) * 2) is None
    assert tail_period([*prose(100), *[5] * 63]) is None
    assert tail_period([*prose(100), *[5] * 64]) == 1
    assert tail_period([]) is None


def test_an_answer_settles_where_it_stops_changing():
    assert settled(["7", "5", "7", "7"], "7") == 2
    assert settled(["7", "7"], "7") == 0
    assert settled(["7", "5"], "7") is None
    assert settled([None, "7"], "7") == 1
    assert settled([None, None], None) is None
    assert settled([], "7") is None


def test_shares_and_efficiencies_by_hand():
    assert overthinking_share(25, 100) == 0.75
    assert overthinking_share(0, 0) == 0
    with pytest.raises(ValueError, match="cannot have been needed"):
        overthinking_share(2, 1)
    assert outcome_efficiency([True, True, False], [10, None, 5], [40, 20, 20]) == pytest.approx((0.25 + 1 + 0) / 3)
    assert process_efficiency([10, 40], [40, 40]) == pytest.approx(0.625)
    with pytest.raises(ValueError, match="new solutions"):
        process_efficiency([50], [40])
    with pytest.raises(ValueError, match="no response"):
        outcome_efficiency([], [], [])


def a_course(answers: list[str | None], *, final: str = "7", rank: int = 2, problem: int = 0) -> Course:
    """A course of 100 tokens with a boundary at 0 and evenly after it."""
    step = 100 // len(answers)
    return Course(
        problem_id=str(problem), source="asked", tokens=100, final=final, right=final == "7",
        places=[step * index for index in range(len(answers))], answers=answers, shown=answers,
        right_at=[answer == "7" for answer in answers], confidence=[0.9] * len(answers),
        end_rank=[rank] * len(answers), end_logprob=[-1.0] * len(answers), taken=[False] * len(answers),
    )  # fmt: skip


def a_trace(number: int, *, right: bool = True, thinking: int = 100, finished: bool = True) -> Trace:
    return Trace(
        problem_id=str(number), method="plain", response_ids=prose(thinking, number), thinking="x",
        thinking_span=(0, thinking), finished=finished, stop="marker" if finished else "token limit",
        cost=Cost(thinking_tokens=thinking), grade=Grade(correct=right, extracted="7" if right else "8"),
    )  # fmt: skip


def found_in(traces: list[Trace], courses: list[Course], cap: int | None = 500):
    return diagnose(Columns.of(traces), courses, model="m", problems="p", method="plain", cap=cap)


def test_a_course_by_hand():
    course = a_course(["3", "7", "5", "7", "7"])
    assert (course.settled_at, course.first_right, course.overthinking) == (60, 20, pytest.approx(0.4))
    assert course.untaken == [1, 2, 3, 4]
    assert [course.right_after(cut) for cut in (0, 1, 2, 4, 9)] == [False, True, False, True, True]
    assert a_course(["7", "5"]).settled_at == 100


def test_a_model_that_stops_too_late_is_told_to_exit_and_how_far_the_marker_is():
    traces = [a_trace(number) for number in range(30)]
    found = found_in(traces, [a_course(["3", "7", "7", "7", "7"], problem=number) for number in range(30)])
    assert found.overthinking is not None
    assert found.overthinking.value == pytest.approx(0.8)
    assert found.efficiency == pytest.approx(0.2)
    assert found.at_hand is not None
    assert found.at_hand.value == 1
    assert found.without_thinking is not None
    assert found.without_thinking.value == -1
    assert [cut.value for cut in found.accuracy_after if cut] == [0, 1, 1, 1, 1]
    advice = {(each.kind, each.methods[:1]) for each in advise(found)}
    assert advice == {("try", ("deer",)), ("try", ("temperature-scaling",)), ("skip", ("no-thinking",))}
    assert all("80.0 %" in each.because for each in advise(found) if "deer" in each.methods)
    far = found_in(traces, [a_course(["3", "7", "7", "7", "7"], rank=40, problem=n) for n in range(30)])
    assert ("skip", ("temperature-scaling",)) in {(each.kind, each.methods) for each in advise(far)}


def test_the_entropy_of_the_answer_and_what_each_step_gains():
    quick = a_course(["3", "7"]).model_copy(update={"answer_entropy": [2.0, 0.5]})
    slow = a_course(["3", "5", "7"]).model_copy(update={"answer_entropy": [3.0, 3.5, 0.0]})
    assert (quick.gains, slow.gains) == ([1.5], [-0.5, 3.5])
    found = found_in([a_trace(0), a_trace(1)], [quick, slow])
    assert [each.value for each in found.answer_entropy] == [2.5, 2.0, 0.25]
    assert found_in([a_trace(0)], [a_course(["3", "7"]), quick]).answer_entropy == []


def test_a_model_that_stops_in_time_is_left_alone():
    traces = [a_trace(number) for number in range(30)]
    courses = [a_course(["3", "3", "3", "3", "3", "3", "3", "3", "3", "7"], problem=n) for n in range(30)]
    assert [each.kind for each in advise(found_in(traces, courses)) if "deer" in each.methods] == ["skip"]


def test_few_responses_decide_nothing():
    found = found_in([a_trace(0), a_trace(1)], [a_course(["3", "7", "7"]), a_course(["3", "3", "7"], problem=1)])
    assert {each.kind for each in advise(found)} <= {"unsure"}


def test_the_limit_the_wrong_ones_and_the_spoiled_ones_are_named():
    traces = [a_trace(n, thinking=50 + n) for n in range(30)]
    traces += [a_trace(n, right=False, thinking=300 + n, finished=n % 2 == 0) for n in range(30, 60)]
    spoiled = [a_course(["7", "7", "8"], final="8", problem=number) for number in range(30)]
    advice = advise(found_in(traces, spoiled))
    assert advice[0].kind == "first"
    assert "token limit of 500" in advice[0].because
    methods = [each.methods for each in advice if each.kind == "try"]
    assert ("length-filtered-vote", "budget-forcing") in methods
    assert ("self-consistency", "deer") in methods


def test_nothing_is_said_without_a_trace_and_no_interval_of_one_value():
    with pytest.raises(ValueError, match="no trace yet"):
        found_in([], [])
    alone = found_in([a_trace(0)], [])
    assert (alone.overthinking, alone.wrong_longer, advise(alone)) == (None, None, [])
    assert Measured(value=1, n=1).low is None
