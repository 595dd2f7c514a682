"""Lists of lists of numbers without a Python object for each, and rows in groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged(Sequence[Any]):
    """A list of lists of numbers as two arrays.

    Attributes:
        values: all numbers, list after list.
        starts: where each list begins in `values`, and at last how many numbers there are.
    """

    values: NDArray[Any]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, lists: Sequence[Sequence[float]]) -> "Ragged":
        """Lists in this form."""
        if isinstance(lists, cls):
            return lists
        starts = np.concatenate(([0], np.cumsum([len(each) for each in lists], dtype=np.int64)))
        return cls(np.array([value for each in lists for value in each], dtype=np.float64), starts)

    def __len__(self) -> int:
        return self.starts.size - 1

    def __getitem__(self, place: Any) -> Any:
        return self.values[self.starts[place] : self.starts[place + 1]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The length of each list."""
        return np.diff(self.starts)


def problem_means(values: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The mean over the samples of each problem, shape (problems,).

    Raises:
        ValueError: a problem has no sample.
    """
    lists = Ragged.of(values)
    if not lists.sizes.all():
        raise ValueError("a problem without a sample has no mean: leave it out, and say that it is left out")
    if not len(lists):
        return np.zeros(0, dtype=np.float64)
    return np.asarray(np.add.reduceat(lists.values.astype(np.float64), lists.starts[:-1]) / lists.sizes)


class Grouped:
    """Rows in groups, one a problem.

    Attributes:
        rows: the rows, group after group.
        starts: where each group begins in `rows`, and at last their number.
    """

    def __init__(self, rows: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        self.rows, self.starts = rows, starts

    def __len__(self) -> int:
        return self.starts.size - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each group."""
        return np.diff(self.starts)

    def of(self, column: NDArray[np.generic]) -> Ragged:
        """A column as the statistics take it: the values of each group."""
        return Ragged(column[self.rows], self.starts)

    def only(self, wanted: NDArray[np.bool_]) -> "Grouped":
        """The groups for which `wanted` is true."""
        keep = np.repeat(wanted, self.sizes)
        return Grouped(self.rows[keep], np.concatenate(([0], np.cumsum(self.sizes[wanted]))))

    def rows_where(self, wanted: NDArray[np.bool_]) -> "Grouped":
        """The rows at the places of `rows` for which `wanted` is true; groups that lose all are gone."""
        group = np.repeat(np.arange(len(self)), self.sizes)[wanted]
        return Grouped(self.rows[wanted], starts_of(group))


def starts_of(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each run of equal numbers begins, and at last their number."""
    changes = np.flatnonzero(np.diff(groups)) + 1
    return np.concatenate(([0], changes, [groups.size])) if groups.size else np.zeros(1, dtype=np.int64)
