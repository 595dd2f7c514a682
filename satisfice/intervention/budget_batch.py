"""All live thinking budgets: what is forced, when, and from which token on.

What was said of `control_batches.py` holds here, too: tensors over slots, a handful of small kernels a step. The rules
are a table that each token looks up.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from satisfice.engines.control_batch import ControlBatch, FromStates, Markers
from satisfice.engines.control_setting import Control
from satisfice.intervention.control_batches import limits, with_row
from satisfice.intervention.controls import ThinkingBudget, budget_texts
from satisfice.intervention.text_ends import DIGIT, ENDS, level_of, text_ends
from satisfice.intervention.watches import ConfidenceWatch, LoopWatch
from satisfice.thinking import token_bytes

_NEVER = 2**40
"""More tokens than any response has."""

_FORCED = 1e8
"""A logit that leaves all others no probability, at any temperature and after any penalty; but not those that a server
forces for reasons of its own (vLLM's `thinking_token_budget` writes 1e9)."""

_LAST_LINE, _CLOSE, _AFTER, _WAIT, _HINT = range(5)
"""The texts of a slot: how to close thinking after an unfinished line and after a finished one, what follows a
marker that was begun before the cap, what replaces an ending, and the hint."""
_TEXTS = 5

_NO_LANDING = (_NEVER, _NEVER, 0)
"""A row of `ThinkingBudgetBatch.landings` that changes nothing."""

_STATE, _COUNT, _FORCE = 0, 1, 5
"""Columns of `ThinkingBudgetBatch.now`."""
_FREE = np.array((0, 0, _NEVER, -1))
"""The most that those after the count hold while the model writes: not closing, no text, any place, none forced."""

_CLOSING, _CLOSED, _THINKING, _BEGUN, _LINE_DONE, _KEPT, _DUE, _WAITS, _HINTS = (1 << bit for bit in range(9))
"""What is known of a slot when a token has come, one bit each."""


def _outcome(known: int) -> tuple[int, int, int, int, int, int]:
    """What a token leads to, from the bits of what is known: the rules of `ThinkingBudget`.

    A slot is free, which is to say that the model writes, or a text is forced on it, token by token:

        free -------- due --------------------------------> _CLOSE or _LAST_LINE --- its last token --> free, closed
        free -------- due, marker begun ------------------> the marker's own rest -- marker complete -> _AFTER
        free -------- a token that stands for an ending --> _WAIT, from its second token on ----------> free
        free -------- time for the hint, marker not begun > _HINT ------------------ its last token --> free
        _WAIT, _HINT  due --------------------------------> as from free
        _AFTER ------ its last token ---------------------> free, closed
        any text ---- another token came than its own ----> free; while closing, the marker's own rest

    Each token looks up one of the 512 outcomes; where several lines fit, what is due is first, then an ending, then the
    text under way, then the hint.

    Bits:
        _CLOSING: thinking was being closed because it was due.
        _CLOSED, _THINKING: thinking is closed, or open, after the token.
        _BEGUN: the closing marker's first tokens are written.
        _LINE_DONE: the token ends a line.
        _KEPT: the token is the one that a text had here.
        _DUE: thinking is to end: the cap is reached, or one of the other rules says so.
        _WAITS: the token stands for an ending.
        _HINTS: it is time for the hint, and it was not written yet.

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
    elif known & _HINTS and may_end:
        begins = (_HINT, 0)
    which, place = begins or (0, 0)
    return int(goes_on), int(begins is not None), which, place, int(closing), int(may_end)


_OUTCOMES = [_outcome(known) for known in range(512)]


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
            closed because it was due; the text that is being written (a row of `texts`, 0 for none) and its next
            token's place; the token that is forced now, or -1.
        waiting: (N, 3) int64: endings that are still to be ignored; whether the next ending may be replaced; whether
            the next token, if it is the first of `wait`, stands for an ending. The last one `apply` knows better;
            tokens that are only read again, after a pause of the request, are taken to.
        landing: (N, 2) int64: 1 once the hint has begun; the tail of the text, see `TextEnds`.
        landings: (N, 3) int64: `hint_at`; the cap that waits for an end; the level of that end.
        fixed: (N, 3) int64: where thinking is closed in any case; the first of the slot's rows in `texts`; the first
            token of `wait`, or -1.
        ramp: (N, 3) float: where it starts, nats a token, and nats in all.
        ends: (N, E) int64, `end_ids`, filled up with -1.
        texts: (5 N + 1, L) int64, an empty one and five of each slot, each with -1 after it.
        text_ends: (V, 5) int64, see `TextEnds`; empty as long as no slot needs it.
        loops, confidence: what `LoopRule` and `ConfidenceRule` look at.
    """

    def __init__(self, markers: Markers, slots: int) -> None:
        super().__init__(markers, slots)
        device = markers.device
        self.now = torch.zeros((slots, 6), dtype=torch.int64, device=device)
        self.now[:, _FORCE] = -1
        self.state = self.now[:, _STATE]
        self.waiting = torch.zeros((slots, 3), dtype=torch.int64, device=device)
        rows = torch.arange(slots, device=device) * _TEXTS + 1
        self.fixed = torch.stack((torch.full_like(rows, _NEVER), rows, torch.full_like(rows, -1)), 1)
        self.ramp = torch.zeros((slots, 3), device=device)
        self.ends = torch.full((slots, 0), -1, device=device)
        self.texts = torch.full((_TEXTS * slots + 1, 1), -1, device=device)
        self.landing = torch.zeros((slots, 2), dtype=torch.int64, device=device)
        self.landings = torch.tensor([_NO_LANDING], device=device).repeat(slots, 1)
        self.loops, self.confidence = LoopWatch(slots, device), ConfidenceWatch(slots, device)
        # Slots that a part of a step is for; without any, it is left out.
        self._ramped: set[int] = set()
        self._ended: set[int] = set()
        self._waiting: set[int] = set()
        self._landing: set[int] = set()
        self._looping: set[int] = set()
        self._confident: set[int] = set()
        self.text_ends = torch.zeros((0, 5), dtype=torch.int64, device=device)
        # On the host: `now`, as far as `follow` keeps it up, `fixed` and texts by slot, and the slots that are forced.
        self._following = False
        self._now, self._fixed = self.now.cpu().numpy().copy(), self.fixed.cpu().numpy().copy()
        self._texts: dict[int, list[list[int]]] = {}
        self._forcing: set[int] = set()
        self._found: tuple[torch.Tensor, _Ending] | None = None  # by the rows of a step, until one of them moves
        # Where the last step moved nobody: its slots, their states and their first tokens of `wait`; the steps since
        # then that moved nobody either, after how many a cap is reached, and after how many a ramp begins to rise.
        self._calm: tuple[np.ndarray, FromStates, np.ndarray] | None = None
        self._calm_steps = self._calm_most = self._calm_ramp = 0
        self._ramp_starts = np.full(slots, _NEVER)
        # Whether counts have gone on that the device does not know, and slots whose newest tokens `apply` has not seen.
        self._counted = False
        self._unapplied: np.ndarray | None = None
        # What `apply` has found of endings that are replaced, and of which slots, until somebody reads it.
        self._replaced: tuple[torch.Tensor, torch.Tensor] | None = None

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
        self._note_replaced()  # of the slot's last request, before that of this one
        texts = [[*ids, -1] for ids in budget_texts(self.markers, control)]
        most = _NEVER if control.most is None else control.most
        last = most + (0 if control.most is None else control.grace)
        hint_at = _NEVER if control.hint_at is None or not control.hint else max(0, control.hint_at)
        lands = hint_at < _NEVER or last > most
        known = self._known[control.state] | _LINE_DONE | (_DUE if last <= 0 else 0) | (_HINTS if hint_at <= 0 else 0)
        _, begins, which, _, closing, may_end = _OUTCOMES[known]
        forced = texts[which][0] if begins else -1
        if closing and not begins:
            forced = self._closes[control.state]
        self._texts[slot], row = texts, _TEXTS * slot + 1
        self._put(slot, (control.state, 0, closing, begins * (row + which), 0, forced))
        self._fixed[slot] = last, row, texts[_WAIT][0]
        self.fixed[slot] = torch.from_numpy(self._fixed[slot]).to(self.markers.device)
        for index, ids in enumerate(texts):
            self.texts = with_row(self.texts, row + index, ids)
        self._ramp_starts[slot] = _NEVER if control.ramp_start is None else control.ramp_start
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
        if lands or slot in self._landing:
            waits = most if last > most else _NEVER
            self.landings[slot] = torch.tensor((hint_at, waits, ENDS.index(control.grace_end)), device=self.ramp.device)
        if control.loops is not None or slot in self._looping:
            self.loops.admit(slot, control.loops)
        if control.confidence is not None or slot in self._confident:
            self.confidence.admit(slot, control.confidence)
        self.landing[slot, 0], self.landing[slot, 1] = int(begins and which == _HINT), 0
        if (lands or control.loops is not None or control.confidence is not None) and not len(self.text_ends):
            self.text_ends = self._read_ends()
        for users, used in (
            (self._ramped, control.ramp_start is not None),
            (self._ended, bool(control.end_ids)),
            (self._waiting, control.endings > 0),
            (self._landing, lands),
            (self._looping, control.loops is not None),
            (self._confident, control.confidence is not None),
        ):
            (users.add if used else users.discard)(slot)

    def _read_ends(self) -> torch.Tensor:
        """(V, 5) int64, see `TextEnds`; tokens without text end nothing."""
        found = text_ends(self.markers.tokenizer)
        columns = torch.from_numpy(np.stack([found.breaks, found.blank, found.digit, found.stop, found.point], 1))
        surplus = max(0, self.markers.vocabulary_size - len(columns))
        return torch.cat([columns, columns.new_zeros((surplus, 5))]).to(self.markers.device)

    def look(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.look`."""
        if self._confident:
            self.confidence.look(logits, slots)

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.apply`."""
        self._unapplied = None
        bent = self._ramped or self._ended or self._waiting
        if self._following and not (bent or self._forcing):
            return
        rises = bool(self._ramped) and not (self._calm is not None and self._calm_steps <= self._calm_ramp)
        if rises:
            self._catch_up()
        if self._following and not self._forcing:
            self._change_ending(logits, slots, rises)
            return
        now = self.now.index_select(0, slots)
        if bent:
            self._change_ending(logits, slots, rises)
        forced = now[:, _FORCE, None]
        height = torch.where(forced >= 0, _FORCED, -torch.inf).to(logits.dtype)
        logits.scatter_reduce_(1, forced.clamp(min=0), height, "amax")

    def _change_ending(self, logits: torch.Tensor, slots: torch.Tensor, rises: bool) -> None:
        """The edits to the closing marker's own logit; `rises` says whether a ramp may."""
        if not self._following:
            found = self._find(slots)
        else:
            if self._found is None or self._found[0] is not slots:
                self._found = slots, self._find(slots)
            found = self._found[1]
        new_close = logits.gather(1, found.close)
        if found.ended is not None:
            ends, limit, spared = found.ended
            likeliest = logits.gather(1, ends).masked_fill(spared, -torch.inf).amax(1, keepdim=True)
            new_close = torch.maximum(new_close, likeliest)
            logits.scatter_reduce_(1, ends, limit.to(logits.dtype), "amin")
        if found.ramp is not None and rises:
            start, slope, most = found.ramp
            risen = ((self.now[:, _COUNT].index_select(0, slots) - start) * slope).clamp(min=0).minimum(most)
            new_close = new_close + (risen[:, None] * found.thinking).to(logits.dtype)
        if found.waiting is not None:
            wait, ignored = found.waiting
            replaced = ignored & (new_close > logits.gather(1, wait))
            self._replaced = slots, replaced
            if not self._following:
                self._note_replaced()
            logits.scatter_(1, found.close, new_close.masked_fill(ignored, -torch.inf))
            logits.scatter_(1, wait, torch.where(replaced, new_close, logits.gather(1, wait)))
        else:
            logits.scatter_(1, found.close, new_close)

    def _note_replaced(self) -> None:
        """Keep by slot which endings were replaced."""
        if self._replaced is not None:
            slots, replaced = self._replaced
            self.waiting[slots, 2] = replaced[:, 0].long()
            self._replaced = None

    def _find(self, slots: torch.Tensor) -> _Ending:
        """What `_change_ending` needs of these slots besides logits and counts."""
        state = self.state.index_select(0, slots)[:, None]
        close, thinking = self.markers.next_close[state], self.markers.thinking[state]
        ended: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        ramp: tuple[torch.Tensor, ...] | None = None
        waiting: tuple[torch.Tensor, torch.Tensor] | None = None
        if self._ended:
            ends = self.ends.index_select(0, slots)
            refused = (ends >= 0) & (ends != close) & thinking
            places, limit = limits(ends, refused)
            ended = places, limit, ~refused
        if self._ramped:
            ramp = self.ramp.index_select(0, slots).unbind(1)
        if self._waiting:
            waiting = self.fixed[slots, 2, None].clamp(min=0), self.waiting[slots, 1, None].bool()
        return _Ending(close, thinking, ended, ramp, waiting)

    def snapshot(self) -> tuple[torch.Tensor, ...]:
        """See `ControlBatch.snapshot`."""
        looked = (self.confidence.distribution,) if self._confident else ()
        return *super().snapshot(), *looked

    def restore(self, snapshot: tuple[torch.Tensor, ...]) -> None:
        """See `ControlBatch.restore`."""
        if self._confident:
            self.confidence.distribution = snapshot[-1]
            snapshot = snapshot[:-1]
        super().restore(snapshot)

    def changing(self) -> dict[str, torch.Tensor]:
        """See `ControlBatch.changing`; as far as it is in use. `state` is a column of `now`."""
        found = {"now": self.now, "waiting": self.waiting}
        if self._reading:
            found["landing"] = self.landing
        if self._looping:
            found |= self.loops.changing()
        if self._confident:
            found |= self.confidence.changing()
        return found

    @property
    def _reading(self) -> bool:
        """Whether anybody needs to know what tokens end."""
        return bool(self._landing or self._looping or self._confident)

    def observe(self, tokens: torch.Tensor, slots: torch.Tensor) -> None:
        """See `ControlBatch.observe`."""
        before, count, closing, text, place, forced = self.now.index_select(0, slots).unbind(1)
        most, row, wait = self.fixed.index_select(0, slots).unbind(1)
        # A text is given up where another token came, because the server had one of its own to force.
        kept = tokens == self.texts[text, place]
        state = self.markers.states[before, tokens].long()
        known, unclosed, close = self._states.index_select(0, state).unbind(1)
        count = count + unclosed
        due = count >= most
        known = known + closing + self._line_done.index_select(0, tokens)
        if self._reading:
            hinted, tail = self.landing.index_select(0, slots).unbind(1)
            level, tail = _levels(self.text_ends.index_select(0, tokens), tail)
            hint_at, soft, end = self.landings.index_select(0, slots).unbind(1)
            due = due | (count >= soft) & (level >= end)
            known = known.add((count >= hint_at) & (hinted == 0), alpha=_HINTS)
            inside = self.markers.thinking[before] & self.markers.thinking[state]
            if self._looping:
                due = due | self.loops.observe(tokens, slots, inside, level)
            if self._confident:
                due = due | self.confidence.observe(tokens, slots, inside, forced < 0, count, level)
        known = known.add(kept, alpha=_KEPT).add(due, alpha=_DUE)
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
        if self._reading:
            self.landing[slots] = torch.stack((hinted | begins * (which == _HINT), tail), 1)
        if self._waiting:
            endings = endings - waits
            armed = may_end * (token < 0) * (endings > 0)
            self.waiting[slots] = torch.stack((endings, armed, armed), 1)

    def follow(self, tokens: np.ndarray, slots: np.ndarray) -> None:
        """See `ControlBatch.follow`: a token at which nothing happens is counted, others are read as by `replay`.

        Rules that look at every token are looked after by `observe`, for all.
        """
        if self._waiting and self._unapplied is not None:
            self._note_replaced()
            before = torch.from_numpy(self._unapplied).to(self.markers.device)
            self.waiting[before, 2] = self.waiting[before, 1]
        self._unapplied = slots
        if self._reading:
            self._catch_up()
            self._note_replaced()
            self._following = False
            super().follow(tokens, slots)
            return
        if not self._following:
            self._now, self._found = self.now.cpu().numpy().copy(), None
            self._forcing = set(np.flatnonzero(self._now[:, _FORCE] >= 0).tolist())
            self._following = True
        if self._calm is not None and self._calm[0] is slots and self._calm_steps < self._calm_most:
            _, places, wait = self._calm
            if places.stay(tokens) and (tokens != wait).all():
                self._calm_steps += 1
                self._counted = True
                return
        self._count_calm()
        self._note_replaced()
        now, fixed = self._now[slots], self._fixed[slots]
        state = now[:, _STATE]
        count = now[:, _COUNT] + self._unclosed[state]
        quiet = (self.markers.states_on_host[state, tokens] == state) & (tokens != fixed[:, 2])
        quiet &= ((count < fixed[:, 0]) | ~self._thinks[state]) & (now[:, _COUNT + 1 :] <= _FREE).all(1)
        self._now[slots[quiet], _COUNT] = count[quiet]
        self._counted = True
        if quiet.all():
            thinks = self._thinks[state]
            self._calm, self._calm_steps = (slots, self.markers.from_states(state), fixed[:, 2]), 0
            self._calm_most = int((fixed[:, 0] - count)[thinks].min(initial=_NEVER)) - 1
            self._calm_ramp = int((self._ramp_starts - self._now[:, _COUNT]).min())  # of all: any row may be edited
        else:
            for slot, token in zip(slots[~quiet].tolist(), tokens[~quiet].tolist(), strict=True):
                self.replay(slot, (token,))

    def _count_calm(self) -> None:
        """Count the tokens of the steps that have moved nobody, which are over."""
        if self._calm is not None:
            slots, places, _ = self._calm
            self._now[slots, _COUNT] += self._calm_steps * self._unclosed[places.states]
            self._calm, self._calm_steps = None, 0

    def _catch_up(self) -> None:
        """Tell the device the counts that have gone on."""
        self._count_calm()
        if self._counted:
            self.now[:, _COUNT] = torch.from_numpy(self._now[:, _COUNT]).to(self.markers.device)
            self._counted = False

    def _put(self, slot: int, now: tuple[int, int, int, int, int, int]) -> None:
        """Say where a slot is, on the host and on the device."""
        self._count_calm()
        self._now[slot], self._found = now, None
        self.now[slot] = torch.tensor(now, device=self.markers.device)
        (self._forcing.add if now[_FORCE] >= 0 else self._forcing.discard)(slot)

    def pause(self, slot: int) -> tuple[torch.Tensor, ...] | None:
        """See `ControlBatch.pause`: how sure the model was is not to be read from its tokens."""
        return self.confidence.pause(slot) if slot in self._confident else None

    def resume(self, slot: int, tokens: Sequence[int], paused: tuple[torch.Tensor, ...] | None = None) -> None:
        """See `ControlBatch.resume`; without what `pause` returned, the window of a `ConfidenceRule` begins anew."""
        if paused is not None:
            self.confidence.go_on(slot, paused)
        self.replay(slot, tokens, fired=-1 if paused is None else int(paused[-1]))

    def replay(self, slot: int, tokens: Sequence[int], fired: int = -1) -> list[int]:
        """What `observe` does with many tokens, in numbers instead of tensors.

        Args:
            slot: whose.
            tokens: that were written, one after the other.
            fired: after how many tokens its `ConfidenceRule` was met, -1 where it was not.

        Returns:
            for each token the one that was forced in its place, or -1.
        """
        self._count_calm()
        self._note_replaced()
        state, count, closing, text, place, forced = (self._now if self._following else self.now)[slot].tolist()
        most, row, wait = self.fixed[slot].tolist()
        endings, armed, stands = self.waiting[slot].tolist()
        hinted, tail = self.landing[slot].tolist()
        hint_at, soft, end = self.landings[slot].tolist()
        texts = {0: [-1], **dict(enumerate(self._texts.get(slot, []), row))}
        states = [state]
        for following in self.markers.states_on_host[:, list(tokens)].T.tolist():
            states.append(following[states[-1]])
        inside = [bool(self._known[a] & self._known[b] & _THINKING) for a, b in pairwise(states)]
        line_done = self._lines[list(tokens)].tolist()
        levels = []
        for ends in self.text_ends[list(tokens)].tolist() if len(self.text_ends) else [[0] * 5] * len(tokens):
            level, tail = level_of(ends, tail)
            levels.append(level)
        circling = [False] * len(tokens)
        if slot in self._looping:
            circling = self.loops.replay(slot, tokens, inside, levels)
        in_place = []
        for token, state, within, circles, ends_line, level in zip(
            tokens, states[1:], inside, circling, line_done, levels, strict=True
        ):
            in_place.append(forced)
            kept = token == texts[text][place]
            waits = int(stands and token == wait)
            known = self._known[state]
            count += not known & _CLOSED
            due = count >= most or (count >= soft and level >= end) or circles or (within and count == fired)
            known |= ends_line | kept * _KEPT | due * _DUE | waits * _WAITS | closing * _CLOSING
            known |= (count >= hint_at and not hinted) * _HINTS
            goes_on, begins, which, first, closing, may_end = _OUTCOMES[known]
            hinted |= begins and which == _HINT
            text = row + which if begins else text * goes_on
            place = first + (place + 1) * goes_on
            forced = texts[text][place]
            endings -= waits
            armed = stands = int(may_end and forced < 0 and endings > 0)
            if closing and forced < 0:
                forced = self._closes[state]
        device = self.markers.device
        self._put(slot, (states[-1], count, closing, text, place, forced))
        self.waiting[slot] = torch.tensor((endings, armed, stands), device=device)
        self.landing[slot] = torch.tensor((int(hinted), tail), device=device)
        return in_place


def _levels(ends: torch.Tensor, tail: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`level_of` of (B,) tokens: what they end, and the tails of the texts after them; (B,) int64 each.

    Args:
        ends: (B, 5) int64, see `TextEnds`.
        tail: (B,) int64, before them.
    """
    breaks, blank, digit, stop, point = ends.unbind(1)
    breaks = (breaks + blank * (tail % DIGIT)).clamp(max=2)
    sentence = stop | point * (tail < DIGIT)
    return torch.where(breaks > 0, breaks + 1, sentence), breaks + digit
