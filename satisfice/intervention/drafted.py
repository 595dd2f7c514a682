"""Controls while a host drafts tokens: where requests stand after each draft, until it is known which were accepted.

A host that decodes speculatively shows the logits of several places of a request at once: after its last token, and
after each token that was drafted behind it. Controls follow the drafts, since each of them changes what comes next; a
step later it is known how many were accepted, and whoever was followed further goes back to the last of these.
"""

import torch

from satisfice.engines.control_batch import ControlBatch
from satisfice.intervention.control_table import ControlTable


class DraftedTokens:
    """Where the requests of a table stand after each of their newest tokens.

    Args:
        table: their controls.
        most: tokens that are drafted at once at most.
    """

    def __init__(self, table: ControlTable, most: int) -> None:
        self.most = most
        self._table = table
        self._taken: dict[tuple[ControlBatch, str], torch.Tensor] = {}

    def take(self, place: int, slots: torch.Tensor) -> None:
        """Keep where requests stand.

        Args:
            place: how many drafted tokens they have been followed by since their last certain one.
            slots: (B,) int64, no slot twice.
        """
        for batch in self._table.live:
            for name, now in batch.changing().items():
                self._of(batch, name, now)[place, slots] = now[slots]

    def go_back(self, slots: torch.Tensor, places: torch.Tensor, there: torch.Tensor) -> None:
        """Have requests stand where they stood.

        Args:
            slots: (B,) int64, no slot twice.
            places: (B,) int64, after how many drafted tokens.
            there: (B,) bool, which of them; the others stay.
        """
        for batch in self._table.live:
            for name, now in batch.changing().items():
                before = self._of(batch, name, now)[places, slots]
                now[slots] = torch.where(there.view(-1, *[1] * (now.dim() - 1)), before, now[slots])

    def _of(self, batch: ControlBatch, name: str, now: torch.Tensor) -> torch.Tensor:
        """(most + 1, *now.shape), what was kept of it."""
        kept = self._taken.get((batch, name))
        if kept is None or kept.shape[1:] != now.shape:
            wider = now.expand(self.most + 1, *now.shape).clone()
            if kept is not None:  # a request came whose rule looks at more tokens
                wider[..., : kept.shape[-1]] = kept
            kept = self._taken[batch, name] = wider
        return kept
