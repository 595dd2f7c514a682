"""The package: built, checked, installed from the wheel in a fresh environment and used there. `make package`."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.package, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
QUESTION = "Start with 10. Steps in the order of their letters: c) +5, d) *3. What is the result?"


def started(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # Nothing of this tree may be found by what runs in the fresh environment.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, env=env | {"COLUMNS": "200"}, cwd=cwd)


def carried_out(*command: str | Path, cwd: Path | None = None) -> str:
    done = started(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the source distribution and the wheel, which is built from the former."""
    folder = tmp_path_factory.mktemp("dist")
    carried_out(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """The programs of a fresh environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    carried_out(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    return python.parent


def test_the_descriptions_are_accepted_by_an_index(built):
    carried_out(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if not name.endswith("/")}
    meant = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "satisfice").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = {name for name in held if re.match(r"satisfice-[^/]+\.dist-info/", name)}
    assert held - information == meant
    assert any(name.endswith("licenses/LICENSE") for name in information)
    for weights in ("weights", "weights-tldr"):
        assert f"satisfice/lab/{weights}/model.safetensors" in held
    assert {"satisfice/py.typed", "satisfice/lab/weights/tokenizer.json"} <= held
    assert wheel.stat().st_size < 8e6, "the weights of smollm2-words, 19.6 MB that do not compress, stay in the sources"


def test_the_sources_hold_what_the_tests_and_the_docs_need(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    for name in (
        "tests/conftest.py",
        "recipes/lab/tldr.yaml",
        "examples/sums.py",
        "docs/index.md",
        "mkdocs.yml",
        "Makefile",
    ):
        assert name in held
    assert "recipes/smollm2/weights/smollm2-words/adapter_model.safetensors" in held


def test_what_is_installed_from_the_wheel_solves_and_compares(fresh, tmp_path):
    solved = carried_out(
        fresh / "satisfice", "solve", "lab", QUESTION, "--method", "temperature-scaling:t=0.8", cwd=tmp_path
    )
    assert "45" in solved
    compared = carried_out(fresh / "satisfice", "compare", "lab", "--limit", "10", "--out", "run", cwd=tmp_path)
    assert "temperature-scaling:t=0.85" in compared
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    where = carried_out(fresh / "python", "-c", "import satisfice; print(satisfice.__file__)", cwd=tmp_path)
    assert where.startswith(str(fresh.parent))


def test_doctor_finds_the_basic_installation_complete(fresh, tmp_path):
    assert "complete: torch" in carried_out(fresh / "satisfice", "doctor", cwd=tmp_path)


def test_a_model_whose_weights_are_in_the_sources_alone_says_where(fresh, tmp_path):
    done = started(fresh / "satisfice", "solve", "smollm2-words", "What is 3 + 5?", cwd=tmp_path)
    assert done.returncode == 2
    assert "in a clone of satisfice, in recipes/smollm2/weights" in " ".join(done.stderr.split())
