"""In SGLang, on stand-ins for its side: token for token what our engine writes under the same control.

The stand-ins do what SGLang's sampler and its records of requests do, as its sources have it (2026): a processor is
made anew for every batch from the text that a request sent, gets the rows of the requests that named it, and finds
each request under `__req__`.
"""

import asyncio
import json
import sys
from http import HTTPStatus
from types import ModuleType, SimpleNamespace

import dill
import pytest
import torch

from satisfice.engines.base import Sampling
from satisfice.engines.pretrained import load_pretrained
from satisfice.engines.transformers import TransformersEngine
from satisfice.hosts import sglang as door
from satisfice.hosts.sglang import PROCESSOR, ThinkingControls, request
from satisfice.intervention.control_table import ControlTable
from satisfice.intervention.options import OptionError, Options
from satisfice.intervention.prompt_reader import PromptReader
from satisfice.problems import load_problems

NEW = 80
PROBLEMS = load_problems("lab:calibration", limit=4).problems
KEYS = [
    {"max_thinking_tokens": 20, "answer_cue": "So the answer is"},
    {"thinking_bias": 12.0},
    {},
    {"answer_tokens": 30, "min_thinking_endings": 1, "wait_word": "Wait"},
]


@pytest.fixture(scope="module")
def lab():
    loaded = load_pretrained("lab", device="cpu")
    engine = TransformersEngine(loaded.network, loaded.tokenizer, threads=1, max_batch_tokens=1 << 15)
    yield loaded.network, loaded.tokenizer, engine
    engine.close()


@pytest.fixture(autouse=True)
def server(monkeypatch):
    """SGLang's modules as far as the door looks into them; the settings of the server."""
    settings = SimpleNamespace(disable_overlap_schedule=True)
    arguments, batches = ModuleType("sglang.srt.server_args"), ModuleType("sglang.srt.managers.schedule_batch")
    arguments.get_global_server_args = lambda: settings
    batches.FINISH_ABORT = Aborted
    for name in ("sglang", "sglang.srt", "sglang.srt.managers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, arguments.__name__, arguments)
    monkeypatch.setitem(sys.modules, batches.__name__, batches)
    monkeypatch.setattr(door, "_MODELS", {})
    return settings


class Aborted:
    def __init__(self, message, status_code=None, err_type=None):
        self.message, self.status_code, self.err_type = message, status_code, err_type


class Request:
    """SGLang's `Req`, as far as a processor looks at it; a cycle holds it, as there."""

    def __init__(self, tokenizer, prompt_ids, keys, most=NEW, thinking_format=None):
        self.tokenizer, self.origin_input_ids, self.output_ids = tokenizer, list(prompt_ids), []
        self.eos_token_ids = {tokenizer.eos_token_id}
        sent = request(thinking_format=thinking_format, **keys)
        self.custom_logit_processor = sent["custom_logit_processor"]
        params = json.loads(json.dumps(sent["custom_params"]))  # over the wire
        params["__req__"] = self
        self.sampling_params = SimpleNamespace(custom_params=params, max_new_tokens=most)
        self.to_finish = self.finished_reason = None

    def finished(self):
        return self.finished_reason is not None

    def check_finished(self):
        if self.to_finish:
            self.finished_reason, self.to_finish = self.to_finish, None
        elif self.output_ids[-1] in self.eos_token_ids:
            self.finished_reason = "stop"
        elif len(self.output_ids) >= self.sampling_params.max_new_tokens:
            self.finished_reason = "length"


def processed(logits, requests, drafted=1):
    """What SGLang's sampler does before it draws."""
    named = {}
    for row, each in enumerate(requests):
        if each.custom_logit_processor:
            named.setdefault(each.custom_logit_processor, []).append(row)
    for text, rows in named.items():
        processor = dill.loads(bytes.fromhex(json.loads(text)["callable"]))()
        mask = torch.zeros(len(requests), dtype=torch.bool)
        mask[rows] = True
        mask = mask.repeat_interleave(drafted)
        logits[mask] = processor(logits[mask], [requests[row].sampling_params.custom_params for row in rows])
    return logits


@torch.no_grad()
def step(network, requests):
    """One greedy token for each request, and what SGLang does after it."""
    rows = [network(torch.tensor([[*each.origin_input_ids, *each.output_ids]])).logits[0, -1] for each in requests]
    tokens = processed(torch.stack(rows).float(), requests).argmax(-1)
    for each, token in zip(requests, tokens.tolist(), strict=True):
        each.output_ids.append(token)
        each.check_finished()


def run(network, requests):
    while running := [each for each in requests if not each.finished()]:
        step(network, running)


def prompt(tokenizer, problem, behind=""):
    text = tokenizer.apply_chat_template(problem.messages(), tokenize=False, add_generation_prompt=True) + behind
    return tokenizer.encode(text, add_special_tokens=False)


def by_engine(lab, prompt_ids, keys, most=NEW):
    """The same control in our engine, where keys make one control."""
    _, tokenizer, engine = lab
    markers = door.Markers(engine.thinking, tokenizer, len(tokenizer))
    state = PromptReader(engine.thinking, tokenizer).state(prompt_ids)
    controls = Options(**keys).controls(markers, state, most, (tokenizer.eos_token_id,))
    sampling = Sampling(temperature=0.0, max_tokens=most)
    return asyncio.run(engine.generate(prompt_ids, sampling, control=controls[0] if controls else None)).ids


def test_a_batch_is_written_as_by_the_engine(lab):
    network, tokenizer, _ = lab
    prompts = [prompt(tokenizer, problem) for problem in PROBLEMS]
    requests = [Request(tokenizer, ids, keys) for ids, keys in zip(prompts, KEYS, strict=True)]
    run(network, requests)
    expected = [by_engine(lab, ids, keys) for ids, keys in zip(prompts, KEYS, strict=True)]
    assert [each.output_ids for each in requests] == expected
    free = [by_engine(lab, ids, {}) for ids in prompts]
    assert [one == other for one, other in zip(expected, free, strict=True)] == [False, False, True, False]


def test_what_is_read_of_the_thinking_ends_it_as_in_the_engine(lab):
    network, tokenizer, _ = lab
    keys = [
        {"confidence_above": -0.05, "confidence_window": 8, "confidence_min_tokens": 0, "confidence_end": "line"},
        {"stop_loops": True, "loop_ngram": 4, "loop_repeats": 2, "loop_window": 80},
        {"max_thinking_tokens": 12, "grace_tokens": 20},
    ]
    prompts = [prompt(tokenizer, problem) for problem in PROBLEMS[:3]]
    requests = [Request(tokenizer, ids, each) for ids, each in zip(prompts, keys, strict=True)]
    run(network, requests)
    expected = [by_engine(lab, ids, each) for ids, each in zip(prompts, keys, strict=True)]
    assert [each.output_ids for each in requests] == expected
    assert all(one != by_engine(lab, ids, {}) for one, ids in zip(expected, prompts, strict=True))


def test_requests_come_and_go_and_slots_are_given_again(lab, monkeypatch):
    network, tokenizer, _ = lab
    monkeypatch.setattr(door, "FIRST_SLOTS", 1)
    prompts = [prompt(tokenizer, problem) for problem in PROBLEMS]
    expected = [by_engine(lab, ids, KEYS[0], most=30) for ids in prompts]
    requests = [Request(tokenizer, ids, KEYS[0], most=30) for ids in prompts]
    waiting, running = list(requests), []
    while waiting or running:
        running += [waiting.pop(0)] if waiting else []
        for _ in range(14):
            if running:
                step(network, running)
                running = [each for each in running if not each.finished()]
    assert [each.output_ids for each in requests] == expected
    [model] = door._MODELS.values()
    assert len(model._followed) < len(requests)


def test_a_step_reads_only_what_is_new(lab, monkeypatch):
    network, tokenizer, _ = lab
    admitted, observed = [], []
    admit, observe = ControlTable.admit, ControlTable.observe
    monkeypatch.setattr(ControlTable, "admit", lambda self, *given: (admitted.append(given), admit(self, *given))[1])
    monkeypatch.setattr(
        ControlTable, "observe", lambda self, *given: (observed.append(given), observe(self, *given))[1]
    )
    one = Request(tokenizer, prompt(tokenizer, PROBLEMS[0]), KEYS[1], most=12)
    run(network, [one])
    assert len(admitted) == 1
    assert len(observed) == len(one.output_ids) - 1


def test_a_request_that_was_retracted_goes_on_where_it_was(lab):
    network, tokenizer, _ = lab
    ids = prompt(tokenizer, PROBLEMS[0])
    one = Request(tokenizer, ids, KEYS[0])
    for _ in range(10):
        step(network, [one])
    again = Request(tokenizer, ids, KEYS[0])  # as after the server of a request has died
    again.output_ids = list(one.output_ids)
    run(network, [again])
    assert again.output_ids == by_engine(lab, ids, KEYS[0])
    one.output_ids = one.output_ids[:4]  # as after a server took tokens back
    run(network, [one])
    assert one.output_ids == again.output_ids


def test_samples_of_a_prompts_first_chunks_count_for_nothing(lab):
    network, tokenizer, _ = lab
    ids = prompt(tokenizer, PROBLEMS[0])
    one = Request(tokenizer, ids, KEYS[0])
    for _ in range(2):
        processed(torch.zeros(1, len(tokenizer)), [one])
    run(network, [one])
    assert one.output_ids == by_engine(lab, ids, KEYS[0])


def test_thinking_that_the_prompt_has_closed_is_not_capped(lab):
    _, tokenizer, engine = lab
    closed = Request(tokenizer, prompt(tokenizer, PROBLEMS[0], engine.thinking.open + engine.thinking.close), KEYS[0])
    opened = Request(tokenizer, prompt(tokenizer, PROBLEMS[0], engine.thinking.open), {"max_thinking_tokens": 0})
    before = torch.zeros(2, len(tokenizer))
    after = processed(before.clone(), [closed, opened])
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"max_thinking_token": 5}, "custom_params has no key max_thinking_token; did you mean max_thinking_tokens?"),
        ({"max_thinking_tokens": -5}, "max_thinking_tokens is -5"),
        ({"answer_tokens": 5000}, "answer_tokens is 5000"),
        ({"max_thinking_tokens": 5, "thinking_format": "<think>"}, "neither a known family"),
    ],
)
def test_what_cannot_be_obeyed_ends_its_request_alone(lab, params, reason):
    network, tokenizer, _ = lab
    good, bad = (Request(tokenizer, prompt(tokenizer, problem), KEYS[0], most=24) for problem in PROBLEMS[:2])
    bad.sampling_params.custom_params = {**params, "__req__": bad}
    run(network, [good, bad])
    assert good.output_ids == by_engine(lab, good.origin_input_ids, KEYS[0], most=24)
    assert len(bad.output_ids) == 1
    assert reason in bad.finished_reason.message
    assert (bad.finished_reason.status_code, bad.finished_reason.err_type) == (
        HTTPStatus.BAD_REQUEST,
        "BadRequestError",
    )


def test_servers_whose_tokens_cannot_be_followed_are_refused(lab, server):
    _, tokenizer, _ = lab
    one = Request(tokenizer, prompt(tokenizer, PROBLEMS[0]), KEYS[0])
    logits = torch.zeros(3, len(tokenizer))
    assert torch.equal(processed(logits.clone(), [one], drafted=3), logits)
    assert "start the server without speculative decoding" in one.to_finish.message
    server.disable_overlap_schedule, one.to_finish = False, None
    processed(logits[:1].clone(), [one])
    assert "--disable-overlap-schedule" in one.to_finish.message
    server.disable_overlap_schedule, one.to_finish, one.tokenizer = True, None, None
    processed(logits[:1].clone(), [one])
    assert "--skip-tokenizer-init" in one.to_finish.message


def test_a_request_is_checked_where_it_is_written():
    assert request(thinking_bias=1) == {"custom_logit_processor": PROCESSOR, "custom_params": {"thinking_bias": 1}}
    assert dill.loads(bytes.fromhex(json.loads(PROCESSOR)["callable"])) is ThinkingControls
    assert request(thinking_format="<a>,</a>")["custom_params"] == {"thinking_format": "<a>,</a>"}
    with pytest.raises(OptionError, match="did you mean thinking_bias"):
        request(thinking_bia=1)
    with pytest.raises(OptionError, match="thinking_bias is 'x'"):
        request(thinking_bias="x")
