"""The transformers engine against plain forward passes: same tokens, same numbers, whatever runs beside them."""

import asyncio
import json
import random
import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from satisfice.engines import transformers as transformers_engine
from satisfice.engines.base import Capability, EngineClosed, EngineError, Sampling, Usage, require
from satisfice.engines.transformers import TransformersEngine, _layer_kinds
from satisfice.intervention.controls import ConfidenceRule, EndScaling, ThinkingBudget
from satisfice.thinking import ThinkingFormat, UnknownThinkingFormat, decode

GREEDY = Sampling(temperature=0.0, max_tokens=24)
SAMPLED = Sampling(temperature=0.9, top_p=0.95, max_tokens=40, ignore_eos=True)


def tokens(length, seed=0, vocabulary=190):
    """Random token ids, none of them special."""
    generator = random.Random(f"{length} {seed}")
    return [generator.randrange(8, vocabulary) for _ in range(length)]


def continued(model, prompt, count=24, **options):
    """The model's own greedy continuation."""
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=count,
            **options,
        )
    return output[0, len(prompt) :].tolist()


def distributions(model, ids):
    """(len(ids), V) log-probabilities of what follows each token, from one plain forward pass."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)


def likeliest(model, prompt, ids):
    """The likeliest token at each place of `ids` after `prompt`, from one plain forward pass."""
    return distributions(model, [*prompt, *ids])[len(prompt) - 1 : -1].argmax(-1).tolist()


async def crowd(engine, *calls, **options):
    """All calls at once: pairs of prompt and sampling, with a control as a third where there is one."""
    with engine._wake:  # the engine looks up when all are there, so that a test takes the same course every time
        tasks = [
            asyncio.create_task(engine.generate(prompt, sampling, control=next(iter(rest), None), **options))
            for prompt, sampling, *rest in calls
        ]
        await asyncio.sleep(0)
    return await asyncio.gather(*tasks)


def times_admitted(results, prompts):
    """How often requests were taken in, from what they paid: each time, all of a sequence but its last token."""
    positions = [result.usage.prefilled + result.usage.cached for result in results]
    return sum(1 + (paid > len(prompt) - 1) for paid, prompt in zip(positions, prompts, strict=True))


# -- greedy decoding equals the model's own


async def test_greedy_equals_generate_with_more_requests_than_rows(make_engine, tiny_model):
    engine = make_engine(max_batch=4)
    prompts = [
        tokens(length) for length in (1, 2, 3, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 40, 63, 64, 65, 100, 180, 300)
    ]
    # Different lengths of output too, so that rows come and go at different times.
    limits = [3 + 7 * index % 22 for index in range(20)]
    calls = [(prompt, replace(GREEDY, max_tokens=limit)) for prompt, limit in zip(prompts, limits, strict=True)]
    results = await crowd(engine, *calls)
    assert [result.ids for result in results] == [
        continued(tiny_model, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)
    ]
    assert engine.peak_batch == 4
    for result, prompt in zip(results, prompts, strict=True):
        assert result.usage.generated == len(result.ids)
        assert result.usage.prefilled + result.usage.cached == len(prompt) - 1


async def test_greedy_stops_at_the_models_own_end_of_text(make_engine, tiny_model, monkeypatch):
    prompts = [tokens(20, seed) for seed in range(12)]
    plain = [continued(tiny_model, prompt) for prompt in prompts]
    end = Counter(token for ids in plain for token in set(ids[3:20])).most_common(1)[0][0]
    monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", [end, 2])
    engine = make_engine(max_batch=4)
    assert engine.end_ids == {end, 2}
    results = await crowd(engine, *((prompt, GREEDY) for prompt in prompts))
    assert [result.ids for result in results] == [continued(tiny_model, prompt) for prompt in prompts]
    stopped = [result for result in results if result.finish == "stop"]
    assert end in {result.stopped_by for result in stopped} <= engine.end_ids
    assert all((r.ids[-1], r.stop_tokens) == (r.stopped_by, 1) for r in stopped)
    assert all((r.finish, len(r.ids), r.stop_tokens) == ("length", 24, 0) for r in results if r not in stopped)
    results = await crowd(engine, *((prompt, replace(GREEDY, ignore_eos=True)) for prompt in prompts))
    assert all(r.ids[: len(ids)] == ids and len(r.ids) == 24 for r, ids in zip(results, plain, strict=True))


ARCHITECTURES = {
    "sliding window": (MistralForCausalLM, MistralConfig, {"sliding_window": 16}),
    "one head a query": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "mixed layers": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
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
async def test_greedy_equals_generate_for_other_kinds_of_attention(make_engine, tiny_config, architecture):
    kind, config, options = ARCHITECTURES[architecture]
    torch.manual_seed(1)
    model = kind(config(**{**tiny_config, **options})).eval()
    engine = make_engine(model, max_batch=3)
    # What is known beforehand makes rows of one wave start at different places.
    known = tokens(90, 7)
    await engine.generate(known, replace(GREEDY, max_tokens=1))
    prompts = [tokens(4), tokens(17), [*known, *tokens(3)], tokens(70), [*known[:50], *tokens(30)], tokens(33)]
    limit = 12
    results = await crowd(engine, *((prompt, replace(GREEDY, max_tokens=limit)) for prompt in prompts))
    assert [result.ids for result in results] == [continued(model, prompt, limit) for prompt in prompts]
    assert [result.usage.cached for result in results] == [0, 0, 90, 0, 50, 0]


async def test_prompts_longer_than_a_chunk(make_engine, tiny_model, monkeypatch):
    monkeypatch.setattr("satisfice.engines.transformers.PREFILL_CHUNK", 32)
    engine = make_engine()
    prompts = [tokens(150), tokens(31), tokens(97)]
    results = await crowd(engine, *((prompt, GREEDY) for prompt in prompts))
    assert [result.ids for result in results] == [continued(tiny_model, prompt) for prompt in prompts]


# -- the seed decides, not the company


def sampled_calls():
    settings = [
        SAMPLED,
        replace(SAMPLED, top_p=1.0),
        replace(SAMPLED, temperature=0.0),
        replace(SAMPLED, top_p=1.0, top_k=7),
        replace(SAMPLED, min_p=0.1, max_tokens=15),
        replace(SAMPLED, temperature=2.0, max_tokens=60),
    ]
    shared = tokens(24, 9)
    prompts = [tokens(10), tokens(40), shared, shared, [*shared, 9, 10], tokens(18)]
    return [
        (prompt, replace(sampling, seed=seed))
        for seed, (prompt, sampling) in enumerate(zip(prompts, settings, strict=True))
    ]


@pytest.fixture(scope="module")
def alone(tiny_model, tokenizer):
    """What each of `sampled_calls` gives when an engine has nothing else to do and nothing stored."""
    engine = TransformersEngine(tiny_model, tokenizer, max_batch=1, max_batch_tokens=4096, max_cached_tokens=0)

    async def one_by_one():
        return [(await engine.generate(*call)).ids for call in sampled_calls()]

    yield asyncio.run(one_by_one())
    engine.close()


@pytest.mark.parametrize(
    "options",
    [{}, {"max_batch": 2}, {"max_batch": 3, "max_cached_tokens": 0}, {"max_batch": 4, "max_cached_tokens": 60}],
    ids=str,
)
async def test_sampled_results_are_the_same_in_a_crowd(make_engine, alone, options):
    engine = make_engine(**options)
    for order in (1, -1):
        results = await crowd(engine, *sampled_calls()[::order])
        assert [result.ids for result in results][::order] == alone


@pytest.mark.parametrize("cached", [0, 1000])
async def test_rows_that_had_to_give_way_go_on_as_if_nothing_had_happened(make_engine, alone, cached):
    engine = make_engine(max_batch=6, max_batch_tokens=130, max_cached_tokens=cached)
    results = await crowd(engine, *sampled_calls())
    assert [result.ids for result in results] == alone
    assert times_admitted(results, [prompt for prompt, _ in sampled_calls()]) > 6
    assert (sum(result.usage.cached for result in results) > 0) == (cached > 0 or engine.peak_batch > 1)


async def test_different_seeds_give_different_results(make_engine):
    engine = make_engine()
    results = await crowd(engine, *((tokens(12), replace(SAMPLED, seed=seed)) for seed in (0, 1, -1, 2**63, 2**70 + 5)))
    assert len({tuple(result.ids) for result in results}) == 5


async def test_a_chain_that_is_stopped_probed_and_resumed_equals_an_uninterrupted_one(make_engine):
    engine, prompt = make_engine(), tokens(20)
    whole = await engine.generate(prompt, replace(SAMPLED, max_tokens=60))
    written: list[int] = []
    for step in (1, 7, 20, 32):
        part = await engine.generate([*prompt, *written], replace(SAMPLED, max_tokens=step))
        written += part.ids
        probe = await engine.generate([*prompt, *written, 11, 12, 13], replace(SAMPLED, max_tokens=9, seed=step))
        assert len(probe.ids) == 9
    assert written == whole.ids


def test_one_engine_serves_one_event_loop_after_another(make_engine):
    engine = make_engine()
    first, second = (asyncio.run(engine.generate(tokens(12), SAMPLED)) for _ in range(2))
    assert first.ids == second.ids
    assert second.usage.prefilled == 0


# -- nothing is computed twice


@pytest.mark.parametrize("options", [{"max_batch": 8, "max_cached_tokens": 0}, {"max_batch": 3}, {}], ids=str)
async def test_samples_of_one_prompt_pay_for_it_once(make_engine, options):
    engine, prompt = make_engine(**options), tokens(37)
    results = await crowd(engine, *((prompt, replace(SAMPLED, seed=seed)) for seed in range(8)))
    assert sum(result.usage.prefilled for result in results) == len(prompt) - 1
    assert sum(result.usage.cached for result in results) == 7 * (len(prompt) - 1)
    assert len({tuple(result.ids) for result in results}) == 8


async def test_a_probe_pays_for_its_own_tokens_and_resuming_is_free(make_engine):
    engine, prompt, cue = make_engine(), tokens(30), tokens(5, 1)
    first = await engine.generate(prompt, replace(SAMPLED, max_tokens=12))
    assert first.usage == Usage(generated=12, prefilled=29, cached=0, forward_passes=13)
    chain = [*prompt, *first.ids]
    probe = await engine.generate([*chain, *cue], replace(GREEDY, max_tokens=3, ignore_eos=True))
    assert probe.usage == Usage(generated=3, prefilled=len(cue), cached=41, forward_passes=4)
    resumed = await engine.generate(chain, replace(SAMPLED, max_tokens=4))
    assert resumed.usage == Usage(generated=4, prefilled=0, cached=41, forward_passes=4)
    branch = await engine.generate([*chain[:35], *cue], replace(GREEDY, max_tokens=1))
    assert branch.usage == Usage(generated=1, prefilled=len(cue) - 1, cached=35, forward_passes=2)


async def test_prompts_that_share_only_their_first_tokens_are_computed_together(make_engine, tiny_model, monkeypatch):
    engine, passes, forward = make_engine(), [], tiny_model.forward

    def counted(*args, **kwargs):
        passes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", counted)
    await crowd(engine, *(([1, 4, *tokens(20, seed)], replace(GREEDY, max_tokens=1)) for seed in range(6)))
    assert passes == [(6, 21), (6, 1)]


class Gate:
    """Holds an engine before each step until the test lets it go on, so that requests arrive between known steps."""

    def __init__(self, engine, monkeypatch):
        self.engine, self.step = engine, engine._step
        self.allowed, self.reached = threading.Semaphore(0), 0
        monkeypatch.setattr(engine, "_step", self)

    def __call__(self):
        self.reached += 1
        self.allowed.acquire()
        self.step()

    async def steps(self, count=1):
        """Let `count` steps run; the engine then stands before the next one, new requests taken in."""
        for _ in range(count):
            reached = self.reached
            self.allowed.release()
            await until(lambda reached=reached: self.reached > reached)

    async def submit(self, *calls, **options):
        """Requests that come while the engine stands; they are taken in after the step that is due."""
        tasks = [asyncio.create_task(self.engine.generate(*call, **options)) for call in calls]
        await until(lambda: len(self.engine._inbox) == len(tasks))
        await self.steps()
        return tasks

    async def writing(self, rows):
        """Rows that write for long."""
        sampling = replace(GREEDY, max_tokens=200, ignore_eos=True)
        tasks = [asyncio.create_task(self.engine.generate(tokens(9, row), sampling)) for row in range(rows)]
        await until(lambda: self.reached)
        while len(self.engine._running) < rows:
            await self.steps()
        return tasks

    def open(self):
        self.allowed.release(10**6)


async def test_among_many_rows_a_probe_has_no_pass_of_its_own(make_engine, tiny_model, monkeypatch):
    prompt, cue = tokens(30), tokens(6, 1)
    probe = [*prompt, *cue]
    close, quiet = ThinkingFormat.detect(make_engine().tokenizer), replace(GREEDY, max_tokens=5, ignore_eos=True)
    state = close.automaton(make_engine().tokenizer).thinking_state
    kinds = [
        {},
        {"top_logprobs": 2, "entropy": True},
        {"control": EndScaling(gain=9, bias=20, state=state)},
    ]
    expected = [await make_engine().generate(probe, quiet, **options) for options in kinds]
    engine = make_engine()
    await engine.generate(prompt, replace(GREEDY, max_tokens=1))
    gate = Gate(engine, monkeypatch)
    rows = await gate.writing(8)
    widths, forward = set(), engine._forward

    def counted(ids, *rest, **named):
        widths.add(ids.shape[1])
        return forward(ids, *rest, **named)

    monkeypatch.setattr(engine, "_forward", counted)
    for options, alone in zip(kinds, expected, strict=True):
        (task,) = await gate.submit((probe, quiet), **options)
        await gate.steps(10)
        result = await asyncio.wait_for(task, 5)
        assert result.ids == alone.ids
        for name in ("logprobs", "entropies"):
            assert getattr(result, name) == (getattr(alone, name) and numbers(getattr(alone, name), abs=1e-4))
        fresh = len(cue) - 1 if not options else 0  # the later ones find what the first has computed
        assert result.usage == Usage(generated=5, prefilled=fresh, cached=35 - fresh, forward_passes=5 + fresh)
    assert widths == {1}
    gate.open()
    for row, task in enumerate(rows):
        assert (await task).ids == likeliest(tiny_model, tokens(9, row), (await task).ids)


@pytest.mark.parametrize(("writing", "cue"), [(8, 20), (3, 6), (0, 6)], ids=["long", "few rows", "no rows"])
async def test_where_it_holds_up_fewer_rows_a_prompt_has_a_pass_of_its_own(make_engine, monkeypatch, writing, cue):
    engine = make_engine()
    gate = Gate(engine, monkeypatch)
    rows = await gate.writing(writing) if writing else []
    prompt = tokens(1 + cue, 1)
    if not writing:
        gate.open()
    tasks = await gate.submit((prompt, GREEDY)) if writing else [asyncio.create_task(engine.generate(prompt, GREEDY))]
    gate.open()
    (result,) = await asyncio.gather(*tasks)
    assert result.usage.prefilled == cue
    assert result.usage.forward_passes == 1 + result.usage.generated
    await asyncio.gather(*rows)


async def test_what_a_row_is_still_taking_in_is_not_computed_by_another(make_engine, tiny_model, monkeypatch):
    engine, prompt = make_engine(), tokens(16, 3)
    gate = Gate(engine, monkeypatch)
    rows = await gate.writing(20)
    (first,) = await gate.submit((prompt, GREEDY))
    await gate.steps(3)
    assert engine._running[-1].behind
    others = await gate.submit(*((prompt, replace(SAMPLED, seed=seed)) for seed in range(3)))
    gate.open()
    results = await asyncio.gather(first, *others)
    assert sum(result.usage.prefilled for result in results) == len(prompt) - 1
    assert [result.usage.cached for result in results] == [0, *[len(prompt) - 1] * 3]
    assert results[0].ids == continued(tiny_model, prompt)
    await asyncio.gather(*rows)


@pytest.mark.parametrize("room", [1 << 16, 24 * 30], ids=["roomy", "tight"])
async def test_short_prompts_that_come_one_by_one_change_nothing(make_engine, tiny_model, room):
    engine = make_engine(max_batch=24, max_batch_tokens=room)
    head = tokens(9, 5)
    prompts = [[*head[: index % 10], *tokens(1 + 5 * index % 13, index)] for index in range(70)]
    settings = [replace(GREEDY, max_tokens=4 + 11 * index % 17, ignore_eos=True) for index in range(70)]
    results = await crowd(engine, *zip(prompts, settings, strict=True))
    stepwise = 0
    for prompt, sampling, result in zip(prompts, settings, results, strict=True):
        assert result.ids == likeliest(tiny_model, prompt, result.ids)
        assert len(result.ids) == sampling.max_tokens
        stepwise += result.usage.forward_passes > 1 + result.usage.generated
    assert stepwise > 10


@settings(deadline=None, derandomize=True, max_examples=12)
@given(
    st.lists(
        st.lists(st.sampled_from([tokens(8, 1), tokens(8, 2), tokens(5, 3), [9]]), min_size=1, max_size=5),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([0, 70, 1000]),
    st.sampled_from([1, 3]),
)
def test_what_is_stored_never_changes_a_result(tiny_model, tokenizer, prompts, cached, max_batch):
    prompts = [[token for piece in parts for token in piece] for parts in prompts]
    engine = TransformersEngine(
        tiny_model, tokenizer, max_batch=max_batch, max_batch_tokens=1000, max_cached_tokens=cached
    )
    sampling = replace(GREEDY, max_tokens=4, ignore_eos=True)
    try:
        for _ in range(2):
            for prompt, result in zip(
                prompts, asyncio.run(crowd(engine, *((prompt, sampling) for prompt in prompts))), strict=True
            ):
                # Every token is what one plain pass over the finished sequence would choose.
                assert result.ids == likeliest(tiny_model, prompt, result.ids)
            assert engine._store.tokens <= cached
    finally:
        engine.close()


# -- where a generation ends


async def test_stop_texts_are_found_across_tokens(make_engine, tokenizer):
    engine, prompt = make_engine(), tokens(15)
    whole = (await engine.generate(prompt, replace(SAMPLED, max_tokens=260))).ids
    pieces = [decode(tokenizer, [token]) for token in whole]
    stops = []
    for start in range(2, 50, 4):
        stops += [pieces[start], "".join(pieces[start : start + 3])]
        stops.append(pieces[start][1:] + pieces[start + 1] + pieces[start + 2][:1])
    stops.append("".join(pieces[:240]))
    assert len(stops[-1]) > 600
    stops = [stop for stop in stops if stop]
    results = await crowd(engine, *((prompt, replace(SAMPLED, max_tokens=260, stop=("never", stop))) for stop in stops))
    for stop, result in zip(stops, results, strict=True):
        length = next(count for count in range(len(whole) + 1) if stop in "".join(pieces[:count]))
        holding = next(count for count in range(1, length + 1) if stop in "".join(pieces[length - count : length]))
        assert result == replace(result, finish="stop", stopped_by=stop, stop_tokens=holding)
        assert result.ids == whole[:length]
        before = decode(tokenizer, result.ids[: -result.stop_tokens])
        assert decode(tokenizer, result.ids).startswith(before)
        assert stop not in before
    assert {result.stop_tokens for result in results} >= {1, 3, 240}


async def test_a_stop_that_looks_ahead_brings_the_token_after_it(make_engine, tokenizer):
    engine, prompt = make_engine(), tokens(15)
    whole = (await engine.generate(prompt, replace(SAMPLED, max_tokens=60))).ids
    pieces = [decode(tokenizer, [token]) for token in whole]
    length = next(n for n in range(10, 50) if pieces[n - 1] not in "".join(pieces[: n - 1]) and len(pieces[n]) > 1)
    stop, after = pieces[length - 1], pieces[length]

    async def stopped(*stops, lookahead=(stop,), **changes):
        sampling = replace(SAMPLED, max_tokens=60, stop=stops, lookahead=lookahead)
        result = await engine.generate(prompt, replace(sampling, **changes))
        assert result.ids == whole[: len(result.ids)]
        return len(result.ids) - length, result.finish, result.stopped_by, result.stop_tokens

    assert await stopped(stop) == (1, "stop", stop, 2)
    assert await stopped(stop, lookahead=()) == (0, "stop", stop, 1)
    # Within a token there is no need to look ahead; at the limit and after the end of the text there is no way to.
    inside = stop + after[:-1]
    assert await stopped(inside, lookahead=(inside,)) == (1, "stop", inside, 2)
    assert await stopped(stop, max_tokens=length) == (0, "stop", stop, 1)
    assert await stopped(stop, stop_ids=(whole[length],)) == (1, "stop", whole[length], 1)
    # A final stop in the token that follows counts, another one that looks ahead does not.
    assert await stopped(after, stop) == (1, "stop", after, 1)
    assert await stopped(after, stop, lookahead=(stop, after)) == (1, "stop", stop, 2)
    # What began before the stop is over.
    assert await stopped(stop + after, stop) == (1, "stop", stop, 2)


async def test_a_stop_text_in_the_prompt_does_not_count(make_engine, tokenizer):
    engine = make_engine()
    prompt = [*tokens(10), *tokenizer("Wait", add_special_tokens=False)["input_ids"]]
    whole = await engine.generate(prompt, SAMPLED)
    result = await engine.generate(prompt, replace(SAMPLED, stop=("Wait" + decode(tokenizer, whole.ids[:1]),)))
    assert result.ids == whole.ids
    assert (result.finish, result.stopped_by, result.stop_tokens) == ("length", None, 0)


async def test_stop_ids_and_limits(make_engine):
    engine, prompt = make_engine(), tokens(15)
    whole = (await engine.generate(prompt, SAMPLED)).ids
    at = next(index for index in range(5, 40) if whole[index] not in whole[:index])
    stopped = await engine.generate(prompt, replace(SAMPLED, stop_ids=(whole[at], 10**6)))
    assert (stopped.ids, stopped.finish) == (whole[: at + 1], "stop")
    assert (stopped.stopped_by, stopped.stop_tokens) == (whole[at], 1)
    # A stop that comes with the last token allowed is a stop.
    assert (await engine.generate(prompt, replace(SAMPLED, max_tokens=at + 1, stop_ids=(whole[at],)))).finish == "stop"
    short = await engine.generate(prompt, replace(SAMPLED, max_tokens=at, stop_ids=(whole[at],)))
    assert (short.ids, short.finish) == (whole[:at], "length")


# -- the numbers

numbers = pytest.approx


@pytest.mark.parametrize("rows", [1, 4])
async def test_log_probabilities_and_entropies_are_those_of_the_model_itself(make_engine, tiny_model, tokenizer, rows):
    engine, prompt = make_engine(), tokens(25)
    state = engine.thinking.automaton(tokenizer).thinking_state
    control = EndScaling(gain=0.3, bias=2.0, state=state)
    beside = [
        engine.generate(tokens(20, seed), replace(SAMPLED, seed=seed), top_logprobs=seed % 2, entropy=seed == 2)
        for seed in range(1, rows)
    ]
    sampling = replace(SAMPLED, temperature=0.5, top_p=0.8)
    result, *others = await asyncio.gather(
        engine.generate(prompt, sampling, control=control, top_logprobs=5, entropy=True), *beside
    )
    expected = distributions(tiny_model, [*prompt, *result.ids])[len(prompt) - 1 : -1]
    assert result.logprobs == numbers(expected.gather(1, torch.tensor(result.ids)[:, None])[:, 0].tolist(), abs=1e-4)
    assert result.entropies == numbers((-(expected.exp() * expected).sum(-1)).tolist(), abs=1e-4)
    for top, row in zip(result.top_logprobs, expected, strict=True):
        values = list(top.values())
        assert len(top) == 5
        assert values == sorted(values, reverse=True)
        assert values == numbers(row[list(top)].tolist(), abs=1e-4)
        assert values == numbers(row.topk(5).values.tolist(), abs=1e-4)
    for seed, other in enumerate(others, start=1):
        assert (other.top_logprobs is None) == (seed % 2 == 0)
        assert (other.entropies is None) == (seed != 2)
        assert other.logprobs is None or len(other.logprobs) == len(other.ids)

    scores = await engine.score([*prompt, *result.ids], len(prompt))
    assert scores.logprobs == numbers(result.logprobs, abs=1e-4)
    assert scores.entropies == numbers(result.entropies, abs=1e-4)


async def test_without_being_asked_an_engine_reports_no_numbers(make_engine):
    result = await make_engine().generate(tokens(9), GREEDY)
    assert (result.logprobs, result.top_logprobs, result.entropies) == (None, None, None)


async def test_numbers_survive_giving_way(make_engine, tiny_model):
    engine = make_engine(max_batch=3, max_batch_tokens=150)
    prompts = [tokens(20, seed) for seed in range(3)]
    results = await crowd(engine, *((prompt, SAMPLED) for prompt in prompts), top_logprobs=1, entropy=True)
    assert times_admitted(results, prompts) > 3
    for prompt, result in zip(prompts, results, strict=True):
        expected = distributions(tiny_model, [*prompt, *result.ids])[len(prompt) - 1 : -1]
        assert result.entropies == numbers((-(expected.exp() * expected).sum(-1)).tolist(), abs=1e-4)
        assert len(result.logprobs) == len(result.top_logprobs) == 40


async def test_scores_of_many_sequences_beside_generations(make_engine, tiny_model, monkeypatch):
    # 128 positions a pass, so that the first one takes several.
    monkeypatch.setattr(transformers_engine, "SCORE_LOGITS", 128 * tiny_model.config.vocab_size)
    engine = make_engine(max_batch=3)
    sequences = [tokens(296), tokens(60), tokens(2), tokens(90)]
    starts = [1, 59, 1, 45]
    generations = [engine.generate(sequence, GREEDY) for sequence in sequences[:2]]
    scores = [engine.score(sequence, start) for sequence, start in zip(sequences, starts, strict=True)]
    *generated, one, two, three, four = await asyncio.gather(*generations, *scores)
    assert [result.ids for result in generated] == [continued(tiny_model, sequence) for sequence in sequences[:2]]
    for sequence, start, result in zip(sequences, starts, (one, two, three, four), strict=True):
        expected = distributions(tiny_model, sequence)[start - 1 : -1]
        wanted = expected.gather(1, torch.tensor(sequence[start:])[:, None])[:, 0].tolist()
        assert result.logprobs == numbers(wanted, abs=1e-4)
        assert result.entropies == numbers((-(expected.exp() * expected).sum(-1)).tolist(), abs=1e-4)
        assert result.usage.generated == 0


async def test_divergences_are_those_of_whole_distributions(make_engine, tiny_model, monkeypatch):
    monkeypatch.setattr(transformers_engine, "SCORE_LOGITS", 7 * tiny_model.config.vocab_size)
    engine = make_engine(max_batch=2)
    greedy = continued(tiny_model, tokens(9))
    original, others, after_all = tokens(30), [tokens(12, 1), tokens(40, 2), tokens(30)], tokens(25, 3)
    found, written = await asyncio.gather(
        engine.divergences(original, others, after_all), engine.generate(tokens(9), GREEDY)
    )
    assert written.ids == greedy
    before = distributions(tiny_model, [*original, *after_all])[len(original) - 1 : -1]
    for other, values in zip(others, found.values, strict=True):
        after = distributions(tiny_model, [*other, *after_all])[len(other) - 1 : -1]
        assert values == numbers((before.exp() * (before - after)).sum(-1).tolist(), abs=1e-4)
    assert max(found.values[2]) < 1e-6 < min(found.values[0])
    assert found.usage.generated == 0
    assert found.usage.forward_passes > 4
    with pytest.raises(EngineError, match="at least one token after it"):
        await engine.divergences(original, others, [])
    with pytest.raises(EngineError, match="exceed"):
        await engine.divergences(original, [tokens(engine.context_length)], after_all)


async def test_a_score_computes_no_more_than_it_must(make_engine):
    engine, ids = make_engine(), tokens(60)
    first = await engine.score(ids, 40)
    assert (first.usage.prefilled, first.usage.cached) == (59, 0)
    again = await engine.score(ids, 40)
    assert (again.usage.prefilled, again.usage.cached) == (20, 39)
    assert again.logprobs == numbers(first.logprobs, abs=1e-4)
    assert (await engine.generate(ids, GREEDY)).usage.prefilled == 0


@pytest.mark.parametrize("start", [-1, 0, 5, 6])
async def test_a_score_needs_a_token_before_and_one_after_its_start(make_engine, start):
    with pytest.raises(EngineError, match=rf"start within 1\.\.4 for 5 tokens, not {start}$"):
        await make_engine().score(tokens(5), start)


# -- controls


@torch.inference_mode()
def controlled_by_hand(model, tokenizer, thinking, prompt, control, count):
    """Greedy decoding under `EndScaling`, one whole pass a token, with the marker followed as text."""
    close, ids = thinking.close_ids(tokenizer), []
    while len(ids) < count:
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
        text = decode(tokenizer, ids)
        if thinking.close not in text:
            written = next(n for n in range(len(close) - 1, -1, -1) if text.endswith(decode(tokenizer, close[:n])))
            value = logits[close[written]].clone()
            logits[close[written]] = value + value.clamp(min=0) * control.gain + control.bias
        ids.append(int(logits.argmax()))
    return ids


@pytest.mark.parametrize("close", ["</think>", "Final Answer: ", "So So Wait"])
@pytest.mark.parametrize("options", [{}, {"max_batch": 5, "max_batch_tokens": 130}], ids=["roomy", "tight"])
async def test_controlled_rows_in_a_mixed_batch(make_engine, tiny_model, tokenizer, close, options):
    thinking = ThinkingFormat.custom("<think>", close)
    engine = make_engine(thinking=thinking, **options)
    state = thinking.automaton(tokenizer).thinking_state
    controls = [None, *(EndScaling(gain=g, bias=b, state=state) for g, b in ((0, 2.5), (0.6, 1), (0, 4), (9, 20)))]
    prompts = [tokens(20, seed) for seed in range(5)]
    sampling = replace(GREEDY, max_tokens=30, ignore_eos=True)
    for _ in range(2):  # the second time in slots and from a store that the first has used
        results = await crowd(engine, *zip(prompts, [sampling] * 5, controls, strict=True))
        assert [result.ids for result in results] == [
            controlled_by_hand(tiny_model, tokenizer, thinking, prompt, control or EndScaling(state=state), 30)
            for prompt, control in zip(prompts, controls, strict=True)
        ]
        assert results[4].ids[: len(thinking.close_ids(tokenizer))] == thinking.close_ids(tokenizer)
    if options:
        assert times_admitted(results, prompts) > 5


async def test_resuming_within_a_marker_goes_on_with_it(make_engine, tokenizer):
    thinking = ThinkingFormat.custom("<think>", "So So Wait")
    engine, automaton = make_engine(thinking=thinking), thinking.automaton(tokenizer)
    prompt, sampling = tokens(20), replace(SAMPLED, max_tokens=1)
    control = EndScaling(bias=7.0, state=automaton.thinking_state)
    whole = await engine.generate(prompt, replace(SAMPLED, max_tokens=40), control=control)
    ids, state = [], automaton.thinking_state
    for _ in range(40):
        part = await engine.generate([*prompt, *ids], sampling, control=replace(control, state=state))
        ids += part.ids
        state = automaton.run(ids, automaton.thinking_state)
    assert ids == whole.ids
    assert "So So Wait" in decode(tokenizer, ids)


async def test_a_model_wider_than_its_tokenizer(make_engine, tiny_config, tokenizer):
    torch.manual_seed(2)
    model = LlamaForCausalLM(LlamaConfig(**{**tiny_config, "vocab_size": len(tokenizer) + 60}))
    engine = make_engine(model)
    state = engine.thinking.automaton(tokenizer).thinking_state
    control = EndScaling(bias=2.0, state=state)
    [result] = await crowd(engine, (tokens(12), replace(SAMPLED, top_p=1.0, temperature=2.0, stop=("never",)), control))
    assert max(result.ids) >= len(tokenizer)
    assert len(result.ids) == 40
    # Such a token may be part of a prompt as well.
    prompt = [*tokens(9), max(result.ids)]
    assert (await engine.generate(prompt, GREEDY)).ids == continued(model, prompt)


# -- leaving early


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited too long")


async def test_a_cancelled_task_frees_its_row(make_engine, tiny_model):
    engine, seen = make_engine(max_batch=1), []
    long = replace(GREEDY, max_tokens=900, ignore_eos=True)
    running = asyncio.create_task(engine.generate(tokens(10), long, on_token=seen.append))
    waiting = asyncio.create_task(engine.generate(tokens(11), long))
    last = asyncio.create_task(engine.generate(tokens(12), GREEDY))
    await until(lambda: len(seen) > 2)
    waiting.cancel()
    running.cancel()
    assert (await asyncio.wait_for(last, 20)).ids == continued(tiny_model, tokens(12))
    assert len(seen) < 900
    for task in (running, waiting):
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: not engine._running and not engine._waiting)
    resumed = await engine.generate(tokens(10), GREEDY)
    assert (resumed.usage.prefilled, resumed.ids) == (0, continued(tiny_model, tokens(10)))


async def test_a_cancelled_row_leaves_its_neighbours_alone(make_engine, tiny_model):
    engine, seen = make_engine(max_batch=3), []
    long = replace(GREEDY, max_tokens=900, ignore_eos=True)
    first = asyncio.create_task(engine.generate(tokens(10), long, on_token=seen.append))
    rest = [asyncio.create_task(engine.generate(tokens(40, n), replace(GREEDY, max_tokens=80))) for n in range(4)]
    await until(lambda: len(seen) > 5)
    first.cancel()
    results = await asyncio.wait_for(asyncio.gather(*rest), 20)
    assert [result.ids for result in results] == [continued(tiny_model, tokens(40, n), 80) for n in range(4)]


async def test_closing_answers_everyone(make_engine):
    engine, seen = make_engine(max_batch=1), []
    long = replace(GREEDY, max_tokens=900, ignore_eos=True)
    running = asyncio.create_task(engine.generate(tokens(10), long, on_token=seen.append))
    waiting = asyncio.create_task(engine.generate(tokens(11), long))
    scoring = asyncio.create_task(engine.score(tokens(12), 3))
    await until(lambda: len(seen) > 2)
    engine.close()
    with pytest.raises(EngineClosed, match="closed before the response was complete") as closed:
        await asyncio.wait_for(running, 5)
    assert len(seen) <= closed.value.usage.generated < 900
    with pytest.raises(EngineClosed) as closed:
        await asyncio.wait_for(waiting, 5)
    assert closed.value.usage == Usage()
    with pytest.raises(EngineClosed):
        await asyncio.wait_for(scoring, 5)
    with pytest.raises(EngineClosed, match="tiny is closed"):
        await engine.generate(tokens(3), GREEDY)
    engine.close()


async def test_what_goes_wrong_in_the_model_reaches_every_caller(make_engine, tiny_model, monkeypatch):
    engine, passes, forward = make_engine(max_batch=2), [], tiny_model.forward

    def broken(*args, **kwargs):
        passes.append(1)
        if len(passes) == 4:
            raise RuntimeError("the device is gone")
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", broken)
    state = engine.thinking.automaton(engine.tokenizer).thinking_state
    calls = [(tokens(9, seed), GREEDY, EndScaling(bias=1.0, state=state)) for seed in range(5)]
    tasks = [asyncio.create_task(engine.generate(p, s, control=c)) for p, s, c in calls]
    await asyncio.wait(tasks, timeout=20)
    for task in tasks:
        with pytest.raises(EngineError, match="tiny failed: RuntimeError: the device is gone"):
            task.result()
    results = await crowd(engine, *((tokens(9, seed), GREEDY) for seed in range(5)))
    assert [result.ids for result in results] == [continued(tiny_model, tokens(9, seed)) for seed in range(5)]


async def test_tokens_are_reported_in_order_in_the_callers_loop(make_engine):
    engine, seen = make_engine(max_batch=2), {seed: [] for seed in range(4)}

    def watch(seed):
        return lambda token: seen[seed].append((token, threading.get_ident()))

    async def one(seed):
        result = await engine.generate(tokens(10), replace(SAMPLED, seed=seed), on_token=watch(seed))
        # Complete by the time the result is there.
        assert seen[seed] == [(token, threading.get_ident()) for token in result.ids]

    await asyncio.gather(*(one(seed) for seed in range(4)))


# -- requests that cannot be served


async def test_too_long_a_request_says_what_to_lower(make_engine):
    engine = make_engine(max_batch=2, max_batch_tokens=100)
    message = (
        r"30 prompt tokens and 71 new ones exceed the max_batch_tokens of tiny, 100: lower max_tokens to 70 or less"
    )
    with pytest.raises(EngineError, match=message):
        await engine.generate(tokens(30), replace(GREEDY, max_tokens=71))
    fits = await engine.generate(tokens(30), replace(GREEDY, max_tokens=70, ignore_eos=True))
    assert len(fits.ids) == 70
    with pytest.raises(EngineError, match=r"exceed the context length of tiny, 1024: lower max_tokens to 24 or less"):
        await make_engine().generate(tokens(1000), replace(GREEDY, max_tokens=25))


async def test_a_sequence_that_fills_all_room_can_be_scored(make_engine, tiny_model):
    engine, ids = make_engine(max_batch=2, max_batch_tokens=100), tokens(100)
    both = await asyncio.wait_for(asyncio.gather(engine.score(ids, 99), engine.score(ids[:70], 69)), 20)
    expected = distributions(tiny_model, ids)
    assert both[0].logprobs == numbers([expected[98, ids[99]].item()], abs=1e-4)
    assert both[1].logprobs == numbers([expected[68, ids[69]].item()], abs=1e-4)
    with pytest.raises(EngineError, match="exceed the max_batch_tokens"):
        await engine.score(tokens(101), 5)


async def test_a_bad_request_is_refused_and_hurts_nobody_else(make_engine, tiny_model, tokenizer):
    engine, size = make_engine(), len(tokenizer)
    good = asyncio.create_task(engine.generate(tokens(10), GREEDY))
    with pytest.raises(EngineError, match="a prompt needs at least one token"):
        await engine.generate([], GREEDY)
    for wrong in (-1, size, 10**9):
        with pytest.raises(EngineError, match=rf"token id {wrong} is not in the vocabulary of tiny, 0\.\.{size - 1}$"):
            await engine.generate([5, wrong, 6], GREEDY)
    for wrong in (-1, size + 1):
        with pytest.raises(EngineError, match=rf"top_logprobs is {wrong}; it must be within 0\.\.{size}$"):
            await engine.generate(tokens(5), GREEDY, top_logprobs=wrong)
    assert (await good).ids == continued(tiny_model, tokens(10))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be at least 0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1; it must be above 0 and at most 1"),
        ({"top_k": -1}, r"top_k is -1; it must be at least 0 \(0 keeps all tokens\)"),
        ({"min_p": 1.0}, "min_p is 1.0; it must be at least 0 and below 1"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        ({"stop": ("a", "")}, "stop is .*; it must be texts of at least one character"),
    ],
    ids=str,
)
def test_sampling_names_what_is_out_of_bounds(wrong, message):
    with pytest.raises(EngineError, match=message):
        Sampling(**wrong)


def test_a_missing_capability_is_refused_with_both_names():
    offered = frozenset({Capability.CANCEL, Capability.LOGPROBS})
    engine = SimpleNamespace(name="openai:gpt", capabilities=offered, lacking={})
    require(engine, frozenset({Capability.CANCEL}), "plain")
    needs = frozenset({Capability.SCORE, Capability.LOGPROBS, Capability.CONTROL})
    with pytest.raises(EngineError, match=r"^deer needs control, score, which openai:gpt does not offer$"):
        require(engine, needs, "deer")


# -- loading


@pytest.fixture
def saved(tiny_model, tokenizer, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_model_loads(saved, tiny_model, tokenizer):
    engine = TransformersEngine.load(str(saved), device="cpu", threads=1, max_batch=2)
    assert engine.name == f"transformers:{saved}"
    assert engine.max_batch == 2
    assert engine.context_length == 1024
    assert engine.end_ids == {tokenizer.eos_token_id}
    assert engine.capabilities == frozenset(Capability)
    assert engine.thinking.name == "think-tags"
    assert engine.model.dtype is torch.float32
    assert asyncio.run(engine.generate(tokens(10), GREEDY)).ids == continued(tiny_model, tokens(10))
    engine.close()


def test_half_precision_by_name(saved, tiny_model):
    engine = TransformersEngine.load(str(saved), device="cpu", dtype="bfloat16", threads=1)
    assert engine.model.dtype is torch.bfloat16
    prompts = [tokens(10), tokens(50)]
    results = asyncio.run(crowd(engine, *((prompt, GREEDY) for prompt in prompts)))
    assert all(len(result.ids) == 24 or result.finish == "stop" for result in results)
    same = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16)
    assert results[0].ids[:2] == continued(same, prompts[0], 2)
    engine.close()


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "the directory .* holds no config.json; give one that a"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load the model .*: .*not a valid JSON file"),
        (lambda folder: edit(folder / "config.json", hidden_size=64), "cannot load the model .*: .*mismatch"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load the model .*: .*model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 40), "cannot load the model .*: .*header"),
        (
            lambda folder: edit(folder / "config.json", model_type="foo", architectures=["Foo"]),
            "cannot load the model .*: .*does not recognize this architecture",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot load the model .*: .*tokenizer"),
    ],
    ids=["no config", "bad config", "other shapes", "no weights", "bad weights", "unknown type", "no tokenizer"],
)
def test_a_directory_that_is_no_model_is_named_with_what_is_wrong(saved, damage, message):
    damage(saved)
    with pytest.raises(EngineError, match=f"^{message}") as caught:
        TransformersEngine.load(str(saved), device="cpu")
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["/no/such/place", "./nowhere", "~/nowhere", "some/deep/path"])
def test_a_directory_that_is_not_there_is_refused_before_anything_is_asked_of_the_hub(model):
    with pytest.raises(EngineError, match=f"^there is no model directory {model}; give a directory with config.json"):
        TransformersEngine.load(model)


def test_layers_with_another_state_than_attention_are_refused():
    config = SimpleNamespace(layer_types=["linear_attention", "full_attention", "conv"])
    with pytest.raises(EngineError, match=r"^hybrid has layers of type conv, linear_attention, which .* vLLM"):
        _layer_kinds(config, "hybrid")


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({}, {"full_attention"}),
        ({"sliding_window": None}, {"full_attention"}),
        ({"sliding_window": 16}, {"sliding_attention"}),
        ({"sliding_window": 16, "use_sliding_window": False}, {"full_attention"}),
        ({"sliding_window": 16, "layer_types": ["full_attention"]}, {"full_attention"}),
    ],
    ids=str,
)
def test_kinds_of_attention_are_read_from_the_config(config, kinds):
    assert _layer_kinds(SimpleNamespace(**config), "model") == kinds


def test_an_unknown_thinking_format_is_asked_for(tiny_model, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: {"a": 0})
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(UnknownThinkingFormat, match="--thinking-format"):
        TransformersEngine(tiny_model, tokenizer)


@pytest.mark.parametrize(
    ("recommended", "sampling"),
    [
        ({}, Sampling()),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}, Sampling(0.7, 0.8, 20)),
        ({"do_sample": True, "min_p": 0.1, "max_new_tokens": 99}, Sampling(min_p=0.1, max_tokens=99)),
        ({"do_sample": False, "temperature": 0.7}, Sampling(temperature=0.0, top_p=1.0)),
    ],
    ids=str,
)
def test_default_sampling_is_what_the_authors_recommend(make_engine, tiny_model, monkeypatch, recommended, sampling):
    for name, value in recommended.items():
        monkeypatch.setattr(tiny_model.generation_config, name, value, raising=False)
    assert make_engine().default_sampling == sampling


def test_the_digest_tells_weights_apart(make_engine, tiny_model, tiny_config):
    digest = make_engine().digest
    assert make_engine(max_batch=3).digest == digest
    torch.manual_seed(3)
    assert make_engine(LlamaForCausalLM(LlamaConfig(**tiny_config))).digest != digest


@pytest.mark.parametrize("top", [0, 5], ids=["of the token", "of the likeliest"])
async def test_a_preempted_row_knows_how_sure_the_model_was(make_engine, tokenizer, top):
    """Which its tokens do not tell: it is kept while the row waits."""
    roomy, tight, window = make_engine(), make_engine(max_batch=5, max_batch_tokens=130), 9
    state = roomy.thinking.automaton(tokenizer).thinking_state
    prompts = [tokens(20, seed) for seed in range(5)]
    samplings = [replace(SAMPLED, seed=seed) for seed in range(5)]
    means = []
    for prompt, sampling in zip(prompts, samplings, strict=True):
        free = await roomy.generate(prompt, sampling, top_logprobs=5)
        sure = [-sum(each.values()) / 5 for each in free.top_logprobs] if top else free.logprobs
        means += torch.tensor(sure).unfold(0, window, 1).mean(1).tolist()
    rule = ConfidenceRule(above=float(torch.tensor(means).quantile(0.85)), window=window, top=top)
    control = ThinkingBudget(state=state, confidence=rule, cue="So ")
    calls = list(zip(prompts, samplings, [control] * 5, strict=True))
    alone = [(await roomy.generate(prompt, sampling, control=control)).ids for prompt, sampling, _ in calls]
    results = await crowd(tight, *calls)
    assert [result.ids for result in results] == alone
    assert times_admitted(results, prompts) > 5
    close = tokenizer.convert_tokens_to_ids("</think>")
    assert len({ids.index(close) for ids in alone if close in ids}) > 1, "it fires, and at different places"
