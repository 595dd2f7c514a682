"""The floors of the house: imports run down, the middle rooms do not know each other, heavy packages stay in theirs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import satisfice

MODULE = re.compile(r"satisfice(\.\w+)+")
ROOT = Path(satisfice.__file__).parent
MIDDLE = {"intervention", "supervision", "reinforcement"}
FLOORS = (
    {"__main__"},
    {"cli"},
    {"report"},
    {"training", "runs", "server", "vllm_plugin", "hosts", "plugins"},
    MIDDLE,
    {"engines", "problems", "measurement"},
    {"lab"},
    {"thinking", "trace", "token_text"},
    {"attention", "parameters", "levels", "lazy", "registry", "spelling"},
)
"""From the top down."""
HEAVY = {
    "vllm": {"engines", "vllm_plugin"},
    "trl": {"training"},
    "peft": {"training", "engines"},
    "verl": {"training"},
    "datasets": {"training", "problems"},
    "ray": {"runs"},
    "openai": {"engines"},
    "fastapi": {"server"},
    "matplotlib": {"report"},
    "typer": {"cli"},
    "inspect_ai": {"hosts"},
    "lighteval": {"hosts"},
    "litellm": {"hosts"},
    "sglang": {"hosts"},
}
"""Packages that are optional or slow to import, and the rooms that may name them."""


def imports(file: Path, root: Path = ROOT) -> Iterator[str]:
    """Modules that a file names in its imports, wherever they stand.

    Also those that it imports from the package by name (`from satisfice import runs`), relative to itself, or by a text
    that holds a module's whole name: for importlib, for the registries, for a process that it starts.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            here = ["satisfice", *file.relative_to(root).parts][: -node.level] if node.level else []
            module = ".".join([*here, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "satisfice" else [module]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (each.value for each in node.args[:1] if isinstance(each, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value):
            place = root / node.value.split(".")[1]
            yield from [node.value] if place.is_dir() or place.with_suffix(".py").is_file() else []


def room(module: str) -> str:
    """The room or file right below the package, "" for the package itself."""
    return (module.split(".")[1:] or [""])[0]


def floor(name: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if name in rooms]
    assert found, f"{name} is in no floor: say in FLOORS where it belongs"
    return found[0]


NO_ROOMS = {"satisfice.__version__"}
"""What the package itself defines."""
FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_downwards(file):
    here = file.relative_to(ROOT).parts[0].removesuffix(".py")
    if here == "__init__":
        assert not [module for module in imports(file) if module.startswith("satisfice.")]
        return
    for module in imports(file):
        if not module.startswith("satisfice.") or module in NO_ROOMS or room(module) == here:
            continue
        there = room(module)
        up = floor(there) < floor(here)
        assert not up, f"{file.relative_to(ROOT)} imports {module}, which is on a higher floor"
        beside = floor(there) == floor(here) and here in MIDDLE
        assert not beside, f"{file.relative_to(ROOT)} imports {module}: the middle rooms do not know each other"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_heavy_packages_stay_in_their_rooms(file):
    here = file.relative_to(ROOT).parts[0].removesuffix(".py")
    for module in imports(file):
        rooms = HEAVY.get(module.split(".")[0])
        assert rooms is None or here in rooms, f"{file.relative_to(ROOT)} imports {module}, which belongs in {rooms}"


def test_the_rule_sees_what_it_should(tmp_path):
    for folder in ("runs", "engines"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "engines" / "x.py"

    def rooms(text):
        file.write_text(text)
        return [room(module) for module in imports(file, tmp_path)]

    assert rooms("def f():\n    from satisfice.cli import main\n    import satisfice.runs.experiment as e\n") == [
        "cli",
        "runs",
    ]
    assert rooms("from satisfice import runs, server") == ["runs", "server"]
    assert rooms("from ..runs.experiment import run") == ["runs"]
    assert rooms("from .. import runs") == ["runs"]
    assert rooms("from . import kv") == ["engines"]
    assert rooms("import importlib\nimportlib.import_module('satisfice.runs.experiment')")[1:] == ["runs"] * 2
    file.write_text("import importlib\nimportlib.import_module('vllm')")
    assert "vllm" in imports(file, tmp_path)
    assert rooms("GROUP = 'satisfice.methods'\nNAME = 'satisfice.json'") == []
    assert floor("cli") < floor("runs") < floor("engines")
