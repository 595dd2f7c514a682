"""What a budget looks at besides its count of tokens: whether thinking goes in circles, and how sure the model is.

Tensors over slots, as in `control_batches.py`: a step is a handful of small kernels for all rows. What a watch keeps of
a row begins anew whenever thinking is not open.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from satisfice.intervention.controls import ConfidenceRule, LoopRule
from satisfice.intervention.text_ends import ENDS

_NO_LOOP = (2**30, 2, 0, 0, 0, 0)
"""A rule that nothing fits."""


class LoopWatch:
    """`LoopRule` on all slots.

    The newest token is compared with each of those in the window, and for each distance how many tokens in a row were
    equal to the one that far back. So a stretch of any length that has come before is found exactly, without hashes, at
    a price a step that is proportional to the window and to nothing else.

    Attributes:
        rule: (N, 6) int64: the rule's `ngram`, `repeats`, the greatest distance that is looked at, whether the
            stretches must follow on each other, the level of its `end`, and its `grace`.
        history: (N, D) int32, the last D tokens, the newest first, and -1 where there are none.
        run: (N, D) int32, at place d - 1 how many of the last tokens in a row equal the one d before it.
        held: (N,) int64, for how many tokens the rule has held.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.rule = torch.tensor([_NO_LOOP], device=device).repeat(slots, 1)
        self.history = torch.full((slots, 0), -1, dtype=torch.int32, device=device)
        self.run = torch.zeros((slots, 0), dtype=torch.int32, device=device)
        self.held = torch.zeros(slots, dtype=torch.int64, device=device)
        self._distances = torch.arange(1, 1, device=device)

    def admit(self, slot: int, rule: LoopRule | None) -> None:
        """Begin with a slot anew."""
        values = _NO_LOOP
        if rule is not None:
            end = ENDS.index(rule.end)
            values = (rule.ngram, rule.repeats, rule.farthest, int(rule.periodic), end, rule.grace)
        self.rule[slot] = torch.tensor(values, device=self.rule.device)
        if (missing := values[2] - self.run.shape[1]) > 0:
            more = (self.run.shape[0], missing)
            self.history = torch.cat([self.history, self.history.new_full(more, -1)], dim=1)
            self.run = torch.cat([self.run, self.run.new_zeros(more)], dim=1)
            self._distances = torch.arange(1, self.run.shape[1] + 1, device=self.run.device)
        self.history[slot] = -1
        self.run[slot] = 0
        self.held[slot] = 0

    def changing(self) -> dict[str, torch.Tensor]:
        """What `observe` changes, see `ControlBatch.changing`."""
        return {"history": self.history, "run": self.run, "held": self.held}

    def observe(
        self, tokens: torch.Tensor, slots: torch.Tensor, thinking: torch.Tensor, level: torch.Tensor
    ) -> torch.Tensor:
        """Take note of the tokens that came.

        Args:
            tokens: (B,) int64.
            slots: (B,) int64.
            thinking: (B,) bool, whether they stand inside thinking.
            level: (B,) int64, what they end, as a place in `ENDS`.

        Returns:
            (B,) bool, where thinking goes in circles and is to end.
        """
        *rule, end, grace = self.rule.index_select(0, slots)[:, :, None].unbind(1)
        history, open_ = self.history.index_select(0, slots), thinking[:, None]
        fresh = tokens[:, None].int()
        run = (self.run.index_select(0, slots) + 1) * ((history == fresh) & open_)
        self.run[slots] = run
        self.history[slots] = torch.cat([fresh, history[:, :-1]], dim=1).masked_fill(~open_, -1)
        found = circling(run, self._distances, *rule)
        held = (self.held.index_select(0, slots) + 1) * found
        self.held[slots] = held
        ends: torch.Tensor = found & ((level >= end[:, 0]) | (held > grace[:, 0]))
        return ends

    def replay(self, slot: int, tokens: Sequence[int], thinking: Sequence[bool], levels: Sequence[int]) -> list[bool]:
        """`observe` for many tokens of one slot, without tensors: what it would have returned for each."""
        *rule, end, grace = self.rule[slot].cpu().numpy()[:, None, None]
        history, run = self.history[slot].cpu().numpy(), self.run[slot].cpu().numpy()
        distances = np.arange(1, len(run) + 1)
        # A window on all tokens, the newest first, moves to the left with each of them.
        written = np.concatenate([np.full(len(tokens), -1, dtype=np.int32), history])
        found, place, held = [], len(tokens), int(self.held[slot])
        for token, open_, level in zip(tokens, thinking, levels, strict=True):
            run = (run + 1) * (written[place : place + len(run)] == token) * open_
            place -= 1
            written[place] = token
            if not open_:
                written[place:] = -1
            repeated = run.max(initial=0) >= rule[0][0, 0]  # which few tokens are, so that the rest costs little
            held = (held + 1) * bool(repeated and circling(run[None], distances, *rule)[0])
            found.append(held > 0 and bool(level >= end[0, 0] or held > grace[0, 0]))
        self.history[slot] = torch.from_numpy(written[place : place + len(run)].copy())
        self.run[slot] = torch.from_numpy(run.astype(np.int32))
        self.held[slot] = held
        return found


def circling(run: Any, distances: Any, ngram: Any, repeats: Any, farthest: Any, periodic: Any) -> Any:
    """`LoopRule` itself, on tensors and on arrays alike.

    Args:
        run: (B, D), see `LoopWatch`.
        distances: (D,), 1 to D.
        ngram, repeats, farthest, periodic: (B, 1) each, see `LoopWatch.rule`.

    Returns:
        (B,) bool.
    """
    near = distances <= farthest
    again = near & (run >= ngram)
    others = repeats - 1
    spread = (again & (distances >= others * ngram)).any(1)
    recurs = spread & (again.sum(1) >= others[:, 0])
    cycles = (near & (run >= others * distances) & (run >= others * ngram)).any(1)
    in_a_row = periodic[:, 0] > 0
    return (in_a_row & cycles) | (~in_a_row & recurs)


class ConfidenceWatch:
    """`ConfidenceRule` on all slots.

    What the model makes of the next token is looked at before anything edits it (`look`), and the window grows once the
    token is known (`observe`). A token that was not sampled has no part in it. Where a value is not known, because a
    request was interrupted and only its tokens were kept, the window begins anew.

    Attributes:
        bounds: (N, 2) float: the rule's `above` and `below`, infinite where they are none.
        rule: (N, 4) int64: its `window`, `least`, the level of its `end`, and its `top`.
        values: (N, W) float, the last values, the newest first.
        filled: (N,) int64, how many values there are since the window began.
        fired: (N,) int64, at how many tokens the rule was met last, or -1.
        distribution: (B, V) float, of the rows that were looked at last and whose rule reads the token alone.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.bounds = torch.tensor([_NO_BOUNDS], device=device).repeat(slots, 1)
        self.rule = torch.tensor([_NO_WINDOW], device=device).repeat(slots, 1)
        self.values = torch.zeros((slots, 0), device=device)
        self.filled = torch.zeros(slots, dtype=torch.int64, device=device)
        self.fired = torch.full((slots,), -1, device=device)
        self._columns = torch.arange(0, device=device)
        # What was seen of the next token: by slot the mean over the likeliest ones, and the row of a distribution.
        self._group = torch.full((slots,), torch.nan, device=device)
        self._row = torch.full((slots,), -1, device=device)
        self.distribution = torch.zeros((1, 1), device=device)
        self._single: set[int] = set()
        self._tops: dict[int, int] = {}

    def admit(self, slot: int, rule: ConfidenceRule | None) -> None:
        """Begin with a slot anew."""
        device = self.rule.device
        bounds, values = _NO_BOUNDS, _NO_WINDOW
        self._single.discard(slot)
        self._tops.pop(slot, None)
        if rule is not None:
            above, below = rule.above, rule.below
            bounds = (torch.inf if above is None else above, -torch.inf if below is None else below)
            values = (rule.window, rule.least, ENDS.index(rule.end), rule.top)
            if rule.top:
                self._tops[slot] = rule.top
            else:
                self._single.add(slot)
        self.bounds[slot] = torch.tensor(bounds, device=device)
        self.rule[slot] = torch.tensor(values, device=device)
        if rule is not None and (missing := rule.window - self.values.shape[1]) > 0:
            self.values = torch.cat([self.values, self.values.new_zeros((len(self.values), missing))], dim=1)
            self._columns = torch.arange(self.values.shape[1], device=device)
        self.values[slot], self.filled[slot], self.fired[slot] = 0, 0, -1
        self._group[slot], self._row[slot] = torch.nan, -1

    def look(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """Take note of what the model makes of the next token.

        Args:
            logits: (B, V), before anything has edited them.
            slots: (B,) int64.
        """
        distribution = torch.log_softmax(logits.float(), dim=-1)
        if self._single:
            self.distribution = distribution
            self._row.fill_(-1)
            self._row[slots] = torch.arange(len(slots), device=slots.device)
        if self._tops:
            most = min(max(self._tops.values()), logits.shape[1])
            likeliest = distribution.topk(most, dim=-1).values
            top = self.rule.index_select(0, slots)[:, 3, None].clamp(min=1, max=most)
            within = torch.arange(most, device=slots.device) < top
            self._group[slots] = -likeliest.masked_fill(~within, 0).sum(1) / top[:, 0]

    def observe(
        self,
        tokens: torch.Tensor,
        slots: torch.Tensor,
        thinking: torch.Tensor,
        sampled: torch.Tensor,
        count: torch.Tensor,
        level: torch.Tensor,
    ) -> torch.Tensor:
        """Take note of the tokens that came.

        Args:
            tokens: (B,) int64.
            slots: (B,) int64.
            thinking: (B,) bool, whether they stand inside thinking.
            sampled: (B,) bool, whether the model chose them.
            count: (B,) int64, tokens since the start of the response.
            level: (B,) int64, what they end, as a place in `ENDS`.

        Returns:
            (B,) bool, where the model is as sure, or as unsure, as the rule says.
        """
        window, least, end, top = self.rule.index_select(0, slots).unbind(1)
        row = self._row.index_select(0, slots)
        single = self.distribution[row.clamp(min=0), tokens.clamp(max=self.distribution.shape[1] - 1)]
        value = torch.where(top > 0, self._group.index_select(0, slots), single.masked_fill(row < 0, torch.nan))
        self._row[slots], self._group[slots] = -1, torch.nan
        known, before = ~value.isnan(), self.filled.index_select(0, slots)
        filled = torch.where(sampled, (before + 1) * known, before) * thinking
        values = self.values.index_select(0, slots)
        shifted = torch.cat([value.nan_to_num()[:, None], values[:, :-1]], dim=1)
        values = torch.where(sampled[:, None], shifted, values)
        self.values[slots], self.filled[slots] = values, filled
        mean = values.masked_fill(self._columns >= window[:, None], 0).sum(1) / window
        above, below = self.bounds.index_select(0, slots).unbind(1)
        fires = thinking & (filled >= window) & (count >= least) & (level >= end) & ((mean >= above) | (mean <= below))
        self.fired[slots] = torch.where(fires, count, self.fired.index_select(0, slots))
        return fires

    def pause(self, slot: int) -> tuple[torch.Tensor, ...]:
        """What a slot has, for `go_on` in the same slot or in another."""
        return self.values[slot].clone(), self.filled[slot].clone(), self.fired[slot].clone()

    def go_on(self, slot: int, paused: tuple[torch.Tensor, ...]) -> None:
        """Take up what `pause` has returned; the rule is the same."""
        values, self.filled[slot], self.fired[slot] = paused
        kept = min(len(values), self.values.shape[1])  # both have room for the rule's window
        self.values[slot, :kept] = values[:kept]

    def changing(self) -> dict[str, torch.Tensor]:
        """What `look` and `observe` change, see `ControlBatch.changing`; `distribution` is replaced, never changed."""
        return {
            "values": self.values,
            "filled": self.filled,
            "fired": self.fired,
            "row": self._row,
            "group": self._group,
        }


_NO_BOUNDS = (torch.inf, -torch.inf)
_NO_WINDOW = (2**30, 0, 0, 0)
