"""The plugin for `vllm serve` without vLLM: what a request may ask, prompts, slots, and both processor interfaces."""

import asyncio
import enum
import importlib
import json
import random
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from satisfice.engines.control_batch import Markers
from satisfice.engines.control_setting import decode_control, encode_control
from satisfice.intervention import parse_method
from satisfice.intervention.controls import ConfidenceRule, EndScaling, LoopRule, SuppressTokens, ThinkingBudget
from satisfice.intervention.options import OptionError, Options, check_against_model
from satisfice.intervention.prompt_reader import PromptReader
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.levels import write_levels
from satisfice.runs.certificate import Certificate, Setting, thinking_digest
from satisfice.runs.experiment import versions_of
from satisfice.thinking import FAMILIES, Phase, ThinkingFormat
from satisfice.vllm_plugin import Levels
from satisfice.vllm_plugin.options import certificate_in_use, read_defaults, read_options

LAB = build_tokenizer()
TAGS = FAMILIES["think-tags"]
AUTOMATON = TAGS.automaton(LAB)
MARKERS = Markers(TAGS, LAB, len(LAB))
THINKING = AUTOMATON.thinking_state
CLOSE = LAB.convert_tokens_to_ids("</think>")


def ids(text):
    return LAB(text, add_special_tokens=False)["input_ids"]


# -- what a request may ask


@pytest.mark.parametrize(
    ("xargs", "reason"),
    [
        ({"thinking_temperature": 0}, "thinking_temperature is 0"),
        ({"thinking_temperature": "warm"}, "thinking_temperature is 'warm'"),
        ({"thinking_bias": float("nan")}, "thinking_bias is nan; it must be within -1000..1000"),
        ({"thinking_bias": [1]}, "thinking_bias is [1]"),
        ({"max_thinking_tokens": -1}, "max_thinking_tokens is -1"),
        ({"max_thinking_tokens": 1.5}, "max_thinking_tokens is 1.5"),
        ({"max_thinking_tokens": 10**12}, "max_thinking_tokens"),
        ({"suppress_reflection": "perhaps"}, "suppress_reflection is 'perhaps'"),
        ({"min_thinking_endings": 1000}, "min_thinking_endings is 1000"),
        ({"min_thinking_endings": 1, "wait_word": ""}, "wait_word is ''"),
        ({"answer_cue": "So"}, "answer_cue does nothing without"),
        (
            {"max_thinking_tokens": True},
            "max_thinking_tokens is true; it must be a whole number",
        ),
        ({"answer_tokens": False}, "answer_tokens is false; it must be a whole number within 1..10000000, or none"),
        ({"thinking_temperature": True}, "thinking_temperature is true; it must be a number within 0.01..100"),
        ({"thinking_bias": False}, "thinking_bias is false; it must be a number within -1000..1000"),
        ({"min_thinking_endings": True}, "min_thinking_endings is true; it must be a whole number within 0..64"),
        (
            {"max_thinking_tokens": 9, "soft_thinking_tokens": True},
            "soft_thinking_tokens is true; it must be a",
        ),
        (
            {"max_thinking_tokens": 9, "soft_thinking_tokens": 1, "ramp_bias": True},
            "ramp_bias is true; it must be a",
        ),
        ({"wait_word": "So"}, "wait_word does nothing without"),
        ({"ramp_bias": 1}, "ramp_bias does nothing without"),
        ({"soft_thinking_tokens": 5}, "needs a max_thinking_tokens"),
        ({"hint": "So"}, "hint does nothing without max_thinking_tokens"),
        ({"grace_tokens": 5}, "grace_tokens does nothing without max_thinking_tokens"),
        ({"max_thinking_tokens": 20, "hint": "So"}, "hint_lead is 64 and max_thinking_tokens 20; the hint has to come"),
        ({"max_thinking_tokens": 20, "hint_lead": 5}, "hint_lead does nothing without hint"),
        ({"max_thinking_tokens": 20, "grace_end": "line"}, "grace_end does nothing without grace_tokens"),
        ({"max_thinking_tokens": 20, "grace_tokens": 5, "grace_end": "word"}, "grace_end is 'word'"),
        ({"loop_ngram": 5}, "loop_ngram does nothing without stop_loops"),
        ({"stop_loops": "often"}, "stop_loops is 'often'"),
        ({"stop_loops": 1, "loop_window": 100}, "loop_window is 100, but 4 times 32 tokens"),
        ({"stop_loops": 1, "loop_window": 10**6}, "loop_window is 1000000; it must be within 1..8192"),
        ({"confidence_window": 5}, "confidence_window does nothing without confidence_above or confidence_below"),
        ({"confidence_above": 0.5}, "confidence_above is 0.5, but a log-probability is 0 at most"),
        ({"confidence_above": -1, "confidence_below": -0.5}, "below must be the smaller"),
        ({"confidence_above": -1, "confidence_top": 50}, "confidence_top is 50"),
        ({"stop_loop": 1}, "did you mean stop_loops?"),
        ({"soft_thinking_tokens": 5, "max_thinking_tokens": 5}, "above its beginning"),
        ({"thinking_temprature": 1}, "did you mean thinking_temperature?"),
        ({"max_think_tokens": 1}, "did you mean max_thinking_tokens?"),
        ({"thinking_level": "short"}, "--middleware satisfice.vllm_plugin.Levels"),
        ({"satisfice_defaults": "off"}, "satisfice_defaults is 'off'"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_with_the_reason(xargs, reason):
    with pytest.raises(OptionError) as refusal:
        read_options(xargs, {})
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_requests_without_wishes_and_those_of_other_plugins_are_let_through():
    assert read_options(None, {}) is None
    assert read_options({}, {}) is None
    assert read_options({"session_id": "7", "kv_transfer_params": {"do": 1}}, {}) is None


def test_a_request_goes_over_the_servers_defaults():
    defaults = {"thinking_bias": 1.0, "max_thinking_tokens": 100, "soft_thinking_tokens": 50, "thinking_level": "long"}
    assert read_options(None, defaults) == Options(thinking_bias=1.0, max_thinking_tokens=100, soft_thinking_tokens=50)
    found = read_options({"thinking_bias": 3, "max_thinking_tokens": 20}, defaults)
    assert found == Options(thinking_bias=3.0, max_thinking_tokens=20)
    assert read_options({"satisfice_defaults": 0}, defaults) is None
    assert read_options({"satisfice_defaults": 0, "thinking_bias": 2}, defaults) == Options(thinking_bias=2.0)


def test_defaults_come_from_the_flag_or_else_from_the_environment(monkeypatch):
    monkeypatch.setenv("SATISFICE_DEFAULTS", '{"thinking_bias": 1}')
    assert read_defaults({}) == {"thinking_bias": 1}
    assert read_defaults({"satisfice": {"thinking_format": "<a>,</a>"}}) == {"thinking_format": "<a>,</a>"}
    assert read_defaults({"satisfice": {}}) == {}


@pytest.mark.parametrize(
    ("method", "defaults"),
    [
        ("temperature-scaling:t=0.8", {"thinking_temperature": 0.8}),
        ("temperature-scaling:mode=bias,bias=2", {"thinking_bias": 2.0}),
        ("budget-forcing:max_thinking=70", {"max_thinking_tokens": 70}),
        (
            "budget-forcing:max_thinking=70,ignore=2,cue=So+temperature-scaling",
            {"max_thinking_tokens": 70, "answer_cue": "So", "min_thinking_endings": 2, "wait_word": "Wait",
             "thinking_temperature": 0.9},
        ),
        ("thinking-budget:max_thinking=70,ramp_bias=0", {"max_thinking_tokens": 70}),
        (
            "thinking-budget:max_thinking=70,ramp_from=0.3,cue=So",
            {"max_thinking_tokens": 70, "soft_thinking_tokens": 21, "ramp_bias": 8.0, "answer_cue": "So"},
        ),
        (
            'soft-landing:max_thinking=70,lead=9,hint="So ",cue=So',
            {"max_thinking_tokens": 70, "hint": "So ", "hint_lead": 9, "grace_tokens": 64, "grace_end": "sentence",
             "answer_cue": "So"},
        ),
        ('soft-landing:max_thinking=70,hint="",grace=0', {"max_thinking_tokens": 70}),
        (
            "stop-loops:ngram=9,repeats=3,window=99",
            {"stop_loops": True, "loop_ngram": 9, "loop_repeats": 3, "loop_window": 99, "loop_periodic": False,
             "loop_end": "line", "loop_grace": 64},
        ),
        (
            "confidence-exit:above=12,below=2,measure=group,top=5,window=9",
            {"confidence_above": 12.0, "confidence_below": 2.0, "confidence_window": 9, "confidence_min_tokens": 128,
             "confidence_end": "paragraph", "confidence_top": 5},
        ),
        ("no-wait", {"suppress_reflection": True}),
        ("tldr:level=short", {"thinking_level": "short"}),
    ],
)  # fmt: skip
def test_a_certificate_gives_the_defaults_that_do_what_its_method_does(monkeypatch, tmp_path, method, defaults):
    monkeypatch.setenv("SATISFICE_DEFAULTS", f"@{certificate(tmp_path, method)}")
    assert read_defaults({}) == defaults
    assert certificate_in_use({}) == str(tmp_path / "c.json")
    assert certificate_in_use({"satisfice": {}}) == "", "the flag goes over the environment"


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("deer:threshold=0.9", "deer:threshold=0.9 does not run inside vLLM, which takes temperature-scaling"),
        (None, "certifies nothing"),
        ("temperature-scaling:t=0.001", "thinking_temperature is 0.001"),
    ],
)
def test_a_certificate_that_vllm_cannot_obey_stops_the_server(monkeypatch, tmp_path, method, reason):
    monkeypatch.setenv("SATISFICE_DEFAULTS", f"@{certificate(tmp_path, method)}")
    with pytest.raises(OptionError, match=reason):
        read_defaults({})
    monkeypatch.setenv("SATISFICE_DEFAULTS", "@nowhere.json")
    with pytest.raises(OptionError, match=r"SATISFICE_DEFAULTS=@nowhere.json: there is no file nowhere.json"):
        read_defaults({})


def certificate(folder, method, asked=None, versions=None):
    row = [Setting(method=str(method), parameter="t", value=1, verdict="certified", n=9, bound=0.01)]
    made = Certificate(method=method, baseline="plain", loss="net", max_loss=0.01, confidence=0.95, levels={}, n=9,
                       bound=0.01, ladders={"the method": row}, asked=asked or {"model": "transformers:lab"},
                       versions=versions or {})  # fmt: skip
    (folder / "c.json").write_text(made.model_dump_json())
    return folder / "c.json"


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("{", "SATISFICE_DEFAULTS is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"thinking_bias": "x"}', "SATISFICE_DEFAULTS: thinking_bias is 'x'"),
        ('{"thinking_bais": 1}', "thinking_bais"),
        ('{"answer_tokens": true}', "SATISFICE_DEFAULTS: answer_tokens is true; it must be a whole number"),
        ('{"thinking_level": "tiny"}', "use one of short, medium, long"),
        ('{"thinking_format": 1}', "must be a text"),
    ],
)
def test_defaults_that_cannot_be_obeyed_stop_the_server_with_one_sentence(monkeypatch, written, reason):
    monkeypatch.setenv("SATISFICE_DEFAULTS", written)
    with pytest.raises(OptionError, match=reason.replace("(", r"\(")):
        read_defaults({})


def test_options_become_controls():
    options = read_options({"thinking_temperature": 0.5, "thinking_bias": 2, "suppress_reflection": 1}, {})
    scaling, suppress = options.controls(MARKERS, 3, 100, (2,))
    assert scaling == EndScaling(state=3, gain=1.0, bias=2.0)
    assert isinstance(suppress, SuppressTokens)
    assert "wait" in suppress.words

    (budget,) = read_options({"max_thinking_tokens": 7, "answer_cue": "So "}, {}).controls(MARKERS, 3, 100, (2,))
    assert budget == ThinkingBudget(state=3, most=7, cue="So ", ramp_bias=8.0)
    assert read_options({"thinking_temperature": 1}, {}).controls(MARKERS, 3, 100, (2,)) == []


def test_answer_tokens_close_thinking_in_time_for_them():
    closing = len(TAGS.forced_close(LAB, "12"))
    (budget,) = read_options({"answer_tokens": 20}, {}).controls(MARKERS, 0, 100, (2,))
    assert (budget.most, budget.end_ids) == (80 - closing, (2,))
    (budget,) = read_options({"answer_tokens": 20, "max_thinking_tokens": 30}, {}).controls(MARKERS, 0, 100, (2,))
    assert budget.most == 30
    (budget,) = read_options({"answer_tokens": 20}, {}).controls(MARKERS, 0, 5, (2,))
    assert budget.most == 0


@pytest.mark.parametrize(
    "method",
    [
        'soft-landing:max_thinking=70,lead=9,hint="So ",cue=So',
        "stop-loops:ngram=9,repeats=3,window=99",
        "confidence-exit:above=12,below=2,measure=group,top=5,window=9",
        "confidence-exit:above=-0.2",
    ],
)
def test_the_keys_of_a_method_mean_its_control(monkeypatch, tmp_path, method):
    monkeypatch.setenv("SATISFICE_DEFAULTS", f"@{certificate(tmp_path, method)}")
    (found,) = read_options(None, read_defaults({})).controls(MARKERS, 0, 1000, (2,))
    meant = parse_method(method).control(TAGS)
    assert replace(found, ramp_bias=0.0) == meant, "the ramp does nothing without its start"


def test_one_control_holds_every_rule_of_a_request():
    xargs = {"max_thinking_tokens": 90, "hint": "So ", "hint_lead": 10, "grace_tokens": 20, "stop_loops": 1,
             "confidence_below": -3, "thinking_bias": 1}  # fmt: skip
    scaling, budget = read_options(xargs, {}).controls(MARKERS, 3, 1000, (2,))
    assert scaling == EndScaling(state=3, bias=1.0)
    assert (budget.most, budget.hint_at, budget.grace, budget.grace_end) == (90, 80, 20, "sentence")
    assert budget.loops == LoopRule(end="line", grace=64)
    assert budget.confidence == ConfidenceRule(below=-3.0, least=128, end="paragraph")


def test_answer_tokens_leave_room_for_the_grace_and_move_the_hint():
    xargs = {"answer_tokens": 20, "max_thinking_tokens": 90, "hint": "So ", "hint_lead": 10, "grace_tokens": 15}
    closing = len(TAGS.forced_close(LAB, "12"))
    (budget,) = read_options(xargs, {}).controls(MARKERS, 0, 80 + closing, (2,))
    assert (budget.most, budget.grace, budget.hint_at) == (45, 15, 35)
    (budget,) = read_options(xargs, {}).controls(MARKERS, 0, 30 + closing, (2,))
    assert (budget.most, budget.grace) == (0, 10)
    (budget,) = read_options(xargs, {}).controls(MARKERS, 0, 1000, (2,))
    assert (budget.most, budget.grace, budget.hint_at) == (90, 15, 80)


def test_a_landing_belongs_to_the_cap_that_it_was_set_for():
    defaults = {"max_thinking_tokens": 100, "hint": "So ", "hint_lead": 60, "grace_tokens": 9, "stop_loops": True}
    assert read_options({"max_thinking_tokens": 20}, defaults) == Options(max_thinking_tokens=20, stop_loops=True)


def test_a_ramp_that_is_cut_off_keeps_its_slope():
    xargs = {"answer_tokens": 10, "soft_thinking_tokens": 20, "max_thinking_tokens": 120, "ramp_bias": 10}
    closing = len(TAGS.forced_close(LAB, "12"))
    (budget,) = read_options(xargs, {}).controls(MARKERS, 0, 80 + closing, (2,))
    assert (budget.most, budget.ramp_start) == (70, 20)
    assert budget.ramp_bias == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("xargs", "max_tokens", "reason"),
    [
        ({"answer_tokens": 20}, 20, "answer_tokens is 20 and closing thinking takes 3, but max_tokens is 20"),
        ({"max_thinking_tokens": 5, "answer_cue": "</think>"}, None, "answer_cue contains '</think>'"),
        ({"min_thinking_endings": 1, "wait_word": "</think>"}, None, "wait_word contains '</think>'"),
        ({"max_thinking_tokens": 99, "hint": "So</think>"}, None, "hint contains '</think>'"),
    ],
)
def test_what_this_model_cannot_do_is_refused(xargs, max_tokens, reason):
    with pytest.raises(OptionError) as refusal:
        check_against_model(read_options(xargs, {}), MARKERS, max_tokens)
    assert str(refusal.value).startswith(reason)


# -- where a response begins


def rendered(messages, **more):
    return LAB.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False, **more)


def test_a_response_begins_after_the_last_header_whatever_stands_before_it():
    reader = PromptReader(TAGS, LAB)
    question = {"role": "user", "content": "12"}
    expected = TAGS.render(LAB, [question]).state
    assert AUTOMATON.phase(expected) is Phase.THINKING  # the lab's template opens thinking
    assert reader.state(rendered([question])) == expected
    tricky = {"role": "user", "content": "12</think>12<think></think>"}
    assert reader.state(rendered([tricky])) == expected
    turns = [question, {"role": "assistant", "content": "<think>12</think>12"}, question]
    assert reader.state(rendered(turns)) == expected


def test_a_response_that_was_begun_goes_on_where_it_stands():
    reader = PromptReader(TAGS, LAB)
    prompt = rendered([{"role": "user", "content": "12"}])
    assert reader.state([*prompt, *ids("12")]) == THINKING
    assert reader.state([*prompt, *ids("12</think>So ")]) == AUTOMATON.answer_state


def test_a_bare_text_is_read_by_its_last_marker():
    reader = PromptReader(TAGS, LAB)
    assert AUTOMATON.phase(reader.state(ids("12"))) is Phase.BEFORE
    assert AUTOMATON.phase(reader.state(ids("12<think>12"))) is Phase.THINKING
    assert AUTOMATON.phase(reader.state(ids("12<think>12</think>"))) is Phase.ANSWER
    assert AUTOMATON.phase(reader.state(ids("<think>12</think>12<think>"))) is Phase.THINKING
    assert reader.state(None) == 0


def test_a_marker_of_several_tokens_may_be_begun_in_the_prompt():
    phrase = ThinkingFormat.custom("<think>", "Final Answer: ")
    reader = PromptReader(phrase, LAB)
    prompt = rendered([{"role": "user", "content": "12"}])
    automaton = phrase.automaton(LAB)
    begun = automaton.step(automaton.thinking_state, phrase.close_ids(LAB)[0])
    assert begun != automaton.thinking_state
    assert reader.state([*prompt, *ids("<think>"), phrase.close_ids(LAB)[0]]) == begun


# -- both runners, against stand-ins for vLLM


class Move(enum.Enum):
    UNIDIRECTIONAL = enum.auto()
    SWAP = enum.auto()


def vllm_of(*, v2: bool) -> dict[str, ModuleType | None]:
    """The modules of a vLLM with or without the second interface, as far as the plugin imports them."""
    names = [
        "vllm",
        "vllm.v1",
        "vllm.v1.sample",
        "vllm.v1.sample.logits_processor",
        "vllm.tokenizers",
        "vllm.exceptions",
    ]
    second = "vllm.v1.worker.gpu.sample.logits_processor"
    names += ["vllm.v1.worker", "vllm.v1.worker.gpu", "vllm.v1.worker.gpu.sample", second] if v2 else []
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    first = modules["vllm.v1.sample.logits_processor"]
    first.BatchUpdate, first.MoveDirectionality, first.LogitsProcessor = SimpleNamespace, Move, type("V1", (), {})
    modules["vllm.tokenizers"].cached_tokenizer_from_config = lambda model_config: model_config.served
    modules["vllm.exceptions"].VLLMValidationError = type("VLLMValidationError", (Exception,), {})
    if v2:
        modules[second].LogitsProcessor = type("V2", (), {})
    else:
        modules[second] = None  # importing it fails
        modules["vllm.exceptions"] = None
    return modules


@pytest.fixture(params=[True, False], ids=["with V2", "before V2"])
def plugin(request, monkeypatch):
    monkeypatch.delenv("SATISFICE_DEFAULTS", raising=False)
    for name, module in vllm_of(v2=request.param).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "satisfice.vllm_plugin.processor", raising=False)
    yield importlib.import_module("satisfice.vllm_plugin.processor")
    sys.modules.pop("satisfice.vllm_plugin.processor", None)


def config(**changes):
    model = SimpleNamespace(
        model="lab",
        served=LAB,
        skip_tokenizer_init=False,
        logits_processors=None,
        get_vocab_size=lambda: len(LAB),
        try_get_generation_config=dict,
    )
    values: dict[str, Any] = {
        "model_config": model,
        "speculative_config": None,
        "additional_config": {},
        "scheduler_config": SimpleNamespace(async_scheduling=False, max_num_seqs=4),
        "use_v2_model_runner": False,
    }
    return SimpleNamespace(**(values | changes))


@pytest.mark.parametrize(
    ("asked", "versions", "drawn", "said"),
    [
        ({}, {}, {}, ""),
        ({"model": "transformers:lab"}, {}, {}, 'model and engine "transformers:lab" -> "vllm:lab"'),
        ({"thinking": "0123456789ab"}, {}, {}, 'thinking format "0123456789ab" -> '),
        ({}, {}, {"temperature": 0.2}, "temperature 0.6 -> 0.2"),
        ({}, {}, {"top_k": -1}, ""),
        ({"sampling": {"temperature": 0.6, "top_k": 20, "max_tokens": 7}}, {}, {}, "top_k 20 -> 0"),
        ({}, {"torch": "1.0"}, {}, "with other versions, under which responses may differ: torch 1.0 -> "),
        ({}, {"vllm": "0.1"}, {}, "vllm 0.1 -> "),
    ],
)
def test_a_server_says_what_differs_from_its_certificate_and_what_it_cannot_know(
    plugin, monkeypatch, tmp_path, caplog, asked, versions, drawn, said
):
    known = {"model": "vllm:lab", "model_digest": "abc", "thinking": thinking_digest(TAGS), "instruction": "Think.",
             "sampling": {"temperature": 0.6, "max_tokens": 400}}  # fmt: skip
    here = versions_of("vllm:lab")
    file = certificate(tmp_path, "temperature-scaling:t=0.8", known | asked, here | versions)
    monkeypatch.setenv("SATISFICE_DEFAULTS", f"@{file}")
    configured = config()
    configured.model_config.get_diff_sampling_param = lambda: {"temperature": 0.6} | drawn
    with caplog.at_level("INFO", "vllm.satisfice"):
        plugin.Served.of(configured)
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [said in each for each in warned] == ([True] if said else [])
    assert any("the values of the weights, and what requests ask for" in record.message for record in caplog.records)


def parameters(**xargs):
    return SimpleNamespace(extra_args=xargs or None, max_tokens=100, structured_outputs=None, stop_token_ids=[])


PROMPT = rendered([{"role": "user", "content": "12"}])


def update(removed=(), added=(), moved=()):
    return SimpleNamespace(batch_size=0, removed=removed, added=added, moved=moved)


def changed(before, after):
    return [row for row in range(len(before)) if not torch.equal(before[row], after[row])]


def stepped(processor, rows, *step):
    """The logits of a step that begins with zeros."""
    return processor.apply(torch.zeros((rows, len(LAB))), *step)


def test_one_class_has_both_interfaces(plugin):
    assert issubclass(plugin.ThinkingControls, plugin.V1Processor)
    assert issubclass(plugin.ThinkingControls, plugin.V2Processor)


def test_v1_follows_its_requests_through_rows_and_slots(plugin):
    processor = plugin.ThinkingControls(config(), "cpu", False)
    outputs = [[] for _ in range(4)]
    biased = [parameters(thinking_bias=1), parameters(), parameters(thinking_bias=3), parameters(thinking_bias=4)]
    processor.update_state(update(added=[(row, biased[row], PROMPT, outputs[row]) for row in range(3)]))

    def bias(rows):
        return stepped(processor, rows)[:, CLOSE].tolist()

    assert bias(3) == [1, 0, 3]
    outputs[2] += ids("12</think>")  # thinking has ended there
    assert bias(3) == [1, 0, 0]
    outputs[0] += ids("12")
    assert bias(3) == [1, 0, 0]
    # Row 2 leaves, and the next request takes its row and its slot.
    processor.update_state(update(removed=[2], added=[(2, biased[3], PROMPT, outputs[3])]))
    assert bias(3) == [1, 0, 4]
    processor.update_state(update(moved=[(0, 1, Move.SWAP)]))
    assert bias(3) == [0, 1, 4]
    processor.update_state(update(removed=[0], moved=[(2, 0, Move.UNIDIRECTIONAL)]))
    assert bias(2) == [4, 1]
    # A request that was interrupted comes back in another row, with what it has written.
    processor.update_state(update(removed=[1]))
    processor.update_state(update(added=[(1, biased[2], PROMPT, outputs[2])]))
    assert bias(2) == [4, 0]
    processor.update_state(update(added=[(0, parameters(), PROMPT, [])]))  # replaces what is in the row
    assert bias(2) == [0, 0]
    assert len(processor._free) == 3


def test_v1_gives_every_slot_back(plugin):
    processor = plugin.ThinkingControls(config(), "cpu", False)
    for _ in range(20):
        for row in range(4):
            xargs = {"max_thinking_tokens": 1, "answer_cue": "So ", "suppress_reflection": 1, "thinking_bias": 1}
            processor.update_state(update(added=[(row, parameters(**xargs), PROMPT, ids("12"))]))
        stepped(processor, 4)
    processor.update_state(update(removed=[3, 2, 1, 0]))
    assert sorted(processor._free) == [1, 2, 3, 4]
    logits = torch.zeros((1, len(LAB)))
    assert processor.apply(logits) is logits
    assert not logits.any()


def test_v1_waits_for_a_token_that_is_still_a_placeholder(plugin):
    processor = plugin.ThinkingControls(config(), "cpu", False)
    output = ids("12")
    processor.update_state(update(added=[(0, parameters(max_thinking_tokens=2), PROMPT, output)]))
    output.append(-1)
    assert not stepped(processor, 1).any()
    output[-1] = ids("12")[0]
    assert stepped(processor, 1)[0, ids("\n")[0]] == 1e8


SLOTS = 12


@dataclass
class Requests:
    """Runner V2's state of requests."""

    max_num_reqs: int = SLOTS
    device: str = "cpu"
    vocab_size: int = len(LAB)
    prompt_len: Any = field(default_factory=lambda: SimpleNamespace(np=np.zeros(SLOTS, dtype=np.int32)))
    prefill_len: Any = field(default_factory=lambda: SimpleNamespace(np=np.zeros(SLOTS, dtype=np.int32)))
    all_token_ids: Any = field(
        default_factory=lambda: SimpleNamespace(gpu=torch.zeros((SLOTS, 200), dtype=torch.int32))
    )

    def enter(self, processor, slot, wishes, prompt, written=()):
        filled = [*prompt, *written]
        self.prompt_len.np[slot], self.prefill_len.np[slot] = len(prompt), len(filled)
        self.all_token_ids.gpu[slot, : len(filled)] = torch.tensor(filled, dtype=torch.int32)
        wanted = processor.add_request(slot, wishes)
        processor.apply_staged_writes()
        return wanted


def step(*rows):
    """A step of runner V2: for each row its slot, its input token and the position of that."""
    slots, tokens, positions = zip(*rows, strict=True)
    mapping = torch.tensor(slots, dtype=torch.int32)
    return SimpleNamespace(
        expanded_idx_mapping=mapping,
        idx_mapping=mapping,
        idx_mapping_np=np.array(slots),
        input_ids=torch.tensor(tokens, dtype=torch.int32),
        pos=torch.tensor(positions),
    )


def test_v2_follows_its_requests_by_slot(plugin):
    requests = Requests()
    processor = plugin.ThinkingControls(config(), requests)
    last = len(PROMPT) - 1
    twelve = ids("12")[0]
    assert requests.enter(processor, 3, parameters(thinking_bias=3), PROMPT)
    assert requests.enter(processor, 0, parameters(thinking_bias=1), PROMPT)
    assert not requests.enter(processor, 1, parameters(), PROMPT)

    def bias(*rows):
        return stepped(processor, len(rows), step(*rows))[:, CLOSE].tolist()

    # A prompt in two pieces: its tokens are no output, and what is sampled after the first piece is thrown away.
    assert bias((3, PROMPT[4], 4), (1, PROMPT[-1], last), (0, PROMPT[-1], last)) == [3, 0, 1]
    assert bias((0, CLOSE, last + 1), (3, PROMPT[-1], last)) == [0, 3]
    assert bias((3, twelve, last + 1), (0, twelve, last + 2)) == [3, 0]
    # The slot's next request.
    requests.enter(processor, 0, parameters(thinking_bias=5), PROMPT)
    assert bias((0, PROMPT[-1], last), (3, CLOSE, last + 2)) == [5, 0]
    # An interrupted request comes back with what it has written, in another slot and in pieces.
    requests.enter(processor, 2, parameters(thinking_bias=3), PROMPT, [twelve, CLOSE])
    assert bias((2, PROMPT[-1], last)) == [0]
    assert bias((2, CLOSE, last + 2)) == [0]
    requests.enter(processor, 0, parameters(), PROMPT)
    logits = torch.zeros((1, len(LAB)))
    assert processor.apply(logits, step((0, twelve, last + 1))) is logits
    assert not logits.any()


def drafted_step(*requests):
    """A step of runner V2 in which tokens are drafted: of each request its slot, the position of its last token, and
    that token with those drafted behind it."""
    rows = [(slot, token, last + place, place) for slot, last, tokens in requests for place, token in enumerate(tokens)]
    slots, tokens, positions, places = (torch.tensor(column) for column in zip(*rows, strict=True))
    own = torch.tensor([slot for slot, _, _ in requests])
    return SimpleNamespace(
        expanded_idx_mapping=slots, expanded_local_pos=places, idx_mapping=own, idx_mapping_np=own.numpy(),
        input_ids=tokens, pos=positions,
    )  # fmt: skip


DRAFTED = {
    "nothing": {},
    "bias": {"thinking_bias": 2},
    "temperature": {"thinking_temperature": 0.5, "suppress_reflection": True},
    "cap": {"max_thinking_tokens": 7, "answer_cue": "The answer is "},
    "ramp": {"max_thinking_tokens": 20, "soft_thinking_tokens": 2, "ramp_bias": 9},
    "waits": {"min_thinking_endings": 2, "wait_word": "But wait, let me check.\n", "thinking_bias": 1},
    "room": {"answer_tokens": 40, "answer_cue": "So "},
    "landing": {"max_thinking_tokens": 12, "hint": "So ", "hint_lead": 6, "grace_tokens": 20, "grace_end": "line"},
    "loops": {"stop_loops": True, "loop_ngram": 2, "loop_repeats": 2, "loop_window": 32, "loop_end": "token"},
    "sure": {"confidence_above": 0.5, "confidence_window": 4, "confidence_top": 3, "confidence_end": "token"},
}


@pytest.mark.parametrize("likely", [0.2, 0.8])
def test_drafts_change_no_response(plugin, likely):
    """Whatever is drafted, and however much of it is accepted, a control edits what it edits without drafts."""
    words = ids("12 7 Wait So\n</think>.")

    def logits_of(number, position):
        """What a model makes of a place: little it would rather write than other words."""
        draw = torch.Generator().manual_seed(1000 * number + position)
        logits = torch.full((len(LAB),), -9.0)
        logits[words] = 3 * torch.rand(len(words), generator=draw)
        return logits

    def without(number, xargs, count):
        requests = Requests()
        processor = plugin.ThinkingControls(config(), requests)
        requests.enter(processor, 1, parameters(**xargs), PROMPT)
        sequence = list(PROMPT)
        for _ in range(count):
            last = len(sequence) - 1
            edited = processor.apply(logits_of(number, last)[None], step((1, sequence[-1], last)))
            sequence.append(int(edited.argmax()))
        return sequence

    wanted = [without(number, xargs, 60) for number, xargs in enumerate(DRAFTED.values())]
    assert len({tuple(sequence) for sequence in wanted}) > 7
    rng = random.Random(likely)
    requests = Requests()
    settings = config(speculative_config=SimpleNamespace(num_speculative_tokens=3), use_v2_model_runner=True)
    processor = plugin.ThinkingControls(settings, requests)
    sequences = [list(PROMPT) for _ in DRAFTED]
    begins = [rng.randrange(4) for _ in DRAFTED]  # so that others enter while some have drafts
    accepted = 0
    for turn in range(100):
        asked = []
        for number, xargs in enumerate(DRAFTED.values()):
            sequence = sequences[number]
            if turn == begins[number]:
                requests.enter(processor, number, parameters(**xargs), PROMPT)
            if turn < begins[number] or len(sequence) >= len(wanted[number]):
                continue
            ahead = wanted[number][len(sequence) :]
            drafts = [
                ahead[place] if place < len(ahead) and rng.random() < likely else rng.choice([*words, -1])
                for place in range(rng.choice([0, 3, 3]) if turn > begins[number] else 0)
            ]
            asked.append((number, len(sequence) - 1, [sequence[-1], *drafts]))
        if not asked:
            break
        rng.shuffle(asked)
        rows = [logits_of(number, last + place) for number, last, tokens in asked for place in range(len(tokens))]
        chosen = processor.apply(torch.stack(rows), drafted_step(*asked)).argmax(1).tolist()
        for number, _, (_, *drafts) in asked:
            own, chosen = chosen[: len(drafts) + 1], chosen[len(drafts) + 1 :]
            kept = next((place for place, draft in enumerate(drafts) if own[place] != draft), len(drafts))
            accepted += kept
            sequences[number] += own[: kept + 1]
    assert accepted > (300 if likely > 0.5 else 30)
    for name, sequence, expected in zip(DRAFTED, sequences, wanted, strict=True):
        assert sequence[: len(expected)] == expected, name


def test_v1_and_v2_write_the_same_response(plugin):
    xargs = {"max_thinking_tokens": 5, "answer_cue": "The answer is ", "min_thinking_endings": 1, "thinking_bias": 1}
    wanted = ids("12</think>12 12 12</think>7. 7. 7.")
    requests = Requests()
    v1, v2 = plugin.ThinkingControls(config(), "cpu", False), plugin.ThinkingControls(config(), requests)
    output: list[int] = []
    v1.update_state(update(added=[(0, parameters(**xargs), PROMPT, output)]))
    requests.enter(v2, 2, parameters(**xargs), PROMPT)
    sequence = list(PROMPT)
    for token in wanted:
        logits = torch.zeros((1, len(LAB)))
        logits[0, token] = 5
        first = v1.apply(logits.clone())
        second = v2.apply(logits.clone(), step((2, sequence[-1], len(sequence) - 1)))
        assert torch.equal(first, second)
        output.append(int(first.argmax()))
        sequence.append(output[-1])
    assert "The answer is " in LAB.decode(output)


ANYWHERE = {"confidence_end": "token", "confidence_min_tokens": 0}
LANDINGS = {
    "landing": {"max_thinking_tokens": 8, "hint": "So ", "hint_lead": 4, "grace_tokens": 9, "grace_end": "line"},
    "loop": {"stop_loops": 1, "loop_ngram": 3, "loop_repeats": 2, "loop_window": 20},
    "confidence": {"confidence_above": -0.2, "confidence_window": 6} | ANYWHERE,
    "group": {"confidence_above": 1, "confidence_window": 6, "confidence_top": 5, "thinking_bias": 0.5} | ANYWHERE,
}


def sure_of(token):
    """(1, V) logits of a model that is sure of a token."""
    logits = torch.zeros((1, len(LAB)))
    logits[0, token] = 9
    return logits


@pytest.mark.parametrize("xargs", LANDINGS.values(), ids=LANDINGS)
def test_v1_and_v2_land_in_the_same_place_and_as_the_engines_do(plugin, xargs):
    wanted = ids("12 12\n12 12\n12 12\n12 12\n12 12\n")
    requests = Requests()
    v1, v2 = plugin.ThinkingControls(config(), "cpu", False), plugin.ThinkingControls(config(), requests)
    output: list[int] = []
    v1.update_state(update(added=[(0, parameters(**xargs), PROMPT, output)]))
    requests.enter(v2, 2, parameters(**xargs), PROMPT)
    *_, control = read_options(xargs, {}).controls(MARKERS, PromptReader(TAGS, LAB).state(PROMPT), 100, ())
    alone, slot, written = control.batch(MARKERS, 1), torch.tensor([0]), []
    alone.admit(0, control)
    for token in wanted:
        first = v1.apply(sure_of(token))
        last = [*PROMPT, *output]
        second = v2.apply(sure_of(token), step((2, last[-1], len(last) - 1)))
        assert torch.equal(first, second)
        output.append(int(first.argmax()))
        logits = sure_of(token)
        alone.look(logits, slot)
        alone.apply(logits, slot)
        written.append(int(logits.argmax()))
        alone.observe(torch.tensor(written[-1:]), slot)
    assert output == written
    assert "</think>" in LAB.decode(output)
    assert output != wanted


def test_v1_reads_confidence_by_request_whatever_its_row(plugin):
    """Rows change places between the logits and the token that was chosen from them."""
    processor = plugin.ThinkingControls(config(), "cpu", False)
    outputs: list[list[int]] = [[], []]
    asked = parameters(confidence_above=-0.2, confidence_window=2, **ANYWHERE)
    processor.update_state(update(added=[(row, asked, PROMPT, outputs[row]) for row in range(2)]))
    twelve = ids("12")[0]
    rows = [0, 1]
    for _ in range(2):
        logits = torch.cat([sure_of(twelve), torch.zeros((1, len(LAB)))])  # request 0 is sure, request 1 is not
        processor.apply(logits[rows])
        for output in outputs:
            output.append(twelve)
        processor.update_state(update(moved=[(0, 1, Move.SWAP)]))
        rows.reverse()
    forced = processor.apply(torch.zeros((2, len(LAB)))).amax(1).tolist()
    assert [forced[rows.index(0)], forced[rows.index(1)]] == [1e8, 0]


def test_v1_takes_no_other_logits_for_those_of_a_placeholder(plugin):
    processor = plugin.ThinkingControls(config(), "cpu", False)
    twelve, output = ids("12")[0], []
    asked = parameters(confidence_above=-0.2, confidence_window=1, **ANYWHERE)
    processor.update_state(update(added=[(0, asked, PROMPT, output)]))
    processor.apply(torch.zeros((1, len(LAB))))  # unsure
    output.append(-1)
    processor.apply(sure_of(twelve))
    output[:] = [twelve, -1]
    assert not stepped(processor, 1).any()


def test_an_interrupted_request_lands_where_it_would_have(plugin):
    """What its tokens tell is rebuilt from them; the window of confidence begins anew."""
    wanted = ids("12 12\n" * 8)
    for name, xargs in LANDINGS.items():
        lengths = []
        for interrupted in (False, True):
            processor = plugin.ThinkingControls(config(), "cpu", False)
            output: list[int] = []
            processor.update_state(update(added=[(0, parameters(**xargs), PROMPT, output)]))
            for place, token in enumerate(wanted):
                if interrupted and place == 4:
                    processor.update_state(update(removed=[0]))
                    processor.update_state(update(added=[(1, parameters(**xargs), PROMPT, output)]))
                logits = sure_of(token).repeat(2, 1)
                output.append(int(processor.apply(logits)[1 if interrupted and place >= 4 else 0].argmax()))
            lengths.append(output.index(CLOSE))
        assert lengths[1] - lengths[0] == (4 if "confidence_above" in xargs else 0), name


def test_the_installed_class_steps_aside_where_the_server_names_the_processor(plugin):
    named = config()
    named.model_config.logits_processors = ["satisfice.vllm_plugin.processor:ThinkingControls"]
    added = update(added=[(0, parameters(thinking_bias=2), PROMPT, [])])
    biases = []
    for settings in (config(), named):
        logits = torch.zeros((1, len(LAB)))
        for kind in (plugin.InstalledThinkingControls, plugin.ThinkingControls):
            processor = kind(settings, "cpu", False)
            if settings is named or kind is plugin.InstalledThinkingControls:
                processor.update_state(added)
                logits = processor.apply(logits)
        biases.append(float(logits[0, CLOSE]))
    assert biases == [2, 2]


def at_the_door(plugin, settings, request):
    """As vLLM's input processor, which holds the configuration, calls the class."""

    class InputProcessor:
        vllm_config = settings

        def admit(self):
            plugin.ThinkingControls.validate_params(request)

    InputProcessor().admit()


def refusal(plugin, settings, request):
    with pytest.raises(plugin.VLLMValidationError) as found:
        at_the_door(plugin, settings, request)
    return str(found.value)


def test_the_door_refuses_with_the_reason(plugin):
    assert "did you mean" in refusal(plugin, config(), parameters(thinking_bais=1))
    drafting = SimpleNamespace(num_speculative_tokens=3)
    assert "VLLM_USE_V2_MODEL_RUNNER=1" in refusal(
        plugin, config(speculative_config=drafting), parameters(thinking_bias=1)
    )
    second = config(speculative_config=drafting, use_v2_model_runner=True)
    at_the_door(plugin, second, parameters(thinking_bias=1, confidence_above=3, confidence_top=20))
    assert "confidence_top=20" in refusal(plugin, second, parameters(confidence_above=-0.1))
    sure = ThinkingBudget(confidence=ConfidenceRule(above=-0.1, window=3))
    assert "confidence_top=20" in refusal(plugin, second, parameters(satisfice_control=encode_control(sure)))
    asynchronous = config(scheduler_config=SimpleNamespace(async_scheduling=True, max_num_seqs=4))
    assert "--logits-processors" in refusal(plugin, asynchronous, parameters(thinking_bias=1))
    structured = parameters(max_thinking_tokens=5)
    structured.structured_outputs = object()
    assert "structured output" in refusal(plugin, config(), structured)
    crowded = parameters(answer_tokens=99)
    assert "but max_tokens is 100" in refusal(plugin, config(), crowded)
    blind = config()
    blind.model_config.skip_tokenizer_init = True
    assert "tokenizer" in refusal(plugin, blind, parameters(thinking_bias=1))


def sent(**changes):
    """A request with a whole control, as the openai engine sends it, with some values changed."""
    values = {"class": "ThinkingBudget"} | vars(ThinkingBudget(state=THINKING, most=5)) | changes
    return parameters(satisfice_control=json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"class": "Path"}, "not a control"),
        ({"state": 10**6}, "state is 1000000"),
        ({"state": -1}, "state is -1"),
        ({"most": 10**30}, "most is"),
        ({"end_ids": [10**6]}, "end_ids holds 1000000"),
        ({"end_ids": list(range(1000))}, "end_ids has 1000 entries"),
        ({"cue": "x" * 10_000}, "cue has 10000 characters"),
        ({"ramp_bias": 1e300}, "ramp_bias is"),
        ({"endings": 1, "wait": ""}, "wait is empty"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"loops": {"ngram": 5, "unheard_of": 1}}, "unheard_of"),
        ({"loops": {"window": 10**6}}, "loops.window is 1000000; it must be within 128..8192"),
        ({"loops": {"ngram": 0}}, "loops.ngram is 0"),
        ({"confidence": {"above": -1.0, "window": 10**5}}, "confidence.window is 100000"),
        ({"confidence": {"above": -1.0, "top": 10**5}}, "confidence.top is 100000"),
        ({"confidence": {"above": 1e300}}, "above is 1e+300"),
        ({"grace_end": "word"}, "grace_end"),
        ({"hint": "x" * 10_000, "hint_at": 3}, "hint has 10000 characters"),
    ],
)
def test_a_control_that_this_model_cannot_run_is_refused_and_harms_nobody(plugin, changes, reason):
    said = refusal(plugin, config(), sent(**changes))
    assert said.startswith("satisfice_control: ")
    assert reason in said
    # Should the door ever be left open, the others are still served.
    processor = plugin.ThinkingControls(config(), "cpu", False)
    processor.update_state(
        update(added=[(0, sent(**changes), PROMPT, []), (1, parameters(thinking_bias=2), PROMPT, [])])
    )
    assert stepped(processor, 2)[:, CLOSE].tolist() == [0, 2]


def test_v2_does_not_leave_half_of_a_control_in_a_slot(plugin, monkeypatch):
    requests = Requests()
    processor = plugin.ThinkingControls(config(), requests)
    requests.enter(processor, 0, parameters(max_thinking_tokens=0), PROMPT)
    monkeypatch.setattr(plugin, "check_sent", lambda control, markers: None)
    last = len(PROMPT) - 1
    requests.enter(processor, 1, sent(most=0, end_ids=[10**30]), PROMPT)
    found = stepped(processor, 2, step((0, PROMPT[-1], last), (1, PROMPT[-1], last)))
    assert found[:, CLOSE].tolist() == [1e8, 0]


def test_a_control_with_every_rule_travels_whole(plugin):
    values = {"hint": "So ", "hint_at": 0, "grace": 4, "loops": LoopRule(end="line"),
              "confidence": ConfidenceRule(above=-0.5, end="paragraph")}  # fmt: skip
    control = ThinkingBudget(state=THINKING, most=9, **values)
    assert decode_control(encode_control(control)) == control
    request = parameters(satisfice_control=encode_control(control))
    at_the_door(plugin, config(), request)
    processor = plugin.ThinkingControls(config(), "cpu", False)
    processor.update_state(update(added=[(0, request, PROMPT, [])]))
    assert stepped(processor, 1)[0, ids("So ")[0]] == 1e8


def test_a_control_that_was_sent_whole_is_run(plugin):
    at_the_door(plugin, config(), sent())
    processor = plugin.ThinkingControls(config(), "cpu", False)
    processor.update_state(update(added=[(0, sent(most=0), PROMPT, [])]))
    assert stepped(processor, 1)[0, CLOSE] == 1e8
    assert "leave them out" in refusal(
        plugin, config(), parameters(satisfice_control=sent().extra_args["satisfice_control"], thinking_bias=1)
    )
    structured = sent()
    structured.structured_outputs = object()
    assert "structured output" in refusal(plugin, config(), structured)


def test_the_door_knows_the_servers_defaults(plugin):
    capped = config(additional_config={"satisfice": {"max_thinking_tokens": 5}})
    at_the_door(plugin, capped, parameters(answer_cue="So "))
    assert "answer_cue does nothing" in refusal(plugin, config(), parameters(answer_cue="So "))
    assert "answer_cue does nothing" in refusal(plugin, capped, parameters(answer_cue="So ", satisfice_defaults=0))


@pytest.mark.parametrize("own", [{}, {"thinking_bias": 1}, {"session_id": "7"}])
def test_a_servers_room_for_the_answer_that_leaves_none_to_think_is_said(plugin, own):
    """Thinking would be closed before it began."""
    roomy = config(additional_config={"satisfice": {"answer_tokens": 300, "answer_cue": "So "}})
    short = parameters(**own)
    short.max_tokens = 200
    said = refusal(plugin, roomy, short)
    assert said.startswith("answer_tokens is 300 and closing thinking takes ")
    assert "but max_tokens is 200; answer_tokens is this server's default" in said
    assert "satisfice_defaults=0" in said
    for fields, most in (({**own, "satisfice_defaults": 0}, 200), ({**own, "answer_tokens": 50}, 200), (own, 400)):
        request = parameters(**fields)
        request.max_tokens = most
        at_the_door(plugin, roomy, request)
    unsaid = parameters(**own)
    unsaid.max_tokens = None
    at_the_door(plugin, roomy, unsaid)
    if not own:
        short.structured_outputs = object()  # which the defaults leave alone
        at_the_door(plugin, roomy, short)


def test_the_door_lets_through_what_can_be_obeyed(plugin):
    for request in (parameters(), parameters(thinking_bias=1), parameters(session_id="7")):
        at_the_door(plugin, config(), request)
    at_the_door(plugin, config(speculative_config=object()), parameters())
    asynchronous = SimpleNamespace(async_scheduling=True, max_num_seqs=4)
    at_the_door(plugin, config(scheduler_config=asynchronous, use_v2_model_runner=True), parameters(thinking_bias=1))


def test_a_model_without_markers_is_served_but_not_controlled(plugin):
    settings = config(model_config=SimpleNamespace(**vars(config().model_config)))
    settings.model_config.served = SimpleNamespace(
        backend_tokenizer=None, chat_template="", name_or_path="", get_vocab=lambda: {"a": 0}, eos_token_id=0
    )
    processor = plugin.InstalledThinkingControls(settings, "cpu", False)
    processor.update_state(update(added=[(0, parameters(), [0], [])]))
    logits = torch.zeros((1, 4))
    assert processor.apply(logits) is logits
    assert "thinking_format" in refusal(plugin, settings, parameters(thinking_bias=1))
    settings.additional_config = {"satisfice": {"thinking_bias": 1}}
    with pytest.raises(OptionError, match="defaults cannot be obeyed"):
        plugin.InstalledThinkingControls(settings, "cpu", False)


def test_a_server_may_name_the_markers(plugin):
    settings = config(additional_config={"satisfice": {"thinking_format": "<think>,Final Answer: "}})
    served = plugin.Served.of(settings)
    assert served.markers.thinking_format.close == "Final Answer:"
    settings.additional_config = {"satisfice": {"thinking_format": "nonsense"}}
    with pytest.raises(OptionError, match="neither a known family"):
        plugin.Served.of(settings)


def test_what_slips_through_the_door_ends_nobody_elses_request(plugin, caplog):
    processor = plugin.ThinkingControls(config(), "cpu", False)
    added = [(0, parameters(thinking_temperature=0), PROMPT, []), (1, parameters(thinking_bias=2), PROMPT, [])]
    processor.update_state(update(added=added))
    assert stepped(processor, 2)[:, CLOSE].tolist() == [0, 2]
    assert "leaves a request alone" in caplog.text


def test_defaults_that_write_tokens_leave_structured_output_alone(plugin):
    processor = plugin.ThinkingControls(
        config(additional_config={"satisfice": {"max_thinking_tokens": 0}}), "cpu", False
    )
    structured = parameters()
    structured.structured_outputs = object()
    processor.update_state(update(added=[(0, structured, PROMPT, []), (1, parameters(), PROMPT, [])]))
    assert stepped(processor, 2)[:, CLOSE].tolist() == [0, 1e8]


# -- levels


class Server:
    """An ASGI application that keeps the bodies of its requests."""

    def __init__(self, folder, defaults=None):
        self.state = SimpleNamespace(
            vllm_config=SimpleNamespace(
                model_config=SimpleNamespace(model=str(folder), revision=None),
                additional_config={"satisfice": defaults or {}},
            )
        )
        self.bodies = []
        self.middleware = Levels(self)

    async def __call__(self, scope, receive, send):
        message = await receive()
        assert dict(scope["headers"])[b"content-length"] == str(len(message["body"])).encode()
        self.bodies.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def post(self, body, path="/v1/chat/completions"):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        half = len(raw) // 2
        pieces = [raw[:half], raw[half:]] if path.endswith("chat/completions") else [raw]
        incoming = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        incoming[-1]["more_body"] = False
        sent = []

        async def receive():
            return incoming.pop(0)

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": path, "app": self,
            "headers": [(b"content-length", str(len(raw)).encode())],
        }  # fmt: skip
        asyncio.run(self.middleware(scope, receive, send))
        if sent[0]["status"] == 200:
            return self.bodies[-1]
        return json.loads(sent[1]["body"])["error"]["message"]


@pytest.fixture
def trained(tmp_path):
    write_levels(tmp_path, {"short": "Think briefly.", "long": "Think at length."})
    return tmp_path


def test_a_level_becomes_the_instruction_after_the_question(trained):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "12?"}]
    body = {"messages": messages, "vllm_xargs": {"thinking_level": "short", "thinking_bias": 1}, "stream": True}
    found = json.loads(Server(trained).post(body))
    assert found["messages"] == [messages[0], {"role": "user", "content": "12?\n\nThink briefly."}]
    assert found["vllm_xargs"] == {"thinking_bias": 1}
    assert found["stream"] is True

    parts = [{"type": "text", "text": "12?"}, {"type": "image_url", "image_url": {"url": "u"}}]
    body = {"messages": [{"role": "user", "content": parts}], "vllm_xargs": {"thinking_level": "long"}}
    (message,) = json.loads(Server(trained).post(body))["messages"]
    assert message["content"] == [{"type": "text", "text": "12?\n\nThink at length."}, parts[1]]


def test_a_level_may_be_the_servers_default(trained):
    server = Server(trained, {"thinking_level": "short"})
    messages = [{"role": "user", "content": "12?"}]
    assert json.loads(server.post({"messages": messages}))["messages"][0]["content"].endswith("Think briefly.")
    asked = {"messages": messages, "vllm_xargs": {"thinking_level": "long"}}
    assert json.loads(server.post(asked))["messages"][0]["content"].endswith("at length.")
    freed = {"messages": messages, "vllm_xargs": {"satisfice_defaults": 0}}
    assert json.loads(server.post(freed))["messages"] == messages
    assert "satisfice_defaults is 'off'" in server.post(freed | {"vllm_xargs": {"satisfice_defaults": "off"}})


def test_other_requests_pass_through_untouched(trained):
    server = Server(trained, {"thinking_level": "short"})
    body = b'{"prompt": "12?",   "vllm_xargs": {"thinking_level": "short"}}'
    assert server.post(body, "/v1/completions") == body
    for body in (b"{", b"[]", b'{"vllm_xargs": 7}'):  # vLLM says what is wrong
        assert Server(trained).post(body) == body


def test_a_level_that_cannot_be_obeyed_is_refused(trained, tmp_path_factory):
    messages = [{"role": "user", "content": "12?"}]

    def ask(folder, level, messages=messages):
        return Server(folder).post({"messages": messages, "vllm_xargs": {"thinking_level": level}})

    assert "use one of short, medium, long" in ask(trained, "tiny")
    assert "use one of" in ask(trained, ["short"])
    assert "was not trained on levels" in ask(trained, "medium")
    assert "no satisfice.json" in ask(tmp_path_factory.mktemp("plain"), "short")
    assert "needs a message of the user" in ask(trained, "short", [{"role": "system", "content": "s"}])
