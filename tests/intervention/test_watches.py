"""What a budget looks at besides its count: loops against the rule spelled out, confidence against sums by hand."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from satisfice.intervention.controls import ConfidenceRule, LoopRule
from satisfice.intervention.watches import ConfidenceWatch, LoopWatch

CPU = torch.device("cpu")
reproducible = settings(deadline=None, derandomize=True, max_examples=30)


# -- loops


def by_hand(tokens, rule):
    """`LoopRule` on the tokens of one thinking, from its words."""
    n, r, w = rule.ngram, rule.repeats, rule.window
    if rule.periodic:
        return any(
            len(tokens) >= p + (r - 1) * max(p, n)
            and all(tokens[-i] == tokens[-i - p] for i in range(1, (r - 1) * max(p, n) + 1))
            for p in range(1, w // r + 1)
        )
    seen = tokens[-w:]
    starts = [i for i in range(len(seen) - n + 1) if seen[i : i + n] == seen[len(seen) - n :]]
    return len(seen) >= n and len(starts) >= r and starts[-1] - starts[0] >= (r - 1) * n


def watched(rows, rules, thinking=None):
    """What a watch says after each token of each row, all rows at once."""
    watch = LoopWatch(len(rows) + 1, CPU)
    for slot, rule in enumerate(rules, 1):
        watch.admit(slot, rule)
    slots = torch.arange(1, len(rows) + 1)
    found = []
    for place in range(len(rows[0])):
        open_ = torch.tensor([True if thinking is None else thinking[place]] * len(rows))
        tokens, level = torch.tensor([row[place] for row in rows]), torch.zeros(len(rows), dtype=torch.int64)
        found.append(watch.observe(tokens, slots, open_, level).tolist())
    return [list(row) for row in zip(*found, strict=True)], watch


RULES = [
    LoopRule(ngram=1, repeats=2, window=8),
    LoopRule(ngram=2, repeats=3, window=12),
    LoopRule(ngram=3, repeats=2, window=9),
    LoopRule(ngram=2, repeats=2, window=12, periodic=True),
    LoopRule(ngram=1, repeats=3, window=15, periodic=True),
]


@reproducible
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.sampled_from(RULES))
@example([0] * 12, RULES[1])
@example([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2], RULES[4])
@example([0, 1, 2, 1, 0, 1, 2, 2, 0, 1, 2], RULES[2])
def test_a_loop_is_what_the_rule_says_token_for_token(tokens, rule):
    (found,), _ = watched([tokens], [rule])
    assert found == [by_hand(tokens[: end + 1], rule) for end in range(len(tokens))]


def test_random_texts_hold_loops_of_each_kind_and_texts_without():
    """Otherwise the test above would prove little."""
    import random

    draw = random.Random(0)
    for rule in RULES:
        texts = [[draw.randrange(3) for _ in range(30)] for _ in range(40)]
        verdicts = [by_hand(text, rule) for text in texts]
        assert any(verdicts), rule
        assert not all(verdicts), rule


def test_rows_of_a_batch_keep_their_own_rules():
    import random

    draw = random.Random(1)
    rows = [[draw.randrange(2) for _ in range(30)] for _ in RULES]
    together, _ = watched(rows, RULES)
    alone = [watched([row], [rule])[0][0] for row, rule in zip(rows, RULES, strict=True)]
    assert together == alone
    assert any(any(row) for row in together)


def test_what_stands_outside_of_thinking_ends_every_stretch():
    rule = LoopRule(ngram=2, repeats=2, window=8)
    tokens = [5, 6, 5, 6]
    assert watched([tokens], [rule])[0] == [[False, False, False, True]]
    assert watched([[5, 6, 9, 5, 6]], [rule], [True, True, False, True, True])[0] == [[False] * 5]


def test_a_slot_without_a_rule_is_left_alone_and_a_new_rule_begins_anew():
    watch = LoopWatch(3, CPU)
    watch.admit(1, LoopRule(ngram=1, repeats=2, window=2))

    def step(level=0):
        sevens, slots = torch.tensor([7] * 4), torch.tensor([1, 2, 0, 0])
        return watch.observe(sevens, slots, torch.tensor([True] * 4), torch.tensor([level] * 4)).tolist()

    assert [step(), step()] == [[False] * 4, [True, False, False, False]]
    watch.admit(1, LoopRule(ngram=1, repeats=2, window=6))
    assert step() == [False] * 4
    watch.admit(1, None)
    assert not any(any(step()) for _ in range(4))


@pytest.mark.parametrize(
    ("levels", "ends"),
    [((0, 0, 0, 0, 0), 4), ((0, 2, 0, 0, 0), 1), ((2, 0, 1, 3, 0), 3)],
)
def test_a_loop_waits_for_an_end_as_long_as_it_goes_on_and_for_no_longer_than_its_grace(levels, ends):
    watch = LoopWatch(2, CPU)
    watch.admit(1, LoopRule(ngram=1, repeats=2, window=6, end="line", grace=3))
    row, open_ = torch.tensor([1]), torch.tensor([True])
    found = [bool(watch.observe(torch.tensor([7]), row, open_, torch.tensor([level]))) for level in levels]
    assert found.index(True) == ends
    watch.admit(1, LoopRule(ngram=1, repeats=2, window=6, end="line", grace=3))
    for token in (7, 7, 7, 8, 9):  # it has found a way out
        assert not watch.observe(torch.tensor([token]), row, open_, torch.tensor([0]))
    assert watch.held[1] == 0


@reproducible
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(0, 40), st.sampled_from(RULES))
def test_many_tokens_at_once_are_what_they_are_one_by_one(tokens, cut, rule):
    cut = min(cut, len(tokens))
    thinking = [token != 2 or place % 3 > 0 for place, token in enumerate(tokens)]
    nothing = [0] * len(tokens)
    (found,), watch = watched([tokens], [rule], thinking)
    other = LoopWatch(2, CPU)
    other.admit(1, rule)
    first = other.replay(1, tokens[:cut], thinking[:cut], nothing[:cut])
    assert first + other.replay(1, tokens[cut:], thinking[cut:], nothing[cut:]) == found
    assert torch.equal(other.history[1], watch.history[1])
    assert torch.equal(other.run[1], watch.run[1])


# -- confidence


def logits_of(*probabilities):
    """(B, 3) logits whose first two tokens have such probabilities, on another scale and with an offset."""
    rows = [[p, q, 1 - p - q] for p, q in probabilities]
    return torch.tensor(rows).log() + 7.0


class Reader:
    """A watch on slots 1 and 2 of 3, and what it says token by token."""

    def __init__(self, *rules):
        self.watch = ConfidenceWatch(3, CPU)
        for slot, rule in enumerate(rules, 1):
            self.watch.admit(slot, rule)
        self.slots = torch.arange(1, len(rules) + 1)
        self.count = 0

    def step(self, logits, tokens, thinking=True, sampled=True, level=0, look=True):
        self.count += 1
        if look:
            self.watch.look(logits, self.slots)
        rows = len(self.slots)
        return self.watch.observe(
            torch.tensor(tokens),
            self.slots,
            torch.tensor([thinking] * rows),
            torch.tensor([sampled] * rows),
            torch.tensor([self.count] * rows),
            torch.tensor([level] * rows),
        ).tolist()


SURE, UNSURE = (0.9, 0.05), (0.4, 0.3)


def test_the_mean_is_over_a_whole_window_of_the_tokens_that_were_drawn():
    from math import log

    exactly = (log(0.9) + log(0.4)) / 2
    reader = Reader(ConfidenceRule(above=exactly - 1e-6, window=2), ConfidenceRule(above=exactly + 1e-6, window=2))
    assert reader.step(logits_of(SURE, SURE), [0, 0]) == [False, False]  # half a window
    assert reader.step(logits_of(UNSURE, UNSURE), [0, 0]) == [True, False]
    assert reader.step(logits_of(UNSURE, SURE), [0, 0]) == [False, False]
    assert reader.step(logits_of(SURE, SURE), [0, 0]) == [True, True]
    assert reader.step(logits_of(SURE, SURE), [1, 1]) == [False, False]  # an unlikely token was drawn


def test_below_ends_what_is_lost():
    reader = Reader(ConfidenceRule(below=-1.0, window=2), ConfidenceRule(below=-3.5, above=-0.2, window=2))
    assert reader.step(logits_of(SURE, SURE), [1, 1]) == [False, False]
    assert reader.step(logits_of(SURE, SURE), [1, 1]) == [True, False]
    assert reader.step(logits_of(SURE, SURE), [0, 0]) == [True, False]
    assert reader.step(logits_of(SURE, SURE), [0, 0]) == [False, True]


def test_a_group_is_the_likeliest_tokens_whatever_is_drawn():
    from math import log

    two = -(log(0.9) + log(0.05)) / 2
    reader = Reader(
        ConfidenceRule(above=two - 1e-5, window=1, top=2), ConfidenceRule(above=two + 1e-5, window=1, top=2)
    )
    assert reader.step(logits_of(SURE, SURE), [2, 2]) == [True, False]
    flat = -(log(0.4) + log(0.3) + log(0.3)) / 3
    reader = Reader(ConfidenceRule(below=flat + 1e-5, window=1, top=20), ConfidenceRule(below=0.0, window=1))
    assert reader.step(logits_of(UNSURE, UNSURE), [0, 0]) == [True, True]  # a group of all there is, beside a token


def test_the_end_and_the_least_are_waited_for():
    reader = Reader(ConfidenceRule(above=-1, window=1, least=3, end="line"))
    found = [reader.step(logits_of(SURE), [0], level=level) for level in (3, 2, 0, 1, 2, 3)]
    assert found == [[False], [False], [False], [False], [True], [True]]
    assert reader.watch.fired[1] == 6


def test_what_the_model_did_not_draw_has_no_part():
    reader = Reader(ConfidenceRule(above=-0.2, window=2))
    reader.step(logits_of(SURE), [0])
    assert reader.step(logits_of(SURE), [1], sampled=False) == [False]
    assert reader.step(logits_of(SURE), [0]) == [True]


@pytest.mark.parametrize("interrupted", [{"thinking": False}, {"look": False}])
def test_the_window_begins_anew_after_other_text_and_where_a_value_is_missing(interrupted):
    reader = Reader(ConfidenceRule(above=-0.2, window=2))
    reader.step(logits_of(SURE), [0])
    assert reader.step(logits_of(SURE), [0], **interrupted) == [False]
    assert reader.step(logits_of(SURE), [0]) == [False]
    assert reader.step(logits_of(SURE), [0]) == [True]


def test_a_look_is_good_for_one_token_of_its_own_row():
    reader = Reader(ConfidenceRule(above=-0.2, window=1), ConfidenceRule(above=-0.2, window=1))
    assert reader.step(logits_of(SURE, UNSURE), [0, 0]) == [True, False]
    assert reader.step(None, [0, 0], look=False) == [False, False]
    reader.watch.look(logits_of(UNSURE, SURE), torch.tensor([2, 1]))  # the rows have changed places
    assert reader.step(None, [0, 0], look=False) == [True, False]


def test_a_pause_keeps_the_window_and_another_slot_may_go_on_with_it():
    reader = Reader(ConfidenceRule(above=-0.2, window=2), ConfidenceRule(above=-0.2, window=2))
    reader.step(logits_of(SURE, UNSURE), [0, 0])
    paused = reader.watch.pause(1)
    reader.watch.admit(1, ConfidenceRule(above=-0.2, window=5))
    reader.watch.admit(2, ConfidenceRule(above=-0.2, window=2))
    reader.watch.go_on(2, paused)
    assert reader.step(logits_of(SURE, SURE), [0, 0]) == [False, True]


@pytest.mark.parametrize("top", [0, 2])
def test_restoring_takes_tokens_and_looks_back(top):
    above = -0.2 if top == 0 else 1.5
    reader = Reader(ConfidenceRule(above=above, window=2, top=top))
    reader.step(logits_of(SURE), [0])
    reader.watch.look(logits_of(SURE), reader.slots)
    taken = {name: each.clone() for name, each in reader.watch.changing().items()}, reader.watch.distribution
    wanted = reader.step(None, [0], look=False)
    reader.step(logits_of(UNSURE), [1])
    for name, each in reader.watch.changing().items():
        each.copy_(taken[0][name])
    reader.watch.distribution = taken[1]
    assert reader.step(None, [0], look=False) == wanted == [True]
