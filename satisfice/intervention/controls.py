"""Controls: edits of next-token logits while a sequence thinks. Pure tensor code on a whole batch.

The parameters of every live request are tensors over slots, so a step costs a handful of small kernels whatever
the number of requests and their settings, and nothing has to come back to the host.
"""

import functools
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from satisfice.engines.control import Control, ControlBatch, Markers
from satisfice.thinking import token_bytes


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


@dataclass(frozen=True, kw_only=True)
class SuppressTokens(Control):
    """Makes words impossible while thinking: the logit of every token that is one of them becomes minus infinity.

    The closing marker stays possible, whatever the words.

    Attributes:
        words: see `single_tokens`.
    """

    words: tuple[str, ...]

    def batch(self, markers: Markers, slots: int) -> "SuppressTokensBatch":
        """See `Control.batch`."""
        return SuppressTokensBatch(markers, slots)


class SuppressTokensBatch(ControlBatch):
    """All live `SuppressTokens` requests.

    Attributes:
        masks: (P, V) bool, the suppressed tokens of each of the P lists of words seen so far.
        which: (N,) int64, the list of each slot.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        super().__init__(markers, slots)
        self.masks = torch.zeros((0, markers.vocabulary_size), dtype=torch.bool, device=markers.device)
        self.which = torch.zeros(slots, dtype=torch.int64, device=markers.device)
        self._lists: list[tuple[str, ...]] = []

    def admit(self, slot: int, control: Control) -> None:
        """See `ControlBatch.admit`."""
        assert isinstance(control, SuppressTokens)
        super().admit(slot, control)
        if control.words not in self._lists:
            self._lists.append(control.words)
            mask = torch.zeros(self.markers.vocabulary_size, dtype=torch.bool)
            for ids in single_tokens(self.markers.tokenizer, control.words).values():
                mask[[token for token in ids if token < len(mask)]] = True
            self.masks = torch.cat([self.masks, mask[None].to(self.masks.device)])
        self.which[slot] = self._lists.index(control.words)

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.apply`."""
        suppressed = self.masks[self.which[slots]] & self.thinking(slots)[:, None]
        suppressed.scatter_(1, self.next_close_token(slots)[:, None], False)
        logits.masked_fill_(suppressed, float("-inf"))


@functools.lru_cache(maxsize=16)
def single_tokens(tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The tokens that are one of `words`, by word; none where the tokenizer has no token for it.

    A token is a word if their texts agree apart from case and the white space around them.

    Args:
        tokenizer: the model's tokenizer.
        words: in lower case (casefolded), without space around them.
    """
    found: dict[str, tuple[int, ...]] = dict.fromkeys(words, ())
    for token, written in enumerate(token_bytes(tokenizer)):
        word = written.decode(errors="replace").strip().casefold()
        if word in found:
            found[word] = (*found[word], token)
    return found
