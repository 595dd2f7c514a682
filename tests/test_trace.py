"""The record: what is written is read back, whatever a model wrote and whichever version wrote it."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satisfice.trace import (
    CONVENTIONS,
    SCHEMA_VERSION,
    Attempt,
    Cost,
    Event,
    Grade,
    Trace,
    read_trace,
    without_logprobs,
)

HOSTILE = [
    "",
    "\x00\x01\x1b[31m",
    "line\nbreak\r\nand\u2028more\x85",
    "naïve 😀 \ufffd \U0010ffff",
    '"}\\"]\\u0000{',
    "NaN",
    "So " * 200_000,
]


def trace(**fields: Any) -> Trace:
    return Trace(problem_id="lab-1", method="deer(threshold=0.95)", **fields)


# -- JSON


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_comes_back_as_it_was(text: str) -> None:
    written = trace(
        prompt=text,
        thinking=text,
        answer=text,
        error=text,
        stopped_by=text,
        grade=Grade(correct=False, extracted=text, note=text),
        events=[Event(at=3, kind="probe", detail={"answer": text, text: [text]})],
    )
    line = written.to_json()
    assert "\n" not in line
    assert "\r" not in line
    assert line.encode().decode() == line
    assert Trace.from_json(line) == Trace.from_json(line.encode()) == written


# -- what is left out where there is none


def test_log_probabilities_are_cut_off_unread() -> None:
    bare = trace(thinking="x", system="")
    assert "logprobs" not in bare.to_json()
    assert "system" not in bare.to_json()
    kept = bare.model_copy(update={"logprobs": [-0.1234, None, 0.0, -1e-05], "system": "Be kind."})
    line = kept.to_json().encode()
    assert line.endswith((b'"logprobs":[-0.1234,null,0.0,-0.00001]}', b"-1e-5]}"))
    assert Trace.from_json(line) == kept
    for end in (b"", b"\n"):
        assert Trace.from_json(without_logprobs(line + end)) == kept.model_copy(update={"logprobs": None})


@pytest.mark.parametrize(
    "other",
    [
        trace(thinking=',"logprobs":[1]}'),
        trace(events=[Event(at=1, kind="probe", detail={"a": 1, "logprobs": [-1.0, -2.0]})]),
        trace(later={"a": 1, "logprobs": [-1.0]}),
        trace(later=1),
    ],
    ids=range(4),
)
def test_nothing_else_is_taken_for_log_probabilities(other: Trace) -> None:
    line = other.to_json().encode()
    assert without_logprobs(line) == line


numbers = st.integers(0, 2**40)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
costs = st.builds(
    Cost,
    **{name: numbers for name in Cost.model_fields if name != "seconds"},
    seconds=st.floats(0, allow_infinity=True),
)
traces = st.builds(
    Trace,
    problem_id=st.text(),
    method=st.text(),
    prompt=st.text(),
    sample=numbers,
    seed=numbers,
    prompt_ids=st.lists(numbers, max_size=5),
    response_ids=st.lists(numbers, max_size=5),
    thinking_span=st.tuples(numbers, numbers),
    thinking=st.text(),
    answer=st.text(),
    stop=st.sampled_from(["marker", "closed by method", "end of text", "token limit", "not opened"]),
    finished=st.booleans(),
    events=st.lists(
        st.builds(Event, at=numbers, kind=st.text(), detail=st.dictionaries(st.text(), json_values, max_size=3)),
        max_size=3,
    ),
    cost=costs,
    grade=st.none() | st.builds(Grade, correct=st.booleans(), extracted=st.none() | st.text(), note=st.text()),
)


@settings(deadline=None, derandomize=True)
@given(traces)
def test_any_trace_comes_back_as_it_was(written: Trace) -> None:
    assert Trace.from_json(written.to_json()) == written


@pytest.mark.parametrize("place", ["answer", "event", "grade", "extra"])
def test_halves_of_characters_do_not_stop_a_run(place: str) -> None:
    """A server that cuts its text in the middle of a surrogate pair sends a text that no file can hold."""
    half, whole = "a\ud83d b", "a\ufffd b"

    def with_text(text: str) -> Trace:
        written = trace(answer="😀")
        match place:
            case "answer":
                written.answer = text
            case "event":
                written.events.append(Event(at=1, kind="probe", detail={"answers": [text]}))
            case "grade":
                written.grade = Grade(correct=True, extracted=text)
            case "extra":
                written = Trace(**written.model_dump(), later={"note": text})
        return written

    assert Trace.from_json(with_text(half).to_json()) == with_text(whole)


def test_an_attempt_comes_back_as_it_was() -> None:
    written = Attempt(
        problem_id="p", method="plain", error="broke at a\ud83d b", transient=True, cost=Cost(seconds=1.5)
    )
    assert Attempt.from_json(written.to_json()) == written.model_copy(update={"error": "broke at a\ufffd b"})


def test_what_failed_in_version_1_is_read_as_an_attempt() -> None:
    old = {**json.loads(trace().to_json()), "schema_version": 1, "stop": "error", "error": "EngineFailed: down"}
    read = read_trace(json.dumps(old))
    assert isinstance(read, Attempt)
    assert (read.problem_id, read.method, read.error) == (old["problem_id"], old["method"], "EngineFailed: down")
    assert isinstance(read_trace(json.dumps({**old, "stop": "marker", "error": None})), Trace)


def test_both_halves_together_are_the_character() -> None:
    assert Trace.from_json(trace(answer="\ud83d\ude00").to_json()).answer == "😀"


def test_infinite_and_undefined_numbers_are_written_as_valid_json() -> None:
    written = trace(
        cost=Cost(seconds=math.inf),
        events=[Event(at=1, kind="probe", detail={"confidence": -math.inf, "entropy": math.nan})],
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(written.to_json(), parse_constant=refuse)
    read = Trace.from_json(written.to_json())
    assert read.cost.seconds == math.inf
    assert read.events[0].detail == {"confidence": "-Infinity", "entropy": "NaN"}
    assert math.isnan(Trace.from_json(trace(cost=Cost(seconds=math.nan)).to_json()).cost.seconds)


# -- versions


def test_unknown_fields_survive_at_every_level() -> None:
    record = json.loads(trace(events=[Event(at=1, kind="probe")], grade=Grade(correct=True)).to_json())
    for level in (record, record["cost"], record["grade"], record["events"][0], record["events"][0]["detail"]):
        level["later"] = {"deep": [1, None, "x"]}
    read = Trace.from_json(json.dumps(record))
    assert json.loads(read.to_json()) == record
    assert Trace.from_json(read.to_json()) == read


def test_fields_left_out_have_their_defaults() -> None:
    read = Trace.from_json('{"problem_id": "lab-1", "method": "plain"}')
    assert read == Trace(problem_id="lab-1", method="plain")
    assert (read.schema_version, read.thinking_span, read.cost, read.grade) == (SCHEMA_VERSION, (0, 0), Cost(), None)


def test_a_newer_schema_is_refused_even_if_it_cannot_be_understood() -> None:
    newer = {"schema_version": SCHEMA_VERSION + 1, "problem": "lab-1", "stop": "a reason of the future"}
    with pytest.raises(ValueError, match=f"schema version {SCHEMA_VERSION + 1}, .* up to {SCHEMA_VERSION}: upgrade"):
        Trace.from_json(json.dumps(newer))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem_id": "lab-1", "meth', "not a trace: the line is not JSON .*EOF"),  # a run killed while writing
        ("", "not a trace: the line is not JSON"),
        ("[1, 2]", "not a trace: the line"),
        ('{"method": "plain"}', "not a trace: problem_id: Field required"),
        ('{"problem_id": "a", "method": "plain", "events": [{"at": 1}]}', r"not a trace: events\.0\.kind: Field req"),
        ('{"problem_id": "a", "method": "plain", "stop": "bored"}', "not a trace: stop: Input should be 'marker'"),
        ('{"problem_id": "a", "method": "plain", "schema_version": "x"}', "not a trace: schema_version: "),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Trace.from_json(line)
    assert "\n" not in str(error.value)


# -- counting

# different powers of two, so that every sum tells what was added
COST = Cost(
    thinking_tokens=1,
    answer_tokens=2,
    forced_tokens=4,
    probe_tokens=8,
    branch_tokens=16,
    outline_tokens=32,
    prefilled_tokens=64,
    cached_tokens=128,
    forward_passes=256,
)


@pytest.mark.parametrize(
    ("convention", "count"), [("thinking", 1), ("retained", 3), ("total", 59), ("with prefill", 123)]
)
def test_counts_by_convention(convention: str, count: int) -> None:
    assert COST.count(convention) == count


def test_every_convention_can_be_counted_and_agrees_with_the_properties() -> None:
    assert {name: COST.count(name) for name in CONVENTIONS} == {
        "thinking": 1,
        "retained": COST.retained_tokens,
        "total": COST.total_tokens,
        "with prefill": COST.total_tokens + 64,
    }


def test_an_unknown_convention_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'all'; use one of thinking, retained, total, with prefill"):
        COST.count("all")


def test_verdicts() -> None:
    assert not trace().correct
    assert not trace(grade=Grade(correct=False)).correct
    assert trace(grade=Grade(correct=True)).correct
    assert trace(finished=False).truncated
    assert not trace().truncated
