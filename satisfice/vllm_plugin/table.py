"""The controls of all live requests of one model runner."""

from collections.abc import Sequence

import torch

from satisfice.engines.control import Control, ControlBatch, Markers
from satisfice.intervention.controls import ThinkingBudget

NOBODY = 0
"""The slot of rows without controls; it is never given away, and so it changes nothing."""


class ControlTable:
    """Requests by slot: which controls each of them has, and one batch for every class of control.

    A step runs over all rows of the model's output, those without controls under the slot `NOBODY`, so that nothing
    is copied out of the logits and back.

    Attributes:
        markers: the model's thinking format.
        slots: how many there are, `NOBODY` among them.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        self.markers = markers
        self.slots = slots
        self._batches: dict[type[Control], ControlBatch] = {}
        self._lanes: dict[type[Control], torch.Tensor] = {}
        self._users: dict[type[Control], set[int]] = {}

    def admit(self, slot: int, controls: Sequence[Control], written: Sequence[int] = ()) -> None:
        """Give `slot` to a request.

        Args:
            slot: a free one, or one whose request has left.
            controls: at most one of a class.
            written: the tokens that the request's response begins with, where it was interrupted.
        """
        self.release(slot)
        here = torch.tensor([slot], device=self.markers.device)
        for control in controls:
            kind = type(control)
            if kind not in self._batches:
                self._batches[kind] = control.batch(self.markers, self.slots)
                self._lanes[kind] = torch.full((self.slots,), NOBODY, device=self.markers.device)
                self._users[kind] = set()
            self._batches[kind].admit(slot, control)
            self._lanes[kind][slot] = slot
            self._users[kind].add(slot)
            for token in written:
                self._batches[kind].observe(torch.tensor([token], device=self.markers.device), here)

    def release(self, slot: int) -> None:
        """Take `slot` back from its request, if it has one."""
        for kind, users in self._users.items():
            if slot in users:
                users.discard(slot)
                self._lanes[kind][slot] = NOBODY

    def observe(self, tokens: torch.Tensor, slots: torch.Tensor) -> None:
        """Take note of the tokens that were chosen; (B,) int64 each."""
        for kind in self._live():
            self._batches[kind].observe(tokens, self._lanes[kind][slots])

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """Edit logits in place; (B, V) and (B,) int64."""
        for kind in self._live():
            self._batches[kind].apply(logits, self._lanes[kind][slots])

    def _live(self) -> list[type[Control]]:
        # What is forced comes last, so that nothing else touches it.
        return sorted((kind for kind, users in self._users.items() if users), key=lambda kind: kind is ThinkingBudget)
