"""The command line: parses, calls, prints. Everything it does can be done from Python with the same few calls."""

import asyncio
import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

# Loading weights draws a bar of its own, and advice meant for programmers, into ours.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import typer
from rich.console import Console
from rich.padding import Padding
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

Model = Annotated[
    str, typer.Argument(help="lab, smollm2, a directory or a Hub id; with --engine openai its name at the server.")
]
EngineName = Annotated[str, typer.Option("--engine", help="transformers, vllm or openai, which asks a server.")]
BaseUrl = Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server: http://HOST:PORT/v1.")]
Tokenizer = Annotated[
    str | None, typer.Option(help="Directory or Hub id of the served model's tokenizer; by default the model's name.")
]
ApiKeyEnv = Annotated[
    str | None, typer.Option(help="Environment variable that holds the server's key; by default OPENAI_API_KEY.")
]
RequestsPerMinute = Annotated[float | None, typer.Option(min=0.1, help="Requests that a server is sent at most.")]
Problems = Annotated[
    str | None,
    typer.Option(
        "--problems", "-p", help="JSONL file, lab:SPLIT, Hub data set or reasoning-gym:NAME. For lab: lab:test."
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option("--problems", "-p", help="Problems that you will not report on. For lab: lab:calibration."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Problems at most.")]
Split = Annotated[str | None, typer.Option(help="Split of a Hub data set.")]
Column = Annotated[list[str] | None, typer.Option(help="Column mapping, as prompt=question.")]
Grader = Annotated[str | None, typer.Option(help="math, numeric, exact or choice.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave malformed lines out and count them.")]
Methods = Annotated[
    list[str] | None,
    typer.Option("--methods", "-m", help="One or more, as name:parameter=value, or all. See `satisfice methods`."),
]
Seed = Annotated[int, typer.Option(help="Decides every random number.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens of one response at most.")]
Temperature = Annotated[float | None, typer.Option(min=0, help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus.")]
TopK = Annotated[int | None, typer.Option(help="0 keeps all tokens.")]
MinP = Annotated[float | None, typer.Option(help="Share of the largest probability.")]
Instruction = Annotated[
    str | None, typer.Option(help="Text after each question; by default the usual one for maths, none for lab.")
]
System = Annotated[str, typer.Option(help="System turn.")]
Counting = Annotated[str, typer.Option(help=f"Counting convention of cost: {', '.join(CONVENTIONS)}.")]
ThinkingOption = Annotated[
    str | None, typer.Option("--thinking-format", help="A family name or 'OPEN,CLOSE', where it is not detected.")
]
Companions = Annotated[
    list[str] | None,
    typer.Option("--companion", help="NAME=MODEL: a second model, for cothink:outliner=NAME; give it again for more."),
]
GgufFile = Annotated[str | None, typer.Option(help="GGUF file inside the model directory.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16; auto unless set.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU where there is one.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of the model; 1 is fastest for tiny ones.")]
Baseline = Annotated[
    Path | None,
    typer.Option(help="Another run folder, of another model on the same problems, to compare with."),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.print(f"satisfice {__version__}")
        raise typer.Exit


# -- compare


@app.command()
def compare(
    model: Model,
    problems: Problems = None,
    methods: Methods = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/MODEL-PROBLEMS.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each problem.")] = 1,
    limit: Limit = None,
    seed: Seed = 0,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    instruction: Instruction = None,
    system: System = "",
    split: Split = None,
    column: Column = None,
    grader: Grader = None,
    skip_bad: SkipBad = False,
    thinking_format: ThinkingOption = None,
    companion: Companions = None,
    engine_name: Annotated[
        str, typer.Option("--engine", help="transformers, vllm, openai, which asks a server, or ray: many workers.")
    ] = "transformers",
    workers: Annotated[int | None, typer.Option(min=1, help="With --engine ray: how many; 2 unless set.")] = None,
    worker_engine: Annotated[
        str | None, typer.Option(help="With --engine ray: what each worker holds; transformers, vllm or openai.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="With --engine ray: 1 where there are any, unless set.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; RAY_ADDRESS unless set, else this machine alone.")
    ] = None,
    base_url: BaseUrl = None,
    tokenizer: Tokenizer = None,
    api_key_env: ApiKeyEnv = None,
    requests_per_minute: RequestsPerMinute = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Sequences that run at once at most.")] = 64,
    max_batch_tokens: Annotated[int | None, typer.Option(min=1, help="Bounds the memory of running sequences.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Problems under way at once; in each worker.")] = None,
    counting: Counting = "retained",
    baseline: Baseline = None,
) -> None:
    """Run methods over problems; print the table, write the report. Run it again to resume."""
    from satisfice.experiment import ALL, Experiment, check, every_method, methods_from
    from satisfice.lab import DEMO_METHODS, SHIPPED
    from satisfice.problems.problem import usual_instruction
    from satisfice.run_folder import RunFolder, against, read_run

    problems = problems or ("lab:test" if model in SHIPPED else None)
    spelled = methods or list(DEMO_METHODS.get(model, ("plain", "temperature-scaling")))
    companions = _companions(companion, methods_from(spelled))
    problem_set = _problem_set(problems, limit, split, column, grader, skip_bad, seed)
    server = {"base_url": base_url, "tokenizer": tokenizer, "api_key_env": api_key_env}
    where = {
        "workers": workers, "worker_engine": worker_engine, "gpus_per_worker": gpus_per_worker,
        "ray_address": ray_address,
    }  # fmt: skip
    with _opened_to_run(
        model, thinking_format, companions, engine_name, **server, requests_per_minute=requests_per_minute,
        gguf_file=gguf_file, dtype=dtype, device=device, threads=threads, max_batch=max_batch,
        max_batch_tokens=max_batch_tokens, **where,
    ) as (engine, run):  # fmt: skip
        every, left_out = every_method(model, engine)
        if ALL in spelled and left_out:
            errors.print(f"left out of all: {'; '.join(left_out)}", style="yellow", highlight=False, soft_wrap=True)
        sampling = _sampling(
            engine, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, max_tokens=max_tokens
        )
        experiment = Experiment(
            problem_set, methods_from(spelled, every), sampling, samples, seed,
            usual_instruction(problem_set.name) if instruction is None else instruction, system,
            concurrency or 2 * max_batch,
        )  # fmt: skip
        check(engine, experiment)
        folder = out or Path("runs") / _slug(f"{model}-{problem_set.name}")
        command = shlex.join(["satisfice", *sys.argv[1:]])
        with RunFolder.create_or_open(folder, experiment.configuration(engine, command)) as run_folder:
            for warning in run_folder.warnings:
                errors.print(f"warning: {warning}", style="yellow", highlight=False)
            if baseline is not None:
                against(read_run(folder), read_run(baseline))  # What cannot be paired is refused before it is run.
            _run(run, experiment, run_folder)
            _summarise(run_folder, counting)
    _print_summary(folder, counting, baseline)
    from satisfice.report import report as write_report

    page = write_report(folder, format="html", convention=counting, baseline=baseline)
    console.print(f"\nreport  {page}", highlight=False)


def _run(run: Any, experiment: Any, run_folder: Any) -> None:
    """The run with a bar for each method; Ctrl-C leaves a folder that can be resumed."""
    from satisfice.problems import GraderPool

    try:
        with _bars() as progress, GraderPool() as graders:
            asyncio.run(run(experiment, run_folder, graders, progress))
    except KeyboardInterrupt:
        errors.print(
            f"\ninterrupted: {len(run_folder.done())} finished traces are in {run_folder.path}; "
            "run the same command again to go on",
            style="yellow",
            highlight=False,
        )
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _bars() -> Iterator[Any]:
    """The progress of an experiment, drawn as a bar for each method."""
    from satisfice.experiment import Progress

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
    tasks: dict[str, tuple[TaskID, Counter[str]]] = {}

    def begin(method: str, total: int, done: int) -> None:
        tasks[method] = bars.add_task(method, total=total, completed=done, rates=""), Counter()

    def advance(trace: Trace) -> None:
        # Calibration begins what it measures under names of its own, one after another.
        task, counts = tasks.get(trace.method) or tasks[next(reversed(tasks))]
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

    with bars:
        yield Progress(begin, advance)


def _summarise(run_folder: Any, counting: str) -> None:
    from satisfice.measurement import summarise

    traces = {method: run_folder.traces(method) for method in run_folder.config["methods"]}
    run_folder.write_summary(summarise(run_folder.config, traces, counting).model_dump())


@app.command()
def summary(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    counting: Counting = "retained",
    baseline: Baseline = None,
    as_json: Json = False,
) -> None:
    """Print the table of a run, finished or not."""
    if as_json:
        print(_summary_of(run, counting, baseline).model_dump_json(indent=2))
    else:
        _print_summary(run, counting, baseline)


def _summary_of(folder: Path, counting: str, baseline: Path | None) -> Any:
    from satisfice.measurement import summarise
    from satisfice.run_folder import against, read_run

    run = read_run(folder)
    if baseline is not None:
        run = against(run, read_run(baseline))
    return summarise(run.config, run.traces, counting)


def _print_summary(folder: Path, counting: str, baseline: Path | None = None) -> None:
    from satisfice.report import headline

    result = _summary_of(folder, counting, baseline)
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
    baseline: Baseline = None,
) -> None:
    """Write a run's report: one self-contained page, a table or the picture."""
    from satisfice.report import report as write_report

    console.print(
        str(write_report(run, format=format, out=out, convention=counting, baseline=baseline)), highlight=False
    )


# -- solve


@app.command()
def solve(
    model: Model,
    question: Annotated[str, typer.Argument(help="The question.")],
    method: Annotated[str, typer.Option("--method", "-m", help="See `satisfice methods`.")] = "plain",
    seed: Seed = 0,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    system: System = "",
    thinking_format: ThinkingOption = None,
    companion: Companions = None,
    engine_name: EngineName = "transformers",
    base_url: BaseUrl = None,
    tokenizer: Tokenizer = None,
    api_key_env: ApiKeyEnv = None,
    requests_per_minute: RequestsPerMinute = None,
    gguf_file: GgufFile = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Solve one question: thinking dimmed, answer bright, the cost at the end."""
    from satisfice.intervention import parse_method
    from satisfice.problems import Problem
    from satisfice.thinking import Phase

    chosen = parse_method(method)
    companions = _companions(companion, [chosen])

    def watch(phase: Phase, text: str) -> None:
        console.print(Text(_printable(text), style="bold" if phase is Phase.ANSWER else "dim"), end="")

    server = {"base_url": base_url, "tokenizer": tokenizer, "api_key_env": api_key_env}
    with _opened(
        model, thinking_format, companions, engine_name, **server, requests_per_minute=requests_per_minute,
        gguf_file=gguf_file, device=device, threads=threads,
    ) as engine:  # fmt: skip
        chosen.check(engine)
        sampling = _sampling(engine, temperature=temperature, max_tokens=max_tokens, seed=seed)
        problem = Problem("question", question, "", system=system)
        try:
            trace = asyncio.run(chosen.solve(engine, problem, sampling, watch=watch))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
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


# -- serve


@app.command()
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    method: Annotated[str, typer.Option("--method", "-m", help="For requests that name none.")] = "plain",
    effort: Annotated[
        list[str] | None,
        typer.Option(help="NAME=METHOD, or NAME=FILE of `calibrate --json`: what a reasoning_effort stands for."),
    ] = None,
    served_name: Annotated[
        str | None, typer.Option(help="What clients call the model; as given here unless set.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of one response at most.")] = None,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Requests answered at once.")] = 64,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that may wait besides; others get 429.")] = 256,
    max_breadth: Annotated[int, typer.Option(min=1, help="Sequences that one request may write at once.")] = 256,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of one request.")] = 1 << 20,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request, waiting included.")] = 600.0,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running requests have after SIGTERM.")] = 30.0,
    thinking_format: ThinkingOption = None,
    companion: Companions = None,
    engine_name: EngineName = "transformers",
    base_url: BaseUrl = None,
    tokenizer: Tokenizer = None,
    api_key_env: ApiKeyEnv = None,
    requests_per_minute: RequestsPerMinute = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Sequences that run at once at most.")] = 64,
    max_batch_tokens: Annotated[int | None, typer.Option(min=1, help="Bounds the memory of running sequences.")] = None,
) -> None:
    """Serve a model over HTTP as OpenAI's API, every method included. API keys: SATISFICE_API_KEY=KEY[,KEY...]."""
    _require_serve()
    from satisfice.intervention import parse_method
    from satisfice.server.app import Settings, efforts_from
    from satisfice.server.process import serve as run_server

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("satisfice.server").setLevel(logging.INFO)
    given = dict(_pair("--effort", text, "low=temperature-scaling:t=0.7") for text in effort or [])
    keys = tuple(key.strip() for key in os.environ.get("SATISFICE_API_KEY", "").split(",") if key.strip())
    upstream = {"base_url": base_url, "tokenizer": tokenizer, "api_key_env": api_key_env}
    with _opened(
        model, thinking_format, _companions(companion, None), engine_name, **upstream,
        requests_per_minute=requests_per_minute, gguf_file=gguf_file, dtype=dtype, device=device, threads=threads,
        max_batch=max_batch, max_batch_tokens=max_batch_tokens,
    ) as engine:  # fmt: skip
        settings = Settings(
            served_name or model, parse_method(method), efforts_from(given, engine.levels), keys, max_concurrency,
            max_queue, max_tokens or min(engine.default_sampling.max_tokens, engine.context_length), max_breadth,
            max_body, timeout,
        )  # fmt: skip
        run_server(engine, settings, host, port, grace)


# -- calibrate


@app.command()
def calibrate(
    model: Model,
    method: Annotated[
        str, typer.Option("--method", "-m", help="entrocut (finds tau) or temperature-scaling (finds t), without it.")
    ],
    problems: HeldOut = None,
    loss: Annotated[float, typer.Option(min=-1, max=1, help="Accuracy that may be lost; 0.01 is one point.")] = 0.01,
    limit: Limit = 300,
    seed: Seed = 0,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    instruction: Instruction = None,
    system: System = "",
    split: Split = None,
    column: Column = None,
    grader: Grader = None,
    skip_bad: SkipBad = False,
    thinking_format: ThinkingOption = None,
    engine_name: EngineName = "transformers",
    base_url: BaseUrl = None,
    tokenizer: Tokenizer = None,
    api_key_env: ApiKeyEnv = None,
    requests_per_minute: RequestsPerMinute = None,
    gguf_file: GgufFile = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the parameter of a method that saves most for a given loss, on problems that you will not report on."""
    from satisfice.calibration import calibrate as find
    from satisfice.calibration import uncalibrated
    from satisfice.experiment import Experiment
    from satisfice.lab import SHIPPED
    from satisfice.problems import GraderPool
    from satisfice.problems.problem import usual_instruction

    open_ended = uncalibrated(method)
    problems = problems or ("lab:calibration" if model in SHIPPED else None)
    problem_set = _problem_set(problems, limit, split, column, grader, skip_bad, seed)
    server = {"base_url": base_url, "tokenizer": tokenizer, "api_key_env": api_key_env}
    with _opened(
        model, thinking_format, {}, engine_name, **server, requests_per_minute=requests_per_minute,
        gguf_file=gguf_file, device=device, threads=threads,
    ) as engine:  # fmt: skip
        sampling = _sampling(
            engine, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, max_tokens=max_tokens
        )
        instruction = usual_instruction(problem_set.name) if instruction is None else instruction
        experiment = Experiment(problem_set, (), sampling, seed=seed, instruction=instruction, system=system)
        try:
            with _bars() as progress, GraderPool() as graders:
                found = asyncio.run(find(open_ended, engine, experiment, graders, loss, progress))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps({"model": engine.name, "problems": problem_set.name, **asdict(found)}, indent=2))
        return
    kept = "" if found.thinking_kept is None else f", {found.thinking_kept:.1%} of {found.baseline_thinking_tokens:.1f}"
    for line in (
        f"{found.parameter} = {found.value:.12g}",
        f"accuracy   {_percent(found.accuracy)} % {_range(found.accuracy_low, found.accuracy_high)}; "
        f"{found.baseline}: {_percent(found.baseline_accuracy)} %, of which {_percent(loss)} might be lost",
        f"thinking   {_number(found.thinking_tokens)} tokens{kept}",
        f"on {found.n} problems of {problem_set.name}, which it was chosen on: report on others, where it may do worse",
        f"\nfor compare   --methods {shlex.join(['plain', found.method])}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


# -- methods


@app.command()
def methods(as_json: Json = False) -> None:
    """List every method with its paper, parameters, defaults and needs."""
    from satisfice.intervention import METHODS, describe

    described = [describe(kind) for kind in METHODS.values()]
    if as_json:
        print(json.dumps(described, indent=2, ensure_ascii=False))
    else:
        _print_described(described)


def _print_described(described: Sequence[dict[str, Any]]) -> None:
    """Methods or objectives with their papers and parameters."""
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
            console.print(Padding(Text(parameter["meaning"]), (0, 0, 0, 8)), highlight=False)
        console.print()


# -- training


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML; see recipes/lab/tldr.yaml.")],
    out: Annotated[Path, typer.Option(help="Directory of the trained model.")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value on top of the recipe, as objective.price_short=0.7.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Two steps with a random tiny model of the same architecture.")
    ] = False,
) -> None:
    """Train a short or controllable model with a length-aware objective. Run it again to resume."""
    _require_train()
    from satisfice.reinforcement.recipe import load_recipe
    from satisfice.reinforcement.train import train as carry_out

    plan = load_recipe(recipe, change or [])
    main_process = int(os.environ.get("RANK", 0)) == 0
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
        disable=not main_process,
    )
    task = bars.add_task(str(plan.objective.get("name")), total=2 if dry_run else plan.steps, rates="loading")

    def show(step: int, last: int, logs: dict[str, float]) -> None:
        if "reward" not in logs:
            if "eval_accuracy" in logs:
                bars.console.print(f"step {step}: {logs['eval_accuracy']:.1%} right on held-out problems")
            return
        levels = [logs.get(f"levels/{level}/tokens") for level in ("short", "medium", "long")]
        rates = f"{logs['accuracy']:4.0%} right {logs['completions/mean_length']:5.0f} tokens"
        if any(levels):
            rates += " (" + " < ".join("  ?" if tokens is None else f"{tokens:3.0f}" for tokens in levels) + ")"
        bars.update(task, completed=step, total=last, rates=rates)

    def say(sentence: str) -> None:
        # A random model gives every reason for alarm.
        if main_process and not dry_run:
            bars.console.print(f"warning: {sentence}", style="yellow", highlight=False)

    try:
        with bars:
            done = carry_out(plan, out, dry_run=dry_run, show=show, say=say)
    except KeyboardInterrupt:
        errors.print(
            f"\ninterrupted: run the same command again to go on from the last checkpoint in {out}",
            style="yellow",
            highlight=False,
        )
        raise typer.Exit(INTERRUPTED) from None
    if main_process:
        console.print("the recipe runs" if dry_run else f"trained {done}", highlight=False)


@app.command("evaluate-levels")
def evaluate_levels(
    model: Annotated[str, typer.Argument(help="Directory or Hub id of a model trained on levels.")],
    problems: Problems = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/MODEL-PROBLEMS-levels.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each problem.")] = 1,
    limit: Limit = None,
    seed: Seed = 0,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    device: Device = None,
    threads: Threads = None,
    counting: Counting = "retained",
) -> None:
    """Ask a trained model for each of its levels and for none; say whether they are in order."""
    folder = out or Path("runs") / _slug(f"{Path(model).name}-{problems}-levels")
    spelled = ["plain", *(f"tldr:level={level}" for level in ("short", "medium", "long"))]
    compare(
        model, problems, spelled, folder, samples, limit, seed, max_tokens, temperature, device=device,
        threads=threads, counting=counting,
    )  # fmt: skip
    rows = {row.method: row for row in _summary_of(folder, counting, None).rows}
    lengths = [rows[method].thinking_tokens or 0.0 for method in spelled[1:]]
    said = ", ".join(f"{name} {length:.1f}" for name, length in zip(("short", "medium", "long"), lengths, strict=True))
    ordered = lengths[0] < lengths[1] < lengths[2]
    console.print(f"levels {'in order' if ordered else 'NOT in order'}: {said} thinking tokens", highlight=False)
    if not ordered:
        raise typer.Exit(1)


@app.command()
def objectives(as_json: Json = False) -> None:
    """List every training objective with its paper, parameters, defaults and needs."""
    from satisfice.reinforcement import OBJECTIVES, describe_objective

    described = [describe_objective(kind) for kind in OBJECTIVES.values()]
    if as_json:
        print(json.dumps(described, indent=2, ensure_ascii=False))
    else:
        _print_described(described)


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
    as_json: Json = False,
) -> None:
    """Measure the four findings about verbose reasoners on a lab model."""
    from satisfice.lab.findings import measure
    from satisfice.problems import load_problems

    assert problems is not None
    with _opened(model, None, {}) as engine:
        sampling = _sampling(engine, temperature=temperature)
        findings = asyncio.run(measure(engine, load_problems(problems, limit=limit), sampling, seed))
    print(
        json.dumps(findings, indent=2) if as_json else "\n".join(f"{key}: {value}" for key, value in findings.items())
    )


# -- helpers of printing and parsing


@contextmanager
def _opened(
    model: str,
    thinking_format: str | None,
    companions: dict[str, str],
    engine_name: str = "transformers",
    **options: Any,
) -> Iterator[Any]:
    """The engine of a model with its companions attached; all are closed at the end, whatever happens."""
    from satisfice.engines.loading import opened_engine

    with ExitStack() as opened:
        with errors.status(f"loading {model}"):
            engine = opened.enter_context(
                opened_engine(engine_name, model, thinking=_thinking(thinking_format), companions=companions, **options)
            )
        yield engine


@contextmanager
def _opened_to_run(
    model: str, thinking_format: str | None, companions: dict[str, str], engine_name: str, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """An engine, and what runs an experiment on it: in this process, or on the workers that hold it."""
    if engine_name != "ray":
        from satisfice.experiment import run

        with _opened(model, thinking_format, companions, engine_name, **options) as engine:
            yield engine, partial(run, engine)
        return
    from satisfice.scale_out import ray_workers

    given = {name: value for name, value in options.items() if value is not None}
    with ExitStack() as opened:
        with errors.status(f"starting Ray; a worker loads {model}"):
            workers = opened.enter_context(
                ray_workers(model, thinking=_thinking(thinking_format), companions=companions, **given)
            )
        yield workers.engine, workers.run


def _thinking(spelled: str | None) -> Any:
    from satisfice.thinking import ThinkingFormat

    return ThinkingFormat.parse(spelled) if spelled else None


def _require_train() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError:
        raise ValueError("training needs the train extra: pip install 'satisfice[train]'") from None


def _require_serve() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ValueError("serving needs the serve extra: pip install 'satisfice[serve]'") from None


def _problem_set(
    problems: str | None,
    limit: int | None,
    split: str | None,
    column: list[str] | None,
    grader: str | None,
    skip_bad: bool,
    seed: int,
) -> Any:
    from satisfice.problems import load_problems

    if problems is None:
        raise typer.BadParameter("say which problems, for example --problems gsm8k.jsonl", param_hint="--problems")
    columns = dict(_pair("--column", text, "prompt=question") for text in column) if column else None
    loaded = load_problems(
        problems, limit=limit, split=split, columns=columns, grader=grader, skip_bad=skip_bad, seed=seed
    )
    for reason in loaded.skipped:
        errors.print(f"skipped {reason}", style="yellow", highlight=False)
    return loaded


def _sampling(engine: Any, **given: Any) -> Any:
    """What the model's authors recommend, with what the user says in its place."""
    return replace(engine.default_sampling, **{name: value for name, value in given.items() if value is not None})


def _companions(given: list[str] | None, methods: Sequence[Any] | None) -> dict[str, str]:
    """Models by the names of --companion, each of which some method asks for; None where that is not known yet."""
    companions: dict[str, str] = {}
    for text in given or []:
        name, model = _pair("--companion", text, "instruct=Qwen/Qwen2.5-1.5B-Instruct")
        if name in companions:
            raise ValueError(f"--companion {name} is given twice: give the second one another name")
        if methods is not None and not any(
            re.search(rf'="?{re.escape(name)}"?([,+]|$)', str(method)) for method in methods
        ):
            raise ValueError(f"no method asks for the companion {name!r}: use it as in cothink:outliner={name}")
        companions[name] = model
    return companions


def _pair(option: str, text: str, example: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise ValueError(f"{option} {text!r} must look like {example}")
    return name, value


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
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # warns of the missing time limit, which is ours
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
