"""How the vLLM engine chooses tokens, without vLLM: logits of a tiny model, in batches that change as vLLM's do.

The engine itself is tested in tests/vllm, where vLLM is installed.
"""

import asyncio
import importlib.util
import random
from dataclasses import replace

import pytest
import torch

from satisfice.engines.base import EngineError, Sampling
from satisfice.engines.stopping import StopWatch
from satisfice.engines.vllm import Rows, VLLMEngine, VLLMRequest
from satisfice.intervention.controls import EndScaling, SuppressTokens

SAMPLED = Sampling(temperature=0.9, top_p=0.95, max_tokens=30, ignore_eos=True)


def requests(engine, rows):
    """Requests of all kinds, more than there are rows."""
    state = engine.thinking.automaton(engine.tokenizer).thinking_state
    generator = random.Random(0)
    controls = [
        None,
        EndScaling(gain=0.5, bias=4.0, state=state),
        SuppressTokens(words=("wait", "so"), state=state),
        EndScaling(bias=-1.0, state=state),
    ]
    for number in range(8):
        prompt = [generator.randrange(8, 190) for _ in range(5 + number)]
        sampling = replace(SAMPLED, seed=number, temperature=0.9 * (number % 3 > 0), max_tokens=10 + 3 * number)
        watch = StopWatch(ids := list(prompt), sampling, engine.end_ids, ())
        yield VLLMRequest(
            ids,
            sampling,
            watch,
            controls[number % 4],
            top_logprobs=number % 2 * 2,
            entropy=number % 3 == 1,
            prompt_length=len(prompt),
            rows=rows,
        )


@torch.inference_mode()
def write(model, rows, waiting, room, seed):
    """Write all requests, `room` at a time; which of them are in the batch changes at random, as under preemption."""
    generator = random.Random(seed)
    waiting, running, finished = list(waiting), [], []
    while waiting or running:
        if running and generator.random() < 0.2:
            waiting.append(running.pop(generator.randrange(len(running))))
        while waiting and len(running) < room:
            running.insert(generator.randrange(len(running) + 1), waiting.pop(0))
        rows.arrange(list(running))
        logits = torch.stack([model(torch.tensor([request.ids])).logits[0, -1] for request in running])
        in_prompt = {request for request in running if generator.random() < 0.1}  # as in the middle of a prompt
        for request, token in zip(list(running), rows.choose(logits).tolist(), strict=True):
            if request in in_prompt:
                continue
            request.ids.append(token)
            if request.pending:
                entropy, top, logprob = request.pending
                request.entropies.append(entropy)
                request.tops.append(top)
                request.logprobs.append(logprob)
            if request.watch.finished():
                running.remove(request)
                finished.append(request)
    return finished


@pytest.mark.parametrize("room", [1, 3, 8])
def test_rows_choose_what_the_transformers_engine_chooses(make_engine, tiny_model, room):
    engine = make_engine()
    rows = Rows(engine.thinking, engine.tokenizer, room)
    finished = write(tiny_model, rows, requests(engine, rows), room, seed=room)
    assert len(finished) == 8

    async def one(request):
        return await engine.generate(
            request.ids[: request.prompt_length],
            request.sampling,
            control=request.control,
            top_logprobs=request.top_logprobs,
            entropy=request.entropy,
        )

    async def all_of_them():
        return await asyncio.gather(*map(one, finished))

    for request, expected in zip(finished, asyncio.run(all_of_them()), strict=True):
        assert request.ids[request.prompt_length :] == expected.ids
        if expected.logprobs is not None:
            assert request.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        if expected.entropies is not None:
            assert request.entropies == pytest.approx(expected.entropies, abs=1e-4)
        if expected.top_logprobs is not None:
            assert [list(top) for top in request.tops] == [list(top) for top in expected.top_logprobs]


def test_a_slot_is_free_once_its_request_has_left(make_engine, tiny_model):
    engine = make_engine()
    rows = Rows(engine.thinking, engine.tokenizer, max_batch=1)
    state = engine.thinking.automaton(engine.tokenizer).thinking_state
    for number in range(3):
        ids = [9, 10 + number]
        watch = StopWatch(ids, SAMPLED, frozenset(), ())
        request = VLLMRequest(ids, SAMPLED, watch, EndScaling(bias=1.0, state=state), prompt_length=2, rows=rows)
        rows.arrange([request])
        rows.choose(torch.zeros(1, len(engine.tokenizer)))
        assert request.slot == 0


def test_a_score_names_its_own_token(make_engine):
    engine = make_engine()
    rows = Rows(engine.thinking, engine.tokenizer, max_batch=2)
    logits = torch.randn(1, 200, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=0, max_tokens=1)
    watch = StopWatch([9, 10], sampling, frozenset(), ())
    request = VLLMRequest([9, 10], sampling, watch, score_from=2, target=77, prompt_length=2, rows=rows)
    rows.arrange([request])
    expected = torch.log_softmax(logits, -1)[0]
    assert rows.choose(logits).tolist() == [77]
    entropy, _, logprob = request.pending
    assert logprob == pytest.approx(expected[77].item())
    assert entropy == pytest.approx(-(expected.exp() * expected).sum().item(), rel=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_sentence_says_what_to_install():
    with pytest.raises(
        EngineError, match=r"^the vllm engine needs vLLM: in a clone of satisfice, pip install -e '\.\[vllm\]'$"
    ):
        VLLMEngine.load("lab")


def test_what_the_engine_cannot_do_is_refused_before_vllm_is_looked_for():
    with pytest.raises(EngineError, match=r"tensor_parallel_size must be 1: .*openai engine"):
        VLLMEngine.load("lab", tensor_parallel_size=2)
    with pytest.raises(EngineError, match="smollm2 is a GGUF file"):
        VLLMEngine.load("smollm2")
