"""A level is asked for in the words that the model was trained on, and only of a model that was."""

import asyncio
import json
from pathlib import Path

import pytest
from intervention.scripted import ScriptedEngine, follow

from satisfice.engines.base import EngineError, Sampling
from satisfice.intervention import MethodError, parse_method
from satisfice.levels import FILE, read_levels, with_instruction, write_levels
from satisfice.problems import Problem

PROBLEM = Problem("p", "Start with 1. What is the result?", "3")
INSTRUCTIONS = {"short": "Think briefly.", "medium": "Think normally.", "long": "Think at length."}


def test_the_instruction_stands_after_the_question(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, "<think>\nSo 3.\n\n</think>\n\nThe answer is \\boxed{3}."))
    engine.levels = INSTRUCTIONS
    sampling = Sampling(temperature=0, max_tokens=40)
    trace = asyncio.run(parse_method("tldr:level=medium").solve(engine, PROBLEM, sampling))
    asked = tokenizer.decode(trace.prompt_ids)
    assert "Start with 1. What is the result?\n\nThink normally.<|assistant|>" in asked
    assert trace.answer.strip() == "The answer is \\boxed{3}."


def test_a_control_may_act_on_top(tokenizer):
    method = parse_method("tldr:level=short+temperature-scaling:t=0.8")
    assert str(method) == "tldr:level=short+temperature-scaling:t=0.8"


def test_a_model_without_levels_is_refused_at_the_start(tokenizer):
    engine = ScriptedEngine(tokenizer, {})
    with pytest.raises(EngineError, match="was not trained on levels"):
        parse_method("tldr:level=short").check(engine)
    engine.levels = {"long": "Think at length."}
    parse_method("tldr:level=long").check(engine)
    with pytest.raises(EngineError, match="names short"):
        parse_method("tldr:level=short").check(engine)


def test_the_level_must_be_said():
    with pytest.raises(MethodError, match="say which level"):
        parse_method("tldr")
    with pytest.raises(MethodError, match="level is 'tiny'; it must be short, medium or long, or none"):
        parse_method("tldr:level=tiny")


def test_the_file_beside_the_weights(tmp_path: Path):
    assert read_levels(tmp_path) == {}
    write_levels(tmp_path, INSTRUCTIONS, objective="tldr")
    assert read_levels(tmp_path) == INSTRUCTIONS
    assert json.loads((tmp_path / FILE).read_text())["objective"] == "tldr"
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"satisfice\.json is not what satisfice wrote"):
        read_levels(tmp_path)


def test_no_instruction_changes_nothing():
    assert with_instruction("What?", "") == "What?"
    assert with_instruction("What?", "Think briefly.") == "What?\n\nThink briefly."
