"""The run folder: traces of some methods over some problems, with the configuration that made them.

    run.json             the configuration, written once; what a later session found changed is under "warnings"
    traces-METHOD.jsonl  one line a trace, only ever appended to
    attempts.jsonl       one line a try that failed, only ever appended to
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
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from satisfice.measurement.columns import Columns
from satisfice.runs.trace_file import RunFolderError as RunFolderError
from satisfice.runs.trace_file import TraceFile, lines
from satisfice.trace import Attempt, Trace

SCHEMA_VERSION = 1
"""Version of run.json."""

NOT_COMPARED = ("command", "created", "warnings", "methods", "baseline", "files", "plugins", "logprobs")
"""Keys of a configuration that may differ when a run is resumed: methods may be added, and with them plugins; the
baseline stays, and so does what a plugin is that was there before."""

WARNED = ("versions", "device", "concurrency")
"""Keys whose change does not stop a resumed run but is kept as a warning: they can move the numbers a little."""

Key = tuple[str, str, int]
"""What identifies a trace within a run: method, problem id, sample."""


ATTEMPTS = "attempts.jsonl"
"""What failed, of all methods."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        folder: where it lies.
        config: the content of run.json.
        traces: the traces of each method in the order they were finished; every method of the configuration has
            a list, an empty one where it has not begun. What `read_run` gives are files that are read when asked.
        files: where those of each method lie, from the folder if they are in it.
        attempts: what failed, by method, in the order in which it did; the response may have been had later.
    """

    folder: Path
    config: dict[str, Any]
    traces: dict[str, Sequence[Trace]]
    files: dict[str, str]
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)

    def failed(self, method: str) -> list[Attempt]:
        """The last attempt at each response of a method that was tried and not had."""
        last = {(attempt.problem_id, attempt.sample): attempt for attempt in self.attempts.get(method, [])}
        if not last:
            return []
        there = {row for row in Columns.of(self.traces[method]).rows() if row in last}
        return [attempt for key, attempt in last.items() if key not in there]

    @property
    def failures(self) -> dict[str, int]:
        """How many responses of each method were tried and not had."""
        return {method: len(self.failed(method)) for method in self.traces}


def read_run(folder: str | Path) -> Run:
    """Everything in a run folder, also while another process writes to it.

    Raises:
        RunFolderError: there is no run, or a file of it is damaged.
    """
    folder = Path(folder)
    config = read_config(folder)
    names = config["files"]
    _refuse_strays(folder, names)
    traces: dict[str, Sequence[Trace]] = {}
    attempts: dict[str, list[Attempt]] = {method: [] for method in names}
    for attempt in _read_attempts(folder / ATTEMPTS):
        attempts.setdefault(attempt.method, []).append(attempt)
    for method, name in names.items():
        file = TraceFile(folder / name, method)
        traces[method] = file
        attempts[method].extend(file.attempts)
    return Run(folder=folder, config=config, traces=traces, files=names, attempts=attempts)


def model_of(config: Mapping[str, Any]) -> str:
    """The model of a run by its name, with the attention that it was decoded by where that was not dense."""
    return ", ".join(str(config[key]) for key in ("model", "attention") if key in config)


def against(run: Run, base: Run) -> Run:
    """A run with another one in front, whose baseline becomes its own: a trained model against the untrained.

    The other run's methods are called by their names and its model, "plain (transformers:lab)"; its baseline is the
    first of them. Its model may be the same, decoded by another attention.

    Raises:
        RunFolderError: the two were not asked the same under the same conditions, so nothing can be paired.
    """
    for each in (run, base):
        problems = each.config.get("problems") or {}
        missing = [key for key in ("model", "samples", "seed", "sampling") if each.config.get(key) is None]
        missing += [f"problems.{key}" for key in ("name", "digest") if problems.get(key) is None]
        if missing:
            raise RunFolderError(
                f"{each.folder / 'run.json'} does not say {missing[0]}, so nobody knows what it can be compared with"
            )
    for key, words in (("samples", "number of samples"), ("seed", "seed"), ("sampling", "sampling")):
        differences = _differences(_only(run.config, [key]), _only(base.config, [key]))
        if differences:
            raise RunFolderError(
                f"{run.folder} and {base.folder} differ in their {words} ({'; '.join(differences)}): "
                "run one of them again under the other's"
            )
    if run.config["problems"]["digest"] != base.config["problems"]["digest"]:
        raise RunFolderError(
            f"{run.folder} was asked {run.config['problems']['name']} and {base.folder} "
            f"{base.config['problems']['name']}, or another number of them: only the same problems can be paired"
        )
    baseline = base.config.get("baseline") or base.config["methods"][0]
    methods = sorted(base.config["methods"], key=lambda method: bool(method != baseline))
    others = model_of(base.config)
    if "attention" in run.config and "attention" not in base.config:
        others += ", dense"
    names = {method: f"{method} ({others})" for method in methods}
    config = {
        **run.config,
        "methods": [*names.values(), *run.config["methods"]],
        "baseline": names[baseline],
    }
    before = {name: base.traces[method] for method, name in names.items()}
    files = {name: str(base.folder / base.files[method]) for method, name in names.items()}
    failed = {name: base.attempts.get(method, []) for method, name in names.items()}
    return Run(
        folder=run.folder,
        config=config,
        traces={**before, **run.traces},
        files={**files, **run.files},
        attempts={**failed, **run.attempts},
    )


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
        self._names: dict[str, str] = config["files"]
        for name in (*self._names.values(), ATTEMPTS):
            _cut_torn_line(path / name)
        self._done: set[Key] = set()
        for method, name in self._names.items():
            columns = TraceFile(path / name, method).columns
            self._done.update((method, *row) for row in columns.rows())

    @classmethod
    def create_or_open(cls, path: str | Path, config: Mapping[str, Any]) -> Self:
        """The run folder at `path`, made if there is none, and locked for this process.

        Args:
            path: the folder; its parents are made too.
            config: what run.json is to say, as JSON values; "methods" is the list of spelled methods. Resuming a
                run takes the same configuration again, but for `NOT_COMPARED` and `WARNED`. Methods that the run does
                not have yet are added to it; its baseline stays.

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
                stored = read_config(path)
                _refuse_other_config(path, stored, wanted)
                before = json.dumps(stored)
                known = stored.setdefault("warnings", [])
                changes = _differences(_only(stored, WARNED), _only(wanted, WARNED))
                new = [f"{change} when the run was resumed" for change in changes]
                known.extend(warning for warning in new if warning not in known)
                stored["methods"].extend(method for method in wanted["methods"] if method not in stored["methods"])
                if plugins := {**stored.get("plugins", {}), **wanted.get("plugins", {})}:
                    stored["plugins"] = plugins
                stored["files"] = trace_file_names(stored["methods"], stored["files"])
                _refuse_strays(path, stored["files"])  # before anything is paid for: nobody could read the run then
                if json.dumps(stored) != before:
                    write_atomically(path / "run.json", _pretty(stored))
                return cls(path, stored, lock)
            # Without run.json nobody can say what made these lines, so they must not become part of a new run.
            leftovers = sorted(path.glob("traces-*.jsonl"))
            if leftovers:
                raise RunFolderError(
                    f"{path} holds {leftovers[0].name} but no run.json: use another folder, or empty this one"
                )
            wanted["files"] = trace_file_names(wanted["methods"])
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
        _append_line(self.path / self._names[trace.method], trace.to_json())
        self._done.add(trace_key(trace))

    def note_failure(self, attempt: Attempt) -> None:
        """Add a try that failed; the response stays to be had.

        Raises:
            RunFolderError: the folder was closed.
            OSError: the disk refused the line; nothing of it is left in the file.
        """
        if self._lock is None:
            raise RunFolderError(f"{self.path} was closed: open it again before adding attempts")
        _append_line(self.path / ATTEMPTS, attempt.to_json())

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
        return list(TraceFile(self.path / self._names[method], method))

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


def trace_file_names(methods: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The trace file of each method: readable, safe on every file system, and different for different methods.

    "temperature-scaling:t=0.9" becomes "traces-temperature-scaling-t-0.9.jsonl". Where that name is taken, long or
    empty, a digest of the spelling is added.

    Args:
        methods: as spelled.
        given: files that some of them have already.
    """
    names = dict(given or {})
    for method in methods:
        if method in names:
            continue
        slug = re.sub(r"[^a-z0-9.]+", "-", method.lower()).strip("-.")
        digest = hashlib.sha256(method.encode("utf-8", "replace")).hexdigest()
        spelled = [slug] if 0 < len(slug) <= 100 else []
        spelled += [f"{slug[:80]}-{digest[:length]}".lstrip("-") for length in range(12, len(digest) + 1, 4)]
        names[method] = next(name for each in spelled if (name := f"traces-{each}.jsonl") not in names.values())
    return names


def _append_line(path: Path, line: str) -> None:
    """Add a line to a file in one write.

    Raises:
        OSError: the disk refused it; nothing of it is left in the file.
    """
    content = line.encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(content) != len(content):
                raise OSError(f"only a part of a line could be written to {path}: is the disk full?")
        except OSError:
            file.truncate(end)
            raise


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


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run, checked, with the file of each of its methods under "files".

    Raises:
        RunFolderError: there is no run, or its run.json is damaged.
    """
    path = folder / "run.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunFolderError(f"{folder} is no run folder: there is no run.json in it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise RunFolderError(f"{path} is damaged: it holds a {type(config).__name__}, not an object")
    version = config.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RunFolderError(
            f"{path} has schema version {version}, this satisfice reads up to {SCHEMA_VERSION}: upgrade satisfice to "
            "open the run"
        )
    try:
        _Config.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        raise RunFolderError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    _check_methods(config, path)
    methods, files = config["methods"], config.get("files") or {}
    if config.get("baseline") not in (None, *methods):
        raise RunFolderError(f"{path} is damaged: the baseline {config['baseline']!r} is none of its methods")
    for method, name in files.items():
        if method not in methods:
            raise RunFolderError(f"{path} is damaged: files: {method!r} is none of its methods")
        if not re.fullmatch(r"traces-[^/\\]*\.jsonl", name) or list(files.values()).count(name) > 1:
            raise RunFolderError(
                f"{path} is damaged: files: {name!r} is no file of {method!r} alone in this folder, traces-*.jsonl"
            )
    config["files"] = trace_file_names(config["methods"], config.get("files"))
    return config


class _Problems(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: str = ""
    digest: str = ""
    n: int = Field(0, ge=0)
    skipped: int = Field(0, ge=0)


class _Sampling(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = Field(None, ge=1)
    stop: list[str] | None = None
    lookahead: list[str] | None = None
    stop_ids: list[int] | None = None
    ignore_eos: bool | None = None


class _Config(BaseModel):
    """What is read of run.json, so that a damaged one is said to be damaged. A test may leave most of it out."""

    model_config = ConfigDict(extra="allow", strict=True)

    schema_version: int = SCHEMA_VERSION
    model: str = ""
    methods: list[str] = Field(min_length=1)
    baseline: str | None = None
    files: dict[str, str] = Field(default_factory=dict)
    problems: _Problems | None = None
    samples: int = Field(1, ge=1)
    seed: int = 0
    sampling: _Sampling | None = None
    warnings: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)


def _check_methods(config: Mapping[str, Any], path: Path) -> None:
    methods = config.get("methods")
    if not (isinstance(methods, list) and methods and all(isinstance(method, str) for method in methods)):
        raise RunFolderError(f"{path}: the configuration needs a list of methods under 'methods'")
    if len(set(methods)) < len(methods):
        raise RunFolderError(f"{path}: a method stands twice in the list of methods: {', '.join(methods)}")


def _read_attempts(path: Path) -> Iterator[Attempt]:
    for number, _, line in lines(path):
        try:
            yield Attempt.from_json(line)
        except ValueError as error:
            raise RunFolderError(
                f"{path} line {number}: {error}. The line can be removed: no table counts it"
            ) from None


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


def _refuse_strays(folder: Path, names: Mapping[str, str]) -> None:
    strays = sorted({path.name for path in folder.glob("traces-*.jsonl")} - set(names.values()))
    if strays:
        raise RunFolderError(
            f"{folder / strays[0]} belongs to no method that run.json lists: move it out of the run folder"
        )


def _only(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: config[key] for key in keys if key in config}


def _refuse_other_config(path: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    free = (*NOT_COMPARED, *WARNED)
    differences = _differences(
        {key: value for key, value in stored.items() if key not in free},
        {key: value for key, value in config.items() if key not in free},
    )
    # Half of a method's traces would be of the plugin as it was, and half of what it has become.
    before, now = (each.get("plugins", {}) for each in (stored, config))
    differences += _differences({"plugins": _only(before, list(now))}, {"plugins": _only(now, list(before))})
    if differences:
        raise RunFolderError(
            f"{path} holds a run with another configuration: {'; '.join(differences)}. "
            "Use another folder (--out), or the configuration of the run (old -> new)"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs, one "key: old -> new" each; keys of nested objects are joined by dots."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found.extend(_differences(before, after, f"{prefix}{key}."))
        elif before != after or (key in old) != (key in new):
            shown = [_shown(side[key]) if key in side else "(none)" for side in (old, new)]
            found.append(f"{prefix}{key}: {shown[0]} -> {shown[1]}")
    return found


def _shown(value: Any) -> str:
    """A value of a configuration; of a digest the first digits, which tell two apart."""
    return re.sub(r'"([0-9a-f]{12})[0-9a-f]{52}"', r"\1...", json.dumps(value, ensure_ascii=False))


_locked_here: set[Path] = set()
"""The lock files this process holds: a record lock does not exclude its own process, and would be lost if the
process opened and closed the file a second time."""


def _lock(path: Path) -> int:
    """Take the lock of a run, and return the descriptor that holds it.

    It is a record lock because that one belongs to the process: the kernel releases it when the process dies,
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
