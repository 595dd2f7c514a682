"""DAPO's soft overlong punishment: the last stretch before the token limit costs (arXiv 2503.14476)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

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
        cache: tokens before the limit that cost; a fifth of the limit unless given, as the paper's 4096 of 20480.
        penalty: what a response at the limit pays, above 0 and below 2; 1 is the paper's.
    """

    name: ClassVar[str] = "dapo-overlong"
    summary: ClassVar[str] = "the last stretch before the token limit costs, ever more up to the limit"
    paper: ClassVar[str] = "2503.14476 (DAPO)"

    limit: int | None = None
    cache: int | None = None
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ObjectiveError(f"dapo-overlong: limit must be at least 1 token, not {self.limit}")
        if self.cache is not None and not 1 <= self.cache <= (self.limit or self.cache):
            raise ObjectiveError(f"dapo-overlong: cache must be at least 1 token and within limit, not {self.cache}")
        if not 0 < self.penalty < 2:
            raise ObjectiveError(
                f"dapo-overlong: penalty must be above 0 and below 2, not {self.penalty:g}: from 2 on a right answer "
                "at the limit is worth no more than a wrong one"
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
