"""The command line as a user types it, mostly in a process of its own."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest
from intervention.scripted import ScriptedEngine

from satisfice import cli
from satisfice.engines import loading
from satisfice.intervention import METHODS, parse_method
from satisfice.lab import ALL_METHODS

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
    assert config["sampling"]["max_tokens"] == 320


def test_the_same_command_again_has_nothing_left_to_do(small_run):
    folder, _ = small_run
    before = {path.name: path.read_bytes() for path in folder.glob("traces-*.jsonl")}
    again = satisfice(
        "compare", "lab", "--limit", "40", "--methods", "plain", "temperature-scaling:t=0.8", "--out", str(folder)
    )
    assert again.returncode == 0, again.stderr
    assert before == {path.name: path.read_bytes() for path in folder.glob("traces-*.jsonl")}


def test_another_configuration_in_the_same_folder_is_refused(small_run):
    folder, _ = small_run
    other = satisfice("compare", "lab", "--limit", "41", "--methods", "plain", "--out", str(folder))
    assert other.returncode == 2
    assert "problems.n: 40 -> 41" in other.stderr.replace("\n", " ")


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
    assert names[:4] == ["plain", "no-thinking", "temperature-scaling", "budget-forcing"]
    text = satisfice("methods").stdout
    assert all(name in text for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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


# -- all


def test_all_runs_every_method_on_the_lab_and_takes_more_beside_it(here, tmp_path):
    code, out, messages = here(
        "compare", "lab", "--problems", "lab:calibration", "--limit", "1", "--max-tokens", "40", "--out",
        str(tmp_path / "run"), "--methods", "all", "temperature-scaling:t=0.8", "no-thinking",
    )  # fmt: skip
    assert code == 0, messages
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    able = [spelled for spelled in ALL_METHODS if not spelled.startswith("tldr")]
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
    assert "satisfice calibrate MODEL --method entrocut" in warning
    assert [name for name in METHODS if f"{name}: " in warning] == ["entrocut", "tldr"]
    assert "lower max_tokens" in error


# -- calibrate


def test_calibrate_prints_what_to_paste_into_compare(here):
    few = ("--limit", "3", "--max-tokens", "60", "--loss", "1")
    code, out, messages = here("calibrate", "lab", "--method", "temperature-scaling", *few)
    assert code == 0, messages
    assert out.startswith("t = 0.5\n")
    assert "on 3 problems of lab:calibration" in out
    assert out.endswith("--methods plain temperature-scaling:t=0.5\n")


def test_calibrate_for_programs(here):
    cue = "The answer is \\boxed{"
    code, out, messages = here(
        "calibrate", "lab", "--method", f'entrocut:k=1,cue="{cue.replace(chr(92), chr(92) * 2)}"', "--limit", "10",
        "--loss", "0.2", "--json",
    )  # fmt: skip
    assert code == 0, messages
    found = json.loads(out)
    assert (found["model"], found["problems"], found["n"]) == ("transformers:lab", "lab:calibration", 10)
    method = parse_method(found["method"])
    assert (method.tau, method.k, method.cue) == (found["value"], 1, cue)
    assert found["accuracy"] >= found["baseline_accuracy"] - 0.2
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert 0 < found["thinking_kept"] < 1


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
        (["calibrate", "lab", "--method", "plain"], "plain has nothing to calibrate; what can be calibrated is"),
        (["calibrate", "lab", "--method", "entrocut:tau=0.1"], "leave tau= out"),
        (["calibrate", "lab", "--method", "entrocut:k=0"], "k is 0; it must be at least 1"),
        (["calibrate", "lab", "--method", "entrocut", "--problems", "nowhere.jsonl"], "nowhere.jsonl"),
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
