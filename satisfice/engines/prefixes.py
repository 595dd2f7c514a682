"""The store of past prefixes: one tree of tokens, in which every token that sequences share is held once.

A segment holds what a sequence adds to the one that it goes on from. Where a sequence leaves a segment in its middle,
the shorter of the two ends becomes a child and the longer one stays: a chain that is probed again and again remains one
long segment with short ones along it, and nothing long is ever copied. Keys and values lie in pages, so that a segment
grows at its end, or is cut off there, for the price of one page.

What has children is needed by them. The rest, the ends of segments, is evicted by its last use.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from satisfice.engines.kv import Pages

PAGE = 256
"""Tokens of a page."""
LEAST = 8
"""Tokens that a common prefix has at least; what is shorter is sooner computed than copied."""
STRIDE = 1024
"""Tokens that are compared at once at most where two sequences are; a chain may have many thousands."""


class Segment:
    """What a sequence adds to the first `start` tokens of those before it.

    Attributes:
        parent: what it goes on from; None for the root, which is empty.
        start: the place in its sequence of its first token.
        ids: its tokens; every one of them has been computed.
        pages: their keys and values, `PAGE` tokens each, the last one maybe fewer.
        made: of sparse decoding, how each of its tokens was computed; see `satisfice.engines.sparse.reusable`.
        written: of sparse decoding, tokens that were written after it and are not computed, with their places.
        children: what goes on from it elsewhere than it does itself, by the place and token where each begins.
        needed: the place up to which its children need it.
    """

    def __init__(self, parent: "Segment | None", start: int) -> None:
        self.parent, self.start = parent, start
        self.ids: list[int] = []
        self.pages: list[Pages] = []
        self.made = bytearray()
        self.written: set[tuple[int, int]] = set()
        self.children: dict[tuple[int, int], Segment] = {}
        self.needed = start

    @property
    def end(self) -> int:
        """The place after its last token."""
        return self.start + len(self.ids)

    def append(self, ids: Sequence[int], pages: Pages, made: bytes) -> None:
        """Go on with tokens and a copy of their keys and values."""
        rest = len(self.ids) % PAGE
        if rest:
            pairs = zip(self.pages.pop(), pages, strict=True)
            pages = [(torch.cat([k, keys], 1), torch.cat([v, values], 1)) for (k, v), (keys, values) in pairs]
        tokens = rest + len(ids)
        if rest and tokens <= PAGE:
            self.pages.append(pages)
        else:
            self.pages += [_cut(pages, first, first + PAGE) for first in range(0, tokens, PAGE)]
        self.ids += ids
        self.made += made

    def parts(self, first: int, last: int) -> Iterator[tuple[int, Pages]]:
        """Places and views of the keys and values from one place to another."""
        for number in range((first - self.start) // PAGE, -(-(last - self.start) // PAGE)):
            begin = self.start + number * PAGE
            cut = slice(max(first - begin, 0), last - begin)
            yield begin + cut.start, [(keys[:, cut], values[:, cut]) for keys, values in self.pages[number]]

    def crop(self, end: int) -> None:
        """Forget what follows a place."""
        keep = end - self.start
        whole, rest = divmod(keep, PAGE)
        if rest and keep < len(self.ids):
            self.pages[whole] = _cut(self.pages[whole], 0, rest)
        del self.ids[keep:], self.made[keep:], self.pages[whole + bool(rest) :]
        self.written = {(place, token) for place, token in self.written if place <= end}


@dataclass(eq=False)
class Prefix:
    """The beginning of a stored sequence.

    Attributes:
        path: the segments that hold it, from the first.
        tokens: how many tokens it has.
    """

    path: list[Segment]
    tokens: int

    @property
    def made(self) -> bytes:
        """Of sparse decoding, how each of its tokens was computed."""
        return b"".join(bytes(segment.made[: end - segment.start]) for segment, end in self._ends())

    def pages(self, first: int, last: int) -> Iterator[tuple[int, Pages]]:
        """Places and views of the keys and values from one place to another, in order."""
        for segment, end in self._ends():
            if first < min(end, last):
                yield from segment.parts(max(first, segment.start), min(end, last))

    def goes_on(self, token: int) -> bool:
        """Whether `token` has followed it."""
        here, last = (self.tokens, token), self.path[-1]
        following = last.ids[self.tokens - last.start :][:1]
        return following == [token] or here in last.children or here in last.written

    def _ends(self) -> Iterator[tuple[Segment, int]]:
        ends = [segment.start for segment in self.path[1:]]
        return zip(self.path, [*ends, self.tokens], strict=True)


class PrefixStore:
    """Computed prefixes, the least recently used evicted first.

    Attributes:
        capacity: tokens held at most.
        tokens: tokens held; what several sequences begin with counts once.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = 0
        self._root = Segment(None, 0)
        self._ends: OrderedDict[Segment, None] = OrderedDict()
        """Segments with tokens that no child needs, the least recently used first."""

    def __len__(self) -> int:
        """How many stored sequences are no mere beginnings of others."""
        return len(self._ends)

    def find(self, ids: Sequence[int], limit: int) -> Prefix | None:
        """The longest stored prefix of the first `limit` tokens, where there is one worth taking."""
        path, place = self._walk(ids, limit)
        return Prefix(path, place) if place >= LEAST else None

    def add(
        self,
        ids: Sequence[int],
        count: int,
        take: Callable[[int, int], Pages],
        made: bytes | bytearray = b"",
        following: int | None = None,
    ) -> None:
        """Store the first `count` tokens of a sequence.

        Args:
            ids: the sequence.
            count: how many of its tokens are computed.
            take: views of the keys and values from one place to another; asked for what is not there yet.
            made: of sparse decoding, how each token was computed; what is there and was computed otherwise is replaced.
            following: of sparse decoding, the token that was written after them.
        """
        if not LEAST <= count <= self.capacity:
            return
        path, place = self._walk(ids, count)
        if made and path and (same := common_prefix(Prefix(path, place).made, bytes(made[:place]))) < place:
            self._forget(path, same)
            path, place = self._walk(ids, same)
        segment = path[-1] if path else self._root
        if place < count:
            segment = self._open(segment, ids, place, count)
            segment.append(ids[place:count], take(place, count), bytes(made[place:count]))
            self.tokens += count - place
            self._note(segment)
            self._ends.move_to_end(segment)
        if following is not None:
            segment.written.add((count, following))
        while self.tokens > self.capacity:
            self._evict(next(iter(self._ends)), self.tokens - self.capacity)

    def _walk(self, ids: Sequence[int], limit: int) -> tuple[list[Segment], int]:
        """The segments that hold the beginning of a sequence, now used, and how many of its tokens they hold."""
        path: list[Segment] = []
        segment, place = self._root, 0
        while place < limit and (child := segment.children.get((place, ids[place]))) is not None:
            place += common_prefix(child.ids, ids, place, limit)
            segment = child
            path.append(segment)
            if place > segment.needed:
                self._ends.move_to_end(segment)
        return path, place

    def _open(self, segment: Segment, ids: Sequence[int], place: int, count: int) -> Segment:
        """The segment that goes on from `place` of another: that one itself or a new child."""
        left = segment.end - place
        if segment.parent is None or left >= count - place:
            child = Segment(segment, place)
            segment.children[place, ids[place]] = child
            segment.needed = max(segment.needed, place)
            self._note(segment)
            return child
        if left:
            self._branch(segment, place)
        return segment

    def _branch(self, segment: Segment, place: int) -> None:
        """Make what follows `place` in a segment a child of it."""
        child = Segment(segment, place)
        for at, pages in segment.parts(place, segment.end):
            own = slice(at - segment.start, at - segment.start + pages[0][0].shape[1])
            child.append(segment.ids[own], pages, bytes(segment.made[own]))
        later = {key: each for key, each in segment.children.items() if key[0] > place}
        for key, each in later.items():
            del segment.children[key]
            each.parent = child
        child.children, child.needed = later, segment.needed if later else place
        child.written = {(at, token) for at, token in segment.written if at > place}
        segment.crop(place)
        segment.children[place, child.ids[0]] = child
        segment.needed = place
        # The child was used when the segment was, and takes its turn.
        self._ends.pop(segment, None)
        self._note(child)

    def _note(self, segment: Segment) -> None:
        """See to it that a segment can be evicted if, and only if, it holds what no child needs."""
        if segment.end > segment.needed:
            self._ends.setdefault(segment)
        else:
            self._ends.pop(segment, None)

    def _evict(self, segment: Segment, tokens: int) -> None:
        """Evict `tokens` tokens, or the rest of a page more, from the end of a segment; fewer where it has fewer."""
        kept = segment.start + max(0, len(segment.ids) - tokens) // PAGE * PAGE
        self._crop(segment, max(kept, segment.needed))

    def _crop(self, segment: Segment, end: int) -> None:
        self.tokens -= segment.end - end
        if end > segment.start:
            segment.crop(end)
            self._note(segment)
            return
        parent = segment.parent
        assert parent is not None
        del self._ends[segment], parent.children[segment.start, segment.ids[0]]
        if segment.start == parent.needed:
            parent.needed = max((place for place, _ in parent.children), default=parent.start)
            if parent.parent is not None and parent.end > parent.needed and parent not in self._ends:
                # What nobody but this child needed was last used with it.
                self._ends[parent] = None
                self._ends.move_to_end(parent, last=False)

    def _forget(self, path: list[Segment], place: int) -> None:
        """Evict all that goes on from the first `place` tokens of a path."""
        segment = [each for each in path if each.start <= place][-1]
        for child in [child for (at, _), child in segment.children.items() if at > place]:
            self._forget([child], child.start)
        self._crop(segment, max(place, segment.start))


def common_prefix(left: Sequence[int], right: Sequence[int], place: int = 0, limit: int | None = None) -> int:
    """How many tokens `left` has in common with `right[place:limit]` at its beginning; both of one type."""
    most = min(len(left), (len(right) if limit is None else limit) - place)
    if not place and most == len(left) == len(right) and left == right:
        return most  # without a copy of any part
    same, stride = 0, 64
    while same < most:
        end = min(same + stride, most)
        if left[same:end] != right[place + same : place + end]:
            return next(at for at in range(same, end) if left[at] != right[place + at])
        same, stride = end, min(2 * stride, STRIDE)
    return same


def ends_alike(left: Sequence[int], right: Sequence[int], tokens: int) -> bool:
    """Whether the last few of the first `tokens` tokens of two sequences are the same, as they are if all are."""
    few = slice(max(0, tokens - LEAST), tokens)
    return left[few] == right[few] and len(left) >= tokens


def _cut(pages: Pages, first: int, last: int) -> Pages:
    """A copy of some tokens."""
    return [(keys[:, first:last].clone(), values[:, first:last].clone()) for keys, values in pages]
