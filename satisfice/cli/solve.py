"""`satisfice solve`."""

import asyncio
from typing import Annotated

import typer
from rich.text import Text

from satisfice.cli.certified import certificate_of, warn_of_differences, warn_of_time
from satisfice.cli.console import INTERRUPTED, console, printable
from satisfice.cli.options import Calibrated, EngineOptions, MethodName, Plugins, SamplingOptions, System


def solve(
    *,
    method: MethodName = "plain",
    calibrated: Calibrated = None,
    plugin: Plugins = None,
    engine: EngineOptions,
    question: Annotated[str, typer.Argument(help="The question.")],
    sampling: SamplingOptions,
    system: System = "",
) -> None:
    """Solve one question: thinking dimmed, answer bright, the cost at the end.

    Example: satisfice solve lab "Start with 3. Steps in the order of their letters: a) *2, b) +5. What is the result?"
    """
    from satisfice.intervention import parse_method
    from satisfice.problems import Problem
    from satisfice.thinking import Phase

    certificate = certificate_of(calibrated, method)
    chosen = parse_method(method) if certificate is None else certificate.chosen()

    def watch(phase: Phase, text: str) -> None:
        console.print(Text(printable(text), style="bold" if phase is Phase.ANSWER else "dim"), end="")

    with engine.opened([chosen]) as opened:
        chosen.check(opened)
        warn_of_time([chosen], opened)
        over = sampling.over(opened)
        warn_of_differences(certificate, opened, over, "", system)
        problem = Problem("question", question, "", system=system)
        try:
            trace = asyncio.run(chosen.solve(opened, problem, over, watch=watch))
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
    )
