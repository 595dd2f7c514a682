"""Traces as columns of numbers: all that a table needs of a run, in about 120 bytes a trace.

A run of a million traces does not fit into memory as records. Whatever measures a run therefore takes it in one pass
into columns, and works on these.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from satisfice.measurement.ragged import Grouped, starts_of
from satisfice.measurement.verbosity import repetition_share, tail_period
from satisfice.trace import CONVENTIONS, Trace

COUNTS = (
    "thinking_tokens",
    "answer_tokens",
    "probe_tokens",
    "branch_tokens",
    "outline_tokens",
    "prefilled_tokens",
    "cached_tokens",
    "forward_passes",
    "prompt_tokens",
    "characters",
)
"""What is counted of a trace: of its cost, the tokens of its prompt, the characters of thinking and answer together."""

ROW = np.dtype(
    [
        ("problem", "i4"),
        ("sample", "i4"),
        *((name, "i8") for name in COUNTS),
        ("vote", "i8"),
        ("seconds", "f8"),
        ("repetition", "f8"),
        *((name, "?") for name in ("ungraded", "right", "truncated", "never_closed", "looping")),
    ]
)

CHUNK = 4096
"""Rows that are kept as Python objects at most."""

REPEATING = 0.5
"""A trace whose thinking has a larger share of repeated n-grams than this counts as repeating."""

LOOKED_AT = 0.2
"""Only a trace with a larger share of repeated n-grams than this is searched for a loop: no other can end in one."""

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Columns:
    """The traces of one method, one row each in the order they came.

    `add` takes a trace in; the properties are arrays over the rows.

    Attributes:
        problems: the ids of the problems, in the order of their first trace.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._place: dict[str, int] = {}
        self._table = np.zeros(0, dtype=ROW)
        self._parts: list[NDArray[Any]] = []
        self._new: list[tuple[float, ...]] = []

    @classmethod
    def of(cls, traces: "Iterable[Trace] | Columns") -> Self:
        """The columns of some traces: those that they bring along, where a file of traces was read, or new ones."""
        ready = traces if isinstance(traces, cls) else getattr(traces, "columns", None)
        if isinstance(ready, cls):
            return ready
        assert not isinstance(traces, Columns)
        columns = cls()
        for trace in traces:
            columns.add(trace)
        return columns

    def add(self, trace: Trace) -> None:
        """Take in one trace."""
        place = self._place.setdefault(trace.problem_id, len(self.problems))
        if place == len(self.problems):
            self.problems.append(trace.problem_id)
        share, looping = math.nan, False
        if trace.response_ids or not trace.thinking:
            thinking = trace.response_ids[slice(*trace.thinking_span)]
            share = repetition_share(thinking)
            looping = share > LOOKED_AT and tail_period(thinking) is not None
        vote = (trace.grade.extracted or "").strip() if trace.grade is not None else ""
        cost = trace.cost
        self._new.append(
            (
                place,
                trace.sample,
                cost.thinking_tokens,
                cost.answer_tokens,
                cost.probe_tokens,
                cost.branch_tokens,
                cost.outline_tokens,
                cost.prefilled_tokens,
                cost.cached_tokens,
                cost.forward_passes,
                len(trace.prompt_ids),
                len(trace.thinking) + len(trace.answer),
                (hash(vote) or 1) if vote else 0,
                cost.seconds,
                share,
                trace.grade is None,
                trace.correct and not trace.truncated,
                trace.truncated,
                never_closed(trace),
                looping,
            )
        )
        if len(self._new) == CHUNK:
            self._pack()

    def __len__(self) -> int:
        return self._table.size + sum(part.size for part in self._parts) + len(self._new)

    @property
    def problem(self) -> NDArray[np.int32]:
        """Place of each trace's problem in `problems`."""
        return self._column("problem")

    @property
    def sample(self) -> NDArray[np.int32]:
        """Which sample of its problem each trace is."""
        return self._column("sample")

    def count(self, name: str) -> Ints:
        """One of `COUNTS`."""
        return self._column(name)

    def cost(self, convention: str) -> Ints:
        """Tokens under a counting convention of `satisfice.trace.CONVENTIONS`."""
        total = np.zeros(len(self), dtype=np.int64)
        for name in CONVENTIONS[convention]:
            total += self.count(name)
        return total

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Wall seconds."""
        return self._column("seconds")

    @property
    def repetition(self) -> NDArray[np.float64]:
        """Share of repeated n-grams in the thinking; NaN where the engine gave text and no ids."""
        return self._column("repetition")

    @property
    def votes(self) -> Ints:
        """A number for each extracted answer, equal where the texts are; 0 where there is none."""
        return self._column("vote")

    @property
    def right(self) -> Flags:
        """Graded as right and not truncated."""
        return self._column("right")

    @property
    def truncated(self) -> Flags:
        """Cut off by the token limit."""
        return self._column("truncated")

    @property
    def never_closed(self) -> Flags:
        """Thinking that was opened and never closed."""
        return self._column("never_closed")

    @property
    def looping(self) -> Flags:
        """Thinking that ends in a loop; False also where there are no ids."""
        return self._column("looping")

    @property
    def ungraded(self) -> int | None:
        """The first row without a grade, None where all have one."""
        rows = np.flatnonzero(self._column("ungraded"))
        return int(rows[0]) if rows.size else None

    def row(self, place: int) -> tuple[str, int]:
        """Problem id and sample of one row."""
        self._pack(whole=True)
        row = self._table[place]
        return self.problems[row["problem"]], int(row["sample"])

    def rows(self) -> Iterator[tuple[str, int]]:
        """Problem id and sample of all rows, in order."""
        for problem, sample in zip(self.problem.tolist(), self.sample.tolist(), strict=True):
            yield self.problems[problem], sample

    def repeated(self) -> int | None:
        """The first row whose problem and sample stand in a row before it."""
        keys = self.problem.astype(np.int64) << 32 | self.sample
        order = np.argsort(keys, kind="stable")
        again = order[1:][keys[order][1:] == keys[order][:-1]]
        return int(again.min()) if again.size else None

    def by_problem(self) -> Grouped:
        """The rows in the order of problem ids, then samples, grouped by problem."""
        rank = np.empty(len(self.problems), dtype=np.int64)
        rank[sorted(range(len(self.problems)), key=self.problems.__getitem__)] = np.arange(len(self.problems))
        ranks = rank[self.problem] if len(self) else np.zeros(0, dtype=np.int64)
        rows = np.lexsort((self.sample, ranks))
        return Grouped(rows, starts_of(ranks[rows]))

    def _column(self, name: str) -> NDArray[Any]:
        self._pack(whole=True)
        return self._table[name]

    def _pack(self, whole: bool = False) -> None:
        """Make arrays of the rows that came in as Python objects; one of all where that is wanted."""
        if self._new:
            self._parts.append(np.array(self._new, dtype=ROW))
            self._new.clear()
        if whole and self._parts:
            self._table = np.concatenate([self._table, *self._parts])
            self._parts.clear()


def pairs(ours: Columns, base: Columns) -> tuple[Grouped, Ints]:
    """Rows of `ours` whose problem and sample `base` has too, grouped by problem; and beside each the row of `base`."""
    there = {problem: place for place, problem in enumerate(base.problems)}
    known = np.array([there.get(problem, -1) for problem in ours.problems], dtype=np.int64)
    grouped = ours.by_problem()
    if not len(ours) or not len(base):
        return Grouped(grouped.rows[:0], np.zeros(1, dtype=np.int64)), np.zeros(0, dtype=np.int64)
    keys = base.problem.astype(np.int64) << 32 | base.sample
    order = np.argsort(keys, kind="stable")
    problem = known[ours.problem[grouped.rows]]
    wanted = problem << 32 | ours.sample[grouped.rows]
    found = np.minimum(np.searchsorted(keys[order], wanted), len(base) - 1)
    matched = (problem >= 0) & (keys[order][found] == wanted)
    return grouped.rows_where(matched), order[found[matched]]


def never_closed(trace: Trace) -> bool:
    """Whether thinking was opened and never closed: cut off by the token limit, or ended by the model inside of it."""
    return trace.stop in ("token limit", "end of text")


def is_correct(trace: Trace) -> bool:
    """Whether a trace counts as right: graded so, and not truncated.

    Raises:
        ValueError: the trace has no grade.
    """
    if trace.grade is None:
        raise ValueError(ungraded_message(trace.method, trace.problem_id, trace.sample))
    return trace.correct and not trace.truncated


def ungraded_message(method: str, problem_id: str, sample: int) -> str:
    """What is said of a trace that was never graded."""
    return f"{method!r} on problem {problem_id!r}, sample {sample} has no grade: grade the run before measuring it"
