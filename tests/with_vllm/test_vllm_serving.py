"""Controls of thinking through `vllm serve`: what a client asks for is what it gets."""

import json
import urllib.request

import pytest
from with_vllm.server import QUESTIONS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def thinking(text):
    return text.partition("</think>")[0]


def test_a_bias_ends_thinking_at_once_or_never(server):
    assert server.text(vllm_xargs={"thinking_bias": 100}).startswith("</think>")
    assert "</think>" not in server.text(vllm_xargs={"thinking_bias": -100})


def test_a_cap_writes_the_marker_and_the_cue(server):
    plain = server.text()
    text = server.text(vllm_xargs={"max_thinking_tokens": 6, "answer_cue": "The answer is "})
    before, _, after = text.partition("</think>")
    assert plain.startswith(before.rstrip("\n"))
    assert after.startswith("\n\nThe answer is ")


def test_an_ending_is_replaced(server):
    plain = thinking(server.text())
    longer = server.text(vllm_xargs={"min_thinking_endings": 1}, max_tokens=400)
    assert longer.startswith(plain + "Wait")


def test_answer_tokens_leave_room_for_an_answer(server):
    status, answer = server.chat(max_tokens=30, vllm_xargs={"answer_tokens": 12, "answer_cue": "The answer is "})
    assert status == 200
    content = answer["choices"][0]["message"]["content"]
    assert content.partition("</think>\n\nThe answer is ")[2]
    assert "</think>" not in server.text(max_tokens=30)  # what it is for


def test_words_of_reflection_do_not_come(server):
    for question in QUESTIONS[:4]:
        text = thinking(server.text(question, vllm_xargs={"suppress_reflection": True, "min_thinking_endings": 0}))
        assert not any(word in text for word in ("Wait", "But wait", "Hmm", "Alternatively", "Maybe"))


def test_a_ramp_ends_thinking_no_later_than_its_cap(server):
    xargs = {"thinking_bias": -50, "soft_thinking_tokens": 5, "max_thinking_tokens": 105, "ramp_bias": 100}
    text = server.text(vllm_xargs=xargs)
    assert "</think>" not in server.text(vllm_xargs={"thinking_bias": -50})
    assert "</think>" in text


def test_a_level_is_written_into_the_prompt(server):
    tokens = {}
    for level in (None, "short", "long"):
        status, answer = server.chat(**({"vllm_xargs": {"thinking_level": level}} if level else {}))
        assert status == 200
        tokens[level] = answer["usage"]["prompt_tokens"]
    assert tokens["short"] > tokens[None]
    assert tokens["long"] > tokens[None]


@pytest.mark.parametrize(
    ("xargs", "reason"),
    [
        ({"thinking_temperature": -1}, "thinking_temperature is -1"),
        ({"max_thinking_tokens": "many"}, "max_thinking_tokens is 'many'"),
        ({"thinking_bais": 1}, "did you mean thinking_bias?"),
        ({"answer_cue": "x"}, "answer_cue does nothing without"),
        ({"thinking_level": "medium"}, "was not trained on levels"),
        ({"answer_tokens": 500}, "but max_tokens is 200"),
        ({"max_thinking_tokens": 5, "answer_cue": "</think>"}, "answer_cue contains"),
    ],
)
def test_what_cannot_be_obeyed_is_a_bad_request(server, xargs, reason):
    status, answer = server.chat(vllm_xargs=xargs)
    assert status == 400
    assert reason in answer["error"]["message"]


def test_structured_output_and_forced_tokens_do_not_go_together(server):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    status, answer = server.chat(vllm_xargs={"max_thinking_tokens": 5}, response_format=form)
    assert status == 400
    assert "structured output" in answer["error"]["message"]


def test_completions_take_controls_but_no_level(server):
    body = {"model": "lab", "prompt": "<think>", "max_tokens": 20, "temperature": 0, "skip_special_tokens": False}
    status, answer = server.post("/v1/completions", **body, vllm_xargs={"max_thinking_tokens": 0})
    assert status == 200
    assert answer["choices"][0]["text"].startswith("</think>")
    status, answer = server.post("/v1/completions", **body, vllm_xargs={"thinking_level": "short"})
    assert status == 400
    assert "chat/completions" in answer["error"]["message"]


def test_all_samples_of_one_request_are_controlled(server):
    status, answer = server.chat(n=4, temperature=1.0, vllm_xargs={"thinking_bias": 100})
    assert status == 200
    assert [c["message"]["content"].startswith("</think>") for c in answer["choices"]] == [True] * 4


def test_a_stream_is_controlled_like_a_whole_answer(server):
    xargs = {"max_thinking_tokens": 6, "answer_cue": "The answer is "}
    body = {
        "model": "lab", "messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True, "temperature": 0,
        "max_tokens": 200, "skip_special_tokens": False, "vllm_xargs": xargs,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    text = ""
    with urllib.request.urlopen(request, timeout=60) as lines:
        for line in lines:
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    assert text == server.text(vllm_xargs=xargs)
