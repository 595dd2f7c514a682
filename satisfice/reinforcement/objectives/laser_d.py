"""LASER-D: LASER with one target for each band of difficulty, measured again and again (arXiv 2505.15612)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from satisfice.lazy import Tensor, torch
from satisfice.reinforcement.objective import Need, Objective, ObjectiveError, Rollouts
from satisfice.reinforcement.objectives.laser import bonus_within, on_both_sides

BANDS = ("easy", "medium", "hard")


@dataclass
class LASERD(Objective):
    """LASER, with a target for easy, for medium and for hard problems that follows how long responses are.

        r = 1 + bonus * [L <= target(band)] right, -0.5 wrong

    A group is easy if at least 2/3 of it is right, medium from 1/3 on, hard below. A band's target is the smallest
    length on a grid (`lower`, `lower` + `interval`, ...) that covers enough of its responses, right and wrong: a group
    that is just in the band has n right ones, n = 2G/3, G/3 and 1 rounded down (5, 2 and 1 of 8), and the target is the
    first length whose coverage times n reaches 1. For hard problems that is the longest response. A band without
    responses so far has the token limit as its target, and all right responses in it have the bonus.

    From 2505.15612 and its code. Ours: the code measures coverage on 500 held-out problems before training and every
    20 steps; here it is measured on the rollouts of the training, on those of the first step first and then on those of
    the last `every` steps. Bands and coverage are those of what the model wrote by itself.

    Attributes:
        lower: tokens, the smallest target; the paper's for its main model.
        interval: tokens between two targets; the paper's.
        every: steps between two measurements, a step being one batch of rollouts; the paper's.
        bonus: for a right answer within the target, above 0; the paper's.
    """

    name: ClassVar[str] = "laser-d"
    summary: ClassVar[str] = "laser with a target for each band of difficulty, which follows the responses"
    paper: ClassVar[str] = "2505.15612 (LASER-D)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.OWN})

    lower: PositiveInt = 4096
    interval: PositiveInt = 1024
    every: PositiveInt = 20
    bonus: PositiveFloat = 0.5
    _step: int = field(default=0, init=False, repr=False)
    _targets: list[int | None] = field(default_factory=lambda: [None] * len(BANDS), init=False, repr=False)
    _counts: list[list[int]] = field(default_factory=lambda: [[] for _ in BANDS], init=False, repr=False)
    """For each band and grid length, how many responses have it as the smallest that covers them."""

    def update(self, rollouts: Rollouts) -> None:
        self._count(rollouts)
        if self._step % self.every == 0:
            size = rollouts.lengths.shape[1]
            enough = (max(size * 2 // 3, 1), max(size // 3, 1), 1)
            self._targets = [self._target(*measured) for measured in zip(self._counts, enough, strict=True)]
            self._counts = [[] for _ in BANDS]
        self._step += 1

    def _count(self, rollouts: Rollouts) -> None:
        cells = (rollouts.lengths - self.lower + self.interval - 1).clamp(min=0) // self.interval
        bands = self._bands(rollouts)
        for band, counts in enumerate(self._counts):
            found = torch.bincount(cells[(bands == band)[:, None] & rollouts.own]).tolist()
            counts.extend([0] * (len(found) - len(counts)))
            for cell, count in enumerate(found):
                counts[cell] += count

    def _target(self, counts: list[int], enough: int) -> int | None:
        """The first grid length that covers one in `enough` responses; None where there are none."""
        total, covered = sum(counts), 0
        for cell, count in enumerate(counts):
            covered += count
            if covered * enough >= total > 0:
                return self.lower + cell * self.interval
        return None

    def _bands(self, rollouts: Rollouts) -> Tensor:
        """(P,) index into `BANDS`; a group that holds nothing of the model's own is judged by all of it."""
        counted = rollouts.own | ~rollouts.own.any(dim=1, keepdim=True)
        right, size = (rollouts.correct & counted).sum(dim=1), counted.sum(dim=1)
        return (3 * right < 2 * size).long() + (3 * right < size).long()

    def _target_of_each(self, rollouts: Rollouts) -> Tensor:
        """(P, 1) int64 tokens."""
        longest = int(rollouts.lengths.max())
        targets = [longest if target is None else target for target in self._targets]
        return torch.tensor(targets)[self._bands(rollouts)][:, None]

    def rewards(self, rollouts: Rollouts) -> Tensor:
        return bonus_within(rollouts, self._target_of_each(rollouts), self.bonus)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "targets": list(self._targets),
            "counts": [list(counts) for counts in self._counts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        match state:
            case {"step": int(step), "targets": [_, _, _] as targets, "counts": [_, _, _] as counts} if len(state) == 3:
                self._step, self._targets = step, list(targets)
                self._counts = [list(band) for band in counts]
            case _:
                raise ObjectiveError(
                    f"the state of laser-d is step, targets and counts of {len(BANDS)} bands, not {dict(state)}"
                )

    def inactive(self, rollouts: Rollouts) -> str:
        if on_both_sides(rollouts, self._target_of_each(rollouts)):
            return ""
        targets = ", ".join(
            f"{'the token limit' if target is None else target} ({band})"
            for band, target in zip(BANDS, self._targets, strict=True)
        )
        return f"no group has right responses on both sides of its target, {targets}, so none is preferred"
