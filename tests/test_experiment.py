"""Running methods over problems: pairing, resuming, failing, being killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from intervention.scripted import ScriptedEngine, follow

from satisfice.engines.base import Capability, EngineError, Sampling
from satisfice.experiment import Experiment, Progress, check, every_method, methods_from, run, sample_seed
from satisfice.intervention import METHODS, MethodError, parse_method
from satisfice.lab import ALL_METHODS
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import GraderPool, Problem, ProblemSet
from satisfice.run_folder import RunFolder, RunFolderError, read_run

THINKING = "<think>\nSo 3.\n\n</think>\n\nThe answer is \\boxed{3}."


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def problem_set(*answers):
    problems = [Problem(f"p{index}", f"Start with {index}", answer) for index, answer in enumerate(answers)]
    return ProblemSet("some", problems, [])


def execute(engine, experiment, folder, progress=None):
    with RunFolder.create_or_open(folder, experiment.configuration(engine)) as run_folder, GraderPool() as graders:
        asyncio.run(run(engine, experiment, run_folder, graders, progress))
    return read_run(folder)


def experiment(problems, *methods, **options):
    sampling = options.pop("sampling", Sampling(temperature=0, max_tokens=50))
    return Experiment(problems, methods_from(methods or ("plain",)), sampling, **options)


def test_every_method_meets_every_problem_with_the_same_seeds(tokenizer, tmp_path):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING))
    chosen = experiment(problem_set("3", "4"), "budget-forcing:max_thinking=9", "plain", samples=2, seed=5)
    assert str(chosen.methods[0]) == "plain"  # the baseline comes first
    result = execute(engine, chosen, tmp_path / "run")
    for traces in result.traces.values():
        assert {(trace.problem_id, trace.sample, trace.correct) for trace in traces} == {
            ("p0", 0, True), ("p0", 1, True), ("p1", 0, False), ("p1", 1, False),
        }  # fmt: skip
    seeds = [{(t.problem_id, t.sample): t.seed for t in traces} for traces in result.traces.values()]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0].values())) == 4
    assert seeds[0][("p1", 1)] == sample_seed(5, "p1", 1)


def test_instruction_and_system_turn_reach_the_model_but_not_the_record(tokenizer, tmp_path):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING))
    chosen = experiment(problem_set("3"), instruction="Think briefly", system="Use tokens")
    trace = execute(engine, chosen, tmp_path / "run").traces["plain"][0]
    text = engine.calls[0][0]
    assert "Use<|unknown|>tokens" in text.replace(" ", "") or "Use" in text
    assert "Start with 0\n\nThink" in text
    assert trace.prompt == "Start with 0"


def test_a_failing_problem_is_recorded_and_stops_nothing(tokenizer, tmp_path):
    script = follow(tokenizer, THINKING)

    def failing(text):
        if "Start with 1" in text:
            raise RuntimeError("the model is on fire")
        return script(text)

    result = execute(ScriptedEngine(tokenizer, failing), experiment(problem_set("3", "3", "3")), tmp_path / "run")
    by_id = {trace.problem_id: trace for trace in result.traces["plain"]}
    assert by_id["p0"].correct
    assert by_id["p2"].correct
    assert not by_id["p1"].correct
    assert by_id["p1"].stop == "error"
    assert "RuntimeError: the model is on fire" in by_id["p1"].error


def test_resuming_does_only_what_is_missing_and_changes_no_finished_trace(tokenizer, tmp_path):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING))
    problems = problem_set("3", "3", "3", "3")
    chosen = experiment(problems, "plain", "budget-forcing:max_thinking=9", concurrency=1)
    stopped = []

    def stop_after_three(trace):
        stopped.append(trace)
        if len(stopped) == 3:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        execute(engine, chosen, tmp_path / "run", Progress(advance=stop_after_three))
    before = (tmp_path / "run" / "traces-plain.jsonl").read_bytes()
    assert before.count(b"\n") == 3
    calls = len(engine.calls)
    begun = []
    result = execute(engine, chosen, tmp_path / "run", Progress(begin=lambda *what: begun.append(what)))
    assert begun == [("plain", 4, 3), ("budget-forcing:max_thinking=9", 4, 0)]
    assert (tmp_path / "run" / "traces-plain.jsonl").read_bytes().startswith(before)
    assert {method: len(traces) for method, traces in result.traces.items()} == dict.fromkeys(result.traces, 4)
    assert len(engine.calls) - calls == 1 + 2 * 4  # budget forcing asks twice: thinking, answer


def test_a_changed_configuration_is_refused_with_the_difference(tokenizer, tmp_path):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING))
    chosen = experiment(problem_set("3"))
    execute(engine, chosen, tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"sampling.max_tokens: 50 -> 60"):
        execute(engine, replace(chosen, sampling=Sampling(temperature=0, max_tokens=60)), tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"problems.digest"):
        execute(engine, replace(chosen, problems=problem_set("4")), tmp_path / "run")


def test_what_cannot_work_is_refused_before_anything_is_paid_for(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING), without=[Capability.CONTROL])
    with pytest.raises(EngineError, match="needs control"):
        check(engine, experiment(problem_set("3"), "temperature-scaling"))
    with pytest.raises(ValueError, match="given twice"):
        check(engine, experiment(problem_set("3"), "plain", "plain"))
    with pytest.raises(EngineError, match="lower max_tokens"):
        check(engine, experiment(problem_set("3"), sampling=Sampling(max_tokens=4096)))
    assert engine.calls == []


def test_a_companion_must_be_attached_and_is_part_of_the_configuration(tokenizer, tmp_path):
    reasoner, instruct = (ScriptedEngine(tokenizer, follow(tokenizer, THINKING)) for _ in range(2))
    chosen = experiment(problem_set("3"), "cothink:outliner=instruct")
    with pytest.raises(EngineError, match="no companion 'instruct'"):
        check(reasoner, chosen)
    assert "companions" not in chosen.configuration(reasoner)

    instruct.name, instruct.digest = "a small one", "abc"
    reasoner.companions = {"instruct": instruct}
    result = execute(reasoner, chosen, tmp_path / "run")
    assert result.config["companions"] == {"instruct": {"model": "a small one", "model_digest": "abc"}}
    instruct.digest = "other weights"
    with pytest.raises(RunFolderError, match=r"companions.instruct.model_digest: \"abc\" -> \"other weights\""):
        execute(reasoner, chosen, tmp_path / "run")
    reasoner.companions = {}
    with pytest.raises(RunFolderError, match="companions: "):
        RunFolder.create_or_open(tmp_path / "run", chosen.configuration(reasoner))


# -- all


def test_all_stands_for_every_method_and_takes_none_twice():
    every = [parse_method(spelled) for spelled in ("no-wait", "plain", "temperature-scaling:t=0.9")]
    spelled = [str(method) for method in methods_from(["all"], every)]
    assert spelled == ["plain", "no-wait", "temperature-scaling"]
    more = methods_from(["temperature-scaling", "all", "all", "no-wait", "temperature-scaling:t=0.8"], every)
    assert [str(method) for method in more] == [*spelled, "temperature-scaling:t=0.8"]
    # Without "all" a repetition is a mistake, as before.
    assert len(methods_from(["plain", "plain"], every)) == 2
    with pytest.raises(MethodError, match="there is no method 'plan'"):
        methods_from(["all", "plan"], every)


def test_for_the_lab_all_means_the_labs_own_spellings(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING))
    engine.levels = {"short": "Think briefly"}
    methods, left_out = every_method("lab", engine)
    assert ([str(method) for method in methods], left_out) == (list(ALL_METHODS), [])


def test_for_other_models_all_means_every_method_that_runs_by_its_defaults(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING))
    engine.levels = {"short": "Think briefly"}
    methods, left_out = every_method("some/model", engine)
    assert [str(method) for method in methods] == [name for name in METHODS if name not in ("entrocut", "tldr")]
    tau, level = left_out
    assert tau.startswith("entrocut: tau has no published value")
    assert "satisfice calibrate MODEL --method entrocut" in tau
    assert level.startswith("tldr: say which level, as in tldr:level=short")


def test_all_leaves_out_what_an_engine_cannot_do(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING), without=[Capability.CONTROL])
    methods, left_out = every_method("lab", engine)
    assert {"no-wait", "temperature-scaling"}.isdisjoint(method.name for method in methods)
    assert [sentence.partition(" (")[0] for sentence in left_out] == [
        "temperature-scaling needs control, which scripted does not offer",
        "no-wait needs control, which scripted does not offer",
        "tldr: scripted was not trained on levels",
    ]
    with pytest.raises(EngineError, match="no-wait needs control"):  # asked for by name it is refused
        check(engine, experiment(problem_set("3"), "no-wait"))


def test_a_hostile_answer_neither_hangs_nor_stops_a_run(tokenizer, tmp_path):
    hostile = "<think>\nSo 3.\n\n</think>\n\n\\boxed{9**9**9**9}"
    engine = ScriptedEngine(tokenizer, follow(tokenizer, hostile))
    problems = ProblemSet("hostile", [Problem("p", "Start with 1", "x^{2}+1"), Problem("q", "Start with 2", "3")], [])
    chosen = experiment(problems)
    started = time.monotonic()
    with (
        RunFolder.create_or_open(tmp_path / "run", chosen.configuration(engine)) as folder,
        GraderPool(timeout=2) as graders,
    ):
        asyncio.run(run(engine, chosen, folder, graders))
        assert len(folder.done()) == 2
    assert time.monotonic() - started < 60
    assert not any(trace.correct for trace in read_run(tmp_path / "run").traces["plain"])


COMMAND = [
    sys.executable, "-m", "satisfice.cli", "compare", "lab", "--problems", "lab:calibration", "--limit", "60",
    "--methods", "plain", "temperature-scaling:t=0.8", "--max-batch", "4", "--concurrency", "4",
]  # fmt: skip


def test_a_killed_run_is_finished_by_the_same_command(tmp_path):
    """A real process, a real kill: whatever was finished stays, and the whole equals a run that was never killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [*COMMAND, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    traces = tmp_path / "killed" / "traces-plain.jsonl"
    deadline = time.monotonic() + 120
    while not (traces.exists() and traces.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    survived = traces.read_bytes()
    survived = survived[: survived.rindex(b"\n") + 1]
    assert survived.count(b"\n") < 60, "the run was too quick to be killed"

    for folder in ("killed", "whole"):
        done = subprocess.run(
            [*COMMAND, "--out", str(tmp_path / folder)], env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
    assert traces.read_bytes().startswith(survived)
    killed, whole = read_run(tmp_path / "killed"), read_run(tmp_path / "whole")
    for method in whole.traces:
        assert {t.problem_id: t.response_ids for t in killed.traces[method]} == {
            t.problem_id: t.response_ids for t in whole.traces[method]
        }
    assert (tmp_path / "killed" / "report.html").exists()
    summary = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert [row["n"] for row in summary["rows"]] == [60, 60]


def heed_ctrl_c():
    """A shell that runs something in the background has it ignore SIGINT, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [*COMMAND, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    )
    traces = tmp_path / "run" / "traces-plain.jsonl"
    deadline = time.monotonic() + 120
    while not (traces.exists() and traces.read_bytes().count(b"\n") >= 5):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert {len(found) for found in read_run(tmp_path / "run").traces.values()} == {60}
