"""The course of one thinking: what its answer would be at every place where it could be closed."""

from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from satisfice.measurement.verbosity import TOP, overthinking_share, settled


class Course(BaseModel):
    """One thinking from boundary to boundary.

    Attributes:
        problem_id, sample: whose.
        source: "asked" where the model was closed and asked at each boundary, "read" where the answers are those that
            the thinking states.
        tokens: of the whole thinking.
        final, right: the answer in the end, as a text that is equal where answers are, and whether it is right.
        places: tokens before each boundary, rising; the first may be 0, before any thinking.
        answers: the answer at each, in the same spelling as `final`; None where there is none.
        shown: the answers as they were written.
        right_at: whether it is right.
        confidence: the geometric mean of the probabilities of its tokens; empty where nobody asked.
        answer_entropy: entropy in nats of the first token of the answer, over the whole vocabulary; empty where the
            engine gives none. Of an answer of one token it is the entropy of the answer.
        end_rank, end_logprob: rank of the end marker's first token there, 0 for the likeliest, and its natural
            log-probability; empty where nobody asked. Where it was not among those listed, the rank is their number.
        taken: whether thinking was closed at that boundary.
        entropies: of each token of the thinking in nats; empty unless asked for.
    """

    model_config = ConfigDict(frozen=True)

    problem_id: str
    sample: int = 0
    source: Literal["asked", "read"]
    tokens: int = Field(ge=0)
    final: str | None
    right: bool
    places: list[int]
    answers: list[str | None]
    shown: list[str | None]
    right_at: list[bool]
    confidence: list[float] = []
    answer_entropy: list[float] = []
    end_rank: list[int] = []
    end_logprob: list[float] = []
    taken: list[bool] = []
    entropies: list[float] = []

    @property
    def known(self) -> bool:
        """Whether any boundary has an answer, so that there is something to say about when it came."""
        return self.final is not None and any(answer is not None for answer in self.answers)

    @property
    def settled_at(self) -> int:
        """Tokens before the first boundary from which the answer never changes; all where there is none."""
        place = settled(self.answers, self.final)
        return self.tokens if place is None else min(self.places[place], self.tokens)

    @property
    def overthinking(self) -> float:
        """Share of the thinking that came after that."""
        return overthinking_share(self.settled_at, self.tokens)

    @property
    def first_right(self) -> int | None:
        """Tokens before the first boundary with a right answer, None where there is none."""
        return next((place for place, right in zip(self.places, self.right_at, strict=True) if right), None)

    @property
    def gains(self) -> list[float]:
        """InfoGain of each step from one boundary to the next: how far the entropy of the answer falls (2505.18237)."""
        return [before - after for before, after in pairwise(self.answer_entropy)]

    @property
    def untaken(self) -> list[int]:
        """The boundaries at which the model could have stopped and went on, the one before any thinking left out."""
        return [
            index
            for index, taken in enumerate(self.taken)
            if not taken and 0 < self.places[index] < self.tokens and self.end_rank
        ]

    def at_hand(self, index: int) -> bool:
        """Whether the end marker is among the likeliest tokens at a boundary."""
        return self.end_rank[index] < TOP

    def right_after(self, boundaries: int) -> bool:
        """Whether the answer is right if thinking is closed after so many boundaries, 0 for none; one that has fewer
        keeps what it has.

        A course without a boundary before any thinking is not asked for 0.
        """
        inner = [index for index, place in enumerate(self.places) if place > 0]
        if boundaries == 0:
            return self.right_at[0]
        return self.right_at[inner[boundaries - 1]] if boundaries <= len(inner) else self.right
