"""Budgets that land softly, end loops and read confidence: the control, token for token, and the three methods."""

import asyncio
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intervention.scripted import ScriptedEngine
from intervention.thinker import ANSWER, thinker

from satisfice.engines.base import Capability, EngineError, Sampling
from satisfice.engines.control_batch import Markers
from satisfice.intervention import MethodError, parse_method
from satisfice.intervention.controls import ConfidenceRule, LoopRule, ThinkingBudget
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem
from satisfice.thinking import FAMILIES, ThinkingFormat

LAB = build_tokenizer()
TAGS = FAMILIES["think-tags"]
PHRASE = ThinkingFormat.custom("<think>", "Final Answer: ")
SLOT = torch.tensor([2])
PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")

reproducible = settings(deadline=None, derandomize=True, max_examples=30)


def ids(text):
    return LAB(text, add_special_tokens=False)["input_ids"]


def budget(thinking=TAGS, **values):
    return ThinkingBudget(state=thinking.automaton(LAB).thinking_state, **values)


class Writer:
    """A model that wants to write a text, under a control, greedily: what is forced stands in between."""

    def __init__(self, control, thinking=TAGS):
        self.batch = control.batch(Markers(thinking, LAB, len(LAB)), 4)
        self.batch.admit(2, control)
        self.written = []

    def step(self, wanted, probability=0.9):
        rest = math.log((1 - probability) / (len(LAB) - 1))
        logits = torch.full((1, len(LAB)), rest)
        logits[0, wanted] = math.log(probability)
        self.batch.look(logits, SLOT)
        self.batch.apply(logits, SLOT)
        token = int(logits.argmax())
        self.batch.observe(torch.tensor([token]), SLOT)
        self.written.append(token)
        return token

    def write(self, text, most=80, probability=0.9):
        wanted = ids(text)
        while wanted and len(self.written) < most:
            if self.step(wanted[0], probability) == wanted[0]:
                wanted.pop(0)
        return LAB.decode(self.written)


# -- the landing


def test_the_hint_comes_once_at_its_token_and_the_model_goes_on_after_it():
    writer = Writer(budget(most=40, hint="So Wait", hint_at=3))
    assert writer.write("1 2 3 4 5 6") == "1 2So Wait 3 4 5 6"


def test_a_hint_waits_for_a_text_that_is_being_written_and_for_a_marker_that_was_begun():
    writer = Writer(budget(hint="So ", hint_at=2, endings=1, wait="But wait, let me check.\n"))
    for wanted in ids("1</think>7 7 7 7 7 7 7 7"):
        writer.step(wanted)
    assert LAB.decode(writer.written).startswith("1But wait, let me check.\n")
    assert LAB.decode(writer.written).count("So ") == 1
    writer = Writer(budget(PHRASE, hint="So ", hint_at=1), PHRASE)
    assert writer.write("Final Answer: 7") == "Final Answer: 7", "thinking has ended before it could come"
    writer = Writer(budget(PHRASE, hint="So ", hint_at=1), PHRASE)
    assert writer.write("Final Answer12 7") == "Final Answer12So  7"


def test_a_hint_comes_at_once_where_the_cap_leaves_no_more_room_and_only_inside_thinking():
    assert Writer(budget(most=30, hint="So ", hint_at=-5)).write("12") == "So 12"
    outside = Writer(ThinkingBudget(state=0, most=30, hint="So ", hint_at=0))
    assert outside.write("12 12<think>7") == "12 12<think>So 7"


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("token", "12 12\n</think>\n\n"),
        ("sentence", "12 12 Wait. \n</think>\n\n"),
        ("line", "12 12 Wait. 12\n</think>\n\n"),
        ("paragraph", "12 12 Wait. 12\n12\n\n</think>\n\n"),
    ],
)
def test_the_cap_waits_for_the_end_of_what_it_is_told(end, expected):
    writer = Writer(budget(most=3, grace=30, grace_end=end))
    assert writer.write("12 12 Wait. 12\n12\n\n12 12 12 12 12 12").startswith(expected)


def test_the_grace_is_over_after_its_tokens_and_an_end_before_the_cap_is_none():
    writer = Writer(budget(most=5, grace=4, grace_end="line"))
    written = writer.write("12\n12 12 12 12 12 12 12 12 12 12")
    place = writer.written.index(ids("</think>")[0])
    assert place == 5 + 4 + 1, "and the line break before the marker"
    assert written.startswith("12\n12 12 12 12\n</think>")


def test_a_decimal_point_does_not_end_a_sentence():
    assert Writer(budget(most=1, grace=9)).write("12.12 Wait.7").startswith("12.12 Wait.\n</think>")


def test_the_answer_cue_follows_a_landing_too():
    assert Writer(budget(most=1, grace=9, cue="So 7.")).write("12\nWait") == "12\n</think>\n\nSo 7.Wait"


# -- loops and confidence


def test_a_loop_is_ended_where_it_is_seen():
    rule = LoopRule(ngram=4, repeats=3, window=32)
    line = "a) 1+2=3\n"
    size = len(ids(line))
    writer = Writer(budget(loops=rule))
    written = writer.write(line * 6 + "</think>")
    # Of the first line only its last four tokens have to come again twice.
    assert writer.written.index(ids("</think>")[0]) in (2 * size + 4, 2 * size + 5)
    assert written.count("</think>") >= 1
    other = Writer(budget(loops=rule))
    text = line * 2 + "b) 1+3=4\n" * 2 + "</think>7"
    assert other.write(text) == text


def test_the_answer_may_repeat_itself():
    text = "12</think>" + "7 " * 20
    assert Writer(budget(loops=LoopRule(ngram=2, repeats=2, window=8))).write(text, most=60) == text


def test_confidence_ends_thinking_and_the_forced_marker_is_no_part_of_it():
    rule = ConfidenceRule(above=-0.2, window=3, end="line")
    writer = Writer(budget(confidence=rule))
    assert writer.write("12 12\n7") == "12 12\n</think>\n\n7"
    unsure = Writer(budget(confidence=rule))
    assert unsure.write("12 12\n7", probability=0.5) == "12 12\n7"
    lost = Writer(budget(confidence=ConfidenceRule(below=-0.5, window=3)))
    assert lost.write("12 12\n7", probability=0.5) == "12 12\n</think>\n\n7"


def test_a_hint_does_not_count_as_the_models_words():
    rule = ConfidenceRule(below=-2.0, window=2)
    writer = Writer(budget(most=30, hint="So Wait", hint_at=2, confidence=rule))
    assert writer.write("12 12 12 12") == "12 So Wait12 12 12"


# -- interruptions


RULES = st.fixed_dictionaries(
    {
        "most": st.none() | st.integers(2, 12),
        "grace": st.integers(0, 4),
        "grace_end": st.sampled_from(["token", "sentence", "line", "paragraph"]),
        "hint": st.sampled_from(["", "So "]),
        "hint_at": st.none() | st.integers(-1, 8),
        "endings": st.integers(0, 1),
        "loops": st.sampled_from(
            [None, LoopRule(ngram=2, repeats=2, window=8), LoopRule(ngram=1, repeats=2, window=8, end="line", grace=2)]
        ),
    }
)
WRITTEN = st.lists(st.sampled_from(ids("<think></think>So .Wait12\n\n\n")), max_size=30)


@reproducible
@given(st.sampled_from([TAGS, PHRASE]), WRITTEN, RULES, st.integers(0, 30), st.booleans())
def test_many_tokens_at_once_are_taken_note_of_as_one_by_one(thinking, tokens, values, cut, inside):
    control = ThinkingBudget(state=thinking.automaton(LAB).thinking_state if inside else 0, **values)
    batches = [control.batch(Markers(thinking, LAB, len(LAB)), 4) for _ in range(2)]
    for batch in batches:
        batch.admit(1, budget(thinking, most=3, hint="So ", hint_at=0, loops=LoopRule(ngram=1, repeats=2, window=20)))
        batch.admit(2, control)
    forced = []
    for token in tokens:
        forced.append(int(batches[0].now[2, 5]))
        batches[0].observe(torch.tensor([token]), SLOT)
    found = [*batches[1].replay(2, tokens[:cut]), *batches[1].replay(2, tokens[cut:])]
    assert found == forced
    assert torch.equal(batches[0].now, batches[1].now)
    assert torch.equal(batches[0].landing[2], batches[1].landing[2]) or control.hint_at is None
    assert torch.equal(batches[0].loops.run[2], batches[1].loops.run[2]) or control.loops is None


EXITS = {
    "landing": {"most": 9, "hint": "So ", "hint_at": 4, "grace": 6, "grace_end": "line"},
    "loop": {"loops": LoopRule(ngram=3, repeats=2, window=12)},
    "loop, in the end": {"loops": LoopRule(ngram=3, repeats=2, window=12, end="paragraph", grace=4)},
    "confidence": {"confidence": ConfidenceRule(above=-0.2, window=6, end="line")},
    "group": {"confidence": ConfidenceRule(above=2.0, window=6, top=5)},
    "all": {
        "most": 14, "hint": "So ", "hint_at": 4, "grace": 6, "grace_end": "line",
        "loops": LoopRule(ngram=4, repeats=3, window=20), "confidence": ConfidenceRule(above=-0.2, window=12),
    },
}  # fmt: skip


@pytest.mark.parametrize("values", EXITS.values(), ids=EXITS)
@pytest.mark.parametrize("thinking", [TAGS, PHRASE], ids=["one token", "two tokens"])
@pytest.mark.parametrize("way", ["paused", "restored"])
def test_a_request_that_was_interrupted_anywhere_goes_on_as_if_it_had_not_been(values, thinking, way):
    control = budget(thinking, cue="So 7.", **values)
    wanted = ids("12 12\n" * 6 + "So 12.\n" * 4)
    whole = Writer(control, thinking)
    for token in wanted:
        whole.step(token)
    assert whole.written != wanted, "it does something"
    for interruption in range(1, len(wanted), 3):
        writer = Writer(control, thinking)
        for place, token in enumerate(wanted):
            if place == interruption and way == "paused":
                paused = writer.batch.pause(2)
                writer.batch.admit(2, budget(thinking, most=1, hint="12", hint_at=0))
                writer.batch.admit(2, control)
                writer.batch.resume(2, writer.written, paused)
            elif place == interruption:
                taken, kept = writer.batch.snapshot(), list(writer.written)
                for _ in range(3):
                    writer.step(ids("Wait")[0], 0.99)
                writer.batch.restore(taken)
                writer.written = kept
            writer.step(token)
        assert writer.written == whole.written, interruption


def test_without_what_was_kept_the_window_begins_anew():
    control = budget(confidence=ConfidenceRule(above=-0.2, window=4))
    writer = Writer(control)
    for token in ids("12 12"):
        writer.step(token)
    writer.batch.admit(2, control)
    writer.batch.resume(2, writer.written)
    for token in ids("12 12 "):
        assert writer.step(token) == token
    assert LAB.decode(writer.written) == "12 1212 12 "
    assert writer.step(0) == ids("\n")[0]


def test_the_next_request_of_a_slot_has_none_of_its_last_ones_rules():
    for values in EXITS.values():
        writer = Writer(budget(**values))
        writer.write("12 12\n" * 4, most=10)
        writer.batch.admit(2, budget())
        writer.written.clear()
        assert writer.write("12 12\n" * 4) == "12 12\n" * 4


def test_rows_of_one_batch_have_their_own_rules():
    batch = budget().batch(Markers(TAGS, LAB, len(LAB)), 8)
    wanted, slots = ids("12 12\n" * 6), torch.arange(1, len(EXITS) + 2)
    controls = [*(budget(**values) for values in EXITS.values()), budget()]
    for slot, control in enumerate(controls, 1):
        batch.admit(slot, control)
    written = [[] for _ in controls]
    for token in wanted:
        logits = torch.full((len(slots), len(LAB)), math.log(0.1 / (len(LAB) - 1)))
        logits[:, token] = math.log(0.9)
        batch.look(logits, slots)
        batch.apply(logits, slots)
        chosen = logits.argmax(1)
        batch.observe(chosen, slots)
        for row, each in zip(written, chosen.tolist(), strict=True):
            row.append(each)
    for control, row in zip(controls, written, strict=True):
        alone = Writer(control)
        for token in wanted:
            alone.step(token)
        assert row == alone.written
    assert written[-1] == wanted
    assert all(row != wanted for row in written[:-1])


# -- the methods


def solve(tokenizer, spelled, thinking, max_tokens=200, certainty=None, **options):
    script = thinker(tokenizer, thinking, {})
    if certainty is not None:
        sure = script

        def script(text):
            (token,) = sure(text)
            return {token: certainty(text)}

    engine = ScriptedEngine(tokenizer, script, **options)
    method = parse_method(spelled)
    return asyncio.run(method.solve(engine, PROBLEM, Sampling(temperature=0, max_tokens=max_tokens))), engine


LINE = "a) 1+2=3\n"
LONG = LINE * 12 + "So 3.\n\n</think>"


def events(trace):
    return [(event.kind, event.at) for event in trace.events]


def test_soft_landing_says_what_it_forced(tokenizer):
    spelled = 'soft-landing:max_thinking=20,lead=8,hint="So ",grace=12,until=line'
    trace, engine = solve(tokenizer, spelled, LONG)
    assert len(engine.calls) == 1
    begin = trace.events[0].at
    assert trace.thinking.count("So ") == 1
    assert trace.response_ids[12] == ids("So ")[0]
    assert trace.response_ids[begin - 1] == ids("\n")[0]
    assert 20 <= begin < 32
    assert trace.events[0].detail == {"grace": begin - 20}
    assert (trace.stop, trace.cost.forced_tokens) == ("closed by method", 1 + len(ids("</think>\n\n")))


def test_soft_landing_leaves_short_thinking_alone(tokenizer):
    trace, _ = solve(tokenizer, "soft-landing:max_thinking=150,lead=10", "So 3.\n\n</think>")
    assert (trace.stop, trace.cost.forced_tokens, trace.events) == ("marker", 0, [])


def test_stop_loops_says_where(tokenizer):
    trace, engine = solve(tokenizer, "stop-loops:ngram=6,repeats=3,window=40,until=token", LONG)
    size = len(ids(LINE))
    assert len(engine.calls) == 1
    assert trace.stop == "closed by method"
    assert events(trace) == [("loop", 2 * size + 6)]
    assert trace.answer.strip() == ANSWER.strip()
    line, _ = solve(tokenizer, "stop-loops:ngram=6,repeats=3,window=40", LONG)
    assert events(line) == [("loop", 3 * size)]
    once, _ = solve(tokenizer, "stop-loops:ngram=6,repeats=3,window=40", LINE * 2 + "So 3.\n\n</think>")
    assert (once.stop, once.events) == ("marker", [])


def test_confidence_exit_says_where_by_either_measure(tokenizer):
    def certainty(text):
        return 0.97 if text.count("\n") > 6 else 0.6

    for spelled in (
        "confidence-exit:above=-0.1,window=6,min_thinking=0,at=line",
        "confidence-exit:above=6.5,measure=group,top=5,window=6,min_thinking=0,at=line",
    ):
        trace, engine = solve(tokenizer, spelled, LONG, certainty=certainty)
        assert len(engine.calls) == 1, spelled
        [(kind, at)] = events(trace)
        assert kind == "exit"
        assert trace.response_ids[at - 1] == ids("\n")[0]
        assert trace.response_ids[at] == ids("</think>")[0]
        assert (trace.stop, trace.cost.forced_tokens) == ("closed by method", len(ids("</think>\n\n")))
        later, _ = solve(
            tokenizer, spelled.replace("min_thinking=0", f"min_thinking={at + 1}"), LONG, certainty=certainty
        )
        assert later.events[0].at > at
    lost, _ = solve(
        tokenizer, "confidence-exit:above=none,below=-0.4,window=6,min_thinking=0,at=token", LONG, certainty=certainty
    )
    assert events(lost) == [("exit", 6)]


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("soft-landing:max_thinking=10,lead=10", "lead is 10 and max_thinking 10; the hint has to come after"),
        ("soft-landing:until=word", "until is 'word'"),
        ("soft-landing:grace=-1", "grace is -1"),
        ("stop-loops:repeats=1", "repeats is 1"),
        ("stop-loops:ngram=300", "window is 1024, but 4 times 300 tokens"),
        ("stop-loops:window=100000", "window is 100000"),
        ("confidence-exit:above=none", "above and below are both none"),
        ("confidence-exit:above=-1,below=-0.5", "below must be the smaller one"),
        ("confidence-exit:above=3", "a log-probability is 0 at most"),
        ("deer+stop-loops", "stop-loops follows the tokens of one engine call"),
        ("confidence-exit+temperature-scaling", "confidence-exit is a control itself"),
    ],
)
def test_what_they_cannot_be_is_one_sentence(spelled, message):
    with pytest.raises(MethodError, match=message):
        parse_method(spelled)


def test_a_hint_that_would_end_thinking_is_refused(tokenizer):
    with pytest.raises(MethodError, match="hint contains '</think>'"):
        solve(tokenizer, 'soft-landing:hint="a</think>"', LONG)


@pytest.mark.parametrize(
    ("method", "without"),
    [
        ("soft-landing", "control"),
        ("stop-loops", "control"),
        ("confidence-exit", "control"),
        ("confidence-exit", "logprobs"),
    ],
)
def test_an_engine_that_cannot_is_refused_by_name(tokenizer, method, without):
    engine = ScriptedEngine(tokenizer, dict, without=[Capability(without)])
    with pytest.raises(EngineError, match=f"{method} needs {without}"):
        parse_method(method).check(engine)
