"""`satisfice curate`."""

import asyncio
import json
import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from satisfice.cli import completion
from satisfice.cli.console import FAILED, INTERRUPTED, complain, console
from satisfice.cli.listing import print_described
from satisfice.cli.options import ENGINE, OUTPUT, EngineOptions, Json, Seed
from satisfice.cli.progress import drawn

DATA = "Data"


@dataclass(frozen=True)
class CuratorOptions(EngineOptions):
    """The model of a curation that works with one; most do not."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            rich_help_panel=ENGINE,
            help="For curations that work with a model: the one that wrote the traces or, to score them, any.",
        ),
    ] = ""


def curate(
    *,
    curation: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD",
            autocompletion=completion.curations,
            help="As name:parameter=value; --list shows them all.",
        ),
    ] = None,
    traces: Annotated[
        list[Path] | None,
        typer.Option(rich_help_panel=DATA, help="Run folder; give it again for more of the same model."),
    ] = None,
    out: Annotated[Path | None, typer.Option(rich_help_panel=DATA, help="Folder of the data.")] = None,
    of_method: Annotated[
        str | None,
        typer.Option(rich_help_panel=DATA, help="Take this method's traces; those of plain, or of the only one."),
    ] = None,
    data_format: Annotated[
        str, typer.Option("--format", rich_help_panel=DATA, help="jsonl, or datasets: an Arrow data set beside it.")
    ] = "jsonl",
    seed: Seed = 0,
    engine: CuratorOptions,
    listed: Annotated[bool, typer.Option("--list", rich_help_panel=OUTPUT, help="List every curation.")] = False,
    as_json: Json = False,
) -> None:
    """Make training data of sampled traces, with a card that says what was kept and why the rest was not.

    Example: satisfice curate shortest-correct --traces runs/samples --out data/shortest
    """
    from satisfice.supervision import CURATIONS, curation_named, describe_curation, parse_curation

    if listed:
        kinds = [curation_named(curation.partition(":")[0])] if curation else list(CURATIONS.values())
        print_described([describe_curation(kind) for kind in kinds], as_json)
        return
    if curation is None or not traces or out is None:
        raise ValueError("say what to make of which traces: satisfice curate METHOD --traces DIR --out DATA, or --list")
    if data_format not in ("jsonl", "datasets"):
        raise ValueError(f"--format is {data_format!r}; it must be jsonl or datasets")
    if data_format == "datasets":
        from satisfice.cli.train import require_train

        require_train()
    made = parse_curation(curation)

    from satisfice.problems import GraderPool
    from satisfice.report.curation import write_lengths
    from satisfice.runs.curation import DATA as ROWS
    from satisfice.runs.curation import PICTURE, Pool, check_curation
    from satisfice.runs.curation import curate as carry_out

    pool = Pool(traces, of_method, logprobs=made.reads_logprobs)
    command = shlex.join(["satisfice", *sys.argv[1:]])
    with ExitStack() as stack:
        opened = None
        if made.needs_engine and engine.model:
            opened = stack.enter_context(engine.opened(None))
        check_curation(made, pool, opened)
        bars = stack.enter_context(drawn())
        task = bars.add_task(made.name, total=len(pool), rates="")
        graders = stack.enter_context(GraderPool())
        try:
            done = asyncio.run(
                carry_out(
                    made, pool, out, engine=opened, graders=graders, seed=seed, command=command,
                    advance=lambda problems: bars.update(task, advance=problems),
                )
            )  # fmt: skip
        except KeyboardInterrupt:
            kept = "run the same command again to go on" if opened else f"nothing was written to {out}"
            complain(f"\ninterrupted: {kept}")
            raise typer.Exit(INTERRUPTED) from None
    write_lengths(done.before, done.after, out / PICTURE)
    if data_format == "datasets":
        from satisfice.training.rows import write_arrow

        write_arrow(out / ROWS, out / "dataset")
    _print_card(done.card, out, as_json)
    if done.failed:
        complain(f"satisfice: the engine could not be had for {done.failed} problems, which are dropped", style="red")
        raise typer.Exit(FAILED)


def _print_card(card: dict[str, object], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(card, indent=2, ensure_ascii=False))
        return
    traces, problems, tokens, dropped = (card[key] for key in ("traces", "problems", "tokens", "dropped"))
    assert isinstance(traces, dict)
    assert isinstance(problems, dict)
    assert isinstance(tokens, dict)
    assert isinstance(dropped, dict)
    console.print(
        f"{card['rows']} rows of {traces['kept']} of {traces['in']} traces, {problems['kept']} of {problems['in']} "
        f"problems; right traces have {tokens['before']['mean']:.1f} tokens, rows {tokens['after']['mean']:.1f}",
        highlight=False,
    )
    for reason, number in dropped.items():
        console.print(f"  {number:6} {reason}", highlight=False, style="dim")
    console.print(f"card  {out / 'README.md'}", highlight=False)
