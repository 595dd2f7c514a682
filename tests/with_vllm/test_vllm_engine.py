"""The vLLM engine against the transformers engine and plain forward passes: same tokens, same numbers.

One engine serves the whole file, since starting one takes longer than most tests. Both engines compute in float32.
"""

import asyncio
import random
import threading
from dataclasses import replace

import pytest
import torch

from satisfice.engines.base import Capability, EngineClosed, EngineError, Generation, Sampling, Usage, require
from satisfice.engines.transformers import TransformersEngine
from satisfice.engines.vllm import CPU_BLOCK, VLLMEngine
from satisfice.intervention import parse_method
from satisfice.intervention.controls import EndScaling, SuppressTokens
from satisfice.intervention.method import together
from satisfice.problems import load_problems
from satisfice.runs.experiment import every_method
from satisfice.thinking import decode

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

GREEDY = Sampling(temperature=0.0, max_tokens=24)
SAMPLED = Sampling(temperature=0.9, top_p=0.95, max_tokens=40, ignore_eos=True)
ALIKE = 0.97
"""Share of responses that must be the same on both engines; a token may differ that is chosen within float noise."""
numbers = pytest.approx


@pytest.fixture(scope="module")
def engine():
    engine = VLLMEngine.load("lab", name="vllm", max_batch=32)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tight():
    """Little room for keys and values, and prompts in pieces: rows have to give way."""
    rows = 260 // CPU_BLOCK + 1
    engine = VLLMEngine.load(
        "lab", name="tight", max_batch=6, max_num_batched_tokens=40, num_gpu_blocks_override=rows, max_model_len=200
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def peer():
    engine = TransformersEngine.load("lab")
    yield engine
    engine.close()


def tokens(length, seed=0, vocabulary=190):
    """Random token ids, none of them special."""
    generator = random.Random(f"{length} {seed}")
    return [generator.randrange(8, vocabulary) for _ in range(length)]


def prompts(engine, count=24):
    problems = load_problems("lab:calibration", limit=count).problems
    return [
        engine.thinking.render(engine.tokenizer, [{"role": "user", "content": problem.prompt}]) for problem in problems
    ]


def distributions(model, ids):
    """(len(ids), V) log-probabilities of what follows each token, from one plain forward pass."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)


async def all_of(engine, calls, **options):
    """All calls at once: pairs of prompt and sampling, with a control as a third where there is one."""
    jobs = (
        engine.generate(prompt, sampling, control=next(iter(rest), None), **options)
        for prompt, sampling, *rest in calls
    )
    return await asyncio.gather(*jobs)


async def assert_alike(engine, peer, calls, **options):
    ours, theirs = await all_of(engine, calls, **options), await all_of(peer, calls, **options)
    same = sum(one.ids == other.ids for one, other in zip(ours, theirs, strict=True))
    assert same >= ALIKE * len(ours), f"{same} of {len(ours)}"
    pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[0].ids == pair[1].ids]
    for one, other in pairs:
        assert (one.finish, one.stopped_by, one.stop_tokens) == (other.finish, other.stopped_by, other.stop_tokens)
    return pairs


# -- the same tokens as the transformers engine


SETTINGS = {
    "greedy": replace(GREEDY, max_tokens=200),
    "recommended": Sampling(max_tokens=200),
    "hot": Sampling(temperature=1.3, top_p=1.0, max_tokens=120, ignore_eos=True),
    "truncated": Sampling(temperature=1.0, top_p=0.9, top_k=7, min_p=0.02, max_tokens=120),
}


@pytest.mark.parametrize("setting", SETTINGS)
async def test_tokens_are_those_of_the_transformers_engine(engine, peer, setting):
    calls = [
        (prompt.ids, replace(SETTINGS[setting], seed=seed, max_tokens=20 + 20 * seed % 180))
        for seed, prompt in enumerate(prompts(engine, 40))
    ]
    await assert_alike(engine, peer, calls)


async def test_rows_that_had_to_give_way_go_on_as_if_nothing_had_happened(tight, peer):
    sampling = replace(SAMPLED, max_tokens=100)
    calls = [(tokens(50 + seed, seed), replace(sampling, seed=seed)) for seed in range(6)]
    state = peer.thinking.automaton(peer.tokenizer).thinking_state
    calls = [(*call, EndScaling(gain=0.5, bias=1.0, state=state)) for call in calls]
    pairs = await assert_alike(tight, peer, calls, entropy=True, top_logprobs=1)
    # Six rows of 150 tokens in room for 260: whoever gives way computes what it has once more.
    assert sum(ours.usage.forward_passes for ours, _ in pairs) > sum(len(ours.ids) for ours, _ in pairs) + 2 * len(
        pairs
    )
    for ours, theirs in pairs:
        assert ours.entropies == numbers(theirs.entropies, abs=1e-4)
        assert ours.logprobs == numbers(theirs.logprobs, abs=1e-4)


async def test_different_seeds_give_different_results(engine):
    calls = [(tokens(12), replace(SAMPLED, seed=seed)) for seed in (0, 1, -1, 2**63, 2**70 + 5)]
    assert len({tuple(result.ids) for result in await all_of(engine, calls)}) == 5


async def test_a_chain_that_is_stopped_probed_and_resumed_equals_an_uninterrupted_one(engine):
    prompt = tokens(20)
    whole = await engine.generate(prompt, replace(SAMPLED, max_tokens=60))
    written: list[int] = []
    for step in (1, 7, 20, 32):
        part = await engine.generate([*prompt, *written], replace(SAMPLED, max_tokens=step))
        written += part.ids
        probe = await engine.generate([*prompt, *written, 11, 12, 13], replace(SAMPLED, max_tokens=9, seed=step))
        assert len(probe.ids) == 9
    assert written == whole.ids


# -- the whole method table


@pytest.fixture(scope="module")
def table(engine):
    methods, left_out = every_method("lab", engine)
    assert "decoding-tree needs tree, which vllm does not offer" in left_out
    assert len(left_out) == (1 if engine.levels else 2)  # tldr needs a model that was trained on levels
    return {method.name: method for method in methods}


@pytest.mark.parametrize("sampling", ["greedy", "recommended"])
async def test_every_method_writes_what_it_writes_on_the_transformers_engine(engine, peer, table, sampling):
    problems = load_problems("lab:calibration", limit=4).problems
    settings = replace(SETTINGS[sampling], max_tokens=160)
    different = {}
    for name, method in table.items():
        ours, theirs = [
            await together(
                *(method.solve(one, problem, replace(settings, seed=n)) for n, problem in enumerate(problems))
            )
            for one in (engine, peer)
        ]
        pairs = list(zip(ours, theirs, strict=True))
        same = [pair for pair in pairs if pair[0].response_ids == pair[1].response_ids]
        different[name] = len(pairs) - len(same)
        for one, other in same:
            assert (one.stop, one.finished, one.answer) == (other.stop, other.finished, other.answer)
            assert [event.kind for event in one.events] == [event.kind for event in other.events]
            assert one.cost.probe_tokens == other.cost.probe_tokens
    assert sum(different.values()) <= (1 - ALIKE) * len(problems) * len(table), different


def test_a_tree_is_refused_before_the_first_token(engine):
    with pytest.raises(EngineError, match=r"^decoding-tree needs tree, which vllm does not offer$"):
        parse_method("decoding-tree").check(engine)
    assert engine.capabilities == frozenset(Capability) - {Capability.TREE, Capability.DISTRIBUTIONS}
    require(engine, frozenset({Capability.CONTROL, Capability.ENTROPY, Capability.SCORE}), "anything else")


# -- nothing is computed twice, to whole blocks of the cache


async def test_what_was_computed_is_not_computed_again(engine):
    engine.forget()
    prompt = tokens(2 * CPU_BLOCK + 5)
    first = await engine.generate(prompt, replace(SAMPLED, max_tokens=CPU_BLOCK))
    assert first.usage == Usage(generated=CPU_BLOCK, prefilled=len(prompt) - 1, cached=0, forward_passes=CPU_BLOCK)
    chain = [*prompt, *first.ids]
    resumed = await engine.generate(chain, replace(SAMPLED, max_tokens=4))
    assert resumed.usage == Usage(generated=4, prefilled=4, cached=3 * CPU_BLOCK, forward_passes=4)
    probe = await engine.generate([*chain[: 2 * CPU_BLOCK], 11, 12, 13], replace(GREEDY, max_tokens=1))
    assert probe.usage == Usage(generated=1, prefilled=2, cached=2 * CPU_BLOCK, forward_passes=1)
    engine.forget()
    assert (await engine.generate(chain, replace(SAMPLED, max_tokens=4))).usage.cached == 0


# -- where a generation ends


async def test_stop_texts_are_found_across_tokens(engine):
    prompt = tokens(15)
    whole = (await engine.generate(prompt, replace(SAMPLED, max_tokens=80))).ids
    pieces = [decode(engine.tokenizer, [token]) for token in whole]
    stops = []
    for start in range(2, 50, 6):
        stops += [pieces[start], "".join(pieces[start : start + 3])]
    results = await all_of(engine, [(prompt, replace(SAMPLED, max_tokens=80, stop=("never", stop))) for stop in stops])
    for stop, result in zip(stops, results, strict=True):
        length = next(count for count in range(len(whole) + 1) if stop in "".join(pieces[:count]))
        holding = next(count for count in range(1, length + 1) if stop in "".join(pieces[length - count : length]))
        assert result == replace(result, finish="stop", stopped_by=stop, stop_tokens=holding)
        assert result.ids == whole[:length]
        assert result.usage.generated == length
    assert {result.stop_tokens for result in results} >= {1, 3}


async def test_a_stop_that_looks_ahead_brings_the_token_after_it(engine):
    prompt = tokens(15)
    whole = (await engine.generate(prompt, SAMPLED)).ids
    pieces = [decode(engine.tokenizer, [token]) for token in whole]
    length = next(n for n in range(10, 39) if pieces[n - 1] not in "".join(pieces[: n - 1]) and len(pieces[n]) > 1)
    stop = pieces[length - 1]
    result = await engine.generate(prompt, replace(SAMPLED, stop=(stop,), lookahead=(stop,)))
    assert (len(result.ids), result.finish, result.stopped_by, result.stop_tokens) == (length + 1, "stop", stop, 2)


async def test_stop_ids_ends_of_text_and_limits(engine):
    prompt = tokens(15)
    whole = (await engine.generate(prompt, SAMPLED)).ids
    at = next(index for index in range(5, 40) if whole[index] not in whole[:index])
    stopped = await engine.generate(prompt, replace(SAMPLED, stop_ids=(whole[at], 10**6)))
    assert (stopped.ids, stopped.finish) == (whole[: at + 1], "stop")
    assert (stopped.stopped_by, stopped.stop_tokens) == (whole[at], 1)
    short = await engine.generate(prompt, replace(SAMPLED, max_tokens=at, stop_ids=(whole[at],)))
    assert (short.ids, short.finish) == (whole[:at], "length")
    question = prompts(engine, 1)[0].ids
    ended = await engine.generate(question, replace(GREEDY, max_tokens=400))
    assert (ended.finish, ended.stopped_by, ended.ids[-1] in engine.end_ids) == ("stop", ended.ids[-1], True)
    on = await engine.generate(question, replace(GREEDY, max_tokens=len(ended.ids) + 3, ignore_eos=True))
    assert (on.ids[: len(ended.ids)], len(on.ids)) == (ended.ids, len(ended.ids) + 3)


# -- the numbers


@pytest.mark.parametrize("rows", [1, 4])
async def test_log_probabilities_and_entropies_are_those_of_the_model_itself(engine, peer, rows):
    prompt = tokens(25)
    state = engine.thinking.automaton(engine.tokenizer).thinking_state
    control = EndScaling(gain=0.3, bias=2.0, state=state)
    beside = [
        engine.generate(tokens(20, seed), replace(SAMPLED, seed=seed), top_logprobs=seed % 2, entropy=seed == 2)
        for seed in range(1, rows)
    ]
    sampling = replace(SAMPLED, temperature=0.5, top_p=0.8)
    result, *others = await asyncio.gather(
        engine.generate(prompt, sampling, control=control, top_logprobs=5, entropy=True), *beside
    )
    expected = distributions(peer.model, [*prompt, *result.ids])[len(prompt) - 1 : -1]
    assert result.logprobs == numbers(expected.gather(1, torch.tensor(result.ids)[:, None])[:, 0].tolist(), abs=1e-4)
    assert result.entropies == numbers((-(expected.exp() * expected).sum(-1)).tolist(), abs=1e-4)
    for top, row in zip(result.top_logprobs, expected, strict=True):
        values = list(top.values())
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


async def test_without_being_asked_an_engine_reports_no_numbers(engine):
    result = await engine.generate(tokens(9), GREEDY)
    assert (result.logprobs, result.top_logprobs, result.entropies) == (None, None, None)


@pytest.mark.parametrize("where", ["engine", "tight"])
async def test_scores_of_many_sequences_beside_generations(request, peer, where):
    engine = request.getfixturevalue(where)
    sequences = [tokens(180), tokens(60), tokens(2), tokens(90), tokens(200 if where == "tight" else 1024)]
    starts = [1, 59, 1, 45, 150]
    generations = [engine.generate(sequence[:150], GREEDY) for sequence in sequences[:2]]
    scores = [engine.score(sequence, start) for sequence, start in zip(sequences, starts, strict=True)]
    *_, one, two, three, four, five = await asyncio.gather(*generations, *scores)
    for sequence, start, result in zip(sequences, starts, (one, two, three, four, five), strict=True):
        expected = distributions(peer.model, sequence)[start - 1 : -1]
        wanted = expected.gather(1, torch.tensor(sequence[start:])[:, None])[:, 0].tolist()
        # Far beyond what the model was trained on, the noise of float32 grows.
        assert result.logprobs == numbers(wanted, abs=2e-3)
        assert result.entropies == numbers((-(expected.exp() * expected).sum(-1)).tolist(), abs=2e-3)
        assert (result.usage.generated, result.usage.prefilled + result.usage.cached) == (0, len(sequence) - 1)


@pytest.mark.parametrize("start", [0, 5])
async def test_a_score_needs_a_token_before_and_one_after_its_start(engine, start):
    with pytest.raises(EngineError, match=rf"start within 1\.\.4 for 5 tokens, not {start}$"):
        await engine.score(tokens(5), start)


# -- controls


async def test_controlled_rows_in_a_mixed_batch(engine, peer):
    calls = []
    for seed, prompt in enumerate(prompts(engine, 40)):
        control = (
            None,
            EndScaling(gain=0.4, bias=1.0, state=prompt.state),
            SuppressTokens(words=("wait", "hmm"), state=prompt.state),
            EndScaling(bias=-3.0, state=prompt.state),
        )[seed % 4]
        calls.append((prompt.ids, Sampling(max_tokens=150, seed=seed), *([control] if control else [])))
    pairs = await assert_alike(engine, peer, calls)
    bare = await all_of(engine, [call[:2] for call in calls])
    changed = [one.ids != other.ids for (one, _), other in zip(pairs, bare, strict=False)]
    assert any(changed)


# -- cancelling, closing, failing


async def until(condition):
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited too long")


async def test_a_cancelled_task_leaves_vllm_and_its_neighbours_alone(engine):
    alone = await engine.generate(tokens(40, 1), replace(GREEDY, max_tokens=80))
    seen = []
    long = replace(GREEDY, max_tokens=900, ignore_eos=True)
    first = asyncio.create_task(engine.generate(tokens(10), long, on_token=seen.append))
    rest = asyncio.create_task(engine.generate(tokens(40, 1), replace(GREEDY, max_tokens=80)))
    await until(lambda: len(seen) > 5)
    first.cancel()
    assert (await rest).ids == alone.ids
    with pytest.raises(asyncio.CancelledError):
        await first
    await until(lambda: not engine._running)
    assert len(seen) < 900
    assert not engine._core.engine_core.scheduler.has_unfinished_requests()


async def test_tokens_are_reported_in_order_in_the_callers_loop(engine):
    seen = {seed: [] for seed in range(4)}

    def watch(seed):
        return lambda token: seen[seed].append((token, threading.get_ident()))

    async def one(seed):
        result = await engine.generate(tokens(10), replace(SAMPLED, seed=seed), on_token=watch(seed))
        # Complete by the time the result is there.
        assert seen[seed] == [(token, threading.get_ident()) for token in result.ids]

    await asyncio.gather(*(one(seed) for seed in range(4)))


async def test_what_goes_wrong_in_vllm_reaches_every_caller(engine, monkeypatch):
    fine = await engine.generate(tokens(9), GREEDY)
    get_output, steps = engine._core.get_output, []

    def broken():
        steps.append(1)
        if len(steps) == 4:
            raise RuntimeError("the device is gone")
        return get_output()

    monkeypatch.setattr(engine._core, "get_output", broken)
    tasks = [asyncio.create_task(engine.generate(tokens(9, seed), GREEDY)) for seed in range(3)]
    await asyncio.wait(tasks)
    for task in tasks:
        with pytest.raises(EngineError, match="vllm failed: RuntimeError: the device is gone"):
            task.result()
    assert (await engine.generate(tokens(9), GREEDY)).ids == fine.ids


async def test_bad_requests_are_refused_and_hurt_nobody_else(engine):
    size = len(engine.tokenizer)
    good = asyncio.create_task(engine.generate(tokens(10), GREEDY))
    with pytest.raises(EngineError, match="a prompt needs at least one token"):
        await engine.generate([], GREEDY)
    for wrong in (-1, size, 10**9):
        with pytest.raises(EngineError, match=rf"token id {wrong} is not in the vocabulary of vllm, 0\.\.{size - 1}$"):
            await engine.generate([5, wrong, 6], GREEDY)
    for wrong in (-1, size + 1):
        with pytest.raises(EngineError, match=rf"top_logprobs is {wrong}; it must be within 0\.\.{size}$"):
            await engine.generate(tokens(5), GREEDY, top_logprobs=wrong)
    message = r"exceed the context length of vllm, 1024: lower max_tokens to 24 or less"
    with pytest.raises(EngineError, match=message):
        await engine.generate(tokens(1000), replace(GREEDY, max_tokens=25))
    fits = await engine.generate(tokens(1000), replace(GREEDY, max_tokens=24, ignore_eos=True))
    assert len(fits.ids) == 24
    assert len((await good).ids) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 2}, "tensor_parallel_size must be 1: .*openai engine"),
        ({"device": "cuda"}, "runs on cpu, not on cuda"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused_at_once(options, message):
    with pytest.raises(EngineError, match=message):
        VLLMEngine.load("lab", **options)


def test_two_engines_and_a_closed_one(engine, tight, peer):
    """Several engines live side by side in one process; the last test, since it closes one of them."""

    async def both():
        call = tokens(30), replace(SAMPLED, max_tokens=60)
        results = await asyncio.gather(*(one.generate(*call) for one in (engine, tight, peer)))
        assert results[0].ids == results[1].ids == results[2].ids

        seen = []
        running = asyncio.create_task(
            tight.generate(tokens(10), replace(SAMPLED, max_tokens=180), on_token=seen.append)
        )
        scoring = asyncio.create_task(tight.score(tokens(12), 3))
        await until(lambda: len(seen) > 2)
        tight.close()
        with pytest.raises(EngineClosed, match="tight was closed before the response was complete"):
            await running
        await asyncio.gather(scoring, return_exceptions=True)
        with pytest.raises(EngineError, match="tight is closed"):
            await tight.generate(tokens(3), GREEDY)
        tight.close()
        assert isinstance(await engine.generate(*call), Generation)

    asyncio.run(both())
