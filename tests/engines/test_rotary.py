"""Models whose rotary factors depend on a sequence's length, against transformers' own forward pass of one sequence."""

import asyncio
import random
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from satisfice.engines.base import Child, EngineError, Sampling
from satisfice.engines.rotary import RowwiseRotary
from satisfice.engines.transformers import TransformersEngine

LIMIT, CONTEXT = 48, 300
GREEDY = Sampling(temperature=0, top_p=1, max_tokens=12, ignore_eos=True)


def greedy(most):
    return replace(GREEDY, max_tokens=most)


@pytest.fixture(scope="module")
def phi(tokenizer):
    config = Phi3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, original_max_position_embeddings=LIMIT,
        eos_token_id=None, bos_token_id=None, pad_token_id=None, tie_word_embeddings=False, initializer_range=0.3,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 6.0, 12.0], "original_max_position_embeddings": LIMIT,
        },
    )  # fmt: skip
    torch.manual_seed(2)
    return Phi3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def dynamic(tokenizer):
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=70, initializer_range=0.3, eos_token_id=None,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )  # fmt: skip
    torch.manual_seed(2)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def engine_of(tokenizer):
    engines = []

    def make(model, **options):
        engines.append(TransformersEngine(model, tokenizer, name="phi", threads=1, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def tokens(count, seed=0):
    draw = random.Random(seed)
    return [draw.randrange(8, 200) for _ in range(count)]


def logprobs(model, ids):
    """(S, V) log-probabilities after each token of one sequence."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)


def check_generation(model, prompt, generation):
    """Each token has the log-probability of a straight pass over what stood before it."""
    for place, token in enumerate(generation.ids):
        expected = logprobs(model, [*prompt, *generation.ids[:place]])[-1]
        assert generation.logprobs[place] == pytest.approx(expected[token].item(), abs=2e-4)
        assert expected.max().item() - expected[token].item() < 2e-4


@pytest.mark.parametrize("options", [{}, {"max_batch": 2}, {"max_cached_tokens": 0}, {"max_batch_tokens": 260}])
async def test_short_rows_long_rows_and_rows_that_grow_long_are_each_right(phi, engine_of, options):
    engine = engine_of(phi, **options)
    shared = tokens(40, 5)
    lengths = [(tokens(6), 20), (tokens(120, 1), 12), (tokens(LIMIT - 4, 2), 12), (shared, 30), ([*shared, 9, 10], 4)]
    lengths += [
        ([*shared, *tokens(30, 3)], 6),
        (tokens(LIMIT, 4), 3),
        (tokens(LIMIT - 1, 4), 3),
        (tokens(LIMIT + 1, 4), 3),
    ]
    settings = [(prompt, greedy(most)) for prompt, most in lengths]
    for _ in range(2):  # the second time much of it is stored, of both kinds
        results = await asyncio.gather(*(engine.generate(*each, top_logprobs=1) for each in settings))
        for (prompt, _), result in zip(settings, results, strict=True):
            check_generation(phi, prompt, result)
    for (prompt, sampling), result in zip(settings, results, strict=True):
        with torch.no_grad():
            whole = phi.generate(
                torch.tensor([prompt]), max_new_tokens=sampling.max_tokens, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
        assert result.ids == whole[0, len(prompt) :].tolist()


async def test_what_is_computed_again_is_counted(phi, engine_of):
    engine = engine_of(phi)
    prompt = tokens(LIMIT - 3)
    short = await engine.generate(prompt, greedy(3))
    grown = await engine.generate(prompt, greedy(9))
    assert short.usage.prefilled == len(prompt) - 1
    assert (grown.usage.generated, grown.usage.prefilled) == (9, LIMIT)  # all but the newest, once more
    assert grown.usage.cached == len(prompt) - 1
    again = await engine.generate([*prompt, *grown.ids], greedy(1))
    assert again.usage.prefilled == 0


async def test_scores_of_short_and_long_sequences_side_by_side(phi, engine_of):
    engine = engine_of(phi)
    sequences = [tokens(30), tokens(90, 1), tokens(LIMIT, 2), tokens(LIMIT + 1, 3)]
    results = await asyncio.gather(*(engine.score(ids, 3) for ids in sequences))
    for ids, result in zip(sequences, results, strict=True):
        expected = logprobs(phi, ids)
        assert result.logprobs == pytest.approx(
            [expected[place - 1, ids[place]].item() for place in range(3, len(ids))], abs=2e-4
        )


async def test_a_tree_stays_short_beside_long_rows_or_is_refused(phi, engine_of):
    engine = engine_of(phi)
    prompt = tokens(30)

    path, tops = [], []

    async def grow():
        async with engine.tree(prompt, Sampling(max_tokens=10), top=2, entropy_temperature=1.0) as tree:
            leaf = tree.root
            for _ in range(8):
                tops.append(leaf.top)
                path.append(leaf.sampled)
                [leaf] = await tree.advance([Child(0, leaf.sampled, 0)])

    await asyncio.gather(grow(), *(engine.generate(tokens(100, seed), GREEDY) for seed in range(3)))
    for place, top in enumerate(tops):
        expected = logprobs(phi, [*prompt, *path[:place]])[-1]
        assert list(top.values()) == pytest.approx([expected[token].item() for token in top], abs=2e-4)
    with pytest.raises(EngineError, match=f"beyond {LIMIT} tokens.* lower max_tokens to 18 or less"):
        engine.tree(prompt, Sampling(max_tokens=19), top=2, entropy_temperature=1.0)


async def test_factors_that_grow_with_every_token_stay_those_of_the_context(dynamic, engine_of):
    """Padding after a row's end would make them grow for all rows."""
    engine = engine_of(dynamic)
    with pytest.raises(EngineError, match="exceed the context length of phi, 70"):
        await engine.generate(tokens(60), GREEDY)
    known = tokens(50, 1)
    await engine.generate(known, greedy(1))
    prompts = [[*known, *tokens(4, 2)], tokens(57, 3), tokens(5, 4)]
    results = await asyncio.gather(*(engine.generate(prompt, GREEDY, top_logprobs=1) for prompt in prompts))
    for prompt, result in zip(prompts, results, strict=True):
        check_generation(dynamic, prompt, result)


async def test_others_may_use_the_model_meanwhile(phi, engine_of):
    engines = [engine_of(phi, max_cached_tokens=0) for _ in range(2)]
    prompts = [tokens(30), tokens(100, 1)]
    alone = [logprobs(phi, prompt) for prompt in prompts]
    work = [asyncio.create_task(each.generate(tokens(90, 2), greedy(40))) for each in engines for _ in range(3)]
    while not all(task.done() for task in work):
        for prompt, expected in zip(prompts, alone, strict=True):
            assert torch.allclose(logprobs(phi, prompt), expected, atol=1e-5)
        await asyncio.sleep(0)
    assert len({tuple(task.result().ids) for task in work}) == 1


def test_a_model_is_left_as_it_was(phi, dynamic, tiny_model):
    assert RowwiseRotary.of(tiny_model) is None
    assert RowwiseRotary.of(dynamic).limit is None
    rotary, module = RowwiseRotary.of(phi), phi.model.rotary_emb
    with rotary.rows([True]):
        assert "forward" in vars(module)
    assert "forward" not in vars(module)
    assert [rotary.is_long(length) for length in (LIMIT, LIMIT + 1)] == [False, True]
