"""Behind LiteLLM's proxy: the hook by itself, and the real proxy in front of a real server, on loopback."""

import importlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from server.running import QUESTION, serving

from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import parse_method
from satisfice.vllm_plugin.options import read_options

CONFIGURATION = Path(__file__).parents[2] / "examples" / "litellm.yaml"
LOW = {"method": "budget-forcing:max_thinking=70"}
KEY = "sk-of-this-test-alone"
"""LiteLLM 1.110 does not start without a key of its own."""


@pytest.fixture
def efforts(monkeypatch):
    """The hook, on a stand-in for the class that LiteLLM calls."""
    if importlib.util.find_spec("litellm") is None:
        logger = ModuleType("litellm.integrations.custom_logger")
        logger.CustomLogger = type("CustomLogger", (), {})
        for name in ("litellm", "litellm.integrations"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        exceptions = ModuleType("litellm.exceptions")
        exceptions.BadRequestError = type("BadRequestError", (Exception,), {})
        for module in (logger, exceptions):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.delitem(sys.modules, "satisfice.hosts.litellm", raising=False)
    return importlib.import_module("satisfice.hosts.litellm").efforts


def asked(**more):
    return {"model": "openai/lab", "messages": [], "model_info": {"id": "x", "satisfice": {"low": LOW}}, **more}


async def test_an_effort_becomes_what_it_stands_for(efforts):
    sent = await efforts.async_pre_call_deployment_hook(
        asked(reasoning_effort="low", extra_body={"top_k": 5}), "acompletion"
    )
    assert sent == asked(extra_body={"top_k": 5, **LOW})


async def test_requests_and_models_without_efforts_are_left_alone(efforts):
    for kwargs in (asked(), asked(method="deer"), {"reasoning_effort": "low", "model_info": {"id": "x"}}, {}):
        assert await efforts.async_pre_call_deployment_hook(kwargs, "acompletion") is None


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"reasoning_effort": "lowest"}, "'lowest' means nothing to this model; it knows low"),
        ({"reasoning_effort": "low", "extra_body": {"method": "deer"}}, "reasoning_effort and method both say"),
        ({"reasoning_effort": "low", "method": "deer"}, "reasoning_effort and method both say"),
    ],
)
async def test_what_cannot_be_meant_is_refused(efforts, more, reason):
    with pytest.raises(Exception, match=reason) as refused:
        await efforts.async_pre_call_deployment_hook(asked(**more), "acompletion")
    assert type(refused.value).__name__ == "BadRequestError"


def test_the_example_says_what_servers_obey():
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    assert configuration["litellm_settings"]["callbacks"] == "satisfice.hosts.litellm.efforts"
    lab, qwen = (model["model_info"]["satisfice"] for model in configuration["model_list"])
    for fields in lab.values():
        assert parse_method(fields["method"])
    for fields in qwen.values():
        read_options(fields["vllm_xargs"], {"thinking_bias": 2.0})


# -- the real proxy


def post(port, **body):
    data = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 250, **body}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data,
        {"content-type": "application/json", "authorization": f"Bearer {KEY}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """Ports of a proxy with the example's configuration and of the server behind its first model."""
    pytest.importorskip("litellm", reason="needs LiteLLM: make test-hosts")
    folder = tmp_path_factory.mktemp("litellm")
    engine = TransformersEngine.load("lab", max_batch_tokens=1 << 15)
    with serving(engine) as running:
        configuration = yaml.safe_load(CONFIGURATION.read_text())
        configuration["model_list"][0]["litellm_params"]["api_base"] = f"http://127.0.0.1:{running.port}/v1"
        (folder / "config.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = (folder / "log").open("w")
        program = Path(sys.executable).parent / "litellm"
        started = subprocess.Popen(
            [program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"],
            cwd=folder, stdout=log, stderr=log,
            env={**os.environ, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )  # fmt: skip
        try:
            until = time.monotonic() + 400
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).close()
                    break
                except OSError:
                    said = (folder / "log").read_text()[-3000:]
                    assert started.poll() is None, said
                    assert time.monotonic() < until, said
                    time.sleep(1)
            yield port, running
        finally:
            started.terminate()
            started.wait(30)
            engine.close()


@pytest.mark.hosts
@pytest.mark.timeout(600)
def test_the_proxy_turns_efforts_into_methods(proxy):
    port, running = proxy
    status, answer = post(port, model="lab", reasoning_effort="low")
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    assert "boxed" in message["content"]
    assert len(message["reasoning_content"]) > 20
    assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 75
    assert running.metric('satisfice_requests_total{method="budget-forcing",outcome="ok"}') == 1
    status, answer = post(port, model="lab", reasoning_effort="none")
    assert status == 200, answer
    assert not answer["choices"][0]["message"].get("reasoning_content")
    assert running.metric('satisfice_requests_total{method="no-thinking",outcome="ok"}') == 1


@pytest.mark.hosts
@pytest.mark.timeout(600)
def test_the_proxy_passes_methods_on_and_refusals_back(proxy):
    port, running = proxy
    status, answer = post(port, model="lab", method="temperature-scaling:t=0.5")
    assert status == 200, answer
    assert running.metric('satisfice_requests_total{method="temperature-scaling",outcome="ok"}') == 1
    for body, reason in (
        ({"reasoning_effort": "xhigh"}, "means nothing to this model; it knows none, low, medium, high"),
        ({"reasoning_effort": "low", "method": "plain"}, "both say how to think"),
        ({"method": "der"}, "did you mean 'deer'"),
    ):
        status, answer = post(port, model="lab", **body)
        assert (status, reason in json.dumps(answer)) == (400, True), answer
