"""Keys and values: the cache that running rows share with a model's forward pass.

Rows are kept side by side in one tensor a layer, right-padded, so that a decoding step reads views and copies nothing.
"""

import torch
from transformers import Cache

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
        self._window: slice | torch.Tensor = slice(0, 0)
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

    def aim(self, window: slice | list[int], positions: torch.Tensor, visible: int) -> None:
        """Say what the next forward pass writes and sees.

        Args:
            window: the rows that take part; what they hold is copied where they do not lie side by side.
            positions: (B, S) where each new token goes in its row.
            visible: how many positions every row of the window shows; the mask hides what is not a row's own.
        """
        self._positions, self._visible = positions, visible
        if isinstance(window, slice):
            self._window, rows = window, torch.arange(window.start, window.stop, device=positions.device)
        else:
            self._window = rows = torch.tensor(window, device=positions.device)
        self._row_index = rows[:, None]

    def resize(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens, keeping what fits of the first rows."""
        keep_rows, keep_length = min(rows, self.rows), min(length, self.length)
        self.rows, self.length = rows, length
        for store in (self._keys, self._values):
            for layer, old in enumerate(store):
                store[layer] = self._empty(old)
                store[layer][:keep_rows, :, :keep_length] = old[:keep_rows, :, :keep_length]

    def move(self, source: int, target: int, first: int, last: int) -> None:
        """Copy the tokens from one place to another of a row into another row."""
        for store in (self._keys, self._values):
            for layer in store:
                layer[target, :, first:last] = layer[source, :, first:last]

    def view(self, row: int, first: int, last: int) -> Pages:
        """The tokens from one place to another of a row, as they are now."""
        pairs = zip(self._keys, self._values, strict=True)
        return [(keys[row, :, first:last], values[row, :, first:last]) for keys, values in pairs]

    def put(self, row: int, place: int, pages: Pages) -> None:
        """Write `pages` into a row from a place on."""
        for index, (keys, values) in enumerate(pages):
            all_keys, all_values = self._layer(index, keys[None], values[None])
            all_keys[row, :, place : place + keys.shape[1]] = keys
            all_values[row, :, place : place + keys.shape[1]] = values
