"""The plugin in both of vLLM's model runners, in one process each. Runner V2 needs Triton, which has no backend for
CPUs: its interpreter stands in for one here, which shows the logic and nothing about a GPU."""

import json
import os
import subprocess
import sys

import pytest
from with_vllm.server import ENVIRONMENT, QUESTIONS

from satisfice.lab.tokenizer import build_tokenizer

LAB = build_tokenizer()
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PROGRAM = """
import json, os, sys
from types import SimpleNamespace

if os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1":
    import triton.backends

    active = type("Driver", (), {"is_active": staticmethod(lambda: True)})
    triton.backends.backends["cpu"] = SimpleNamespace(driver=active, compiler=None)

from vllm import LLM, SamplingParams

drafted = []


def propose(self, input_batch, *_, **__):
    # vLLM's own kernel for n-grams does not run in the interpreter, so this stands in for it; what is drafted is up to
    # the drafter, and what becomes of it is vLLM's own code.
    requests = self.req_states
    for place, slot in enumerate(input_batch.idx_mapping.tolist()):
        ids = requests.all_token_ids.gpu[slot, : int(requests.total_len.gpu[slot])].tolist()
        found = next((i for i in range(len(ids) - 3, 0, -1) if ids[i : i + 2] == ids[-2:]), None)
        drafts = [] if found is None else ids[found + 2 : found + 2 + self.num_speculative_steps]
        drafts += ids[-1:] * (self.num_speculative_steps - len(drafts))
        self.drafts[place] = torch.tensor(drafts)
        drafted.append(found is not None)
    return self.drafts[: input_batch.num_reqs]


if os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1":
    import torch
    from vllm.v1.worker.gpu.spec_decode.ngram.speculator import NgramGPUSpeculator

    NgramGPUSpeculator.propose = propose

from vllm.v1.core.sched.scheduler import Scheduler

settings = json.load(sys.stdin)
preempted = []
preempt = Scheduler._preempt_request
Scheduler._preempt_request = lambda self, request, *a, **k: (preempted.append(1), preempt(self, request, *a, **k))[1]

usual = dict(
    dtype="float32", enforce_eager=True, max_model_len=160, max_num_seqs=3, max_num_batched_tokens=16,
    enable_prefix_caching=False, async_scheduling=False
)
llm = LLM(settings["model"], **(usual | settings["more"]))
answers = {}
for name, jobs in settings["batches"].items():
    parameters = [
        SamplingParams(
            temperature=settings["temperature"], seed=index, max_tokens=most, skip_special_tokens=False,
            extra_args=xargs or None,
        )
        for index, (_, most, xargs) in enumerate(jobs)
    ]
    messages = [[{"role": "user", "content": question}] for question, _, _ in jobs]
    outputs = llm.chat(messages, parameters, use_tqdm=False)
    answers[name] = [output.outputs[0].text for output in outputs]
runner = type(llm.llm_engine.model_executor.driver_worker.worker.model_runner)
v2 = any(base.__module__ == "vllm.v1.worker.gpu.model_runner" for base in runner.__mro__)
print("ANSWERS" + json.dumps({"v2": v2, "preempted": len(preempted), "drafted": sum(drafted), **answers}))
"""


def run(version, batches, *, temperature=0.0, **more):
    """The texts of each batch of `(question, max_tokens, vllm_xargs)`, by a fresh engine on one of the runners."""
    from satisfice.lab import WEIGHTS

    environment = ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": str(version - 1)}
    if version == 2:
        environment["TRITON_INTERPRET"] = "1"
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps({"model": str(WEIGHTS), "batches": batches, "temperature": temperature, "more": more}),
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=800,
    )
    lines = [line for line in found.stdout.splitlines() if line.startswith("ANSWERS")]
    assert lines, found.stderr[-3000:]
    answers = json.loads(lines[0].removeprefix("ANSWERS"))
    assert answers["v2"] == (version == 2)
    return answers


FIRST, SECOND = QUESTIONS[:2]
CLOSE = {"thinking_bias": 100}
NEVER = {"thinking_bias": -100}
CAP = {"max_thinking_tokens": 5, "answer_cue": "The answer is "}
WAITS = {"thinking_bias": 100, "min_thinking_endings": 2, "wait_word": "But wait, let me check.\n"}


LONG = [(FIRST, 70, NEVER | CAP | {"max_thinking_tokens": most}) for most in (30, 45, 40)]
BATCHES = {
    # More requests than slots, so that every slot has several of them, one after the other.
    "mixed": [
        (FIRST, 16, CLOSE), (FIRST, 16, NEVER), (FIRST, 16, None), (SECOND, 16, CAP), (FIRST, 16, CLOSE),
        (SECOND, 16, None), (FIRST, 16, NEVER), (FIRST, 16, CAP), (SECOND, 16, WAITS), (FIRST, 16, None),
    ],
    "plain": [(FIRST, 16, None), (SECOND, 16, None)],
    # There is room for one such response and a half, so that the others are interrupted again and again.
    "crowded": LONG,
    **{f"alone {index}": [job] for index, job in enumerate(LONG)},
}  # fmt: skip


@pytest.fixture(scope="module", params=[1, 2], ids=["V1", "V2"])
def answers(request):
    return run(request.param, BATCHES, num_gpu_blocks_override=6, block_size=32)


def test_requests_of_one_batch_and_of_the_slots_after_it(answers):
    close, never, plain, cap, close_again, plain_second, never_again, cap_first, waits, plain_again = answers["mixed"]
    assert answers["plain"] == [plain, plain_second]
    assert plain_again == plain
    assert close.startswith("</think>")
    assert close_again == close
    assert "</think>" not in never + never_again
    for text, own in ((cap, plain_second), (cap_first, plain)):
        thinking, _, answer = text.partition("</think>")
        assert own.startswith(thinking.rstrip("\n"))
        assert answer.startswith("\n\nThe answer is ")
    assert waits.startswith("But wait, let me check.\n" * 2)


def test_a_request_that_was_interrupted_goes_on_as_if_it_had_not_been(answers):
    assert answers["preempted"] > 0
    assert all("</think>\n\nThe answer is " in text for text in answers["crowded"])
    assert answers["crowded"] == [answers[f"alone {index}"][0] for index in range(len(LONG))]


@pytest.mark.parametrize("version", [1, 2])
def test_a_closing_marker_of_several_tokens(version):
    markers = {"satisfice": {"thinking_format": "<think>,Final Answer: "}}
    found = run(
        version,
        {"texts": [(FIRST, 14, {"max_thinking_tokens": 4, "answer_cue": "7"}), (FIRST, 14, {"thinking_bias": 100})]},
        additional_config=markers,
    )
    assert "Final Answer:" in found["texts"][0]
    assert found["texts"][1].startswith("Final Answer:")


SPECULATIVE = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 2}
CONTROLS = {
    "nothing": None,
    "closed": CLOSE,
    "warmer": {"thinking_temperature": 0.5},
    "a cap": {"max_thinking_tokens": 40, "answer_cue": "The answer is "},
    "a ramp": {"max_thinking_tokens": 60, "soft_thinking_tokens": 30, "ramp_bias": 10},
    "two endings": {"thinking_bias": 100, "min_thinking_endings": 2, "wait_word": "But wait, let me check.\n"},
    "a landing": {"max_thinking_tokens": 30, "grace_tokens": 30, "grace_end": "line", "hint": "So ", "hint_lead": 8},
    "loops": {"stop_loops": True, "loop_ngram": 8, "loop_repeats": 2, "loop_window": 128, "loop_end": "line"},
    "sure": {"confidence_above": 2, "confidence_window": 8, "confidence_top": 5, "confidence_end": "line"},
}


@pytest.mark.parametrize("temperature", [0.0, 0.7], ids=["greedy", "seeded"])
def test_speculative_decoding_loses_nothing_that_is_forced(temperature):
    """The lab's model repeats its passes, so that many n-grams are accepted, and some are not.

    Greedily, every text is the same as without drafts. With a seed vLLM itself draws otherwise after a draft that it
    rejects, so that texts without any control differ, too; what a control promises is kept.
    """
    jobs = [(question, 90, xargs) for question in (FIRST, SECOND) for xargs in CONTROLS.values()]
    more = {"temperature": temperature, "max_num_batched_tokens": 64}
    drafted = run(2, {"texts": jobs}, speculative_config=SPECULATIVE, **more)
    assert drafted["drafted"] > 0
    if not temperature:
        plain = run(2, {"texts": jobs}, **more)
        assert plain["drafted"] == 0
        for name, text, wanted in zip([*CONTROLS] * 2, drafted["texts"], plain["texts"], strict=True):
            assert text == wanted, name
    for texts in (drafted["texts"][: len(CONTROLS)], drafted["texts"][len(CONTROLS) :]):
        by_name = dict(zip(CONTROLS, texts, strict=True))
        assert by_name["closed"].startswith("</think>")
        thinking, _, answer = by_name["a cap"].partition("</think>")
        assert answer.startswith("\n\nThe answer is ")
        assert 35 < len(LAB(thinking, add_special_tokens=False)["input_ids"]) <= 41  # a line break may be forced
        assert by_name["two endings"].startswith("But wait, let me check.\n" * 2 + "</think>")
        for name in ("a ramp", "a landing", "loops"):
            assert "</think>" in by_name[name], name
