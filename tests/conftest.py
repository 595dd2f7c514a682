"""What the tests share: one thread, the lab's tokenizer, and a tiny model with random weights."""

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from satisfice import registry
from satisfice.engines.transformers import TransformersEngine
from satisfice.lab.tokenizer import build_tokenizer

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_plugin_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test loads is not known to the next one."""
    monkeypatch.setattr(registry, "_files", {})
    monkeypatch.setattr(registry, "_used", {})


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """The size of a tiny model that any Llama-like architecture can be built with."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # Wider than usual, so that random weights have opinions and greedy decoding does not stand still.
        "initializer_range": 0.3,
    }


@pytest.fixture(scope="session")
def tiny_model(tiny_config: dict[str, object]) -> PreTrainedModel:
    """A Llama with grouped-query attention."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**tiny_config)).eval()


@pytest.fixture
def make_engine(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> Iterator[Callable[..., TransformersEngine]]:
    """Makes engines over the tiny model, or over `model`; closes them after the test."""
    engines = []

    def make(model: PreTrainedModel = tiny_model, **options: object) -> TransformersEngine:
        options = {"name": "tiny", "threads": 1, "max_batch_tokens": 1 << 16, **options}
        engines.append(TransformersEngine(model, tokenizer, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
