"""The command line as a user types it, mostly in a process of its own."""

import csv
import io
import json
import os
import re
import subprocess
import sys

import pytest
from intervention.scripted import ScriptedEngine
from report.synthetic_run import METHODS as SYNTHETIC
from report.synthetic_run import write_run
from rich.console import Console

from satisfice import cli
from satisfice.cli import progress
from satisfice.engines import loading
from satisfice.intervention import METHODS, lab_spellings, parse_method

QUESTION = "Start with 10. Steps in the order of their letters: c) +5, d) *3. What is the result?"


def satisfice(*arguments, timeout=240, **environment):
    return subprocess.run(
        [sys.executable, "-m", "satisfice.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    done = satisfice(
        "compare", "lab", "--limit", "40", "--methods", "plain", "temperature-scaling:t=0.8", "--out", str(folder)
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_compare_prints_the_table_and_names_the_report(small_run):
    folder, done = small_run
    assert "temperature-scaling:t=0.8" in done.stdout
    assert "accuracy" in done.stdout
    assert str(folder / "report.html") in done.stdout.replace("\n", "")
    assert (folder / "report.html").exists()
    config = json.loads((folder / "run.json").read_text())
    assert config["problems"]["name"] == "lab:test"
    assert config["sampling"]["temperature"] == 1.0  # the model's own generation config
    assert config["sampling"]["max_tokens"] == 960


def test_the_same_command_again_has_nothing_left_to_do(small_run):
    folder, _ = small_run
    before = {path.name: path.read_bytes() for path in folder.glob("traces-*.jsonl")}
    again = satisfice(
        "compare", "lab", "--limit", "40", "--methods", "plain", "temperature-scaling:t=0.8", "--out", str(folder)
    )
    assert again.returncode == 0, again.stderr
    assert before == {path.name: path.read_bytes() for path in folder.glob("traces-*.jsonl")}


def test_what_fails_is_said_noted_and_in_no_table(tmp_path):
    problems, out = tmp_path / "mixed.jsonl", tmp_path / "run"
    long = {"id": "long", "prompt": "Start with 7. " * 400, "answer": "7"}
    good = {"id": "good", "prompt": QUESTION, "answer": "45"}
    problems.write_text("".join(json.dumps(each) + "\n" for each in (long, good)))
    command = ["compare", "lab", "--problems", str(problems), "--instruction", "", "--out", str(out)]
    done = satisfice(*command, "--methods", "plain")
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "1 responses could not be had and are in no table, the last because: EngineError: the prompt has" in said
    assert "attempts.jsonl" in said
    assert len((out / "traces-plain.jsonl").read_text().splitlines()) == 1
    assert len((out / "attempts.jsonl").read_text().splitlines()) == 1
    # One more method joins the run; the long problem is tried again, the good one is not.
    before = (out / "traces-plain.jsonl").read_bytes()
    more = satisfice(*command, "--methods", "temperature-scaling:t=0.8")
    assert more.returncode == 1
    assert (out / "traces-plain.jsonl").read_bytes() == before
    listed = json.loads(satisfice("summary", str(out), "--json").stdout)
    assert [row["method"] for row in listed["rows"]] == ["plain", "temperature-scaling:t=0.8"]
    assert listed["baseline"] == "plain"


def test_another_configuration_in_the_same_folder_is_refused(small_run):
    folder, _ = small_run
    other = satisfice("compare", "lab", "--limit", "41", "--methods", "plain", "--out", str(folder))
    assert other.returncode == 2
    assert "problems.n: 40 -> 41" in other.stderr.replace("\n", " ")


def test_the_table_fits_80_columns_and_loses_no_number(tmp_path):
    run = write_run(tmp_path / "run", problems=40, methods=16)
    for width in (80, 100):
        done = satisfice("summary", str(run), COLUMNS=str(width))
        assert done.returncode == 0, done.stderr
        table, _, sentences = done.stdout.partition("n = 40 problems")
        assert all(len(line) <= width for line in done.stdout.splitlines())
        assert "…" not in re.sub(r"\d…[-+]?\d", "", table), "nothing is cut short but for the dots of the intervals"
        for heading in ("right %", "vs base", "in all", "saved %", "cut %"):
            assert heading in table
        first_column = "".join(line[2:].split(" ")[0] for line in table.splitlines()[2:])
        assert all(method in first_column for method in SYNTHETIC), "spellings are wrapped, never shortened"
        assert "saved: tokens in all against plain" in " ".join(("n = 40 problems" + sentences).split())


def test_voting_is_not_said_to_write_fewer_tokens(tmp_path):
    done = satisfice(
        "compare", "lab", "--limit", "12", "--methods", "plain", "self-consistency:k=4", "--out", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")
    assert re.search(r"self-consistency:k=4 writes \d{3}\.\d % more tokens in all than plain", text)
    assert "fewer" not in text


def test_report_formats(small_run, tmp_path):
    folder, _ = small_run
    table = tmp_path / "table.csv"
    assert satisfice("report", str(folder), "--format", "csv", "--out", str(table)).returncode == 0
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert list(rows[0])[:9] == [
        "method", "n", "accuracy", "accuracy_low", "accuracy_high", "thinking_tokens", "total_tokens",
        "token_saving", "truncated_share",
    ]  # fmt: skip
    assert [row["n"] for row in rows] == ["40", "40"]
    for kind in ("md", "png", "svg"):
        done = satisfice("report", str(folder), "--format", kind, "--out", str(tmp_path / f"out.{kind}"))
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"out.{kind}").stat().st_size > 100
    summary = json.loads(satisfice("summary", str(folder), "--json").stdout)
    assert [row["method"] for row in summary["rows"]] == ["plain", "temperature-scaling:t=0.8"]


def test_solve_streams_both_parts_and_ends_with_the_cost():
    done = satisfice("solve", "lab", QUESTION, "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert "c) 10+5=15" in done.stdout
    assert "\\boxed{" in done.stdout
    assert "thinking +" in done.stdout
    assert "<|end|>" not in done.stdout


def test_methods_lists_everything_for_people_and_programs():
    listed = json.loads(satisfice("methods", "--json").stdout)
    names = [entry["name"] for entry in listed]
    assert names == ["plain", "no-thinking", *sorted(set(names) - {"plain", "no-thinking"})]
    assert {"temperature-scaling", "budget-forcing", "deer"} <= set(names)
    text = satisfice("methods").stdout
    assert all(name in text for name in names)


def of_one(capsys, *arguments):
    """What a command prints, run in this process."""
    cli.app(args=list(arguments), standalone_mode=False)
    return capsys.readouterr().out


def test_methods_shows_one_with_its_parameters(capsys):
    (entry,) = json.loads(of_one(capsys, "methods", "budget-forcing", "--json"))
    assert entry["name"] == "budget-forcing"
    assert entry["knobs"][0]["parameter"] == "max_thinking"
    assert {"max_thinking", "ignore", "cue"} <= {parameter["name"] for parameter in entry["parameters"]}
    assert all(parameter["meaning"] for parameter in entry["parameters"])
    told = of_one(capsys, "methods", "no-wait")
    assert told.startswith("no-wait")
    assert "words (str, default " in told
    assert "self-consistency" not in told
    # As it is spelled for --methods, joined or with parameters.
    both = json.loads(of_one(capsys, "methods", "deer:threshold=0.9+no-wait", "--json"))
    assert [entry["name"] for entry in both] == ["deer", "no-wait"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("self-consistancy", "there is no method 'self-consistancy', did you mean 'self-consistency'"),
        ("entrocut:tua=1", "entrocut has no parameter 'tua', did you mean 'tau'"),
    ],
)
def test_methods_suggests_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        cli.app(args=["methods", name], standalone_mode=False)


def test_progress_fits_a_terminal_of_80_columns(monkeypatch):
    drawn = Console(width=80, force_terminal=True, record=True, file=io.StringIO())
    monkeypatch.setattr(progress, "errors", drawn)
    with progress.drawn() as bars:
        task = bars.add_task("temperature-scaling:t=0.85", total=1000, rates=" 12.5/s   96% right")
        bars.update(task, completed=1000)
    lines = [line for line in drawn.export_text().splitlines() if "1000/1000" in line]
    assert lines
    assert "temperature-scaling:t=0.85" in lines[-1]
    assert "96% right eta 0:00:00" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "./nowhere"], "say which problems, for example --problems gsm8k.jsonl"),
        (["methods", "plein"], "did you mean 'plain'"),
        (["compare", "lab", "--methods", "plan"], "did you mean 'plain'"),
        (["compare", "lab", "--methods", "plain:x=1"], "plain has no parameter 'x'"),
        (["compare", "lab", "--problems", "nowhere.jsonl"], "nowhere.jsonl"),
        (["compare", "./nowhere", "--problems", "lab:test"], "no model directory"),
        (["compare", "lab", "--problems", "lab:tset"], "the lab has no split 'tset'"),
        (["compare", "lab", "--temperature", "0.5", "--max-tokens", "5000"], "lower max_tokens"),
        (["compare", "lab", "--top-p", "3"], "top_p is 3.0"),
        (["report", "nowhere"], "no run folder"),
        (["solve", "lab", "x", "--method", "temperature-scaling:t=0"], "must be within 0.001..1000"),
        (["solve", "lab", "x", "--thinking-format", "huh"], "think-tags"),
        (["lab", "train", "--recipe", "nowhere.yaml", "--out", "x"], "nowhere.yaml"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(arguments, message, tmp_path):
    done = satisfice(*arguments, *(["--out", str(tmp_path / "run")] if arguments[0] == "compare" else []))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs the command line in this process: exit status, output and messages."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["satisfice", *arguments])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        return ended.value.code, written.out, " ".join(written.err.split())

    return run


@pytest.fixture
def broken(monkeypatch):
    """The lab's engine, which fails at every request."""
    from satisfice.engines.base import EngineFailed
    from satisfice.engines.transformers import TransformersEngine

    async def generate(self, *arguments, **options):
        raise EngineFailed("the fan has stopped")

    monkeypatch.setattr(TransformersEngine, "generate", generate)
    monkeypatch.setattr("satisfice.runs.experiment.PAUSE", 0.001)


def test_a_calibration_whose_requests_fail_stops_with_a_sentence_and_exit_1(here, broken, tmp_path):
    code, _, said = here(
        "calibrate", "lab", "--methods", "temperature-scaling", "--limit", "40", "--max-loss", "0.2", "--runs",
        str(tmp_path / "c"),
    )  # fmt: skip
    assert code == 1, said
    assert "satisfice: stopped: 12 of 12 responses could not be had" in said
    assert "the fan has stopped" in said


def test_a_full_disk_is_said_with_what_is_kept(here, monkeypatch, tmp_path):
    from satisfice.runs import run_folder

    append, written = run_folder._append_line, []

    def filling(path, line):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(line)
        append(path, line)

    command = [
        "compare", "lab", "--limit", "6", "--max-tokens", "30", "--methods", "plain", "--out", str(tmp_path / "run")
    ]  # fmt: skip
    with monkeypatch.context() as full:
        full.setattr(run_folder, "_append_line", filling)
        code, _, said = here(*command)
    assert code == 2
    assert "No space left on device; 3 finished traces are in" in said
    before = (tmp_path / "run" / "traces-plain.jsonl").read_text()
    assert before.splitlines() == written
    code, _, _ = here(*command)
    after = (tmp_path / "run" / "traces-plain.jsonl").read_text()
    assert (code, after.startswith(before), after.count("\n")) == (0, True, 6)


# -- all


def test_all_runs_every_method_on_the_lab_and_takes_more_beside_it(here, tmp_path):
    code, out, messages = here(
        "compare", "lab", "--problems", "lab:calibration", "--limit", "1", "--max-tokens", "40", "--out",
        str(tmp_path / "run"), "--methods", "all", "temperature-scaling:t=0.8", "no-thinking",
    )  # fmt: skip
    assert code == 0, messages
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    able = [spelled for spelled in lab_spellings() if not spelled.startswith("tldr")]
    assert config["methods"] == [*able, "temperature-scaling:t=0.8"]
    assert config["baseline"] == "plain"
    assert "left out of all: tldr: transformers:lab was not trained on levels" in messages
    assert all(parse_method(method).name in out for method in able)


def test_for_another_model_all_names_what_it_leaves_out(here, monkeypatch, tokenizer):
    monkeypatch.setattr(loading, "load_engine", lambda *arguments, **options: ScriptedEngine(tokenizer, dict))
    code, _, messages = here(
        "compare", "some/model", "--methods", "all", "--problems", "lab:calibration", "--max-tokens", "9999"
    )
    assert code == 2
    warning, _, error = messages.partition("satisfice: ")
    assert warning.startswith("left out of all: entrocut: tau has no published value")
    assert "satisfice calibrate MODEL --methods entrocut" in warning
    assert [name for name in METHODS if f"{name}: " in warning] == ["entrocut", "tldr"]
    assert "lower max_tokens" in error


# -- calibrate


CERTIFY = (
    "calibrate", "lab", "--methods", "temperature-scaling", "--grid", "t=0.95", "--max-loss", "0.3", "--confidence",
    "0.8", "--limit", "30", "--max-tokens", "400",
)  # fmt: skip


def test_calibrate_certifies_and_what_it_wrote_is_used_everywhere(here, tmp_path):
    runs, file = tmp_path / "c", tmp_path / "certificate.json"
    code, out, messages = here(*CERTIFY, "--runs", str(runs), "--out", str(file))
    assert code == 0, messages
    assert out.startswith(
        "temperature-scaling:t=0.95 is certified for a net loss of at most 30.00%, with confidence 0.8\n"
    )
    assert "held back from the choice" in out
    assert "a full grid would have taken 60" in out
    assert (runs / "calibration.svg").exists()
    assert json.loads(file.read_text())["method"] == "temperature-scaling:t=0.95"
    code, again, messages = here(*CERTIFY, "--runs", str(runs), "--json")
    assert code == 0, messages
    found = json.loads(again)
    assert (found["kind"], found["method"]) == ("satisfice certificate", "temperature-scaling:t=0.95")
    assert found["asked"]["problems"] == "lab:certify"

    code, out, messages = here("solve", "lab", QUESTION, "--calibrated", str(file), "--max-tokens", "400")
    assert code == 0, messages
    assert "warning" not in messages
    code, _, messages = here(
        "solve", "lab", QUESTION, "--calibrated", str(file), "--max-tokens", "50", "--system", "So"
    )
    assert "promises nothing here" in messages
    assert "max_tokens 400 -> 50" in messages
    code, out, messages = here(
        "compare",
        "lab",
        "--calibrated",
        str(file),
        "--limit",
        "2",
        "--max-tokens",
        "400",
        "--out",
        str(tmp_path / "run"),
    )
    assert code == 0, messages
    assert json.loads((tmp_path / "run" / "run.json").read_text())["methods"] == ["plain", "temperature-scaling:t=0.95"]


def test_calibrations_that_differ_in_what_decides_have_folders_of_their_own(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    async def stop(engine, experiment, found, promise, folder, *rest, **options):
        asked.append(folder.name)
        raise KeyboardInterrupt

    monkeypatch.setattr("satisfice.runs.calibration.calibrate", stop)
    command = ["calibrate", "lab", "--methods", "temperature-scaling", "--limit", "90", "--max-tokens", "400"]
    for further in (
        [], ["--max-loss", "0.2"], ["--max-loss", "0.2", "--confidence", "0.9"],
        ["--max-loss", "0.2", "--loss", "harm"],
        ["--max-loss", "0.2", "--grid", "t=0.9"], ["--max-loss", "0.2", "--seed", "1"],
        ["--max-loss", "0.2", "--temperature", "0"], ["--max-loss", "0.2", "--system", "So"],
        ["--max-loss", "0.2", "--holdout", "0.1"], ["--max-loss", "0.2", "--instruction", "Think."],
        ["--max-loss", "0.2", "--methods", "budget-forcing"],
    ):  # fmt: skip
        given = command if "--methods" not in further else [*command[:2], *command[4:]]
        limit = [] if further else ["--max-loss", "0.1"]
        assert here(*given, *further, *limit)[0] == 130
    assert len(set(asked)) == 11, asked
    assert asked[1].startswith("lab-lab-certify-net-0.2-at-0.95-")
    # More problems belong into the same folder.
    here(*command, "--max-loss", "0.2", "--limit", "120")
    assert asked[-1] == asked[1]


def test_a_setting_whose_responses_fail_is_said_with_exit_1(here, monkeypatch, tmp_path):
    from satisfice.engines.base import EngineError
    from satisfice.engines.transformers import TransformersEngine

    own = TransformersEngine.generate

    async def generate(self, *arguments, control=None, **options):
        if control is not None:
            raise EngineError("this control is too much")
        return await own(self, *arguments, control=control, **options)

    monkeypatch.setattr(TransformersEngine, "generate", generate)
    code, out, said = here(*CERTIFY, "--runs", str(tmp_path / "c"), "--max-batch", "8")
    assert code == 1, said
    assert "could not be had and count as lost, so it is not certified" in out
    assert "this control is too much" in out
    assert "too many responses of temperature-scaling:t=0.95 could not be had" in " ".join(said.split())
    assert json.loads((tmp_path / "c" / "certificate.json").read_text())["method"] is None


def test_a_certificate_with_a_key_that_is_misspelt_is_named_in_compare(here, tmp_path):
    runs = tmp_path / "c"
    assert here(*CERTIFY, "--runs", str(runs))[0] == 0
    content = (runs / "certificate.json").read_text()
    file = tmp_path / "mine.json"
    for old, new, said in (
        ('"baseline":', '"basline":', "basline: there is no such key, did you mean 'baseline'"),
        ('"baseline": "plain"', '"baseline": "plian"', "its baseline cannot be read: there is no method 'plian'"),
    ):
        file.write_text(content.replace(old, new, 1))
        code, _, messages = here("compare", "lab", "--calibrated", str(file), "--limit", "2")
        assert code == 2
        assert f"{file}" in messages
        assert said in messages


def test_that_none_qualifies_is_a_result(here, tmp_path):
    code, out, messages = here(
        "calibrate", "lab", "--methods", "budget-forcing", "--grid", "max_thinking=4", "--max-loss", "0.1",
        "--confidence", "0.9", "--limit", "60", "--runs", str(tmp_path / "c"),
    )  # fmt: skip
    assert code == 0, messages
    assert out.startswith("no setting qualifies for a net loss of at most 10.00%")
    assert "more calibrating problems like these if nothing more were lost" in out
    code, _, messages = here("solve", "lab", QUESTION, "--calibrated", str(tmp_path / "c" / "certificate.json"))
    assert code == 2
    assert "certifies nothing" in messages


# -- companions


def test_a_second_model_outlines(here, tmp_path):
    method = ("--method", "cothink:outliner=helper", "--max-tokens", "20")
    code, out, messages = here("solve", "lab", QUESTION, *method, "--companion", "helper=lab")
    assert code == 0, messages
    assert "thrown away" in out  # the outline
    code, _, messages = here(
        "compare", "lab", "--limit", "1", "--max-tokens", "20", "--methods", "cothink:outliner=helper",
        "--companion", "helper=lab", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0, messages
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["companions"] == {"helper": {"model": "transformers:lab", "model_digest": config["model_digest"]}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "lab"], "say what to calibrate, for example --methods temperature-scaling"),
        (["calibrate", "lab", "--methods", "plain"], "plain has no knob to calibrate; what can be calibrated is"),
        (["calibrate", "lab", "--methods", "entrocut:tau=0.1"], "leave tau= out"),
        (["calibrate", "lab", "--methods", "entrocut:k=0"], "k is 0; it must be at least 1"),
        (["calibrate", "lab", "--methods", "entrocut", "--problems", "nowhere.jsonl"], "nowhere.jsonl"),
        (
            ["calibrate", "lab", "--methods", "entrocut", "--max-loss", "2"],
            "--max-loss is 2.0; it must be between 0 and 1",
        ),
        (["calibrate", "lab", "--methods", "entrocut", "--loss", "x"], "--loss is x; it must be one of net, harm"),
        (["calibrate", "lab", "--methods", "entrocut", "--counting", "x"], "no counting convention 'x'"),
        (["calibrate", "lab", "--methods", "entrocut", "--grid", "tau=2,1"], "out of order"),
        (
            ["calibrate", "lab", "--methods", "entrocut", "--limit", "9"],
            "9 problems cannot certify a loss of at most 0.01",
        ),
        (["solve", "lab", "x", "--calibrated", "nowhere.json"], "there is no file nowhere.json"),
        (["solve", "lab", "x", "-m", "no-wait", "--calibrated", "a.json"], "both say which method"),
        (["serve", "lab", "--shadow", "0.1", "--on-alarm", "next"], "--on-alarm next needs --calibrated FILE"),
        *(
            (["serve", "lab", "-m", "no-wait", *given], f"{given[0]} has no effect without --shadow SHARE")
            for given in (
                ["--max-loss", "7"],
                ["--max-loss", "0.03"],
                ["--confidence", "0.95"],
                ["--on-alarm", "warn"],
                ["--watch-state", "satisfice-watch.json"],
                ["--shadow-capacity", "0.1"],
            )
        ),
        (["serve", "lab", "--shadow", "0.1", "--max-loss", "7"], "--max-loss is 7.0; it must be between 0 and 1"),
        (["serve", "lab", "--engine", "ray"], "--engine ray runs whole comparisons on many workers"),
        (["serve", "lab", "--base-url", "http://localhost:1/v1"], "--base-url goes with --engine openai"),
        (
            ["calibrate", "lab", "--methods", "entrocut", "--max-loss", "0.3", "--limit", "40", "--engine", "ray"],
            "--engine ray runs whole comparisons on many workers",
        ),
        *(
            (
                ["calibrate", "lab", "--methods", "temperature-scaling", "--max-loss", "0.3", "--limit", "40", *given],
                said,
            )
            for given, said in (
                (["--companion", "a=lab"], "no method asks for the companion 'a'"),
                (["--temperature", "0", "--top-p", "0.9"], "--top-p has no effect at temperature 0"),
                (["--data-dir", "."], "lab:certify takes no data_dir"),
                (["--skip-bad"], "lab:certify takes no skip_bad"),
                (["--any-gold"], "lab:certify takes no any_gold"),
                (["--answer-is", "letter"], "lab:certify takes no answer_is"),
                (["--split", "test"], "lab:certify takes no split"),
                (["--requests-per-minute", "3"], "--requests-per-minute goes with --engine openai"),
            )
        ),
        (["serve", "lab", "--shadow", "2"], "--shadow is 2.0; it must be above 0 and at most 1"),
        (["serve", "lab", "--shadow", "0.1"], "which is what this server answers with anyway"),
        (["compare", "lab", "--methods", "cothink:outliner=a"], "has no companion 'a'"),
        (["solve", "lab", "x", "--method", "cothink:outliner=a"], "attach one with --companion a=MODEL"),
        (["solve", "lab", "x", "--method", "cothink", "--companion", "a=lab"], "no method asks for the companion 'a'"),
        (["solve", "lab", "x", "--method", "cothink:outliner=a", "--companion", "a"], "must look like instruct="),
        (
            ["solve", "lab", "x", "-m", "cothink:outliner=a", "--companion", "a=lab", "--companion", "a=smollm2"],
            "--companion a is given twice",
        ),
        (["solve", "lab", "x", "-m", "cothink:outliner=a", "--companion", "a=./nowhere"], "no model directory"),
    ],
)
def test_a_mistake_with_a_second_model_or_a_calibration_is_one_sentence(here, arguments, message, tmp_path):
    code, out, messages = here(*arguments, *(["--out", str(tmp_path / "run")] if arguments[0] == "compare" else []))
    assert code == 2
    assert message in messages
    assert out == ""


def test_problems_in_a_file_with_a_bad_line(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "Start with 1", "answer": "1"}\n{"question": "x"}\n')
    refused = satisfice("compare", "lab", "--problems", str(path), "--out", str(tmp_path / "a"), "--methods", "plain")
    assert refused.returncode == 2
    assert "line 2" in " ".join(refused.stderr.split())
    done = satisfice(
        "compare", "lab", "--problems", str(path), "--skip-bad", "--out", str(tmp_path / "b"), "--methods", "plain",
        "--max-tokens", "8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "skipped" in done.stderr
    assert json.loads((tmp_path / "b" / "run.json").read_text())["problems"]["skipped"] == 1
