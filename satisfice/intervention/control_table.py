"""The controls of all live requests, or rows, of one model: of vLLM's runner or of Transformers' `generate`."""

from collections.abc import Sequence

import numpy as np
import torch

from satisfice.engines.control_batch import ControlBatch, Markers
from satisfice.engines.control_setting import Control
from satisfice.intervention.controls import ThinkingBudget

NOBODY = 0
"""The slot of rows without controls; it is never given away, and so it changes nothing."""


class ControlTable:
    """Requests by slot: which controls each of them has, and one batch for every class of control.

    A step runs over all rows of the model's output, those without controls under the slot `NOBODY`, so that nothing
    is copied out of the logits and back. A request that has no control of a class has one that changes nothing.

    Attributes:
        markers: the model's thinking format.
        slots: how many there are, `NOBODY` among them.
        live: the batches of all classes of control that a request has, in the order in which they edit logits.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        self.markers = markers
        self.slots = slots
        self._batches: dict[type[Control], ControlBatch] = {}
        self._users: dict[type[Control], set[int]] = {}
        self._left: dict[type[Control], set[int]] = {}
        self.live: list[ControlBatch] = []

    def admit(self, slot: int, controls: Sequence[Control], written: Sequence[int] = ()) -> None:
        """Give `slot` to a request.

        Args:
            slot: a free one, or one whose request has left.
            controls: at most one of a class; none for a request that is only not to have those of the slot's last one.
            written: the tokens that the request's response begins with, where it was interrupted.
        """
        self.release(slot)
        for control in controls:
            kind = type(control)
            if kind not in self._batches:
                self._batches[kind] = control.batch(self.markers, self.slots)
                self._users[kind], self._left[kind] = set(), set()
            self._users[kind].add(slot)
            self._left[kind].discard(slot)
            self._batches[kind].admit(slot, control)
            if written:
                self._batches[kind].resume(slot, written)
        for kind, left in self._left.items():
            if slot in left:
                self._batches[kind].admit(slot, kind())
                left.discard(slot)
        self._find_live()

    def release(self, slot: int) -> None:
        """Take `slot` back from its request, if it has one; no row may have the slot until it is given away again."""
        for kind, users in self._users.items():
            if slot in users:
                users.discard(slot)
                self._left[kind].add(slot)
        self._find_live()

    def observe(self, tokens: torch.Tensor, slots: torch.Tensor) -> None:
        """Take note of the tokens that were chosen; (B,) int64 each."""
        for batch in self.live:
            batch.observe(tokens, slots)

    def follow(self, tokens: np.ndarray, slots: np.ndarray) -> None:
        """The same for a host that has them on the CPU, see `ControlBatch.follow`; one of the two is called, always."""
        for batch in self.live:
            batch.follow(tokens, slots)

    def look(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """Show all controls the logits that none of them has edited; (B, V) and (B,) int64."""
        for batch in self.live:
            batch.look(logits, slots)

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """Edit logits in place; (B, V) and (B,) int64."""
        for batch in self.live:
            batch.apply(logits, slots)

    def snapshot(self) -> list[tuple[torch.Tensor, ...]]:
        """Where all requests stand; see `ControlBatch.snapshot`."""
        return [batch.snapshot() for batch in self.live]

    def restore(self, snapshot: list[tuple[torch.Tensor, ...]]) -> None:
        """Go back to where `snapshot` was taken; nobody was admitted or released since."""
        for batch, taken in zip(self.live, snapshot, strict=True):
            batch.restore(taken)

    def _find_live(self) -> None:
        # All look before any of them edits. What is forced comes last, so that nothing else touches it.
        kinds = sorted((kind for kind, users in self._users.items() if users), key=lambda kind: kind is ThinkingBudget)
        self.live = [self._batches[kind] for kind in kinds]
