"""What an engine needs to know of a control: how to run one on a whole batch, without a word of Python per row.

A `Control` is one request's setting, plain data. All requests of one class of control share one `ControlBatch`,
which keeps their parameters and their place in the thinking format as tensors indexed by slot. A slot belongs to
one request from `admit` to `release`; a step names the slots of its rows. The same two calls, `apply` on logits
and `observe` on tokens, are all that any engine's sampler has to offer, so one implementation serves the
transformers engine and both processor interfaces of vLLM.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from satisfice.thinking import Phase, ThinkingFormat


@dataclass(frozen=True, kw_only=True)
class Control(ABC):
    """Edits the next-token logits of one sequence while it thinks.

    Attributes:
        state: the marker automaton's state at the end of the ids that generation starts from (`Prompt.state`).
    """

    state: int = 0

    @abstractmethod
    def batch(self, markers: "Markers", slots: int) -> "ControlBatch":
        """An empty batch for controls of this class, with room for `slots` requests."""


class Markers:
    """A thinking format as tensors on one device; read-only and shared by all batches.

    Attributes:
        states: (S, V) int16, next state of the marker automaton for each token.
        thinking: (S,) bool, whether a state is inside thinking.
        close_ids: (M,) the closing marker's tokens as the tokenizer writes it.
        symbol: (V,) which of the closing marker's distinct tokens a token is; the last symbol means none of them.
        progress: (M, symbols) how many tokens of the closing marker are matched after one more token.
        device: where all of them live.
    """

    def __init__(
        self,
        thinking_format: ThinkingFormat,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        automaton = thinking_format.automaton(tokenizer)
        close_ids = thinking_format.close_ids(tokenizer)
        table = torch.from_numpy(automaton.token_table)
        # A model's output layer is often wider than its vocabulary; such tokens have no text and change nothing.
        surplus = max(0, vocabulary_size - table.shape[1])
        stay = torch.arange(table.shape[0], dtype=table.dtype)[:, None].expand(-1, surplus)
        distinct = list(dict.fromkeys(close_ids))
        symbol = torch.full((table.shape[1] + surplus,), len(distinct), dtype=torch.int64)
        symbol[torch.tensor(distinct)] = torch.arange(len(distinct))
        self.device = torch.device(device)
        self.states = torch.cat([table, stay], dim=1).to(self.device)
        self.thinking = torch.from_numpy(automaton.phases == Phase.THINKING).to(self.device)
        self.close_ids = torch.tensor(close_ids, device=self.device)
        self.symbol = symbol.to(self.device)
        self.progress = torch.tensor(_matched_lengths(close_ids, distinct), device=self.device)


def _matched_lengths(pattern: Sequence[int], alphabet: Sequence[int]) -> list[list[int]]:
    """Knuth-Morris-Pratt: tokens of `pattern` matched after reading one symbol (or none of them) at each length.

    A full match starts over at 0: what follows a complete marker is no part of it.
    """
    lengths = []
    for matched in range(len(pattern)):
        row = []
        for symbol in (*alphabet, None):
            read = [*pattern[:matched], symbol]
            overlap = next(n for n in range(len(read), -1, -1) if read[len(read) - n :] == list(pattern[:n]))
            row.append(overlap % len(pattern))
        lengths.append(row)
    return lengths


class ControlBatch(ABC):
    """All live requests of one class of control, as tensors over slots.

    Attributes:
        markers: the thinking format they follow.
        state: (N,) int64, each slot's state of the marker automaton.
        matched: (N,) int64, tokens of the closing marker that each slot has just written.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        self.markers = markers
        self.state = torch.zeros(slots, dtype=torch.int64, device=markers.device)
        self.matched = torch.zeros(slots, dtype=torch.int64, device=markers.device)

    def admit(self, slot: int, control: Control) -> None:
        """Give `slot` to a request; subclasses add their own parameters."""
        self.state[slot] = control.state
        self.matched[slot] = 0

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
        if len(self.markers.close_ids) > 1:
            self.matched[slots] = self.markers.progress[self.matched[slots], self.markers.symbol[tokens]]

    def thinking(self, slots: torch.Tensor) -> torch.Tensor:
        """(B,) bool: which rows are inside thinking."""
        return self.markers.thinking[self.state[slots]]

    def next_close_token(self, slots: torch.Tensor) -> torch.Tensor:
        """(B,) int64: the token that begins the closing marker or, where it is partly written, goes on with it."""
        return self.markers.close_ids[self.matched[slots]]
