"""A server with defaults and a reasoning parser: what it does to requests that ask for nothing, and beside vLLM's own
budget of thinking."""

import json
import urllib.request

import pytest
from with_vllm.server import QUESTIONS, Server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

CUE = "Therefore "
DEFAULTS = {"max_thinking_tokens": 8, "answer_cue": CUE, "thinking_level": "short"}


@pytest.fixture(scope="module")
def parsed(model, tmp_path_factory):
    """A server that returns thinking by itself, with defaults from the environment."""
    running = Server(
        model, tmp_path_factory.mktemp("parsed") / "log.txt", "--max-model-len", "500", "--max-num-seqs", "4",
        "--reasoning-parser", "qwen3", "--middleware", "satisfice.vllm_plugin.Levels",
        SATISFICE_DEFAULTS=json.dumps(DEFAULTS),
    )  # fmt: skip
    running.wait()
    yield running
    running.stop()


def parts(server, **body):
    """Thinking and answer of a chat request."""
    status, answer = server.chat(**body)
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    return message["reasoning"] or "", message["content"] or ""


def words(text):
    return len(text.split())


def test_defaults_hold_for_requests_that_ask_for_nothing(parsed):
    thinking, content = parts(parsed)
    assert 0 < words(thinking) <= 8
    assert content.strip().startswith(CUE)
    assert "think>" not in thinking + content
    free, content = parts(parsed, vllm_xargs={"satisfice_defaults": 0})
    assert free.startswith(thinking.strip())
    assert words(free) > 12
    assert not content.strip().startswith(CUE)


def test_a_request_goes_over_the_defaults(parsed):
    shorter, _ = parts(parsed, vllm_xargs={"max_thinking_tokens": 3})
    thinking, content = parts(parsed, vllm_xargs={"answer_cue": "Wait"})
    assert words(shorter) < words(thinking)
    assert content.strip().startswith("Wait")


def test_the_default_level_is_in_the_prompt_unless_a_request_frees_itself(parsed):
    counts = [parsed.chat(vllm_xargs=xargs)[1]["usage"]["prompt_tokens"] for xargs in ({}, {"satisfice_defaults": 0})]
    assert counts[0] > counts[1]


def test_defaults_that_force_tokens_leave_structured_output_alone(parsed):
    _, content = parts(parsed, structured_outputs={"choice": ["12", "13"]})
    assert content.strip() in ("12", "13")


@pytest.mark.parametrize(("own", "vllms"), [(20, 3), (3, 20), (5, 5), (5, 6), (6, 5)])
def test_of_two_caps_the_lower_one_holds_and_thinking_is_closed_once(parsed, own, vllms):
    xargs = {"max_thinking_tokens": own}
    body = {"thinking_token_budget": vllms, "vllm_xargs": xargs}
    thinking, content = parts(parsed, **body)
    alone, _ = parts(parsed, vllm_xargs=xargs | {"max_thinking_tokens": min(own, vllms)})
    assert abs(words(thinking) - words(alone)) <= 1
    assert "think>" not in thinking + content
    assert content.strip()


def test_a_ramp_may_stand_before_vllms_budget(parsed):
    ramp = {"thinking_bias": -50, "soft_thinking_tokens": 2, "max_thinking_tokens": 22, "ramp_bias": 400}
    early, content = parts(parsed, thinking_token_budget=30, vllm_xargs=ramp)
    assert words(early) < 15
    assert not content.strip().startswith(CUE)  # it ended by itself
    late, _ = parts(parsed, thinking_token_budget=12, vllm_xargs={"thinking_bias": -50, "satisfice_defaults": 0})
    assert words(early) <= words(late) <= 13


def test_a_stream_has_thinking_first(parsed):
    body = {
        "model": "lab", "messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True, "temperature": 0,
        "max_tokens": 200, "vllm_xargs": {"max_thinking_tokens": 6},
    }  # fmt: skip
    request = urllib.request.Request(
        f"{parsed.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    kinds, text = [], {"reasoning": "", "content": ""}
    with urllib.request.urlopen(request, timeout=60) as lines:
        for line in lines:
            if line.startswith(b"data: {"):
                delta = json.loads(line[6:])["choices"][0]["delta"]
                for kind, written in text.items():
                    if delta.get(kind):
                        kinds.append(kind)
                        text[kind] = written + delta[kind]
    assert kinds == sorted(kinds, reverse=True)
    assert 0 < words(text["reasoning"]) <= 6
    assert text["content"].strip().startswith(CUE)


def test_defaults_that_cannot_be_obeyed_stop_the_server_with_the_reason(model, tmp_path):
    running = Server(model, tmp_path / "log.txt", SATISFICE_DEFAULTS='{"thinking_bais": 1}')
    with pytest.raises(RuntimeError, match="did not start"):
        running.wait()
    assert "SATISFICE_DEFAULTS: thinking_bais" in running.log.read_text()
