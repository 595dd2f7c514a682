"""A control: the end of thinking is unlikely at first. A control is one request's setting, a batch holds all."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveInt

from satisfice.engines.base import Capability
from satisfice.engines.control_batch import Control, ControlBatch, Markers
from satisfice.intervention import Draft, Method
from satisfice.thinking import ThinkingFormat


@dataclass(frozen=True, kw_only=True)
class LaterEndControl(Control):
    least: int

    def batch(self, markers: Markers, slots: int) -> "LaterEndBatch":
        return LaterEndBatch(markers, slots)


class LaterEndBatch(ControlBatch):
    def __init__(self, markers: Markers, slots: int) -> None:
        super().__init__(markers, slots)
        self.left = torch.zeros(slots, dtype=torch.int64, device=markers.device)

    def admit(self, slot: int, control: Control) -> None:
        super().admit(slot, control)
        self.left[slot] = control.least

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        change = -5.0 * ((self.left[slots] > 0) & self.thinking(slots))
        logits.scatter_add_(1, self.next_close_token(slots)[:, None], change[:, None].to(logits.dtype))

    def observe(self, tokens: torch.Tensor, slots: torch.Tensor) -> None:
        super().observe(tokens, slots)
        self.left[slots] -= 1


@dataclass(frozen=True)
class LaterEnd(Method):
    """Lower the logit of the end of thinking by 5 nats at first.

    Attributes:
        least: tokens before which an end is unlikely.
    """

    name: ClassVar[str] = "later-end"
    summary: ClassVar[str] = "makes the end of thinking unlikely at first"
    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTROL})

    least: PositiveInt = 50

    def control(self, thinking: ThinkingFormat) -> Control:
        return LaterEndControl(least=self.least)

    async def respond(self, draft: Draft) -> None:
        await draft.write()
