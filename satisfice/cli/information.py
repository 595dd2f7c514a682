"""`satisfice information`."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from satisfice.cli.console import console
from satisfice.cli.diagnose import opened_for
from satisfice.cli.options import OUTPUT, Ask, EngineOptions, Json, MethodName
from satisfice.cli.tables import pairs_table

if TYPE_CHECKING:
    from satisfice.measurement.answer_steps import Information
    from satisfice.measurement.diagnosis import Measured


def information(
    *,
    engine: EngineOptions,
    ask: Ask = None,
    method: MethodName = "plain",
    ideal: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="Run on the same problems whose thinkings stand for ideal ones; both with --samples 2 or more.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What each step of the thinkings of a run tells about the answer, and how far they lie from ideal ones.

    InfoGain and InfoBias of 2505.18237, each as in the paper and as in its program. MODEL is a run folder. InfoGain
    needs the model that wrote it, --ask MODEL; InfoBias in the program's form needs --ideal RUN.

    Example: satisfice information runs/lab-lab-test --ask lab
    """
    from satisfice.problems import GraderPool
    from satisfice.runs.diagnosis import MOST_ASKED, method_of, spread
    from satisfice.runs.information import follow_answers, of_run
    from satisfice.runs.run_folder import read_run

    done = read_run(engine.model)
    if method == "plain" and method not in done.traces:
        method = method_of(done, None)
    followed = []
    if ask is not None:
        traces = spread(done.traces[method_of(done, method)], MOST_ASKED)
        with opened_for(done, replace(engine, model=ask)) as opened, GraderPool() as graders:
            followed = asyncio.run(follow_answers(opened, traces, graders))
    found = of_run(done, method, followed, None if ideal is None else read_run(ideal))
    if as_json:
        steps = [
            each.model_dump()
            | {
                "entropies": each.entropies(),
                "gains": each.gains(),
                "targeted": each.targeted(),
                "targeted_as_printed": each.targeted(as_printed=True),
            }
            for each in followed
        ]
        print(json.dumps(found.model_dump() | {"traces": steps}, indent=2, ensure_ascii=False))
        return
    if found.followed:
        console.print(_steps_table(found))
        console.print(
            Text(
                "after so many boundaries: entropy of the answer in nats, of thinkings that end right and wrong, in "
                "bits; InfoGain of the step before, and that for the right answer, + where it helps (printed with "
                "the opposite sign); ± of 95 %",
                style="dim",
            ),
            highlight=False,
        )
    console.print(pairs_table(lines_of(found)))
    if ask is None:
        console.print("\nInfoGain needs the model that wrote this run: --ask MODEL", highlight=False, markup=False)


def _steps_table(found: "Information") -> Table:
    """A row a boundary: the entropy there, and what the step before it gained."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("after", "entropy", "right", "wrong", "bits", "InfoGain", "right answer"):
        table.add_column(name, justify="right", no_wrap=True)

    def at(values: "Sequence[Measured]", place: int) -> str:
        return _one(values[place]) if 0 <= place < len(values) else ""

    def bare(values: "Sequence[Measured]", place: int) -> str:
        return f"{values[place].value:.2f}" if place < len(values) else ""

    for place, bits in enumerate(found.entropy_bits):
        table.add_row(
            str(place), at(found.entropy, place), bare(found.entropy_right, place), bare(found.entropy_wrong, place),
            f"{bits:.2f}", at(found.gain, place - 1), at(found.targeted, place - 1),
        )  # fmt: skip
    return table


def lines_of(found: "Information") -> list[tuple[str, str]]:
    """What was measured, as a name and a value each; what was not is left out."""
    right, wrong = found.program_bias_right, found.program_bias_wrong
    lines = [
        ("method", found.method),
        ("thinkings followed", f"{found.followed:,}"),
        (
            "InfoBias of answers, -I(answer; gold)",
            f"{found.answers_bias:.2f} nats, n = {found.responses:,}, error at most {found.answers_bias_error:.2f}",
        ),
        ("InfoBias as programmed, mostly right", "" if right is None else f"{_one(right)}, n = {right.n:,}"),
        ("  mostly wrong problems", "" if wrong is None else f"{_one(wrong)}, n = {wrong.n:,}"),
    ]
    return [(name, value) for name, value in lines if value and (found.followed or name != "thinkings followed")]


def _one(value: "Measured") -> str:
    """A mean with half of its interval."""
    shown = f"{value.value:.2f}".replace("-0.00", "0.00")
    return shown if value.high is None else f"{shown} ± {value.high - value.value:.2f}"
