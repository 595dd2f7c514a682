"""Rows that requests leave and come back to: what is copied, what is not, and that no token changes by it."""

import asyncio
from dataclasses import replace

import pytest
import torch
from engines.test_transformers_engine import GREEDY, continued, crowd, likeliest, tokens

from satisfice.engines import rows as rows_module
from satisfice.engines.kv import RowCache
from satisfice.engines.rows import GRACE, SHORT, Bucket, RowRequest, Rows


@pytest.fixture
def copied(monkeypatch):
    """Tokens of keys and values that were copied into rows, one number a copy."""
    found, move, put = [], RowCache.move, RowCache.put

    def moving(cache, source, target, first, last):
        found.append(last - first)
        move(cache, source, target, first, last)

    def putting(cache, row, place, pages):
        found.append(pages[0][0].shape[1])
        put(cache, row, place, pages)

    monkeypatch.setattr(RowCache, "move", moving)
    monkeypatch.setattr(RowCache, "put", putting)
    return found


async def test_a_chain_that_is_probed_and_resumed_stays_in_its_row(make_engine, tiny_model, copied):
    engine, chain = make_engine(), tokens(300)
    written = []
    for step in (4, 16, 20):
        part = await engine.generate([*chain, *written], replace(GREEDY, max_tokens=step, ignore_eos=True))
        written += part.ids
        for cue in range(3):
            asked = [*chain, *written, *tokens(5, cue)]
            probe = await engine.generate(asked, replace(GREEDY, max_tokens=3, ignore_eos=True))
            assert probe.ids == likeliest(tiny_model, asked, probe.ids)
            assert probe.usage.cached >= len(asked) - 6
    assert written == likeliest(tiny_model, chain, written)
    assert copied == []
    # What a probe wrote is still there for whoever goes on from it, and is all that is copied.
    adopted = await engine.generate([*asked, *probe.ids], GREEDY)
    assert adopted.usage.cached == len(asked) + 2
    again = await engine.generate([*chain, *written[:20], *tokens(5, 1)], replace(GREEDY, max_tokens=1))
    assert again.usage.cached == 300 + 20 + 4
    assert sum(copied) < 5 + 3 + 8


async def test_chains_share_what_they_have_in_common_in_the_store(make_engine):
    engine, head = make_engine(), tokens(40)
    computed = set()

    async def chain(seed):
        ids = [*head, *tokens(10, seed)]
        for _ in range(5):
            part = await engine.generate(ids, replace(GREEDY, max_tokens=9, ignore_eos=True))
            ids += part.ids
            for cue in range(2):
                asked = [*ids, *tokens(4, cue)]
                probe = await engine.generate(asked, replace(GREEDY, max_tokens=3, ignore_eos=True))
                asked += probe.ids
                computed.update(tuple(asked[: end + 1]) for end in range(len(asked) - 1))

    await asyncio.gather(*map(chain, range(6)))
    assert engine._store.tokens == len(computed)


@pytest.mark.parametrize("options", [{}, {"max_batch": 3}, {"max_batch": 5, "max_batch_tokens": 500}], ids=str)
async def test_rows_that_nobody_runs_in_change_nothing(make_engine, tiny_model, monkeypatch, options):
    monkeypatch.setattr(rows_module, "SHORT", 0)
    engine, between = make_engine(**options), []
    rebuild = engine._rebuild_rows

    def rebuilt():
        rebuild()
        between.append(engine._places is not None)

    monkeypatch.setattr(engine, "_rebuild_rows", rebuilt)

    async def chain(seed):
        ids = tokens(20 + 11 * seed, seed)
        for step in range(4):
            count = 3 + (seed + step) % 5
            part = await engine.generate(ids, replace(GREEDY, max_tokens=count, ignore_eos=True), top_logprobs=1)
            assert part.ids == likeliest(tiny_model, ids, part.ids)
            ids += part.ids
            asked = [*ids, *tokens(1 + 7 * (seed % 3), step)]
            probe, score = await asyncio.gather(
                engine.generate(asked, replace(GREEDY, max_tokens=4, ignore_eos=True), entropy=True),
                engine.score(ids, len(ids) - 2),
            )
            assert probe.ids == likeliest(tiny_model, asked, probe.ids)
            assert len(probe.entropies) == 4
            assert score.logprobs == pytest.approx(part.logprobs[-2:], abs=1e-4)

    await asyncio.gather(*map(chain, range(6)))
    assert any(between) or options


async def test_without_a_store_no_row_is_parked(make_engine):
    engine = make_engine(max_cached_tokens=0)
    await crowd(engine, *((tokens(300, seed), GREEDY) for seed in range(3)))
    assert not engine._rows.parked
    assert (await engine.generate(tokens(300, 0), GREEDY)).usage.cached == 0


async def test_parked_rows_give_way_to_those_that_need_the_room(make_engine, tiny_model):
    engine = make_engine(max_batch=4, max_batch_tokens=640)
    for seed in range(2):
        await engine.generate(tokens(290, seed), GREEDY)
    assert len(engine._rows.parked) == 2
    prompts = [tokens(120, seed) for seed in range(4)]
    results = await crowd(engine, *((prompt, GREEDY) for prompt in prompts))
    assert [result.ids for result in results] == [continued(tiny_model, prompt) for prompt in prompts]
    assert engine.peak_batch == 4


# -- the bookkeeping alone


def request_of(ids, computed):
    request = RowRequest(list(ids), GREEDY)
    request.computed = computed
    return request


def bucket_of(lengths):
    """Rows of which every one runs a request, with its number in all keys and values."""
    rows = Bucket(2 * SHORT + 2)
    rows.cache.resize(len(lengths), rows.most)
    for number, length in enumerate(lengths):
        keys = torch.full((1, length, 1), float(number))
        rows.cache.put(number, 0, [(keys, -keys)])
        rows.start(request_of(range(1000 * number, 1000 * number + length + 1), length), number)
    return rows


def rows_of(lengths):
    """Those of one bucket."""
    rows, bucket = Rows(len(lengths)), bucket_of(lengths)
    rows.buckets = [bucket]
    rows.running = list(bucket.running)
    return rows


def held_in(rows, row):
    return rows.cache.view(row, 0, 1)[0][0].item()


def test_a_long_row_keeps_its_place_for_a_while_and_a_short_one_does_not():
    rows = bucket_of([300, 20, 300, 30, 40])
    first, short, third, fourth, last = rows.running
    rows.leave(short, park=True)
    rows.leave(third, park=True)
    assert (rows.free(8), rows.occupied, rows.longest) == (1, 5, 301)
    assert rows.close_gaps()
    assert [request.row for request in (first, fourth, last)] == [0, 3, 1]
    assert held_in(rows, 1) == 4
    assert [*rows.parked] == [2]
    assert not rows.close_gaps()
    assert rows.idle(0, 4)[2] == 300
    rows.steps = GRACE + 1
    assert rows.free(8) == 2
    assert rows.close_gaps()
    assert fourth.row == 2
    assert not rows.parked


def test_a_request_finds_the_row_that_holds_most_of_it():
    rows = rows_of([50, 60])
    for request in list(rows.running):
        rows.leave(request, park=True)
    [first, second] = rows.parked
    second.ids[:30] = range(30)
    assert rows.nearest(request_of(range(40), 0), 39) == (first, 39)
    assert rows.nearest(request_of([*range(30), 1030, 1031], 0), 31) == (second, 31)
    assert rows.nearest(request_of([*range(5), 9], 0), 5) == (None, 0)
    first.long = True
    assert rows.nearest(request_of(range(40), 0), 39) == (second, 30)


def test_rows_close_up_and_one_that_is_parked_may_come_along():
    rows = bucket_of([10, 20, 30, 40])
    first, second, third, fourth = rows.running
    rows.leave(first, park=False)
    rows.leave(second, park=True)
    rows.leave(third, park=True)
    rows.close_up(keep=2)
    assert (fourth.row, [*rows.parked], rows.parked[0].row) == (1, [0], 0)
    assert (held_in(rows, 0), held_in(rows, 1)) == (2, 3)
    rows.close_up()
    assert (fourth.row, rows.parked, rows.occupied) == (0, {}, 1)
    assert held_in(rows, 0) == 3


def test_what_a_full_parked_row_loses_to_a_step_is_not_offered():
    rows = rows_of([20, 30])
    [bucket], first = rows.buckets, rows.running[0]
    bucket.cache.resize(2, 20)
    rows.leave(first, park=True)
    assert bucket.idle(0, 1) == [19]
    assert rows.nearest(request_of(range(30), 0), 29) == (bucket.parked[0], 19)
