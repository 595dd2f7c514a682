"""What the responses of runs cost, and which model, method and limit a budget buys."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from satisfice.attention import Attention
from satisfice.lab import ADAPTERS, SHIPPED
from satisfice.measurement import accuracy, problem_means
from satisfice.measurement.columns import Columns
from satisfice.measurement.cost import SHAPES, Shape, besides, decoding, price
from satisfice.measurement.frontier import Point, caps, oracle
from satisfice.runs.run_folder import Run, model_of


class CostRow(BaseModel):
    """What one method of a run cost, means a response. eFLOPs are operations and intensity times bytes.

    Attributes:
        run, model, method: which.
        attention: what a step is priced to read.
        n: responses.
        accuracy, accuracy_low, accuracy_high: avg@k with its 95 % interval.
        tokens, tokens_squared: E[L] and E[L^2] of thinking and answer together.
        flops, bytes: of decoding the response, as Kinetics counts.
        eflops: both of these.
        eflops_all: with probes, branches, outlines and prefill, which the paper leaves out.
        kv_bytes, kv_bytes_p95: that keys and values hold at the end of a response.
        price: dollars for 1,000 answers at the peak of the device, from `eflops_all`; None where no price is known.
        acu: accuracy over parameters times tokens (CoT-Valve).
    """

    model_config = ConfigDict(frozen=True)

    run: str
    model: str
    method: str
    attention: str
    n: int
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    tokens: float
    tokens_squared: float
    flops: float
    bytes: float
    eflops: float
    eflops_all: float
    kv_bytes: float
    kv_bytes_p95: float
    price: float | None
    acu: float | None


def cost_rows(
    run: Run,
    shape: Shape,
    intensity: float,
    *,
    attention: Attention | None = None,
    flops_per_second: float | None = None,
    per_hour: float | None = None,
) -> list[CostRow]:
    """A row for each method of a run that has traces.

    Args:
        run: the run.
        shape: of its model.
        intensity: operations a byte, of the device.
        attention: what a step reads; by default what it did. Another one says what the same tokens would cost.
        flops_per_second: peak of the device.
        per_hour: its price in dollars.

    Raises:
        ValueError: a trace has no grade.
    """
    reads = attention or attention_of(run)
    rows = []
    for method in run.traces:
        columns = _graded(run, method)
        if not len(columns):
            continue
        prompt, tokens, extra = _lengths(columns)
        work = decoding(shape, prompt, tokens, reads)
        whole = work + besides(shape, prompt, tokens, extra, columns.count("prefilled_tokens"), reads)
        estimate = accuracy(columns.by_problem().of(columns.right))
        assert estimate is not None
        eflops_all = float(whole.eflops(intensity).mean())
        held = shape.kv_bytes(prompt + tokens)
        rows.append(
            CostRow(
                run=str(run.folder),
                model=str(run.config.get("model", "")),
                method=method,
                attention=str(reads),
                n=len(columns),
                accuracy=estimate.value,
                accuracy_low=estimate.low,
                accuracy_high=estimate.high,
                tokens=float(tokens.mean()),
                tokens_squared=float((tokens.astype(np.float64) ** 2).mean()),
                flops=float(work.flops.mean()),
                bytes=float(work.bytes.mean()),
                eflops=float(work.eflops(intensity).mean()),
                eflops_all=eflops_all,
                kv_bytes=float(held.mean()),
                kv_bytes_p95=float(np.percentile(held, 95)),
                price=None if flops_per_second is None or per_hour is None else price(
                    eflops_all, flops_per_second, per_hour
                ),
                acu=estimate.value / (shape.parameters * float(tokens.mean())) if tokens.any() else None,
            )
        )  # fmt: skip
    return rows


class Policies:
    """Every model, method and limit of some runs on the same problems, with what each costs and gets right.

    Attributes:
        points: what can be deployed: one of them for all problems.
    """

    def __init__(
        self, runs: Sequence[Run], shapes: Sequence[Shape], intensity: float, attention: Attention | None = None
    ) -> None:
        """Policies of runs.

        Args:
            runs: on the same problems.
            shapes: of their models, in the same order.
            intensity: of the device.
            attention: as in `cost_rows`.

        Raises:
            ValueError: the runs are of different problems, or a trace has no grade.
        """
        digests = {(run.config.get("problems") or {}).get("digest") for run in runs}
        if len(digests) > 1:
            raise ValueError("the runs are of different problems, so no budget can choose between them")
        self.points: list[Point] = []
        self._problems: dict[str, int] = {}
        self._cells: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for run, shape in zip(runs, shapes, strict=True):
            for method in run.traces:
                columns = _graded(run, method)
                if len(columns):
                    self._add(run, method, columns, shape, intensity, attention or attention_of(run))

    def oracle(self, budget: float) -> float:
        """The accuracy of an oracle that knows the best policy for each problem: a bound, no policy."""
        shape = (len(self._cells), len(self._problems))
        costs, right = np.full(shape, np.nan), np.full(shape, np.nan)
        for row, (places, cost, share) in enumerate(self._cells):
            costs[row, places], right[row, places] = cost, share
        return oracle(costs, right, budget)

    def _add(self, run: Run, method: str, columns: Columns, shape: Shape, intensity: float, reads: Attention) -> None:
        prompt, tokens, extra = _lengths(columns)
        groups = columns.by_problem()
        ids = [columns.problems[place] for place in columns.problem[groups.rows[groups.starts[:-1]]]]
        places = np.array([self._problems.setdefault(problem, len(self._problems)) for problem in ids])
        # A method that spends tokens beside its response would have spent others at another limit.
        for cap in [None, *(caps(tokens) if not extra.any() else [])]:
            cut = tokens if cap is None else np.minimum(tokens, cap)
            work = decoding(shape, prompt, cut, reads)
            work += besides(shape, prompt, cut, extra, columns.count("prefilled_tokens"), reads)
            right = columns.right & (True if cap is None else tokens <= cap)
            cost = work.eflops(intensity)
            shares, costs = problem_means(groups.of(right)), problem_means(groups.of(cost))
            self._cells.append((places, costs, shares))
            self.points.append(
                Point(
                    model_of(run.config),
                    method,
                    cap,
                    float(cost.mean()),
                    float(shares.mean()),
                    len(columns),
                )
            )


def attention_of(run: Run) -> Attention:
    """What the steps of a run read.

    Raises:
        ValueError: what it says is none that this version knows.
    """
    return Attention.parse(str(run.config.get("attention", "dense")))


def _graded(run: Run, method: str) -> Columns:
    columns = Columns.of(run.traces[method])
    if (row := columns.ungraded) is not None:
        raise ValueError(f"{method!r} on problem {columns.row(row)[0]!r} has no grade: grade the run first")
    return columns


def _lengths(columns: Columns) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompt, response, and tokens beside the response."""
    tokens = columns.cost("retained")
    return columns.count("prompt_tokens"), tokens, columns.cost("total") - tokens


def shape_of(model: str) -> Shape:
    """The shape of a model by the name that a run knows it under: a shipped one, a directory, or one of `SHAPES`.

    Raises:
        ValueError: it is none of them, or its directory does not say.
    """
    name = model.partition(":")[2] or model
    if name in ADAPTERS:
        name = "smollm2"  # an adapter is merged into its weights
    if name in SHAPES:
        return SHAPES[name]
    folder = SHIPPED.get(name, Path(name))
    if (adapter := folder / "adapter_config.json").exists():
        below = json.loads(adapter.read_text()).get("base_model_name_or_path")
        if below and below != name:
            return shape_of(below)
    if not (folder / "config.json").exists():
        raise ValueError(
            f"the shape of {name} is not known: give --params, --layers, --heads, --kv-heads and --head-dim; known are "
            f"{', '.join([*SHIPPED, *SHAPES])} and model directories"
        )
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    try:
        heads = int(config["num_attention_heads"])
        return Shape(
            parameters=sum(map(_parameters, files)),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} does not say its shape ({error}): give it with --params and the others") from None


def _parameters(file: Path) -> int:
    """Numbers in a file of weights, read from its header."""
    with file.open("rb") as opened:
        size = struct.unpack("<Q", opened.read(8))[0]
        header = json.loads(opened.read(size))
    return sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
