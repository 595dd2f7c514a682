"""Traces in, training data out: reads run folders problem by problem, lets a curation work, writes rows and a card.

    data.jsonl   one row a line, as TRL reads them
    card.json    what came in, what was kept, what was dropped and why
    README.md    the same for people

It streams. A run folder holds the samples of one problem far apart, so a first pass notes where each line begins; a
second one reads the lines of one problem after another. What stays in memory are eight bytes a trace and the counts.
"""

import asyncio
import hashlib
import json
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from satisfice.engines.base import Engine, EngineClosed, EngineError, EngineFailed, require
from satisfice.levels import with_instruction
from satisfice.measurement import repetition_share
from satisfice.problems import GraderPool
from satisfice.runs.run_folder import RunFolderError, read_config, write_atomically
from satisfice.runs.trace_file import lines
from satisfice.runs.work_file import CountedEngine, WorkFile
from satisfice.supervision import Curation, CurationError, Drop, Item, Reason, SampledProblem, Tools
from satisfice.supervision.method import TOGETHER, side_by_side
from satisfice.supervision.rows import length
from satisfice.thinking import ThinkingFormat
from satisfice.trace import Attempt, Trace, read_trace, without_logprobs

DATA, CARD, README, PICTURE = "data.jsonl", "card.json", "README.md", "lengths.png"
TRIES = 3
"""How often a problem is tried where the engine fails."""
PAUSE = 0.5
"""Seconds before the second try; four times as many before the third."""
WORK = ".work.jsonl"
"""What a curation that was stopped had found out with a model, see `WorkFile`."""

_HEAD = re.compile(rb'^\{"schema_version":\d+,"problem_id":("(?:[^"\\]|\\.)*"),"source":("(?:[^"\\]|\\.)*"),')
_FILE_BITS = 44
"""Low bits of an entry of the index that say where a line begins; the high ones say in which file."""


class Pool:
    """The sampled problems of some run folders; may be iterated again and again.

    Attributes:
        folders: the runs.
        method: the method whose traces are taken.
        model, model_digest, thinking: of the one model that wrote them.
        samples: responses to each problem that the runs were to have, all together.
        traces: how many there are.
    """

    def __init__(self, folders: Sequence[Path], method: str | None = None, *, logprobs: bool = False) -> None:
        """Find the traces; nothing is kept of them but their places.

        Args:
            folders: run folders of one model.
            method: whose traces to take; "plain", or the only one there is, unless given.
            logprobs: whether traces come with their log-probabilities, where the runs have them; few curations ask.

        Raises:
            RunFolderError: a folder holds no run or is damaged, the models differ, or it has no such method.
        """
        if not folders:
            raise RunFolderError("say which run folders hold the traces: --traces DIR")
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise RunFolderError("a run folder is given twice: its traces would count twice")
        self.folders = list(folders)
        self._logprobs = logprobs
        configs = [read_config(folder) for folder in folders]
        self._refuse_mixtures(configs)
        first = configs[0]
        self.model, self.model_digest = str(first.get("model", "")), str(first.get("model_digest", ""))
        self.samples = sum(int(config.get("samples", 1)) for config in configs)
        try:
            self.thinking = ThinkingFormat(**_tuples(first["thinking"]))
        except (KeyError, TypeError):
            raise RunFolderError(
                f"{folders[0] / 'run.json'} does not say how the model marks its thinking: sample again"
            ) from None
        self.method = method or self._one_method(configs)
        self._configs = configs
        self._files: list[Path] = []
        self._by_problem: dict[bytes, array[int]] = {}
        self.traces = 0
        for number, (folder, config) in enumerate(zip(folders, configs, strict=True)):
            names = config["files"]
            if self.method not in names:
                raise RunFolderError(
                    f"{folder} has no traces of {self.method!r}: it has {', '.join(names)}; say which with --of-method"
                )
            self._files.append(folder / names[self.method])
            self._index(number)

    def __len__(self) -> int:
        return len(self._by_problem)

    def __iter__(self) -> Iterator[SampledProblem]:
        with ExitStack() as opened:
            files = [opened.enter_context(path.open("rb")) if path.exists() else None for path in self._files]
            for entries in self._by_problem.values():
                traces: list[Trace] = []
                run = 0
                for entry in entries:
                    number = entry >> _FILE_BITS
                    file = files[number]
                    assert file is not None
                    file.seek(entry & ((1 << _FILE_BITS) - 1))
                    record = self._read(file.readline(), self._files[number])
                    if isinstance(record, Trace):
                        run = run if traces else number
                        traces.append(record)
                if traces:
                    yield self._problem(traces, self._configs[run])

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file of traces, by its path."""
        found = {}
        for path in self._files:
            digest = hashlib.sha256()
            if path.exists():
                with path.open("rb") as file:
                    while block := file.read(1 << 16):
                        digest.update(block)
            found[str(path)] = digest.hexdigest()
        return found

    def _index(self, number: int) -> None:
        path = self._files[number]
        for _, offset, line in lines(path):
            head = _HEAD.match(line)
            if head:
                key = head[2] + head[1]
            else:
                record = self._read(line, path)
                if isinstance(record, Attempt):
                    continue
                key = (json.dumps(record.source) + json.dumps(record.problem_id)).encode()
            self._by_problem.setdefault(key, array("Q")).append(number << _FILE_BITS | offset)
            self.traces += 1

    def _read(self, line: bytes, path: Path) -> Trace | Attempt:
        try:
            return read_trace(line if self._logprobs else without_logprobs(line))
        except ValueError as error:
            raise RunFolderError(f"{path}: {error}") from None

    def _problem(self, traces: list[Trace], config: Mapping[str, Any]) -> SampledProblem:
        first = traces[0]
        # A run's own system turn is in its configuration, and so are those of traces that older versions wrote.
        system, instruction = first.system or str(config.get("system", "")), str(config.get("instruction", ""))
        turns = [{"role": "system", "content": system}] if system else []
        turns += [{"role": role, "content": content} for role, content in first.history]
        turns.append({"role": "user", "content": with_instruction(first.prompt, instruction)})
        return SampledProblem(
            id=first.problem_id,
            source=first.source,
            turns=tuple(turns),
            question=first.prompt,
            gold=first.gold,
            traces=tuple(traces),
            thinking=self.thinking,
            model=self.model,
            model_digest=self.model_digest,
        )

    def _refuse_mixtures(self, configs: Sequence[Mapping[str, Any]]) -> None:
        first = configs[0]
        for folder, config in zip(self.folders[1:], configs[1:], strict=True):
            known = [bool(each.get("model_digest")) for each in (first, config)]
            key = "model_digest" if all(known) else "model"
            if first.get(key) != config.get(key):
                raise RunFolderError(
                    f"{self.folders[0]} is of {first.get('model')} and {folder} of {config.get('model')}, or of other "
                    "weights of that name: traces of different models make no pool; curate them one by one"
                )
            if first.get("thinking") != config.get("thinking"):
                raise RunFolderError(
                    f"{self.folders[0]} and {folder} mark thinking in different ways: curate them one by one"
                )

    @staticmethod
    def _one_method(configs: Sequence[Mapping[str, Any]]) -> str:
        names = sorted({method for config in configs for method in config["methods"]})
        if "plain" in names or len(names) != 1:
            return "plain"
        return str(names[0])


@dataclass
class Card:
    """What a curation did, in counts that stay small however many traces there are.

    Attributes:
        problems, traces: what came in.
        rows: what was written.
        problems_kept, traces_kept: what is in at least one row.
        dropped: traces that are in none, by reason.
        selected, after: how many rows have how many tokens, as the trace was and as the row is.
        right, wrong: how many finished traces have how many tokens.
        truncated, ungraded: traces that were cut off, or not graded.
        difficulty_in, difficulty_kept: how many problems have which share of right samples.
        repetition: of the thinking of right and of wrong traces, the sum of the shares and how many.
        notes: sums of what the rows note about how they were made.
    """

    problems: int = 0
    traces: int = 0
    rows: int = 0
    problems_kept: int = 0
    traces_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    selected: Counter[int] = field(default_factory=Counter)
    after: Counter[int] = field(default_factory=Counter)
    right: Counter[int] = field(default_factory=Counter)
    wrong: Counter[int] = field(default_factory=Counter)
    truncated: int = 0
    ungraded: int = 0
    difficulty_in: Counter[float] = field(default_factory=Counter)
    difficulty_kept: Counter[float] = field(default_factory=Counter)
    repetition: dict[bool, tuple[float, int]] = field(default_factory=lambda: {True: (0.0, 0), False: (0.0, 0)})
    notes: dict[str, float] = field(default_factory=dict)

    def count(self, problem: SampledProblem, items: Sequence[Item]) -> None:
        """Take in one problem with what became of it."""
        self.problems += 1
        self.traces += len(problem.traces)
        share = round(problem.pass_rate, 4)
        self.difficulty_in[share] += 1
        for trace in problem.traces:
            self.truncated += trace.truncated
            self.ungraded += trace.grade is None
            if trace.finished and trace.grade is not None:
                (self.right if trace.correct else self.wrong)[length(trace)] += 1
            ids = trace.response_ids[slice(*trace.thinking_span)]
            if ids:
                total, number = self.repetition[trace.correct]
                self.repetition[trace.correct] = total + repetition_share(ids), number + 1
        used: set[int] = set()
        for item in items:
            if isinstance(item, Drop):
                self.dropped[str(item.reason)] += 1
                continue
            self.rows += 1
            used.update(item.places)
            self.selected[item.before] += 1
            self.after[item.response.tokens] += 1
            for key, value in item.notes.items():
                self.notes[key] = self.notes.get(key, 0.0) + value
        self.traces_kept += len(used)
        if used:
            self.problems_kept += 1
            self.difficulty_kept[share] += 1

    def to_dict(self) -> dict[str, Any]:
        """The numbers of the card."""
        return {
            "problems": {"in": self.problems, "kept": self.problems_kept},
            "traces": {"in": self.traces, "kept": self.traces_kept},
            "rows": self.rows,
            "dropped": dict(self.dropped.most_common()),
            # Right traces that came in, and what is to be imitated in their place: by selection, by editing, by both.
            "tokens": {
                "before": _spread(self.right),
                "selected": _spread(self.selected),
                "after": _spread(self.after),
            },
            "difficulty": {"in": _mean(self.difficulty_in), "kept": _mean(self.difficulty_kept)},
            "difficulty_counts": {
                "in": {str(key): self.difficulty_in[key] for key in sorted(self.difficulty_in)},
                "kept": {str(key): self.difficulty_kept[key] for key in sorted(self.difficulty_kept)},
            },
            "diagnostics": {
                "tokens_right": _mean(self.right),
                "tokens_wrong": _mean(self.wrong),
                "truncated_share": self.truncated / self.traces if self.traces else None,
                "repeated_8_gram_share_right": _ratio(*self.repetition[True]),
                "repeated_8_gram_share_wrong": _ratio(*self.repetition[False]),
            },
            **({"notes": {key: self.notes[key] for key in sorted(self.notes)}} if self.notes else {}),
        }


@dataclass(frozen=True)
class Curated:
    """What `curate` has written.

    Attributes:
        folder: where.
        card: the content of card.json.
        before, after: lengths of the right traces and of the rows for a picture, tokens to how many.
        failed: problems that the engine could not be had for.
    """

    folder: Path
    card: dict[str, Any]
    before: Counter[int]
    after: Counter[int]
    failed: int = 0


def check_curation(curation: Curation, pool: Pool, engine: Engine | None) -> None:
    """Refuse what cannot work before anything is paid for.

    Raises:
        CurationError: there are fewer samples than the curation compares, or it needs a model that is not there.
        EngineError: the engine lacks what it needs.
    """
    if pool.samples < curation.samples:
        raise CurationError(
            f"{curation.name} compares at least {curation.samples} responses to each problem, and the runs have "
            f"{pool.samples}: sample more, as in satisfice sample --samples {max(8, curation.samples)}"
        )
    if not curation.needs_engine:
        return
    if engine is None:
        raise CurationError(f"{curation.name} works with a model: say which, as --model {pool.model or 'MODEL'}")
    require(engine, curation.needs, curation.name)
    for name in curation.companions:
        if name not in engine.companions:
            raise CurationError(f"{curation.name} asks for the companion {name!r}: say --companion {name}=MODEL")
    # What is continued token by token must be the model's own tokens.
    if curation.needs_own_model and pool.model_digest and engine.digest and pool.model_digest != engine.digest:
        raise CurationError(
            f"{curation.name} goes on from the traces token by token, and {engine.name} is not the model that wrote "
            f"them, {pool.model}"
        )


async def curate(
    curation: Curation,
    pool: Pool,
    out: Path,
    *,
    engine: Engine | None = None,
    graders: GraderPool | None = None,
    seed: int = 0,
    command: str = "",
    advance: Callable[[int], None] = lambda problems: None,
) -> Curated:
    """Make training data of a pool, into a folder.

    Args:
        curation: what to do.
        pool: the traces.
        out: folder of the data; made if it is not there.
        engine: for curations that work with a model.
        graders: judge answers that the model writes; needed with an engine.
        seed: of whatever is drawn.
        command: for the card.
        advance: called with the number of problems that are done.

    Raises:
        CurationError, EngineError: see `check_curation`; or nothing was kept.
        RunFolderError: the traces are damaged, or the folder holds other data.
        OSError: the data could not be written.
    """
    check_curation(curation, pool, engine)
    if (out / CARD).exists() or (out / DATA).exists():
        raise RunFolderError(f"{out} holds data already: give another folder")
    out.mkdir(parents=True, exist_ok=True)
    card, failed, spelled = Card(), 0, str(curation)
    runs = pool.digests()
    unfinished = out / f".{DATA}.unfinished"
    digest = hashlib.sha256()
    with ExitStack() as stack:
        tools = work = None
        if engine is not None and curation.needs_engine:
            assert graders is not None
            others = {name: other.digest or other.name for name, other in engine.companions.items()}
            of = {
                "curation": spelled, "seed": seed, "runs": sorted(runs.values()), "companions": others,
                "engine": engine.digest or engine.name, "capabilities": sorted(engine.capabilities),
            }  # fmt: skip
            work = stack.enter_context(WorkFile(out / WORK, of))
            tools = Tools(CountedEngine(engine, work.count), _grading(graders), seed, work)
        ready = await curation.prepare(pool, tools)
        try:
            with unfinished.open("wb") as file:
                async for problem, items in _curated(ready, pool, tools):
                    failed += any(isinstance(item, Drop) and item.reason is Reason.ENGINE_FAILED for item in items)
                    for item in items:
                        if not isinstance(item, Drop):
                            line = json.dumps(item.to_dict(spelled), ensure_ascii=False) + "\n"
                            content = line.encode("utf-8", "replace")
                            digest.update(content)
                            file.write(content)
                    card.count(problem, items)
                    advance(1)
            if not card.rows:
                most = card.dropped.most_common(1)
                why = f", most of them because: {most[0][0]}" if most else ""
                raise CurationError(f"nothing is left of {card.traces} traces{why}")
            written = {
                **_card(curation, ready, pool, runs, digest.hexdigest(), seed, command),
                **card.to_dict(),
                "remarks": list(curation.remarks(engine)),
                **({"cost": asdict(work.spent)} if work else {}),
                **({"failed_problems": failed} if failed else {}),
            }
            # The data first: a card without data would describe nothing.
            os.replace(unfinished, out / DATA)
        finally:
            unfinished.unlink(missing_ok=True)
        write_atomically(out / README, _readme(written))
        write_atomically(out / CARD, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
        if work:
            work.close(finished=True)
    return Curated(out, written, card.right, card.after, failed)


async def _curated(
    curation: Curation, pool: Pool, tools: Tools | None
) -> AsyncIterator[tuple[SampledProblem, list[Item]]]:
    """Every problem with what becomes of it, in their order; with a model, many at once."""
    if tools is None:
        for problem in pool:
            yield problem, curation.items(problem)
        return
    jobs = (_with_model(curation, problem, tools) for problem in pool)
    async for made in side_by_side(jobs, TOGETHER):
        yield made


async def _with_model(curation: Curation, problem: SampledProblem, tools: Tools) -> tuple[SampledProblem, list[Item]]:
    """One problem, again where the engine fails; where it fails for good, its rows become drops."""
    items = curation.items(problem)
    reason = Reason.ENGINE_FAILED
    for attempt in range(TRIES):
        if attempt:
            await asyncio.sleep(PAUSE * 4 ** (attempt - 1))
        try:
            return problem, await curation.refine(problem, items, tools)
        except EngineClosed:
            raise
        except EngineFailed:
            continue
        except EngineError:  # refused, whatever the load: too long, most often
            reason = Reason.TOO_LONG
            break
    used = {place for item in items if not isinstance(item, Drop) for place in item.places}
    return problem, [*(item for item in items if isinstance(item, Drop)), *problem.drop(sorted(used), reason)]


def _grading(graders: GraderPool) -> Callable[[SampledProblem, str, bool], Any]:
    async def right(problem: SampledProblem, answer: str, finished: bool) -> bool:
        grade = problem.traces[0].grade
        assert grade is not None
        verdict = await graders.grade(
            grader=grade.grader, answer=answer, gold=problem.gold, finished=finished, problem_id=problem.id
        )
        return verdict.correct

    return right


def _card(
    curation: Curation,
    ready: Curation,
    pool: Pool,
    runs: Mapping[str, str],
    digest: str,
    seed: int,
    command: str,
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "curation": str(curation),
        "paper": curation.paper,
        "loss": curation.loss,
        "instructions": dict(getattr(ready, "instructions", {})),
        "model": pool.model,
        "model_digest": pool.model_digest,
        "thinking": json.loads(json.dumps(asdict(pool.thinking))),
        "method": pool.method,
        "runs": dict(runs),
        "data_digest": digest,
        "seed": seed,
        "command": command,
        "version": version("satisfice"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _readme(card: Mapping[str, Any]) -> str:
    """The card for people."""
    tokens, difficulty, diagnostics = card["tokens"], card["difficulty"], card["diagnostics"]
    paper = f" (arXiv {card['paper']})" if card["paper"] else ""
    lines = [
        f"# {card['curation']}",
        "",
        f"Training data made by satisfice {card['version']} with `{card['curation']}`{paper} from traces of "
        f"`{card['model']}` ({card['method']}), seed {card['seed']}. The right answers were told by graders.",
        "",
        "| | in | kept |",
        "|---|---|---|",
        f"| problems | {card['problems']['in']} | {card['problems']['kept']} |",
        f"| traces | {card['traces']['in']} | {card['traces']['kept']} |",
        f"| mean share of right samples of a problem | {_shown(difficulty['in'])} | {_shown(difficulty['kept'])} |",
        "",
        f"{card['rows']} rows. Tokens of the right traces that came in, of those that rows were made of, and of the "
        "rows:",
        "",
        "| | mean | shortest | median | longest |",
        "|---|---|---|---|---|",
    ]
    for name, words in (("before", "right traces"), ("selected", "traces of rows"), ("after", "rows")):
        spread = tokens[name]
        lines.append(f"| {words} | {_shown(spread['mean'])} | {spread['min']} | {spread['median']} | {spread['max']} |")
    lines += ["", f"![Lengths before and after]({PICTURE})", ""]
    if card["dropped"]:
        lines += ["Traces that are in no row, by reason:", "", "| reason | traces |", "|---|---|"]
        lines += [f"| {reason} | {number} |" for reason, number in card["dropped"].items()]
        lines.append("")
    lines += [
        "The traces that came in:",
        "",
        f"* right ones have {_shown(diagnostics['tokens_right'])} tokens, wrong ones that came to an end "
        f"{_shown(diagnostics['tokens_wrong'])}",
        f"* {_shown(diagnostics['truncated_share'])} of all were cut off at the token limit",
        f"* share of 8-grams of the thinking that repeat an earlier one: "
        f"{_shown(diagnostics['repeated_8_gram_share_right'])} in right ones, "
        f"{_shown(diagnostics['repeated_8_gram_share_wrong'])} in wrong ones",
        "",
    ]
    if card.get("notes"):
        lines += ["Sums over all rows:", ""]
        lines += [f"* {key.replace('_', ' ')}: {value:g}" for key, value in card["notes"].items()]
        lines.append("")
    lines += [*card.get("remarks", []), ""] if card.get("remarks") else []
    if cost := card.get("cost"):
        lines += [
            f"The model wrote {cost['generated']} tokens and read {cost['prefilled']} for it, in "
            f"{cost['forward_passes']} passes.",
            "",
        ]
    if card.get("failed_problems"):
        lines += [f"The engine could not be had for {card['failed_problems']} problems; they are dropped.", ""]
    lines += ["Digests (SHA-256):", "", f"* {DATA}: `{card['data_digest']}`", f"* model: `{card['model_digest']}`"]
    lines += [f"* {Path(path).parent.name}/{Path(path).name}: `{digest}`" for path, digest in card["runs"].items()]
    return "\n".join(lines) + "\n"


def _spread(counts: Counter[int]) -> dict[str, Any]:
    """Mean, least, median and largest of counted numbers."""
    total = sum(counts.values())
    if not total:
        return {"n": 0, "mean": None, "min": None, "median": None, "max": None}
    ordered = sorted(counts)
    seen, median = 0, ordered[0]
    for value in ordered:
        seen += counts[value]
        if seen >= math.ceil(total / 2):
            median = value
            break
    return {"n": total, "mean": _mean(counts), "min": ordered[0], "median": median, "max": ordered[-1]}


def _mean(counts: Counter[Any]) -> float | None:
    total = sum(counts.values())
    return round(math.fsum(value * number for value, number in counts.items()) / total, 4) if total else None


def _ratio(total: float, number: int) -> float | None:
    return round(total / number, 4) if number else None


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
