"""The prefix store against a plain list of sequences, and the row cache against plain tensors."""

import random
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satisfice.engines.kv import BLOCK, PrefixStore, RowCache, common_prefix, links

reproducible = settings(deadline=None, derandomize=True, max_examples=150)


def pages_of(ids):
    """Keys and values in which every token's ids can be read back."""
    keys = torch.tensor(ids, dtype=torch.float32)[None, :, None]
    return [(keys, -keys)]


# Sequences over two tokens, put together from a few pieces: most share some of their beginning.
pieces = [[0] * 8, [0] * 5, [1] * 8, [0, 1] * 6, [1, 0, 0]]
sequences = st.lists(st.sampled_from(pieces), min_size=1, max_size=6).map(lambda parts: [*chain(*parts)])


@reproducible
@given(
    st.lists(st.tuples(st.booleans(), sequences), max_size=40),
    st.sampled_from([30, 60, 120, 10_000]),
)
def test_store_equals_a_plain_list_of_sequences(steps, capacity):
    store = PrefixStore(capacity)
    model = []  # sequences, the least recently used first
    for adding, ids in steps:
        if adding:
            store.add(ids, pages_of(ids))
            if BLOCK <= len(ids) <= capacity:
                model = [other for other in model if ids[: len(other)] != other]
                while sum(map(len, model)) + len(ids) > capacity:
                    model.pop(0)
                model.append(ids)
        else:
            found, shared = store.longest(ids)
            longest = max((common_prefix(other, ids) for other in model), default=0)
            if longest < BLOCK:
                assert (found, shared) == (None, 0)
            else:
                assert shared == longest
                assert list(found.ids[:shared]) == ids[:shared]
                assert torch.equal(found.pages[0][0], pages_of(found.ids)[0][0])
                model.remove(list(found.ids))
                model.append(list(found.ids))
        assert store.tokens == sum(map(len, model)) <= capacity
        assert len(store) == len(model)


def test_the_longest_match_is_found_among_many_that_share_a_head():
    head = list(range(20))  # ends within a block, so that blocks alone do not tell the tails apart
    tails = [[100 + first, second, *range(9)] for first in range(20) for second in range(5)]
    random.Random(0).shuffle(tails)
    store = PrefixStore(10_000)
    for tail in tails:
        store.add(head + tail, pages_of(head + tail))
    assert len(store) == len(tails)
    for tail in tails:
        found, shared = store.longest([*head, *tail[:2], 999])
        assert shared == len(head) + 2
        assert list(found.ids) == head + tail


def test_every_beginning_is_dropped_however_many_share_its_head():
    head = list(range(16))
    store = PrefixStore(10_000)
    store.add([*head, 1, 2, 3], pages_of([*head, 1, 2, 3]))
    others = [[*head, 200 + number, *range(10)] for number in range(50)]
    for ids in others:
        store.add(ids, pages_of(ids))
    assert len(store) == 51
    store.add([*head, 1, 2, 3, 4, 5, 6], pages_of([*head, 1, 2, 3, 4, 5, 6]))
    assert len(store) == 51
    assert store.tokens == sum(map(len, others)) + 22


def test_what_does_not_fit_or_is_too_short_is_not_stored():
    store = PrefixStore(20)
    store.add(list(range(BLOCK - 1)), pages_of(list(range(BLOCK - 1))))
    store.add(list(range(21)), pages_of(list(range(21))))
    assert (len(store), store.tokens) == (0, 0)


def test_a_sequence_that_was_just_used_outlives_one_that_was_not():
    store = PrefixStore(30)
    first, second, third = ([token] * 10 for token in (1, 2, 3))
    for ids in (first, second, third):
        store.add(ids, pages_of(ids))
    store.longest(first)
    store.add([4] * 10, pages_of([4] * 10))
    assert [store.longest(ids)[1] for ids in (first, second, third)] == [10, 0, 10]


def test_tokens_are_compared_where_hashes_agree(monkeypatch):
    monkeypatch.setattr("satisfice.engines.kv.hash", lambda _: 7, raising=False)
    store = PrefixStore(100)
    store.add([1] * 16, pages_of([1] * 16))
    assert store.longest([2] * 16)[1] == 0
    assert store.longest([1] * 11 + [3] * 5)[1] == 11


def test_links_of_equal_beginnings_are_equal():
    left, right = [*range(24), 1, 2], [*range(24), 5]
    assert links(left) == links(right)
    assert len(links(left)) == 3
    assert links([9, *range(1, 24)])[1:] != links(left)[1:], "a link stands for all tokens before it"


@pytest.mark.parametrize(
    ("left", "right", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2], [3, 2], 0), ((1, 2), [1, 3], 1)],
)
def test_common_prefix(left, right, length):
    assert common_prefix(left, right) == length


# -- rows


def written(cache, layer=0):
    """All that the cache holds of `layer`, room for more included."""
    return cache._keys[layer], cache._values[layer]


def fill(cache, window, start, count):
    """One pass over the rows of `window` that writes `count` numbered tokens from `start` on."""
    rows = window.stop - window.start
    positions = (torch.arange(count) + start).expand(rows, -1)
    cache.aim(window, positions, start + count)
    result = []
    for layer in range(2):
        keys = positions[:, None, :, None] + 100.0 * torch.arange(*window.indices(10**6))[:, None, None, None]
        keys = (keys + 1000 * layer).expand(-1, 3, -1, 2)
        result.append(cache.update(keys, -keys, layer))
    return result


def test_rows_keep_their_tokens_when_moved_resized_and_copied():
    cache = RowCache()
    cache.resize(3, 8)
    fill(cache, slice(0, 3), 0, 4)
    keys, values = fill(cache, slice(1, 3), 4, 1)[1]
    assert keys.shape == (2, 3, 5, 2)
    assert keys[:, 0, :, 0].tolist() == [[1100 + n for n in range(5)], [1200 + n for n in range(5)]]
    assert torch.equal(values, -keys)
    assert cache.get_seq_length() == 5

    cache.move(2, 0, 5)
    cache.resize(5, 20)
    pages = cache.take(0, 5)
    assert [page[0][0, :, 0].tolist() for page in pages] == [
        [200.0 + n for n in range(5)],
        [1200.0 + n for n in range(5)],
    ]
    cache.put(4, pages, 3)
    assert written(cache)[0][4, 1, :5, 0].tolist() == [200, 201, 202, 0, 0]
    cache.move(1, 0, 5)
    assert pages[0][0][0, 0, 0] == 200, "what was taken is a copy"
    cache.resize(2, 5)
    assert written(cache, 1)[1][0, 2, :, 1].tolist() == [-1100 - n for n in range(5)]
