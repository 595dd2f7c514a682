"""vLLM in this process: its paged cache, scheduler and kernels under the same contract as the transformers engine.

One thread owns vLLM's engine core and steps it. vLLM computes the logits; the tokens are chosen here, by the same
code as in the transformers engine, in a processor at the end of vLLM's own: random numbers are a hash of
(seed, position), controls act on whole batches, and entropies and log-probabilities are read where the logits are.
So a seed writes the same text on both engines, up to float noise, and a sequence may be stopped, probed and resumed.

All of this needs the logits in this process. A model that is cut over several processes is served with
`vllm serve` and reached by the openai engine; the plugin (`satisfice.vllm_plugin`) brings the controls there.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from transformers import AutoConfig

from satisfice.engines.base import Capability, EngineError, Sampling
from satisfice.engines.checkpoint import Checkpoint, cache_bytes, digest_of
from satisfice.engines.choosing import Choice, choose, entropy_of
from satisfice.engines.control_batch import ControlBatch, Markers
from satisfice.engines.control_setting import Control
from satisfice.engines.stopping import End, StopWatch
from satisfice.engines.threaded import Request, ThreadedEngine
from satisfice.lab import SHIPPED
from satisfice.thinking import ThinkingFormat

CPU_BLOCK = 32
"""Tokens of a block of vLLM's cache on a CPU: the least that its kernels take, for the finest reuse of prefixes."""
REQUEST = "satisfice_request"
"""Where in vLLM's sampling parameters a request of this engine stands; it never leaves the process."""
VLLM = threading.Lock()
"""What vLLM computes with at the moment is a global of its own, so the engines of a process take turns."""
CORES: dict[Any, bool] = {}
"""The cores that were started, and whether each is in use. Ending one ends what all of them share, so it waits for the
last; until then what a closed engine held is not free."""


@dataclass(eq=False, repr=False)
class VLLMRequest(Request):
    """A request, and what is known of it in vLLM.

    A score is a prompt of all tokens but the last, and `target`, the last one, is "chosen" after it.

    Attributes:
        rows: the batch that it is in.
        target: the token to choose; -1 where tokens are written.
        key: its name in vLLM.
        slot: its place among those of its control; -1 while it has none.
        observed: how many of `ids` its control has seen.
        pending: what the newest logits said: the entropy, the likeliest tokens and the log-probability of the token
            that was chosen. It counts once vLLM has accepted the token; in the middle of a prompt it does not.
    """

    rows: "Rows" = field(kw_only=True)
    target: int = -1
    key: str = ""
    slot: int = -1
    observed: int = 0
    pending: tuple[float, dict[int, float], float] | None = None


class Rows:
    """The rows of vLLM's batch: what their logits say, and which tokens follow.

    Args:
        thinking: how the model marks thinking.
        tokenizer: the model's tokenizer.
        max_batch: rows at most.
    """

    def __init__(self, thinking: ThinkingFormat, tokenizer: Any, max_batch: int) -> None:
        self._thinking = thinking
        self._tokenizer = tokenizer
        self._max_batch = max_batch
        self._markers: Markers | None = None
        self._running: list[VLLMRequest] = []
        self._controls: dict[type[Control], ControlBatch] = {}
        self._free_slots = list(range(max_batch))
        self._choice: Choice | None = None

    def arrange(self, running: list[VLLMRequest]) -> None:
        """Take note of who is in the batch, in the order of its rows."""
        staying = set(running)
        for request in self._running:
            if request.slot >= 0 and request not in staying:
                self._free_slots.append(request.slot)
                request.slot = -1
        self._running = running
        self._choice = None

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """(B,) the next token of each row, from (B, V) float32 logits, which are changed."""
        running, device = self._running, logits.device
        if self._choice is None:
            settings = [request.sampling for request in running]
            self._choice = Choice.of(settings, [sampling.seed for sampling in settings], device)
        noted = [row for row, request in enumerate(running) if request.wants_distribution or request.scoring]
        distribution = torch.log_softmax(logits[noted], dim=-1)  # of the model itself: before any control
        self._apply_controls(logits)
        positions = torch.tensor([len(request.ids) for request in running], device=device)
        chosen = choose(logits, self._choice, positions)
        for row, request in enumerate(running):
            if request.scoring:
                chosen[row] = request.target
        for request in running:
            request.usage.forward_passes += 1
        if noted:
            self._note([running[row] for row in noted], distribution, chosen[noted])
        return chosen

    def _note(self, requests: Sequence[VLLMRequest], distribution: torch.Tensor, chosen: torch.Tensor) -> None:
        """Keep what requests asked of their (B, V) log-probabilities, and that of the (B,) chosen tokens."""
        most = max(request.top_logprobs for request in requests)
        values, tokens = distribution.topk(most, dim=-1) if most else (distribution[:, :0], distribution[:, :0])
        taken = distribution.gather(1, chosen[:, None])[:, 0].tolist()
        entropies = entropy_of(distribution).tolist()
        listed = zip(requests, entropies, values.tolist(), tokens.tolist(), taken, strict=True)
        for request, entropy, top_values, top_tokens, logprob in listed:
            count = request.top_logprobs
            request.pending = entropy, dict(zip(top_tokens[:count], top_values[:count], strict=True)), logprob

    def _apply_controls(self, logits: torch.Tensor) -> None:
        device = logits.device
        for kind in {type(request.control) for request in self._running if request.control is not None}:
            rows = [row for row, request in enumerate(self._running) if type(request.control) is kind]
            requests = [self._running[row] for row in rows]
            for request in requests:
                if request.slot < 0:
                    self._admit(request, logits)
            controls = self._controls[kind]
            # One token a request; none in the middle of a prompt, several for one that was preempted.
            while late := [request for request in requests if request.observed < len(request.ids)]:
                tokens = torch.tensor([request.ids[request.observed] for request in late], device=device)
                controls.observe(tokens, torch.tensor([request.slot for request in late], device=device))
                for request in late:
                    request.observed += 1
            slots = torch.tensor([request.slot for request in requests], device=device)
            every = len(rows) == len(self._running)
            part = logits if every else logits[rows]
            controls.look(part, slots)
            controls.apply(part, slots)
            if not every:
                logits[rows] = part

    def _admit(self, request: VLLMRequest, logits: torch.Tensor) -> None:
        assert request.control is not None
        kind = type(request.control)
        if kind not in self._controls:
            if self._markers is None:
                self._markers = Markers(self._thinking, self._tokenizer, logits.shape[-1], logits.device)
            self._controls[kind] = request.control.batch(self._markers, self._max_batch)
        request.slot = self._free_slots.pop()
        request.observed = request.prompt_length
        self._controls[kind].admit(request.slot, request.control)


class VLLMEngine(ThreadedEngine[VLLMRequest]):
    """vLLM's engine core, stepped by a thread of this process.

    Args:
        core: makes the engine core, in the thread that will step it.
        checkpoint: the model's tokenizer and what else its directory says.
        thinking: how it marks thinking; detected from the tokenizer where not given.
        name: for messages and run folders.
        max_batch: rows that run at once at most.
        context_length: most tokens of a sequence, prompt included.
        threads: CPU threads of the model; None leaves vLLM's choice.

    Raises:
        EngineError: vLLM could not start; the message says why.
    """

    capabilities = frozenset(Capability) - {Capability.TREE, Capability.DISTRIBUTIONS}

    def __init__(
        self,
        core: Callable[[], Any],
        checkpoint: Checkpoint,
        *,
        thinking: ThinkingFormat | None = None,
        name: str = "vllm",
        max_batch: int = 64,
        context_length: int,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.tokenizer = checkpoint.tokenizer
        self.thinking = thinking or ThinkingFormat.detect(checkpoint.tokenizer)
        self.end_ids = checkpoint.end_ids
        self.default_sampling = checkpoint.default_sampling
        self.levels = checkpoint.levels
        self.context_length = context_length
        self.max_batch = max_batch
        self.threads = threads
        self._rows = Rows(self.thinking, self.tokenizer, max_batch)
        self._keys = map(str, itertools.count())
        self._running: dict[str, VLLMRequest] = {}
        self._forget = False
        self._make_core = core
        self._started: Future[tuple[torch.nn.Module, int]] = Future()
        with self._wake:
            self._start()
        self.model, self._vocabulary = self._started.result()
        self.digest = digest_of(self.model)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: str = "auto",
        device: str | None = None,
        thinking: ThinkingFormat | None = None,
        name: str | None = None,
        max_batch: int = 64,
        threads: int | None = None,
        **options: Any,
    ) -> "VLLMEngine":
        """The engine for a model by name.

        Args:
            model: "lab" (the embedded default), "lab-tldr", a directory, or a Hub id.
            dtype: "auto", "float32", "bfloat16" or "float16"; "auto" is the checkpoint's own on a GPU and float32
                on a CPU.
            device: "cpu" or "cuda"; only to make sure: vLLM runs where its build does.
            thinking: how the model marks thinking, where it cannot be detected.
            name: for messages and run folders; by default that of the model.
            max_batch: rows that run at once at most.
            threads: CPU threads; by default 1 for the lab, else vLLM's choice.
            options: passed to vLLM's `EngineArgs`, for example `gpu_memory_utilization` or `max_model_len`.

        Raises:
            EngineError: vLLM is not installed, or the model cannot be found or loaded; the message says what to do.
        """
        if model == "smollm2":
            raise EngineError(
                "smollm2 is a GGUF file, which the vllm engine does not read; use the transformers engine"
            )
        for option in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
            if options.get(option, 1) != 1:
                raise EngineError(
                    f"the vllm engine keeps the whole model in one process, so {option} must be 1: serve the model "
                    "with `vllm serve` and reach it by the openai engine"
                )
        _prepare()
        try:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.platforms import current_platform
        except (ImportError, RuntimeError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
                raise EngineError(
                    "the vllm engine needs vLLM: in a clone of satisfice, pip install -e '.[vllm]'"
                ) from error
            raise EngineError(
                f"vLLM is installed but cannot be imported: {error}; a torchvision or torchaudio that does not fit "
                "torch is often the reason, and the engine needs neither"
            ) from error
        kind = str(current_platform.device_type)
        if device is not None and device.partition(":")[0] != kind:
            raise EngineError(f"this build of vLLM runs on {kind}, not on {device}; leave the device out")
        if model in SHIPPED:
            threads = threads or 1
        source = str(SHIPPED.get(model, model))
        checkpoint = Checkpoint.read(source)
        limit = options.pop("max_model_len", None) or checkpoint.context_length
        if limit is None:
            raise EngineError(
                f"cannot load the model {model}: it has no config.json, or one that names no context length"
            )
        settings: dict[str, Any] = {
            "dtype": "float32" if dtype == "auto" and kind == "cpu" else dtype,
            "max_num_seqs": max_batch,
            "max_model_len": limit,
            "enable_prefix_caching": True,
            "async_scheduling": False,  # a token is looked at before the next is computed
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
            "logits_processors": [_chooser()],
        }
        if kind == "cpu":
            # Compiling takes minutes there, and by default vLLM takes nearly all the memory there is.
            settings |= {"enforce_eager": True, "block_size": CPU_BLOCK}
            settings["kv_cache_memory_bytes"] = _affordable_bytes(source, max_batch, limit)

        def core() -> Any:
            from vllm.v1.engine.core_client import InprocClient
            from vllm.v1.executor import Executor
            from vllm.v1.sample import logits_processor

            config = EngineArgs(model=source, **{**settings, **options}).create_engine_config()
            # Other installed processors, such as this package's own plugin, would stand before the chooser:
            # what it reads would no longer be the model's own.
            installed = logits_processor._load_logitsprocs_plugins
            logits_processor._load_logitsprocs_plugins = list
            try:
                return InprocClient(config, Executor.get_class(config), log_stats=False)
            finally:
                logits_processor._load_logitsprocs_plugins = installed

        return cls(
            core,
            checkpoint,
            thinking=thinking,
            name=name or f"vllm:{model}",
            max_batch=max_batch,
            context_length=limit,
            threads=threads,
        )

    # -- what callers ask of it

    def forget(self) -> None:
        """Evict all stored prefixes, as soon as nothing runs; for measurements that must not help each other."""
        with self._wake:
            self._forget = True
            self._wake.notify()
            self._wake.wait_for(lambda: not self._forget or self._closing)

    def _new_request(self, ids: list[int], sampling: Sampling) -> VLLMRequest:
        return VLLMRequest(ids, sampling, rows=self._rows)

    def _new_scoring(self, ids: list[int], start: int) -> VLLMRequest:
        """What vLLM has stored of `ids` serves for the last token alone, else all is computed."""
        *prompt, target = ids
        sampling = Sampling(temperature=0.0, max_tokens=1)
        watch = StopWatch(prompt, sampling, frozenset(), ())
        return VLLMRequest(
            prompt, sampling, watch, score_from=start, prompt_length=len(prompt), target=target, rows=self._rows
        )

    # -- the thread

    def _live(self) -> None:
        """Start vLLM, say so, and step it until the engine is closed."""
        set_threads = torch.set_num_threads
        try:
            if self.threads:
                set_threads(self.threads)
            with VLLM:
                self._core = self._make_core()
            runner = self._core.engine_core.model_executor.driver_worker.worker.model_runner
            _keep_entropies(runner.sampler)
            CORES[self._core] = True
            self._started.set_result((runner.model, int(runner.model_config.get_vocab_size())))
        except Exception as error:
            reason = " ".join(str(error).split())
            said = f"{self.name}: vLLM could not start: {type(error).__name__}: {reason}"
            self._started.set_exception(EngineError(said))
            return
        finally:
            torch.set_num_threads = set_threads  # vLLM takes it from the whole process, on a CPU
        self._take_turns()
        with VLLM:
            CORES[self._core] = False
            if not any(CORES.values()):
                for core in CORES:
                    core.shutdown()
                CORES.clear()

    def _has_work(self) -> bool:
        return bool(self._running or self._forget)

    def _turn(self) -> None:
        with VLLM:
            self._leave([request for request in self._running.values() if request.cancelled])
            while self._waiting:
                self._add(self._waiting[0])
                self._waiting.popleft()
            if self._running:
                self._step()
            elif self._forget:
                self._core.reset_prefix_cache()
                with self._wake:
                    self._forget = False
                    self._wake.notify_all()

    def _unanswered(self) -> list[VLLMRequest]:
        return [*self._running.values(), *self._waiting]

    def _reset(self) -> None:
        keys = list(self._running)
        self._running.clear()
        self._waiting.clear()
        with suppress(Exception):
            self._core.abort_requests(keys)

    def _leave(self, gone: Sequence[VLLMRequest]) -> None:
        """Take requests out of vLLM; what they have computed stays in its cache."""
        self._core.abort_requests([request.key for request in gone])
        for request in gone:
            del self._running[request.key]

    def _add(self, request: VLLMRequest) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine import EngineCoreRequest

        if request.cancelled:
            return
        request.key = next(self._keys)
        # What a prompt's log-probabilities are asked of is computed whole, so they are not asked for without need.
        whole = request.scoring and request.score_from != request.prompt_length
        parameters = SamplingParams(
            temperature=0.0,  # of the one token that the rows' own choice leaves over
            max_tokens=request.sampling.max_tokens,
            ignore_eos=True,
            detokenize=False,
            prompt_logprobs=1 if whole else None,
            output_kind=RequestOutputKind.DELTA,
            extra_args={REQUEST: request},
        )
        self._running[request.key] = request
        self._core.add_request(
            EngineCoreRequest(
                request_id=request.key,
                prompt_token_ids=request.ids[: request.prompt_length],
                mm_features=None,
                sampling_params=parameters,
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
        )

    def _step(self) -> None:
        finished = []
        for output in self._core.get_output().outputs:
            request = self._running[output.request_id]
            if output.prefill_stats is not None:
                cached = output.prefill_stats.num_cached_tokens
                request.usage.cached += cached
                # The last token of a prompt is counted with the token that it brings forth.
                request.usage.prefilled += request.prompt_length - cached - (not request.scoring)
            if output.new_prompt_logprobs_tensors is not None:
                assert request.score_from is not None
                columns = output.new_prompt_logprobs_tensors.logprobs[request.score_from - 1 :]
                request.logprobs, request.entropies = columns.T.tolist()
            for token in output.new_token_ids:
                if end := self._take(request, token):
                    finished.append((request, end))
        self._leave([request for request, _ in finished])
        for request, end in finished:
            if request.scoring:
                request.finish_scores()
            else:
                request.finish(end)

    def _take(self, request: VLLMRequest, token: int) -> End | None:
        """Add a token to a sequence; how that ends it, None where it goes on."""
        request.ids.append(token)
        request.usage.generated += not request.scoring
        if request.pending is not None:
            entropy, top, logprob = request.pending
            request.entropies.append(entropy)
            request.tops.append(top)
            request.logprobs.append(logprob)
        if request.emit is not None:
            request.emit(token)
        return request.finished()


def _prepare() -> None:
    """Set what vLLM reads from the environment, before it is imported."""
    # The logits are needed in this process, and the processors of the newer runner have another interface.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def _chooser() -> type:
    """vLLM's side of `Rows`: a processor of logits that leaves nothing but the chosen tokens."""
    from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

    class Chooser(LogitsProcessor):
        def __init__(self, config: Any, device: torch.device, is_pin_memory: bool) -> None:
            self._rows: dict[int, VLLMRequest] = {}

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            if process_dict_updates(self._rows, batch_update, lambda parameters, *_: parameters.extra_args[REQUEST]):
                for request in list(self._rows.values())[:1]:
                    request.rows.arrange([self._rows[row] for row in range(len(self._rows))])

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            if self._rows:
                chosen = self._rows[0].rows.choose(logits)
                logits.fill_(float("-inf")).scatter_(1, chosen[:, None], 0.0)
            return logits

    return Chooser


def _keep_entropies(sampler: Any) -> None:
    """Let vLLM report, of a prompt, the log-probabilities of its own tokens and the entropies next to them."""
    from vllm.v1.outputs import LogprobsTensors

    def gather(logprobs: torch.Tensor, count: int, token_ids: torch.Tensor) -> Any:
        assert count == 1  # the place of the likeliest token's, of which nobody asks
        taken = torch.stack([logprobs.gather(1, token_ids[:, None])[:, 0], entropy_of(logprobs)], dim=1)
        places = token_ids.to(torch.int32)
        return LogprobsTensors(torch.stack([places, places], dim=1), taken, torch.zeros_like(token_ids))

    sampler.gather_logprobs = gather


def _affordable_bytes(source: str, max_batch: int, context_length: int) -> int:
    """Keys and values of all rows at full length, or a quarter of the free memory, whichever is less."""
    try:
        config = AutoConfig.from_pretrained(source).get_text_config(decoder=True)
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot load the model {source}: {' '.join(str(error).split())}") from error
    token = cache_bytes(config, torch.float32)
    return int(min(psutil.virtual_memory().available / 4, 2 * max_batch * context_length * token))
