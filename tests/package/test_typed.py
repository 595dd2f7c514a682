"""satisfice as whoever type-checks their own code sees it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import satisfice

CLIENT = Path(__file__).parent / "client.py"


def checked(file: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    options = ["--strict", "--config-file", "", "--follow-imports", "silent", "--cache-dir", str(cache)]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(file)],
        capture_output=True,
        text=True,
        cwd=file.parent,
        env=os.environ | {"MYPYPATH": str(Path(satisfice.__file__).parents[1])},
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs the lint extra")
def test_a_client_is_checked_strictly(tmp_path):
    done = checked(CLIENT, tmp_path / "cache")
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        CLIENT.read_text()
        .replace("return trace.answer, trace.cost.thinking_tokens", "return trace.cost.thinking_tokens, trace.answer")
        .replace("-> Certificate:", "-> str:")
        .replace("def select(self, problem: SampledProblem) -> list[Item]", "def select(self, problem: str) -> int")
    )
    done = checked(wrong, tmp_path / "cache")
    assert done.returncode == 1
    for kind in ("[return-value]", "[override]"):
        assert kind in done.stdout


@pytest.mark.slow
def test_the_client_runs(tmp_path):
    done = subprocess.run([sys.executable, CLIENT, tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("laser longest brevity\n")


def test_the_package_says_that_it_is_typed():
    assert (Path(satisfice.__file__).parent / "py.typed").is_file()
