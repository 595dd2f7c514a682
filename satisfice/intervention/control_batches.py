"""What the controls do to next-token logits: pure tensor code on a whole batch.

The parameters of every live request are tensors over slots, so a step costs a handful of small kernels whatever
the number of requests and their settings, and nothing has to come back to the host.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from satisfice.engines.control_batch import ControlBatch, Markers
from satisfice.engines.control_setting import Control
from satisfice.intervention.controls import EndScaling, SuppressTokens, ThinkingBudget, budget_texts, single_tokens
from satisfice.thinking import token_bytes


class MarkerBatch(ControlBatch):
    """Requests of which nothing changes but their place in the thinking format.

    A host that has the tokens on the CPU tells of them by `follow`. Then it is known that most tokens move nobody,
    and what a step needs of the slots is looked up again only after one that did.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        super().__init__(markers, slots)
        self._following = False
        self._places = np.zeros(slots, dtype=np.int64)  # `state`, on the host; only kept up by `follow`
        self._found: tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None = None

    def admit(self, slot: int, control: Control) -> None:
        """See `ControlBatch.admit`."""
        super().admit(slot, control)
        self._places[slot], self._found = control.state, None

    def follow(self, tokens: np.ndarray, slots: np.ndarray) -> None:
        """See `ControlBatch.follow`."""
        self._following = True
        places = self._places[slots]
        after = self.markers.states_on_host[places, tokens]
        moved = after != places
        if moved.any():
            self._places[slots[moved]] = after[moved]
            there = torch.from_numpy(slots[moved]).to(self.markers.device)
            self.state[there] = torch.from_numpy(after[moved].astype(np.int64)).to(self.markers.device)
            self._found = None

    def resume(self, slot: int, tokens: Sequence[int]) -> None:
        """See `ControlBatch.resume`."""
        super().resume(slot, tokens)
        self._places[slot], self._found = int(self.state[slot]), None

    def found(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What `_find` says of these slots, kept from step to step where that is known to be the same."""
        if not self._following:
            return self._find(slots)
        if self._found is None or self._found[0] is not slots:
            self._found = slots, self._find(slots)
        return self._found[1]

    @abstractmethod
    def _find(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What `apply` needs of these slots besides logits."""


class EndScalingBatch(MarkerBatch):
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
        token, gain, bias, thinking = self.found(slots)
        change = torch.addcmul(bias, logits.gather(1, token).clamp(min=0), gain) * thinking
        logits.scatter_add_(1, token, change.to(logits.dtype))

    def _find(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 1) each: the marker's next token, gain, bias, and whether the row is inside thinking."""
        state = self.state.index_select(0, slots)
        token, thinking = self.markers.next_close.index_select(0, state), self.markers.thinking.index_select(0, state)
        gain, bias = self.gain.index_select(0, slots), self.bias.index_select(0, slots)
        return token[:, None], gain[:, None], bias[:, None], thinking[:, None]


class SuppressTokensBatch(MarkerBatch):
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
        tokens, limit = self.found(slots)
        logits.scatter_reduce_(1, tokens, limit.to(logits.dtype), "amin")

    def _find(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, K) each: tokens, and the most that their logits may be."""
        state = self.state[slots[:, None]]
        tokens = self.tokens.index_select(0, slots)
        suppressed = (tokens >= 0) & (tokens != self.markers.next_close[state]) & self.markers.thinking[state]
        return _limits(tokens, suppressed)


def _limits(tokens: torch.Tensor, impossible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What to take the minimum with: minus infinity for tokens that are to be impossible, infinity for others.

    `tokens` may hold -1, which stands for token 0 and is left as it is, so that no place is written twice with
    different values.
    """
    return tokens.clamp(min=0), torch.where(impossible, -torch.inf, torch.inf)


def with_row(table: torch.Tensor, row: int, ids: Sequence[int]) -> torch.Tensor:
    """`table` with `ids` in a row, filled up with -1; a wider table where they do not fit."""
    if len(ids) > table.shape[1]:
        wider = torch.full((table.shape[0], len(ids)), -1, device=table.device)
        wider[:, : table.shape[1]] = table
        table = wider
    table[row] = torch.tensor([*ids, *[-1] * (table.shape[1] - len(ids))], device=table.device)
    return table


_NEVER = 2**40
"""More tokens than any response has."""

_FORCED = 1e8
"""A logit that leaves all others no probability, at any temperature and after any penalty; but not those that a server
forces for reasons of its own (vLLM's `thinking_token_budget` writes 1e9)."""

_LAST_LINE, _CLOSE, _AFTER, _WAIT = range(4)
"""The texts of a slot: how to close thinking after an unfinished line and after a finished one, what follows a
marker that was begun before the cap, and what replaces an ending."""

_STATE, _COUNT, _FORCE = 0, 1, 5
"""Columns of `ThinkingBudgetBatch.now`."""
_FREE = np.array((0, 0, 2**40, -1))
"""The most that those after the count hold while the model writes: not closing, no text, any place, none forced."""

_CLOSING, _CLOSED, _THINKING, _BEGUN, _LINE_DONE, _KEPT, _DUE, _WAITS = (1 << bit for bit in range(8))
"""What is known of a slot when a token has come, one bit each."""


def _outcome(known: int) -> tuple[int, int, int, int, int, int]:
    """What a token leads to, from the bits of what is known: the rules of `ThinkingBudget`.

    A slot is free, which is to say that the model writes, or a text is forced on it, token by token:

        free -------- cap reached ------------------------> _CLOSE or _LAST_LINE --- its last token --> free, closed
        free -------- cap reached, marker begun ----------> the marker's own rest -- marker complete -> _AFTER
        free -------- a token that stands for an ending --> _WAIT, from its second token on ----------> free
        _WAIT ------- cap reached ------------------------> as from free
        _AFTER ------ its last token ---------------------> free, closed
        any text ---- another token came than its own ----> free; while closing, the marker's own rest

    Each token looks up one of the 256 outcomes; where several lines fit, the cap is first, then an ending, then the
    text under way.

    Bits:
        _CLOSING: thinking was being closed because of its cap.
        _CLOSED, _THINKING: thinking is closed, or open, after the token.
        _BEGUN: the closing marker's first tokens are written.
        _LINE_DONE: the token ends a line.
        _KEPT: the token is the one that a text had here.
        _DUE: the cap is reached.
        _WAITS: the token stands for an ending.

    Returns:
        1 where a text goes on; 1 where one begins; which; from which of its tokens on; 1 while thinking is being
        closed; 1 where the next ending may be replaced.
    """
    thinking, begun = bool(known & _THINKING), bool(known & _BEGUN)
    comes_due = thinking and bool(known & _DUE) and not known & _CLOSING
    closing = thinking and (comes_due or bool(known & _CLOSING))
    may_end = thinking and not begun
    begins: tuple[int, int] | None = None
    goes_on = False
    if comes_due:
        if not begun:
            begins = (_CLOSE if known & _LINE_DONE else _LAST_LINE, 0)
    elif known & _WAITS:
        begins = (_WAIT, 1)
    elif known & _KEPT:
        goes_on = True
    elif known & _CLOSING and known & _CLOSED:
        # A marker is complete that no text wrote: one that was begun before the cap, or that the server forced.
        begins = (_AFTER, 0)
    which, place = begins or (0, 0)
    return int(goes_on), int(begins is not None), which, place, int(closing), int(may_end)


_OUTCOMES = [_outcome(known) for known in range(256)]


class _Ending(NamedTuple):
    """What a step needs of its rows to change how likely their thinking ends, (B, 1) each unless said otherwise.

    Attributes:
        close: the marker's next token.
        thinking: whether the row is inside thinking.
        ended: (B, E) each: tokens that end a response, the most that their logits may be, and where they are left as
            they are.
        ramp: (B,) each: where it starts, nats a token, and nats in all.
        waiting: the first token of what replaces an ending, and whether the next one may be replaced.
    """

    close: torch.Tensor
    thinking: torch.Tensor
    ended: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None
    ramp: tuple[torch.Tensor, ...] | None
    waiting: tuple[torch.Tensor, torch.Tensor] | None


class ThinkingBudgetBatch(ControlBatch):
    """All live `ThinkingBudget` requests.

    What changes with every token is one table, what a request brings along another, and the rules are a third, so
    that a step is a few look-ups.

    Attributes:
        now: (N, 6) int64: the marker automaton's state; tokens until thinking was closed; whether thinking is being
            closed because of its cap; the text that is being written (a row of `texts`, 0 for none) and its next
            token's place; the token that is forced now, or -1.
        waiting: (N, 3) int64: endings that are still to be ignored; whether the next ending may be replaced; whether
            the next token, if it is the first of `wait`, stands for an ending. The last one `apply` knows better;
            tokens that are only read again, after a pause of the request, are taken to.
        fixed: (N, 3) int64: `most`; the first of the slot's rows in `texts`; the first token of `wait`, or -1.
        ramp: (N, 3) float: where it starts, nats a token, and nats in all.
        ends: (N, E) int64, `end_ids`, filled up with -1.
        texts: (4 N + 1, L) int64, an empty one and four of each slot, each with -1 after it.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        super().__init__(markers, slots)
        device = markers.device
        self.now = torch.zeros((slots, 6), dtype=torch.int64, device=device)
        self.now[:, _FORCE] = -1
        self.state = self.now[:, _STATE]
        self.waiting = torch.zeros((slots, 3), dtype=torch.int64, device=device)
        rows = torch.arange(slots, device=device) * 4 + 1
        self.fixed = torch.stack((torch.full_like(rows, _NEVER), rows, torch.full_like(rows, -1)), 1)
        self.ramp = torch.zeros((slots, 3), device=device)
        self.ends = torch.full((slots, 0), -1, device=device)
        self.texts = torch.full((4 * slots + 1, 1), -1, device=device)
        # Slots that a part of a step is for; without any, it is left out.
        self._ramped: set[int] = set()
        self._ended: set[int] = set()
        self._waiting: set[int] = set()
        # On the host: `now`, as far as `follow` keeps it up, `fixed` and texts by slot, and the slots that are forced.
        self._following = False
        self._now, self._fixed = self.now.cpu().numpy().copy(), self.fixed.cpu().numpy().copy()
        self._texts: dict[int, list[list[int]]] = {}
        self._forcing: set[int] = set()
        self._found: tuple[torch.Tensor, _Ending] | None = None  # by the rows of a step, until one of them moves
        # Whether counts have gone on that the device does not know, and slots whose newest tokens `apply` has not seen.
        self._counted = False
        self._unapplied: np.ndarray | None = None

        known = markers.closed * _CLOSED + markers.thinking * _THINKING + markers.begun * _BEGUN
        self._states = torch.stack((known, (~markers.closed).long(), markers.next_close), 1)
        self._known, self._closes = known.tolist(), markers.next_close.tolist()
        self._unclosed, self._thinks = (~markers.closed).long().cpu().numpy(), markers.thinking.cpu().numpy()
        self._outcomes = torch.tensor(_OUTCOMES, device=device)
        written = token_bytes(markers.tokenizer)
        line_done = torch.zeros(max(len(written), markers.vocabulary_size), dtype=torch.int64)
        line_done[[token for token, text in enumerate(written) if text.endswith(b"\n")]] = _LINE_DONE
        self._line_done, self._lines = line_done.to(device), line_done.numpy()

    def admit(self, slot: int, control: Control) -> None:
        """See `ControlBatch.admit`."""
        assert isinstance(control, ThinkingBudget)
        texts = [[*ids, -1] for ids in budget_texts(self.markers, control)]
        most = _NEVER if control.most is None else control.most
        known = self._known[control.state] | _LINE_DONE | (_DUE if most <= 0 else 0)
        _, begins, which, _, closing, may_end = _OUTCOMES[known]
        forced = texts[which][0] if begins else -1
        if closing and not begins:
            forced = self._closes[control.state]
        self._texts[slot], row = texts, 4 * slot + 1
        self._put(slot, (control.state, 0, closing, begins * (row + which), 0, forced))
        self._fixed[slot] = most, row, texts[_WAIT][0]
        self.fixed[slot] = torch.from_numpy(self._fixed[slot]).to(self.markers.device)
        for index, ids in enumerate(texts):
            self.texts = with_row(self.texts, row + index, ids)
        if control.ramp_start is not None:
            slope = control.ramp_bias / max(1, most - control.ramp_start)
            self.ramp[slot] = torch.tensor((control.ramp_start, slope, control.ramp_bias), device=self.markers.device)
        elif slot in self._ramped:
            self.ramp[slot] = 0
        if control.end_ids or slot in self._ended:
            self.ends = with_row(self.ends, slot, control.end_ids)
        if control.endings or slot in self._waiting:
            armed = int(may_end and not begins and control.endings > 0)
            self.waiting[slot] = torch.tensor((control.endings, armed, armed), device=self.markers.device)
        for users, used in (
            (self._ramped, control.ramp_start is not None),
            (self._ended, bool(control.end_ids)),
            (self._waiting, control.endings > 0),
        ):
            (users.add if used else users.discard)(slot)

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.apply`."""
        self._unapplied = None
        bent = self._ramped or self._ended or self._waiting
        if self._following and not (bent or self._forcing):
            return
        if self._ramped and self._counted:
            self.now[:, _COUNT] = torch.from_numpy(self._now[:, _COUNT]).to(self.markers.device)
            self._counted = False
        now = self.now.index_select(0, slots)
        if bent:
            self._change_ending(logits, slots, now)
        if self._following and not self._forcing:
            return
        forced = now[:, _FORCE, None]
        height = torch.where(forced >= 0, _FORCED, -torch.inf).to(logits.dtype)
        logits.scatter_reduce_(1, forced.clamp(min=0), height, "amax")

    def _change_ending(self, logits: torch.Tensor, slots: torch.Tensor, now: torch.Tensor) -> None:
        """The edits to the closing marker's own logit."""
        if not self._following:
            found = self._find(slots, now)
        else:
            if self._found is None or self._found[0] is not slots:
                self._found = slots, self._find(slots, now)
            found = self._found[1]
        new_close = logits.gather(1, found.close)
        if found.ended is not None:
            ends, limit, spared = found.ended
            likeliest = logits.gather(1, ends).masked_fill(spared, -torch.inf).amax(1, keepdim=True)
            new_close = torch.maximum(new_close, likeliest)
            logits.scatter_reduce_(1, ends, limit.to(logits.dtype), "amin")
        if found.ramp is not None:
            start, slope, most = found.ramp
            risen = ((now[:, _COUNT] - start) * slope).clamp(min=0).minimum(most)
            new_close = new_close + (risen[:, None] * found.thinking).to(logits.dtype)
        if found.waiting is not None:
            wait, ignored = found.waiting
            replaced = ignored & (new_close > logits.gather(1, wait))
            self.waiting[slots, 2] = replaced[:, 0].long()
            logits.scatter_(1, found.close, new_close.masked_fill(ignored, -torch.inf))
            logits.scatter_(1, wait, torch.where(replaced, new_close, logits.gather(1, wait)))
        else:
            logits.scatter_(1, found.close, new_close)

    def _find(self, slots: torch.Tensor, now: torch.Tensor) -> _Ending:
        """What `_change_ending` needs of these slots besides logits and counts."""
        state = now[:, _STATE, None]
        close, thinking = self.markers.next_close[state], self.markers.thinking[state]
        ended: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        ramp: tuple[torch.Tensor, ...] | None = None
        waiting: tuple[torch.Tensor, torch.Tensor] | None = None
        if self._ended:
            ends = self.ends.index_select(0, slots)
            refused = (ends >= 0) & (ends != close) & thinking
            places, limit = _limits(ends, refused)
            ended = places, limit, ~refused
        if self._ramped:
            ramp = self.ramp.index_select(0, slots).unbind(1)
        if self._waiting:
            waiting = self.fixed[slots, 2, None].clamp(min=0), self.waiting[slots, 1, None].bool()
        return _Ending(close, thinking, ended, ramp, waiting)

    def snapshot(self) -> tuple[torch.Tensor, ...]:
        """See `ControlBatch.snapshot`."""
        return self.now.clone(), self.waiting.clone()

    def restore(self, snapshot: tuple[torch.Tensor, ...]) -> None:
        """See `ControlBatch.restore`."""
        self.now.copy_(snapshot[0])  # in place: `state` is a column of it
        self.waiting.copy_(snapshot[1])

    def observe(self, tokens: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.observe`."""
        state, count, closing, text, place, _ = self.now.index_select(0, slots).unbind(1)
        most, row, wait = self.fixed.index_select(0, slots).unbind(1)
        # A text is given up where another token came, because the server had one of its own to force.
        kept = tokens == self.texts[text, place]
        state = self.markers.states[state, tokens].long()
        known, unclosed, close = self._states.index_select(0, state).unbind(1)
        count = count + unclosed
        known = known + closing + self._line_done.index_select(0, tokens)
        known = known.add(kept, alpha=_KEPT).add(count >= most, alpha=_DUE)
        if self._waiting:
            endings, _, stands = self.waiting.index_select(0, slots).unbind(1)
            waits = stands * (tokens == wait)
            known = known.add(waits, alpha=_WAITS)
        goes_on, begins, which, first, closing, may_end = self._outcomes.index_select(0, known).unbind(1)
        text = torch.addcmul(which, text, goes_on).addcmul(row, begins)
        place = torch.addcmul(first, place + 1, goes_on)
        token = self.texts[text, place]
        forced = torch.where(closing - token > 1, close, token)  # closing, and no text has a token here
        self.now[slots] = torch.stack((state, count, closing, text, place, forced), 1)
        if self._waiting:
            endings = endings - waits
            armed = may_end * (token < 0) * (endings > 0)
            self.waiting[slots] = torch.stack((endings, armed, armed), 1)

    def follow(self, tokens: np.ndarray, slots: np.ndarray) -> None:
        """See `ControlBatch.follow`: a token at which nothing happens is counted, others are read as by `resume`."""
        self._following = True
        if self._waiting and self._unapplied is not None:
            before = torch.from_numpy(self._unapplied).to(self.markers.device)
            self.waiting[before, 2] = self.waiting[before, 1]
        self._unapplied = slots
        now, fixed = self._now[slots], self._fixed[slots]
        state = now[:, _STATE]
        count = now[:, _COUNT] + self._unclosed[state]
        quiet = (self.markers.states_on_host[state, tokens] == state) & (tokens != fixed[:, 2])
        quiet &= ((count < fixed[:, 0]) | ~self._thinks[state]) & (now[:, _COUNT + 1 :] <= _FREE).all(1)
        self._now[slots[quiet], _COUNT] = count[quiet]
        self._counted = True
        if not quiet.all():
            for slot, token in zip(slots[~quiet].tolist(), tokens[~quiet].tolist(), strict=True):
                self.resume(slot, (token,))

    def resume(self, slot: int, tokens: Sequence[int]) -> None:
        """See `ControlBatch.resume`: what `observe` does, in numbers instead of tensors."""
        state, count, closing, text, place, forced = (self._now if self._following else self.now)[slot].tolist()
        most, row, wait = self._fixed[slot].tolist()
        endings = armed = stands = 0
        if slot in self._waiting:
            endings, armed, stands = self.waiting[slot].tolist()  # the last one is `apply`'s
        texts = {0: [-1], **dict(enumerate(self._texts.get(slot, []), row))}
        following = self.markers.states_on_host[:, list(tokens)].T.tolist()
        line_done = self._lines[list(tokens)].tolist()
        for token, next_state, ends_line in zip(tokens, following, line_done, strict=True):
            kept = token == texts[text][place]
            waits = int(stands and token == wait)
            state = next_state[state]
            known = self._known[state]
            count += not known & _CLOSED
            known |= ends_line | kept * _KEPT | (count >= most) * _DUE | waits * _WAITS | closing * _CLOSING
            goes_on, begins, which, first, closing, may_end = _OUTCOMES[known]
            text = row + which if begins else text * goes_on
            place = first + (place + 1) * goes_on
            forced = texts[text][place]
            endings -= waits
            armed = stands = int(may_end and forced < 0 and endings > 0)
            if closing and forced < 0:
                forced = self._closes[state]
        self._put(slot, (state, count, closing, text, place, forced))
        if slot in self._waiting:
            self.waiting[slot] = torch.tensor((endings, armed, stands), device=self.markers.device)

    def _put(self, slot: int, now: tuple[int, int, int, int, int, int]) -> None:
        """Say where a slot is, on the host and on the device."""
        self._now[slot], self._found = now, None
        self.now[slot] = torch.tensor(now, device=self.markers.device)
        (self._forcing.add if now[_FORCE] >= 0 else self._forcing.discard)(slot)
