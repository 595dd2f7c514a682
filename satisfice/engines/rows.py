"""Which request runs in which row of the cache, and what the rows between them still hold.

A method that probes a chain ends its request, asks something behind the same tokens, and goes on. So the row that a
request leaves is parked: it keeps its keys and values, and whatever goes on from them, or from most of them, does so in
that row and copies nothing. A parked row is a copy of what the prefix store holds, and gives way to whoever needs it.
"""

from dataclasses import dataclass, field

import torch

from satisfice.engines.kv import RowCache
from satisfice.engines.prefixes import LEAST, common_prefix, ends_alike
from satisfice.engines.threaded import Request

GRACE = 8
"""Steps for which a long parked row keeps its place among those that run; its owner is likely to come back at once."""
SHORT = 256
"""Tokens of a parked row up to which it is rather copied again than computed beside the others."""


@dataclass(eq=False, repr=False)
class RowRequest(Request):
    """A request, and what is known of the row that it runs in.

    `ids[:computed]` have keys and values in the cache; while running, all but the last token do, or all but the last
    few where a short rest of the prompt is taken in step by step.

    Attributes:
        computed: see above.
        made: of sparse decoding, how each of `ids[:computed]` was computed; see `sparse.reusable`.
        row: its row in the cache; -1 while it does not run.
        slot: its place among those of its control; -1 while it does not run.
        paused: what its control keeps while it does not run, see `ControlBatch.pause`.
        long: whether it is computed with the rotary factors of long sequences, where the model has such.
        kept: of a scoring, the (tokens, V) log-probabilities of each part of it, where they are asked for.
        against: those of another scoring, all parts together, that this one's are compared with.
        divergences: of `against` from this one's, one a token.
    """

    computed: int = 0
    made: bytearray = field(default_factory=bytearray)
    row: int = -1
    slot: int = -1
    paused: tuple[torch.Tensor, ...] | None = None
    long: bool = False
    kept: list[torch.Tensor] | None = None
    against: torch.Tensor | None = None
    divergences: list[float] = field(default_factory=list)

    @property
    def behind(self) -> bool:
        """Whether the next token to compute is not the last: what follows it is known and not chosen."""
        return self.computed < len(self.ids) - 1


@dataclass(eq=False)
class Parked:
    """What a row holds that no request runs in.

    Attributes:
        row: which row.
        ids, computed, made, long: of the request that left it, see `RowRequest`.
        since: the step after which it left.
    """

    row: int
    ids: list[int]
    computed: int
    made: bytearray
    long: bool
    since: int


class Rows:
    """The rows of a cache.

    Attributes:
        cache: their keys and values.
        running: the requests that run, the newest last.
        parked: what other rows hold, by row.
        steps: decoding steps so far.
    """

    def __init__(self) -> None:
        self.running: list[RowRequest] = []
        self.clear()

    def clear(self) -> None:
        """Begin anew, with no row."""
        self.cache = RowCache()
        self.running.clear()
        self.parked: dict[int, Parked] = {}
        self.steps = 0

    @property
    def occupied(self) -> int:
        """Rows up to the last one that holds something."""
        return max((row + 1 for row in (*self.parked, *(request.row for request in self.running))), default=0)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, those that are not computed yet included."""
        tokens = [len(request.ids) for request in self.running]
        return max([*tokens, *(parked.computed for parked in self.parked.values())], default=0)

    def nearest(self, request: RowRequest, limit: int) -> tuple[int, int]:
        """The parked row with most of the first `limit` tokens of a request, and how many; -1 where there is none."""
        best, most = -1, LEAST - 1
        for row, parked in self.parked.items():
            if parked.long is request.long and ends_alike(parked.ids, request.ids, most + 1):
                shared = min(common_prefix(parked.ids, request.ids, limit=limit), parked.computed)
                if shared > most:
                    best, most = row, shared
            if most == limit:
                break
        return best, most if best >= 0 else 0

    def free(self, most: int) -> int:
        """The row that a request is to have which goes on in none; there are `most` of them."""
        taken = {request.row for request in self.running}
        rows = [row for row in range(min(self.occupied + 1, most)) if row not in taken]
        return min(rows, key=lambda row: (self.parked[row].since if self._expected(row) else -1, row))

    def start(self, request: RowRequest, row: int) -> None:
        """Run a request in a row."""
        self.parked.pop(row, None)
        request.row = row
        self.running.append(request)

    def leave(self, request: RowRequest, *, park: bool) -> None:
        """Run it no more."""
        self.running.remove(request)
        if park:
            row, made = request.row, request.made
            self.parked[row] = Parked(row, request.ids, request.computed, made, request.long, self.steps)
        request.row = -1

    def close_gaps(self) -> bool:
        """Have the requests that run lie side by side, but for rows whose owners are expected; whether any moved."""
        moved = False
        while True:
            taken = {request.row for request in self.running}
            last = max(self.running, key=lambda request: request.row)
            gaps = (row for row in range(min(taken), last.row) if row not in taken and not self._expected(row))
            gap = next(gaps, None) if last.row - min(taken) >= len(taken) else None
            if gap is None:
                return moved
            self.cache.move(last.row, gap, 0, last.computed)
            self.parked.pop(gap, None)
            last.row = gap
            moved = True

    def close_up(self, keep: int = -1) -> None:
        """Move all that run to the first rows, and forget what is parked except for one row, which comes with them."""
        holders: dict[int, RowRequest | Parked] = {request.row: request for request in self.running}
        if keep in self.parked:
            holders[keep] = self.parked[keep]
        self.parked = {}
        for row, source in enumerate(sorted(holders)):
            holder = holders[source]
            if row != source:
                self.cache.move(source, row, 0, holder.computed)
            holder.row = row
            if isinstance(holder, Parked):
                self.parked[row] = holder

    def idle(self, first: int, last: int) -> list[int]:
        """For each row within, the place of a token that a step may compute there without harm."""
        places = []
        for row in range(first, last):
            parked = self.parked.get(row)
            if parked is not None:
                parked.computed = min(parked.computed, self.cache.length - 1)
            places.append(0 if parked is None else parked.computed)
        return places

    def _expected(self, row: int) -> bool:
        """Whether the owner of a parked row is likely to come back for it."""
        parked = self.parked.get(row)
        return parked is not None and parked.computed > SHORT and self.steps - parked.since <= GRACE
