"""The run folder: traces of some methods over some problems, with the configuration that made them.

    run.json             the configuration, written once; what a later session found changed is under "warnings"
    traces-METHOD.jsonl  one line a trace, only ever appended to
    summary.json         the table of the run, rewritten whole
    run.lock             held while a process writes; holds that process's id

A process may be killed at any instant. What was appended before stays, and of the line that was being written a
piece may be left at the end of a file: readers ignore it, and the next writer cuts it off.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from satisfice.trace import Trace

NOT_COMPARED = ("command", "created", "warnings")
"""Keys of a configuration that may differ when a run is resumed."""

WARNED = ("versions", "device")
"""Keys whose change does not stop a resumed run but is kept as a warning: they can move the numbers a little."""

Key = tuple[str, str, int]
"""What identifies a trace within a run: method, problem id, sample."""


class RunFolderError(ValueError):
    """A run folder cannot be opened, read or written."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        folder: where it lies.
        config: the content of run.json.
        traces: the traces of each method in the order they were finished; every method of the configuration has
            a list, an empty one where it has not begun.
        files: where those of each method lie, from the folder if they are in it.
    """

    folder: Path
    config: dict[str, Any]
    traces: dict[str, list[Trace]]
    files: dict[str, str]


def read_run(folder: str | Path) -> Run:
    """Everything in a run folder, also while another process writes to it.

    Raises:
        RunFolderError: there is no run, or a file of it is damaged.
    """
    folder = Path(folder)
    config = _read_config(folder)
    names = trace_file_names(config["methods"])
    strays = sorted({path.name for path in folder.glob("traces-*.jsonl")} - set(names.values()))
    if strays:
        raise RunFolderError(
            f"{folder / strays[0]} belongs to no method that run.json lists: move it out of the run folder"
        )
    # Python makes a new object of every token id; a vocabulary has few, so sharing them saves most of the memory.
    shared_ids: dict[int, int] = {}
    traces: dict[str, list[Trace]] = {}
    for method, name in names.items():
        traces[method] = []
        seen: set[Key] = set()
        for place, trace in _read_traces(folder / name, method):
            if trace_key(trace) in seen:
                raise RunFolderError(
                    f"{place}: problem {trace.problem_id!r}, sample {trace.sample} stands there a second time; "
                    "remove one of the two lines"
                )
            seen.add(trace_key(trace))
            trace.prompt_ids = list(map(shared_ids.setdefault, trace.prompt_ids, trace.prompt_ids))
            trace.response_ids = list(map(shared_ids.setdefault, trace.response_ids, trace.response_ids))
            traces[method].append(trace)
    return Run(folder=folder, config=config, traces=traces, files=names)


def against(run: Run, base: Run) -> Run:
    """A run with another one in front, whose baseline becomes its own: a trained model against the untrained.

    The other run's methods are called by their names and its model, "plain (transformers:lab)"; its baseline is the
    first of them.

    Raises:
        RunFolderError: the two were not asked the same under the same conditions, so nothing can be paired.
    """
    for key, words in (("samples", "number of samples"), ("seed", "seed"), ("sampling", "sampling")):
        if run.config[key] != base.config[key]:
            raise RunFolderError(
                f"{run.folder} and {base.folder} differ in their {words} ({run.config[key]} and {base.config[key]}): "
                "run one of them again under the other's"
            )
    if run.config["problems"]["digest"] != base.config["problems"]["digest"]:
        raise RunFolderError(
            f"{run.folder} was asked {run.config['problems']['name']} and {base.folder} "
            f"{base.config['problems']['name']}, or another number of them: only the same problems can be paired"
        )
    methods = sorted(base.config["methods"], key=lambda method: bool(method != base.config["baseline"]))
    names = {method: f"{method} ({base.config['model']})" for method in methods}
    config = {
        **run.config,
        "methods": [*names.values(), *run.config["methods"]],
        "baseline": names[base.config["baseline"]],
    }
    before = {name: base.traces[method] for method, name in names.items()}
    files = {name: str(base.folder / base.files[method]) for method, name in names.items()}
    return Run(folder=run.folder, config=config, traces={**before, **run.traces}, files={**files, **run.files})


class RunFolder:
    """A run folder that this process writes to. Use it as a context manager, or call `close`.

    Attributes:
        path: the folder.
        config: the content of run.json.
        warnings: how the versions and the device of this and earlier sessions differ from those of run.json, one
            sentence each.
    """

    def __init__(self, path: Path, config: dict[str, Any], lock: int) -> None:
        self.path = path
        self.config = config
        self.warnings: list[str] = config.setdefault("warnings", [])
        self._lock: int | None = lock
        self._names = trace_file_names(config["methods"])
        for name in self._names.values():
            _cut_torn_line(path / name)
        self._done = {
            trace_key(trace) for method, name in self._names.items() for _, trace in _read_traces(path / name, method)
        }

    @classmethod
    def create_or_open(cls, path: str | Path, config: Mapping[str, Any]) -> Self:
        """The run folder at `path`, made if there is none, and locked for this process.

        Args:
            path: the folder; its parents are made too.
            config: what run.json is to say, as JSON values; "methods" is the list of spelled methods. Resuming a
                run takes the same configuration again, but for `NOT_COMPARED` and `WARNED`.

        Raises:
            RunFolderError: another process writes here, the run has another configuration, or it is damaged.
        """
        path = Path(path)
        wanted: dict[str, Any] = json.loads(json.dumps(config))  # as it will be read back: tuples become lists
        _check_methods(wanted, path)
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path / "run.lock")
        try:
            if (path / "run.json").exists():
                stored = _read_config(path)
                _refuse_other_config(path, stored, wanted)
                known = stored.setdefault("warnings", [])
                changes = _differences(_only(stored, WARNED), _only(wanted, WARNED))
                new = [f"{change} when the run was resumed" for change in changes]
                if not set(new) <= set(known):
                    known.extend(warning for warning in new if warning not in known)
                    write_atomically(path / "run.json", _pretty(stored))
                return cls(path, stored, lock)
            # Without run.json nobody can say what made these lines, so they must not become part of a new run.
            leftovers = sorted(path.glob("traces-*.jsonl"))
            if leftovers:
                raise RunFolderError(
                    f"{path} holds {leftovers[0].name} but no run.json: use another folder, or empty this one"
                )
            write_atomically(path / "run.json", _pretty(wanted))
            return cls(path, wanted, lock)
        except BaseException:
            _unlock(path / "run.lock", lock)
            raise

    def append(self, trace: Trace) -> None:
        """Add one finished trace, as one line in one write.

        Raises:
            RunFolderError: the trace is of a method that this run has not, or is there already, or the folder
                was closed.
            OSError: the disk refused the line; nothing of it is left in the file.
        """
        if self._lock is None:
            raise RunFolderError(f"{self.path} was closed: open it again before adding traces")
        if trace.method not in self._names:
            raise RunFolderError(
                f"method {trace.method!r} is not part of the run in {self.path}, which has {', '.join(self._names)}"
            )
        if trace_key(trace) in self._done:
            raise RunFolderError(
                f"{self.path} already has {trace.method!r} on problem {trace.problem_id!r}, sample {trace.sample}: "
                "a finished trace is never changed"
            )
        path = self.path / self._names[trace.method]
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            line = trace.to_json().encode() + b"\n"
            try:
                if file.write(line) != len(line):
                    raise OSError(f"only a part of a trace could be written to {path}: is the disk full?")
            except OSError:
                file.truncate(end)
                raise
        self._done.add(trace_key(trace))

    def done(self) -> set[Key]:
        """The traces that are there, as (method, problem id, sample)."""
        return set(self._done)

    def traces(self, method: str) -> list[Trace]:
        """The traces of one method in the order they were finished.

        Raises:
            RunFolderError: this run has no such method.
        """
        if method not in self._names:
            raise RunFolderError(
                f"method {method!r} is not part of the run in {self.path}, which has {', '.join(self._names)}"
            )
        return [trace for _, trace in _read_traces(self.path / self._names[method], method)]

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write summary.json, replacing the one before it whole; returns its path."""
        path = self.path / "summary.json"
        write_atomically(path, _pretty(summary))
        return path

    def close(self) -> None:
        """Let other processes write here. Closing twice does nothing."""
        if self._lock is not None:
            _unlock(self.path / "run.lock", self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def trace_key(trace: Trace) -> Key:
    """What identifies a trace within its run."""
    return (trace.method, trace.problem_id, trace.sample)


def trace_file_names(methods: Sequence[str]) -> dict[str, str]:
    """The trace file of each method: readable, safe on every file system, and different for different methods.

    "temperature-scaling:t=0.9" becomes "traces-temperature-scaling-t-0.9.jsonl". Where two spellings come to the
    same name, or a name is long or empty, a digest of the spelling is added.
    """
    slugs = {method: re.sub(r"[^a-z0-9.]+", "-", method.lower()).strip("-.") for method in methods}
    names = {}
    for method, slug in slugs.items():
        if not 0 < len(slug) <= 100 or list(slugs.values()).count(slug) > 1:
            slug = f"{slug[:100]}-{hashlib.sha256(method.encode('utf-8', 'replace')).hexdigest()[:12]}".lstrip("-")
        names[method] = f"traces-{slug}.jsonl"
    return names


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part.

    Text is written as UTF-8; a lone surrogate, which UTF-8 cannot hold, becomes "?".
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _pretty(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunFolderError(f"{folder} is no run folder: there is no run.json in it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise RunFolderError(f"{path} is damaged: it holds a {type(config).__name__}, not an object")
    _check_methods(config, path)
    return config


def _check_methods(config: Mapping[str, Any], path: Path) -> None:
    methods = config.get("methods")
    if not (isinstance(methods, list) and methods and all(isinstance(method, str) for method in methods)):
        raise RunFolderError(f"{path}: the configuration needs a list of methods under 'methods'")
    if len(set(methods)) < len(methods):
        raise RunFolderError(f"{path}: a method stands twice in the list of methods: {', '.join(methods)}")


def _read_traces(path: Path, method: str) -> Iterator[tuple[str, Trace]]:
    """The traces of one file, each with its place ("FILE line N"), but for a torn last line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # only the last line can end so: it is being written, or its writer was killed
            place = f"{path} line {number}"
            try:
                trace = Trace.from_json(line)
            except ValueError as error:
                raise RunFolderError(
                    f"{place}: {error}. A line that is damaged beyond repair can be removed: the run then does that "
                    "problem again"
                ) from None
            if trace.method != method:
                raise RunFolderError(f"{place} is a trace of {trace.method!r}, but this file is for {method!r}")
            yield place, trace


def _cut_torn_line(path: Path) -> None:
    """Cut the file after its last line break, reading backwards so that a long file costs nothing."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position < end:
            file.truncate(position)


def _only(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: config[key] for key in keys if key in config}


def _refuse_other_config(path: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    free = (*NOT_COMPARED, *WARNED)
    differences = _differences(
        {key: value for key, value in stored.items() if key not in free},
        {key: value for key, value in config.items() if key not in free},
    )
    if differences:
        raise RunFolderError(
            f"{path} holds a run with another configuration: {'; '.join(differences)}. "
            "Use another folder, or the configuration of the run (old -> new)"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs, one "key: old -> new" each; keys of nested objects are joined by dots."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found.extend(_differences(before, after, f"{prefix}{key}."))
        elif before != after or (key in old) != (key in new):
            shown = [json.dumps(side[key], ensure_ascii=False) if key in side else "(none)" for side in (old, new)]
            found.append(f"{prefix}{key}: {shown[0]} -> {shown[1]}")
    return found


_locked_here: set[Path] = set()
"""The lock files this process holds: a record lock does not exclude its own process, and would be lost if the
process opened and closed the file a second time."""


def _lock(path: Path) -> int:
    """Take the lock of a run, and return the descriptor that holds it.

    It is a record lock because that one belongs to the process: the kernel lets go of it when the process dies,
    however it dies, and a worker process that outlives it does not keep it.
    """
    import fcntl  # exists on Unix only, and reading a run must work everywhere

    path = path.resolve()
    if path in _locked_here:
        raise RunFolderError(f"{path.parent} is already open for writing in this process (pid {os.getpid()})")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise RunFolderError(
            f"another process (pid {holder}) is writing to {path.parent}: wait for it, or use another folder"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    _locked_here.add(path)
    return descriptor


def _unlock(path: Path, descriptor: int) -> None:
    # The file stays: were it removed, one process could hold the removed file while another locks a new one.
    os.ftruncate(descriptor, 0)
    os.close(descriptor)
    _locked_here.remove(path.resolve())
