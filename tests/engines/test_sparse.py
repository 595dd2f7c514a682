"""Sparse decoding against a plain loop that reads what the definition says, whatever runs beside it."""

import asyncio
import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import (
    AttentionInterface,
    DynamicCache,
    GPTJConfig,
    GPTJForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from satisfice.attention import Attention
from satisfice.engines import sparse
from satisfice.engines.base import Capability, EngineError, EngineFailed, Sampling, require
from satisfice.engines.loading import load_engine
from satisfice.engines.sparse import DENSE, SEAM, WRITTEN, reusable
from satisfice.engines.transformers import TransformersEngine

MODELS = {
    "llama, grouped": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, one head a query": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
}
KINDS = [
    "local:budget=12",
    "local:budget=12,sinks=3",
    "local:budget=1",
    "block-topk:budget=12,block=4",
    "block-topk:budget=16,block=4,recent=8",
    "block-topk:budget=10,block=5",
    "block-topk:budget=8,block=1",
]
LOCAL, BLOCKS = "local:budget=12,sinks=3", "block-topk:budget=12,block=4"
GREEDY = Sampling(temperature=0.0, max_tokens=30, ignore_eos=True)


def tokens(length, seed=0):
    generator = random.Random(f"{length} {seed}")
    return [generator.randrange(8, 60) for _ in range(length)]


@pytest.fixture(scope="module")
def models(tiny_config):
    made = {}
    for name, (kind, config, changes) in MODELS.items():
        torch.manual_seed(3)
        made[name] = kind(config(**{**tiny_config, **changes})).eval()
    return made


@pytest.fixture
def decoding(make_engine, models):
    """An engine over one of the models that decodes by an attention."""

    def make(attention, model="llama, grouped", **options):
        return make_engine(models[model], attention=Attention.parse(attention), **options)

    return make


# -- the definition, as a loop


def read(attention, queries, keys):
    """The places that a step reads: (G, D) queries that share (L, D) keys, the step's own last."""
    length, budget = len(keys), attention.budget
    if length <= budget:
        return list(range(length))
    if attention.kind == "local":
        return [*range(attention.sinks), *range(length - (budget - attention.sinks), length)]
    blocks = [range(start, min(start + attention.block, length)) for start in range(0, length, attention.block)]
    always = attention.recent // attention.block
    older, newest = blocks[:-always], blocks[-always:]

    def score(block):
        mean = keys[list(block)].mean(0)
        return sum(float(query @ mean) / len(mean) ** 0.5 for query in queries) / len(queries)

    best = sorted(older, key=score, reverse=True)[: budget // attention.block - always]
    return sorted(place for block in [*best, *newest] for place in block)


def reference(model, attention, prompt, count):
    """Greedy tokens and their log-probabilities: a dense prefill, then one token a step, one head at a time."""

    def attend(module, query, key, value, mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        output = torch.zeros(1, 1, query.shape[1], value.shape[-1])
        for head in range(key.shape[1]):
            own = query[0, head * groups : (head + 1) * groups, 0]
            places = read(attention, own, key[0, head])
            for index, each in enumerate(own):
                weights = torch.softmax(key[0, head, places] @ each * scaling, dim=0)
                output[0, 0, head * groups + index] = weights @ value[0, head, places]
        return output, None

    AttentionInterface.register("reference", attend)
    model, cache, ids, logprobs = deepcopy(model), DynamicCache(), list(prompt), []
    with torch.inference_mode():
        model.set_attn_implementation("sdpa")
        if prompt[:-1]:
            model(torch.tensor([prompt[:-1]]), past_key_values=cache)
        model.set_attn_implementation("reference")
        for _ in range(count):
            logits = model(torch.tensor([ids[-1:]]), past_key_values=cache).logits[0, -1]
            distribution = torch.log_softmax(logits, dim=-1)
            ids.append(int(distribution.argmax()))
            logprobs.append(float(distribution.max()))
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
async def test_a_step_reads_what_the_definition_says(decoding, models, model, kind):
    engine = decoding(kind, model)
    prompts = [tokens(length) for length in (1, 3, 11, 12, 13, 30)]
    results = await asyncio.gather(*(engine.generate(prompt, GREEDY, top_logprobs=1) for prompt in prompts))
    for prompt, result in zip(prompts, results, strict=True):
        ids, logprobs = reference(models[model], Attention.parse(kind), prompt, 30)
        assert result.ids == ids
        assert result.logprobs == pytest.approx(logprobs, abs=1e-3)


# -- budgets at their edges


@pytest.mark.parametrize("kind", ["local:budget={}", "local:budget={},sinks=5", "block-topk:budget={},block=1"])
async def test_a_budget_of_the_whole_context_is_dense_to_the_last_bit_and_one_less_is_not(make_engine, decoding, kind):
    prompt, length = tokens(20), 20 + 30 - 1  # what the last step reads, its own token included

    async def written(budget):
        engine = decoding("dense" if budget is None else kind.format(budget))
        return await engine.generate(prompt, GREEDY, top_logprobs=1)

    dense, whole, less = [await written(budget) for budget in (None, length, length - 1)]
    assert (whole.ids, whole.logprobs) == (dense.ids, dense.logprobs)
    assert less.logprobs[:-1] == dense.logprobs[:-1]
    assert less.logprobs[-1] != dense.logprobs[-1]


async def test_a_row_within_the_budget_is_dense_beside_rows_that_are_not(decoding):
    short, long = tokens(4), tokens(80)
    sampling = replace(GREEDY, max_tokens=12)
    dense = await decoding("dense").generate(short, sampling, top_logprobs=1)
    for kind in ("local:budget=15", "block-topk:budget=16,block=4"):
        engine = decoding(kind)
        result, _ = await asyncio.gather(
            engine.generate(short, sampling, top_logprobs=1), engine.generate(long, GREEDY)
        )
        assert result.ids == dense.ids
        assert result.logprobs == pytest.approx(dense.logprobs, abs=1e-4)


# -- whatever runs beside it


async def by_themselves(decoding, kind, prompts):
    """What each prompt gives on an engine that has nothing else to do and nothing stored."""
    engine = decoding(kind, max_batch=1, max_cached_tokens=0)
    return [await engine.generate(prompt, GREEDY, top_logprobs=1) for prompt in prompts]


def assert_same(results, expected):
    assert [result.ids for result in results] == [result.ids for result in expected]
    for result, alone in zip(results, expected, strict=True):
        assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch": 3},
        {"max_batch": 6, "max_batch_tokens": 160, "max_cached_tokens": 0},
        {"max_batch": 6, "max_batch_tokens": 160},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [LOCAL, BLOCKS])
async def test_a_crowd_changes_nothing_nor_does_giving_way(decoding, kind, options):
    head = tokens(18, 5)
    prompts = [head, [*head, 9, 10], tokens(40), tokens(2), [*head[:9], 11], tokens(25)]
    expected = await by_themselves(decoding, kind, prompts)
    engine = decoding(kind, **options)
    with engine._wake:
        tasks = [asyncio.create_task(engine.generate(prompt, GREEDY, top_logprobs=1)) for prompt in prompts]
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks)
    assert_same(results, expected)
    positions = sum(result.usage.prefilled + result.usage.cached for result in results)
    gave_way = positions > sum(len(prompt) - 1 for prompt in prompts)
    assert gave_way == ("max_batch_tokens" in options)
    if options.get("max_cached_tokens") == 0 and gave_way:  # what was lost is computed again, and was written sparsely
        assert sum(result.usage.prefilled for result in results) > sum(len(prompt) - 1 for prompt in prompts) // 2


@pytest.mark.parametrize("kind", [LOCAL, BLOCKS])
async def test_a_prompt_is_read_densely_also_where_decoding_steps_take_it_in(decoding, monkeypatch, kind):
    prompts = [tokens(40), tokens(20, 1), tokens(33, 2)]
    expected = await by_themselves(decoding, kind, prompts)
    engine = decoding(kind)
    monkeypatch.setattr(engine, "_stepwise", lambda wave: True)
    results = await asyncio.gather(*(engine.generate(prompt, GREEDY, top_logprobs=1) for prompt in prompts))
    assert [result.usage.forward_passes for result in results] == [len(prompt) - 1 + 30 for prompt in prompts]
    assert_same(results, expected)


@pytest.mark.parametrize("kind", [LOCAL, BLOCKS])
async def test_a_chain_that_is_stopped_probed_scored_and_resumed_equals_an_uninterrupted_one(decoding, kind):
    prompt = tokens(20)
    whole = await decoding(kind).generate(prompt, replace(GREEDY, max_tokens=60), top_logprobs=1)
    engine, written, logprobs = decoding(kind), [], []
    for step in (1, 1, 2, 16, 40):
        part = await engine.generate([*prompt, *written], replace(GREEDY, max_tokens=step), top_logprobs=1)
        written += part.ids
        logprobs += part.logprobs
        await engine.score([*prompt, *written], len(prompt))
        await engine.generate([*prompt, *written, 11, 12, 13], replace(GREEDY, max_tokens=9))
    assert written == whole.ids
    assert logprobs == pytest.approx(whole.logprobs, abs=1e-3)


@pytest.mark.parametrize("kind", [LOCAL, BLOCKS])
async def test_a_prompt_beyond_where_another_began_to_write_does_not_depend_on_it(decoding, kind):
    prompt = tokens(40)
    engine = decoding(kind)
    first = await engine.generate(prompt, GREEDY)
    longer = [*prompt, *(token for token in tokens(6, 7) if token != first.ids[0])]
    (alone,) = await by_themselves(decoding, kind, [longer])
    result = await engine.generate(longer, GREEDY, top_logprobs=1)
    assert_same([result], [alone])
    assert result.usage.cached == len(prompt) - 1


async def test_scores_and_divergences_are_dense_whatever_was_written(decoding, models):
    prompt = tokens(30)
    engine = decoding(BLOCKS)
    written = (await engine.generate(prompt, GREEDY)).ids
    ids = [*prompt, *written]
    with torch.inference_mode():
        plain = torch.log_softmax(models["llama, grouped"](torch.tensor([ids])).logits[0], dim=-1)
    for start in (len(prompt), len(ids) - 4):
        found = await engine.score(ids, start)
        wanted = [float(plain[place - 1, ids[place]]) for place in range(start, len(ids))]
        assert found.logprobs == pytest.approx(wanted, abs=1e-4)
        assert found.usage.cached <= len(prompt) - 1
    dense, found = [
        await each.divergences(ids, [[*prompt[:3], *ids]], tokens(5, 1)) for each in (decoding("dense"), engine)
    ]
    assert found.values[0] == pytest.approx(dense.values[0], abs=1e-4)


async def test_a_dense_engine_over_the_same_model_stays_dense(decoding):
    prompt = tokens(40)
    before = await decoding("dense").generate(prompt, GREEDY, top_logprobs=1)
    engine = decoding(LOCAL)
    both = await asyncio.gather(
        engine.generate(prompt, GREEDY, top_logprobs=1), decoding("dense").generate(prompt, GREEDY, top_logprobs=1)
    )
    assert (both[1].ids, both[1].logprobs) == (before.ids, before.logprobs)
    assert both[0].logprobs != before.logprobs


def test_what_may_be_taken_over():
    made = bytes([DENSE, DENSE, SEAM, WRITTEN, WRITTEN, DENSE, SEAM, WRITTEN])
    cases = {
        # (shared, tokens of the prompt, scoring, goes_on): taken over
        (8, 20, False, False): 8,  # a prompt, as it is found
        (7, 20, False, True): 7,  # it goes on as was written
        (7, 20, False, False): 6,  # it does not: the seam was not written for it
        (3, 4, False, False): 2,
        (3, 3, False, False): 3,  # its own seam
        (8, 3, False, False): 5,  # it wrote the rest itself, sparsely
        (8, 6, False, False): 5,
        (2, 20, False, False): 2,
        (0, 5, False, False): 0,
        (8, 0, True, False): 2,  # a score
        (1, 0, True, True): 1,
    }
    for (shared, prompt, scoring, goes_on), taken in cases.items():
        assert reusable(made, shared, prompt, scoring=scoring, goes_on=goes_on) == taken, (shared, prompt, goes_on)


# -- what is refused


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("top-k:budget=8", "which is a bound and no method: to decode like it, say block-topk:block=1"),
        ("block-topk:budget=8,block=16", "no whole number of blocks: use a budget of 16"),
        ("block-topk:budget=40,block=16", "use a budget of 32 or 48"),
        ("block-topk:budget=16,block=16", "leaves no block to choose: use a budget of at least 32"),
    ],
)
def test_an_attention_that_cannot_be_decoded_with_is_refused(decoding, kind, said):
    with pytest.raises(EngineError, match=said):
        decoding(kind)


def test_models_of_another_attention_are_refused(make_engine, tiny_config):
    windows = MistralForCausalLM(MistralConfig(**{**tiny_config, "sliding_window": 16}))
    own = GPTJForCausalLM(GPTJConfig(vocab_size=200, n_embd=32, n_layer=2, n_head=4, rotary_dim=4))
    sinks = GptOssForCausalLM(
        GptOssConfig(**{**tiny_config, "num_local_experts": 2, "layer_types": ["full_attention"] * 2})
    )
    for model, said in (
        (windows, "tiny has layers with sliding windows"),
        (own, "tiny (does not let its attention be replaced|computes attention by eager, which cannot be replaced)"),
        (sinks, "tiny computes attention by eager, which cannot be replaced"),
    ):
        with pytest.raises(EngineError, match=said):
            make_engine(model, attention=Attention("local", 8))


def test_a_model_that_goes_around_its_attention_or_hands_more_to_it_is_refused(make_engine, models, monkeypatch):
    model = deepcopy(models["llama, grouped"])
    model.set_attn_implementation("sdpa")
    monkeypatch.setattr(model.config, "num_hidden_layers", 3)
    with pytest.raises(EngineError, match="does not let its attention be replaced"):
        make_engine(model, attention=Attention("local", 8))
    assert model.config._attn_implementation == "sdpa"
    model = deepcopy(models["llama, grouped"])
    monkeypatch.setattr(sparse, "_BEYOND", ("scaling",))
    with pytest.raises(EngineError, match="its layers have scaling"):
        make_engine(model, attention=Attention("local", 8))


async def test_an_attention_that_is_replaced_meanwhile_is_a_failure_and_no_result(make_engine, models):
    model = deepcopy(models["llama, grouped"])
    engine = make_engine(model, attention=Attention("local", 8))
    assert len((await engine.generate(tokens(20), GREEDY)).ids) == 30
    model.set_attn_implementation("sdpa")
    with pytest.raises(
        EngineFailed, match="attention of tiny was replaced while it ran; give the engine a model of its own"
    ):
        await engine.generate(tokens(20), GREEDY)


def test_there_are_no_trees(decoding):
    engine = decoding(LOCAL)
    with pytest.raises(EngineError, match=r"tree: branches of a tree do not read by local.*leave --attention out"):
        require(engine, frozenset({Capability.TREE}), "decoding-tree")
    with pytest.raises(EngineError, match="grows no trees"):
        engine.tree(tokens(5), GREEDY, top=1, entropy_temperature=1.0)
    assert Capability.TREE in decoding("dense").capabilities


@pytest.mark.parametrize("engine", ["vllm", "openai"])
def test_engines_that_cannot_are_named(engine):
    with pytest.raises(EngineError, match=f"--attention goes with --engine transformers, not with {engine}"):
        load_engine(engine, "x", attention="local:budget=8", base_url=None)


def test_it_is_loaded_by_name(tiny_model, tokenizer, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = TransformersEngine.load(str(tmp_path), attention="local:budget=8")
    assert engine.attention == Attention("local", 8)
    with pytest.raises(ValueError, match="no attention 'window'"):
        TransformersEngine.load(str(tmp_path), attention="window")
