"""Rows of about the same length in a cache of their own: nobody pays for a long row, and no token changes by it."""

import asyncio
import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from engines.test_transformers_engine import ARCHITECTURES, GREEDY, SAMPLED, crowd, distributions, likeliest, tokens
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from satisfice.engines import joined
from satisfice.engines import rows as rows_module
from satisfice.engines.attending import NAME
from satisfice.engines.base import EngineFailed
from satisfice.engines.rows import RowRequest, Rows, _lengths


@pytest.fixture
def small_buckets(monkeypatch):
    """Buckets of rows of 8, 16, 32, ... tokens."""
    monkeypatch.setattr(rows_module, "FIRST_LENGTH", 8)
    monkeypatch.setattr(rows_module, "FIRST_ROOM", 16)


LENGTHS = (1, 3, 7, 8, 9, 20, 33, 60, 100)


def built(architecture, tiny_config):
    kind, config, options = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    return kind(config(**{**tiny_config, **options})).eval()


# -- tokens stay what they are


@pytest.mark.parametrize("options", [{}, {"max_batch": 4, "max_batch_tokens": 260}], ids=str)
@pytest.mark.parametrize("architecture", [None, *ARCHITECTURES])
async def test_rows_of_all_lengths_beside_each_other(
    make_engine, tiny_model, tiny_config, small_buckets, architecture, options
):
    model = tiny_model if architecture is None else built(architecture, tiny_config)
    engine = make_engine(model, **options)
    prompts = [tokens(length) for length in LENGTHS]
    calls = [(prompt, replace(SAMPLED, seed=seed, max_tokens=30 + seed)) for seed, prompt in enumerate(prompts)]
    results = await crowd(engine, *calls, top_logprobs=1)
    for prompt, result in zip(prompts, results, strict=True):
        own = distributions(model, [*prompt, *result.ids])[len(prompt) - 1 : -1]
        assert result.logprobs == pytest.approx(
            own.gather(1, torch.tensor(result.ids)[:, None])[:, 0].tolist(), abs=2e-4
        )
    if not options:
        assert len({bucket.most for bucket in engine._rows.buckets}) >= 4
        assert engine._rows.held < 9 * 256


@pytest.mark.parametrize("cached", [0, 4096])
async def test_chains_that_grow_through_buckets_between_probes(make_engine, tiny_model, small_buckets, cached):
    engine = make_engine(max_batch=5, max_cached_tokens=cached)

    async def chain(seed):
        ids = tokens(2 + 5 * seed, seed)
        for step in range(6):
            part = await engine.generate(ids, replace(GREEDY, max_tokens=9, ignore_eos=True))
            assert part.ids == likeliest(tiny_model, ids, part.ids)
            ids += part.ids
            asked = [*ids, *tokens(1 + 9 * (step % 2), step)]
            probe = await engine.generate(asked, replace(GREEDY, max_tokens=3, ignore_eos=True))
            assert probe.ids == likeliest(tiny_model, asked, probe.ids)
            if cached:
                assert probe.usage.cached >= len(ids) - 1

    await asyncio.gather(*map(chain, range(7)))


async def test_a_row_that_outgrows_a_full_room_waits_and_goes_on(make_engine, tiny_model, small_buckets):
    engine = make_engine(max_batch=6, max_batch_tokens=150)
    prompts = [tokens(14 + seed, seed) for seed in range(6)]
    results = await crowd(engine, *((prompt, replace(GREEDY, max_tokens=60, ignore_eos=True)) for prompt in prompts))
    for prompt, result in zip(prompts, results, strict=True):
        assert result.ids == likeliest(tiny_model, prompt, result.ids)
    assert (
        sum(
            result.usage.prefilled + result.usage.cached >= len(prompt)
            for result, prompt in zip(results, prompts, strict=True)
        )
        >= 2
    )  # these came in more than once


async def test_no_step_looks_for_room_while_nothing_can_be_found(make_engine, tiny_model, small_buckets, monkeypatch):
    looked, crowded = [], Rows.crowded
    monkeypatch.setattr(Rows, "crowded", lambda *all, **more: (looked.append(all), crowded(*all, **more))[1])
    engine, prompt = make_engine(), tokens(20)
    written = await engine.generate(prompt, replace(GREEDY, max_tokens=200, ignore_eos=True))
    assert written.ids == likeliest(tiny_model, prompt, written.ids)
    # Once for every bucket that it has come through, and when it came in; those behind it are given up.
    assert 4 <= len(looked) <= 12
    assert [bucket.most for bucket in engine._rows.buckets] == [256]


# -- what a long row costs others


async def test_a_long_row_takes_no_room_from_short_ones(make_engine, tiny_model):
    engine = make_engine(max_batch=16, max_batch_tokens=2000, max_cached_tokens=0)
    most = replace(GREEDY, max_tokens=40, ignore_eos=True)
    prompts = [tokens(900), *(tokens(20, seed) for seed in range(15))]
    results = await crowd(engine, *((prompt, most) for prompt in prompts))
    assert engine.peak_batch == 16
    assert engine._rows.held <= 2000
    for prompt, result in zip(prompts, results, strict=True):
        assert result.ids == likeliest(tiny_model, prompt, result.ids)


async def test_one_pass_serves_rows_of_all_lengths(make_engine, small_buckets, passes):
    engine = make_engine(max_cached_tokens=0)
    found = passes(engine)
    await crowd(engine, *((tokens(length), replace(GREEDY, max_tokens=5, ignore_eos=True)) for length in (3, 20, 70)))
    assert [rows for rows, _ in found] == [3] * 6


async def test_where_attention_cannot_be_replaced_each_bucket_has_a_pass(
    make_engine, tiny_config, small_buckets, passes
):
    model = built("eager attention with sinks", tiny_config)
    engine = make_engine(model, max_cached_tokens=0)
    assert model.config._attn_implementation == "eager"
    found = passes(engine)
    calls = [(tokens(length), replace(GREEDY, max_tokens=3, ignore_eos=True)) for length in (3, 20, 70)]
    results = await crowd(engine, *calls)
    assert [rows for rows, _ in found] == [1, 1, 1] * 4
    for (prompt, _), result in zip(calls, results, strict=True):
        assert result.ids == likeliest(model, prompt, result.ids)


# -- our attention in somebody's model


def test_a_model_that_does_more_in_its_attention_than_we_know_keeps_its_own(make_engine, tiny_model, monkeypatch):
    for name, value in (("_UNKNOWN", ("scaling",)), ("sdpa_attention_forward", None)):
        model = deepcopy(tiny_model)
        model.set_attn_implementation("sdpa")
        with monkeypatch.context() as patch:
            patch.setattr(joined, name, value)
            assert joined.install(model, {"full_attention"}) == 0
        assert model.config._attn_implementation == "sdpa"
        assert joined.install(model, {"full_attention"}) == 2


def test_outside_of_the_engine_a_model_computes_what_it_did(make_engine, tiny_config, tiny_model, tmp_path):
    model = built("sliding window", tiny_config)
    ids, padded = torch.tensor([tokens(40), tokens(40, 1)]), torch.ones(2, 40, dtype=torch.int64)
    padded[1, :9] = 0
    before = model(ids, attention_mask=padded).logits
    make_engine(model)
    assert model.config._attn_implementation == NAME
    assert torch.equal(model(ids, attention_mask=padded).logits, before)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


async def test_an_attention_that_is_replaced_meanwhile_is_a_failure_and_no_result(
    make_engine, tiny_model, small_buckets
):
    model = deepcopy(tiny_model)
    engine = make_engine(model)
    calls = [(tokens(length), GREEDY) for length in (3, 40)]
    await crowd(engine, *calls)
    AttentionInterface.register("another", sdpa_attention_forward)
    model.set_attn_implementation("another")
    with pytest.raises(EngineFailed, match="attention of tiny was replaced while it ran"):
        await crowd(engine, *((tokens(length, 1), GREEDY) for length in (3, 40)))


# -- the bookkeeping alone


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=5),
    st.integers(1, 3000),
)
def test_rows_are_as_long_as_the_room_allows(sizes, room):
    wanted = [(count, least, least + more) for count, least, more in sizes]
    lengths = _lengths(wanted, room)
    if lengths is None:
        assert sum(count * least for count, least, _ in wanted) > room
        return
    assert all(least <= length <= most for (_, least, most), length in zip(wanted, lengths, strict=True))
    left = room - sum(count * length for (count, _, _), length in zip(wanted, lengths, strict=True))
    assert left >= 0
    growing = [count for (count, _, most), length in zip(wanted, lengths, strict=True) if length < most]
    assert not growing or left < sum(growing)


def started(rows, length, *, seed=0):
    """A request of that many tokens, computed but for the last, with a number of its own in all keys."""
    request = RowRequest([seed] * length, GREEDY)
    request.computed = length - 1
    bucket = rows.bucket(length)
    row = bucket.free(16)
    assert rows.fit(4000, bucket, row + 1, length)
    rows.start(request, bucket, row)
    keys = torch.full((1, length - 1, 1), float(seed))
    bucket.cache.put(row, 0, [(keys, -keys)])
    return request


def held_in(request, place):
    return request.bucket.cache.view(request.row, place, place + 1)[0][0].item()


def test_a_row_moves_up_with_what_it_holds_or_stays():
    rows = Rows(16)
    requests = [started(rows, length, seed=length) for length in (200, 256, 300, 600)]
    grown = requests[1]
    assert [bucket.most for bucket in rows.buckets] == [256, 512, 1024]
    assert not grown.outgrown
    grown.ids.append(0)
    grown.computed += 1
    grown.bucket.cache.put(grown.row, 255, [(torch.full((1, 1, 1), 7.0),) * 2])
    assert grown.outgrown
    assert not rows.move_up(grown, 200 + 257 + 300 + 600)  # the rows of a bucket are as long as the longest
    assert (grown.bucket.most, held_in(grown, 255), rows.running) == (256, 7, requests)
    assert rows.move_up(grown, 200 + 2 * 300 + 600)
    assert (grown.bucket.most, held_in(grown, 0), held_in(grown, 255)) == (512, 256, 7)
    assert rows.held == 200 + 2 * 300 + 600
    assert [held_in(request, 0) for request in requests] == [200, 256, 300, 600]


def test_closing_up_gives_back_what_nobody_has():
    rows = Rows(16)
    first, second, third = (started(rows, length, seed=length) for length in (20, 30, 700))
    rows.leave(third, park=True)
    rows.leave(first, park=True)
    assert rows.held == 8 * 256 + 1024
    assert rows.crowded(2 * 30 + 700 - 2)
    assert not rows.crowded(2 * 30 + 700)
    rows.close_up(keep=rows.parked[1])
    assert [parked.ids[0] for parked in rows.parked] == [700]
    rows.close_up()
    assert (rows.parked, rows.held, held_in(second, 0)) == ([], 8 * 256, 30)
    assert not rows.crowded(10)  # one row that is not loose


def test_rooms_of_all_sizes_keep_what_rows_hold():
    rng = random.Random(0)
    for trial in range(200):
        rows, room = Rows(12), rng.choice([700, 1500, 4000])
        requests = []
        for number in range(rng.randrange(1, 12)):
            length = rng.choice([3, 100, 255, 256, 257, 500])
            bucket = rows.bucket(length)
            row = bucket.free(12)
            if not rows.fit(room, bucket, row + 1, length):
                continue
            request = RowRequest([number] * length, GREEDY)
            request.computed = length - 1
            rows.start(request, bucket, row)
            keys = torch.full((1, length - 1, 1), float(number))
            bucket.cache.put(row, 0, [(keys, -keys)])
            requests.append(request)
            if rng.random() < 0.3:
                rows.leave(requests.pop(rng.randrange(len(requests))), park=rng.random() < 0.5)
            rows.close_gaps()
            if rng.random() < 0.2:
                rows.close_up()
            assert rows.held <= room
            for request in requests:
                assert held_in(request, 0) == held_in(request, request.computed - 1) == request.ids[0], trial
