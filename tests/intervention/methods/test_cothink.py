"""CoThink: who is asked what, what the outline costs, and what happens to a bad one."""

import asyncio

import pytest
from intervention.scripted import ScriptedEngine, follow

from satisfice.engines.base import EngineError, Sampling, derive_seed
from satisfice.intervention import MethodError
from satisfice.intervention.composed import compose
from satisfice.intervention.methods.cothink import CARRY_OUT, PLAN, CoThink
from satisfice.intervention.methods.plain import Plain
from satisfice.intervention.methods.temperature_scaling import TemperatureScaling
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem
from satisfice.thinking import ThinkingFormat

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3", system="Use short")
GREEDY = Sampling(temperature=0, max_tokens=100, seed=7)
OUTLINE = "1. let me check\n2. let me verify"
SOLVED = "<think>\nSo 3.\n</think>\n\nThe answer is \\boxed{3}."


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def solve(engine, method, sampling=GREEDY, problem=PROBLEM):
    return asyncio.run(method.solve(engine, problem, sampling))


def tokens(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def outlines(tokenizer, outline):
    """Writes the outline where its thinking is switched off, and solves where it is on."""
    return follow(tokenizer, SOLVED, f"<think>\n</think>\n\n{outline}")


def in_lab_words(tokenizer, text):
    """A text as the closed vocabulary of the lab keeps it."""
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_reasoner_outlines_for_itself_with_thinking_off(tokenizer):
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, OUTLINE))
    trace = solve(engine, CoThink())
    (asked, outline_sampling, written), (given, sampling, _) = engine.calls
    assert written == OUTLINE + "<|end|>"
    assert asked == in_lab_words(tokenizer, f"<|begin|><|user|>{PLAN}<|user|>{PROBLEM.prompt}<|assistant|>") + (
        "<think>\n</think>\n\n"
    )
    told = CARRY_OUT.format(problem=PROBLEM.prompt, outline=OUTLINE)
    assert "\\boxed{}" in told
    assert given == in_lab_words(tokenizer, f"<|begin|><|user|>{PROBLEM.system}<|user|>{told}<|assistant|>") + (
        "<think>\n"
    )
    assert PROBLEM.prompt in given
    assert given.endswith(f"{OUTLINE}<|assistant|><think>\n")
    assert (outline_sampling.seed, outline_sampling.max_tokens) == (derive_seed(7, "outline"), 512)
    assert (sampling.seed, sampling.max_tokens) == (7, 100)
    assert trace.answer.endswith("{3}.")
    assert trace.prompt == PROBLEM.prompt


def test_the_outline_is_in_the_cost(tokenizer):
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, OUTLINE))
    trace = solve(engine, CoThink())
    assert trace.cost.outline_tokens == tokens(tokenizer, OUTLINE) + 1
    assert trace.cost.retained_tokens == len(trace.response_ids) == tokens(tokenizer, SOLVED[len("<think>\n") :]) + 1
    assert trace.cost.total_tokens == trace.cost.retained_tokens + trace.cost.outline_tokens
    assert trace.cost.forward_passes == trace.cost.total_tokens
    assert trace.cost.probe_tokens == trace.cost.branch_tokens == trace.cost.forced_tokens == 0
    asked = len(tokenizer(engine.calls[0][0], add_special_tokens=False)["input_ids"])
    # Both prompts are read; they share no more than their first two tokens.
    assert asked + len(trace.prompt_ids) - 2 - 2 <= trace.cost.prefilled_tokens <= asked + len(trace.prompt_ids) - 2


def test_another_engine_outlines(tokenizer):
    instruct = ScriptedEngine(tokenizer, lambda text: outlines(tokenizer, OUTLINE)(text))
    instruct.name = "instruct model"
    reasoner = ScriptedEngine(tokenizer, follow(tokenizer, SOLVED))
    reasoner.companions = {"instruct": instruct}
    trace = solve(reasoner, CoThink(outliner="instruct"))
    assert len(instruct.calls) == len(reasoner.calls) == 1
    assert trace.cost.outline_tokens == tokens(tokenizer, OUTLINE) + 1
    assert trace.cost.forward_passes == trace.cost.total_tokens
    assert trace.events[0].detail["by"] == "instruct model"
    assert OUTLINE in reasoner.calls[0][0]


def test_an_instruct_model_is_not_made_to_think_or_to_close(tokenizer):
    plain = build_tokenizer()
    plain.chat_template = plain.chat_template.replace("<think>\\n", "").replace("</think>\\n\\n", "")
    instruct = ScriptedEngine(
        plain, follow(plain, OUTLINE), thinking=ThinkingFormat.custom("<think>", "</think>", force_open=False)
    )
    reasoner = ScriptedEngine(tokenizer, follow(tokenizer, SOLVED))
    reasoner.companions = {"instruct": instruct}
    trace = solve(reasoner, CoThink(outliner="instruct"))
    assert instruct.calls[0][0].endswith("<|assistant|>")
    assert trace.events[0].detail["text"] == OUTLINE


def test_a_template_without_a_switch_gets_an_empty_thinking():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("enable_thinking is false", "false")
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, OUTLINE))
    trace = solve(engine, CoThink())
    assert engine.calls[0][0].endswith("<|assistant|><think>\n</think>\n\n")
    assert trace.events[0].detail["text"] == OUTLINE
    assert trace.cost.forced_tokens == 0  # nothing is forced into the response


def test_what_a_thinking_outliner_thinks_is_no_part_of_the_outline(tokenizer):
    plain = build_tokenizer()
    plain.chat_template = plain.chat_template.replace("<think>\\n", "").replace("</think>\\n\\n", "")
    instruct = ScriptedEngine(
        plain,
        follow(plain, f"<think>\nSo 3.\n</think>\n\n{OUTLINE}"),
        thinking=ThinkingFormat.custom("<think>", "</think>", force_open=False),
    )
    reasoner = ScriptedEngine(tokenizer, follow(tokenizer, SOLVED))
    reasoner.companions = {"instruct": instruct}
    assert solve(reasoner, CoThink(outliner="instruct")).events[0].detail["text"] == OUTLINE


def test_a_leaking_outline_is_passed_on_and_shown(tokenizer):
    leaking = "1. Start with 1\n2. So 3, exactly\nSteps: 3"
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, leaking))
    trace = solve(engine, CoThink())
    assert trace.events[0].detail["numbers"] == ["1", "3", "3"]  # step numbers are none
    assert leaking in engine.calls[1][0]
    clean = solve(ScriptedEngine(tokenizer, outlines(tokenizer, OUTLINE)), CoThink())
    assert clean.events[0].detail["numbers"] == []


def test_an_outline_that_is_cut_off_is_used_as_far_as_it_goes(tokenizer):
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, OUTLINE))
    trace = solve(engine, CoThink(max_outline=3))
    assert trace.cost.outline_tokens == 3
    assert trace.events[0].detail["cut_off"] is True
    assert engine.calls[1][0].endswith("1. let me check<|assistant|><think>\n")


def test_an_empty_outline_leaves_the_problem_alone(tokenizer):
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, ""))
    trace = solve(engine, CoThink())
    assert trace.cost.outline_tokens == 1  # its end
    assert trace.prompt_ids == solve(engine, Plain()).prompt_ids
    assert trace.answer.endswith("{3}.")


def test_a_prompt_that_fills_the_context_gets_no_outline(tokenizer):
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, OUTLINE), context_length=len(tokenizer(PLAN)["input_ids"]))
    trace = solve(engine, CoThink())
    assert trace.cost.outline_tokens == 0
    assert trace.events[0].detail["text"] == ""


def test_braces_in_a_problem_are_text(tokenizer):
    problem = Problem("p", "Result {outline}: {0}?", "3")
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, OUTLINE))
    solve(engine, CoThink(), problem=problem)
    assert in_lab_words(tokenizer, problem.prompt) in engine.calls[1][0]


def test_a_companion_that_is_not_there_is_one_clear_sentence(tokenizer):
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, OUTLINE))
    sentence = r"scripted has no companion 'qwen' \(attached: none\); attach one with --companion qwen=MODEL"
    with pytest.raises(EngineError, match=sentence):
        solve(engine, CoThink(outliner="qwen"))
    with pytest.raises(MethodError, match="max_outline is 0"):
        CoThink(max_outline=0)


def test_a_missing_companion_is_refused_before_anything_is_paid_for(tokenizer):
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, OUTLINE))
    bent = TemperatureScaling(mode="bias", bias=2)
    for method in (CoThink(outliner="qwen"), compose([CoThink(outliner="qwen"), bent])):
        with pytest.raises(EngineError, match="has no companion 'qwen'"):
            method.check(engine)
    engine.companions = {"qwen": ScriptedEngine(tokenizer, outlines(tokenizer, OUTLINE))}
    for method in (CoThink(), CoThink(outliner="qwen"), compose([CoThink(outliner="qwen"), bent])):
        method.check(engine)
    assert engine.calls == []


def test_a_control_bends_the_solution_and_not_the_outline(tokenizer):
    def script(text):
        written = text.rpartition("<|assistant|>")[2]
        if "</think>" not in written:
            return {"</think>": 1e-6, "So ": 1 - 1e-6}
        return outlines(tokenizer, OUTLINE)(text)

    engine = ScriptedEngine(tokenizer, script)
    trace = solve(engine, compose([CoThink(), TemperatureScaling(mode="bias", bias=40)]))
    assert trace.events[0].detail["text"] == OUTLINE
    assert trace.cost.thinking_tokens == 1


def test_on_the_lab_the_instructions_are_unknown_words_and_nothing_breaks(tokenizer):
    assert "<|unknown|>" in in_lab_words(tokenizer, PLAN)
    engine = ScriptedEngine(tokenizer, outlines(tokenizer, "<|unknown|>So <|unknown|>"))
    trace = solve(engine, CoThink())
    assert trace.answer.endswith("{3}.")
