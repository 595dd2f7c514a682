"""Controls: edits of next-token logits while a sequence thinks. Pure tensor code on a whole batch.

The parameters of every live request are tensors over slots, so a step costs a handful of small kernels whatever
the number of requests and their settings, and nothing has to come back to the host.
"""

from dataclasses import dataclass

import torch

from satisfice.engines.control import Control, ControlBatch, Markers


@dataclass(frozen=True, kw_only=True)
class EndScaling(Control):
    """Makes the closing marker more or less likely while thinking (arXiv 2505.07961, temperature scaling).

    The raw logit z of the token that begins the marker, or goes on with a partly written one, becomes
    `z + max(z, 0) * gain + bias`. Dividing by a temperature T is `gain = 1/T - 1`; it acts on positive logits
    only, because dividing a negative logit by T < 1 would make stopping less likely instead of more.

    Attributes:
        gain: relative change of a positive logit.
        bias: absolute change of the logit; independent of the model's logit offset.
    """

    gain: float = 0.0
    bias: float = 0.0

    def batch(self, markers: Markers, slots: int) -> "EndScalingBatch":
        """See `Control.batch`."""
        return EndScalingBatch(markers, slots)


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
        token = self.next_close_token(slots)[:, None]
        change = logits.gather(1, token).clamp(min=0)[:, 0] * self.gain[slots] + self.bias[slots]
        logits.scatter_add_(1, token, (change * self.thinking(slots))[:, None].to(logits.dtype))
