"""Suppressed words: which tokens they are, when they are suppressed, and what the model does instead."""

import asyncio
from dataclasses import replace

import pytest
import torch
from intervention.scripted import ScriptedEngine
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from satisfice.engines.base import Capability, EngineError, Sampling, require
from satisfice.engines.control_batch import Markers
from satisfice.intervention import MethodError
from satisfice.intervention.composed import compose
from satisfice.intervention.controls import SuppressTokens, single_tokens
from satisfice.intervention.methods.budget_forcing import BudgetForcing
from satisfice.intervention.methods.no_wait import NoWait
from satisfice.intervention.methods.plain import Plain
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem
from satisfice.thinking import ThinkingFormat

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
GREEDY = Sampling(temperature=0, max_tokens=20)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def byte_level(*tokens):
    """A byte-level vocabulary as BPE tokenizers write it: Ġ for a space, Ċ for a line break."""
    inner = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=tokens[0]))
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def solve(engine, method, sampling=GREEDY):
    return asyncio.run(method.solve(engine, PROBLEM, sampling))


# -- which tokens


def test_a_word_is_found_with_and_without_spaces_and_in_any_case():
    tokenizer = byte_level("?", "Wait", "ĠWait", "wait", "ĠWAIT", "Ċwait", "Ġwaiting", "await", "Wai", "W", "Hmm", ",")
    assert single_tokens(tokenizer, ("wait", "hmm", "but wait")) == {
        "wait": (1, 2, 3, 4, 5), "hmm": (10,), "but wait": (),
    }  # fmt: skip


def test_no_first_token_of_a_longer_spelling_is_suppressed():
    # "Altern" + "atively": suppressing the first half would take "Alternating" away, too.
    tokenizer = byte_level("?", "Altern", "atively", "wait")
    assert single_tokens(tokenizer, ("alternatively", "wait")) == {"alternatively": (), "wait": (3,)}


def test_the_lab_has_its_openers_as_single_tokens(tokenizer):
    found = single_tokens(tokenizer, NoWait()._listed)
    assert {word for word, ids in found.items() if ids} == {"wait", "but wait", "hmm", "alternatively", "maybe"}
    assert found["but wait"] == (tokenizer.convert_tokens_to_ids("But wait"),)


# -- the control on a batch


def suppressed(batch, slots, vocabulary, dtype=torch.float32):
    logits = torch.zeros((len(slots), vocabulary), dtype=dtype)
    batch.apply(logits, torch.tensor(slots))
    return [set((row == float("-inf")).nonzero()[:, 0].tolist()) for row in logits]


def test_each_request_has_its_own_words_and_only_while_it_thinks(tokenizer):
    thinking = ThinkingFormat.detect(tokenizer)
    markers = Markers(thinking, tokenizer, 256)  # a model's output is wider than its vocabulary
    automaton = thinking.automaton(tokenizer)
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in ("Wait", "Hmm", "</think>", "So ")}
    controls = [
        SuppressTokens(words=("wait",), state=automaton.thinking_state),
        SuppressTokens(words=("hmm", "wait"), state=automaton.thinking_state),
        SuppressTokens(words=("wait",), state=automaton.answer_state),
        SuppressTokens(words=("wait",), state=0),
    ]
    batch = controls[0].batch(markers, 8)
    for slot, control in zip((5, 0, 2, 7), controls, strict=True):
        batch.admit(slot, control)
    expected = [{ids["Wait"]}, {ids["Hmm"], ids["Wait"]}, set(), set()]
    for dtype in (torch.float32, torch.bfloat16):
        assert suppressed(batch, [5, 0, 2, 7], 256, dtype) == expected
    assert suppressed(batch, [0, 5], 256) == [expected[1], expected[0]]

    batch.observe(torch.tensor([ids["</think>"], ids["So "]]), torch.tensor([5, 0]))
    assert suppressed(batch, [5, 0], 256) == [set(), expected[1]]
    batch.admit(5, SuppressTokens(words=("so",), state=automaton.thinking_state))  # the slot's next request
    assert suppressed(batch, [5, 0], 256) == [{ids["So "]}, expected[1]]


def test_logits_that_are_not_suppressed_stay_as_they_are(tokenizer):
    markers = Markers(ThinkingFormat.detect(tokenizer), tokenizer, len(tokenizer))
    control = SuppressTokens(
        words=("wait",), state=ThinkingFormat.detect(tokenizer).automaton(tokenizer).thinking_state
    )
    batch = control.batch(markers, 1)
    batch.admit(0, control)
    logits = torch.randn((1, len(tokenizer)), generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    batch.apply(logits, torch.tensor([0]))
    wait = tokenizer.convert_tokens_to_ids("Wait")
    assert logits[0, wait] == float("-inf")
    before[0, wait] = float("-inf")
    assert torch.equal(logits, before)


def test_a_closing_marker_made_of_a_listed_word_stays_possible(tokenizer):
    thinking = ThinkingFormat("other", "<|user|>", "Wait", "<|user|>", "Wait")
    markers = Markers(thinking, tokenizer, len(tokenizer))
    control = SuppressTokens(words=("wait", "hmm"), state=thinking.automaton(tokenizer).thinking_state)
    batch = control.batch(markers, 1)
    batch.admit(0, control)
    assert suppressed(batch, [0], len(tokenizer)) == [{tokenizer.convert_tokens_to_ids("Hmm")}]


def test_a_model_without_room_for_the_tokenizers_last_tokens(tokenizer):
    markers = Markers(ThinkingFormat.detect(tokenizer), tokenizer, len(tokenizer))
    markers.vocabulary_size = tokenizer.convert_tokens_to_ids("Hmm")
    control = SuppressTokens(words=("wait", "hmm"))
    batch = control.batch(markers, 1)
    batch.admit(0, control)
    assert suppressed(batch, [0], len(tokenizer)) == [set()]  # it has none where nothing is thought

    batch.admit(0, replace(control, state=ThinkingFormat.detect(tokenizer).automaton(tokenizer).thinking_state))
    assert suppressed(batch, [0], len(tokenizer)) == [{tokenizer.convert_tokens_to_ids("Wait")}]


# -- the method


def second_thoughts(text):
    """Would rather begin a second thought, and else end."""
    written = text.rpartition("<|assistant|>")[2]
    if "</think>" in written:
        return {"Wait": 0.9, "<|end|>": 0.1} if written.endswith("</think>") else {"<|end|>": 1 - 1e-9}
    if written.endswith("\n\n"):
        return {"Wait": 0.5, "Hmm": 0.2, "No": 0.15, "</think>": 0.14}
    return {"\n\n": 1 - 1e-9}


def test_words_of_reflection_never_come_in_thinking_but_may_in_the_answer(tokenizer):
    engine = ScriptedEngine(tokenizer, second_thoughts)
    assert solve(engine, Plain()).thinking.startswith("\n\nWait\n\nWait")
    trace = solve(engine, NoWait())
    assert trace.thinking.startswith("\n\nNo\n\nNo")
    fewer = solve(engine, NoWait(words="Wait"))
    assert fewer.thinking.startswith("\n\nHmm")
    more = solve(engine, NoWait(words=" WAIT |hmm|No"))
    assert (more.thinking, more.answer) == ("\n\n", "Wait")
    assert more.cost.forced_tokens == 0


def test_sampling_never_draws_a_suppressed_token(tokenizer):
    engine = ScriptedEngine(tokenizer, second_thoughts)
    for seed in range(20):
        trace = solve(engine, NoWait(), Sampling(temperature=1, top_p=1, max_tokens=20, seed=seed))
        assert "Wait" not in trace.thinking
        assert "Hmm" not in trace.thinking


def test_what_is_suppressed_and_what_is_not_stands_in_the_trace(tokenizer):
    trace = solve(ScriptedEngine(tokenizer, second_thoughts), NoWait(words="wait|hmm|let's see"))
    assert [event.detail for event in trace.events] == [
        {"words": ["wait", "hmm"], "tokens": 2, "not_one_token": ["let's see"]}
    ]


def test_a_list_that_suppresses_nothing_is_refused(tokenizer):
    engine = ScriptedEngine(tokenizer, second_thoughts)
    with pytest.raises(MethodError, match="none of let's see, oh is one token of scripted's tokenizer"):
        solve(engine, NoWait(words="let's see|oh"))
    for words in ("", "wait||hmm", "wait| "):
        with pytest.raises(MethodError, match="one or more words"):
            NoWait(words=words)


def test_it_joins_a_strategy(tokenizer):
    engine = ScriptedEngine(tokenizer, second_thoughts)
    method = compose([BudgetForcing(max_thinking=4), NoWait()])
    assert method.needs == {Capability.BIAS}
    trace = solve(engine, method)
    assert trace.thinking.startswith("\n\nNo\n\nNo")
    assert trace.stop == "closed by method"


def test_it_needs_an_engine_with_biases_and_no_more(tokenizer):
    engine = ScriptedEngine(tokenizer, second_thoughts, without=[Capability.CONTROL, Capability.BIAS])
    with pytest.raises(EngineError, match="no-wait needs token bias"):
        require(engine, NoWait().needs, "no-wait")
    NoWait().check(ScriptedEngine(tokenizer, second_thoughts, without=[Capability.CONTROL]))


def test_as_biases_it_takes_away_the_tokens_that_the_batch_takes_away(tokenizer):
    thinking = ThinkingFormat.detect(tokenizer)
    markers = Markers(thinking, tokenizer, len(tokenizer))
    control = replace(NoWait().control(thinking), state=thinking.automaton(tokenizer).thinking_state)
    batch = control.batch(markers, 1)
    batch.admit(0, control)
    biases = control.biases(thinking, tokenizer)
    assert suppressed(batch, [0], len(tokenizer)) == [set(biases)]
    assert set(biases.values()) == {float("-inf")}
    assert len(biases) == 5
