import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satisfice.runs.run_folder import RunFolder, RunFolderError, against, read_run, trace_file_names, write_atomically
from satisfice.trace import Cost, Event, Grade, Trace

CONFIG = {
    "schema_version": 1,
    "command": "satisfice run",
    "model": "lab",
    "problems": {"name": "sums", "digest": "abc", "n": 3},
    "methods": ["plain", "deer:tau=0.9"],
    "samples": 2,
    "seed": 0,
    "sampling": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "max_tokens": 512},
    "versions": {"satisfice": "0.1.0", "torch": "2.6.0"},
    "device": "cpu",
    "baseline": "plain",
    "created": "2026-01-01T00:00:00Z",
}


def a_trace(method: str = "plain", problem: str = "p1", sample: int = 0, **fields: object) -> Trace:
    return Trace(method=method, problem_id=problem, sample=sample, grade=Grade(correct=True), **fields)  # type: ignore[arg-type]


def changed(**changes: object) -> dict[str, object]:
    return {**CONFIG, **changes}


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    trace = a_trace(
        response_ids=[1, 70000, 70000],
        thinking="one\ntwo \u2028 \u202e \x00",
        thinking_span=(0, 2),
        events=[Event(at=1, kind="probe", detail={"answer": "4", "confidence": 0.5})],
        cost=Cost(thinking_tokens=2, answer_tokens=1),
    )
    with RunFolder.create_or_open(tmp_path / "a" / "run", CONFIG) as folder:
        folder.append(trace)
        folder.append(a_trace(sample=1))
        assert folder.done() == {("plain", "p1", 0), ("plain", "p1", 1)}
        assert folder.traces("plain")[0] == trace
        assert folder.traces("deer:tau=0.9") == []
        assert read_run(folder.path).traces["plain"][0] == trace, "a reader needs no lock"
    run = read_run(tmp_path / "a" / "run")
    assert list(run.traces) == CONFIG["methods"]
    assert run.config["sampling"] == CONFIG["sampling"]
    lines = (tmp_path / "a" / "run" / "traces-plain.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 3
    assert lines[-1] == b""


def test_reopening_keeps_what_is_done(tmp_path: Path) -> None:
    with RunFolder.create_or_open(tmp_path, CONFIG) as folder:
        folder.append(a_trace())
    before = (tmp_path / "traces-plain.jsonl").read_bytes()
    with RunFolder.create_or_open(tmp_path, changed(command="other words", created="later")) as folder:
        assert folder.done() == {("plain", "p1", 0)}
        assert folder.warnings == []
        assert folder.config["created"] == CONFIG["created"]
        with pytest.raises(RunFolderError, match="finished trace is never changed"):
            folder.append(a_trace())
        folder.append(a_trace("deer:tau=0.9"))
    assert (tmp_path / "traces-plain.jsonl").read_bytes() == before


def test_another_configuration_is_refused_key_by_key(tmp_path: Path) -> None:
    RunFolder.create_or_open(tmp_path, CONFIG).close()
    other = changed(seed=1, sampling={**CONFIG["sampling"], "temperature": 1.0}, prompt="boxed")
    with pytest.raises(RunFolderError) as refusal:
        RunFolder.create_or_open(tmp_path, other)
    message = str(refusal.value)
    assert "seed: 0 -> 1" in message
    assert "sampling.temperature: 0.6 -> 1.0" in message
    assert 'prompt: (none) -> "boxed"' in message
    assert "top_p" not in message
    without_seed = {key: value for key, value in CONFIG.items() if key != "seed"}
    with pytest.raises(RunFolderError, match=r"seed: 0 -> \(none\)"):
        RunFolder.create_or_open(tmp_path, without_seed)
    RunFolder.create_or_open(tmp_path, CONFIG).close()  # a refusal leaves the folder unlocked


def test_a_change_of_versions_is_kept_as_a_warning_once(tmp_path: Path) -> None:
    RunFolder.create_or_open(tmp_path, CONFIG).close()
    newer = changed(versions={"satisfice": "0.1.0", "torch": "2.7.0"}, device="gpu")
    for _ in range(2):
        with RunFolder.create_or_open(tmp_path, newer) as folder:
            assert folder.warnings == [
                'versions.torch: "2.6.0" -> "2.7.0" when the run was resumed',
                'device: "cpu" -> "gpu" when the run was resumed',
            ]
    config = read_run(tmp_path).config
    assert config["warnings"] == folder.warnings
    assert config["versions"] == CONFIG["versions"]


@pytest.mark.parametrize("tail", [b'{"problem_id":"p3","meth', b"\x00\x00", json.dumps({"problem_id": "p3"}).encode()])
def test_a_torn_last_line_is_ignored_then_cut_off(tmp_path: Path, tail: bytes) -> None:
    with RunFolder.create_or_open(tmp_path, CONFIG) as folder:
        folder.append(a_trace())
        folder.append(a_trace(problem="p2", thinking="long " * 40_000))
    path = tmp_path / "traces-plain.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert [trace.problem_id for trace in read_run(tmp_path).traces["plain"]] == ["p1", "p2"]
    assert path.read_bytes() == whole + tail, "reading changes nothing"
    with RunFolder.create_or_open(tmp_path, CONFIG) as folder:
        assert path.read_bytes() == whole
        folder.append(a_trace(problem="p3"))
    assert [trace.problem_id for trace in read_run(tmp_path).traces["plain"]] == ["p1", "p2", "p3"]


def test_a_file_of_one_long_torn_line_is_emptied(tmp_path: Path) -> None:
    RunFolder.create_or_open(tmp_path, CONFIG).close()
    path = tmp_path / "traces-plain.jsonl"
    path.write_bytes(b"x" * 200_000)
    with RunFolder.create_or_open(tmp_path, CONFIG) as folder:
        assert folder.done() == set()
    assert path.read_bytes() == b""


def test_a_bad_line_in_the_middle_is_an_error_with_its_place(tmp_path: Path) -> None:
    with RunFolder.create_or_open(tmp_path, CONFIG) as folder:
        folder.append(a_trace())
    path = tmp_path / "traces-plain.jsonl"
    path.write_bytes(path.read_bytes() + b'{"problem_id": \n' + a_trace(problem="p2").to_json().encode() + b"\n")
    with pytest.raises(RunFolderError, match=r"traces-plain\.jsonl line 2: not a trace.*does that problem again"):
        read_run(tmp_path)
    with pytest.raises(RunFolderError, match="line 2"):
        RunFolder.create_or_open(tmp_path, CONFIG)


def test_a_trace_twice_in_a_file_is_an_error(tmp_path: Path) -> None:
    with RunFolder.create_or_open(tmp_path, CONFIG) as folder:
        folder.append(a_trace())
    path = tmp_path / "traces-plain.jsonl"
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(RunFolderError, match=r"line 2: problem 'p1', sample 0 stands there a second time"):
        read_run(tmp_path)


def test_a_trace_of_a_newer_schema_says_so(tmp_path: Path) -> None:
    RunFolder.create_or_open(tmp_path, CONFIG).close()
    newer = {**json.loads(a_trace().to_json()), "schema_version": 99}
    (tmp_path / "traces-plain.jsonl").write_text(json.dumps(newer) + "\n")
    with pytest.raises(RunFolderError, match="schema version 99"):
        read_run(tmp_path)


def test_digests_are_told_apart_by_their_first_digits(tmp_path: Path) -> None:
    first, second = ("0123456789ab" + "c" * 52, "ba9876543210" + "c" * 52)
    RunFolder.create_or_open(tmp_path, {**CONFIG, "problems": {"name": "sums", "digest": first, "n": 3}}).close()
    with pytest.raises(
        RunFolderError, match=r"problems.digest: 0123456789ab\.\.\. -> ba9876543210\.\.\.\. Use another"
    ):
        RunFolder.create_or_open(tmp_path, {**CONFIG, "problems": {"name": "sums", "digest": second, "n": 3}})


def test_foreign_traces_are_refused(tmp_path: Path) -> None:
    with RunFolder.create_or_open(tmp_path, CONFIG) as folder:
        with pytest.raises(RunFolderError, match="'dts' is not part of the run"):
            folder.append(a_trace("dts"))
        with pytest.raises(RunFolderError, match="'dts' is not part of the run"):
            folder.traces("dts")
        folder.append(a_trace())
    (tmp_path / "traces-plain.jsonl").rename(tmp_path / "traces-deer-tau-0.9.jsonl")
    with pytest.raises(RunFolderError, match=r"line 1 is a trace of 'plain', but this file is for 'deer:tau=0.9'"):
        read_run(tmp_path)
    (tmp_path / "traces-deer-tau-0.9.jsonl").rename(tmp_path / "traces-other.jsonl")
    with pytest.raises(RunFolderError, match=r"traces-other\.jsonl belongs to no method"):
        read_run(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunFolderError, match=r"traces-other\.jsonl but no run\.json"):
        RunFolder.create_or_open(tmp_path, CONFIG)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        read_run(tmp_path)
    for content in ("{", "[]", "{}", '{"methods": []}', '{"methods": ["a", "a"]}'):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(RunFolderError, match=r"run\.json"):
            read_run(tmp_path)
    with pytest.raises(RunFolderError, match="methods"):
        RunFolder.create_or_open(tmp_path / "new", {"model": "lab"})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"baseline": "plan"}, "the baseline 'plan' is none of its methods"),
        ({"files": {"plain": "../traces-plain.jsonl"}}, "no file of 'plain' alone in this folder"),
        ({"files": {"plain": "plain.txt"}}, "no file of 'plain' alone in this folder"),
        ({"files": {"deer": "traces-deer.jsonl"}}, "files: 'deer' is none of its methods"),
        ({"sampling": {"max_tokens": ["a", "b"]}}, "sampling.max_tokens: "),
        ({"sampling": {"max_tokens": 0}}, "sampling.max_tokens: "),
        ({"sampling": {"temperature": "warm"}}, "sampling.temperature: "),
        ({"problems": {"n": -3}}, "problems.n: "),
    ],
)
def test_a_damaged_field_is_named_by_whoever_opens_the_run(
    tmp_path: Path, damage: dict[str, object], message: str
) -> None:
    with RunFolder.create_or_open(tmp_path, CONFIG):
        pass
    stored = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**stored, **damage}))
    for opened in (read_run, lambda folder: RunFolder.create_or_open(folder, CONFIG)):
        with pytest.raises(RunFolderError, match="is damaged") as error:
            opened(tmp_path)
        assert message in str(error.value)


@pytest.mark.parametrize("key", ["model", "samples", "seed", "sampling", "problems"])
def test_a_run_that_does_not_say_how_it_was_made_is_compared_with_none(tmp_path: Path, key: str) -> None:
    for name in ("here", "there"):
        with RunFolder.create_or_open(tmp_path / name, {**CONFIG, "model": "some"}):
            pass
    stored = json.loads((tmp_path / "there" / "run.json").read_text())
    del stored[key]
    (tmp_path / "there" / "run.json").write_text(json.dumps(stored))
    here, there = read_run(tmp_path / "here"), read_run(tmp_path / "there")
    for pair in ((here, there), (there, here)):
        with pytest.raises(RunFolderError, match=f"there/run.json does not say {key}"):
            against(*pair)


def test_traces_of_no_method_are_refused_before_a_run_goes_on(tmp_path: Path) -> None:
    with RunFolder.create_or_open(tmp_path, CONFIG):
        pass
    (tmp_path / "traces-lost.jsonl").write_text("")
    with pytest.raises(RunFolderError, match=r"traces-lost.jsonl belongs to no method"):
        RunFolder.create_or_open(tmp_path, CONFIG)


def test_a_closed_folder_takes_no_traces(tmp_path: Path) -> None:
    folder = RunFolder.create_or_open(tmp_path, CONFIG)
    folder.close()
    folder.close()
    with pytest.raises(RunFolderError, match="was closed"):
        folder.append(a_trace())


def test_a_lone_surrogate_does_not_stop_a_run(tmp_path: Path) -> None:
    with RunFolder.create_or_open(tmp_path, CONFIG) as folder:
        folder.append(a_trace(thinking="half an emoji \ud83d.", answer="é"))
    [trace] = read_run(tmp_path).traces["plain"]
    assert trace.thinking.startswith("half an emoji ")
    assert trace.answer == "é"


def test_a_line_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    script = f"""
        import resource, signal
        from satisfice.runs.run_folder import RunFolder
        from satisfice.trace import Trace
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with RunFolder.create_or_open({str(tmp_path)!r}, {CONFIG!r}) as folder:
            folder.append(Trace(method="plain", problem_id="p1"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            try:
                folder.append(Trace(method="plain", problem_id="p2", thinking="long " * 2000))
            except OSError:
                print("refused")
            folder.append(Trace(method="plain", problem_id="p3"))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert [trace.problem_id for trace in read_run(tmp_path).traces["plain"]] == ["p1", "p3"]


def test_two_writers_are_kept_apart_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    script = f"""
        import os, time
        from satisfice.runs.run_folder import RunFolder
        from satisfice.trace import Trace
        folder = RunFolder.create_or_open({str(tmp_path)!r}, {CONFIG!r})
        folder.append(Trace(method="plain", problem_id="p1"))
        worker = os.fork()  # a worker that outlives its parent must not keep the lock
        if worker == 0:
            time.sleep(60)
        print(worker, flush=True)
        time.sleep(60)
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert other.stdout is not None
    worker = int(other.stdout.readline())
    try:
        with pytest.raises(RunFolderError, match=rf"another process \(pid {other.pid}\) is writing"):
            RunFolder.create_or_open(tmp_path, CONFIG)
        other.send_signal(signal.SIGKILL)
        other.wait()
        with RunFolder.create_or_open(tmp_path, CONFIG) as folder:
            assert folder.done() == {("plain", "p1", 0)}
            with pytest.raises(RunFolderError, match=rf"already open for writing in this process \(pid {os.getpid()}"):
                RunFolder.create_or_open(tmp_path, CONFIG)
    finally:
        os.kill(worker, signal.SIGKILL)
        other.stdout.close()


def test_a_run_against_another(tmp_path: Path) -> None:
    with RunFolder.create_or_open(tmp_path / "trained", changed(model="trained")) as folder:
        folder.append(a_trace())
    with RunFolder.create_or_open(tmp_path / "base", changed(methods=["deer:tau=0.9", "plain"])) as folder:
        folder.append(a_trace(thinking="long"))
        folder.append(a_trace(method="deer:tau=0.9"))
    run, base = read_run(tmp_path / "trained"), read_run(tmp_path / "base")
    both = against(run, base)
    assert list(both.traces) == both.config["methods"] == [
        "plain (lab)", "deer:tau=0.9 (lab)", "plain", "deer:tau=0.9"
    ]  # fmt: skip
    assert both.config["baseline"] == "plain (lab)"
    assert both.traces["plain (lab)"][0].thinking == "long"
    assert both.traces["deer:tau=0.9 (lab)"][0].method == "deer:tau=0.9"
    assert run.config["methods"] == CONFIG["methods"]  # untouched
    assert both.files["plain (lab)"] == str(tmp_path / "base" / "traces-plain.jsonl")
    assert both.files["plain"] == "traces-plain.jsonl"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "differ in their seed"),
        ({"samples": 4}, "differ in their number of samples"),
        ({"sampling": {"temperature": 1.0}}, "differ in their sampling"),
        ({"problems": {"name": "others", "digest": "x", "n": 3}}, "only the same problems can be paired"),
    ],
)
def test_what_was_asked_otherwise_is_not_paired(tmp_path: Path, change: dict[str, object], message: str) -> None:
    for name, config in (("trained", CONFIG), ("base", changed(**change))):
        with RunFolder.create_or_open(tmp_path / name, config):
            pass
    with pytest.raises(RunFolderError, match=message):
        against(read_run(tmp_path / "trained"), read_run(tmp_path / "base"))


def test_file_names_are_readable() -> None:
    assert trace_file_names(["plain", "temperature-scaling:t=0.9", "deer:tau=0.95,min_steps=2"]) == {
        "plain": "traces-plain.jsonl",
        "temperature-scaling:t=0.9": "traces-temperature-scaling-t-0.9.jsonl",
        "deer:tau=0.95,min_steps=2": "traces-deer-tau-0.95-min-steps-2.jsonl",
    }


@given(st.lists(st.text(max_size=150), min_size=1, max_size=8, unique=True))
def test_file_names_are_safe_and_never_collide(methods: list[str]) -> None:
    names = list(trace_file_names(methods).values())
    assert len({name.lower() for name in names}) == len(methods)
    assert all(name.isascii() and len(name) < 140 and "/" not in name and name.endswith(".jsonl") for name in names)


def test_file_names_that_would_collide_get_a_digest() -> None:
    names = trace_file_names(["bias:b=2", "bias:b=-2", "Bias:b=2", "plain"])
    assert len(set(names.values())) == 4
    assert names["plain"] == "traces-plain.jsonl"


def test_writing_atomically_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_the_summary_is_written_whole(tmp_path: Path) -> None:
    with RunFolder.create_or_open(tmp_path, CONFIG) as folder:
        assert json.loads(folder.write_summary({"rows": []}).read_text()) == {"rows": []}
