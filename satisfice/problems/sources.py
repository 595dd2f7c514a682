"""Where problems come from: a JSONL file, the lab, a data set of the Hugging Face Hub, or reasoning-gym."""

import gzip
import hashlib
import importlib.util
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from satisfice.problems.extraction import last_box
from satisfice.problems.graders import GraderError, check_grader
from satisfice.problems.problem import Problem
from satisfice.problems.worker import Worker, WorkerCrashed

LAB_SIZE = 1000
"""Problems of a lab split unless a limit says otherwise."""

LAB_SEED = 0
"""Seed of every lab split. It is no parameter: a reported split must be the same set for everybody."""

GYM_SIZE = 100
"""Problems of a reasoning-gym set unless a limit says otherwise."""

GYM_TIMEOUT = 600.0
"""Seconds in which reasoning-gym must have made its problems."""

FIELDS = {"prompt": ("problem", "question", "prompt"), "answer": ("answer", "solution", "gold")}
"""Names under which a record may hold the question and the gold answer; the first that is there is taken."""

OPTIONAL_FIELDS = ("id", "source", "choices")

FORMS = (
    "a JSONL file (problems.jsonl, problems.jsonl.gz), lab:train|calibration|test|longer, a Hub data set "
    "(owner/name or owner/name:config), a directory of data files, or reasoning-gym:NAME"
)

_BAD_LINES_SHOWN = 5
_HUB_ID = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
_FILE_SUFFIXES = {".json", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".yaml", ".yml"}
_MARKED_ANSWER = re.compile(r"####[ \t]*(\S.*)")


class ProblemsError(ValueError):
    """The problems that were asked for cannot be had."""


@dataclass(frozen=True)
class ProblemSet:
    """Problems of one source.

    Attributes:
        name: for people and for folders of results.
        problems: in the order of the source, ids distinct.
        skipped: where and why a record was left out; empty unless that was allowed.
    """

    name: str
    problems: list[Problem]
    skipped: list[str]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids, prompts and gold answers, in order: two sets of the same digest ask the same."""
        content = [[problem.id, problem.prompt, problem.answer] for problem in self.problems]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_problems(
    spec: str,
    *,
    limit: int | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    grader: str | None = None,
    skip_bad: bool = False,
    seed: int = 0,
) -> ProblemSet:
    """The problems that `spec` names.

    Args:
        spec: a JSONL file; `lab:SPLIT`; a Hub data set `owner/name` or `owner/name:config`, or a local directory of
            data files; `reasoning-gym:NAME`.
        limit: how many problems at most, from the start; a file is read and checked only so far.
        split: split of a Hub data set; "test" unless given.
        columns: which column holds "prompt", "answer", "id", "source" or "choices", for files and data sets that
            call them something else.
        grader: the grader for all problems, instead of the one that fits the source.
        skip_bad: leave out records that are no problem, and list them, instead of refusing the whole.
        seed: seed of reasoning-gym's generator; nothing else depends on it.

    Raises:
        ProblemsError: with one sentence on what is wrong, or a list of the lines that are.
    """
    if limit is not None and limit < 1:
        raise ProblemsError(f"a limit of {limit} leaves no problems: use 1 or more")
    if grader is not None:
        try:
            check_grader(grader)
        except GraderError as error:
            raise ProblemsError(str(error)) from error

    kind, _, name = spec.partition(":")
    if kind in ("lab", "reasoning-gym"):
        for option, value in (("split", split), ("columns", columns)):
            if value:
                raise ProblemsError(f"{spec} takes no {option}: that is for files and data sets")
        problems = _lab(name, limit) if kind == "lab" else _reasoning_gym(name, limit, seed)
        loaded = ProblemSet(spec, problems, [])
    elif spec.endswith((".jsonl", ".jsonl.gz")):
        if split:
            raise ProblemsError(f"{spec} is a file and has no splits: leave out split {split!r}")
        stem = Path(spec).name.removesuffix(".gz").removesuffix(".jsonl")
        loaded = _collect(stem, spec, "line", _json_lines(Path(spec)), _check_columns(columns), limit, skip_bad)
    elif Path(spec).is_file():
        raise ProblemsError(f"{spec} is no JSONL file by its name; problems come from {FORMS}")
    elif Path(spec).is_dir() or (_HUB_ID.fullmatch(spec) and Path(spec).suffix not in _FILE_SUFFIXES):
        records = _data_set(spec, split or "test", _check_columns(columns))
        name = Path(spec).resolve().name if Path(spec).is_dir() else spec
        loaded = _collect(name, spec, "row", records, _check_columns(columns), limit, skip_bad)
    elif "/" in spec or "\\" in spec or Path(spec).suffix:
        raise ProblemsError(f"there is no file {spec}; problems come from {FORMS}")
    else:
        raise ProblemsError(f"{spec!r} names no problems; they come from {FORMS}")

    if grader is None:
        return loaded
    return replace(loaded, problems=[replace(problem, grader=grader) for problem in loaded.problems])


def _lab(split: str, limit: int | None) -> list[Problem]:
    from satisfice.lab.arithmetic import chains

    try:
        taken = list(itertools.islice(chains(split, LAB_SEED), limit or LAB_SIZE))
    except ValueError as error:
        raise ProblemsError(str(error)) from error
    return [
        Problem(f"lab/{split}/{index}", chain.prompt, str(chain.answer), f"lab:{split}", "math")
        for index, chain in enumerate(taken)
    ]


def _reasoning_gym(name: str, limit: int | None, seed: int) -> list[Problem]:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ProblemsError("reasoning-gym is not installed: pip install 'satisfice[gym]'")
    worker = Worker()
    try:
        made = worker.ask("make_problems", name, seed, limit or GYM_SIZE, timeout=GYM_TIMEOUT)
    except GraderError as error:
        raise ProblemsError(str(error)) from error
    except (TimeoutError, WorkerCrashed) as error:
        raise ProblemsError(f"reasoning-gym did not make its {name!r} problems ({error or 'it crashed'})") from error
    finally:
        worker.close()
    source = f"reasoning-gym:{name}"
    return [Problem(problem_id, question, gold, source, source) for problem_id, question, gold in made]


def _check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    known = (*FIELDS, *OPTIONAL_FIELDS)
    if unknown := sorted(set(columns or {}) - set(known)):
        raise ProblemsError(f"columns can be given for {', '.join(known)}, not for {', '.join(map(repr, unknown))}")
    return dict(columns or {})


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, record or the _Bad that stands there instead) of each line that is not blank."""
    try:
        # Bytes, because text mode also splits lines at signs that JSON allows within a string.
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, _record(line)
    except FileNotFoundError as error:
        raise ProblemsError(f"there is no file {path}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ProblemsError(f"{path} cannot be read: {error}") from error


def _record(line: bytes) -> "dict[str, Any] | _BadRecordError":
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return _BadRecordError("not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return _BadRecordError(f"not JSON ({error})")
    return record if isinstance(record, dict) else _BadRecordError(f"not a JSON object but {_kind(record)}")


def _data_set(spec: str, split: str, columns: dict[str, str]) -> Iterator[tuple[int, Any]]:
    """(row number from 0, record) of each row of a split."""
    try:
        import datasets
    except ImportError as error:
        raise ProblemsError(f"{spec} needs the datasets library: pip install 'satisfice[hub]'") from error
    hub_id = None if Path(spec).is_dir() else _HUB_ID.fullmatch(spec)
    path, config = (hub_id["path"], hub_id["config"]) if hub_id else (spec, None)
    try:
        rows = datasets.load_dataset(path, config, split=split)
    except Exception as error:
        # The library raises dozens of types for wrong names, splits, configurations and connections.
        reason = " ".join(str(error).split()) or type(error).__name__
        where = "" if hub_id is None else " (and there is no such directory here)"
        raise ProblemsError(f"split {split!r} of {spec} cannot be loaded{where}: {reason}") from error
    present = list(rows.column_names)
    if missing := sorted(set(columns.values()) - set(present)):
        raise ProblemsError(f"{spec} has no column {', '.join(map(repr, missing))}; it has {', '.join(present)}")
    for field, names in FIELDS.items():
        if field not in columns and not set(names) & set(present):
            raise ProblemsError(
                f"{spec} has no column {' or '.join(names)}; it has {', '.join(present)}: say which one is the {field}"
            )
    return iter(enumerate(rows))


class _BadRecordError(Exception):
    """A record is no problem; the text says why."""


def _collect(
    name: str,
    where: str,
    unit: str,
    records: Iterable[tuple[int, Any]],
    columns: dict[str, str],
    limit: int | None,
    skip_bad: bool,
) -> ProblemSet:
    problems: list[Problem] = []
    bad: list[str] = []
    places: dict[str, int] = {}
    for number, record in records:
        if len(problems) == limit:
            break
        try:
            if isinstance(record, _BadRecordError):
                raise record
            problem = _problem(record, name, number, columns)
            if problem.id in places:
                raise _BadRecordError(f"its id {problem.id!r} was used on {unit} {places[problem.id]} before")
        except _BadRecordError as error:
            bad.append(f"{unit} {number}: {error}")
            continue
        places[problem.id] = number
        problems.append(problem)
    if bad and not skip_bad:
        shown = "\n".join(f"  {line}" for line in bad[:_BAD_LINES_SHOWN])
        more = f"\n  and {len(bad) - _BAD_LINES_SHOWN} more" if len(bad) > _BAD_LINES_SHOWN else ""
        count = f"1 bad {unit}" if len(bad) == 1 else f"{len(bad)} bad {unit}s"
        raise ProblemsError(f"{where} has {count} (correct them, or leave them out with skip_bad):\n{shown}{more}")
    if not problems:
        raise ProblemsError(f"{where} holds no problems" + (f": all of its {unit}s are bad" if bad else ""))
    return ProblemSet(name, problems, bad)


def _problem(record: dict[str, Any], set_name: str, number: int, columns: dict[str, str]) -> Problem:
    prompt_field, prompt = _required(record, "prompt", columns)
    if not isinstance(prompt, str):
        raise _BadRecordError(f"{prompt_field} must be text, it is {_kind(prompt)}")
    if not prompt.strip():
        raise _BadRecordError(f"{prompt_field} is empty")

    answer_field, given = _required(record, "answer", columns)
    choices = _optional(record, "choices", columns)
    if choices is None:
        answer, grader = _gold(answer_field, given), "math"
    else:
        letters = _letters(choices)
        prompt += "\n\n" + "\n".join(f"{letter}. {choice}" for letter, choice in letters.items())
        answer, grader = _right_letter(answer_field, given, letters), "choice"

    problem_id = _optional(record, "id", columns)
    if problem_id is None or problem_id == "":
        problem_id = f"{set_name}/{number}"
    if isinstance(problem_id, bool) or not isinstance(problem_id, str | int):
        raise _BadRecordError(f"id must be text or a whole number, it is {_kind(problem_id)}")
    source = _optional(record, "source", columns)
    if source is not None and not isinstance(source, str):
        raise _BadRecordError(f"source must be text, it is {_kind(source)}")

    problem = Problem(str(problem_id), prompt, answer, source or set_name, grader)
    try:
        f"{problem.id}{problem.prompt}{problem.answer}{problem.source}".encode()
    except UnicodeEncodeError as error:
        raise _BadRecordError("half of a surrogate pair stands in its text, which cannot be written out") from error
    return problem


def _required(record: dict[str, Any], field: str, columns: dict[str, str]) -> tuple[str, Any]:
    """Name and value of the question or the gold answer."""
    names = (columns[field],) if field in columns else FIELDS[field]
    for name in names:
        if record.get(name) is not None:
            return name, record[name]
    empty = next((name for name in names if name in record), None)
    if empty:
        raise _BadRecordError(f"{empty} is null")
    there = f"its fields are {', '.join(record)}" if record else "it has no fields"
    raise _BadRecordError(f"no field {' or '.join(names)}; {there}")


def _optional(record: dict[str, Any], field: str, columns: dict[str, str]) -> Any:
    """A field that a record may lack, None where it does; a column that was asked for must be there."""
    if field in columns and columns[field] not in record:
        raise _BadRecordError(f"no field {columns[field]}; its fields are {', '.join(record)}")
    return record.get(columns.get(field, field))


def _gold(field: str, given: Any) -> str:
    """The gold answer as text: a number in plain digits, and of a worked solution the answer that it marks."""
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise _BadRecordError(f"{field} must be text or a number, it is {_kind(given)}")
    if isinstance(given, float):
        if not math.isfinite(given):
            raise _BadRecordError(f"{field} is {given}, which is no number to compare with")
        return str(int(given)) if given.is_integer() else format(Decimal(repr(given)), "f")
    if isinstance(given, int):
        return str(given)
    if marked := _MARKED_ANSWER.findall(given):
        given = marked[-1]
    elif "\\boxed" in given or "\\fbox" in given:
        content = last_box(given)
        if content is None:
            raise _BadRecordError(f"the box in {field} is empty or not closed")
        given = content
    if not given.strip():
        raise _BadRecordError(f"{field} is empty")
    return str(given.strip())


def _letters(choices: Any) -> dict[str, str]:
    """The options by their letters."""
    if not isinstance(choices, list) or not all(isinstance(choice, str | int | float) for choice in choices):
        raise _BadRecordError("choices must be a list of texts")
    if not 2 <= len(choices) <= 26:
        raise _BadRecordError(f"choices must be 2 to 26 options, there are {len(choices)}")
    return {chr(ord("A") + index): str(choice) for index, choice in enumerate(choices)}


def _right_letter(field: str, given: Any, letters: dict[str, str]) -> str:
    """The letter of the right option, which is given as a letter, as the option's text or as its index from 0."""
    texts = list(letters.values())
    if isinstance(given, str):
        if given.strip().upper() in letters:
            return given.strip().upper()
        if texts.count(given) == 1:
            return next(letter for letter, text in letters.items() if text == given)
    elif isinstance(given, int) and not isinstance(given, bool):
        if str(given) in texts:
            raise _BadRecordError(f"{field} {given} may be an index or an option's text: give the letter instead")
        if 0 <= given < len(letters):
            return list(letters)[given]
    raise _BadRecordError(
        f"{field} {given!r} is neither a letter from A to {list(letters)[-1]} nor the text of one option nor its index"
    )


def _kind(value: Any) -> str:
    """What sort of JSON value this is, for a message."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
