"""DAPO's soft overlong punishment: the last stretch before the token limit costs (arXiv 2503.14476)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from satisfice.lazy import Tensor
from satisfice.parameters import Because
from satisfice.reinforcement.objective import Objective, ObjectiveError, Rollouts


@dataclass(frozen=True)
class DAPOOverlong(Objective):
    """A right answer earns 1 and a wrong one -1; from `cache` tokens before the limit on, both pay.

        r = (1 if right, -1 if wrong) + penalty * p(L)
        p(L) = 0                                  L <= limit - cache
        p(L) = ((limit - cache) - L) / cache      between
        p(L) = -1                                 L > limit

    From 2503.14476, equations 7 and 13, where penalty is 1. A right answer at the limit has 0 there, still above every
    wrong one.

    Attributes:
        limit: tokens; the token limit of the rollouts unless given (20480 in the paper).
        cache: tokens before the limit that cost, fewer than the limit; a fifth of it unless given, as the paper's 4096
            of 20480.
        penalty: what a response at the limit pays, above 0 and below 2; 1 is the paper's.
    """

    name: ClassVar[str] = "dapo-overlong"
    summary: ClassVar[str] = "the last stretch before the token limit costs, ever more up to the limit"
    paper: ClassVar[str] = "2503.14476 (DAPO)"

    limit: PositiveInt | None = None
    cache: PositiveInt | None = None
    penalty: Annotated[
        float, Field(gt=0, lt=2), Because("from 2 on a right answer at the limit is worth no more than a wrong one")
    ] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and (obstacle := self.obstacle(self.limit)):
            raise ObjectiveError(obstacle)

    def obstacle(self, max_length: int) -> str:
        limit = self.limit or max_length
        if self.cache is None or self.cache < limit:
            return ""
        return (
            f"dapo-overlong: cache is {self.cache} tokens and the limit {limit}: every response would pay, however "
            "short; cache must be below the limit"
        )

    def rewards(self, rollouts: Rollouts) -> Tensor:
        limit, cache = self._stretch(rollouts)
        punishment = ((limit - cache - rollouts.lengths.double()) / cache).clamp(-1, 0)
        return rollouts.correct.double() * 2 - 1 + self.penalty * punishment

    def _stretch(self, rollouts: Rollouts) -> tuple[int, float]:
        """The limit and the tokens before it that cost."""
        limit = self.limit or rollouts.max_length
        return limit, self.cache or limit / 5

    def inactive(self, rollouts: Rollouts) -> str:
        limit, cache = self._stretch(rollouts)
        if bool((rollouts.lengths > limit - cache).any()):
            return ""
        return (
            f"no response is longer than {limit - cache:g} tokens, so none pays for length; lower limit or raise cache"
        )
