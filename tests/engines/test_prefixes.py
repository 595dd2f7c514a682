"""The prefix store against a plain set of sequences."""

import random
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satisfice.engines import prefixes
from satisfice.engines.prefixes import LEAST, PrefixStore, Segment, common_prefix, ends_alike

reproducible = settings(deadline=None, derandomize=True, max_examples=150)


def pages_of(ids):
    """Keys and values in which every token's ids, and those before it, can be read back."""
    before = torch.tensor([hash(tuple(ids[: end + 1])) % 4096 for end in range(len(ids))])
    keys = torch.stack([torch.tensor(ids), before], dim=-1).float()[None]
    return [(keys, -keys), (keys + 1, keys + 2)]


def store_in(store, ids, **more):
    pages = pages_of(ids)
    asked = []

    def take(first, last):
        asked.append((first, last))
        return [(keys[:, first:last], values[:, first:last]) for keys, values in pages]

    store.add(ids, len(ids), take, **more)
    return asked


def read(prefix, first=0):
    """Keys and values of a prefix from a place on, put together."""
    parts = list(prefix.pages(first, prefix.tokens))
    place = first
    for at, pages in parts:
        assert at == place
        place += pages[0][0].shape[1]
    assert place == prefix.tokens
    layers = zip(*(pages for _, pages in parts), strict=True)
    return [tuple(torch.cat(each, dim=1) for each in zip(*pairs, strict=True)) for pairs in layers]


def assert_holds(store, ids, tokens):
    found = store.find(ids, len(ids))
    assert (0 if found is None else found.tokens) == tokens
    if found is not None:
        for pair, wanted in zip(read(found), pages_of(ids), strict=True):
            assert all(torch.equal(one, other[:, :tokens]) for one, other in zip(pair, wanted, strict=True))


def segments(store):
    def below(segment):
        for key, child in segment.children.items():
            assert key == (child.start, child.ids[0])
            assert segment.start < child.start <= segment.end or segment is store._root
            assert child.parent is segment
            yield child
            yield from below(child)

    return list(below(store._root))


def assert_sound(store):
    found = segments(store)
    assert store.tokens == sum(len(segment.ids) for segment in found) <= store.capacity
    for segment in found:
        assert segment.needed == max((place for place, _ in segment.children), default=segment.start)
        assert (segment in store._ends) == (segment.end > segment.needed)
        assert all(segment.ids[place - segment.start :][:1] != [token] for place, token in segment.children)
        sizes = [pages[0][0].shape[1] for pages in segment.pages]
        assert sum(sizes) == len(segment.ids)
        assert all(size == prefixes.PAGE for size in sizes[:-1])
        for pages in segment.pages:  # a view would keep alive what it is a view of
            assert all(part.untyped_storage().nbytes() == part.nbytes for pair in pages for part in pair)
    assert set(store._ends) <= set(found)


# Sequences over two tokens, put together from a few pieces: most share some of their beginning.
pieces = [[0] * 8, [0] * 5, [1] * 8, [0, 1] * 6, [1, 0, 0]]
sequences = st.lists(st.sampled_from(pieces), min_size=1, max_size=6).map(lambda parts: [*chain(*parts)])


@reproducible
@given(st.lists(st.tuples(st.booleans(), sequences), max_size=40), st.sampled_from([30, 60, 120, 10_000]))
def test_store_equals_a_plain_set_of_sequences(steps, capacity):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "PAGE", 4)
        store = PrefixStore(capacity)
        added = []
        for adding, ids in steps:
            if adding:
                store_in(store, ids)
                if LEAST <= len(ids) <= capacity:
                    added.append(ids)
                    assert_holds(store, ids, len(ids))
            else:
                found = store.find(ids, len(ids))
                most = max((common_prefix(other, ids) for other in added), default=0)
                tokens = 0 if found is None else found.tokens
                assert tokens == most * (most >= LEAST) or (tokens < most and capacity < 10_000)
                assert_holds(store, ids, tokens)
            assert_sound(store)
        if capacity == 10_000:
            assert store.tokens == len({tuple(ids[: end + 1]) for ids in added for end in range(len(ids))})


def test_a_chain_that_is_probed_stays_one_segment_and_is_copied_once(monkeypatch):
    monkeypatch.setattr(prefixes, "PAGE", 16)
    store, chain_ids, taken = PrefixStore(10_000), [], 0
    for step in range(40):
        chain_ids += [1000 + 30 * step + at for at in range(30)]
        probe = [*chain_ids, *range(7)]
        for ids in (chain_ids, probe):
            taken += sum(last - first for first, last in store_in(store, ids))
    assert store.tokens == taken == 40 * 37
    deepest = max(len(store.find(ids, len(ids)).path) for ids in (chain_ids, [*chain_ids[:600], *range(7)]))
    assert deepest <= 2
    assert_sound(store)
    assert_holds(store, [*chain_ids[:600], *range(7)], 607)
    assert_holds(store, chain_ids, 1200)


def test_the_shorter_end_moves_where_sequences_part(monkeypatch):
    monkeypatch.setattr(prefixes, "PAGE", 4)
    store, head = PrefixStore(1000), list(range(20))
    store_in(store, [*head, *range(50, 53)])
    store_in(store, [*head, *range(60, 70)])
    (first,) = store._root.children.values()
    assert first.ids == [*head, *range(60, 70)]
    store_in(store, [*head[:18], 99])
    assert first.ids == [*head, *range(60, 70)]
    # What went on from the end that moves goes with it.
    store_in(store, [*head, *range(60, 68), 80])
    store_in(store, [*head, 60, 61, *range(90, 99)])
    assert first.ids == [*head, 60, 61, *range(90, 99)]
    assert_sound(store)
    for ids in ([*head, *range(50, 53)], [*head[:18], 99], [*head, *range(60, 68), 80], [*head, *range(60, 70)]):
        assert_holds(store, ids, len(ids))


def test_the_longest_match_is_found_among_many_that_share_a_head():
    head = list(range(20))
    tails = [[100 + first, second, *range(9)] for first in range(20) for second in range(5)]
    random.Random(0).shuffle(tails)
    store = PrefixStore(10_000)
    for tail in tails:
        store_in(store, head + tail)
    for tail in tails:
        assert_holds(store, [*head, *tail[:2], 999], len(head) + 2)
    assert (store.tokens, len(store)) == (20 + 20 + 20 * 5 * 10, 100)


def test_what_does_not_fit_or_is_too_short_is_not_stored():
    store = PrefixStore(20)
    assert not store_in(store, list(range(LEAST - 1)))
    assert not store_in(store, list(range(21)))
    assert store.tokens == 0


def test_a_sequence_that_was_just_used_outlives_one_that_was_not():
    store = PrefixStore(30)
    first, second, third, fourth = ([token] * 10 for token in (1, 2, 3, 4))
    for ids in (first, second, third):
        store_in(store, ids)
    store.find(first, 10)
    store_in(store, fourth)
    for ids, tokens in ((first, 10), (second, 0), (third, 10)):
        assert_holds(store, ids, tokens)


def test_ends_are_evicted_before_the_heads_that_others_need():
    store, head = PrefixStore(60), list(range(20))
    old, new = [*head, *range(100, 115)], [*head, *range(200, 220)]
    store_in(store, old)
    store_in(store, new)
    store.find(head, 20)  # the head alone was used; what follows it in either was not
    store_in(store, [9] * 10)
    assert_holds(store, old, 20)
    assert_holds(store, new, 40)
    assert store.tokens == 50
    assert_sound(store)


def test_long_sequences_lose_pages_at_their_end(monkeypatch):
    monkeypatch.setattr(prefixes, "PAGE", 8)
    store, long = PrefixStore(100), list(range(90))
    store_in(store, long)
    store_in(store, [1] * 20)
    assert_holds(store, long, 80)
    assert_sound(store)


def test_how_tokens_were_computed_is_kept_and_the_newer_way_replaces_the_older(monkeypatch):
    monkeypatch.setattr(prefixes, "PAGE", 4)
    store, ids = PrefixStore(1000), list(range(30))
    store_in(store, ids, made=bytes([0] * 30), following=5)
    store_in(store, [*ids[:25], 99], made=bytes([0] * 26))
    found = store.find([*ids, 5], 30)
    assert (found.made, found.goes_on(5), found.goes_on(6)) == (bytes(30), True, False)
    assert store.find(ids, 12).goes_on(12)
    assert store.find(ids, 25).goes_on(99)
    assert store_in(store, ids[:22], made=bytes([0] * 20 + [1, 1])) == [(20, 22)]
    assert store.find(ids, 30).made == bytes([0] * 20 + [1, 1])
    assert store.tokens == 22
    assert_sound(store)


def test_a_segment_crops_and_grows_within_pages(monkeypatch):
    monkeypatch.setattr(prefixes, "PAGE", 4)
    segment, ids = Segment(None, 10), list(range(11))
    segment.append(ids, pages_of(ids), b"")
    segment.crop(16)
    segment.append([20, 21, 22], pages_of([20, 21, 22]), b"")
    assert segment.ids == [*range(6), 20, 21, 22]
    at, pages = next(iter(segment.parts(13, 14)))
    assert (at, pages[0][0][0, :, 0].tolist()) == (13, [3])
    assert [at for at, _ in segment.parts(11, 19)] == [11, 14, 18]


@pytest.mark.parametrize(
    ("left", "right", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2], [3, 2], 0), ([1, 2], [1, 3], 1)],
)
def test_common_prefix(left, right, length):
    assert common_prefix(left, right) == length


def test_sequences_with_much_in_common_end_alike():
    left, right = list(range(40)), [*range(30), 99, *range(31, 40)]
    found = [tokens for tokens in range(1, 45) if ends_alike(left, right, tokens)]
    assert found == [*range(1, 31), *range(31 + LEAST, 41)]


def test_common_prefixes_of_long_sequences():
    long = list(range(5000))
    for length in (63, 64, 65, 191, 192, 1000, 4999):
        other = [*long[:length], -1, *long]
        assert common_prefix(long, other) == length
        assert common_prefix(long, [7, 7, *other], place=2) == length
        assert common_prefix(long, [7, 7, *other], place=2, limit=length) == length - 2
