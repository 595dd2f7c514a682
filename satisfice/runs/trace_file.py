"""One file of traces, read without holding it: columns of numbers at once, a trace when it is asked for.

A run of a million traces is some gigabytes of text. Opening it reads every line once, checks it and keeps what a
table needs, see `Columns`, and where the line begins. Whoever wants the texts gets them one trace at a time.
"""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from satisfice.measurement.columns import Columns
from satisfice.trace import Attempt, Trace, read_trace, without_logprobs


class RunFolderError(ValueError):
    """A run folder cannot be opened, read or written."""


class TraceFile(Sequence[Trace]):
    """The traces of one method in the order they were finished. Each access reads from the file.

    Attributes:
        columns: the numbers of all of them.
        attempts: what failed, as version 1 of the schema wrote it between the traces.
    """

    def __init__(self, path: Path, method: str) -> None:
        """Read the file once; one that is not there holds no trace.

        Raises:
            RunFolderError: a line is damaged, is of another method, or stands there twice.
        """
        self._path, self._method = path, method
        self._starts, self._lines = array("q"), array("l")
        self._ids: dict[int, int] = {}
        self.columns = Columns()
        self.attempts: list[Attempt] = []
        for number, start, line in lines(path):
            record = _record(f"{path} line {number}", without_logprobs(line), method)
            if isinstance(record, Attempt):
                self.attempts.append(record)
                continue
            self._starts.append(start)
            self._lines.append(number)
            self.columns.add(record)
        if (again := self.columns.repeated()) is not None:
            problem, sample = self.columns.row(again)
            raise RunFolderError(
                f"{path} line {self._lines[again]}: problem {problem!r}, sample {sample} stands there a second time; "
                "remove one of the two lines"
            )

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        start = self._starts[place]
        with self._path.open("rb") as file:
            file.seek(start)
            return self._trace(file.readline(), place)

    def __iter__(self) -> Iterator[Trace]:
        if not len(self):
            return
        with self._path.open("rb") as file:
            for place, start in enumerate(self._starts):
                file.seek(start)
                yield self._trace(file.readline(), place)

    def _trace(self, line: bytes, place: int) -> Trace:
        trace = _record(f"{self._path} line {self._lines[place]}", line, self._method)
        assert isinstance(trace, Trace)
        # Python makes a new object of every token id; a vocabulary has few, so whoever keeps traces saves by sharing.
        trace.prompt_ids = list(map(self._ids.setdefault, trace.prompt_ids, trace.prompt_ids))
        trace.response_ids = list(map(self._ids.setdefault, trace.response_ids, trace.response_ids))
        return trace


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The lines of one file with number, from 1, and place in bytes, but for a torn last line."""
    if not path.exists():
        return
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # only the last line can end so: it is being written, or its writer was killed
            yield number, start, line
            start += len(line)


def _record(place: str, line: bytes, method: str) -> Trace | Attempt:
    try:
        record = read_trace(line)
    except ValueError as error:
        raise RunFolderError(
            f"{place}: {error}. A line that is damaged beyond repair can be removed: the run then does that "
            "problem again"
        ) from None
    if record.method != method:
        raise RunFolderError(f"{place} is a trace of {record.method!r}, but this file is for {method!r}")
    return record
