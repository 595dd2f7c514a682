"""Trees of branches against plain passes over each branch's own sequence, whatever grows beside it."""

import asyncio
import random
from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from satisfice.engines.base import Capability, Child, Engine, EngineClosed, EngineError, Sampling, TokenTree, Usage
from satisfice.engines.kv import RowCache
from satisfice.engines.transformers import TransformersEngine
from satisfice.engines.tree import FIRST_SLOTS

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=24)
SAMPLED = Sampling(temperature=0.9, top_p=0.95, max_tokens=40, seed=5)
HEAT = 0.6
near = pytest.approx


def tokens(length, seed=0, vocabulary=190):
    """Random token ids, none of them special."""
    generator = random.Random(f"{length} {seed}")
    return [generator.randrange(8, vocabulary) for _ in range(length)]


def open_tree(engine, prompt, sampling=SAMPLED, top=3):
    return engine.tree(prompt, sampling, top=top, entropy_temperature=HEAT)


async def grow(tree: TokenTree, steps: int, seed: int = 0, most: int = 6, look=None):
    """Grow a tree at random: some branches fork, some end. The sequences of the leaves, and the leaves.

    `look` is called with both after every step.
    """
    dice = random.Random(seed)
    branches, leaves = [[]], [tree.root]
    for _ in range(steps):
        children, sequences = [], []
        for place, (ids, leaf) in enumerate(zip(branches, leaves, strict=True)):
            fate = dice.random()
            following = [leaf.sampled]
            if fate < 0.3:
                following = list(leaf.top)[: 1 + dice.randrange(len(leaf.top))]
            elif fate < 0.45 and (children or place < len(branches) - 1):
                following = []
            for token in following:
                children.append(Child(place, token, dice.randrange(1000)))
                sequences.append([*ids, token])
        kept = sorted(dice.sample(range(len(children)), min(most, len(children))))
        children, branches = [children[place] for place in kept], [sequences[place] for place in kept]
        leaves = await tree.advance(children)
        if look:
            look(branches, leaves)
    return branches, leaves


@torch.inference_mode()
def assert_like_a_plain_pass(model, prompt, branches, leaves, tolerance=1e-4):
    """Every leaf says what one pass over its branch's own sequence says."""
    for ids, leaf in zip(branches, leaves, strict=True):
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
        distribution = torch.log_softmax(logits, dim=-1)
        warm = torch.log_softmax(logits.double() / HEAT, dim=-1)
        entropy = -(warm.exp() * warm).sum()
        varentropy = (warm.exp() * (-warm - entropy) ** 2).sum()
        assert leaf.entropy == near(entropy.item(), abs=tolerance)
        assert leaf.varentropy == near(varentropy.item(), abs=10 * tolerance)
        assert list(leaf.top.values()) == near(distribution.topk(3).values.tolist(), abs=tolerance)
        assert list(leaf.top.values()) == near(distribution[list(leaf.top)].tolist(), abs=tolerance)
        assert leaf.sampled_logprob == near(distribution[leaf.sampled].item(), abs=tolerance)


def unique_tokens(prompt, branches):
    """How many tokens some branches have in all, those of common beginnings counted once."""
    return len(prompt) + len({tuple(ids[:end]) for ids in branches for end in range(1, len(ids) + 1)})


# -- the numbers


async def test_every_branch_is_what_a_plain_pass_over_it_gives(make_engine, tiny_model):
    prompt, widths = tokens(25), []

    def look(branches, leaves):
        widths.append(len(branches))
        assert_like_a_plain_pass(tiny_model, prompt, branches, leaves)

    async with open_tree(make_engine(), prompt) as tree:
        assert_like_a_plain_pass(tiny_model, prompt, [[]], [tree.root])
        await grow(tree, 30, look=look)
    assert max(widths) == 6
    assert widths != sorted(widths)  # branches ended, too


async def test_a_leaf_agrees_with_score(make_engine):
    engine, prompt = make_engine(), tokens(20)
    async with engine.tree(prompt, SAMPLED, top=3, entropy_temperature=1.0) as tree:
        branches, leaves = await grow(tree, 12)
    for ids, leaf in zip(branches, leaves, strict=True):
        scores = await engine.score([*prompt, *ids, leaf.sampled], len(prompt) + len(ids))
        assert leaf.sampled_logprob == near(scores.logprobs[0], abs=1e-4)
        assert leaf.entropy == near(scores.entropies[0], abs=1e-4)


ARCHITECTURES = {
    "sliding window": (MistralForCausalLM, MistralConfig, {"sliding_window": 16}),
    "two rotations": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "eager attention with sinks": (
        GptOssForCausalLM,
        GptOssConfig,
        {"sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_scaling": None},
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_other_kinds_of_attention(make_engine, tiny_config, architecture):
    kind, config, options = ARCHITECTURES[architecture]
    torch.manual_seed(1)
    model = kind(config(**{**tiny_config, **options})).eval()
    prompt = tokens(21)
    async with open_tree(make_engine(model), prompt) as tree:
        # Longer than the window, and with ends, so that slots are not in the order of depth.
        branches, leaves = await grow(tree, 24)
        assert_like_a_plain_pass(model, prompt, branches, leaves)


async def test_equally_likely_tokens_come_by_id(make_engine, tiny_model, monkeypatch):
    forward = tiny_model.forward

    def flat(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits.clone()
        output.logits[..., [90, 30, 60]] = 100.0
        return output

    monkeypatch.setattr(tiny_model, "forward", flat)
    async with open_tree(make_engine(), tokens(5)) as tree:
        assert list(tree.root.top) == [30, 60, 90]
        assert tree.root.entropy == near(torch.tensor(3.0).log().item())
        assert tree.root.varentropy == near(0, abs=1e-6)


# -- one branch is what generate writes


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, replace(SAMPLED, top_p=1.0, top_k=7, seed=2**70 + 1)], ids=str)
async def test_a_tree_that_never_branches_writes_what_generate_writes(make_engine, sampling):
    sampling = replace(sampling, ignore_eos=True)
    prompt = tokens(18)
    async with open_tree(make_engine(), prompt, sampling) as tree:
        ids, leaf = [], tree.root
        for _ in range(sampling.max_tokens - 1):
            ids.append(leaf.sampled)
            [leaf] = await tree.advance([Child(0, leaf.sampled, sampling.seed)])
    written = await make_engine().generate(prompt, sampling, top_logprobs=1)
    assert [*ids, leaf.sampled] == written.ids
    assert leaf.sampled_logprob == near(written.logprobs[-1], abs=1e-4)
    assert tree.usage == replace(written.usage, generated=len(written.ids) - 1)


async def test_a_branch_draws_by_its_own_seed(make_engine):
    engine, prompt = make_engine(), tokens(18)
    async with open_tree(engine, prompt) as tree:
        fork = tree.root.sampled
        leaves = await tree.advance([Child(0, fork, seed) for seed in (5, 6, 7)])
        branches = [[fork] for _ in leaves]
        for _ in range(20):
            for ids, leaf in zip(branches, leaves, strict=True):
                ids.append(leaf.sampled)
            children = [Child(place, ids[-1], 5 + place) for place, ids in enumerate(branches)]
            leaves = await tree.advance(children)
    sampling = replace(SAMPLED, max_tokens=20, ignore_eos=True)
    for place, ids in enumerate(branches):
        written = await engine.generate([*prompt, fork], replace(sampling, seed=5 + place))
        assert ids[1:] == written.ids
    assert len({tuple(ids) for ids in branches}) == 3


# -- memory


async def test_a_slot_is_one_unique_token_of_a_living_branch(make_engine, tiny_model):
    engine, prompt, used = make_engine(max_batch=1), tokens(30), []

    def look(branches, leaves):
        [tree] = engine._forest.trees
        assert tree.unique == unique_tokens(prompt, branches)
        assert torch.equal(tree.seen, tree.sight(tree.leaves))
        assert tree.seen.sum(-1).tolist() == [len(prompt) + len(ids) for ids in branches]
        used.append((tree.unique, len(tree.tokens), sum(len(ids) for ids in branches)))

    async with open_tree(engine, prompt) as tree:
        await grow(tree, 39, look=look)
        most = max(unique for unique, _, _ in used)
        # What was released is used again before there is anything new.
        assert used[-1][1] == most < len(prompt) + tree.usage.generated
        assert engine._forest.held == FIRST_SLOTS >= most
        assert most < len(prompt) + max(tokens for _, _, tokens in used)


async def test_memory_grows_with_unique_tokens_not_with_branches_times_length(make_engine):
    engine, prompt = make_engine(), tokens(200)
    async with open_tree(engine, prompt) as tree:
        leaves = [tree.root]
        for _ in range(3):  # 27 branches that share all but three tokens
            children = [Child(place, token, 0) for place, leaf in enumerate(leaves) for token in leaf.top]
            leaves = await tree.advance(children)
        assert len(leaves) == 27
        assert engine._forest.trees[0].unique == 200 + 3 + 9 + 27
        assert engine._forest.held == 2 * FIRST_SLOTS


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited too long")


async def test_leaving_frees_everything(make_engine):
    engine = make_engine()
    async with open_tree(engine, tokens(30)) as tree:
        await grow(tree, 5)
        assert engine._forest.held
    await until(lambda: not engine._forest.trees)
    # Room that nobody uses is taken by whoever needs it.
    assert engine._forest.give_way()
    assert engine._forest.held == 0
    assert not engine._forest.give_way()


async def test_a_cancelled_task_frees_its_tree_and_leaves_the_others_alone(make_engine, tiny_model):
    engine, started = make_engine(max_batch=2), asyncio.Event()

    async def endless():
        async with open_tree(engine, tokens(10), replace(SAMPLED, max_tokens=900)) as tree:
            leaves = [tree.root]
            while True:
                leaves = await tree.advance([Child(0, leaves[0].sampled, 1)])
                started.set()

    async def other():
        async with open_tree(engine, tokens(33)) as tree:
            return await grow(tree, 25)

    task, beside = asyncio.create_task(endless()), asyncio.create_task(other())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    branches, leaves = await asyncio.wait_for(beside, 20)
    assert_like_a_plain_pass(tiny_model, tokens(33), branches, leaves)
    await until(lambda: not engine._forest.trees)


# -- several trees


async def whole(engine, prompt, steps, seed):
    async with open_tree(engine, prompt, replace(SAMPLED, max_tokens=60, seed=seed)) as tree:
        return (*await grow(tree, steps, seed), tree.usage)


def plans():
    return [(tokens(12 + 9 * number, number), 8 + 5 * number, number) for number in range(6)]


def assert_same(results, expected):
    for (branches, leaves, _), (other_branches, other_leaves, _) in zip(results, expected, strict=True):
        assert branches == other_branches
        assert [leaf.sampled for leaf in leaves] == [leaf.sampled for leaf in other_leaves]
        assert [leaf.entropy for leaf in leaves] == near([leaf.entropy for leaf in other_leaves], abs=1e-4)


@pytest.fixture(scope="module")
def one_by_one(tiny_model, tokenizer):
    """What each of `plans` gives on an engine that has nothing else to do and nothing stored."""
    engine = TransformersEngine(tiny_model, tokenizer, max_batch=1, max_batch_tokens=4096, max_cached_tokens=0)

    async def grown():
        return [await whole(engine, *plan) for plan in plans()]

    yield asyncio.run(grown())
    engine.close()


@pytest.mark.parametrize("options", [{}, {"max_batch": 2}, {"max_batch": 4, "max_cached_tokens": 0}], ids=str)
async def test_trees_beside_each_other_grow_as_they_would_alone(make_engine, one_by_one, options):
    engine = make_engine(**options)
    results = await asyncio.gather(*(whole(engine, *plan) for plan in plans()))
    assert_same(results, one_by_one)
    for (_, _, usage), (_, _, alone) in zip(results, one_by_one, strict=True):
        assert usage == alone


async def test_open_trees_share_forward_passes(make_engine, tiny_model, monkeypatch):
    engine, passes, forward = make_engine(), [], tiny_model.forward

    def counted(*args, **kwargs):
        passes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", counted)
    monkeypatch.setattr("satisfice.engines.transformers.GATHERING", 1.0)
    entered, count = asyncio.Event(), 0

    async def one(number):
        nonlocal count
        async with open_tree(engine, tokens(20, number)) as tree:
            count += 1
            if count == 4:
                entered.set()
            await entered.wait()
            leaves = await tree.advance([Child(0, token, 0) for token in list(tree.root.top)[: 1 + number % 2]])
            for _ in range(9):
                children = [Child(place, leaf.sampled, 0) for place, leaf in enumerate(leaves)]
                leaves = await tree.advance(children)

    await asyncio.gather(*(one(number) for number in range(4)))
    assert passes[-10:] == [(4, 2)] * 10


async def test_a_pass_holds_no_more_branches_than_it_may(make_engine, tiny_model, one_by_one, monkeypatch):
    monkeypatch.setattr("satisfice.engines.tree.STEP_BRANCHES", 8)
    engine, widest, forward = make_engine(), [], tiny_model.forward

    def counted(*args, **kwargs):
        if kwargs["logits_to_keep"] == 0:
            widest.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", counted)
    assert_same(await asyncio.gather(*(whole(engine, *plan) for plan in plans())), one_by_one)
    assert max(widest) <= 8


async def test_trees_beside_ordinary_requests(make_engine, one_by_one):
    engine = make_engine()
    sampling = replace(SAMPLED, max_tokens=30, ignore_eos=True)
    alone = [(await make_engine().generate(tokens(30, n), replace(sampling, seed=n))).ids for n in range(5)]
    grown, *written = await asyncio.gather(
        asyncio.gather(*(whole(engine, *plan) for plan in plans())),
        *(engine.generate(tokens(30, n), replace(sampling, seed=n)) for n in range(5)),
    )
    assert_same(grown, one_by_one)
    assert [generation.ids for generation in written] == alone


async def test_a_prompt_is_computed_once(make_engine):
    engine, prompt = make_engine(), tokens(40)
    await engine.generate(prompt, replace(GREEDY, max_tokens=1))
    async with open_tree(engine, prompt) as tree, open_tree(engine, [*prompt, *tokens(9)]) as longer:
        assert tree.usage == Usage(cached=39, forward_passes=1)
        assert longer.usage == Usage(prefilled=8, cached=40, forward_passes=2)
    # And what a tree has computed of it is there for others.
    again = await engine.generate([*prompt, *tokens(9)], replace(GREEDY, max_tokens=1))
    assert again.usage.prefilled == 0


async def test_a_prompt_longer_than_a_chunk(make_engine, tiny_model, monkeypatch):
    monkeypatch.setattr("satisfice.engines.transformers.PREFILL_CHUNK", 16)
    prompt = tokens(55)
    async with open_tree(make_engine(), prompt) as tree:
        assert_like_a_plain_pass(tiny_model, prompt, [[]], [tree.root])
        assert tree.usage.forward_passes == 5


# -- too little room


@pytest.mark.parametrize("options", [{"max_cached_tokens": 0}, {"max_cached_tokens": 200}], ids=str)
async def test_trees_that_had_to_give_way_go_on_as_if_nothing_had_happened(make_engine, one_by_one, options):
    engine = make_engine(max_batch_tokens=260, **options)
    results = await asyncio.wait_for(asyncio.gather(*(whole(engine, *plan) for plan in plans())), 60)
    assert_same(results, one_by_one)
    paid = [usage.prefilled + usage.cached for _, _, usage in results]
    assert paid != [usage.prefilled for _, _, usage in one_by_one]
    assert engine._forest.held <= 260


async def test_a_tree_and_ordinary_requests_share_the_room(make_engine, one_by_one):
    engine, most = make_engine(max_batch_tokens=260, max_cached_tokens=0), 0
    sampling = replace(SAMPLED, max_tokens=60, ignore_eos=True)
    resize = RowCache.resize

    def watched(cache, rows, length):
        nonlocal most
        resize(cache, rows, length)
        most = max(most, engine._forest.held + engine._rows.held)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowCache, "resize", watched)
        grown, *written = await asyncio.wait_for(
            asyncio.gather(
                asyncio.gather(*(whole(engine, *plan) for plan in plans())),
                *(engine.generate(tokens(30, n), replace(sampling, seed=n)) for n in range(3)),
            ),
            60,
        )
    assert_same(grown, one_by_one)
    roomy = make_engine()
    for number, generation in enumerate(written):
        alone = await roomy.generate(tokens(30, number), replace(sampling, seed=number))
        assert generation.ids == alone.ids
    assert 200 < most <= 260


async def test_a_request_is_served_while_an_idle_tree_holds_all_the_room(make_engine, tiny_model):
    engine, prompt = make_engine(max_batch_tokens=120), tokens(40)
    async with open_tree(engine, prompt) as tree:
        branches, leaves = await grow(tree, 8)
        sampling = replace(GREEDY, max_tokens=60, ignore_eos=True)
        written = await asyncio.wait_for(engine.generate(tokens(50), sampling), 20)
        assert len(written.ids) == 60
        children = [Child(place, leaf.sampled, 0) for place, leaf in enumerate(leaves)]
        following = await tree.advance(children)
    branches = [[*ids, leaf.sampled] for ids, leaf in zip(branches, leaves, strict=True)]
    assert_like_a_plain_pass(tiny_model, prompt, branches, following)
    assert tree.usage.prefilled + tree.usage.cached > len(prompt)


async def test_a_tree_waits_for_older_ones_but_not_for_ever(make_engine, tiny_model, monkeypatch):
    monkeypatch.setattr("satisfice.engines.tree.PATIENCE", 0.3)
    engine = make_engine(max_batch_tokens=115, max_cached_tokens=0)
    async with open_tree(engine, tokens(70)) as older:
        [leaf] = await older.advance([Child(0, older.root.sampled, 0)])
        entered = asyncio.create_task(open_tree(engine, tokens(50)).__aenter__())
        for _ in range(10):
            [leaf] = await older.advance([Child(0, leaf.sampled, 0)])
            assert not entered.done()
        assert older.usage.prefilled == 69  # it was not disturbed
        newer = await asyncio.wait_for(entered, 20)  # it asked for nothing any more, and so gave way
        await newer.__aexit__()
        await older.advance([Child(0, leaf.sampled, 0)])
        assert older.usage.prefilled == 69 + 81
    assert_like_a_plain_pass(tiny_model, tokens(50), [[]], [newer.root])


async def test_a_tree_too_large_for_the_engine_says_what_to_change(make_engine):
    engine = make_engine(max_batch_tokens=100)

    async def endless():
        async with open_tree(engine, tokens(40)) as tree:
            leaves = [tree.root]
            while True:
                children = [Child(place, token, 0) for place, leaf in enumerate(leaves) for token in leaf.top]
                leaves = await tree.advance(children)

    message = (
        r"^a tree of 160 tokens exceeds the max_batch_tokens of tiny, 100: let fewer branches live at once, lower "
        r"max_tokens, or raise max_batch_tokens$"
    )
    with pytest.raises(EngineError, match=message):
        await asyncio.wait_for(endless(), 20)
    # And nobody else is hurt.
    assert len((await engine.generate(tokens(40), replace(GREEDY, ignore_eos=True))).ids) == 24


# -- what goes wrong


async def test_closing_answers_the_owners_of_trees(make_engine):
    engine = make_engine()
    tree = open_tree(engine, tokens(10), replace(SAMPLED, max_tokens=900))

    async def endless():
        async with tree:
            leaves = [tree.root]
            while True:
                leaves = await tree.advance([Child(0, leaves[0].sampled, 1)])

    task = asyncio.create_task(endless())
    await until(lambda: tree.usage.generated > 3)
    await asyncio.to_thread(engine.close)
    with pytest.raises(EngineClosed, match=r"tiny (is|was) closed"):
        await asyncio.wait_for(task, 5)
    with pytest.raises(EngineError, match=r"^tiny is closed$"):
        async with open_tree(engine, tokens(10)):
            pass


async def test_what_goes_wrong_in_the_model_reaches_the_owners_of_trees(make_engine, tiny_model, monkeypatch):
    engine, passes, forward = make_engine(), [], tiny_model.forward

    def broken(*args, **kwargs):
        passes.append(1)
        if len(passes) == 12:
            raise RuntimeError("the device is gone")
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", broken)
    results = await asyncio.wait_for(
        asyncio.gather(*(whole(engine, *plan) for plan in plans()), return_exceptions=True), 20
    )
    failed = [result for result in results if isinstance(result, Exception)]
    assert failed
    assert {str(failure) for failure in failed} == {"tiny failed: RuntimeError: the device is gone"}
    branches, leaves, _ = await whole(engine, *plans()[0])
    assert_like_a_plain_pass(tiny_model, plans()[0][0], branches, leaves)


async def test_bad_steps_are_refused_and_the_tree_goes_on(make_engine, tokenizer):
    size = len(tokenizer)
    async with open_tree(make_engine(), tokens(10), replace(SAMPLED, max_tokens=2)) as tree:
        for children, message in (
            ([], "a tree needs at least one branch to go on with"),
            ([Child(1, 9, 0)], "parent 1 is none of the 1 leaves that the tree gave last"),
            ([Child(-1, 9, 0)], "parent -1 is none of the 1 leaves"),
            ([Child(0, size, 0)], rf"token id {size} is not in the vocabulary, 0\.\.{size - 1}"),
        ):
            with pytest.raises(EngineError, match=message):
                await tree.advance(children)
        await tree.advance([Child(0, 9, 0)])
        await tree.advance([Child(0, 9, 0)])
        with pytest.raises(EngineError, match="the branches have 2 tokens, which is the max_tokens of their tree"):
            await tree.advance([Child(0, 9, 0)])
    with pytest.raises(EngineError, match="parent 0 is none of the 0 leaves"):
        await tree.advance([Child(0, 9, 0)])


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        ([], {}, "a prompt needs at least one token"),
        ([5, -1], {}, "token id -1 is not in the vocabulary"),
        (tokens(1000), {"max_tokens": 25}, "exceed the context length of tiny, 1024: lower max_tokens to 24"),
        ([5], {"top": 0}, r"top is 0; it must be within 1\.\."),
        ([5], {"heat": 0.0}, "entropy_temperature is 0.0; it must be above 0"),
    ],
    ids=str,
)
def test_trees_that_cannot_be_are_refused(make_engine, prompt, changes, message):
    sampling = replace(SAMPLED, max_tokens=changes.get("max_tokens", 10))
    with pytest.raises(EngineError, match=message):
        make_engine().tree(prompt, sampling, top=changes.get("top", 3), entropy_temperature=changes.get("heat", HEAT))


def test_an_engine_without_trees_says_so(make_engine):
    engine = make_engine()
    assert Capability.TREE in engine.capabilities
    with pytest.raises(EngineError, match=r"^tiny grows no trees of branches$"):
        Engine.tree(engine, [5], SAMPLED, top=3, entropy_temperature=HEAT)
