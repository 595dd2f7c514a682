"""Does early exit save time, or only tokens? Plain decoding and probing methods, side by side in one run.

    python benchmarks/early_exit.py
    python benchmarks/early_exit.py --limit 16 --concurrency 1
    python benchmarks/early_exit.py --methods deer deer:parallel=true entrocut:tau=0.1 adaptive-think
    python benchmarks/early_exit.py --engine vllm
    python benchmarks/early_exit.py --engine openai      # starts vLLM's server, asks it over HTTP

Every round answers the same problems with the same seeds by plain decoding and by each method, in an order that
turns from round to round. Each of these arms begins with an engine of its own around the same weights, or with one that
has dropped its stored prefixes, warmed up on tokens that no problem begins with: nothing that one arm has computed is
there for another. What an engine does not offer is left out, and said.

A probe costs tokens, prompt positions, forward passes, requests and waiting, so time falls by less than tokens do. The
bound that a method has to keep: its time over that of plain decoding is at most the share of response tokens that it
keeps, plus a margin of the engine's, see `regimes.MARGINS`. Wall time decides; processor time stands beside it, for a
machine that has other work.
"""

import argparse
import asyncio
import gc
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from regimes import MARGINS, Regime, opened
from rich.console import Console
from rich.table import Table

from satisfice.engines.base import EngineError, Sampling
from satisfice.intervention import Method, lab_spellings, parse_method
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import together
from satisfice.lab import SHIPPED
from satisfice.problems import GraderPool, Problem, load_problems
from satisfice.runs.experiment import sample_seed
from satisfice.thinking import ThinkingFormat
from satisfice.trace import Trace

BASELINE = "plain"
EARLY = ("deer", "entrocut", "adaptive-think", "fractured-stop", "decoding-tree")
"""What is compared unless methods are named; a model that ships with the package has its own spellings of them."""


@dataclass(frozen=True)
class Arm:
    """One method in one round.

    Attributes:
        seconds, processor_seconds, passes, requests: see `regimes.Spent`; from the first request to the last answer,
            grading comes after it.
        right: problems answered correctly.
        thinking, retained, total: tokens, as in `satisfice.trace.CONVENTIONS`.
        probe, branch: tokens of trial answers and of chains that were thrown away.
        prefilled, cached: prompt positions computed, and served from a cache.
        probes: how often a method asked for an answer.
        exits: problems whose thinking such an answer ended.
        asking: seconds that problems waited for their probes, added up over all of them.
        probe_prefilled: prompt positions computed for probes.
        probe_passes: forward passes that probes took part in; over HTTP the tokens they wrote.
    """

    seconds: float
    processor_seconds: float
    passes: int
    requests: int
    right: int
    thinking: int
    retained: int
    total: int
    probe: int
    branch: int
    prefilled: int
    cached: int
    probes: int
    exits: int
    asking: float
    probe_prefilled: int
    probe_passes: int


class Stopwatch:
    """What the probes of one arm cost, noted from outside: traces do not tell a probe's share of the prefill."""

    def __init__(self) -> None:
        self.asking = 0.0
        self.prefilled = self.passes = 0

    def __enter__(self) -> "Stopwatch":
        self._own = Draft.probe, Draft.probe_paths

        def timed(ask: Any) -> Any:
            async def probe(draft: Draft, *arguments: Any, **options: Any) -> Any:
                started = time.perf_counter()
                found = await ask(draft, *arguments, **options)
                self.asking += time.perf_counter() - started
                for generation in found if isinstance(found, list) else [found]:
                    self.prefilled += generation.usage.prefilled
                    self.passes += generation.usage.forward_passes
                return found

            return probe

        Draft.probe, Draft.probe_paths = map(timed, self._own)  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Draft.probe, Draft.probe_paths = self._own  # type: ignore[method-assign]


async def solve_all(
    engine: Any, method: Method, problems: Sequence[Problem], sampling: Sampling, options: Any
) -> list[Trace]:
    gate = asyncio.Semaphore(options.concurrency)

    async def solve(problem: Problem) -> Trace:
        prompt = f"{problem.prompt}\n\n{options.instruction}" if options.instruction else problem.prompt
        asked = replace(problem, prompt=prompt, system=options.system or problem.system)
        async with gate:
            return await method.solve(engine, asked, replace(sampling, seed=sample_seed(options.seed, problem.id, 0)))

    return await together(*(solve(problem) for problem in problems))


async def measure(
    regime: Regime,
    method: Method,
    problems: Sequence[Problem],
    sampling: Sampling,
    graders: GraderPool,
    options: Any,
) -> Arm:
    """One arm, on an engine that has computed nothing of these problems."""
    with regime.unused() as engine:
        end = min(engine.end_ids)
        warm = [Sampling(max_tokens=4, ignore_eos=True, seed=seed) for seed in range(options.concurrency)]
        await together(*(engine.generate([end] * 4, each) for each in warm))
        # A pass over all that torch and Transformers hold, 0.2 seconds, would fall to whichever arm makes it due.
        gc.unfreeze()  # of the arm before
        gc.collect()
        gc.freeze()
        with Stopwatch() as probes, regime.measured(engine) as spent:
            traces = await solve_all(engine, method, problems, sampling, options)
    grades = await together(
        *(
            graders.grade(
                grader=problem.grader,
                answer=trace.answer,
                gold=problem.answer,
                finished=trace.finished,
                problem_id=problem.id,
            )
            for problem, trace in zip(problems, traces, strict=True)
        )
    )
    asked = [[event for event in trace.events if event.kind == "probe"] for trace in traces]
    return Arm(
        **asdict(spent),
        right=sum(grade.correct for grade in grades),
        **{name: sum(trace.cost.count(name) for trace in traces) for name in ("thinking", "retained", "total")},
        probe=sum(trace.cost.probe_tokens for trace in traces),
        branch=sum(trace.cost.branch_tokens for trace in traces),
        prefilled=sum(trace.cost.prefilled_tokens for trace in traces),
        cached=sum(trace.cost.cached_tokens for trace in traces),
        probes=sum(map(len, asked)),
        exits=sum(any(event.detail.get("exit") for event in events) for events in asked),
        asking=probes.asking,
        probe_prefilled=probes.prefilled,
        probe_passes=probes.passes,
    )


def verdicts(rounds: Sequence[dict[str, Arm]], problems: int, margin: float | None) -> dict[str, dict[str, Any]]:
    """What the rounds say of each method: shares of plain decoding, the bound and whether it was kept."""

    def mean(method: str, name: str) -> float:
        return statistics.fmean(getattr(arms[method], name) for arms in rounds) / problems

    def ratios(method: str, name: str) -> list[float]:
        return [getattr(arms[method], name) / getattr(arms[BASELINE], name) for arms in rounds]

    found = {}
    for method in rounds[0]:
        kept = {
            name: mean(method, name) / mean(BASELINE, name) if mean(BASELINE, name) else float("nan")
            for name in ("thinking", "retained", "total")
        }
        wall = ratios(method, "seconds")
        bound = None if margin is None else kept["retained"] + margin
        found[method] = {
            "accuracy": mean(method, "right"),
            "kept": kept,
            "wall": {"median": statistics.median(wall), "rounds": wall},
            "processor": {
                "median": statistics.median(ratios(method, "processor_seconds")),
                "rounds": ratios(method, "processor_seconds"),
            },
            "passes": statistics.median(ratios(method, "passes")),
            "bound": bound,
            "met": None if bound is None else statistics.median(wall) <= bound,
            "per_problem": {field.name: mean(method, field.name) for field in fields(Arm)},
        }
    return found


def show(found: dict[str, dict[str, Any]], title: str) -> None:
    console = Console(width=150, soft_wrap=True)
    times = Table(title=title)
    probes = Table(title="cost of the probes, a problem: tokens, prompt positions, passes, seconds")
    costs = Table(title="what the engine was asked, a problem")
    for name in ("method", "right", "thinking", "kept", "total", "wall / plain", "processor", "passes", "bound", "met"):
        times.add_column(name, justify="left" if name == "method" else "right")
    for name in ("method", "probes", "exits", "probe", "branch", "prefilled", "passes", "waited"):
        probes.add_column(name, justify="left" if name == "method" else "right")
    for name in ("method", "requests", "prefilled", "cached", "passes, whole batches"):
        costs.add_column(name, justify="left" if name == "method" else "right")
    for method, one in found.items():
        wall, kept, each = one["wall"], one["kept"], one["per_problem"]
        times.add_row(
            method,
            f"{one['accuracy']:.1%}",
            f"{kept['thinking']:.1%}",
            f"{kept['retained']:.1%}",
            f"{kept['total']:.1%}",
            f"{wall['median']:.1%} ({min(wall['rounds']):.1%} … {max(wall['rounds']):.1%})",
            f"{one['processor']['median']:.1%}",
            f"{one['passes']:.1%}",
            "" if one["bound"] is None else f"{one['bound']:.1%}",
            "" if method == BASELINE or one["met"] is None else "yes" if one["met"] else "NO",
        )
        names = ("probes", "exits", "probe", "branch", "probe_prefilled", "probe_passes")
        probes.add_row(method, *(f"{each[name]:.2f}" for name in names), f"{each['asking']:.2f} s")
        costs.add_row(method, *(f"{each[name]:.1f}" for name in ("requests", "prefilled", "cached", "passes")))
    console.print(times)
    console.print(probes)
    console.print(costs)


def chosen(spelled: Sequence[str] | None, model: str, engine: Any) -> list[Method]:
    """Plain decoding and the methods to compare with it, less those that the engine cannot serve."""
    own = {text.partition(":")[0]: text for text in lab_spellings()} if model in SHIPPED else {}
    methods = [parse_method(BASELINE)]
    for text in spelled or [own.get(name, name) for name in EARLY]:
        method = parse_method(text)
        try:
            method.check(engine)
        except EngineError as error:
            print(f"left out: {error}", flush=True)
        else:
            methods.append(method)
    return methods


async def compare(options: argparse.Namespace, regime: Regime) -> None:
    methods = chosen(options.methods, options.model, regime.loaded)
    problems = load_problems(options.problems, limit=options.limit).problems
    given = {"max_tokens": options.max_tokens, "temperature": options.temperature, "top_p": options.top_p}
    given = {name: value for name, value in given.items() if value is not None}
    sampling = replace(regime.loaded.default_sampling, **given)
    rounds: list[dict[str, Arm]] = []
    with GraderPool(workers=1) as graders:
        for number in range(options.rounds):
            turn = number % len(methods)
            arms = {}
            for method in [*methods[turn:], *methods[:turn]]:
                arms[str(method)] = await measure(regime, method, problems, sampling, graders, options)
            rounds.append({str(method): arms[str(method)] for method in methods})
    found = verdicts(rounds, len(problems), MARGINS[options.engine])
    plain = found[BASELINE]["per_problem"]
    show(
        found,
        f"{options.model} on {options.engine}, {len(problems)} problems of {options.problems}, "
        f"{options.concurrency} at once, {options.rounds} rounds; plain: {plain['retained']:.0f} tokens and "
        f"{1000 * plain['seconds']:.0f} ms, {1000 * plain['processor_seconds']:.0f} of a processor, a problem",
    )
    if options.json:
        written = {
            "options": vars(options),
            "sampling": asdict(sampling),
            "methods": found,
            "rounds": [{method: asdict(arm) for method, arm in arms.items()} for arms in rounds],
        }
        with open(options.json, "w") as file:
            json.dump(written, file, indent=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--engine", choices=[*MARGINS], default="transformers")
    parser.add_argument("--problems", default="lab:test")
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", help=f"besides plain; {', '.join(EARLY)} unless named")
    parser.add_argument("--concurrency", type=int, default=32, help="problems under way at once")
    parser.add_argument("--max-batch", type=int, default=64, help="rows of the engine; probes are rows, too")
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", default="")
    parser.add_argument("--instruction", default="")
    parser.add_argument("--thinking-format")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    options = parser.parse_args()
    thinking = ThinkingFormat.parse(options.thinking_format) if options.thinking_format else None
    settings = {"max_batch": options.max_batch, "threads": options.threads}
    with opened(options.engine, options.model, thinking=thinking, **settings) as regime:
        asyncio.run(compare(options, regime))


if __name__ == "__main__":
    main()
