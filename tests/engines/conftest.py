"""A scripted server, engines that ask it, and what the transformers engine computes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from engines.fake_server import QUESTION, RESPONSE, FakeServer

from satisfice.engines.checkpoint import Checkpoint
from satisfice.engines.openai import OpenAIEngine
from satisfice.engines.transformers import TransformersEngine
from satisfice.thinking import ThinkingFormat


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.read("lab")


@pytest.fixture(scope="module")
def prompt(checkpoint: Checkpoint) -> list[int]:
    thinking = ThinkingFormat.detect(checkpoint.tokenizer)
    return thinking.render(checkpoint.tokenizer, [{"role": "user", "content": QUESTION}]).ids


@pytest.fixture(scope="module")
def answer(checkpoint: Checkpoint) -> list[int]:
    ids = checkpoint.tokenizer(RESPONSE, add_special_tokens=False)["input_ids"]
    assert checkpoint.tokenizer.unk_token_id not in ids
    return [*ids, checkpoint.tokenizer.eos_token_id]


@pytest.fixture
def serve(checkpoint: Checkpoint, prompt: list[int], answer: list[int]) -> Iterator[Callable[..., FakeServer]]:
    servers = []

    def make(kind: str = "vllm", **changes: object) -> FakeServer:
        servers.append(FakeServer(checkpoint.tokenizer, prompt, answer, kind))
        for name, value in changes.items():
            assert hasattr(servers[-1], name)
            setattr(servers[-1], name, value)
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def load() -> Iterator[Callable[..., OpenAIEngine]]:
    engines = []

    def make(server: FakeServer, **options: object) -> OpenAIEngine:
        engines.append(OpenAIEngine.load("fake", base_url=server.url, **{"tokenizer": "lab", **options}))
        server.requests.clear()
        server.times.clear()
        server.most_at_once = server.given_up = 0
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(params=["vllm", "llamacpp", "standard"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[TransformersEngine], list[tuple[int, ...]]]:
    """Of each forward pass of the engines that are watched, rows and tokens a row; `watch` begins."""
    found: list[tuple[int, ...]] = []

    def watch(engine: TransformersEngine) -> list[tuple[int, ...]]:
        compute = engine._compute

        def counted(cache: Any, ids: torch.Tensor, *more: Any) -> torch.Tensor:
            found.append(tuple(ids.shape))
            return compute(cache, ids, *more)

        monkeypatch.setattr(engine, "_compute", counted)
        return found

    return watch
