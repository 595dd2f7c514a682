"""Where the tokens of a measurement come from, and what they cost there, whatever the engine.

Three regimes of early exit: the transformers engine, vLLM in this process, and vLLM's server over HTTP. Each gives an
engine that has computed nothing of any problem, counts forward passes and requests, and knows the processor time of all
processes that work for it. vLLM's server is started here, on loopback, with this program's interpreter.
"""

import sys
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from satisfice.engines.base import Engine
from satisfice.engines.loading import load_engine
from satisfice.engines.transformers import TransformersEngine
from satisfice.lab import SHIPPED

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

MARGINS: Mapping[str, float | None] = {"transformers": 0.05, "vllm": 0.10, "openai": None}
"""What probes may cost by engine: wall time, as a share of that of plain decoding. A server is reported as it is."""


@dataclass
class Spent:
    """What was spent between the beginning and the end of a measurement.

    Attributes:
        seconds: wall time.
        processor_seconds: of all threads of all processes that compute; other work on the machine disturbs it less.
        passes: forward passes of the model, whole batches at once.
        requests: calls of the engine; a tree is one.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    passes: int = 0
    requests: int = 0


class Regime(ABC):
    """An engine under measurement.

    Args:
        loaded: the engine.
    """

    def __init__(self, loaded: Any) -> None:
        self.loaded = loaded

    @abstractmethod
    @contextmanager
    def unused(self) -> Iterator[Any]:
        """An engine over the loaded weights that has computed nothing of any problem."""
        yield self.loaded

    @contextmanager
    def counted_passes(self, engine: Any) -> Iterator[Callable[[], int]]:
        """A count of forward passes from here on."""
        passes = 0

        def count(*_: object) -> None:
            nonlocal passes
            passes += 1

        hook = engine.model.register_forward_pre_hook(count)
        try:
            yield lambda: passes
        finally:
            hook.remove()

    def processor_seconds(self) -> float:
        """Processor time that has been spent so far."""
        return time.process_time()

    @contextmanager
    def measured(self, engine: Any) -> Iterator[Spent]:
        """What is spent within; filled in at the end."""
        spent = Spent()
        with self.counted_passes(engine) as passes, _counted_requests(engine, spent):
            started, worked = time.perf_counter(), self.processor_seconds()
            yield spent
            spent.seconds = time.perf_counter() - started
            spent.processor_seconds = self.processor_seconds() - worked
            spent.passes = passes()

    def close(self) -> None:
        """Release everything."""
        self.loaded.close()


class Transformers(Regime):
    """The transformers engine: a new one around the same weights for every measurement."""

    def __init__(self, loaded: Any, max_batch: int, threads: int) -> None:
        super().__init__(loaded)
        self._settings = {"max_batch": max_batch, "threads": threads}

    @contextmanager
    def unused(self) -> Iterator[Any]:
        """See `Regime.unused`."""
        loaded = self.loaded
        engine = TransformersEngine(loaded.model, loaded.tokenizer, thinking=loaded.thinking, **self._settings)
        yield engine
        engine.close()


class VLLM(Regime):
    """vLLM in this process: a second engine would be a second model, so its stored prefixes are dropped instead."""

    @contextmanager
    def unused(self) -> Iterator[Any]:
        """See `Regime.unused`."""
        self.loaded.forget()
        yield self.loaded


class Server(Regime):
    """vLLM's server on loopback, reached by the openai engine; `server` is one of tests/with_vllm/server.py."""

    def __init__(self, loaded: Any, server: Any) -> None:
        super().__init__(loaded)
        self._server = server

    @contextmanager
    def unused(self) -> Iterator[Any]:
        """See `Regime.unused`."""
        request = urllib.request.Request(f"{self._server.url}/reset_prefix_cache", method="POST")
        urllib.request.urlopen(request, timeout=60).read()
        yield self.loaded

    @contextmanager
    def counted_passes(self, engine: Any) -> Iterator[Callable[[], int]]:
        """The server's own count of its steps."""
        before = self._steps()
        yield lambda: self._steps() - before

    def _steps(self) -> int:
        metrics = urllib.request.urlopen(f"{self._server.url}/metrics", timeout=60).read().decode()
        lines = [line for line in metrics.splitlines() if line.startswith("vllm:iteration_tokens_total_count")]
        return round(sum(float(line.rpartition(" ")[2]) for line in lines))

    def processor_seconds(self) -> float:
        """Of this process and of the server's."""
        first = psutil.Process(self._server.process.pid)
        times = [process.cpu_times() for process in (first, *first.children(recursive=True))]
        return time.process_time() + sum(each.user + each.system for each in times)

    def close(self) -> None:
        """See `Regime.close`."""
        super().close()
        self._server.stop()


@contextmanager
def _counted_requests(engine: Any, spent: Spent) -> Iterator[None]:
    """Count what is asked of an engine; what it asks of itself is asked of it, too."""

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            spent.requests += 1
            return call(*arguments, **options)

        return counted

    asked = ["generate", "score", "tree"]
    if type(engine).next_tokens is not Engine.next_tokens:  # which asks `generate`
        asked.append("next_tokens")
    for name in asked:
        setattr(engine, name, counting(getattr(engine, name)))
    try:
        yield
    finally:
        for name in asked:
            delattr(engine, name)  # the class's own are found again


@contextmanager
def opened(engine: str, model: str, *, thinking: Any, max_batch: int, threads: int) -> Iterator[Regime]:
    """The regime of an engine by name; all that it has started is ended.

    Args:
        engine: "transformers", "vllm", or "openai" for vLLM's server.
        model: as the engine's `load` takes it.
        thinking: how the model marks thinking, None where it is detected.
        max_batch: rows of the engine.
        threads: CPU threads that the model computes with.
    """
    with ExitStack() as stack:
        if engine == "openai":
            regime: Regime = _served(stack, model, thinking, max_batch, threads)
        else:
            loaded = load_engine(engine, model, thinking=thinking, max_batch=max_batch, threads=threads)
            regime = VLLM(loaded) if engine == "vllm" else Transformers(loaded, max_batch, threads)
        stack.callback(regime.close)
        yield regime


def _served(stack: ExitStack, model: str, thinking: Any, max_batch: int, threads: int) -> Server:
    from with_vllm import server as with_vllm

    source = SHIPPED.get(model, model)
    log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log.txt"
    running = with_vllm.Server(
        source, log, "--max-num-seqs", str(max_batch), "--block-size", "32", "--enable-prompt-tokens-details",
        VLLM_SERVER_DEV_MODE="1",  # which alone lets stored prefixes be dropped
        OMP_NUM_THREADS=str(threads),
    )  # fmt: skip
    try:
        running.wait(1800)  # seconds: on a machine that is busy with other work a start takes minutes
        loaded = load_engine(
            "openai", "lab", base_url=f"{running.url}/v1", tokenizer=str(source), thinking=thinking,
            max_batch=max_batch,
        )  # fmt: skip
    except BaseException:
        running.stop()
        raise
    return Server(loaded, running)
