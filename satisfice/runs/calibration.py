"""Find the setting of a method that saves most under a promise on what is lost, and certify it.

The baseline is run once. Each method's settings are tried in a fixed order from harmless to bold, each on problem after
problem until its bound is certified or it is hopeless; the first that is not certified ends its method's sequence.
All that passed are certified together at 1 - confidence (`satisfice.measurement.risk`), and of them the one that
saves most is taken. Several methods share that level out. As the test is valid at every moment, the same folder may
be given more problems later. The saving is measured on problems that were held back from all of this.

A response that could not be had, of the baseline or of a setting, counts as a loss of 1, the most that it could be, at
its problem's place in the order, which is fixed. The same command tries again, and what is had then takes that place:
the capital of the test can only grow by it, at every moment, so whatever was certified before stays certified, and the
chance to be wrong is still at most what was promised. Where too many are missing nothing is certified at all.

    calibration.json   what is promised about what: fixed with the first run, because it must not follow the outcomes
    batch-1/, ...      run folders, one for each time that problems were added
    certificate.json   what came of it, rewritten whole
"""

import asyncio
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from satisfice.engines.base import Engine
from satisfice.engines.remembering import RememberingEngine
from satisfice.intervention import METHODS, Method, MethodError, read_method
from satisfice.intervention.composed import compose
from satisfice.intervention.method import Knob, together
from satisfice.intervention.methods.plain import Plain
from satisfice.measurement import clopper_pearson, never_closed, saving
from satisfice.measurement.risk import LOWEST, BettingTest, Loss, hand_on, harm, net, upper_bound
from satisfice.parameters import convert, parameter_types
from satisfice.problems import GraderError, GraderPool, Problem
from satisfice.runs.certificate import Certificate, Saving, Setting, Verdict, asked
from satisfice.runs.experiment import Experiment, Failures, Progress, Task, check, record, try_to_solve
from satisfice.runs.run_folder import RunFolder, read_run, write_atomically
from satisfice.runs.watch import MOST_UNANSWERED, answer_of, disagree
from satisfice.trace import Cost, Trace

MOST_TRUNCATED = 0.2
"""Share of the baseline's responses that the token limit may cut off: beyond it the loss would be the limit's."""
SELF_CHECK = 200
"""Problems on which the baseline is asked twice where the loss is disagreement."""
FIRST_LOOK = 64
"""Responses of the baseline before which nothing is said about it."""
MOST_FAILED = 0.02
"""Share of the responses on one side that may be missing where something is certified: engines that fail choose which
problems are left, and nobody knows how."""
FORMAT = 2
"""Of calibration.json. Before it, which problems are held back depended on how they had been added."""


class CalibrationError(ValueError):
    """What was asked for cannot be calibrated, or not in this folder."""


# -- what is tried


@dataclass(frozen=True)
class Ladder:
    """The settings of one method in their order from harmless to bold.

    Attributes:
        text: the method as spelled, without its knob.
        varied: the name of the method whose knob it is.
        knob: what varies.
        settings: methods, one a value.
        values: of the knob.
        baseline: what is lost against.
    """

    text: str
    varied: str
    knob: Knob
    settings: tuple[Method, ...]
    values: tuple[Any, ...]
    baseline: Method


@dataclass(frozen=True)
class Promise:
    """What is to be promised.

    Attributes:
        max_loss: bound of the expected loss; 0.01 is one point.
        confidence: that the promise is true, over the draw of the problems.
        loss: which loss, see `satisfice.measurement.risk`.
        holdout: share of the problems held back from the choice, for the saving.

    Raises:
        CalibrationError: a number is out of its range.
    """

    max_loss: float = 0.01
    confidence: float = 0.95
    loss: Loss = "net"
    holdout: float = 0.3

    def __post_init__(self) -> None:
        for name, value, good, rule in (
            ("--max-loss", self.max_loss, 0 < self.max_loss < 1, "between 0 and 1: 0.01 is one point"),
            ("--confidence", self.confidence, 0 < self.confidence < 1, "between 0 and 1, for example 0.95"),
            ("--loss", self.loss, self.loss in LOWEST, "one of net, harm, disagreement"),
            ("--holdout", self.holdout, 0 <= self.holdout < 1, "at least 0 and below 1; 0.3 holds back 30 %"),
        ):
            if not good:
                raise CalibrationError(f"{name} is {value}; it must be {rule}")


def ladder(text: str, grids: Mapping[str, str], max_tokens: int) -> Ladder:
    """The settings of a method, which is spelled without what is calibrated.

    Of a strategy and a control, joined by a plus sign, one is varied: the one whose knob is left out.

    Args:
        text: as for `parse_method`.
        grids: values to try in place of the method's own, "0.95,0.9", by parameter or METHOD:parameter.
        max_tokens: of a response; a cap that is not below it changes nothing and is left out.

    Raises:
        MethodError: the method has no knob, its value is given already, or the text or a grid cannot be read.
    """
    parts = read_method(text)
    varied = _varied(text, parts, grids)
    kind, given = parts[varied]
    knob = _knob(kind, given, grids)
    if knob.parameter in given:
        raise MethodError(f"{knob.parameter} is what calibrating {kind.name} finds: leave {knob.parameter}= out")
    clash = next((key for key, value in knob.where.items() if given.get(key, value) != value), None)
    if clash:
        raise MethodError(
            f"{kind.name}: {knob.parameter} acts with {clash}={knob.where[clash]} only; leave {clash} out"
        )
    own = next((grids[key] for key in (f"{kind.name}:{knob.parameter}", knob.parameter) if key in grids), None)
    values = _ordered(kind.name, knob, _read_grid(kind, knob, own)) if own is not None else knob.grid
    if own is None and knob.parameter == "max_thinking":
        values = tuple(value for value in values if value < max_tokens)
        if not values:
            raise MethodError(
                f"{kind.name}: no cap of its grid lies below the limit of {max_tokens} tokens; give --grid"
            )
    fixed = [None if place == varied else other(**said) for place, (other, said) in enumerate(parts)]
    settings = []
    for value in values:
        setting = kind(**{**given, **knob.where, knob.parameter: value})
        whole = [setting if each is None else each for each in fixed]
        settings.append(whole[0] if len(whole) == 1 else compose(whole))
    if not knob.against_first:
        return Ladder(text, kind.name, knob, tuple(settings), tuple(values), Plain())
    if len(settings) < 2:
        raise MethodError(f"{kind.name}: the first value of its grid is what is lost against, so give at least two")
    return Ladder(text, kind.name, knob, tuple(settings[1:]), tuple(values[1:]), settings[0])


def _varied(text: str, parts: Sequence[tuple[type[Method], Mapping[str, Any]]], grids: Mapping[str, str]) -> int:
    """The place of the part whose knob is varied."""
    if not any(kind.knobs for kind, _ in parts):
        names = " and ".join(kind.name for kind, _ in parts)
        known = ", ".join(f"{each.name} ({each.knobs[0].parameter})" for each in METHODS.values() if each.knobs)
        raise MethodError(
            f"{names} {'have' if len(parts) > 1 else 'has'} no knob to calibrate; what can be calibrated is {known}"
        )
    able = [place for place, (kind, _) in enumerate(parts) if kind.knobs]
    free = [place for place in able if _knob(*parts[place], grids).parameter not in parts[place][1]]
    if len(free) > 1:
        one, two = (f"{parts[place][0].name} ({_knob(*parts[place], grids).parameter})" for place in free)
        raise MethodError(
            f"{text!r} has two knobs, {one} and {two}, and one is calibrated at a time: give the other its value, as "
            "in entrocut+temperature-scaling:t=0.9"
        )
    return (free or able)[0]


def _knob(kind: type[Method], given: Mapping[str, Any], grids: Mapping[str, str]) -> Knob:
    """Which of a method's knobs is meant: the one with a grid, or the first that fits what is given."""
    asked_for = {_grid_key(key, kind.name) for key in grids} - {None}
    with_grid = (each for each in kind.knobs if each.parameter in asked_for)
    fitting = (each for each in kind.knobs if each.where and each.where.items() <= given.items())
    free = (each for each in kind.knobs if not each.where and each.parameter not in given)
    return next((each for each in (*with_grid, *fitting, *free)), kind.knobs[0])


def ladders(texts: Sequence[str], grids: Sequence[str] | None, max_tokens: int) -> list[Ladder]:
    """The ladders of several methods, see `ladder`.

    Args:
        texts: methods without their knobs.
        grids: each as "t=0.95,0.9" or "deer:threshold=0.99,0.95".
        max_tokens: of a response.

    Raises:
        MethodError: a method or a grid does not fit, or two methods have the same settings.
    """
    read: dict[str, str] = {}
    for text in grids or []:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not (key and equals and values):
            raise MethodError(f"--grid {text!r} must look like t=0.95,0.9,0.85")
        read[key.replace("-", "_") if ":" not in key else key] = values
    found = [ladder(text, read, max_tokens) for text in texts]
    known = {name for each in found for name in (each.knob.parameter, f"{each.varied}:{each.knob.parameter}")}
    for key in read:
        if key not in known:
            knobs = ", ".join(f"{each.varied} has {each.knob.parameter}" for each in found)
            raise MethodError(f"--grid {key}=: this is the knob of none of the methods: {knobs}")
    spelled = [str(setting) for each in found for setting in each.settings]
    if twice := next((each for each in spelled if spelled.count(each) > 1), None):
        raise MethodError(f"the setting {twice} is tried twice: give each method once")
    return found


def baseline_of(found: Sequence[Ladder]) -> Method:
    """What is lost against: `plain`, or for votes the vote of the most responses.

    Raises:
        MethodError: the methods do not share one.
    """
    bases = sorted({str(each.baseline) for each in found})
    if len(bases) > 1:
        raise MethodError(
            f"these methods are not measured against the same baseline ({', '.join(bases)}): calibrate a vote alone"
        )
    return found[0].baseline


def _grid_key(key: str, method: str) -> str | None:
    owner, colon, parameter = key.rpartition(":")
    return parameter if not colon or owner == method else None


def _read_grid(kind: type[Method], knob: Knob, text: str) -> list[Any]:
    hint = parameter_types(kind)[knob.parameter]
    values = []
    for part in text.split(","):
        try:
            values.append(convert(part.strip(), hint))
        except ValueError as error:
            raise MethodError(f"--grid {knob.parameter}={text}: {part.strip()!r} does not fit: {error}") from None
    return values


def _ordered(name: str, knob: Knob, values: list[Any]) -> tuple[Any, ...]:
    """The values, which have to go the knob's way."""
    if isinstance(knob.grid[0], str):
        places = [knob.grid.index(value) for value in values if value in knob.grid]
        direction = f"in the order {', '.join(knob.grid)}"
        good = len(places) == len(values) and all(one < two for one, two in pairwise(places))
    else:
        down = knob.grid[0] > knob.grid[-1]
        direction = "from large to small" if down else "from small to large"
        good = all(one > two if down else one < two for one, two in pairwise(values))
    if not good:
        shown = ",".join(map(str, values))
        raise MethodError(
            f"--grid {knob.parameter}={shown} is out of order: {name} goes from harmless to bold {direction}"
        )
    return tuple(values)


def problems_at_least(promise: Promise, sequences: int) -> int:
    """With how many problems a certificate is possible at all, if none of them loses anything."""
    level = (1 - promise.confidence) / sequences
    needed = BettingTest(promise.max_loss, LOWEST[promise.loss]).needed(level)
    return _with_holdout(needed, promise.holdout)


def check_enough(promise: Promise, sequences: int, problems: int) -> None:
    """Refuse too few problems before anything is paid for.

    Raises:
        CalibrationError: with the number needed.
    """
    needed = problems_at_least(promise, sequences)
    if problems < needed:
        shared = f" shared by {sequences} methods" if sequences > 1 else ""
        held = f", {promise.holdout:.0%} of them held back," if promise.holdout else ""
        raise CalibrationError(
            f"{problems} problems cannot certify a loss of at most {promise.max_loss:g} with confidence "
            f"{promise.confidence:g}{shared}: that takes {needed}{held} even if nothing is lost; give more problems "
            "(--limit), a larger --max-loss or a smaller --confidence"
        )


def _with_holdout(needed: int, holdout: float) -> int:
    """How many problems leave `needed` of them once a share is held back."""
    total = needed
    while total - _held_back_of(total, holdout) < needed:
        total += 1
    return total


def _held_back_of(first: int, holdout: float) -> int:
    """How many of the first problems of the order are held back: the share of them all, rounded down."""
    return int(first * holdout + 1e-9)


def is_held_back(place: int, holdout: float) -> bool:
    """Whether the problem at a place of the order, from 0, is held back: it decides nothing but the place."""
    return _held_back_of(place + 1, holdout) > _held_back_of(place, holdout)


# -- the folder


@dataclass(frozen=True)
class _Seen:
    """What is kept of a trace."""

    correct: bool
    answer: str | None
    truncated: bool
    unclosed: bool
    cost: Cost


class _Bench:
    """The problems in their order, what was seen of them, and the run folders that it is in."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        experiment: Experiment,
        promise: Promise,
        found: Sequence[Ladder],
        graders: GraderPool,
        progress: Progress,
        command: str,
    ) -> None:
        self.engine, self.experiment, self.graders, self.progress = engine, experiment, graders, progress
        self.baseline, self.loss = baseline_of(found), promise.loss
        self.failures = Failures(experiment.concurrency)
        self.seen: dict[tuple[str, str, int], _Seen] = {}
        self.failed: dict[tuple[str, str, int], str] = {}
        self.recalled = 0
        self._begun: set[str] = set()
        self._folder_of: dict[str, RunFolder] = {}
        methods = list({str(each): each for each in [self.baseline, *(s for f in found for s in f.settings)]}.values())
        samples = 2 if promise.loss == "disagreement" else 1
        whole = replace(experiment, methods=methods, samples=samples)
        check(engine, whole)
        config = whole.configuration(engine, command)
        self.asked, self.versions = asked(config, engine.thinking), config["versions"]
        batches = _open(folder, promise, found, self.asked, experiment)
        self.order: list[Problem] = []
        self.held_back: list[Problem] = []
        with ExitStack() as opened:
            for number, problems in enumerate(batches, start=1):
                named = replace(experiment.problems, problems=problems)
                part = replace(whole, problems=named)
                path = folder / f"batch-{number}"
                run_folder = opened.enter_context(RunFolder.create_or_open(path, part.configuration(engine, command)))
                graders_here = {problem.id: problem.grader for problem in problems}
                for problem in problems:
                    place = len(self.order) + len(self.held_back)
                    (self.held_back if is_held_back(place, promise.holdout) else self.order).append(problem)
                self._folder_of |= {problem.id: run_folder for problem in problems}
                for method, traces in read_run(path).traces.items():
                    for trace in traces:
                        if trace.problem_id not in graders_here:
                            raise CalibrationError(
                                f"{path} has a response to {trace.problem_id}, which is none of its problems: use "
                                "another folder (--runs)"
                            )
                        kept = _kept(trace, graders_here[trace.problem_id])
                        self.seen[method, trace.problem_id, trace.sample] = kept
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()

    async def have(self, wanted: Iterable[tuple[Problem, Sequence[tuple[Method, int]]]]) -> None:
        """Get the responses that are not there yet; what several settings of one problem share is generated once.

        What could not be had is not tried again before the next run.
        """
        gate = asyncio.Semaphore(self.experiment.concurrency)

        async def solve(problem: Problem, missing: Sequence[tuple[Method, int]]) -> None:
            async with gate:
                engine = RememberingEngine(self.engine) if len(missing) > 1 else self.engine
                for method, sample in missing:
                    task = Task(method, problem, sample)
                    outcome = await try_to_solve(engine, *self.experiment.asks(task))
                    folder = self._folder_of[problem.id]
                    outcome = await record(task, outcome, folder, self.graders, self.progress)
                    self.failures.count(outcome)
                    key = (str(method), problem.id, sample)
                    if outcome.trace is None:
                        self.failed[key] = outcome.attempts[-1].error.splitlines()[0]
                    else:
                        self.seen[key] = _kept(outcome.trace, problem.grader)
                if isinstance(engine, RememberingEngine):
                    self.recalled += engine.recalled

        wanting = []
        for problem, pairs in wanted:
            missing = [
                (method, sample)
                for method, sample in pairs
                if (key := (str(method), problem.id, sample)) not in self.seen and key not in self.failed
            ]
            if missing:
                wanting.append(solve(problem, missing))
                for method, _ in missing:
                    self._begin(str(method))
        await together(*wanting)

    def _begin(self, method: str) -> None:
        if method not in self._begun:
            self._begun.add(method)
            done = sum(name == method for name, _, _ in self.seen)
            self.progress.begin(method, len(self.order) + len(self.held_back), done)

    def of(self, method: Method, problem: Problem, sample: int = 0) -> _Seen | None:
        """What was seen of a response; None where it could not be had."""
        return self.seen.get((str(method), problem.id, sample))

    def why(self, method: Method) -> str:
        """Why a response of a method could not be had, the last time."""
        return next((why for (name, _, _), why in reversed(self.failed.items()) if name == str(method)), "unknown")


def _kept(trace: Trace, grader: str) -> _Seen:
    return _Seen(trace.correct, answer_of(trace, grader), trace.truncated, never_closed(trace), trace.cost)


def _shuffled(problems: Sequence[Problem], seed: int) -> list[Problem]:
    """In an order that neither outcomes nor the source decide."""
    return sorted(problems, key=lambda problem: hashlib.sha256(f"calibration/{seed}/{problem.id}".encode()).digest())


def _open(
    folder: Path, promise: Promise, found: Sequence[Ladder], where: Mapping[str, Any], experiment: Experiment
) -> list[list[Problem]]:
    """The batches of problems, each in its order; what is promised must be what it was when the folder was begun."""
    fixed = {
        "format": FORMAT,
        "max_loss": promise.max_loss,
        "confidence": promise.confidence,
        "loss": promise.loss,
        "holdout": promise.holdout,
        "seed": experiment.seed,
        "settings": [[str(setting) for setting in each.settings] for each in found],
        "asked": {key: value for key, value in where.items() if not key.startswith("problems")},
    }
    fixed = json.loads(json.dumps(fixed))
    path = folder / "calibration.json"
    batches: list[list[tuple[str, str]]] = []
    if path.exists():
        try:
            stored = json.loads(path.read_bytes())
            batches = [[(str(name), str(digest)) for name, digest in batch] for batch in stored.pop("batches")]
            names = [name for batch in batches for name, _ in batch]
            if len(set(names)) < len(names):
                raise ValueError("a problem stands in it twice")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CalibrationError(f"{path} is damaged ({error!r}): use another folder (--runs)") from None
        if stored.get("format") != FORMAT:
            raise CalibrationError(
                f"{folder} was begun by another version of satisfice, which divides the problems in another way: use "
                "another folder (--runs)"
            )
        changed = [key for key in fixed if stored.get(key) != fixed[key]]
        if changed:
            raise CalibrationError(
                f"{folder} was begun with other {', '.join(changed)}: what is promised may not follow what was seen, "
                "so use another folder (--runs), or ask for the same again"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise CalibrationError(f"{folder} is not empty and holds no calibration: use another folder (--runs)")
    by_id = {problem.id: problem for problem in experiment.problems.problems}
    lists: list[list[Problem]] = []
    before: set[str] = set()
    for batch in batches:
        gone = [name for name, digest in batch if name not in by_id or _digest(by_id[name]) != digest]
        if gone:
            raise CalibrationError(
                f"{folder} has {len(gone)} problems that are missing or different now, such as {gone[0]}: give the "
                "same problems again, to which more may be added, or use another folder (--runs)"
            )
        lists.append([by_id[name] for name, _ in batch])
        before.update(name for name, _ in batch)
    new = _shuffled([problem for name, problem in by_id.items() if name not in before], experiment.seed)
    if new:
        lists.append(new)
        folder.mkdir(parents=True, exist_ok=True)
        stored = {**fixed, "batches": [[[each.id, _digest(each)] for each in batch] for batch in lists]}
        write_atomically(path, json.dumps(stored, indent=1) + "\n")
    return lists


def _digest(problem: Problem) -> str:
    content = json.dumps([problem.prompt, problem.answer, problem.grader, problem.system, problem.history])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# -- the procedure


@dataclass
class _Trial:
    """One setting on trial.

    Attributes:
        test: certifies it.
        against: gives it up: the same bet the other way.
        losses: in the order of problems.
        costs: of the setting and of the baseline, where both are there.
        failed, baseline_failed: how many responses on either side could not be had.
    """

    method: Method
    test: BettingTest
    against: BettingTest
    losses: list[float] = field(default_factory=list)
    costs: list[tuple[Cost, Cost]] = field(default_factory=list)
    failed: int = 0
    baseline_failed: int = 0
    verdict: Verdict = "not tried"


async def calibrate(
    engine: Engine,
    experiment: Experiment,
    found: Sequence[Ladder],
    promise: Promise,
    folder: str | Path,
    graders: GraderPool,
    progress: Progress | None = None,
    *,
    convention: str | None = None,
    command: str = "",
) -> Certificate:
    """Certify a setting, and write the certificate into the folder.

    Args:
        engine: where tokens come from.
        experiment: the problems, and how they are asked; its methods and samples play no part.
        found: from `ladders`.
        promise: what is to be promised.
        folder: where everything is kept; the same call goes on after a kill, and may bring more problems.
        graders: judge the answers.
        progress: told of every response.
        convention: which tokens the saving counts; total where any setting spends tokens beside its response, else
            thinking.
        command: for the run folders.

    Returns:
        the certificate; its `method` is None where no setting qualifies, which is a result.

    Raises:
        CalibrationError: too few problems, the folder was begun for something else, or more than `MOST_FAILED` of the
            baseline's responses could not be had.
        EngineError: the engine cannot serve a setting.
        MethodError: the baseline has nothing to lose, or its responses are cut off.
        RunStopped: most requests failed.
    """
    check_enough(promise, len(found), len(experiment.problems.problems))
    folder = Path(folder)
    bench = _Bench(folder, engine, experiment, promise, found, graders, progress or Progress(), command)
    try:
        certificate = await _certified(bench, found, promise, convention)
    finally:
        bench.close()
    write_atomically(folder / "certificate.json", certificate.model_dump_json(indent=2) + "\n")
    certificate.path = str(folder / "certificate.json")
    return certificate


async def _certified(bench: _Bench, found: Sequence[Ladder], promise: Promise, convention: str | None) -> Certificate:
    lowest = LOWEST[promise.loss]
    trials = [
        [_Trial(each, BettingTest(promise.max_loss, lowest), BettingTest(promise.max_loss, lowest, "above"))
         for each in ladder.settings]
        for ladder in found
    ]  # fmt: skip
    levels = [(1 - promise.confidence) / len(found)] * len(found)
    at_end: set[int] = set()
    while True:
        passed = [
            await _climb(bench, ladder, row, level, promise)
            for ladder, row, level in zip(found, trials, levels, strict=True)
        ]
        ended = [each for each, count in enumerate(passed) if count == len(trials[each]) and each not in at_end]
        levels = hand_on(levels, ended, at_end)
        at_end.update(ended)
        if not ended or len(at_end) == len(found):
            break
    costs = [cost for row in trials for trial in row for pair in trial.costs for cost in pair]
    convention = convention or ("total" if any(c.total_tokens > c.retained_tokens for c in costs) else "thinking")
    records = {
        ladder.text: [
            _setting(bench, trial, ladder, value, level, promise, convention)
            for trial, value in zip(row, ladder.values, strict=True)
        ]
        for ladder, row, level in zip(found, trials, levels, strict=True)
    }
    winners = [
        (trial, setting, level)
        for row, settings, level in zip(trials, records.values(), levels, strict=True)
        for trial, setting in zip(row, settings, strict=True)
        if setting.verdict == "certified"
    ]
    certificate = Certificate(
        method=None, baseline=str(bench.baseline), loss=promise.loss, max_loss=promise.max_loss,
        confidence=promise.confidence, levels=dict(zip(records, levels, strict=True)), ladders=records,
        asked=bench.asked, versions=bench.versions, created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    if promise.loss == "disagreement":
        certificate.self_disagreement = await _self_disagreement(bench)
    if winners:
        trial, setting, _ = max(winners, key=lambda each: _kept_share(each[1]))
        certificate.method, certificate.n = setting.method, setting.n
        certificate.observed_loss, certificate.bound = setting.loss, setting.bound
        certificate.failed = {"baseline": setting.baseline_failed, "method": setting.failed}
        await _measure(bench, trial, promise, convention, certificate)
        # A large bound is certified by fewer problems than the first look waits for: nothing was said of them yet.
        _refuse_hopeless(bench, at_end=True)
    certificate.responses = _responses(bench, found)
    return certificate


def _kept_share(setting: Setting) -> float:
    """How much is saved, as far as the calibrating problems tell."""
    if not setting.baseline_tokens or setting.tokens is None:
        return 0.0
    return 1 - setting.tokens / setting.baseline_tokens


async def _climb(bench: _Bench, ladder: Ladder, trials: list[_Trial], level: float, promise: Promise) -> int:
    """Try the settings of a ladder in their order; how many are certified at this level."""
    chunk = max(bench.experiment.concurrency, 1)
    for place, trial in enumerate(trials):
        trial.verdict = "open"
        while not trial.test.passed(level):
            fed = trial.test.n
            left = len(bench.order) - fed
            if trial.against.passed(level):
                trial.verdict = "hopeless"
            if trial.verdict == "hopeless" or trial.test.needed(level) > left:
                _settle(bench, trial)
                return place  # not even without a single loss more
            problems = bench.order[fed : fed + chunk]
            wanted = [(each.method, 0) for each in (trials[place:] if ladder.knob.shared else [trial])]
            first = [(bench.baseline, 0), *(wanted if ladder.knob.against_first else [])]
            await bench.have((problem, first) for problem in problems)
            _refuse_hopeless(bench)
            # What is lost against a response that is not there is not known, whatever the setting would write.
            there = [problem for problem in problems if bench.of(bench.baseline, problem) is not None]
            await bench.have((problem, wanted) for problem in there)
            for problem in problems:
                await _feed(bench, trial, problem, promise)
                if trial.test.passed(level):
                    break
        trial.verdict = "certified"
        _settle(bench, trial)
        if trial.verdict != "certified":
            return place
    return len(trials)


async def _feed(bench: _Bench, trial: _Trial, problem: Problem, promise: Promise) -> None:
    """Let a trial see the next problem of the order."""
    base, ours = bench.of(bench.baseline, problem), bench.of(trial.method, problem)
    loss = 1.0
    if base is None:
        trial.baseline_failed += 1
    elif ours is None:
        trial.failed += 1
    else:
        trial.costs.append((ours.cost, base.cost))
        try:
            loss = await _loss(bench, promise.loss, problem, ours, base)
        except GraderError as error:
            trial.failed += 1
            bench.failed[str(trial.method), problem.id, 0] = str(error)
    trial.losses.append(loss)
    trial.test.add(loss)
    trial.against.add(loss)


def _settle(bench: _Bench, trial: _Trial) -> None:
    """Certify nothing where too many responses are missing.

    Raises:
        CalibrationError: they are the baseline's, so nothing at all can be certified.
    """
    n = trial.test.n
    if trial.baseline_failed > MOST_FAILED * n:
        raise CalibrationError(
            f"nothing is certified: {_missing(trial.baseline_failed, n)} of {bench.baseline} could not be had, and at "
            f"most {MOST_FAILED:.0%} may be missing; the last because: {bench.why(bench.baseline)}. The same command "
            "tries them again and goes on from there; problems that can never be answered have to be left out, in "
            "another folder (--runs)"
        )
    if trial.failed > MOST_FAILED * n:
        trial.verdict = "failing"


def _missing(failed: int, n: int) -> str:
    return f"{failed} of {n} responses ({failed / max(n, 1):.1%})"


async def _loss(bench: _Bench, loss: Loss, problem: Problem, ours: _Seen, base: _Seen) -> float:
    if loss == "disagreement":
        return float(await disagree(bench.graders, problem.grader, ours.answer, base.answer))
    measure = net if loss == "net" else harm
    return float(measure([ours.correct], [base.correct])[0])


def _setting(
    bench: _Bench, trial: _Trial, ladder: Ladder, value: Any, level: float, promise: Promise, convention: str
) -> Setting:
    setting = Setting(
        method=str(trial.method), parameter=ladder.knob.parameter, value=value, verdict=trial.verdict, n=trial.test.n,
        failed=trial.failed, baseline_failed=trial.baseline_failed,
    )  # fmt: skip
    if trial.failed:
        setting.failed_because = bench.why(trial.method)
    if trial.losses:
        setting.loss = fmean(trial.losses)
        setting.bound = upper_bound(trial.losses, level, LOWEST[promise.loss])
    if trial.costs:
        setting.tokens = fmean(ours.count(convention) for ours, _ in trial.costs)
        setting.baseline_tokens = fmean(base.count(convention) for _, base in trial.costs)
    if trial.verdict in ("open", "hopeless"):
        setting.needed = trial.test.needed(level)
    return setting


async def _self_disagreement(bench: _Bench) -> dict[str, float]:
    """How often the baseline differs from itself under another seed: what a disagreement has to be read against."""
    problems = [each for each in bench.order if bench.of(bench.baseline, each) is not None][:SELF_CHECK]
    await bench.have((problem, [(bench.baseline, 1)]) for problem in problems)
    differ = []
    for problem in problems:
        first, second = bench.of(bench.baseline, problem), bench.of(bench.baseline, problem, 1)
        if first is None or second is None:
            continue
        with suppress(GraderError):
            differ.append(await disagree(bench.graders, problem.grader, second.answer, first.answer))
    missing = len(problems) - len(differ)
    if not differ:
        return {"n": 0, "failed": missing} if missing else {}
    low, high = clopper_pearson(fmean(differ), len(differ))
    return {"share": fmean(differ), "low": low, "high": high, "n": len(differ), "failed": missing}


async def _measure(bench: _Bench, trial: _Trial, promise: Promise, convention: str, certificate: Certificate) -> None:
    """What the certified setting saves and loses on the problems held back from the choice."""
    pairs, losses, failed = trial.costs, [], 0
    if bench.held_back:
        await bench.have((problem, [(bench.baseline, 0)]) for problem in bench.held_back)
        there = [problem for problem in bench.held_back if bench.of(bench.baseline, problem) is not None]
        await bench.have((problem, [(trial.method, 0)]) for problem in there)
        pairs = []
        for problem in there:
            ours, base = bench.of(trial.method, problem), bench.of(bench.baseline, problem)
            if ours is None or base is None:
                continue
            with suppress(GraderError):
                losses.append(await _loss(bench, promise.loss, problem, ours, base))
                pairs.append((ours.cost, base.cost))
        failed = len(bench.held_back) - len(pairs)
    estimate = saving([[ours.count(convention)] for ours, _ in pairs], [[base.count(convention)] for _, base in pairs])
    certificate.saving = Saving(
        value=None if estimate is None else estimate.value, low=None if estimate is None else estimate.low,
        high=None if estimate is None else estimate.high,
        convention=convention, n=len(pairs), held_back=bool(bench.held_back),
    )  # fmt: skip
    if losses:
        certificate.held_back = {"n": len(losses), "loss": fmean(losses), "failed": failed}


def _responses(bench: _Bench, found: Sequence[Ladder]) -> dict[str, int]:
    """What it took, and what every setting on every problem would have taken."""
    shared = {
        str(setting): number for number, each in enumerate(found) if each.knob.shared for setting in each.settings
    }
    chains = {(shared[method], problem) for method, problem, _ in bench.seen if method in shared}
    endings = sum(method in shared for method, _, _ in bench.seen) - len(chains)
    settings = len({str(bench.baseline), *(str(setting) for each in found for setting in each.settings)})
    return {
        "taken": len(bench.seen),
        "of_these_shared": endings,
        "full_grid": settings * (len(bench.order) + len(bench.held_back)),
    }


def _refuse_hopeless(bench: _Bench, at_end: bool = False) -> None:
    """Refuse a baseline against which a loss means nothing.

    Args:
        bench: what was seen.
        at_end: whatever there is has to do, and settings that were right where the baseline never is count as well.

    Raises:
        MethodError: too many of its responses are cut off, none is right, or most never closed their thinking, or where
            answers are compared most give none.
    """
    name = str(bench.baseline)
    found = [seen for (method, _, sample), seen in bench.seen.items() if method == name and sample == 0]
    missing = sum(method == name and sample == 0 for method, _, sample in bench.failed)
    if not found or (not at_end and len(found) + missing < min(FIRST_LOOK, len(bench.order))):
        return
    cut, unclosed = fmean(seen.truncated for seen in found), fmean(seen.unclosed for seen in found)
    silent = fmean(seen.answer is None for seen in found)
    gold = any(problem.answer for problem in bench.order)
    if cut > MOST_TRUNCATED:
        reason = f"the token limit cuts off {cut:.0%} of its responses, so that the loss would be the limit's"
        hint = "raise --max-tokens"
    elif gold and not any(seen.correct for seen in (bench.seen.values() if at_end else found)):
        reason = f"none of its {len(found)} responses is right"
        hint = "check --grader, --instruction and the gold answers, or take easier problems"
    elif bench.loss == "disagreement" and silent > MOST_UNANSWERED:
        reason = (
            f"it gives no answer that its grader finds in {silent:.0%} of its responses, and what is not there agrees"
        )
        hint = "check --grader, or ask for an answer in a box with --instruction"
    elif unclosed > 0.5:
        reason = f"it never closed its thinking in {unclosed:.0%} of its responses"
        hint = "raise --max-tokens, or say which markers the model uses with --thinking-format"
    else:
        return
    raise MethodError(f"nothing can be calibrated against {name} because {reason}: {hint}")


def _failures(certificate: Certificate) -> list[str]:
    """What is said of responses that could not be had, by setting; the same of the baseline is said once."""
    lines = []
    tried = [setting for row in certificate.ladders.values() for setting in row]
    for setting in tried:
        if not setting.failed:
            continue
        said = f"{_missing(setting.failed, setting.n)} of {setting.method} could not be had and count as lost"
        if setting.verdict == "failing":
            said += (
                f", so it is not certified: at most {MOST_FAILED:.0%} may be missing; the last because: "
                f"{setting.failed_because}; the same command tries them again"
            )
        lines.append(said)
    worst = max(tried, key=lambda setting: setting.baseline_failed, default=None)
    if worst is not None and worst.baseline_failed:
        lines.append(
            f"{_missing(worst.baseline_failed, worst.n)} of {certificate.baseline} could not be had and count as lost; "
            "the same command tries them again"
        )
    return lines


def sentences(certificate: Certificate) -> list[str]:
    """A certificate in plain words, line by line."""
    allowed = (
        f"a {certificate.loss} loss of at most {certificate.max_loss:.2%}, with confidence {certificate.confidence:g}"
    )
    lines = []
    if certificate.method is None:
        tried = [setting for row in certificate.ladders.values() for setting in row if setting.bound is not None]
        lines.append(f"no setting qualifies for {allowed}")
        if tried:
            best = min(tried, key=lambda setting: setting.bound if setting.bound is not None else 1.0)
            lines.append(
                f"best bound reached: {best.bound:.2%} by {best.method}, which lost {best.loss:.2%} on {best.n} "
                "problems"
            )
            open_ = [setting for setting in tried if setting.needed is not None]
            if open_:
                near = min(open_, key=lambda setting: setting.n + (setting.needed or 0))
                lines.append(
                    f"{near.method} would need {near.needed} more calibrating problems like these if nothing more were "
                    "lost; the same command with a larger --limit adds problems to this calibration"
                )
    else:
        lines.append(f"{certificate.method} is certified for {allowed}")
        lines.append(
            f"tested on {certificate.n} problems: lost {certificate.observed_loss:.2%}, at most {certificate.bound:.2%}"
        )
        if certificate.saving is not None and certificate.saving.value is not None:
            found, share = certificate.saving, certificate.saving.value
            interval = "" if found.low is None else f" ({found.low:.1%} … {found.high:.1%})"
            where = (
                f"on {found.n} problems held back from the choice"
                if found.held_back
                else f"on the {found.n} problems that it was chosen on, so this is optimistic"
            )
            lines.append(f"saves {share:.1%}{interval} of the {found.convention} tokens of "
                         f"{certificate.baseline}, {where}")  # fmt: skip
            if share <= 0:
                lines.append(f"it saves nothing here, so {certificate.baseline} is the better choice")
            elif found.low is not None and found.low <= 0:
                lines.append("that it saves anything is not shown: the interval reaches 0")
        if certificate.held_back:
            held = certificate.held_back
            missing = held.get("failed", 0)
            without = f", without {missing:.0f} that could not be had there" if missing else ""
            lines.append(f"lost {held['loss']:.2%} on the problems held back{without}")
    lines += _failures(certificate)
    if len(certificate.levels) > 1:
        parts = ", ".join(f"{name} {level:.3g}" for name, level in certificate.levels.items())
        lines.append(f"the chance of {1 - certificate.confidence:.3g} to be wrong was shared out: {parts}")
    if certificate.self_disagreement and certificate.self_disagreement.get("n"):
        own = certificate.self_disagreement
        lines.append(
            f"the baseline disagrees with itself under another seed on {own['share']:.1%} of {own['n']:.0f} problems "
            f"({own['low']:.1%} … {own['high']:.1%}): read the disagreement against that"
            + (f"; {own['failed']:.0f} more could not be had" if own.get("failed") else "")
        )
    taken = certificate.responses
    if taken:
        shared = (
            f", {taken['of_these_shared']} of them only the end of a shared thinking"
            if taken["of_these_shared"]
            else ""
        )
        lines.append(f"it took {taken['taken']} responses{shared}; a full grid would have taken {taken['full_grid']}")
    return lines
