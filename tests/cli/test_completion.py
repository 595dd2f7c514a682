"""What the shell offers while a command is typed, asked as bash, zsh and fish ask."""

import os
import subprocess
import sys

import pytest

from satisfice.intervention import METHODS
from satisfice.reinforcement import OBJECTIVES
from satisfice.supervision import CURATIONS


def offered(typed: str) -> list[str]:
    """Words that bash is given for the last one that is typed, which may be empty."""
    words = typed.split(" ")
    env = os.environ | {
        "_SATISFICE_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run([sys.executable, "-m", "satisfice"], capture_output=True, text=True, env=env)
    assert not done.stderr, done.stderr
    return done.stdout.split("\n")[:-1] if done.stdout.endswith("\n") else done.stdout.split("\n")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("satisfice comp", ["compare"]),
        ("satisfice lab fine", ["fine-tune"]),
        ("satisfice compare la", ["lab", "lab-tldr"]),
        ("satisfice compare lab --methods decoding", ["decoding-tree"]),
        ("satisfice compare lab --methods plain no-w", ["no-wait"]),
        ("satisfice compare lab --methods plain --sam", ["--samples"]),
        ("satisfice compare lab -m deer+no-w", ["deer+no-wait"]),
        ("satisfice compare lab -m al", ["all"]),
        ("satisfice solve lab --method al", []),
        ("satisfice compare lab --problems rea", ["reasoning-gym:"]),
        ("satisfice methods short", ["short-m@k"]),
        ("satisfice objectives l1-", ["l1-exact", "l1-max"]),
        ("satisfice curate token", ["tokensqueeze"]),
    ],
)
def test_values_are_completed(typed, expected):
    assert [word for word in offered(typed) if word] == expected


def test_every_name_is_offered_where_nothing_is_typed():
    from satisfice.cli import completion

    assert completion.methods("") == [*METHODS, "all"]
    assert completion.objectives("") == [*OBJECTIVES]
    assert completion.curations("") == [*CURATIONS]
    assert {"lab:test", "lab:certify", "words:test"} <= {*completion.problems("")}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_made_for_each_shell(shell):
    env = os.environ | {"_SATISFICE_COMPLETE": f"source_{shell}"}
    done = subprocess.run([sys.executable, "-m", "satisfice"], capture_output=True, text=True, env=env)
    assert f"_SATISFICE_COMPLETE=complete_{shell}" in done.stdout


def test_completion_is_installed_for_bash(tmp_path):
    env = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "satisfice", "--install-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    (script,) = tmp_path.rglob("satisfice.sh")
    assert str(script) in (tmp_path / ".bashrc").read_text()
    assert subprocess.run(["bash", "-n", script]).returncode == 0
