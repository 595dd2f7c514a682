"""Which request runs in which row of which cache, and what the rows between them still hold.

Rows of about the same length lie side by side in a cache of their own, a bucket: one that holds up to 256 tokens a
row, one of 512, and so on. So a short row is not padded to the length of a long one, in memory or in attention. A row
that outgrows its bucket moves to the next.

A method that probes a chain ends its request, asks something behind the same tokens, and goes on. So the row that a
request leaves is parked: it keeps its keys and values, and whatever goes on from them, or from most of them, does so in
that row and copies nothing. A parked row is a copy of what the prefix store holds, and gives way to whoever needs it.
"""

from dataclasses import dataclass, field

import torch

from satisfice.engines.kv import RowCache
from satisfice.engines.paths import Path, Paths
from satisfice.engines.prefixes import LEAST, common_prefix, ends_alike
from satisfice.engines.threaded import Request

FIRST_LENGTH = 256
"""Tokens of a row in the first bucket at most; each further one holds rows twice as long."""
FIRST_ROOM = 2048
"""Tokens that a bucket has room for at first, if that is one row or more; rows are added by doubling."""
GRACE = 8
"""Steps for which a long parked row keeps its place among those that run; its owner is likely to come back at once."""
SHORT = 256
"""Tokens of a parked row up to which it is rather copied again than computed beside the others."""

Fed = tuple[int, int, int, list[int]]
"""Of a token in a pass over continuations its id, its place in the row, its place in its sequence, and the places
behind the prompt that it sees, its own included."""


@dataclass(eq=False, repr=False)
class RowRequest(Request):
    """A request, and what is known of the row that it runs in.

    `ids[:computed]` have keys and values in the cache; while running, all but the last token do, or all but the last
    few where a short rest of the prompt is taken in step by step.

    Attributes:
        computed: see above.
        made: of sparse decoding, how each of `ids[:computed]` was computed; see `sparse.reusable`.
        bucket: where it runs; None while it does not.
        row: its row in there; -1 while it does not run.
        slot: its place among those of its control; -1 while it does not run.
        paused: what its control keeps while it does not run, see `ControlBatch.pause`.
        long: whether it is computed with the rotary factors of long sequences, where the model has such.
        paths: short continuations of `ids` to be looked at, where nothing is to be written or scored.
        kept: of a scoring, the (tokens, V) log-probabilities of each part of it, where they are asked for.
        against: those of another scoring, all parts together, that this one's are compared with.
        divergences: of `against` from this one's, one a token.
    """

    computed: int = 0
    made: bytearray = field(default_factory=bytearray)
    bucket: "Bucket | None" = None
    row: int = -1
    slot: int = -1
    paused: tuple[torch.Tensor, ...] | None = None
    long: bool = False
    paths: Paths | None = None
    kept: list[torch.Tensor] | None = None
    against: torch.Tensor | None = None
    divergences: list[float] = field(default_factory=list)

    @property
    def behind(self) -> bool:
        """Whether the next token to compute is not the last: what follows it is known and not chosen."""
        return self.computed < len(self.ids) - 1

    @property
    def tokens(self) -> int:
        """Tokens that its row has to have room for, by now."""
        return len(self.ids) if self.paths is None else self.paths.end

    @property
    def held(self) -> int:
        """Tokens at the beginning of its row that must not be lost."""
        return self.computed if self.paths is None or not self.paths.known else self.paths.end

    @property
    def leaves(self) -> list[Path]:
        """The continuations to be looked at, each once."""
        return [] if self.paths is None else self.paths.leaves

    def fed(self) -> list[Fed]:
        """What a pass over its continuations computes, those that are asked for last."""
        assert self.paths is not None
        rest = range(self.computed, len(self.ids) - (() in self.leaves))
        fed: list[Fed] = [(self.ids[place], place, place, []) for place in rest]
        for path in [*self.paths.inner(), *self.leaves]:
            token = path[-1] if path else self.ids[-1]
            fed.append((token, self.paths.place(path), len(self.ids) + len(path) - 1, self.paths.way(path)))
        return fed

    @property
    def outgrown(self) -> bool:
        """Whether it has more tokens than rows may have where it runs."""
        return self.bucket is not None and len(self.ids) > self.bucket.most


@dataclass(eq=False)
class Parked:
    """What a row holds that no request runs in.

    Attributes:
        bucket, row: which row.
        ids, computed, made, long, paths: of the request that left it, see `RowRequest`.
        since: the step after which it left.
    """

    bucket: "Bucket"
    row: int
    ids: list[int]
    computed: int
    made: bytearray
    long: bool
    paths: Paths | None
    since: int

    @property
    def held(self) -> int:
        """Tokens that the row holds."""
        return self.computed if self.paths is None else self.paths.end

    def continuations(self, ids: list[int]) -> dict[Path, int]:
        """The continuations of `ids` that are computed here, and where their last tokens are."""
        if self.paths is None or self.computed < len(self.ids) or self.ids != ids:
            return {}
        return self.paths.places


class Bucket:
    """Rows of about the same length.

    Args:
        most: tokens that a row may have here.

    Attributes:
        cache: their keys and values; its rows are shorter than `most` where the room is short.
        running: the requests that run, the newest last.
        parked: what other rows hold, by row.
        steps: decoding steps so far.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.cache = RowCache()
        self.running: list[RowRequest] = []
        self.parked: dict[int, Parked] = {}
        self.steps = 0

    @property
    def occupied(self) -> int:
        """Rows up to the last one that holds something."""
        return 1 + max(max(self.parked, default=-1), max([request.row for request in self.running], default=-1))

    @property
    def longest(self) -> int:
        """Tokens of the longest row, those that are not computed yet included."""
        tokens = [request.tokens for request in self.running]
        return max([*tokens, *(parked.held for parked in self.parked.values())], default=0)

    def free(self, most: int) -> int:
        """The row that a request is to have which goes on in none; there are `most` of them."""
        taken = {request.row for request in self.running}
        rows = [row for row in range(min(self.occupied + 1, most)) if row not in taken]
        return min(rows, key=lambda row: (self.parked[row].since if self._expected(row) else -1, row))

    def start(self, request: RowRequest, row: int) -> None:
        """Run a request in a row."""
        self.parked.pop(row, None)
        request.bucket, request.row = self, row
        self.running.append(request)

    def leave(self, request: RowRequest, *, park: bool) -> None:
        """Run it no more."""
        self.running.remove(request)
        if park:
            self.parked[request.row] = Parked(
                self, request.row, request.ids, request.computed, request.made, request.long, request.paths, self.steps
            )
        request.bucket, request.row = None, -1

    def close_gaps(self) -> bool:
        """Have the requests that run lie side by side, but for rows whose owners are expected; whether any moved."""
        moved = False
        while self.running:
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
        return moved

    def close_up(self, keep: int = -1) -> None:
        """Move all that run to the first rows, and forget what is parked except for one row, which comes with them."""
        holders: dict[int, RowRequest | Parked] = {request.row: request for request in self.running}
        if keep in self.parked:
            holders[keep] = self.parked[keep]
        self.parked = {}
        for row, source in enumerate(sorted(holders)):
            holder = holders[source]
            if row != source:
                self.cache.move(source, row, 0, holder.held)
            holder.row = row
            if isinstance(holder, Parked):
                self.parked[row] = holder

    def idle(self, first: int, last: int) -> list[int]:
        """For each row within, the place of a token that a step may compute there without harm."""
        places = []
        for row in range(first, last):
            parked = self.parked.get(row)
            if parked is not None and parked.held >= self.cache.length:
                parked.computed, parked.paths = min(parked.computed, self.cache.length - 1), None
            places.append(0 if parked is None else parked.held)
        return places

    def _expected(self, row: int) -> bool:
        """Whether the owner of a parked row is likely to come back for it."""
        parked = self.parked.get(row)
        return parked is not None and parked.computed > SHORT and self.steps - parked.since <= GRACE


class Rows:
    """All rows, in buckets.

    Args:
        most: requests that run at once at most.

    Attributes:
        running: the requests that run, the newest last.
        buckets: the shortest first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.running: list[RowRequest] = []
        self.buckets: list[Bucket] = []

    def clear(self) -> None:
        """Begin anew, with no row."""
        self.running.clear()
        self.buckets.clear()

    @property
    def parked(self) -> list[Parked]:
        """What rows hold that no request runs in."""
        return [parked for bucket in self.buckets for parked in bucket.parked.values()]

    @property
    def held(self) -> int:
        """Tokens that there is room for, padding included."""
        return sum(bucket.cache.rows * bucket.cache.length for bucket in self.buckets)

    @property
    def calm_steps(self) -> int:
        """Steps for which every row has room where it is, if none comes or goes."""
        return min([min(each.most, each.cache.length) - each.longest for each in self.buckets], default=0)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Rows of each bucket, and tokens that these have room for."""
        return [(bucket.cache.rows, bucket.cache.length) for bucket in self.buckets]

    def bucket(self, tokens: int) -> Bucket:
        """Where a row of so many tokens belongs."""
        most = FIRST_LENGTH
        while most < tokens:
            most *= 2
        for bucket in self.buckets:
            if bucket.most == most:
                return bucket
        bucket = Bucket(most)
        self.buckets.append(bucket)
        self.buckets.sort(key=lambda each: each.most)
        return bucket

    def nearest(self, request: RowRequest, limit: int) -> tuple[Parked | None, int]:
        """The parked row with most of the first `limit` tokens of a request, if one has any, and how many."""
        best: Parked | None = None
        most = LEAST - 1
        for parked in self.parked:
            if parked.long is request.long and ends_alike(parked.ids, request.ids, most + 1):
                shared = min(common_prefix(parked.ids, request.ids, limit=limit), parked.computed)
                if shared > most:
                    best, most = parked, shared
            if most == limit:
                break
        return best, 0 if best is None else most

    def start(self, request: RowRequest, bucket: Bucket, row: int) -> None:
        """Run a request in a row."""
        bucket.start(request, row)
        self.running.append(request)

    def leave(self, request: RowRequest, *, park: bool) -> None:
        """Run it no more."""
        assert request.bucket is not None
        self.running.remove(request)
        request.bucket.leave(request, park=park)

    def move_up(self, request: RowRequest, room: int) -> bool:
        """Move a request that has outgrown its bucket to where it belongs; whether that fits into `room` tokens."""
        old, bucket = request.bucket, self.bucket(len(request.ids))
        assert old is not None
        # A copy, because its row may be gone once there is another.
        pages = [(keys.clone(), values.clone()) for keys, values in old.cache.view(request.row, 0, request.computed)]
        order = list(old.running)
        old.running.remove(request)
        row = bucket.free(self._most)
        if not self.fit(room, bucket, row + 1, len(request.ids)):
            old.running = order
            return False
        bucket.start(request, row)
        bucket.cache.put(row, 0, pages)
        return True

    def close_gaps(self) -> bool:
        """See `Bucket.close_gaps`; buckets that hold nothing are given up."""
        moved = [bucket.close_gaps() for bucket in self.buckets]
        self.buckets = [bucket for bucket in self.buckets if bucket.occupied]
        return any(moved)

    def close_up(self, keep: Parked | None = None) -> None:
        """Forget what is parked, except for one row, and hold nothing for rows that nobody has."""
        for bucket in self.buckets:
            bucket.close_up(keep.row if keep is not None and keep.bucket is bucket else -1)
            if not bucket.occupied:
                bucket.cache = RowCache()

    def stepped(self) -> None:
        """Count a decoding step."""
        for bucket in self.buckets:
            bucket.steps += 1

    def crowded(self, room: int, bucket: Bucket | None = None, rows: int = 0, length: int = 0) -> bool:
        """Whether rows do not fit into `room` tokens, see `fit`, and take less once they are closed up."""
        loose = any(
            some.parked or count > len(some.running) + (some is bucket and rows > 0)
            for some, count in self._counts(bucket, rows)
        )
        return loose and sum(count * tokens for _, count, tokens in self._wanted(bucket, rows, length)) > room

    def fit(self, room: int, bucket: Bucket | None = None, rows: int = 0, length: int = 0) -> bool:
        """Whether all rows fit into `room` tokens, among them `rows` rows of `length` tokens in `bucket`.

        Caches are resized where they do and it is needed.
        """
        wanted = self._wanted(bucket, rows, length)
        if all(count <= some.cache.rows and tokens <= some.cache.length for some, count, tokens in wanted):
            return True
        wanted = [(some, count, tokens) for some, count, tokens in wanted if count]
        lengths = _lengths([(count, tokens, some.most) for some, count, tokens in wanted], room)
        if lengths is None:
            return False
        spare = room - sum(count * tokens for (_, count, _), tokens in zip(wanted, lengths, strict=True))
        sizes = {}
        for (some, count, _), tokens in zip(wanted, lengths, strict=True):
            # Rows are added by doubling, so that a small batch does not hold memory for a large one.
            held = some.cache.rows
            more = held if count <= held else min(max(count, FIRST_ROOM // tokens, 2 * held), self._most)
            more = count + min(more - count, spare // tokens)
            spare -= (more - count) * tokens
            sizes[some] = more, tokens
        for some in self.buckets:
            if some not in sizes:
                some.cache = RowCache()
        # What gets smaller goes first, for the sake of what gets larger.
        for some, (count, tokens) in sorted(sizes.items(), key=lambda size: _grown(*size)):
            if (count, tokens) != (some.cache.rows, some.cache.length):
                some.cache.resize(count, tokens)
        return True

    def _wanted(self, bucket: Bucket | None, rows: int, length: int) -> list[tuple[Bucket, int, int]]:
        """Of each bucket, how many rows of how many tokens it has to have; who has outgrown it is about to leave."""
        found = []
        for some, count in self._counts(bucket, rows):
            tokens = min(some.longest, some.most)
            found.append((some, count, max(tokens, length) if some is bucket else tokens))
        return found

    def _counts(self, bucket: Bucket | None, rows: int) -> list[tuple[Bucket, int]]:
        """Of each bucket, how many rows it has to have."""
        return [(some, max(some.occupied, rows) if some is bucket else some.occupied) for some in self.buckets]


def _lengths(wanted: list[tuple[int, int, int]], room: int) -> list[int] | None:
    """How long rows are in each bucket, as long as there may be if possible; None where there is too little room.

    Args:
        wanted: of each bucket how many rows it has, how long they are at least, and at most.
        room: tokens for all.
    """
    longest = [most for _, _, most in wanted]
    if sum(count * most for count, _, most in wanted) <= room:
        return longest
    # Where they cannot be, they share what there is.
    lengths = [least for _, least, _ in wanted]
    short = set(range(len(wanted)))
    spare = room - sum(count * least for count, least, _ in wanted)
    if spare < 0:
        return None
    while short and (extra := spare // sum(wanted[i][0] for i in short)):
        for i in sorted(short):
            grown = min(extra, longest[i] - lengths[i])
            lengths[i] += grown
            spare -= grown * wanted[i][0]
        short = {i for i in short if lengths[i] < longest[i]}
    return lengths


def _grown(bucket: Bucket, size: tuple[int, int]) -> int:
    """By how many tokens a bucket would grow."""
    return size[0] * size[1] - bucket.cache.rows * bucket.cache.length
