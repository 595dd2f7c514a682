"""What an engine needs to know of a control: how to run one on a whole batch, without a word of Python per row.

A `Control` (`control_setting.py`) is one request's setting, plain data. All requests of one class of control share
one `ControlBatch`, which keeps their parameters and their place in the thinking format as tensors indexed by slot. A
slot belongs to one request from `admit` to `release`; a step names the slots of its rows. The same three calls, `look`
and `apply` on logits and `observe` on tokens, are all that any engine's sampler has to offer, so one implementation
serves the transformers engine and both processor interfaces of vLLM.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from satisfice.engines.control_setting import Control
from satisfice.thinking import Phase, ThinkingFormat


class Markers:
    """A thinking format as tensors on one device; read-only and shared by all batches.

    Attributes:
        states: (S, V) int16, next state of the marker automaton for each token.
        states_on_host: the same as an array, for what is not worth a tensor.
        thinking: (S,) bool, whether a state is inside thinking.
        closed: (S,) bool, whether thinking is closed in a state.
        next_close: (S,) int64, the token that begins the closing marker or, in a state where the tokenizer's first
            tokens of it are written, goes on with it.
        begun: (S,) bool, whether such first tokens are written in a state.
        thinking_format: what the markers are made from.
        tokenizer: for controls that name words.
        vocabulary_size: V of the model's logits.
        device: where all tensors live.
    """

    def __init__(
        self,
        thinking_format: ThinkingFormat,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        automaton = thinking_format.automaton(tokenizer)
        table = torch.from_numpy(automaton.token_table)
        # A model's output layer is often wider than its vocabulary; such tokens have no text and change nothing.
        surplus = max(0, vocabulary_size - table.shape[1])
        stay = torch.arange(table.shape[0], dtype=table.dtype)[:, None].expand(-1, surplus)
        close_ids = thinking_format.close_ids(tokenizer)
        next_close = torch.full((table.shape[0],), close_ids[0])
        begun = torch.zeros(table.shape[0], dtype=torch.bool)
        written = automaton.thinking_state
        for token, following in pairwise(close_ids):
            written = automaton.step(written, token)
            next_close[written] = following
            begun[written] = True
        self.thinking_format = thinking_format
        self.tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self.device = torch.device(device)
        states = torch.cat([table, stay], dim=1)
        self.states_on_host = states.numpy()
        self._flat_states, self._width = self.states_on_host.ravel(), self.states_on_host.shape[1]
        self.states = states.to(self.device)
        self.thinking = torch.from_numpy(automaton.phases == Phase.THINKING).to(self.device)
        self.closed = torch.from_numpy(automaton.phases == Phase.ANSWER).to(self.device)
        self.next_close = next_close.to(self.device)
        self.begun = begun.to(self.device)

    def from_states(self, states: np.ndarray) -> "FromStates":
        """What tells whether tokens move any of these states; for states that are asked about again and again."""
        return FromStates(states, states.astype(np.int64) * self._width, self._flat_states)


class FromStates(NamedTuple):
    """States of the marker automaton.

    Attributes:
        states: (B,) of them.
        begins: where their rows begin in `flat`.
        flat: `Markers.states_on_host`, one row after the other, which is faster to look up.
    """

    states: np.ndarray
    begins: np.ndarray
    flat: np.ndarray

    def after(self, tokens: np.ndarray) -> np.ndarray:
        """(B,) the states after these tokens."""
        after: np.ndarray = self.flat.take(self.begins + tokens)
        return after

    def stay(self, tokens: np.ndarray) -> bool:
        """Whether no token leads to another state."""
        return bool((self.after(tokens) == self.states).all())


class ControlBatch(ABC):
    """All live requests of one class of control, as tensors over slots.

    A slot that was never given to a request may be named in any number of rows, which it leaves as they are.

    Attributes:
        markers: the thinking format they follow.
        state: (N,) int64, each slot's state of the marker automaton.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        self.markers = markers
        self.state = torch.zeros(slots, dtype=torch.int64, device=markers.device)

    def admit(self, slot: int, control: Control) -> None:
        """Give `slot` to a request; subclasses add their own parameters."""
        self.state[slot] = control.state

    def look(self, logits: torch.Tensor, slots: torch.Tensor) -> None:  # noqa: B027
        """Take note of what the model makes of the next token; a step looks, applies and observes, in this order.

        Args:
            logits: (B, V) floating point, before this control or any other has edited them.
            slots: (B,) int64, the slot of each row.
        """

    @abstractmethod
    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """Edit raw logits in place, before temperature and truncation.

        Args:
            logits: (B, V) floating point.
            slots: (B,) int64, the slot of each row.
        """

    def observe(self, tokens: torch.Tensor, slots: torch.Tensor) -> None:
        """Take note of the tokens that were chosen.

        Args:
            tokens: (B,) int64.
            slots: (B,) int64, the slot of each row.
        """
        self.state[slots] = self.markers.states[self.state[slots], tokens].long()

    def follow(self, tokens: np.ndarray, slots: np.ndarray) -> None:
        """As `observe`, for a host that has the tokens on the CPU anyway: (B,) int64 each.

        Most tokens change nothing, which is cheaper to find out there; subclasses that do override this. A batch is
        told of its tokens by one of the two, never by both.
        """
        device = self.markers.device
        self.observe(torch.from_numpy(tokens).to(device), torch.from_numpy(slots).to(device))

    def pause(self, slot: int) -> tuple[torch.Tensor, ...] | None:
        """What of a request is not to be read from its tokens, for `resume`; None where nothing is."""
        return None

    def resume(self, slot: int, tokens: Sequence[int], paused: tuple[torch.Tensor, ...] | None = None) -> None:
        """Take note of many tokens of one request, as `observe` would one by one: it comes back after a pause.

        Args:
            slot: it has just been admitted to.
            tokens: that it had written.
            paused: what `pause` returned for it; None where nothing was kept but its tokens.
        """
        state = int(self.state[slot])
        for following in self.markers.states_on_host[:, list(tokens)].T.tolist():
            state = following[state]
        self.state[slot] = state

    def changing(self) -> dict[str, torch.Tensor]:
        """What `look`, `apply` and `observe` change, by name, (N, ...) each: the tensors themselves, to write into.

        Subclasses that keep more than `state` override this.
        """
        return {"state": self.state}

    def snapshot(self) -> tuple[torch.Tensor, ...]:
        """A copy of what changes: a host that drafts tokens may have to go back to it."""
        return tuple(each.clone() for each in self.changing().values())

    def restore(self, snapshot: tuple[torch.Tensor, ...]) -> None:
        """Go back to where `snapshot` was taken; no slot was given to another request since."""
        for each, taken in zip(self.changing().values(), snapshot, strict=True):
            each.copy_(taken)

    def thinking(self, slots: torch.Tensor) -> torch.Tensor:
        """(B,) bool: which rows are inside thinking."""
        return self.markers.thinking[self.state[slots]]

    def next_close_token(self, slots: torch.Tensor) -> torch.Tensor:
        """(B,) int64: the token that begins the closing marker or, where it is partly written, goes on with it."""
        return self.markers.next_close[self.state[slots]]
