"""The control that bounds thinking on logits alone: what it forces, when, and that it can be interrupted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satisfice.engines.control_batch import Markers
from satisfice.intervention.controls import EndScaling, SuppressTokens, ThinkingBudget
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.thinking import FAMILIES, ThinkingFormat

LAB = build_tokenizer()
TAGS = FAMILIES["think-tags"]
PHRASE = ThinkingFormat.custom("<think>", "Final Answer: ")
FORMATS = [TAGS, PHRASE]
EOS = LAB.eos_token_id
SLOTS = 4

reproducible = settings(deadline=None, derandomize=True, max_examples=40)


def ids(text):
    return LAB(text, add_special_tokens=False)["input_ids"]


def budget(thinking=TAGS, **values):
    return ThinkingBudget(state=thinking.automaton(LAB).thinking_state, **values)


class Writer:
    """A model that wants to write `text`, under a control, greedily: what it is kept from is what it does not write."""

    def __init__(self, control, thinking=TAGS, slot=2):
        self.markers = Markers(thinking, LAB, len(LAB))
        self.control, self.slot = control, slot
        self.batch = control.batch(self.markers, SLOTS)
        self.batch.admit(slot, control)
        self.written = []

    def logits(self, wanted, strength=5.0):
        logits = torch.zeros((1, len(LAB)))
        logits[0, wanted] = strength
        self.batch.look(logits, torch.tensor([self.slot]))
        self.batch.apply(logits, torch.tensor([self.slot]))
        return logits

    def step(self, wanted):
        token = int(self.logits(wanted).argmax())
        self.batch.observe(torch.tensor([token]), torch.tensor([self.slot]))
        self.written.append(token)
        return token

    def write(self, text, most=200):
        """Write `text`; a token that is refused or put off is tried again while there is room."""
        wanted = ids(text)
        while wanted and len(self.written) < most:
            if self.step(wanted[0]) == wanted[0]:
                wanted.pop(0)
        return LAB.decode(self.written)


@pytest.mark.parametrize("thinking", FORMATS)
@pytest.mark.parametrize("cue", ["", "The answer is "])
def test_the_cap_writes_what_budget_forcing_would_and_lets_go(thinking, cue):
    most = 4
    writer = Writer(budget(thinking, most=most, cue=cue), thinking)
    for _ in range(most):
        writer.step(ids("12")[0])
    forced = thinking.forced_close(LAB, "12", cue)
    assert [writer.step(ids("12")[0]) for _ in forced] == forced
    assert [writer.step(token) for token in ids("Wait 7.")] == ids("Wait 7.")  # nothing is forced any more


def test_a_finished_line_gets_no_second_line_break():
    writer = Writer(budget(most=2))
    for token in ids("12\n"):
        writer.step(token)
    assert writer.step(0) == ids("</think>")[0]


def test_a_cap_of_nothing_closes_at_once():
    writer = Writer(budget(most=0))
    assert [writer.step(ids("12")[0]) for _ in range(2)] == ids("</think>\n\n")


def test_a_marker_that_was_begun_at_the_cap_is_completed():
    begun, rest = PHRASE.close_ids(LAB)
    writer = Writer(budget(PHRASE, most=3, cue="7"), PHRASE)
    for token in [*ids("12"), *ids("12"), begun]:
        writer.step(token)
    forced = [writer.step(ids("Wait")[0]) for _ in range(3)]
    assert forced[0] == rest
    assert LAB.decode(forced[1:]) == "\n\n7"


@pytest.mark.parametrize("steps", [2, 3])
def test_thinking_that_the_server_closes_at_the_cap_is_not_closed_twice(steps):
    writer = Writer(budget(most=2, cue="So 7."))
    wanted = ids("12")[0]
    for _ in range(steps):  # two tokens and, with three, the first of those that are forced
        writer.step(wanted)
    writer.batch.observe(torch.tensor(ids("</think>")), torch.tensor([2]))
    after = ids("\n\nSo 7.")
    assert [writer.step(wanted) for _ in [*after, wanted]] == [*after, wanted]


def test_a_text_that_the_server_interrupts_is_given_up():
    writer = Writer(budget(most=0, cue="So 7."))
    wanted = ids("12")[0]
    writer.step(wanted)
    writer.batch.observe(torch.tensor([wanted]), torch.tensor([2]))
    assert [writer.step(wanted) for _ in range(3)] == [wanted] * 3


def test_thinking_that_closed_by_itself_or_was_never_opened_is_left_alone():
    closed = Writer(budget(most=5))
    assert closed.write("12</think>So 7. So 7. So 7.") == "12</think>So 7. So 7. So 7."
    never = Writer(ThinkingBudget(state=0, most=2, endings=2))
    assert never.write("So 7. So 7. So 7.") == "So 7. So 7. So 7."


@pytest.mark.parametrize("wait", ["Wait", "But wait, let me check.\n"])
def test_the_first_endings_are_replaced_and_the_next_one_stands(wait):
    writer = Writer(budget(endings=2, wait=wait))
    assert writer.write("So 7.</think>7") == f"So 7.{wait}{wait}</think>7"


def test_a_wait_of_the_models_own_does_not_count_as_an_ignored_ending():
    writer = Writer(budget(endings=1))
    assert writer.write("Wait</think>7") == "WaitWait</think>7"


def test_an_ending_gives_its_logit_to_the_word_that_replaces_it():
    writer = Writer(budget(endings=1))
    close, wait = ids("</think>")[0], ids("Wait")[0]
    logits = writer.logits(close, strength=3.0)
    assert (logits[0, close], logits[0, wait]) == (-torch.inf, 3.0)
    logits = torch.zeros((1, len(LAB)))
    logits[0, close], logits[0, wait] = 1.0, 2.0  # the word was the likelier one anyway
    writer.batch.apply(logits, torch.tensor([2]))
    assert (logits[0, close], logits[0, wait]) == (-torch.inf, 2.0)
    writer.batch.observe(torch.tensor([wait]), torch.tensor([2]))
    assert writer.batch.waiting[2, 0] == 1


def test_the_ramp_rises_in_a_line_and_stays():
    writer = Writer(budget(most=8, ramp_start=4, ramp_bias=2.0))
    close, other = ids("</think>")[0], ids("12")[0]
    seen = []
    for _ in range(8):
        seen.append(float(writer.logits(other)[0, close]))
        writer.step(other)
    assert seen == [0, 0, 0, 0, 0, 0.5, 1.0, 1.5]


def test_the_end_of_the_text_inside_thinking_becomes_the_end_of_thinking():
    writer = Writer(budget(end_ids=(EOS,)))
    assert writer.step(ids("12")[0]) == ids("12")[0]
    assert writer.step(EOS) == ids("</think>")[0]
    assert writer.step(EOS) == EOS


def test_the_next_request_of_a_slot_begins_anew():
    writer = Writer(budget(most=1, cue="7", endings=1, end_ids=(EOS,)))
    for _ in range(3):
        writer.step(ids("12")[0])
    writer.batch.admit(2, budget())
    writer.written.clear()
    assert writer.write("So 7. So 7.</think>7") == "So 7. So 7.</think>7"


def test_what_a_slots_last_request_had_does_not_come_back_with_that_of_another_slot():
    wishes = {"most": 9, "ramp_start": 0, "ramp_bias": 9.0, "endings": 1, "end_ids": (EOS,)}
    batch = budget().batch(Markers(TAGS, LAB, len(LAB)), SLOTS)
    batch.admit(2, budget(**wishes))
    batch.admit(2, budget())
    batch.admit(1, budget(**wishes))
    batch.observe(torch.tensor(ids("12")[:1] * 2), torch.tensor([1, 2]))
    logits = torch.zeros((2, len(LAB)))
    batch.apply(logits, torch.tensor([1, 2]))
    assert logits[0].any()
    assert not logits[1].any()


def test_slots_of_nobody_change_nothing():
    controls = [
        budget(most=2, cue="7", endings=1, ramp_start=0, ramp_bias=3.0, end_ids=(EOS,)),
        EndScaling(state=budget().state, gain=1.0, bias=2.0),
        SuppressTokens(state=budget().state, words=("wait",)),
    ]
    generator = torch.Generator().manual_seed(0)
    for control in controls:
        batch = control.batch(Markers(TAGS, LAB, len(LAB)), SLOTS)
        batch.admit(1, control)
        slots = torch.tensor([0, 1, 0, 0])
        for _ in range(12):
            logits = torch.randn((4, len(LAB)), generator=generator)
            before = logits.clone()
            batch.apply(logits, slots)
            assert torch.equal(logits[[0, 2, 3]], before[[0, 2, 3]])
            tokens = torch.randint(0, len(LAB), (4,), generator=generator)
            tokens[0] = ids("<think>")[0]
            batch.observe(tokens, slots)


@reproducible
@given(
    st.sampled_from(FORMATS),
    st.lists(st.sampled_from(ids("<think></think>So Wait.Final Answer: 12\n")), max_size=30),
    st.builds(dict, most=st.none() | st.integers(0, 12), endings=st.integers(0, 2), cue=st.sampled_from(["", "So 7."])),
    st.integers(0, 30),
    st.booleans(),
)
def test_many_tokens_at_once_are_taken_note_of_as_one_by_one(thinking, tokens, values, cut, inside):
    automaton = thinking.automaton(LAB)
    state = automaton.thinking_state if inside else 0
    control = ThinkingBudget(state=state, wait="But wait, let me check.", **values)
    batches = [control.batch(Markers(thinking, LAB, len(LAB)), SLOTS) for _ in range(2)]
    for batch in batches:
        batch.admit(1, budget(thinking, most=3, endings=1))
        batch.admit(2, control)
    slots = torch.tensor([2])
    for token in tokens:
        batches[0].observe(torch.tensor([token]), slots)
    batches[1].resume(2, tokens[:cut])
    batches[1].resume(2, tokens[cut:])
    assert torch.equal(batches[0].now, batches[1].now)
    assert torch.equal(batches[0].waiting, batches[1].waiting)


@reproducible
@given(
    st.sampled_from(FORMATS),
    st.lists(st.sampled_from(ids("So Wait.Final Answer: 12\n")), max_size=10),
    st.integers(0, 8),
    st.integers(0, 14),
)
def test_a_request_that_was_interrupted_goes_on_as_if_it_had_not_been(thinking, wanted, most, interruption):
    control = budget(thinking, most=most, cue="The answer is ", endings=1, wait="But wait, let me check.")
    whole, interrupted = Writer(control, thinking), Writer(control, thinking)
    wanted = [*wanted, *thinking.close_ids(LAB), *ids("So 7. So 7. So 7. So 7.")][:16]
    for place, token in enumerate(wanted):
        if place == interruption:
            interrupted.batch.admit(2, control)
            interrupted.batch.resume(2, interrupted.written)
        whole.step(token)
        interrupted.step(token)
    assert interrupted.written == whole.written
