"""Short continuations of one prompt that are looked at in one row, side by side behind the prompt.

A search for answers asks what may follow several continuations of one long chain, a few tokens each. As requests of
their own each would have a copy of the chain in a row of its own. Here the chain stays where it is: every token that
the continuations do not share has a place behind it, and a mask shows each of them its own beginning alone. The places
are kept with the parked row, so the next call, whose continuations go on from these, computes their newest tokens only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

Path = tuple[int, ...]
"""The tokens of a continuation."""


@dataclass(eq=False)
class Paths:
    """Continuations of a prompt.

    Args:
        prompt: how many tokens the prompt has.
        asked: the continuations; an empty one asks what follows the prompt.

    Attributes:
        places: where in the row the last token of every beginning of a continuation is, of those before this call, too.
        known: which of them have keys and values.
        leaves: the continuations, each once.
    """

    prompt: int
    asked: Sequence[Path]
    places: dict[Path, int] = field(default_factory=dict)
    known: set[Path] = field(default_factory=set)
    leaves: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        self._beginnings = list(dict.fromkeys(path[:end] for path in self.asked for end in range(1, len(path) + 1)))
        self.leaves = list(dict.fromkeys(self.asked))
        self.begin({}, room=0)  # whatever the room: nothing is held

    def begin(self, held: dict[Path, int], room: int) -> None:
        """Take places behind those of an earlier call to the same prompt.

        Args:
            held: of the beginnings that were computed then, where they are; none where the row is another.
            room: tokens that a row may have; where they would not do the others are given up.
        """
        self.places = dict(held)
        for path in self._beginnings:
            self.places.setdefault(path, self.prompt + len(self.places))
        if held and self.end > room:
            self.begin({}, room)
            return
        # What is asked for is computed again: only the pass that computes a token says what follows it.
        self.known = set(held) - set(self.asked)

    @property
    def end(self) -> int:
        """Tokens that the row has to have room for."""
        return self.prompt + len(self.places)

    def inner(self) -> list[Path]:
        """What else has to be computed: beginnings that are not known."""
        asked = set(self.asked)
        return [path for path in self._beginnings if path not in self.known and path not in asked]

    @property
    def reused(self) -> int:
        """How many beginnings of the continuations are not computed again."""
        return sum(path in self.known for path in self._beginnings)

    def place(self, path: Path) -> int:
        """Where the last token before what follows a path is."""
        return self.places[path] if path else self.prompt - 1

    def way(self, path: Path) -> list[int]:
        """The places of a path's tokens behind the prompt."""
        return [self.places[path[:end]] for end in range(1, len(path) + 1)]
