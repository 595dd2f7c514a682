"""What the controls do to next-token logits: pure tensor code on a whole batch.

The parameters of every live request are tensors over slots, so a step costs a handful of small kernels whatever
the number of requests and their settings, and nothing has to come back to the host.
"""

from collections.abc import Sequence

import torch

from satisfice.engines.control_batch import ControlBatch, Markers
from satisfice.engines.control_setting import Control
from satisfice.intervention.controls import EndScaling, SuppressTokens, single_tokens


class EndScalingBatch(ControlBatch):
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
        state = self.state.index_select(0, slots)
        token = self.markers.next_close.index_select(0, state)[:, None]
        gain, bias = self.gain.index_select(0, slots), self.bias.index_select(0, slots)
        change = torch.addcmul(bias, logits.gather(1, token)[:, 0].clamp(min=0), gain)
        change = change * self.markers.thinking.index_select(0, state)
        logits.scatter_add_(1, token, change[:, None].to(logits.dtype))


class SuppressTokensBatch(ControlBatch):
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
        found = single_tokens(self.markers.tokenizer, control.words).values()
        ids = [token for ids in found for token in ids if token < self.markers.vocabulary_size]
        self.tokens = with_row(self.tokens, slot, ids)

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.apply`."""
        state = self.state[slots[:, None]]
        tokens = self.tokens.index_select(0, slots)
        suppressed = (tokens >= 0) & (tokens != self.markers.next_close[state]) & self.markers.thinking[state]
        lower(logits, tokens, suppressed)


def lower(logits: torch.Tensor, tokens: torch.Tensor, impossible: torch.Tensor) -> None:
    """Make tokens impossible where they are to be; `tokens` may hold -1, which is not.

    The others are left as they are by a minimum with infinity, so that -1 can stand for token 0 and no place is
    written twice with different values.
    """
    limit = torch.where(impossible, -torch.inf, torch.inf).to(logits.dtype)
    logits.scatter_reduce_(1, tokens.clamp(min=0), limit, "amin")


def with_row(table: torch.Tensor, row: int, ids: Sequence[int]) -> torch.Tensor:
    """`table` with `ids` in a row, filled up with -1; a wider table where they do not fit."""
    if len(ids) > table.shape[1]:
        wider = torch.full((table.shape[0], len(ids)), -1, device=table.device)
        wider[:, : table.shape[1]] = table
        table = wider
    table[row] = torch.tensor([*ids, *[-1] * (table.shape[1] - len(ids))], device=table.device)
    return table
