"""`--engine` on the command line."""

import json
import sys

import pytest
from engines.fake_server import FakeServer

from satisfice import cli
from satisfice.cli.console import FAILED, console
from satisfice.engines.checkpoint import Checkpoint
from satisfice.runs.run_folder import ATTEMPTS


@pytest.fixture
def server():
    tokenizer = Checkpoint.read("lab").tokenizer
    response = "10 + 5 = 15.\n</think>\n\nThe answer is \\boxed{15}."
    answer = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    server = FakeServer(tokenizer, [], answer)
    yield server
    server.close()


@pytest.fixture
def here(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["satisfice", *arguments])
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(console, "width", 160)
        code = 0
        try:
            cli.main()
        except SystemExit as exit:
            code = exit.code or 0
        written = capsys.readouterr()
        return code, written.out, " ".join(written.err.split())

    return run


def test_compare_asks_a_server_and_the_run_says_which(server, here, tmp_path, monkeypatch):
    monkeypatch.setenv("SERVER_KEY", "sk-very-secret")
    server.key = "sk-very-secret"
    command = (
        "compare", "fake", "--engine", "openai", "--base-url", server.url, "--tokenizer", "lab", "--api-key-env",
        "SERVER_KEY", "--problems", "lab:test", "--limit", "3", "--methods", "plain", "deer", "--max-tokens", "60",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    code, out, messages = here(*command)
    assert code == 0, messages
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["model"] == "openai:fake"
    assert config["device"] == f"vllm server at {server.url}"
    traces = [json.loads(line) for line in (tmp_path / "run" / "traces-plain.jsonl").read_text().splitlines()]
    assert [trace["answer"].strip() for trace in traces] == ["The answer is \\boxed{15}."] * 3
    for path in (tmp_path / "run").iterdir():
        assert "sk-very-secret" not in path.read_text()
    assert "sk-very-secret" not in out + messages
    asked = len(server.requests)
    code, _, messages = here(*command)  # finished: the server is asked what it can do, and nothing else
    assert code == 0, messages
    assert len(server.requests) - asked < 15


def test_a_server_that_fails_now_and_then_costs_a_few_tries_and_no_response(server, here, tmp_path):
    from engines.fake_server import Fault

    class Failing(list):
        """Every third request, once the server has said what it can do."""

        shown = 0

        def __bool__(self):
            return len(server.requests) > 12 and len(server.requests) % 3 == 0

        def pop(self, _):
            self.shown += 1
            return Fault(event="7")

    server.faults = Failing()
    code, _, messages = here(
        "compare", "fake", "--engine", "openai", "--base-url", server.url, "--tokenizer", "lab", "--problems",
        "lab:test", "--limit", "9", "--methods", "plain", "--max-tokens", "60", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0, messages
    traces = [json.loads(line) for line in (tmp_path / "run" / "traces-plain.jsonl").read_text().splitlines()]
    assert server.faults.shown > 0
    assert len({trace["problem_id"] for trace in traces}) == len(traces) == 9
    assert all(
        trace["finished"] or trace["cost"]["answer_tokens"] + trace["cost"]["thinking_tokens"] == 60 for trace in traces
    )


def test_a_response_that_the_server_refuses_is_noted_and_stops_nothing(server, here, tmp_path):
    from engines.fake_server import Fault

    class Refusing(list):
        def __bool__(self):
            return len(server.requests) > 12 and len(server.requests) % 3 == 0

        def pop(self, _):
            return Fault(400)

    server.faults = Refusing()
    code, _, messages = here(
        "compare", "fake", "--engine", "openai", "--base-url", server.url, "--tokenizer", "lab", "--problems",
        "lab:test", "--limit", "9", "--methods", "plain", "--max-tokens", "60", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == FAILED, messages
    traces = (tmp_path / "run" / "traces-plain.jsonl").read_text().splitlines()
    attempts = [json.loads(line) for line in (tmp_path / "run" / ATTEMPTS).read_text().splitlines()]
    assert 0 < len(attempts) < 9
    assert len(traces) + len(attempts) == 9
    assert all("answers 400: scripted" in attempt["error"] for attempt in attempts)
    assert f"{len(attempts)} responses could not be had" in messages


def test_solve_shows_a_servers_answer(server, here):
    code, out, messages = here(
        "solve", "fake", "What is the result?", "--engine", "openai", "--base-url", server.url, "--tokenizer", "lab"
    )
    assert code == 0, messages
    assert "The answer is \\boxed{15}." in out


def test_a_method_that_the_server_cannot_serve_is_refused_with_what_is_missing(server, here, tmp_path):
    server.caches = False
    code, _, messages = here(
        "compare", "fake", "--engine", "openai", "--base-url", server.url, "--tokenizer", "lab", "--problems",
        "lab:test", "--limit", "2", "--methods", "plain", "deer", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 2
    assert "deer needs prefix reuse, which openai:fake does not offer" in messages
    assert "--enable-prompt-tokens-details" in messages
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "vlm"), "no engine 'vlm'; it must be one of transformers, vllm, openai"),
        (("--engine", "openai"), "--engine openai needs --base-url"),
        (("--engine", "ray"), "--engine ray runs whole comparisons on many workers: it goes with `satisfice compare`"),
        (("--base-url", "http://127.0.0.1:1/v1"), "--base-url goes with --engine openai, not with transformers"),
        (("--engine", "vllm", "--tokenizer", "lab"), "--tokenizer goes with --engine openai, not with vllm"),
        (
            ("--engine", "openai", "--base-url", "http://127.0.0.1:1/v1", "--gguf-file", "x.gguf"),
            "--gguf-file goes with --engine transformers, not with openai",
        ),
        (
            ("--engine", "openai", "--base-url", "http://127.0.0.1:1/v1", "--device", "cpu"),
            "--device goes with --engine transformers or vllm, not with openai",
        ),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(arguments, said, here):
    code, _, messages = here("solve", "lab", "What is the result?", *arguments)
    assert code == 2
    assert said in messages
    assert messages.count(". ") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workers", "3"), "--workers goes with --engine ray, not with transformers"),
        (("--engine", "vllm", "--ray-address", "auto"), "--ray-address goes with --engine ray, not with vllm"),
        (
            ("--engine", "ray", "--base-url", "http://127.0.0.1:1/v1"),
            "--base-url goes with --engine openai, not with transformers",
        ),
    ],
)
def test_options_of_workers_go_with_workers(arguments, said, here, tmp_path):
    code, _, messages = here("compare", "lab", *arguments, "--out", str(tmp_path / "run"))
    assert code == 2
    assert said in messages
    assert not (tmp_path / "run").exists()
