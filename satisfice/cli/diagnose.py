"""`satisfice diagnose`."""

import asyncio
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from satisfice.cli.console import complain, console, printable
from satisfice.cli.options import (
    OUTPUT,
    Ask,
    EngineOptions,
    Json,
    MethodName,
    ProblemOptions,
    PromptOptions,
    RunOptions,
    SamplingOptions,
    slug,
)
from satisfice.cli.tables import pairs_table

if TYPE_CHECKING:
    from satisfice.engines.base import Engine
    from satisfice.measurement.course import Course
    from satisfice.measurement.diagnosis import Diagnosis, Measured
    from satisfice.runs.run_folder import Run

ENOUGH = 50
"""Problems that a model is asked unless --limit says so."""

WORDS = {"first": "first", "try": "try", "skip": "not worth it", "unsure": "undecided"}


def diagnose(
    *,
    engine: EngineOptions,
    ask: Ask = None,
    method: MethodName = "plain",
    problems: ProblemOptions,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    run: RunOptions,
    problem: Annotated[
        str | None, typer.Option(rich_help_panel=OUTPUT, help="Id of the problem whose thinking is drawn.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Is this model verbose, where should it have stopped, and which methods are worth trying?

    MODEL may be a run folder instead: then the traces of one method are read (its baseline where it has no plain), and
    --ask MODEL adds what only the model can tell, the
    answer and the end marker at every boundary. A model is asked 50 problems unless --limit says so, into a run folder
    that the same command goes on with.

    Example: satisfice diagnose lab --limit 20
    """
    from satisfice.measurement.advice import advise
    from satisfice.report import timeline_figure, to_svg
    from satisfice.runs.diagnosis import method_of, of_run, told
    from satisfice.runs.run_folder import read_run, write_atomically

    folder = Path(engine.model)
    if (folder / "run.json").exists():
        done = read_run(folder)
        if method == "plain" and method not in done.traces:
            method = method_of(done, None)
        courses = _asked(replace(engine, model=ask), done, method, problem) if ask is not None else None
    elif ask is not None:
        raise ValueError(f"--ask belongs to a run folder, and {folder} is none: a model is asked anyway")
    else:
        done, courses = _run_and_ask(engine, method, problems, prompt, sampling, run, problem)
    found = of_run(done, method, courses)
    advice = advise(found)
    write_atomically(done.folder / "diagnosis.json", json.dumps(told(found, advice), indent=2) + "\n")
    drawn = _drawn(done, method, courses, problem)
    picture = None
    if drawn is not None:
        stops = _stops(done, method, drawn)
        picture = done.folder / "timeline.svg"
        write_atomically(picture, to_svg(timeline_figure(drawn, stops)))
    if as_json:
        print(json.dumps(told(found, advice), indent=2, ensure_ascii=False))
        return
    console.print(pairs_table(lines_of(found)))
    console.print()
    for each in advice:
        methods = f" {', '.join(each.methods)}" if each.methods else ""
        console.print(Text(f"{WORDS[each.kind]}{methods}: {printable(each.because)}"), highlight=False)
    if not advice:
        console.print("Nothing stands out: neither verbose nor cut off, as far as these responses say.", markup=False)
    if picture is not None and drawn is not None:
        console.print(f"\ntimeline of {printable(drawn.problem_id)}  {picture}", highlight=False, markup=False)


def _run_and_ask(
    engine: EngineOptions,
    method: str,
    problems: ProblemOptions,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    run: RunOptions,
    problem: str | None,
) -> "tuple[Run, list[Course] | None]":
    """Plain responses of a model, or those of one method, and their courses."""
    from satisfice.cli.running import carry_out
    from satisfice.runs import experiment as experiments
    from satisfice.runs.run_folder import RunFolder, read_run

    methods = experiments.methods_from([method])
    problem_set = replace(problems, limit=problems.limit or ENOUGH).loaded(engine.model, sampling.seed)
    folder = run.out or Path("runs") / slug(f"{engine.model}-{problem_set.name}-diagnosis")
    with engine.opened(methods) as opened:
        asked = experiments.Experiment(
            problem_set, methods, sampling.over(opened), run.samples, sampling.seed,
            prompt.instruction_for(problem_set), prompt.system, run.concurrency or 2 * engine.max_batch,
        )  # fmt: skip
        experiments.check(opened, asked)
        command = shlex.join(["satisfice", *sys.argv[1:]])
        with RunFolder.create_or_open(folder, asked.configuration(opened, command)) as run_folder:
            carry_out(partial(experiments.run, opened), asked, run_folder)
        done = read_run(folder)
        return done, _followed(opened, done, method, problem)


@contextmanager
def opened_for(done: "Run", engine: EngineOptions) -> Iterator["Engine"]:
    """The model that is to be asked about the traces of a run.

    Raises:
        ValueError: it did not write them.
    """
    with engine.opened() as opened:
        wrote = done.config.get("model_digest")
        if wrote and opened.digest and wrote != opened.digest:
            raise ValueError(
                f"{done.folder} was written by {done.config.get('model')}, and {engine.model} is another model: "
                "only the one that wrote a thinking can say where it would have stopped"
            )
        if (reads := str(done.config.get("attention", "dense"))) != str(opened.attention):
            raise ValueError(f"{done.folder} was written with {reads} attention: ask with --attention {reads}")
        yield opened


def _asked(engine: EngineOptions, done: "Run", method: str, problem: str | None) -> "list[Course] | None":
    with opened_for(done, engine) as opened:
        return _followed(opened, done, method, problem)


def _followed(engine: Any, done: "Run", method: str, problem: str | None) -> "list[Course] | None":
    from satisfice.engines.base import EngineError
    from satisfice.problems import GraderPool
    from satisfice.runs.diagnosis import MOST_ASKED, follow, method_of, spread

    traces = done.traces[method_of(done, method)]
    chosen = spread(traces, MOST_ASKED)
    if problem is not None and not any(trace.problem_id == problem for trace in chosen):
        chosen += [trace for trace in traces if trace.problem_id == problem][:1]
    try:
        with GraderPool() as graders:
            return asyncio.run(follow(engine, chosen, graders, entropies=True))
    except EngineError as error:
        complain(f"{error}; what the texts state is read instead")
        return None


def _drawn(done: "Run", method: str, courses: "list[Course] | None", problem: str | None) -> "Course | None":
    """The course that is drawn: of the problem that was asked for, else the one with the median of overthinking.

    Raises:
        ValueError: the problem has no trace.
    """
    from satisfice.runs.diagnosis import read_course, spread

    if courses is None and problem is None:
        courses = [read_course(trace) for trace in spread(done.traces[method], 50)]
    elif courses is None:
        courses = [read_course(trace) for trace in done.traces[method] if trace.problem_id == problem][:1]
    if problem is not None:
        found = [course for course in courses if course.problem_id == problem]
        if not found:
            raise ValueError(f"{method} has no trace of the problem {problem!r} in {done.folder}")
        return found[0]
    known = sorted((course for course in courses if course.known), key=lambda course: course.overthinking)
    return known[len(known) // 2] if known else None


def _stops(done: "Run", method: str, course: "Course") -> dict[str, int]:
    """How many thinking tokens the other methods took for the same problem and sample."""
    from satisfice.measurement import Columns

    stops = {}
    for other, traces in done.traces.items():
        columns = Columns.of(traces)
        if other != method and len(columns):
            wanted = (course.problem_id, course.sample)
            rows = [place for place, row in enumerate(columns.rows()) if row == wanted]
            for row in rows:
                stops[other] = int(columns.count("thinking_tokens")[row])
    return stops


def lines_of(found: "Diagnosis") -> list[tuple[str, str]]:
    """What was measured, as a name and a value each; what was not is left out."""
    limit = "" if found.cap is None else f" of {found.cap:,}"
    asked = "closed and asked there" if found.source == "asked" else "as the text states it"
    lines: list[tuple[str, str | None]] = [
        ("model, problems, method", f"{found.model}, {found.problems}, {found.method}"),
        ("right", _share(found.accuracy)),
        (f"cut off by the limit{limit}", _share(found.cut)),
        (
            "thinking tokens",
            f"mean {found.length:,.1f}, median {found.length_median:,.0f}, 95 % below {found.length_p95:,.0f}",
        ),
        ("  of right, of wrong responses", f"{_tokens(found.length_right)}, {_tokens(found.length_wrong)}"),
        ("8-grams that stood there before", None if found.repetition is None else f"{100 * found.repetition:.1f} %"),
        ("end in a loop", _share(found.loops)),
        ("thinking after the answer settled", _share(found.overthinking, asked)),
        ("outcome efficiency", None if found.efficiency is None else f"{found.efficiency:.2f}"),
        ("right on the way, wrong at the end", _share(found.spoiled)),
        ("end marker among the 5 likeliest", _share(found.at_hand, "at boundaries not taken")),
        ("  the likeliest", _share(found.likeliest)),
    ]
    cuts = [f"{number}: {100 * cut.value:.1f}" for number, cut in enumerate(found.accuracy_after) if cut is not None]
    lines.append(("right % if closed after boundary", ", ".join(cuts) or None))
    entropies = [f"{number}: {cut.value:.2f}" for number, cut in enumerate(found.answer_entropy)]
    lines.append(("entropy of the answer there, nats", ", ".join(entropies) or None))
    return [(name, value) for name, value in lines if value]


def _share(number: "Measured | None", how: str = "") -> str | None:
    if number is None:
        return None
    ends = "" if number.low is None or number.high is None else f" ({100 * number.low:.1f} to {100 * number.high:.1f})"
    return f"{100 * number.value:.1f} %{ends}, n = {number.n:,}{how and '; '}{how}"


def _tokens(value: float | None) -> str:
    return "none" if value is None else f"{value:,.1f}"
