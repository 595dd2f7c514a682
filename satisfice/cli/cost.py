"""`satisfice cost`."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from satisfice.cli.console import console, printable
from satisfice.cli.options import OUTPUT, Json
from satisfice.cli.tables import pairs_table

if TYPE_CHECKING:
    from satisfice.attention import Attention
    from satisfice.measurement.cost import Shape
    from satisfice.runs.costs import CostRow, Policies
    from satisfice.runs.run_folder import Run

_shape = partial(typer.Option, rich_help_panel="Shape of the model")
_device = partial(typer.Option, rich_help_panel="Device")
_response = partial(typer.Option, rich_help_panel="Response, without a run")


def cost(
    *,
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders, of the same problems.")] = None,
    params: Annotated[float | None, _shape(min=1, help="Parameters; of a mixture of experts the active ones.")] = None,
    layers: Annotated[int | None, _shape(min=1, help="Of attention.")] = None,
    heads: Annotated[int | None, _shape(min=1, help="Of queries in a layer.")] = None,
    kv_heads: Annotated[int | None, _shape(min=1, help="Of keys and values in a layer.")] = None,
    head_dim: Annotated[int | None, _shape(min=1, help="Elements of a head.")] = None,
    accelerator: Annotated[str, _device(help="b200-fp8 (the paper's), b200, h200, h100 or a100.")] = "b200-fp8",
    intensity: Annotated[float | None, _device(min=0, help="Operations a byte; the accelerator's unless set.")] = None,
    per_hour: Annotated[float | None, _device(min=0, help="Dollars an hour, for the price of 1,000 answers.")] = None,
    prompt: Annotated[int, _response(min=0, help="Tokens before the response.")] = 200,
    tokens: Annotated[int | None, _response(min=1, help="Tokens of the response.")] = None,
    trials: Annotated[int, _response(min=1, help="Responses to one prompt.")] = 1,
    attention: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Attention",
            help="dense, top-k:budget=N, block-topk:budget=N,block=N or local:budget=N; unless set, the run's own.",
        ),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(rich_help_panel=OUTPUT, min=0, help="eFLOPs of a response: what do they buy?")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="Picture (.svg or .png); by default in the first run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a run cost in operations, memory traffic and money; which model and limit a budget buys.

    Costs are those of Kinetics (2506.05333), eFLOPs = operations + intensity x bytes read. Without a run --tokens says
    how long a response is.

    Example: satisfice cost runs/lab-lab-test
    """
    from satisfice.attention import DENSE, Attention
    from satisfice.measurement.cost import ACCELERATORS

    if accelerator not in ACCELERATORS:
        raise ValueError(f"no accelerator {accelerator!r}; use one of {', '.join(ACCELERATORS)}")
    device = ACCELERATORS[accelerator]
    per_byte = device.intensity if intensity is None else intensity
    kind = None if attention is None else Attention.parse(attention)
    given = _given_shape(params, layers, heads, kv_heads, head_dim)
    if not runs:
        if given is None or tokens is None:
            raise ValueError("name run folders, or describe a response: --params, --layers, --heads, ..., and --tokens")
        _one_response(given, kind or DENSE, per_byte, prompt, tokens, trials, as_json)
        return
    if tokens is not None:
        raise ValueError("--tokens describes a response without a run: leave it out, the run has its own lengths")
    from satisfice.report import to_png, to_svg
    from satisfice.report.frontier import frontier_figure
    from satisfice.runs.costs import Policies, cost_rows, shape_of
    from satisfice.runs.run_folder import read_run, write_atomically

    if given is not None and len(runs) > 1:
        raise ValueError("one shape cannot be that of several runs: leave --params out, or give one run")
    opened = [read_run(folder) for folder in runs]
    shapes = [given or shape_of(str(run.config.get("model", ""))) for run in opened]
    rows = [
        row
        for run, shape in zip(opened, shapes, strict=True)
        for row in cost_rows(run, shape, per_byte, attention=kind, flops_per_second=device.flops, per_hour=per_hour)
    ]
    policies = Policies(opened, shapes, per_byte, kind)
    if not policies.points:
        raise ValueError("there is no trace yet, so there is no cost")
    figure = frontier_figure(policies.points)
    picture = out or opened[0].folder / "accuracy-eflops.svg"
    write_atomically(picture, to_png(figure) if picture.suffix == ".png" else to_svg(figure))
    if as_json:
        print(json.dumps(_as_data(rows, policies, per_byte, budget), indent=2, ensure_ascii=False))
        return
    _print_rows(rows, opened, per_byte)
    _print_policies(policies, budget)
    console.print(f"\npicture  {picture}", highlight=False, markup=False)


def _given_shape(*values: Any) -> "Shape | None":
    """The shape that was given, None where nothing of it was.

    Raises:
        ValueError: only a part of it was.
    """
    from satisfice.measurement.cost import Shape

    names = ("--params", "--layers", "--heads", "--kv-heads", "--head-dim")
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    if len(missing) == len(names):
        return None
    if missing:
        raise ValueError(f"a shape needs all of {', '.join(names)}; {missing[0]} is missing")
    return Shape(*values)


def _one_response(
    shape: "Shape", kind: "Attention", intensity: float, prompt: int, tokens: int, trials: int, as_json: bool
) -> None:
    from satisfice.attention import Attention
    from satisfice.measurement.cost import attention_share, decoding

    kinds = [kind] if kind.kind != "dense" else [kind, Attention("top-k"), Attention("block-topk"), Attention("local")]
    found = {}
    for each in kinds:
        work = decoding(shape, prompt, tokens, each, trials=trials)
        found[str(each)] = {
            "flops": float(work.flops),
            "bytes": float(work.bytes),
            "memory_eflops": intensity * float(work.bytes),
            "eflops": float(work.eflops(intensity)),
        }
    held, share = float(shape.kv_bytes(prompt + tokens)), attention_share(shape, prompt, tokens, intensity)
    data = {
        "prompt_tokens": prompt,
        "tokens": tokens,
        "trials": trials,
        "intensity": intensity,
        "kv_elements_per_token": shape.kv_elements,
        "kv_bytes": held,
        "attention_over_parameters": share,
        "cost": found,
    }
    if as_json:
        print(json.dumps(data, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("attention, all in tera", "operations", "intensity x bytes", "eFLOPs"):
        table.add_column(name, justify="left" if name.startswith("attention") else "right")
    for name, costs in found.items():
        numbers = (costs["flops"], costs["memory_eflops"], costs["eflops"])
        table.add_row(name, *(f"{number / 1e12:,.1f}" for number in numbers))
    console.print(table)
    console.print(
        pairs_table(
            [
                ("keys and values at the end", f"{held / 2**30:.2f} GiB"),
                ("attention over parameters", f"{share:.1f}"),
            ]
        )
    )


def _print_rows(rows: "list[CostRow]", runs: "list[Run]", intensity: float) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    several = len(runs) > 1
    kinds = sorted({row.attention for row in rows})
    names = [
        *(["model"] if several else []),
        *(["attention"] if len(kinds) > 1 else []),
        "method",
        "right %",
        "E[L]",
        "E[L²]",
        "eFLOPs",
        "in all",
        "KV MB",
    ]
    priced = any(row.price is not None for row in rows)
    for name in [*names, *(["$ / 1,000"] if priced else [])]:
        table.add_column(name, justify="left" if name in ("model", "attention", "method") else "right")
    for row in rows:
        cells = [
            *([row.model] if several else []),
            *([row.attention] if len(kinds) > 1 else []),
            row.method,
            f"{100 * row.accuracy:.1f}",
            f"{row.tokens:,.1f}",
        ]
        cells += [
            f"{row.tokens_squared:,.0f}",
            _short(row.eflops),
            _short(row.eflops_all),
            f"{row.kv_bytes / 1e6:,.2f}",
        ]
        cells += [f"{row.price:.4g}"] if priced and row.price is not None else []
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    console.print(
        Text(
            f"E[L]: thinking and answer tokens of a response, mean; eFLOPs: operations and {intensity:g} x bytes of "
            f"decoding it, {' or '.join(kinds)} attention, as Kinetics counts; in all: with probes, branches and "
            "prefill; KV: keys and values at the end of a response",
            style="dim",
        ),
        highlight=False,
    )


def _print_policies(policies: "Policies", budget: float | None) -> None:
    from satisfice.measurement.frontier import front

    console.print("\nfront of models, methods and limits that can be deployed (eFLOPs a response, right %):")
    for point in front(policies.points):
        limit = "own limit" if point.cap is None else f"limit {point.cap:,}"
        line = f"  {_short(point.cost):>8}  {100 * point.accuracy:5.1f}  {point.model} {point.method}, {limit}"
        console.print(Text(printable(line)), highlight=False)
    if budget is not None:
        console.print(Text(printable(_within(policies, budget))), highlight=False)


def _within(policies: "Policies", budget: float) -> str:
    from satisfice.measurement.frontier import best_within

    best = best_within(policies.points, budget)
    if best is None:
        return f"nothing here costs as little as {_short(budget)} eFLOPs a response"
    limit = "its own limit" if best.cap is None else f"a limit of {best.cap:,} tokens"
    return (
        f"{_short(budget)} eFLOPs a response buy {best.model} with {best.method} and {limit}: "
        f"{100 * best.accuracy:.1f} % right. An oracle that knows the best policy for each problem, which nobody "
        f"does, and may spend no more on any: {100 * policies.oracle(budget):.1f} %"
    )


def _as_data(rows: "list[CostRow]", policies: "Policies", intensity: float, budget: float | None) -> dict[str, Any]:
    from dataclasses import asdict

    from satisfice.measurement.frontier import best_within, front

    data: dict[str, Any] = {
        "intensity": intensity,
        "counting": "thinking and answer tokens; eflops_all with probes, branches, outlines and prefill",
        "rows": [row.model_dump() for row in rows],
        "points": [asdict(point) for point in policies.points],
        "front": [asdict(point) for point in front(policies.points)],
    }
    if budget is not None:
        best = best_within(policies.points, budget)
        data["budget"] = {
            "eflops": budget,
            "best": None if best is None else asdict(best),
            "oracle_accuracy": policies.oracle(budget),
            "oracle_is": "a bound: it knows the best policy for each problem",
        }
    return data


def _short(number: float) -> str:
    """A large number with its unit."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"
