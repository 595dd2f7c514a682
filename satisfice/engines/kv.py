"""Keys and values: the cache that running rows share with a model's forward pass, and the store of past prefixes.

Rows are kept side by side in one tensor a layer, right-padded, so that a decoding step reads views and copies
nothing; a row that finishes hands its place to the last one. What a finished row has computed moves to the prefix
store, from where any later request that begins with the same tokens copies it instead of computing it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import Cache

BLOCK = 8
"""Tokens a link of the prefix store's hash chain; shorter common prefixes are not worth looking for."""

STRIDE = 64
"""Tokens that are compared at once where two sequences are; a chain may have many thousands."""

Pages = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of one sequence, a pair of (heads, tokens, dimension) a layer."""


class RowCache(Cache):
    """Keys and values of all running rows, handed to the model as its `past_key_values`.

    Attributes:
        rows: how many rows there is room for.
        length: how many tokens a row has room for.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.rows = 0
        self.length = 0
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._window = slice(0, 0)
        self._visible = 0
        self._positions = torch.empty(0, dtype=torch.int64)
        self._row_index = torch.empty(0, dtype=torch.int64)

    # -- what the model calls

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, heads, S, dimension) new keys and values where `aim` says and return all that is visible."""
        keys, values = self._layer(layer_idx, key_states, value_states)
        keys[self._row_index, :, self._positions] = key_states.transpose(1, 2)
        values[self._row_index, :, self._positions] = value_states.transpose(1, 2)
        return keys[self._window, :, : self._visible], values[self._window, :, : self._visible]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens visible to the next forward pass."""
        return self._visible

    def _layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all rows in one layer, made where they are missing for such as are given."""
        if index == len(self._keys):
            # Shapes and types are only known when the first keys and values come.
            self._keys.append(self._empty(keys))
            self._values.append(self._empty(values))
        return self._keys[index], self._values[index]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros, not garbage: a masked NaN would still poison a row.
        return like.new_zeros((self.rows, like.shape[1], self.length, like.shape[3]))

    # -- what the engine calls

    def aim(self, window: slice, positions: torch.Tensor, visible: int) -> None:
        """Say what the next forward pass writes and sees.

        Args:
            window: the rows that take part, side by side.
            positions: (B, S) where each new token goes in its row.
            visible: how many positions every row of the window shows; the mask hides what is not a row's own.
        """
        self._window, self._positions, self._visible = window, positions, visible
        self._row_index = torch.arange(window.start, window.stop, device=positions.device)[:, None]

    def resize(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens, keeping what fits of the first rows."""
        keep_rows, keep_length = min(rows, self.rows), min(length, self.length)
        self.rows, self.length = rows, length
        for store in (self._keys, self._values):
            for layer, old in enumerate(store):
                store[layer] = self._empty(old)
                store[layer][:keep_rows, :, :keep_length] = old[:keep_rows, :, :keep_length]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one row over another."""
        for store in (self._keys, self._values):
            for layer in store:
                layer[target, :, :tokens] = layer[source, :, :tokens]

    def take(self, row: int, tokens: int) -> Pages:
        """A copy of the first `tokens` tokens of a row."""
        return [
            (keys[row, :, :tokens].clone(), values[row, :, :tokens].clone())
            for keys, values in zip(self._keys, self._values, strict=True)
        ]

    def put(self, row: int, pages: Pages, tokens: int) -> None:
        """Write the first `tokens` tokens of `pages` into a row."""
        for index, (keys, values) in enumerate(pages):
            all_keys, all_values = self._layer(index, keys[None], values[None])
            all_keys[row, :, :tokens] = keys[:, :tokens]
            all_values[row, :, :tokens] = values[:, :tokens]


@dataclass(eq=False)
class Prefix:
    """A stored sequence.

    Attributes:
        ids: its tokens; every one of them has been computed.
        pages: their keys and values.
        links: hashes of its beginnings, one every `BLOCK` tokens.
        made: of sparse decoding, how each of its tokens was computed; see `satisfice.engines.sparse.reusable`.
        following: the token that was written after them, which is not computed; None where none was.
    """

    ids: tuple[int, ...]
    pages: Pages
    links: list[int] = field(default_factory=list)
    made: bytes = b""
    following: int | None = None


class PrefixStore:
    """Computed prefixes, the least recently used evicted first.

    Attributes:
        capacity: tokens held at most.
        tokens: tokens held.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = 0
        self._entries: OrderedDict[int, Prefix] = OrderedDict()
        self._by_link: dict[int, list[Prefix]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, ids: Sequence[int]) -> tuple[Prefix | None, int]:
        """The stored sequence that shares most beginning tokens with `ids`, and how many they share."""
        levels = list(self._walk(links(ids)))
        if not levels:
            return None, 0
        # All of the last level share the same blocks, so only what follows them tells which shares most.
        known = len(levels) * BLOCK
        following = ids[known : known + BLOCK]
        best = max(reversed(levels[-1]), key=lambda entry: common_prefix(entry.ids[known : known + BLOCK], following))
        self._entries.move_to_end(id(best))
        # Counted from the start: a hash is no proof.
        return best, common_prefix(best.ids, ids)

    def add(self, ids: Sequence[int], pages: Pages, made: bytes = b"", following: int | None = None) -> None:
        """Store a sequence; stored sequences that are mere beginnings of it are evicted. See `Prefix`."""
        entry = Prefix(tuple(ids), pages, links(ids), made, following)
        if not entry.links or len(entry.ids) > self.capacity:
            return
        for level, candidates in enumerate(list(self._walk(entry.links)), start=1):
            for older in list(candidates):
                if len(older.links) == level and entry.ids[: len(older.ids)] == older.ids:
                    self._evict(older)
        while self.tokens + len(entry.ids) > self.capacity:
            self._evict(next(iter(self._entries.values())))
        self._entries[id(entry)] = entry
        self.tokens += len(entry.ids)
        for link in entry.links:
            self._by_link.setdefault(link, []).append(entry)

    def _walk(self, chain: Iterable[int]) -> Iterable[list[Prefix]]:
        for link in chain:
            candidates = self._by_link.get(link)
            if not candidates:
                return
            yield candidates

    def _evict(self, entry: Prefix) -> None:
        del self._entries[id(entry)]
        self.tokens -= len(entry.ids)
        for link in entry.links:
            self._by_link[link].remove(entry)
            if not self._by_link[link]:
                del self._by_link[link]


def links(ids: Sequence[int]) -> list[int]:
    """A hash of the first `BLOCK` tokens, of the first 2 * `BLOCK`, and so on; each builds on the one before."""
    chain, link = [], 0
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        link = hash((link, *ids[end - BLOCK : end]))
        chain.append(link)
    return chain


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    shortest = min(len(left), len(right))
    for start in range(0, shortest, STRIDE):
        end = min(start + STRIDE, shortest)
        if list(left[start:end]) != list(right[start:end]):
            return next(index for index in range(start, end) if left[index] != right[index])
    return shortest
