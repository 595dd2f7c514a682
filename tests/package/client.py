"""What somebody writes who uses satisfice as a library; `mypy --strict` reads it, see test_typed.py."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from satisfice.engines import Engine, Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import METHODS, Draft, Method, parse_method
from satisfice.measurement import Summary, summarise
from satisfice.problems import GraderPool, Problem, load_problems
from satisfice.reinforcement import Objective, objective_from
from satisfice.reinforcement.objective import Rollouts
from satisfice.runs.calibration import Promise, calibrate, ladders
from satisfice.runs.certificate import Certificate
from satisfice.runs.experiment import Experiment, run
from satisfice.runs.run_folder import RunFolder, read_run
from satisfice.supervision import CURATIONS, Curation, Item, Reason, SampledProblem, SFTRow, parse_curation
from satisfice.trace import Trace


@dataclass(frozen=True)
class Halves(Method):
    """Thinks for half of the limit at most.

    Attributes:
        parts: of which one is for thinking.
    """

    name: ClassVar[str] = "halves"
    summary: ClassVar[str] = "closes thinking at a part of the limit"
    paper: ClassVar[str] = ""

    parts: PositiveInt = 2

    async def respond(self, draft: Draft) -> None:
        await draft.think(draft.remaining // self.parts)
        await draft.conclude()


@dataclass(frozen=True)
class Longest(Curation):
    """The longest right trace of each problem.

    Attributes:
        most: how many.
    """

    name: ClassVar[str] = "longest"
    summary: ClassVar[str] = "the longest right traces"

    most: Annotated[int, Field(ge=1)] = 1

    def select(self, problem: SampledProblem) -> list[Item]:
        right, drops = problem.positives()
        longest = problem.shortest_first(right)[::-1]
        responses = [problem.response(place) for place in longest[: self.most]]
        rows = [SFTRow(problem, response, response.tokens) for response in responses]
        return [*rows, *drops, *problem.drop(longest[self.most :], Reason.LONGER)]


@dataclass(frozen=True)
class Brevity(Objective):
    """A right answer earns more the shorter it is."""

    name: ClassVar[str] = "brevity"
    summary: ClassVar[str] = "a price on each token"
    paper: ClassVar[str] = ""

    def rewards(self, rollouts: Rollouts) -> Tensor:
        return rollouts.correct * (1 - rollouts.lengths / (2 * rollouts.max_length))


METHODS["halves"] = Halves
CURATIONS["longest"] = Longest


def solve(engine: Engine, text: str) -> tuple[str, int]:
    method: Method = parse_method("halves:parts=3")
    trace: Trace = asyncio.run(method.solve(engine, Problem("q", text, "45"), Sampling(max_tokens=200)))
    return trace.answer, trace.cost.thinking_tokens


def compare(engine: Engine, folder: Path) -> Summary:
    methods = [parse_method("plain"), Halves(parts=3)]
    experiment = Experiment(load_problems("lab:test", limit=4), methods, Sampling(max_tokens=200), seed=1)
    with RunFolder.create_or_open(folder, experiment.configuration(engine)) as run_folder, GraderPool() as graders:
        asyncio.run(run(engine, experiment, run_folder, graders))
    done = read_run(folder)
    return summarise(done.config, done.traces)


def certify(engine: Engine, folder: Path) -> Certificate:
    experiment = Experiment(load_problems("lab:certify", limit=600), (), Sampling(max_tokens=960))
    found = ladders(["temperature-scaling"], None, 960)
    with GraderPool() as graders:
        return asyncio.run(calibrate(engine, experiment, found, Promise(0.05), folder, graders))


def main(folder: Path) -> None:
    engine = TransformersEngine.load("lab", threads=1)
    answer, tokens = solve(
        engine, "Start with 10. Steps in the order of their letters: c) +5, d) *3. What is the result?"
    )
    rows = compare(engine, folder).rows
    objective: Objective = objective_from("laser", {"target": 200})
    curation: Curation = parse_curation("longest:most=2")
    print(answer, tokens, len(rows), rows[0].accuracy, objective.name, curation.name, Brevity().name)
    engine.close()


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[1]))
