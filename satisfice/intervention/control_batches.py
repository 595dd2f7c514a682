"""What the controls do to next-token logits: pure tensor code on a whole batch.

The parameters of every live request are tensors over slots, so a step costs a handful of small kernels whatever
the number of requests and their settings, and nothing has to come back to the host.
"""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from satisfice.engines.control_batch import ControlBatch, FromStates, Markers
from satisfice.engines.control_setting import Control
from satisfice.intervention.controls import EndScaling, SuppressTokens


class MarkerBatch(ControlBatch):
    """Requests of which nothing changes but their place in the thinking format.

    A host that has the tokens on the CPU tells of them by `follow`. Then it is known that most tokens move nobody,
    and what a step needs of the slots is looked up again only after one that did.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        super().__init__(markers, slots)
        self._following = False
        self._places = np.zeros(slots, dtype=np.int64)  # `state`, on the host; only kept up by `follow`
        self._found: tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None = None
        self._there: tuple[np.ndarray, FromStates] | None = None  # by slots, until one of them moves

    def admit(self, slot: int, control: Control) -> None:
        """See `ControlBatch.admit`."""
        super().admit(slot, control)
        self._places[slot], self._found, self._there = control.state, None, None

    def follow(self, tokens: np.ndarray, slots: np.ndarray) -> None:
        """See `ControlBatch.follow`."""
        self._following = True
        if self._there is None or self._there[0] is not slots:
            self._there = slots, self.markers.from_states(self._places[slots])
        before = self._there[1]
        if not before.stay(tokens):
            after = before.after(tokens)
            moved = after != before.states
            self._places[slots[moved]] = after[moved]
            there = torch.from_numpy(slots[moved]).to(self.markers.device)
            self.state[there] = torch.from_numpy(after[moved].astype(np.int64)).to(self.markers.device)
            self._found = self._there = None

    def resume(self, slot: int, tokens: Sequence[int], paused: tuple[torch.Tensor, ...] | None = None) -> None:
        """See `ControlBatch.resume`."""
        super().resume(slot, tokens, paused)
        self._places[slot], self._found, self._there = int(self.state[slot]), None, None

    def found(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What `_find` says of these slots, kept from step to step where that is known to be the same."""
        if not self._following:
            return self._find(slots)
        if self._found is None or self._found[0] is not slots:
            self._found = slots, self._without_neutral(*self._find(slots))
        return self._found[1]

    def _without_neutral(self, *found: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What `_find` says, less what changes no logit; a look at the values, which is kept from step to step."""
        return found

    @abstractmethod
    def _find(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What `apply` needs of these slots besides logits."""


class EndScalingBatch(MarkerBatch):
    """All live `EndScaling` requests."""

    def __init__(self, markers: Markers, slots: int) -> None:
        super().__init__(markers, slots)
        self.gain = torch.zeros(slots, device=markers.device)
        self.bias = torch.zeros(slots, device=markers.device)

    def admit(self, slot: int, control: Control) -> None:
        """See `ControlBatch.admit`."""
        assert isinstance(control, EndScaling)
        super().admit(slot, control)
        self.gain[slot] = control.gain
        self.bias[slot] = control.bias

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.apply`."""
        found = self.found(slots)
        if not found:
            return
        token, change, *gain = found
        if gain:
            change = torch.addcmul(change, logits.gather(1, token).clamp(min=0), gain[0])
        logits.scatter_add_(1, token, change.to(logits.dtype))

    def _find(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 1) each: the marker's next token, bias and gain, both 0 where the row is not inside thinking."""
        state = self.state.index_select(0, slots)
        token, thinking = self.markers.next_close.index_select(0, state), self.markers.thinking.index_select(0, state)
        gain, bias = self.gain.index_select(0, slots), self.bias.index_select(0, slots)
        return token[:, None], (bias * thinking)[:, None], (gain * thinking)[:, None]

    def _without_neutral(self, *found: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `MarkerBatch`: no gain where all of them are 0, and nothing where all biases are, too."""
        token, bias, gain = found
        if gain.any():
            return found
        return (token, bias) if bias.any() else ()


class SuppressTokensBatch(MarkerBatch):
    """All live `SuppressTokens` requests.

    Attributes:
        tokens: (N, K) int64, the tokens that each slot suppresses, filled up with -1.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        super().__init__(markers, slots)
        self.tokens = torch.full((slots, 1), -1, device=markers.device)

    def admit(self, slot: int, control: Control) -> None:
        """See `ControlBatch.admit`."""
        assert isinstance(control, SuppressTokens)
        super().admit(slot, control)
        tokens = control.tokens(self.markers.tokenizer)
        ids = [token for token in tokens if token < self.markers.vocabulary_size]
        self.tokens = with_row(self.tokens, slot, ids)

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.apply`."""
        if found := self.found(slots):
            tokens, limit = found
            logits.scatter_reduce_(1, tokens, limit.to(logits.dtype), "amin")

    def _find(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, K) each: tokens, and the most that their logits may be."""
        state = self.state[slots[:, None]]
        tokens = self.tokens.index_select(0, slots)
        suppressed = (tokens >= 0) & (tokens != self.markers.next_close[state]) & self.markers.thinking[state]
        return limits(tokens, suppressed)

    def _without_neutral(self, *found: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `MarkerBatch`: nothing where no row suppresses a token."""
        return found if found[1].isneginf().any() else ()


def limits(tokens: torch.Tensor, impossible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What to take the minimum with: minus infinity for tokens that are to be impossible, infinity for others.

    `tokens` may hold -1, which stands for token 0 and is left as it is, so that no place is written twice with
    different values.
    """
    return tokens.clamp(min=0), torch.where(impossible, -torch.inf, torch.inf)


def with_row(table: torch.Tensor, row: int, ids: Sequence[int]) -> torch.Tensor:
    """`table` with `ids` in a row, filled up with -1; a wider table where they do not fit."""
    if len(ids) > table.shape[1]:
        wider = torch.full((table.shape[0], len(ids)), -1, device=table.device)
        wider[:, : table.shape[1]] = table
        table = wider
    table[row] = torch.tensor([*ids, *[-1] * (table.shape[1] - len(ids))], device=table.device)
    return table
