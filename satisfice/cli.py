"""The command line: parses, calls, prints. Everything it does can be done from Python with the same few calls."""

import asyncio
import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

# Loading weights draws a bar of its own, and advice meant for programmers, into ours.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from satisfice import __version__
from satisfice.trace import CONVENTIONS, Trace

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make small reasoning models stop thinking at the right point.",
)
lab_app = typer.Typer(no_args_is_help=True, help="The embedded tiny reasoner: train it, look at its habits.")
app.add_typer(lab_app, name="lab")
console = Console()
errors = Console(stderr=True)

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells expect it."""

Problems = Annotated[
    str | None,
    typer.Option(
        "--problems", "-p", help="JSONL file, lab:SPLIT, Hub data set or reasoning-gym:NAME. For lab: lab:test."
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option("--methods", "-m", help="One or more, as name:parameter=value. See `satisfice methods`."),
]
Counting = Annotated[str, typer.Option(help=f"Counting convention of cost: {', '.join(CONVENTIONS)}.")]
ThinkingOption = Annotated[
    str | None, typer.Option("--thinking-format", help="A family name or 'OPEN,CLOSE', where it is not detected.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU where there is one.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of the model; 1 is fastest for tiny ones.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.print(f"satisfice {__version__}")
        raise typer.Exit


# -- compare


@app.command()
def compare(
    model: Annotated[str, typer.Argument(help="lab, smollm2, a directory or a Hub id.")],
    problems: Problems = None,
    methods: Methods = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/MODEL-PROBLEMS.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each problem.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems at most.")] = None,
    seed: Annotated[int, typer.Option(help="Decides every random number of the run.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of one response at most.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 keeps all tokens.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Share of the largest probability.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Text after each question; by default the usual one for maths, none for lab.")
    ] = None,
    system: Annotated[str, typer.Option(help="System turn.")] = "",
    split: Annotated[str | None, typer.Option(help="Split of a Hub data set.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="Column mapping, as prompt=question.")] = None,
    grader: Annotated[str | None, typer.Option(help="math, numeric, exact or choice.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave malformed lines out and count them.")] = False,
    thinking_format: ThinkingOption = None,
    gguf_file: Annotated[str | None, typer.Option(help="GGUF file inside the model directory.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Device = None,
    threads: Threads = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Sequences that run at once at most.")] = 64,
    max_batch_tokens: Annotated[int | None, typer.Option(min=1, help="Bounds the memory of running sequences.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Problems under way at once.")] = None,
    counting: Counting = "retained",
) -> None:
    """Run methods over problems; print the table, write the report. Run it again to resume."""
    from satisfice.experiment import MATH_INSTRUCTION, Experiment, check, methods_from
    from satisfice.lab import DEMO_METHODS
    from satisfice.problems import load_problems
    from satisfice.run_folder import RunFolder

    problems = problems or ("lab:test" if model == "lab" else None)
    if problems is None:
        raise typer.BadParameter("say which problems, for example --problems gsm8k.jsonl", param_hint="--problems")
    spelled = methods or (list(DEMO_METHODS) if model == "lab" else ["plain", "temperature-scaling"])
    chosen = methods_from(spelled)
    columns = dict(_pair(text) for text in column) if column else None
    problem_set = load_problems(
        problems, limit=limit, split=split, columns=columns, grader=grader, skip_bad=skip_bad, seed=seed
    )
    for reason in problem_set.skipped:
        errors.print(f"skipped {reason}", style="yellow", highlight=False)

    engine = _load(
        model, thinking_format, gguf_file=gguf_file, dtype=dtype, device=device, threads=threads,
        max_batch=max_batch, max_batch_tokens=max_batch_tokens,
    )  # fmt: skip
    given = {
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, "max_tokens": max_tokens
    }  # fmt: skip
    sampling = replace(engine.default_sampling, **{name: value for name, value in given.items() if value is not None})
    if instruction is None:
        instruction = "" if problems.startswith("lab:") else MATH_INSTRUCTION
    experiment = Experiment(
        problem_set, chosen, sampling, samples, seed, instruction, system, concurrency or 2 * max_batch
    )
    check(engine, experiment)
    folder = out or Path("runs") / _slug(f"{model}-{problem_set.name}")
    command = shlex.join(["satisfice", *sys.argv[1:]])
    try:
        with RunFolder.create_or_open(folder, experiment.configuration(engine, command)) as run_folder:
            for warning in run_folder.warnings:
                errors.print(f"warning: {warning}", style="yellow", highlight=False)
            _run(engine, experiment, run_folder)
            _summarise(run_folder, counting)
    finally:
        engine.close()
    _print_summary(folder, counting)
    from satisfice.report import report as write_report

    page = write_report(folder, format="html", convention=counting)
    console.print(f"\nreport  {page}", highlight=False)


def _run(engine: Any, experiment: Any, run_folder: Any) -> None:
    """The run with a bar for each method; Ctrl-C leaves a folder that can be resumed."""
    from satisfice.experiment import Progress, run
    from satisfice.problems import GraderPool

    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=errors,
    )
    task: TaskID | None = None
    counts = {"traces": 0, "tokens": 0, "correct": 0, "errors": 0}

    def begin(method: str, total: int, done: int) -> None:
        nonlocal task
        counts.update(dict.fromkeys(counts, 0))
        task = bars.add_task(method, total=total, completed=done, rates="")

    def advance(trace: Trace) -> None:
        assert task is not None
        counts["traces"] += 1
        counts["tokens"] += trace.cost.total_tokens
        counts["correct"] += trace.correct
        counts["errors"] += trace.error is not None
        elapsed = bars.tasks[task].elapsed or 1e-9
        rates = (
            f"{counts['traces'] / elapsed:5.1f}/s {counts['tokens'] / elapsed:6.0f} tok/s "
            f"{counts['correct'] / counts['traces']:4.0%} right"
        )
        if counts["errors"]:
            rates += f" [red]{counts['errors']} errors[/red]"
        bars.update(task, advance=1, rates=rates)

    try:
        with bars, GraderPool() as graders:
            asyncio.run(run(engine, experiment, run_folder, graders, Progress(begin, advance)))
    except KeyboardInterrupt:
        errors.print(
            f"\ninterrupted: {len(run_folder.done())} finished traces are in {run_folder.path}; "
            "run the same command again to go on",
            style="yellow",
            highlight=False,
        )
        raise typer.Exit(INTERRUPTED) from None


def _summarise(run_folder: Any, counting: str) -> None:
    from satisfice.measurement import summarise

    traces = {method: run_folder.traces(method) for method in run_folder.config["methods"]}
    run_folder.write_summary(summarise(run_folder.config, traces, counting).model_dump())


@app.command()
def summary(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    counting: Counting = "retained",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Print the table of a run, finished or not."""
    if as_json:
        from satisfice.measurement import summarise
        from satisfice.run_folder import read_run

        data = read_run(run)
        print(summarise(data.config, data.traces, counting).model_dump_json(indent=2))
    else:
        _print_summary(run, counting)


def _print_summary(folder: Path, counting: str) -> None:
    from satisfice.measurement import summarise
    from satisfice.report import headline
    from satisfice.run_folder import read_run

    data = read_run(folder)
    result = summarise(data.config, data.traces, counting)
    wide = console.width >= 130
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("method", overflow="fold")
    for name in ("n", "accuracy (95 %)", "thinking", "saving (95 %)", "cut off"):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        for name in ("total", "right/wrong"):
            table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        cells = [
            "*" if row.pareto else "", row.method, str(row.n),
            f"{_percent(row.accuracy)} {_range(row.accuracy_low, row.accuracy_high)}", _number(row.thinking_tokens),
            f"{_percent(row.token_saving)} {_range(row.token_saving_low, row.token_saving_high)}",
            _percent(row.truncated_share),
        ]  # fmt: skip
        if wide:
            lengths = f"{_number(row.thinking_tokens_correct)}/{_number(row.thinking_tokens_wrong)}"
            cells.extend([_number(row.total_tokens), lengths])
        table.add_row(*cells)
    console.print()
    console.print(table)
    console.print(
        f"[dim]shares in %, lengths in tokens; * on the Pareto front of accuracy and {counting} tokens; saving: "
        f"{counting} tokens against {result.baseline}, paired"
        + ("; right/wrong: mean thinking of right and wrong responses" if wide else "")
        + "[/dim]",
        highlight=False,
    )
    for note in result.notes:
        console.print(f"[yellow]note: {note}[/yellow]", highlight=False)
    console.print(f"\n{headline(result)}", highlight=False)


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    format: Annotated[str, typer.Option(help="html, md, csv, json, png or svg.")] = "html",
    out: Annotated[Path | None, typer.Option(help="File to write; by default inside the run folder.")] = None,
    counting: Counting = "retained",
) -> None:
    """Write a run's report: one self-contained page, a table or the picture."""
    from satisfice.report import report as write_report

    console.print(str(write_report(run, format=format, out=out, convention=counting)), highlight=False)


# -- solve


@app.command()
def solve(
    model: Annotated[str, typer.Argument(help="lab, smollm2, a directory or a Hub id.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    method: Annotated[str, typer.Option("--method", "-m", help="See `satisfice methods`.")] = "plain",
    seed: Annotated[int, typer.Option(help="Decides every random number.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option(min=0)] = None,
    system: Annotated[str, typer.Option(help="System turn.")] = "",
    thinking_format: ThinkingOption = None,
    gguf_file: Annotated[str | None, typer.Option(help="GGUF file inside the model directory.")] = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Solve one question: thinking dimmed, answer bright, the cost at the end."""
    from satisfice.engines.base import require
    from satisfice.intervention import parse_method
    from satisfice.problems import Problem
    from satisfice.thinking import Phase

    chosen = parse_method(method)
    engine = _load(model, thinking_format, gguf_file=gguf_file, device=device, threads=threads)
    require(engine, chosen.needs, chosen.name)
    given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    sampling = replace(engine.default_sampling, **{name: value for name, value in given.items() if value is not None})

    def watch(phase: Phase, text: str) -> None:
        console.print(Text(_printable(text), style="bold" if phase is Phase.ANSWER else "dim"), end="")

    try:
        problem = Problem("question", question, "", system=system)
        trace = asyncio.run(chosen.solve(engine, problem, sampling, watch=watch))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        engine.close()
    cost = trace.cost
    thrown_away = cost.total_tokens - cost.retained_tokens
    console.print(
        f"\n\n[dim]{cost.thinking_tokens} thinking + {cost.answer_tokens} answer tokens"
        + (f" + {thrown_away} thrown away" if thrown_away else "")
        + f", {cost.forward_passes} forward passes, {cost.seconds:.2f} s; thinking ended: {trace.stop}"
        + ("" if trace.finished else "; cut off by the token limit")
        + "[/dim]",
        highlight=False,
    )  # fmt: skip


# -- methods


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List every method with its paper, parameters, defaults and needs."""
    from satisfice.intervention import METHODS, describe

    described = [describe(kind) for kind in METHODS.values()]
    if as_json:
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return
    for entry in described:
        console.print(f"[bold]{entry['name']}[/bold]  {entry['summary']}", highlight=False)
        facts = [f"arXiv {entry['paper']}"] if entry["paper"] else ["baseline"]
        if entry["needs"]:
            facts.append(f"needs {', '.join(entry['needs'])}")
        console.print(f"    [dim]{'; '.join(facts)}[/dim]", highlight=False)
        for parameter in entry["parameters"]:
            default = "none" if parameter["default"] is None else json.dumps(parameter["default"], ensure_ascii=False)
            head = Text(f"    {parameter['name']}", style="cyan")
            head.append(f" ({parameter['type']}, default {default})", style="dim")
            console.print(head, highlight=False)
            console.print(Text(f"        {parameter['meaning']}"), highlight=False, soft_wrap=False)
        console.print()


# -- lab


@lab_app.command("train")
def lab_train(
    recipe: Annotated[Path, typer.Option(help="YAML; see recipes/lab/sft.yaml.")],
    out: Annotated[Path, typer.Option(help="Directory of the trained model.")],
) -> None:
    """Train the lab's reasoner from scratch. Run it again to resume."""
    _require_train()
    from satisfice.lab.train import load_recipe, train

    console.print(f"trained {train(load_recipe(recipe), out)}", highlight=False)


@lab_app.command("findings")
def lab_findings(
    model: Annotated[str, typer.Argument(help="lab, or the directory of a model trained with `lab train`.")] = "lab",
    problems: Problems = "lab:test",
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option(min=0)] = None,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure the four findings about verbose reasoners on a lab model."""
    from satisfice.lab.findings import measure
    from satisfice.problems import load_problems

    engine = _load(model, None)
    sampling = engine.default_sampling
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    assert problems is not None
    try:
        findings = asyncio.run(measure(engine, load_problems(problems, limit=limit), sampling, seed))
    finally:
        engine.close()
    print(
        json.dumps(findings, indent=2) if as_json else "\n".join(f"{key}: {value}" for key, value in findings.items())
    )


# -- helpers of printing and parsing


def _load(model: str, thinking_format: str | None, **options: Any) -> Any:
    from satisfice.engines.transformers import TransformersEngine
    from satisfice.thinking import ThinkingFormat

    thinking = ThinkingFormat.parse(thinking_format) if thinking_format else None
    with errors.status(f"loading {model}"):
        return TransformersEngine.load(
            model, thinking=thinking, **{name: value for name, value in options.items() if value is not None}
        )


def _require_train() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError:
        raise ValueError("training needs the train extra: pip install 'satisfice[train]'") from None


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--column {text!r} must look like prompt=question")
    return name.strip(), value.strip()


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.").lower()


def _printable(text: str) -> str:
    """Text without control characters that could move the cursor or recolour the terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"({100 * low:.1f}…{100 * high:.1f})"


def _spread(arguments: Sequence[str]) -> list[str]:
    """`--methods A B C` as `--methods A --methods B --methods C`, which is what the parser reads."""
    spread: list[str] = []
    taking = False
    for argument in arguments:
        if argument in ("--methods", "-m"):
            taking = True
            continue
        if argument.startswith("-"):
            taking = False
        spread.extend(["--methods", argument] if taking else [argument])
    return spread


def main() -> None:
    """Entry point: every expected mistake becomes one sentence and a non-zero exit."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    arguments = sys.argv[1:]
    if arguments[:1] == ["compare"]:
        arguments = _spread(arguments)
    try:
        app(args=arguments)
    except (ValueError, OSError) as error:
        # Everything this package refuses is a ValueError with a sentence for the user; files are the other half.
        errors.print(Text(f"satisfice: {error}", style="red"), highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
