"""Where problems come from: a JSONL file, the lab, its word problems, a data set of the Hub, or reasoning-gym."""

import gzip
import hashlib
import importlib.util
import itertools
import json
import math
import re
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from satisfice.parameters import nearest
from satisfice.problems.extraction import extract_answer, last_box, unstyled
from satisfice.problems.graders import GraderError, check_grader
from satisfice.problems.problem import Problem
from satisfice.problems.suites import SUITES, suite_file, suite_notes
from satisfice.problems.worker import Worker, WorkerCrashed
from satisfice.registry import Registry

LAB_SIZE = 1000
"""Problems of a split of the lab or of its word problems unless a limit says otherwise."""

LAB_SEED = 0
"""Seed of every such split. It is no parameter: a reported split must be the same set for everybody."""

GYM_SIZE = 100
"""Problems of a reasoning-gym set unless a limit says otherwise."""

GYM_TIMEOUT = 600.0
"""Seconds in which reasoning-gym must have made its problems."""

FIELDS = {"prompt": ("problem", "question", "prompt"), "answer": ("answer", "solution", "gold")}
"""Names under which a record may hold the question and the gold answer; the first that is there is taken."""

Purpose = Literal["report", "train", "validate"]
USUAL_SPLIT: dict[Purpose, str] = {"report": "test", "train": "train", "validate": "validation"}
"""The split of a data set that is taken for each purpose where none is named, and no other one in its place."""

OPTIONAL_FIELDS = ("id", "source", "choices", "grader")

LABELLED_ANSWER = "answerKey"
"""Name of the gold answer in sets whose options have labels, such as ARC."""

AnswerIs = Literal["auto", "letter", "text", "index"]
"""What the gold answer of a multiple-choice problem is."""

NO_ANSWERS = {"notfound", "not found", "proof", "n/a", "null", "nan", "tbd", "see solution", "no answer", "-", "?"}
"""Gold answers, in small letters, that data sets write where they have none."""

FORMS = (
    "a JSONL file (problems.jsonl, problems.jsonl.gz), lab:train|calibration|certify|test|longer, "
    "words:train|calibration|test|longer|other, a Hub data set (owner/name or owner/name:config), a directory of data "
    "files, reasoning-gym:NAME, or a suite, of the Hub or in --data-dir: math500, amc23, aime24, aime25, "
    "olympiadbench, gsm8k, gpqa-diamond, minerva"
)

_BAD_LINES_SHOWN = 5
_HUB_ID = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
_FILE_SUFFIXES = {".json", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".yaml", ".yml"}
_BRACKETED_LETTER = re.compile(r"\(?([A-Za-z0-9])[).]\.?")
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
        split: the split of a data set that they are, None for other sources.
        notes: what a reader of results should know about the set, such as questions that it asks more than once.
    """

    name: str
    problems: list[Problem]
    skipped: list[str]
    split: str | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids, chats, gold answers and graders, in order: sets of one digest ask and judge the same."""
        content = [
            [problem.id, problem.prompt, problem.answer, problem.grader, problem.system, problem.history]
            for problem in self.problems
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_problems(
    spec: str,
    *,
    limit: int | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    grader: str | None = None,
    skip_bad: bool = False,
    any_gold: bool = False,
    answer_is: AnswerIs = "auto",
    seed: int = 0,
    purpose: Purpose = "report",
    data_dir: str | Path | None = None,
    without_gold: bool = False,
) -> ProblemSet:
    """The problems that `spec` names.

    Args:
        spec: a JSONL file; `lab:SPLIT`; a Hub data set `owner/name` or `owner/name:config`, or a local directory of
            data files; `reasoning-gym:NAME`; or `NAME:WHAT` of another source among `SOURCES`.
            Or the name of a suite such as `math500`, see `satisfice.problems.suites`.
        limit: how many problems at most, from the start; a file is read and checked only so far.
        split: split of a data set; unless given the usual one for the purpose, "test", "train" or "validation".
        columns: which column holds "prompt", "answer", "id", "source", "choices" or "grader", for files and data sets
            that call them something else.
        grader: the grader for all problems, instead of the one that fits the source.
        skip_bad: leave out records that are no problem, and list them, instead of refusing the whole.
        any_gold: keep problems whose gold answer only says that there is none, such as "notfound" or "proof".
        answer_is: of problems with choices, whether the gold answer is a "letter" (or label), the "text" of an option
            or its "index" from 0; "auto" takes whatever fits and refuses what fits two options.
        seed: seed of reasoning-gym's generator; nothing else depends on it.
        purpose: what they are for; decides the split where none is given.
        data_dir: where the files of the suites lie; without it they come from the Hub, at pinned revisions.
        without_gold: take records of a JSONL file that have no gold answer, with "" for it: no answer is right then.

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

    if answer_is not in get_args(AnswerIs):
        raise ProblemsError(f"answer_is is one of {', '.join(get_args(AnswerIs))}, not {answer_is!r}")
    if spec in SUITES and data_dir is None:
        if split or columns:
            raise ProblemsError(f"{spec} takes no {'split' if split else 'columns'}: those of a suite are known")
        records, notes = _suite(spec)
        options = _Options({}, any_gold, answer_is)
        loaded = _collect(spec, spec, "row", records, options, limit, skip_bad)
        loaded = replace(loaded, notes=(*notes, *loaded.notes))
        grader = grader or _suite_grader(spec)
        return loaded if grader is None else _graded_by(loaded, grader)
    if spec in SUITES:
        assert data_dir is not None
        try:
            file = suite_file(spec, data_dir)
            notes = suite_notes(spec, sum(1 for _ in _json_lines(file)))
        except ValueError as error:
            raise ProblemsError(str(error)) from error
        loaded = load_problems(
            str(file), limit=limit, split=split, columns=columns, grader=grader or _suite_grader(spec),
            skip_bad=skip_bad, any_gold=any_gold, answer_is=answer_is,
        )  # fmt: skip
        return replace(loaded, name=spec, notes=(*notes, *loaded.notes))
    if data_dir is not None:
        raise ProblemsError(f"{spec} takes no data_dir: that says where the files of a suite lie, such as math500")
    kind, _, name = spec.partition(":")
    if kind in SOURCES:
        for option, value in (
            ("split", split), ("columns", columns), ("skip_bad", skip_bad), ("any_gold", any_gold),
            ("answer_is", answer_is != "auto"),
        ):  # fmt: skip
            if value:
                raise ProblemsError(f"{spec} takes no {option}: that is for files and data sets")
        problems = list(itertools.islice(SOURCES[kind]().load(name, limit, seed), limit))
        _check_problems(spec, problems)
        loaded = ProblemSet(spec, problems, [], notes=_repeated(problems))
    elif spec.endswith((".jsonl", ".jsonl.gz")):
        if split:
            raise ProblemsError(f"{spec} is a file and has no splits: leave out split {split!r}")
        stem = Path(spec).name.removesuffix(".gz").removesuffix(".jsonl")
        options = _Options(_check_columns(columns), any_gold, answer_is, without_gold)
        loaded = _collect(stem, spec, "line", _json_lines(Path(spec)), options, limit, skip_bad)
    elif Path(spec).is_file():
        hint = (
            f"; put {Path(spec).name} into a directory of its own and give that, with --split train"
            if Path(spec).suffix in (".csv", ".json", ".parquet")
            else ""
        )
        raise ProblemsError(f"{spec} is no JSONL file by its name{hint}; problems come from {FORMS}")
    elif Path(spec).is_dir() or (_HUB_ID.fullmatch(spec) and Path(spec).suffix not in _FILE_SUFFIXES):
        chosen = split or USUAL_SPLIT[purpose]
        options = _Options(_check_columns(columns), any_gold, answer_is)
        records = _data_set(spec, chosen, options.columns, None if split else purpose)
        name = Path(spec).resolve().name if Path(spec).is_dir() else spec
        loaded = replace(_collect(name, spec, "row", records, options, limit, skip_bad), split=chosen)
    elif "/" in spec or "\\" in spec or Path(spec).suffix:
        raise ProblemsError(f"there is no file {spec}; problems come from {FORMS}")
    else:
        raise ProblemsError(f"{spec!r} names no problems{nearest(kind, SOURCES)}; they come from {FORMS}")

    return loaded if grader is None else _graded_by(loaded, grader)


def _graded_by(loaded: ProblemSet, grader: str) -> ProblemSet:
    return replace(loaded, problems=[replace(problem, grader=grader) for problem in loaded.problems])


def _suite(name: str) -> tuple[Iterator[tuple[int, Any]], tuple[str, ...]]:
    """The records of a suite from the Hub, by row, and what to know of it.

    Raises:
        ProblemsError: no pinned copy is known, it cannot be loaded, or it is another set.
    """
    hub = SUITES[name].hub
    if hub is None:
        raise ProblemsError(f"{name} is read from a file of yours: say where {name}.jsonl lies with --data-dir")
    try:
        rows = _load(name, hub.path, hub.config, hub.split, hub.revision)
        notes = suite_notes(name, len(rows))
        return iter([(number, hub.record(row)) for number, row in enumerate(rows)]), notes
    except KeyError as error:
        raise ProblemsError(f"{hub.path} at {hub.revision} has no column {error}") from error
    except ProblemsError as error:
        raise ProblemsError(f"{error}; --data-dir DIR reads {name}.jsonl from a directory") from error
    except ValueError as error:
        raise ProblemsError(str(error)) from error


def _load(spec: str, path: str, config: str | None, split: str, revision: str | None = None) -> Any:
    """A split of a data set of the Hub or of a directory.

    Raises:
        ProblemsError: the library is not installed, or it cannot load it.
    """
    try:
        import datasets
    except ImportError as error:
        raise ProblemsError(
            f"{spec} needs the datasets library: in a clone of satisfice, pip install -e '.[hub]'"
        ) from error
    pinned = {} if revision is None else {"revision": revision}
    try:
        return datasets.load_dataset(path, config, split=split, **pinned)
    except Exception as error:
        # The library raises dozens of types for wrong names, splits, configurations and connections.
        reason = " ".join(str(error).split()) or type(error).__name__
        where = "" if revision is not None or Path(spec).is_dir() else " (and there is no such directory here)"
        raise ProblemsError(f"split {split!r} of {spec} cannot be loaded{where}: {reason}") from error


def _suite_grader(name: str) -> str | None:
    """The grader of a suite; that of multiple choice is chosen by its options."""
    grader = SUITES[name].grader
    return None if grader == "choice" else grader


class ProblemSource(ABC):
    """Makes problems by program. Whoever writes one gives it a name and `load`.

    A source is spelled `name:what`, as in `lab:test`.

    Class attributes:
        name: as spelled before the colon.
        summary: what it makes, in one line.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def load(self, what: str, limit: int | None, seed: int) -> Iterable[Problem]:
        """The problems, in an order that is always the same.

        Args:
            what: what is spelled after the colon, "" where there is none.
            limit: how many will be taken at most; None for as many as there are.
            seed: of a generator, where nothing else decides it.

        Raises:
            ProblemsError: there are no such problems.
        """


SOURCES: Registry[ProblemSource] = Registry(
    ProblemSource, "problem source", "satisfice.problems", "satisfice.problems.sources",
    first=("lab", "words", "reasoning-gym"), parameters=False,
)  # fmt: skip
"""What makes problems by program, by name."""


class Lab(ProblemSource):
    """The chains of arithmetic of the lab, by split."""

    name: ClassVar[str] = "lab"
    summary: ClassVar[str] = "chains of arithmetic: train, calibration, test or longer"

    def load(self, what: str, limit: int | None, seed: int) -> list[Problem]:
        from satisfice.lab.arithmetic import chains

        return _first(self.name, what, chains, limit)


class Words(ProblemSource):
    """The lab's word problems, by split."""

    name: ClassVar[str] = "words"
    summary: ClassVar[str] = "word problems: train, calibration, test, longer or other"

    def load(self, what: str, limit: int | None, seed: int) -> list[Problem]:
        from satisfice.lab.words import problems

        return _first(self.name, what, problems, limit)


def _first(name: str, split: str, stream: Callable[[str, int], Iterable[Any]], limit: int | None) -> list[Problem]:
    """The first problems of one of the lab's endless streams, which have a prompt and an answer each."""
    try:
        taken = list(itertools.islice(stream(split, LAB_SEED), limit or LAB_SIZE))
    except ValueError as error:
        raise ProblemsError(str(error)) from error
    return [
        Problem(f"{name}/{split}/{index}", problem.prompt, str(problem.answer), f"{name}:{split}", "math")
        for index, problem in enumerate(taken)
    ]


class ReasoningGym(ProblemSource):
    """The sets of reasoning-gym, by name."""

    name: ClassVar[str] = "reasoning-gym"
    summary: ClassVar[str] = "the generators of reasoning-gym, by name"

    def load(self, what: str, limit: int | None, seed: int) -> list[Problem]:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ProblemsError("reasoning-gym is not installed: in a clone of satisfice, pip install -e '.[gym]'")
        worker = Worker()
        try:
            made = worker.ask("make_problems", what, seed, limit or GYM_SIZE, timeout=GYM_TIMEOUT)
        except GraderError as error:
            raise ProblemsError(str(error)) from error
        except (TimeoutError, WorkerCrashed) as error:
            raise ProblemsError(
                f"reasoning-gym did not make its {what!r} problems ({error or 'it crashed'})"
            ) from error
        finally:
            worker.close()
        source = f"reasoning-gym:{what}"
        return [Problem(problem_id, question, gold, source, source) for problem_id, question, gold in made]


def _check_problems(spec: str, problems: list[Any]) -> None:
    """Refuse what a source made where it is no set of problems."""
    seen: set[str] = set()
    for number, problem in enumerate(problems):
        where = f"problem {number} of {spec}"
        if not isinstance(problem, Problem):
            raise ProblemsError(f"{where} is {type(problem).__name__}, not a satisfice.problems.Problem")
        for field in ("id", "prompt", "answer"):
            if not (isinstance(getattr(problem, field), str) and getattr(problem, field).strip()):
                raise ProblemsError(f"{where} has no text as its {field}")
        if problem.id in seen:
            raise ProblemsError(f"{where} has the id {problem.id!r} of a problem before it")
        seen.add(problem.id)
        try:
            check_grader(problem.grader)
        except GraderError as error:
            raise ProblemsError(f"{where}: {error}") from error
    if not problems:
        raise ProblemsError(f"{spec} holds no problems")


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


def _data_set(
    spec: str, split: str, columns: dict[str, str], purpose: Purpose | None = None
) -> Iterator[tuple[int, Any]]:
    """(row number from 0, record) of each row of a split; `purpose` is what it was chosen for where nobody named it."""
    hub_id = None if Path(spec).is_dir() else _HUB_ID.fullmatch(spec)
    path, config = (hub_id["path"], hub_id["config"]) if hub_id else (spec, None)
    if purpose in ("train", "validate"):
        there = _splits(path, config)
        if there and split not in there:
            verb = "train on" if purpose == "train" else "validate on"
            raise ProblemsError(
                f"{spec} has no split {split!r}: say which one to {verb} (it has {', '.join(there)}), and keep the one "
                "that you will report on out of it"
            )
    rows = _load(spec, path, config, split)
    present = list(rows.column_names)
    if missing := sorted(set(columns.values()) - set(present)):
        raise ProblemsError(f"{spec} has no column {', '.join(map(repr, missing))}; it has {', '.join(present)}")
    for field, names in FIELDS.items():
        labelled = field == "answer" and {"choices", LABELLED_ANSWER} <= set(present)
        if field not in columns and not set(names) & set(present) and not labelled:
            raise ProblemsError(
                f"{spec} has no column {' or '.join(names)}; it has {', '.join(present)}: {_say_which(field, present)}"
            )
    return iter(enumerate(rows))


def _splits(path: str, config: str | None) -> list[str]:
    """The splits of a data set; empty where they cannot be told, which loading one then says better."""
    try:
        import datasets

        return [str(split) for split in datasets.get_dataset_split_names(path, config)]
    except Exception:
        return []


class _BadRecordError(Exception):
    """A record is no problem; the text says why."""


class _NoFieldError(_BadRecordError):
    """A record lacks a field that every problem has; it may only have another name."""

    def __init__(self, field: str, names: tuple[str, ...], record: Mapping[str, Any]) -> None:
        there = f"its fields are {', '.join(record)}" if record else "it has no fields"
        super().__init__(f"no field {' or '.join(names)}; {there}")
        self.hint = _say_which(field, list(record)) if record else ""


@dataclass(frozen=True)
class _Options:
    """How records are to be read; see `load_problems`."""

    columns: dict[str, str]
    any_gold: bool
    answer_is: AnswerIs
    without_gold: bool = False


def _say_which(field: str, present: list[str]) -> str:
    """The request to name the column of a field, with an example that can be copied."""
    likely = {"prompt": ("text", "input", "query", "instruction", "content", "stem"), "answer": ("label", "target", "output", "final_answer", "answers", "expected")}  # fmt: skip # noqa: E501
    taken = {name for names in FIELDS.values() for name in names} | set(OPTIONAL_FIELDS)
    free = [name for name in present if name not in taken]
    if not free:
        what = "a gold answer to be graded by" if field == "answer" else "a question"
        return f"none of these is left to be the {field}, and every problem needs {what}"
    example = next((name for name in likely[field] if name in free), free[0])
    return f"say which one is the {field}, for example --column {field}={example}"


def _collect(
    name: str,
    where: str,
    unit: str,
    records: Iterable[tuple[int, Any]],
    options: _Options,
    limit: int | None,
    skip_bad: bool,
) -> ProblemSet:
    problems: list[Problem] = []
    bad: list[tuple[int, _BadRecordError]] = []
    places: dict[str, int] = {}
    for number, record in records:
        if len(problems) == limit:
            break
        try:
            if isinstance(record, _BadRecordError):
                raise record
            problem = _problem(record, name, number, options)
            if problem.id in places:
                raise _BadRecordError(f"its id {problem.id!r} was used on {unit} {places[problem.id]} before")
        except _BadRecordError as error:
            bad.append((number, error))
            continue
        places[problem.id] = number
        problems.append(problem)
    if bad and not skip_bad:
        raise ProblemsError(_refusal(where, unit, bad, len(problems)))
    if not problems:
        raise ProblemsError(f"{where} holds no problems" + (f": all of its {unit}s are bad" if bad else ""))
    skipped = [f"{unit} {number}: {error}" for number, error in bad]
    return ProblemSet(name, problems, skipped, notes=_repeated(problems))


def _refusal(where: str, unit: str, bad: list[tuple[int, _BadRecordError]], good: int) -> str:
    """What is wrong with the records that are no problems: the same missing field once, all else line by line."""
    by_reason: dict[str, list[int]] = {}
    for number, error in bad:
        key = str(error) if isinstance(error, _NoFieldError) else f"{number}"
        by_reason.setdefault(key, []).append(number)
    first = bad[0][1]
    if isinstance(first, _NoFieldError) and len(by_reason) == 1 and not good and first.hint:
        lines = f"none of its {len(bad)} {unit}s" if len(bad) > 1 else f"its {unit} {bad[0][0]}"
        reason = str(first).replace("no field", "no field" if len(bad) == 1 else "a field", 1)
        return f"{where}: {lines} has {reason}: {first.hint}"
    errors = dict(bad)
    shown = []
    for numbers in list(by_reason.values())[:_BAD_LINES_SHOWN]:
        error = errors[numbers[0]]
        more = f" (and {len(numbers) - 1} more {unit}s)" if len(numbers) > 1 else ""
        hint = f": {error.hint}" if isinstance(error, _NoFieldError) and error.hint else ""
        shown.append(f"\n  {unit} {numbers[0]}: {error}{hint}{more}")
    rest = len(by_reason) - _BAD_LINES_SHOWN
    count = f"1 bad {unit}" if len(bad) == 1 else f"{len(bad)} bad {unit}s"
    remedy = "correct them, or leave them out with --skip-bad, in Python skip_bad=True"
    return f"{where} has {count} ({remedy}):{''.join(shown)}" + (f"\n  and {rest} more" if rest > 0 else "")


def _repeated(problems: list[Problem]) -> tuple[str, ...]:
    """A note on questions that stand there more than once: their answers are no independent observations."""
    counts = Counter(problem.prompt for problem in problems)
    again = len(problems) - len(counts)
    if not again:
        return ()
    prompt, most = counts.most_common(1)[0]
    start = " ".join(prompt.split())
    start = start if len(start) <= 60 else start[:57] + "..."
    return (
        f"{again} of {len(problems)} problems ask a question that was asked before; the most frequent one stands there "
        f"{most} times ({start!r}). Intervals take each for a problem of its own",
    )


def _problem(record: dict[str, Any], set_name: str, number: int, options: _Options) -> Problem:
    columns = options.columns
    prompt_field, prompt = _required(record, "prompt", columns)
    if not isinstance(prompt, str):
        raise _BadRecordError(f"{prompt_field} must be text, it is {_kind(prompt)}")
    if not prompt.strip():
        raise _BadRecordError(f"{prompt_field} is empty")

    choices = _optional(record, "choices", columns)
    gold_free = options.without_gold and not _has_gold(record, columns)
    answer_field, given = ("answer", "") if gold_free else _required(record, "answer", columns)
    if choices is None and gold_free:
        answer, grader = "", "math"
    elif choices is None:
        answer, grader = _gold(answer_field, given, options.any_gold), "math"
    else:
        texts, labels = _texts_and_labels(choices)
        letters = {chr(ord("A") + index): text for index, text in enumerate(texts)}
        prompt += "\n\n" + "\n".join(f"{letter}. {choice}" for letter, choice in letters.items())
        answer = "" if gold_free else _right_letter(answer_field, given, letters, labels, options.answer_is)
        grader = f"choice:{len(letters)}"
    grader = _grader(record, columns, grader)

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


def _grader(record: dict[str, Any], columns: dict[str, str], fitting: str) -> str:
    """The grader that a record names, else the one that fits it."""
    named = _optional(record, "grader", columns)
    if named is None:
        return fitting
    if not isinstance(named, str):
        raise _BadRecordError(f"grader must be text, it is {_kind(named)}")
    try:
        check_grader(named)
    except GraderError as error:
        raise _BadRecordError(str(error)) from error
    if fitting.startswith("choice") and not named.startswith("choice"):
        raise _BadRecordError(f"grader {named!r} does not fit a problem with choices, whose answer is a letter")
    return fitting if named == "choice" and fitting.startswith("choice") else named


def _required(record: dict[str, Any], field: str, columns: dict[str, str]) -> tuple[str, Any]:
    """Name and value of the question or the gold answer."""
    names = (columns[field],) if field in columns else FIELDS[field]
    labelled = field == "answer" and field not in columns and "choices" in record
    for name in (*names, LABELLED_ANSWER) if labelled else names:
        if record.get(name) is not None:
            return name, record[name]
    empty = next((name for name in names if name in record), None)
    if empty:
        raise _BadRecordError(f"{empty} is null")
    raise _NoFieldError(field, names, record)


def _has_gold(record: dict[str, Any], columns: dict[str, str]) -> bool:
    names = (columns["answer"],) if "answer" in columns else (*FIELDS["answer"], LABELLED_ANSWER)
    return any(record.get(name) is not None for name in names)


def _optional(record: dict[str, Any], field: str, columns: dict[str, str]) -> Any:
    """A field that a record may lack, None where it does; a column that was asked for must be there."""
    if field in columns and columns[field] not in record:
        raise _BadRecordError(f"no field {columns[field]}; its fields are {', '.join(record)}")
    return record.get(columns.get(field, field))


def _gold(field: str, given: Any, any_gold: bool) -> str:
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
        content = extract_answer(given) if last_box(given) else None
        if content is None:
            raise _BadRecordError(f"the box in {field} is empty or not closed")
        given = content
    if not given.strip():
        raise _BadRecordError(f"{field} is empty")
    if not any_gold and unstyled(given).strip(" .$").lower() in NO_ANSWERS:
        raise _BadRecordError(
            f"{field} {given.strip()!r} says that there is no answer to compare with (keep it with --any-gold)"
        )
    return str(given.strip())


def _texts_and_labels(choices: Any) -> tuple[list[str], list[str] | None]:
    """The texts of the options, and their labels where they have some.

    Options are a list of texts, a list of {"text", "label"}, {"A": text, "B": text}, or, as in ARC, {"text": [...],
    "label": [...]}.
    """
    labels: Any = None
    if isinstance(choices, dict) and isinstance(choices.get("text"), list):
        choices, labels = choices["text"], choices.get("label")
    elif isinstance(choices, dict) and choices and all(len(key) <= 2 for key in choices):
        choices, labels = list(choices.values()), list(choices)
    elif isinstance(choices, list) and choices and all(isinstance(choice, dict) for choice in choices):
        choices, labels = [choice.get("text") for choice in choices], [choice.get("label") for choice in choices]
    if not isinstance(choices, list) or not all(isinstance(choice, str | int | float) for choice in choices):
        raise _BadRecordError("choices must be a list of texts")
    if not 2 <= len(choices) <= 26:
        raise _BadRecordError(f"choices must be 2 to 26 options, there are {len(choices)}")
    if labels is not None:
        if not isinstance(labels, list) or len(labels) != len(choices) or None in labels:
            raise _BadRecordError("choices need one label for each text, or none at all")
        labels = [str(label).strip() for label in labels]
        if len(set(labels)) < len(labels):
            raise _BadRecordError(f"two choices have the same label: {', '.join(labels)}")
    return [str(choice) for choice in choices], labels


def _right_letter(
    field: str, given: Any, letters: dict[str, str], labels: list[str] | None, answer_is: AnswerIs
) -> str:
    """The letter of the right option, which is given as a letter or label, as the option's text or as its index from 0.

    What may be two of these is taken if they name the same option, and refused otherwise.
    """
    texts, names = list(letters.values()), list(letters)
    spelled = str(given).strip() if isinstance(given, str | int) and not isinstance(given, bool) else ""
    if bracketed := _BRACKETED_LETTER.fullmatch(spelled):
        spelled = bracketed[1]
    readings: dict[str, int] = {}
    if labels is not None:
        if spelled in labels:
            readings["letter"] = labels.index(spelled)
    elif spelled.upper() in letters:
        readings["letter"] = names.index(spelled.upper())
    stripped = [text.strip() for text in texts]
    text = given.strip() if isinstance(given, str) else str(given)
    if not isinstance(given, bool) and stripped.count(text) == 1:
        readings["text"] = stripped.index(text)
    whole = (
        isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given) and given == int(given)
    )
    if whole or (answer_is == "index" and spelled.isdecimal()):
        index = int(given)
        if 0 <= index < len(texts):
            readings["index"] = index
    if answer_is != "auto":
        readings = {kind: place for kind, place in readings.items() if kind == answer_is}
    elif "letter" in readings and labels is not None:
        readings = {"letter": readings["letter"]}  # a set that labels its options means the labels
    if len(set(readings.values())) > 1:
        kinds = {"letter": "an option's letter", "text": "an option's text", "index": "an index"}
        either = " or ".join(kinds[kind] for kind in sorted(readings))
        raise _BadRecordError(f"{field} {given} may be {either}: say which with --answer-is letter, text or index")
    if readings:
        return names[next(iter(readings.values()))]
    if answer_is != "auto":
        raise _BadRecordError(f"{field} {given!r} is not the {answer_is} of one option")
    raise _BadRecordError(
        f"{field} {given!r} is neither a letter from A to {names[-1]} nor the text of one option nor its index"
    )


def _kind(value: Any) -> str:
    """What sort of JSON value this is, for a message."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
