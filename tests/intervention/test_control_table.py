"""A table of controls that is told of its tokens on the host does what one does that is told on the device."""

import random

import numpy as np
import pytest
import torch

from satisfice.engines.control_batch import Markers
from satisfice.intervention.control_table import ControlTable
from satisfice.intervention.controls import EndScaling, SuppressTokens, ThinkingBudget
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.thinking import FAMILIES, ThinkingFormat, encode_after

LAB = build_tokenizer()
FORMATS = {
    "one token": FAMILIES["think-tags"],
    "several tokens": ThinkingFormat.custom("Start with ", "The answer is 1"),
}
SLOTS = 7


def drawn(rng, markers, automaton):
    """The controls of a request that stands somewhere in its response."""
    state = rng.choice([0, automaton.thinking_state, automaton.thinking_state, automaton.answer_state])
    most = rng.choice([None, 0, 3, 12, 40])
    ramp = None if most is None else rng.choice([None, 0, most // 2])
    budget = ThinkingBudget(
        state=state,
        most=most,
        cue=rng.choice(["", "10", "\n\n12 "]),
        ramp_start=ramp,
        ramp_bias=0.0 if ramp is None else 2.5,
        endings=rng.choice([0, 0, 1, 3]),
        wait=rng.choice(["But wait", "10 + 2"]),
        end_ids=rng.choice([(), (LAB.eos_token_id,)]),
        hint_at=rng.choice([None] * 9 + [2]),
        hint="10 ",
    )
    scaling = EndScaling(state=state, gain=rng.choice([0.0, 0.4]), bias=rng.choice([0.0, -1.5]))
    words = SuppressTokens(state=state, words=rng.choice([("but wait",), ("10", "for", "</think>")]))
    return rng.sample([budget, scaling, words], k=rng.randint(0, 3))


@pytest.mark.parametrize("thinking", FORMATS)
@pytest.mark.parametrize("steady", [False, True], ids=["rows lag", "steady rows"])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_on_the_host_lead_to_the_same_logits(thinking, seed, steady):
    """Steady rows all have a token each step, under the same slots until one comes or goes, and mostly a plain one."""
    rng, markers = random.Random(seed), Markers(FORMATS[thinking], LAB, len(LAB) + 3)
    generator = torch.Generator().manual_seed(seed)
    form = markers.thinking_format
    automaton = form.automaton(LAB)
    telling = [
        *form.close_ids(LAB),
        *form.close_ids(LAB),
        *encode_after(LAB, form.open),
        *encode_after(LAB, "\n10 But wait"),
    ]
    device, host = ControlTable(markers, SLOTS), ControlTable(markers, SLOTS)
    [plain] = encode_after(LAB, "7")
    live: list[int] = []
    rows = torch.zeros(0, dtype=torch.int64)
    everybody = rows.numpy()
    edited = calm = 0
    for step in range(100):
        if step % 5 == 0 or not live:  # requests come, also back after a pause, and go
            for slot in range(1, SLOTS):
                if slot in live and rng.random() < (0.5 if steady else 0.15):
                    device.release(slot)
                    host.release(slot)
                    live.remove(slot)
                elif slot not in live and rng.random() < 0.5:
                    controls = drawn(rng, markers, automaton)
                    written = [rng.choice(telling) for _ in range(rng.choice([0, 0, 9]))]
                    device.admit(slot, controls, written)
                    host.admit(slot, controls, written)
                    live.append(slot)
            rows = torch.tensor([*live, 0])
            everybody = rows[:-1].numpy()
        logits = 3 * torch.randn((len(rows), len(LAB) + 3), generator=generator)
        expected, found = logits.clone(), logits.clone()
        device.apply(expected, rows)
        host.apply(found, rows)
        assert torch.equal(expected, found)
        edited += not torch.equal(expected, logits)
        # What is told is as a model writes, mostly; some rows lag behind, and others have two tokens at once.
        for _ in range(rng.choice([1, 1, 1, 2])):
            told = [row for row, slot in enumerate(live) if steady or rng.random() < 0.9]
            if told:
                likely = expected[told].argmax(1).tolist()
                if steady:
                    forced = (expected[told].amax(1) > 1e6).tolist()
                    likely = [token if must else plain for token, must in zip(likely, forced, strict=True)]
                telling_share = 0.02 if steady else 0.4
                tokens = [rng.choice(telling) if rng.random() < telling_share else token for token in likely]
                slots = rows[told]
                device.observe(torch.tensor(tokens), slots)
                host.follow(np.array(tokens), everybody if steady else slots.numpy())
                calm += any(getattr(batch, "_calm_steps", 0) > 0 for batch in host.live)
    assert edited > (20 if steady else 40)
    assert (calm >= 5) is steady


def test_what_was_replaced_is_the_last_requests_and_not_the_next_ones():
    """A slot's request leaves between a step and the token after it; the next one comes back after a pause."""
    markers = Markers(FORMATS["one token"], LAB, len(LAB) + 3)
    thinking = markers.thinking_format.automaton(LAB).thinking_state
    control = ThinkingBudget(state=thinking, endings=1, wait="But wait")
    [close, *_], written = (
        markers.thinking_format.close_ids(LAB),
        [*encode_after(LAB, "But wait"), *encode_after(LAB, "7")],
    )
    rows, slots = torch.tensor([1]), np.array([1])
    used, fresh = ControlTable(markers, 2), ControlTable(markers, 2)
    used.admit(1, [control])
    for token in encode_after(LAB, "777"):
        low = torch.zeros((1, len(LAB) + 3))
        low[0, close] = -9.0
        used.apply(low, rows)
        used.follow(np.array([token]), slots)
    used.apply(low, rows)
    used.release(1)
    for table in (used, fresh):
        table.admit(1, [control], written)
    expected, found = (torch.zeros((1, len(LAB) + 3)) for _ in range(2))
    expected[0, close] = found[0, close] = 5.0
    fresh.apply(expected, rows)
    used.apply(found, rows)
    assert torch.equal(expected, found)
