"""Continuations that are looked at in one row: what follows each is what a plain forward pass says, whatever runs."""

import asyncio
import random
from dataclasses import replace

import pytest
import torch
from engines.test_buckets import built
from engines.test_rotary import CONTEXT, LIMIT, engine_of, phi  # noqa: F401 -- fixtures
from engines.test_transformers_engine import ARCHITECTURES, GREEDY, SAMPLED, distributions, likeliest, tokens

from satisfice.attention import Attention
from satisfice.engines import rows as rows_module
from satisfice.engines import transformers as transformers_engine
from satisfice.engines.base import Child, Engine, EngineError, EngineFailed, Generation, Sampling, Usage
from satisfice.engines.kv import RowCache
from satisfice.engines.openai_connection import RefusedError
from satisfice.engines.paths import Paths
from satisfice.engines.remembering import RememberingEngine
from satisfice.engines.rows import Bucket, RowRequest
from satisfice.runs.work_file import CountedEngine
from satisfice.server.meter import Meter, MeteredEngine


def check(model, prompt, paths, found, top, abs=2e-4):
    """Each generation is the likeliest token after its path, with the model's own numbers."""
    assert len(found) == len(paths)
    for path, generation in zip(paths, found, strict=True):
        own = distributions(model, [*prompt, *path])[-1]
        assert generation.ids == [own.argmax().item()]
        assert generation.logprobs == pytest.approx([own.max().item()], abs=abs)
        [listed] = generation.top_logprobs
        assert list(listed.values()) == sorted(listed.values(), reverse=True)
        assert list(listed.values()) == pytest.approx(own.topk(top).values.tolist(), abs=abs)
        assert listed == pytest.approx({token: own[token].item() for token in listed}, abs=abs)


async def search(engine, model, prompt, width=4, depth=4, seed=0):
    """A search that keeps `width` paths, by chance so that they part at every depth; returns what it cost.

    Where nothing is computed twice, that is the prompt once a step and every beginning of a path but itself.
    """
    generator, live, usage, search.beginnings = random.Random(seed), [()], Usage(), 0
    for _ in range(depth):
        search.beginnings += len({path[:end] for path in live for end in range(1, len(path))})
        found = await engine.next_tokens(prompt, live, top_logprobs=3)
        check(model, prompt, live, found, 3)
        for generation in found:
            usage.add(generation.usage)
        grown = [(*path, token) for path, one in zip(live, found, strict=True) for token in one.top_logprobs[0]]
        live = generator.sample(grown, min(width, len(grown)))
    return usage


# -- what it says


@pytest.mark.parametrize("options", [{}, {"max_batch": 3, "max_batch_tokens": 400, "max_cached_tokens": 0}], ids=str)
@pytest.mark.parametrize("architecture", [None, *ARCHITECTURES])
async def test_a_search_sees_the_models_own_distributions(make_engine, tiny_model, tiny_config, architecture, options):
    model = tiny_model if architecture is None else built(architecture, tiny_config)
    engine = make_engine(model, **options)
    for length in (1, 2, 9, 40, 130):
        await search(engine, model, tokens(length), seed=length)


@pytest.mark.parametrize("architecture", [None, *ARCHITECTURES])
async def test_paths_of_all_lengths_in_one_call(make_engine, tiny_model, tiny_config, architecture):
    model = tiny_model if architecture is None else built(architecture, tiny_config)
    engine, prompt = make_engine(model), tokens(20)
    long = tuple(tokens(30, 1))  # longer than a window
    paths = [long, (), long[:3], (7,), long, (*long[:3], 9), [8, 8], (7, *long)]
    for _ in range(2):
        check(model, prompt, paths, await engine.next_tokens(prompt, paths, top_logprobs=2), 2)
    assert await engine.next_tokens(prompt, [], top_logprobs=2) == []


async def test_the_same_paths_behind_prompts_that_begin_alike(make_engine, tiny_model):
    engine, prompt = make_engine(), tokens(30)
    for asked in ([*prompt, 9], [*prompt, 11], [*prompt, 11, 12], prompt, [*prompt, 11, 12, 13]):
        for paths in ([(40,), (41,)], [(40, 42), (41, 43)]):
            check(tiny_model, asked, paths, await engine.next_tokens(asked, paths, top_logprobs=2), 2)


async def test_it_is_what_generate_gives_for_each(make_engine, tiny_model, monkeypatch):
    engine, prompt, paths = make_engine(), tokens(30), [(), (9,), (9, 11), (12, 10)]
    ending = likeliest(tiny_model, [*prompt, 9], [0])[0]
    monkeypatch.setattr(engine, "end_ids", frozenset({ending}))
    together = await engine.next_tokens(prompt, paths, top_logprobs=4)
    alone = await Engine.next_tokens(engine, prompt, paths, top_logprobs=4)
    assert together[1].finish == "stop"
    for one, other in zip(together, alone, strict=True):
        assert one.top_logprobs[0] == pytest.approx(other.top_logprobs[0], abs=1e-4)
        plain = {"logprobs": None, "top_logprobs": None, "usage": None}
        assert replace(one, **plain) == replace(other, **plain)


# -- what it costs


async def test_a_chain_that_is_searched_is_neither_copied_nor_computed_again(
    make_engine, tiny_model, passes, monkeypatch
):
    engine, chain, cue = make_engine(), tokens(300), tokens(6, 1)
    copied, put, move = [], RowCache.put, RowCache.move
    monkeypatch.setattr(RowCache, "put", lambda *all: (copied.append(all), put(*all)))
    monkeypatch.setattr(RowCache, "move", lambda *all: (copied.append(all), move(*all)))
    found = passes(engine)
    for step in range(3):
        chain += (await engine.generate(chain, replace(GREEDY, max_tokens=9, ignore_eos=True))).ids
        found.clear()
        usage = await search(engine, tiny_model, [*chain, *cue], width=4, depth=4, seed=step)
        # The root with the rest of its prompt, then four new tokens three times.
        assert [rows for rows, _ in found] == [1] * 4
        assert [width for _, width in found] == [1 + 6, 3, 4, 4]
        assert (usage.generated, usage.forward_passes) == (1 + 3 + 4 + 4, 1 + 3 + 4 + 4)
        assert usage.prefilled == 6
        assert usage.cached == 4 * len(chain) - 1 + 3 * 6 + search.beginnings
    assert copied == []
    # The store has the cues and nothing of what a search has tried. A chain's last token is computed with the cue.
    assert engine._store.tokens == len(chain) + 3 * 6


async def test_searches_of_many_chains_share_their_passes(make_engine, tiny_model, passes):
    engine = make_engine()
    prompts = [tokens(40 + seed, seed) for seed in range(6)]
    found = passes(engine)
    with engine._wake:
        tasks = [asyncio.create_task(engine.next_tokens(prompt, [()], top_logprobs=2)) for prompt in prompts]
        await asyncio.sleep(0)
    for prompt, task in zip(prompts, tasks, strict=True):
        check(tiny_model, prompt, [()], await task, 2)
    assert found == [(6, 45)]


async def test_searches_that_have_little_to_compute_are_not_padded_for_one_that_has_much(
    make_engine, tiny_model, passes
):
    engine = make_engine()
    prompts = [tokens(70 + seed, seed) for seed in range(5)]
    for prompt in prompts[1:]:
        await engine.next_tokens(prompt, [()], top_logprobs=2)
    found = passes(engine)
    paths = [(9,), (11,), (12,)]
    with engine._wake:
        asked = [([*prompts[0], *tokens(40, 1)][:50], [()]), *((prompt, paths) for prompt in prompts[1:])]
        tasks = [asyncio.create_task(engine.next_tokens(*each, top_logprobs=2)) for each in asked]
        await asyncio.sleep(0)
    for (prompt, paths), task in zip(asked, tasks, strict=True):
        check(tiny_model, prompt, paths, await task, 2)
    assert found == [(4, 3), (1, 50)]


async def test_no_pass_over_paths_computes_more_than_the_bounds(make_engine, tiny_model, passes, monkeypatch):
    monkeypatch.setattr(transformers_engine, "PREFILL_CHUNK", 20)
    monkeypatch.setattr(transformers_engine, "BESIDE_PATHS", 8)
    engine = make_engine()
    monkeypatch.setattr(transformers_engine, "SCORE_LOGITS", 7 * engine._vocabulary)
    found = passes(engine)

    async def one(seed):
        await search(engine, tiny_model, tokens(30, seed), width=3, seed=seed)

    await asyncio.gather(*map(one, range(6)))
    assert all(rows * width <= 20 for rows, width in found)
    assert max(rows for rows, _ in found) > 1
    # What is too much for one pass is asked path by path.
    paths = [(token,) for token in range(10, 18)]
    check(tiny_model, tokens(30), paths, await engine.next_tokens(tokens(30), paths, top_logprobs=2), 2)
    assert all(rows * width <= 20 for rows, width in found)


# -- what else runs


@pytest.mark.parametrize("sizes", [(256, 2048), (8, 16)], ids=["one bucket", "small buckets"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch": 3},
        {"max_batch": 6, "max_batch_tokens": 330},
        {"max_cached_tokens": 0},
        {"max_cached_tokens": 90},
    ],
    ids=str,
)
async def test_searches_beside_chains_that_come_and_go(make_engine, tiny_model, monkeypatch, options, sizes):
    for name, value in zip(("FIRST_LENGTH", "FIRST_ROOM"), sizes, strict=True):
        monkeypatch.setattr(rows_module, name, value)
    monkeypatch.setattr(rows_module, "SHORT", 10)
    engine = make_engine(**options)

    async def chain(seed):
        generator, ids = random.Random(seed), tokens(3 + 11 * seed, seed)
        for step in range(5):
            part = await engine.generate(ids, replace(GREEDY, max_tokens=generator.randrange(1, 9), ignore_eos=True))
            assert part.ids == likeliest(tiny_model, ids, part.ids)
            ids += part.ids
            if generator.random() < 0.8:
                asked = [*ids, *tokens(generator.randrange(7), step)]
                await search(engine, tiny_model, asked, width=3, depth=3, seed=seed)

    async def others():
        for seed in range(12):
            sampled = replace(SAMPLED, seed=seed, max_tokens=20)
            drawn = await engine.generate(tokens(5 * seed + 1, seed), sampled, top_logprobs=1)
            own = distributions(tiny_model, [*tokens(5 * seed + 1, seed), *drawn.ids])
            for place, (token, value) in enumerate(zip(drawn.ids, drawn.logprobs, strict=True)):
                assert value == pytest.approx(own[5 * seed + place, token].item(), abs=2e-4)

    await asyncio.gather(*map(chain, range(7)), others())
    assert not engine._running
    assert not engine._waiting


async def test_a_search_beside_a_tree(make_engine, tiny_model):
    engine = make_engine(max_batch_tokens=600)

    async def grow():
        async with engine.tree(tokens(30), GREEDY, top=2, entropy_temperature=1.0) as tree:
            leaves, way = [tree.root], []
            for _ in range(8):
                way.append(next(iter(leaves[0].top)))
                leaves = await tree.advance([Child(0, token, 1) for token in leaves[0].top])
                own = distributions(tiny_model, [*tokens(30), *way])[-1]
                assert leaves[0].top == pytest.approx({t: own[t].item() for t in leaves[0].top}, abs=2e-4)

    await asyncio.gather(grow(), *(search(engine, tiny_model, tokens(50, seed), seed=seed) for seed in range(4)))


async def test_two_searches_of_one_chain_at_once(make_engine, tiny_model):
    engine, prompt = make_engine(), tokens(60)
    await asyncio.gather(*(search(engine, tiny_model, prompt, seed=seed) for seed in range(4)))


async def test_a_search_that_is_moved_brings_what_was_searched_before(make_engine, tiny_model, monkeypatch):
    """Two searches are parked; the second goes on while a new row needs the place of the first."""
    monkeypatch.setattr(rows_module, "SHORT", 10)
    engine = make_engine(max_batch=3, max_batch_tokens=260)

    async def at_once(*calls):
        with engine._wake:
            tasks = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    first, second, third = tokens(60, 1), tokens(60, 2), tokens(90, 3)
    paths, longer = [(9,), (11,)], [(9, 12), (11, 13)]
    await at_once(engine.next_tokens(first, [()], top_logprobs=2), engine.next_tokens(second, paths, top_logprobs=2))
    moved, move = [], RowCache.move
    monkeypatch.setattr(RowCache, "move", lambda *all: (moved.append(all[1:]), move(*all)))
    found, written = await at_once(
        engine.next_tokens(second, longer, top_logprobs=2),
        engine.generate(third, replace(GREEDY, max_tokens=3, ignore_eos=True)),
    )
    check(tiny_model, second, longer, found, 2)
    assert found[0].usage.cached == 60 + 2
    assert written.ids == likeliest(tiny_model, third, written.ids)
    assert moved


async def test_a_chain_that_is_searched_again_and_again_stays_in_the_store(make_engine):
    engine, chain = make_engine(max_cached_tokens=600), tokens(300)
    await engine.next_tokens(chain, [(9,)], top_logprobs=1)
    for seed in range(4):
        await engine.generate(tokens(90, seed), replace(GREEDY, max_tokens=1))
        await engine.next_tokens(chain, [(9,)], top_logprobs=1)
    engine._rows.clear()  # as whoever needs the room does
    [again] = await engine.next_tokens(chain, [(9,)], top_logprobs=1)
    assert (again.usage.prefilled, again.usage.cached) == (0, 300)


# -- where one row will not do


async def test_with_other_rotary_factors_beyond_a_length(phi, engine_of):  # noqa: F811
    engine = engine_of(phi)
    for length in (LIMIT - 8, LIMIT - 3, LIMIT - 1, LIMIT, LIMIT + 20):
        await search(engine, phi, tokens(length, vocabulary=60), seed=length)


async def test_sparse_decoding_reads_paths_as_it_reads_prompts(make_engine, tiny_model):
    engine = make_engine(attention=Attention("local", 16))
    prompt, paths = tokens(40), [(), (9,), (9, 11)]
    together = await engine.next_tokens(prompt, paths, top_logprobs=3)
    alone = await Engine.next_tokens(engine, prompt, paths, top_logprobs=3)
    for one, other in zip(together, alone, strict=True):
        assert one.top_logprobs[0] == pytest.approx(other.top_logprobs[0], abs=1e-5)


async def test_more_paths_than_a_row_has_room_for(make_engine, tiny_model):
    engine, prompt = make_engine(max_batch_tokens=60), tokens(50)
    paths = [(token, token + 1) for token in range(10, 20)]
    check(tiny_model, prompt, paths, await engine.next_tokens(prompt, paths, top_logprobs=2), 2)
    # Ten tokens a step fill what is left of the row; what was searched before gives way.
    await search(make_engine(max_batch_tokens=62), tiny_model, prompt, width=6, depth=5)


@pytest.mark.parametrize(
    ("prompt", "paths", "top", "message"),
    [
        ([], [()], 2, "at least one token"),
        ([9] * 20, [(9,), (10_000,)], 2, "token id 10000 is not in the vocabulary"),
        ([9] * 20, [(-1,)], 2, "token id -1 is not in the vocabulary"),
        ([9] * 20, [()], 0, "top_logprobs is 0; it must be within 1"),
        ([9] * 90, [(9,) * 10], 2, "exceed the max_batch_tokens"),
    ],
)
async def test_a_bad_search_is_refused_and_hurts_nobody_else(make_engine, tiny_model, prompt, paths, top, message):
    engine = make_engine(max_batch_tokens=100)
    other = asyncio.create_task(search(engine, tiny_model, tokens(20)))
    with pytest.raises(EngineError, match=message):
        await engine.next_tokens(prompt, paths, top_logprobs=top)
    await other


async def test_a_model_that_goes_wrong_is_said_and_forgotten(make_engine, tiny_model, monkeypatch):
    engine, prompt = make_engine(), tokens(20)
    await engine.next_tokens(prompt, [()], top_logprobs=2)
    with monkeypatch.context() as broken:
        broken.setattr(engine, "_answer_paths", lambda *_: 1 / 0)
        with pytest.raises(EngineFailed, match="ZeroDivisionError"):
            await engine.next_tokens(prompt, [(9,)], top_logprobs=2)
    await search(engine, tiny_model, prompt)


async def test_a_cancelled_search_frees_its_row(make_engine, tiny_model):
    engine = make_engine(max_batch=1)
    writing = asyncio.create_task(engine.generate(tokens(9), replace(GREEDY, max_tokens=200, ignore_eos=True)))
    searching = asyncio.create_task(engine.next_tokens(tokens(20), [()], top_logprobs=2))
    await asyncio.sleep(0.05)
    searching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await searching
    await writing
    await search(engine, tiny_model, tokens(20))


# -- where paths lie


def test_places_go_on_from_those_of_an_earlier_call():
    first = Paths(10, [(1,), (2,), (2, 5)])
    assert (first.places, first.end) == ({(1,): 10, (2,): 11, (2, 5): 12}, 13)
    assert (first.leaves, first.inner()) == ([(1,), (2,), (2, 5)], [])
    second = Paths(10, [(2, 5, 6), (3, 4), (2, 5, 6)])
    assert (second.leaves, second.inner()) == ([(2, 5, 6), (3, 4)], [(2,), (2, 5), (3,)])
    second.begin(first.places, 100)
    assert (second.inner(), second.end) == ([(3,)], 16)
    assert second.way((2, 5, 6)) == [11, 12, second.place((2, 5, 6))]
    assert second.place(()) == 9
    second.begin(first.places, 15)  # too little room for both
    assert (second.end, second.known) == (15, set())


def test_a_parked_row_moves_with_its_paths_and_needs_their_room():
    bucket = Bucket(64)
    bucket.cache.resize(2, 64)
    bucket.cache.put(1, 0, [(torch.arange(20.0).reshape(1, 20, 1), torch.zeros(1, 20, 1))])
    request = RowRequest(list(range(10)), Sampling(), paths=Paths(10, [(1,), (2, 3)]))
    bucket.start(request, 1)
    assert bucket.longest == 13
    request.computed = 10
    bucket.leave(request, park=True)
    assert (bucket.longest, bucket.idle(1, 2)) == (13, [13])
    bucket.close_up(keep=1)
    assert bucket.cache.view(0, 0, 14)[0][0].flatten().tolist() == [*range(13), 0]
    parked = bucket.parked[0]
    assert parked.continuations(list(range(10))) == request.paths.places
    assert parked.continuations(list(range(1, 11))) == parked.continuations(list(range(9))) == {}
    # Where a step has to compute something at their places they are given up.
    bucket.cache.resize(1, 13)
    assert bucket.idle(0, 1) == [10]
    assert parked.continuations(list(range(10))) == {}


# -- engines that have nothing better than `generate`


class Answering(Engine):
    """An engine that knows `generate` alone."""

    def __init__(self, outcomes):
        self.outcomes, self.asked = outcomes, []

    async def generate(self, prompt_ids, sampling, **options):
        self.asked.append((prompt_ids, sampling.max_tokens, sampling.temperature, options))
        outcome = self.outcomes[prompt_ids[-1]]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def score(self, ids, start):
        raise NotImplementedError


async def test_any_engine_answers_path_by_path():
    made = {token: Generation([token + 1], "length", usage=Usage(1, 0, 2, 1)) for token in (1, 5, 7)}
    engine = Answering(made)
    assert await engine.next_tokens([1], [(5,), (), (6, 7)], top_logprobs=4) == [made[5], made[1], made[7]]
    assert [asked for asked, *_ in engine.asked] == [[1, 5], [1], [1, 6, 7]]
    assert {tuple(rest[:2]) for _, *rest in engine.asked} == {(1, 0)}
    assert engine.asked[0][3] == {"top_logprobs": 4}
    assert await engine.next_tokens([1], [], top_logprobs=4) == []


async def test_what_failed_is_raised_with_what_all_of_them_cost():
    made = Generation([2], "length", usage=Usage(1, 3, 2, 1))
    failing = Answering({1: made, 5: EngineFailed("it broke", Usage(0, 4, 0, 1))})
    with pytest.raises(EngineFailed, match="it broke") as caught:
        await failing.next_tokens([1], [(), (5,)], top_logprobs=1)
    assert caught.value.usage == Usage(1, 7, 2, 2)
    # Its own error, whatever else that knows.
    refusing = Answering({1: made, 5: RefusedError("no", 400)})
    with pytest.raises(RefusedError, match="no") as caught:
        await refusing.next_tokens([1], [(), (5,)], top_logprobs=1)
    assert (caught.value.status, caught.value.usage) == (400, made.usage)
    # A fault is not hidden by a refusal.
    with pytest.raises(ZeroDivisionError):
        await Answering({1: EngineError("no"), 5: ZeroDivisionError()}).next_tokens([1], [(), (5,)], top_logprobs=1)


async def test_what_fails_is_not_waited_for_by_others():
    class Slow(Answering):
        async def generate(self, prompt_ids, sampling, **options):
            if prompt_ids[-1] == 7:
                await asyncio.sleep(60)
            return await super().generate(prompt_ids, sampling, **options)

    with pytest.raises(EngineFailed, match="it broke"):
        await asyncio.wait_for(Slow({5: EngineFailed("it broke")}).next_tokens([1], [(7,), (5,)], top_logprobs=1), 10)
    waiting = asyncio.create_task(Slow({}).next_tokens([1], [(7,)], top_logprobs=1))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


# -- engines around another


async def test_an_engine_around_another_counts_what_a_search_costs():
    made = {token: Generation([token + 1], "length", usage=Usage(1, 0, 2, 1)) for token in (1, 5)}
    engine = Answering({**made, 7: EngineFailed("it broke", Usage(0, 4, 0, 1))})
    for name in ("name", "tokenizer", "thinking", "capabilities", "end_ids", "context_length", "default_sampling"):
        setattr(engine, name, None)

    spent = Usage()
    counted = CountedEngine(engine, spent.add)
    assert await counted.next_tokens([1], [(5,), ()], top_logprobs=2) == [made[5], made[1]]
    assert spent == Usage(2, 0, 4, 2)
    with pytest.raises(EngineFailed):
        await counted.next_tokens([1], [(5,), (7,)], top_logprobs=2)
    assert spent == Usage(3, 4, 6, 4)

    meter = Meter(3)
    metered = MeteredEngine(engine, meter)
    for _ in range(2):
        await metered.next_tokens([1], [(5,), ()], top_logprobs=2)
    assert meter.spent == 4
    with pytest.raises(EngineError, match="this server allows 3"):
        await metered.next_tokens([1], [()], top_logprobs=2)

    engine.asked.clear()
    remembering = RememberingEngine(engine)
    for _ in range(3):
        found = await remembering.next_tokens([1], [(5,), ()], top_logprobs=2)
        assert found == [made[5], made[1]]
        found[0].ids.append(9)  # is the caller's own
    assert len(engine.asked) == 2
    assert (remembering.generated, remembering.recalled) == (2, 4)
    await remembering.next_tokens([1], [(5,), ()], top_logprobs=3)
    assert len(engine.asked) == 4
