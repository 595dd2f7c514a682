"""Controls on plain logits: which token they act on, when, and on whose row."""

import asyncio
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from satisfice.engines.base import Sampling
from satisfice.engines.control_batch import ControlBatch, Markers
from satisfice.engines.control_setting import Control
from satisfice.intervention.controls import EndScaling
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.thinking import FAMILIES, ThinkingFormat

LAB = build_tokenizer()
TAGS = FAMILIES["think-tags"]
PHRASE = ThinkingFormat.custom("<think>", "Final Answer: ")
# Begins again inside itself: after "So So So " its first two tokens are written, not three and not one.
REPETITIVE = ThinkingFormat.custom("<think>", "So So Wait")
FORMATS = [TAGS, PHRASE, REPETITIVE]

reproducible = settings(deadline=None, derandomize=True)


def ids(text):
    return LAB(text, add_special_tokens=False)["input_ids"]


def test_the_formats_under_test_have_one_and_several_tokens():
    assert [len(thinking.close_ids(LAB)) for thinking in FORMATS] == [1, 2, 3]


# -- which token comes next


def next_close_by_hand(thinking, written):
    """The closing marker's next token, from the texts alone."""
    close = thinking.close_ids(LAB)
    marker = thinking.close
    longest = next(length for length in range(len(marker), -1, -1) if written.endswith(marker[:length]))
    for count in range(1, len(close)):
        if LAB.decode(close[:count]) == marker[:longest]:
            return close[count]
    return close[0]


@reproducible
@given(st.sampled_from(FORMATS), st.lists(st.sampled_from(ids("So Wait.Final Answer: Answer12")), max_size=12))
@example(REPETITIVE, ids("So So So "))
@example(REPETITIVE, ids("So So So So "))
@example(REPETITIVE, ids("So Wait"))
@example(PHRASE, ids("Final Answer"))
@example(PHRASE, ids("Final AnswerFinal Answer"))
def test_next_close_goes_on_with_the_longest_beginning_that_is_written(thinking, written):
    markers = Markers(thinking, LAB, len(LAB))
    batch = EndScaling().batch(markers, 3)
    automaton = thinking.automaton(LAB)
    slots = torch.tensor([1])
    batch.admit(1, EndScaling(state=automaton.thinking_state))
    for token in written:
        batch.observe(torch.tensor([token]), slots)
    text = LAB.decode(written)
    assert batch.thinking(slots).item() == (thinking.close not in text)
    if thinking.close not in text:
        assert batch.next_close_token(slots).item() == next_close_by_hand(thinking, text)


@pytest.mark.parametrize("thinking", FORMATS, ids=lambda thinking: thinking.close)
def test_following_next_close_writes_the_marker(thinking):
    markers = Markers(thinking, LAB, len(LAB))
    batch = EndScaling().batch(markers, 1)
    batch.admit(0, EndScaling(state=thinking.automaton(LAB).thinking_state))
    written = []
    while batch.thinking(torch.tensor([0])):
        written.append(batch.next_close_token(torch.tensor([0])).item())
        batch.observe(torch.tensor(written[-1:]), torch.tensor([0]))
    assert written == thinking.close_ids(LAB)


def test_tokens_beyond_the_tokenizer_change_nothing():
    markers = Markers(REPETITIVE, LAB, len(LAB) + 10)
    assert markers.states.shape[1] == len(LAB) + 10
    batch = EndScaling().batch(markers, 1)
    batch.admit(0, EndScaling(state=REPETITIVE.automaton(LAB).thinking_state))
    for token in [*ids("So So "), len(LAB), len(LAB) + 9]:
        batch.observe(torch.tensor([token]), torch.tensor([0]))
    assert batch.next_close_token(torch.tensor([0])).tolist() == ids("Wait")


def test_an_output_layer_narrower_than_the_tokenizer_is_served():
    assert Markers(TAGS, LAB, 4).states.shape[1] == len(LAB)


# -- what EndScaling does with it


def edited(logits, *controls, thinking=TAGS, written=()):
    """Logits after the controls of their rows, each of which has `written` some tokens since thinking was opened."""
    markers = Markers(thinking, LAB, len(LAB))
    batch = EndScaling().batch(markers, len(controls) + 2)
    slots = torch.arange(len(controls)) + 1
    start = thinking.automaton(LAB).thinking_state
    for slot, control in zip(slots.tolist(), controls, strict=True):
        batch.admit(slot, replace(control, state=start))
    for token in written:
        batch.observe(torch.full((len(controls),), token), slots)
    result = logits.clone()
    batch.apply(result, slots)
    return result


@pytest.mark.parametrize(
    ("logit", "gain", "bias", "expected"),
    [
        (4.0, 0.0, 0.0, 4.0),
        (4.0, 0.25, 0.0, 5.0),
        (4.0, -0.5, 0.0, 2.0),
        (-4.0, 0.25, 0.0, -4.0),
        (-4.0, -0.5, 0.0, -4.0),
        (4.0, 0.0, 3.0, 7.0),
        (-4.0, 0.0, 3.0, -1.0),
        (-4.0, 0.5, -2.0, -6.0),
        (4.0, 0.25, -2.0, 3.0),
    ],
)
def test_gain_acts_on_positive_logits_and_bias_on_all(logit, gain, bias, expected):
    logits = torch.randn(1, len(LAB), generator=torch.Generator().manual_seed(0))
    [close] = TAGS.close_ids(LAB)
    logits[0, close] = logit
    result = edited(logits, EndScaling(gain=gain, bias=bias))
    assert result[0, close].item() == pytest.approx(expected)
    others = torch.arange(len(LAB)) != close
    assert torch.equal(result[0, others], logits[0, others])


@pytest.mark.parametrize("temperature", [0.8, 0.9, 1.0, 1.3])
def test_a_gain_of_one_over_t_minus_one_divides_by_t(temperature):
    logits = torch.full((1, len(LAB)), 6.0)
    result = edited(logits, EndScaling(gain=1 / temperature - 1))
    assert result[0, TAGS.close_ids(LAB)].item() == pytest.approx(6.0 / temperature)


@pytest.mark.parametrize(
    ("thinking", "written", "acts_on"),
    [
        (PHRASE, "", "Final Answer"),
        (PHRASE, "Wait", "Final Answer"),
        (PHRASE, "Final Answer", ": "),
        (PHRASE, "Final AnswerWait", "Final Answer"),
        (PHRASE, "Final Answer: ", None),
        (PHRASE, "Final Answer: Final Answer", None),
        (REPETITIVE, "So ", "So "),
        (REPETITIVE, "So So ", "Wait"),
        (REPETITIVE, "So So So ", "Wait"),
        (REPETITIVE, "So So Wait", None),
        (TAGS, "</think>", None),
        (TAGS, "</think><think>", "</think>"),
    ],
)
def test_it_acts_on_the_next_token_of_the_marker_while_thinking(thinking, written, acts_on):
    logits = torch.zeros(1, len(LAB))
    changed = edited(logits, EndScaling(bias=1.5), thinking=thinking, written=ids(written))
    expected = torch.zeros(1, len(LAB))
    if acts_on is not None:
        expected[0, ids(acts_on)] = 1.5
    assert torch.equal(changed, expected)


def test_nothing_happens_before_thinking_is_opened():
    markers = Markers(TAGS, LAB, len(LAB))
    batch = EndScaling().batch(markers, 1)
    batch.admit(0, EndScaling(bias=2.0))
    slot, changes = torch.tensor([0]), []
    for token in ids("Wait<think>\n"):
        logits = torch.zeros(1, len(LAB))
        batch.apply(logits, slot)
        batch.observe(torch.tensor([token]), slot)
        changes.append(logits.sum().item())
    assert changes == [0.0, 0.0, 2.0]


def test_rows_have_their_own_parameters():
    logits = torch.randn(3, len(LAB), generator=torch.Generator().manual_seed(1))
    controls = EndScaling(gain=0.5), EndScaling(bias=-1.0), EndScaling(gain=-0.2, bias=0.3)
    together = edited(logits, *controls)
    alone = [edited(logits[row : row + 1], control) for row, control in enumerate(controls)]
    assert torch.equal(together, torch.cat(alone))


def test_a_slot_forgets_who_had_it():
    markers = Markers(REPETITIVE, LAB, len(LAB))
    batch = EndScaling().batch(markers, 1)
    slot, start = torch.tensor([0]), REPETITIVE.automaton(LAB).thinking_state
    batch.admit(0, EndScaling(gain=3.0, bias=5.0, state=start))
    for token in ids("So So Wait"):
        batch.observe(torch.tensor([token]), slot)
    assert not batch.thinking(slot)
    batch.admit(0, EndScaling(bias=1.0, state=start))
    logits = torch.zeros(1, len(LAB))
    batch.apply(logits, slot)
    assert (logits[0, ids("So ")].item(), logits.sum().item()) == (1.0, 1.0)


def test_half_precision_logits_are_edited_in_place():
    logits = torch.full((1, len(LAB)), 2.0, dtype=torch.bfloat16)
    result = edited(logits, EndScaling(gain=0.5))
    assert result.dtype is torch.bfloat16
    assert result[0, TAGS.close_ids(LAB)].item() == 3.0


# -- the contract for other controls


@dataclass(frozen=True, kw_only=True)
class Forbid(Control):
    """Never `token` while thinking: the smallest control one can write."""

    token: int

    def batch(self, markers, slots):
        return ForbidBatch(markers, slots)


class ForbidBatch(ControlBatch):
    def __init__(self, markers, slots):
        super().__init__(markers, slots)
        self.token = torch.zeros(slots, dtype=torch.int64, device=markers.device)

    def admit(self, slot, control):
        super().admit(slot, control)
        self.token[slot] = control.token

    def apply(self, logits, slots):
        penalty = torch.where(self.thinking(slots), -torch.inf, 0.0)
        logits.scatter_add_(1, self.token[slots][:, None], penalty[:, None])


async def test_an_engine_runs_different_classes_of_control_side_by_side(make_engine):
    engine = make_engine(max_batch=6)
    start = TAGS.automaton(LAB).thinking_state
    prompt = [*ids("Start with 12."), *ids("<think>\n")]
    [close] = TAGS.close_ids(LAB)
    sampling = Sampling(temperature=0, max_tokens=12, ignore_eos=True)
    plain = await engine.generate(prompt, sampling)
    first = plain.ids[0]
    forbidden, closed, untouched = await asyncio.gather(
        engine.generate(prompt, sampling, control=Forbid(token=first, state=start)),
        engine.generate(prompt, sampling, control=EndScaling(bias=1000.0, state=start)),
        engine.generate(prompt, sampling),
    )
    assert first not in forbidden.ids[: forbidden.ids.index(close) if close in forbidden.ids else None]
    assert closed.ids[0] == close
    assert closed.ids[1:] == (await engine.generate([*prompt, close], replace(sampling, max_tokens=11))).ids
    assert untouched.ids == plain.ids
