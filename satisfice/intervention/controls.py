"""Controls: edits of next-token logits while a sequence thinks. Pure tensor code on a whole batch.

The parameters of every live request are tensors over slots, so a step costs a handful of small kernels whatever
the number of requests and their settings, and nothing has to come back to the host.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from satisfice.engines.control import Control, ControlBatch, Markers
from satisfice.thinking import encode_after, token_bytes


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
        tokens = self.tokens[slots]
        suppressed = (tokens >= 0) & (tokens != self.next_close_token(slots)[:, None]) & self.thinking(slots)[:, None]
        _lower(logits, tokens, suppressed)


def _lower(logits: torch.Tensor, tokens: torch.Tensor, impossible: torch.Tensor) -> None:
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


@dataclass(frozen=True, kw_only=True)
class ThinkingBudget(Control):
    """Bounds the length of thinking from both sides, without anything but logits: for engines that cannot go back.

    Tokens are counted from the start of the response, as in budget forcing (arXiv 2501.19393), whose hard cap and
    ignored endings these are. A token is forced by a logit that no other comes near.

    - At most: once `most` tokens are written and thinking is open, the closing marker is written, with `cue` behind
      it, and then the model goes on by itself. Whatever comes first inside thinking, so that a response that never
      opens it is left alone.
    - Towards the end (ours): from `ramp_start` tokens on, the closing marker's logit rises linearly, by `ramp_bias`
      nats in all at `most` tokens.
    - At least: for the first `endings` times that the model would end its thinking, it writes `wait` instead. A
      sampled token cannot be taken back here, so the marker's first token is made impossible, and the first token
      of `wait` takes its logit over where that is the higher one. In greedy decoding this is s1's rule exactly;
      in sampling, `wait` is drawn with the probability that ending would have had, and counts as an ignored ending
      unless the model found it more likely than ending anyway.
    - Never empty: a token of `end_ids`, which would end the whole text inside thinking, is made impossible there,
      and the closing marker takes its logit over where that is the higher one.

    Attributes:
        most: tokens; None for no cap.
        cue: text.
        ramp_start: tokens; None for no ramp.
        ramp_bias: nats.
        endings: how many endings to ignore.
        wait: text.
        end_ids: tokens that end a response.
    """

    most: int | None = None
    cue: str = ""
    ramp_start: int | None = None
    ramp_bias: float = 0.0
    endings: int = 0
    wait: str = "Wait"
    end_ids: tuple[int, ...] = ()

    def batch(self, markers: Markers, slots: int) -> "ThinkingBudgetBatch":
        """See `Control.batch`."""
        return ThinkingBudgetBatch(markers, slots)


_NEVER = 2**40
"""More tokens than any response has."""

_FORCED = 1e8
"""A logit that leaves all others no probability, at any temperature and after any penalty; but not those that a server
forces for reasons of its own (vLLM's `thinking_token_budget` writes 1e9)."""

_LAST_LINE, _CLOSE, _BEHIND, _WAIT = range(4)
"""The texts of a slot: how to close thinking after an unfinished line and after a finished one, what follows a
marker that was begun before the cap, and what replaces an ending."""


class ThinkingBudgetBatch(ControlBatch):
    """All live `ThinkingBudget` requests.

    Attributes:
        count: (N,) int64, tokens of the response until thinking was closed.
        most, ramp_start, ramp_bias: (N,), as in `ThinkingBudget`.
        endings: (N,) int64, endings that are still to be ignored.
        ends: (N, E) int64, `end_ids`, filled up with -1.
        texts: (4 N, L) int64, four texts a slot, each filled up with -1.
        text, place: (N,) int64, the text that is being written, and its next token's place; `place` is -1 while
            none is.
        closing: (N,) bool, whether thinking is being closed, or was, because of the cap.
        line_open: (N,) bool, whether the response ends inside a line.
        replaced: (N,) bool, whether the next token, if it is the first of `wait`, stands for an ending. `apply` knows;
            tokens that are only read again, after a pause of the request, are taken to.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        super().__init__(markers, slots)
        device = markers.device
        self.count = torch.zeros(slots, dtype=torch.int64, device=device)
        self.most = torch.full((slots,), _NEVER, device=device)
        self.ramp_start = torch.full((slots,), _NEVER, device=device)
        self.ramp_bias = torch.zeros(slots, device=device)
        self.endings = torch.zeros(slots, dtype=torch.int64, device=device)
        self.ends = torch.full((slots, 0), -1, device=device)
        self.texts = torch.full((4 * slots, 1), -1, device=device)
        self.text = torch.zeros(slots, dtype=torch.int64, device=device)
        self.place = torch.full((slots,), -1, device=device)
        self.closing = torch.zeros(slots, dtype=torch.bool, device=device)
        self.line_open = torch.zeros(slots, dtype=torch.bool, device=device)
        self.replaced = torch.ones(slots, dtype=torch.bool, device=device)
        written = token_bytes(markers.tokenizer)
        surplus = [b""] * max(0, markers.vocabulary_size - len(written))
        self._ends_inside_line = torch.tensor([not b.endswith(b"\n") for b in [*written, *surplus]], device=device)

    def admit(self, slot: int, control: Control) -> None:
        """See `ControlBatch.admit`."""
        assert isinstance(control, ThinkingBudget)
        super().admit(slot, control)
        self.count[slot] = 0
        self.most[slot] = _NEVER if control.most is None else control.most
        self.ramp_start[slot] = _NEVER if control.ramp_start is None else control.ramp_start
        self.ramp_bias[slot] = control.ramp_bias
        self.endings[slot] = control.endings
        self.ends = with_row(self.ends, slot, control.end_ids)
        for index, ids in enumerate(budget_texts(self.markers, control)):
            self.texts = with_row(self.texts, 4 * slot + index, ids)
        self.place[slot] = -1
        self.closing[slot] = False
        self.line_open[slot] = False
        self.replaced[slot] = True

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.apply`."""
        self._close_where_due(slots)
        state, count, most = self.state[slots], self.count[slots], self.most[slots]
        thinking, place = self.markers.thinking[state], self.place[slots]
        close = self.markers.next_close[state][:, None]
        wait = self.texts[4 * slots + _WAIT, 0].clamp(min=0)[:, None]
        start = self.ramp_start[slots]
        risen = ((count - start) / (most - start).clamp(min=1)).clamp(0, 1) * self.ramp_bias[slots]
        own_close, own_wait = logits.gather(1, close), logits.gather(1, wait)
        if self.ends.shape[1]:
            ends = self.ends[slots]
            refused = (ends >= 0) & (ends != close) & thinking[:, None]
            likeliest = logits.gather(1, ends.clamp(min=0)).masked_fill(~refused, float("-inf")).amax(1, keepdim=True)
            own_close = torch.maximum(own_close, likeliest)
            _lower(logits, ends, refused)
        new_close = own_close + (risen * thinking).to(logits.dtype)[:, None]
        ignored = (thinking & (self.endings[slots] > 0) & (place < 0) & ~self.markers.begun[state])[:, None]
        replaced = ignored & (new_close > own_wait)
        self.replaced[slots] = replaced[:, 0]
        logits.scatter_(1, close, new_close.masked_fill(ignored, float("-inf")))
        logits.scatter_(1, wait, torch.where(replaced, new_close, logits.gather(1, wait)))

        written = self.texts[self.text[slots], place.clamp(min=0)]
        begun = self.closing[slots] & (place < 0) & thinking
        token = torch.where(begun, close[:, 0], written.clamp(min=0))[:, None]
        forced = (begun | (place >= 0))[:, None]
        logits.scatter_(1, token, torch.where(forced, _FORCED, logits.gather(1, token)))

    def observe(self, tokens: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.observe`."""
        self._close_where_due(slots)
        before = self.state[slots]
        thinking = self.markers.thinking[before]
        super().observe(tokens, slots)
        closed = self.markers.closed[self.state[slots]]
        self.count[slots] += (~closed).long()
        self.line_open[slots] = self._ends_inside_line[tokens]

        # A text is given up where another token came, because the server had one of its own to force.
        place, text = self.place[slots], self.text[slots]
        kept = (place >= 0) & (tokens == self.texts[text, place.clamp(min=0)])
        place = torch.where(kept, place + 1, -1)
        # An ending was replaced, and the rest of the text that replaces it follows.
        wait = 4 * slots + _WAIT
        waits = self.replaced[slots] & thinking & (self.endings[slots] > 0) & (tokens == self.texts[wait, 0])
        self.endings[slots] -= waits.long()
        self.replaced[slots] = True
        # A marker that was not begun by a text is complete, and what follows it in a forced one follows here.
        completed = self.closing[slots] & ~kept & thinking & closed
        text = torch.where(waits, wait, torch.where(completed, 4 * slots + _BEHIND, text))
        place = torch.where(waits, 1, torch.where(completed, 0, place))
        width = self.texts.shape[1]
        over = (place >= width) | (self.texts[text, place.clamp(0, width - 1)] < 0)
        self.place[slots] = torch.where(over, -1, place)
        self.text[slots] = text

    def _close_where_due(self, slots: torch.Tensor) -> None:
        """Begin to close thinking where it has reached its cap."""
        state = self.state[slots]
        due = self.markers.thinking[state] & (self.count[slots] >= self.most[slots]) & ~self.closing[slots]
        whole = due & ~self.markers.begun[state]
        text = 4 * slots + torch.where(self.line_open[slots], _LAST_LINE, _CLOSE)
        self.closing[slots] |= due
        self.text[slots] = torch.where(whole, text, self.text[slots])
        self.place[slots] = torch.where(whole, 0, torch.where(due, -1, self.place[slots]))


def budget_texts(markers: Markers, control: ThinkingBudget) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids of what `control` may force: closing after an unfinished line, closing, what follows a marker, wait."""
    thinking_format, tokenizer = markers.thinking_format, markers.tokenizer
    behind = thinking_format.closing.removeprefix(thinking_format.close) + control.cue
    return (
        thinking_format.forced_close(tokenizer, "unfinished", control.cue),
        thinking_format.forced_close(tokenizer, "", control.cue),
        encode_after(tokenizer, behind) if behind else [],
        encode_after(tokenizer, control.wait) if control.endings else [],
    )


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
