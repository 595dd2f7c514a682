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

from satisfice.attention import DENSE, Attention
from satisfice.engines.base import Capability, EngineClosed, EngineError, EngineFailed, Sampling, Usage
from satisfice.intervention import METHODS, MethodError, lab_spellings, parse_method
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import GraderPool, Problem, ProblemSet
from satisfice.runs import experiment as running
from satisfice.runs.experiment import (
    Experiment,
    Progress,
    RunStopped,
    check,
    every_method,
    methods_from,
    run,
    sample_seed,
)
from satisfice.runs.run_folder import RunFolder, RunFolderError, read_run

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


def failing_on(tokenizer, question, error):
    """An engine that raises `error` on each problem whose text holds `question`; `error` may be emptied meanwhile."""
    script = follow(tokenizer, THINKING)

    def failing(text):
        if question in text and error:
            raise error[0]
        return script(text)

    return ScriptedEngine(tokenizer, failing)


def test_a_problem_that_fails_is_an_attempt_and_stops_nothing(tokenizer, tmp_path):
    error = [RuntimeError("the model is on fire")]
    engine = failing_on(tokenizer, "Start with 1", error)
    failed = []
    chosen = experiment(problem_set("3", "3", "3"))
    result = execute(engine, chosen, tmp_path / "run", Progress(fail=failed.append))
    assert sorted(trace.problem_id for trace in result.traces["plain"]) == ["p0", "p2"]
    (attempt,) = result.attempts["plain"]
    assert (attempt.problem_id, attempt.method, attempt.sample) == ("p1", "plain", 0)
    assert "RuntimeError: the model is on fire" in attempt.error
    assert (attempt.transient, attempt.unexpected) == (False, True)
    assert result.failed("plain") == failed == [attempt]
    # The same command tries it again, and it alone.
    error.clear()
    calls = len(engine.calls)
    again = execute(engine, chosen, tmp_path / "run")
    assert len(engine.calls) - calls == 1
    assert {trace.problem_id for trace in again.traces["plain"]} == {"p0", "p1", "p2"}
    assert again.attempts["plain"] == [attempt]
    assert again.failed("plain") == []


def test_what_is_transient_is_tried_again_at_once(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PAUSE", 0.0)
    errors = [EngineFailed("hiccup", Usage(generated=5, prefilled=7, forward_passes=6))]
    script = follow(tokenizer, THINKING)

    def once(text):
        if errors:
            raise errors.pop()
        return script(text)

    result = execute(ScriptedEngine(tokenizer, once), experiment(problem_set("3")), tmp_path / "run")
    assert result.traces["plain"][0].correct
    (attempt,) = result.attempts["plain"]
    assert (attempt.transient, attempt.error) == (True, "EngineFailed: hiccup")
    assert (attempt.cost.branch_tokens, attempt.cost.prefilled_tokens, attempt.cost.forward_passes) == (5, 7, 6)
    assert result.failed("plain") == []


def test_what_stays_transient_is_given_up_after_a_few_tries(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PAUSE", 0.0)
    engine = failing_on(tokenizer, "Start with", [EngineFailed("down")])
    result = execute(engine, experiment(problem_set("3", "3")), tmp_path / "run")
    assert not result.traces["plain"]
    assert len(result.attempts["plain"]) == 2 * (running.TRIES + 1)  # and one each, alone, at the end
    assert len(result.failed("plain")) == 2


def test_what_one_request_took_down_gets_a_try_of_its_own(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PAUSE", 0.0)
    script = follow(tokenizer, THINKING)
    under_way = set()

    class Shared(ScriptedEngine):
        """Fails for all that run while the poisonous problem does."""

        async def generate(self, prompt_ids, sampling, **options):
            mine = object()
            under_way.add(mine)
            poisonous = "Start with 2" in tokenizer.decode(prompt_ids)
            await asyncio.sleep(0.001)
            together = len(under_way) > 1
            under_way.discard(mine)
            if poisonous or together:
                raise EngineFailed("a step failed")
            return await super().generate(prompt_ids, sampling, **options)

    failed = []
    engine = Shared(tokenizer, script)
    result = execute(engine, experiment(problem_set("3", "3", "3")), tmp_path / "run", Progress(fail=failed.append))
    assert {trace.problem_id for trace in result.traces["plain"]} == {"p0", "p1"}
    assert [attempt.problem_id for attempt in failed] == ["p2"]


def test_an_outage_at_the_end_of_a_method_is_not_waited_out_one_by_one(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PAUSE", 0.0)
    script = follow(tokenizer, THINKING)

    def down_for_the_last(text):
        if len(engine.calls) >= 25:
            raise EngineFailed("the server is down")
        return script(text)

    engine = ScriptedEngine(tokenizer, down_for_the_last)
    chosen = experiment(problem_set(*["3"] * 45), concurrency=40)  # too few failures to stop the first pass
    with pytest.raises(RunStopped, match=r"12 of 12 responses could not be had"):
        execute(engine, chosen, tmp_path / "run")


def test_an_outage_stops_a_run_however_much_was_answered_before(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PAUSE", 0.0)
    script = follow(tokenizer, THINKING)

    def down_after_forty(text):
        if len(engine.calls) >= 40:
            raise EngineFailed("the server is down")
        return script(text)

    engine = ScriptedEngine(tokenizer, down_after_forty)
    chosen = experiment(problem_set(*["3"] * 200), concurrency=8)
    with pytest.raises(RunStopped, match=r"16 responses in a row could not be had, .* the server is down"):
        execute(engine, chosen, tmp_path / "run")
    assert len(read_run(tmp_path / "run").traces["plain"]) >= 32


@pytest.mark.parametrize(
    ("error", "healthy", "stops"),
    [
        (RuntimeError("broken"), 0, True),
        (RuntimeError("broken"), 5, True),
        (RuntimeError("broken"), 40, False),
        (EngineError("too long"), 0, True),  # nothing works at all
        (EngineError("too long"), 5, False),  # each touches itself alone
    ],
)
def test_a_run_in_which_most_requests_fail_stops(tokenizer, tmp_path, error, healthy, stops):
    # Problem n begins "Start with n": those from 60 on fail.
    problems = ProblemSet(
        "some",
        [Problem(f"p{n}", f"Start with {n}", "3", source="some") for n in [*range(10, 10 + healthy), *range(60, 90)]],
        [],
    )
    script = follow(tokenizer, THINKING)

    def failing(text):
        if int(text.replace(" ", "").partition("Startwith")[2][:2]) >= 60:
            raise error
        return script(text)

    chosen = experiment(problems, concurrency=1)
    engine = ScriptedEngine(tokenizer, failing)
    if stops:
        with pytest.raises(RunStopped, match=str(error)):
            execute(engine, chosen, tmp_path / "run")
        result = read_run(tmp_path / "run")
        assert len(result.attempts["plain"]) == running.MANY_FAILURES
    else:
        result = execute(engine, chosen, tmp_path / "run")
        assert len(result.attempts["plain"]) == 30
    assert len(result.traces["plain"]) == healthy


def test_an_engine_that_is_closed_ends_the_run_and_leaves_nothing_half_done(tokenizer, tmp_path):
    engine = failing_on(tokenizer, "Start with 1", [EngineClosed("scripted is closed")])
    with pytest.raises(EngineClosed):
        execute(engine, experiment(problem_set("3", "3", "3"), concurrency=1), tmp_path / "run")
    result = read_run(tmp_path / "run")
    assert [trace.problem_id for trace in result.traces["plain"]] == ["p0"]
    assert result.attempts["plain"] == []


def test_methods_are_added_to_a_run_that_is_finished(tokenizer, tmp_path):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING))
    execute(engine, experiment(problem_set("3", "3"), "plain"), tmp_path / "run")
    before = (tmp_path / "run" / "traces-plain.jsonl").read_bytes()
    added = "budget-forcing:max_thinking=9"
    execute(engine, experiment(problem_set("3", "3"), added), tmp_path / "run")
    result = read_run(tmp_path / "run")
    assert {method: len(traces) for method, traces in result.traces.items()} == {"plain": 2, added: 2}
    assert result.config["baseline"] == "plain"
    assert (tmp_path / "run" / "traces-plain.jsonl").read_bytes() == before


def test_other_graders_are_another_configuration(tokenizer, tmp_path):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING))
    execute(engine, experiment(problem_set("3")), tmp_path / "run")
    one = problem_set("3")
    other = ProblemSet(one.name, [replace(problem, grader="exact") for problem in one.problems], [])
    with pytest.raises(RunFolderError, match=r"problems\.digest"):
        execute(engine, experiment(other), tmp_path / "run")


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


def test_what_a_step_reads_is_part_of_the_configuration(tokenizer, tmp_path):
    engine, chosen = ScriptedEngine(tokenizer, follow(tokenizer, THINKING)), experiment(problem_set("3"))
    assert "attention" not in chosen.configuration(engine)  # as before there was another than dense
    engine.attention = Attention("local", 64)
    result = execute(engine, chosen, tmp_path / "run")
    assert result.config["attention"] == "local:budget=64"
    engine.attention = Attention("local", 64, sinks=4)
    with pytest.raises(RunFolderError, match=r'attention: "local:budget=64" -> "local:budget=64,sinks=4"'):
        execute(engine, chosen, tmp_path / "run")
    engine.attention = DENSE
    with pytest.raises(RunFolderError, match=r"attention: .* -> \(none\)"):
        execute(engine, chosen, tmp_path / "run")


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
    assert ([str(method) for method in methods], left_out) == (list(lab_spellings()), [])


def test_for_other_models_all_means_every_method_that_runs_by_its_defaults(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING))
    engine.levels = {"short": "Think briefly"}
    methods, left_out = every_method("some/model", engine)
    assert [str(method) for method in methods] == [name for name in METHODS if name not in ("entrocut", "tldr")]
    tau, level = left_out
    assert tau.startswith("entrocut: tau has no published value")
    assert "satisfice calibrate MODEL --methods entrocut" in tau
    assert level.startswith("tldr: say which level, as in tldr:level=short")


def test_all_leaves_out_what_an_engine_cannot_do(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING), without=[Capability.CONTROL, Capability.BIAS])
    methods, left_out = every_method("lab", engine)
    assert {"no-wait", "temperature-scaling"}.isdisjoint(method.name for method in methods)
    assert [sentence.partition(" (")[0] for sentence in left_out] == [
        *(
            f"{name} needs {'token bias' if name == 'no-wait' else 'control'}, which scripted does not offer"
            for name in (
                "confidence-exit", "no-wait", "soft-landing", "stop-loops", "temperature-scaling", "thinking-budget",
            )
        ),
        "tldr: scripted was not trained on levels",
    ]  # fmt: skip
    with pytest.raises(EngineError, match="no-wait needs token bias"):  # asked for by name it is refused
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


def test_a_response_that_its_grader_cannot_judge_is_an_attempt_and_stops_nothing(tokenizer, tmp_path):
    """A grader that raises would else end the run, with all that is under way, at the same problem each time."""
    engine = ScriptedEngine(tokenizer, follow(tokenizer, THINKING))
    problems = [
        Problem("easy", "Start with 1", "3"),
        Problem("strange", "Start with 2", "3", grader="reasoning-gym:no such set"),
        Problem("late", "Start with 3", "4"),
    ]
    run = execute(engine, experiment(ProblemSet("some", problems, []), samples=2), tmp_path / "run")
    assert {(t.problem_id, t.correct) for t in run.traces["plain"]} == {("easy", True), ("late", False)}
    assert run.failures == {"plain": 2}
    attempt = run.attempts["plain"][0]
    assert attempt.error.startswith("GraderError: ")
    assert (attempt.transient, attempt.unexpected) == (False, False)
    assert attempt.cost.total_tokens == run.traces["plain"][0].cost.total_tokens


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
