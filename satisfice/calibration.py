"""Find the one parameter of a method that belongs to a model: on held-out problems, for an accuracy that may be lost.

A value looks better on the problems that it was chosen on than it is. So it is looked for on problems that nobody
reports on, asked exactly as the others will be: with the same instruction and the same sampling.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from satisfice.engines.base import Engine
from satisfice.experiment import Experiment, Progress, check, run
from satisfice.intervention import Method, MethodError, read_method
from satisfice.intervention.entrocut import EntroCut, Observed, calibrate_tau, observe
from satisfice.intervention.plain import Plain
from satisfice.intervention.temperature_scaling import TemperatureScaling
from satisfice.measurement import wilson
from satisfice.problems import GraderPool
from satisfice.run_folder import RunFolder
from satisfice.trace import Trace

CALIBRATED: dict[type[Method], str] = {EntroCut: "tau", TemperatureScaling: "t"}
"""The methods that have something to calibrate, and what it is."""

TEMPERATURES = (0.98, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)
"""The values of t that are tried. Ours; closest together near 1, where a model with large logits has its range."""


@dataclass(frozen=True)
class Calibration:
    """What was found, and what it gives on the problems that it was found on.

    Attributes:
        method: the method as spelled, with the value in it.
        parameter: what was looked for.
        value: what was found.
        baseline: what accuracy may be lost against: "plain", or the same method "never cut".
        loss: share of problems that might be lost.
        n: problems.
        accuracy, accuracy_low, accuracy_high: share of problems, and its 95 % interval.
        baseline_accuracy: the same of the baseline.
        thinking_tokens, baseline_thinking_tokens: means over all problems.
        thinking_kept: the first of these as a share of the second; None where nothing was thought.
    """

    method: str
    parameter: str
    value: float
    baseline: str
    loss: float
    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    baseline_accuracy: float
    thinking_tokens: float
    baseline_thinking_tokens: float
    thinking_kept: float | None


def uncalibrated(text: str) -> Method:
    """The method spelled by `text`, which leaves out what is to be calibrated; 1 stands in for that.

    Raises:
        MethodError: the method has nothing to calibrate, the value is given already, or the text cannot be read.
    """
    (kind, given), *joined = read_method(text)
    if joined:
        raise MethodError(f"one method is calibrated at a time: leave out what is behind the plus sign of {text!r}")
    if kind not in CALIBRATED:
        known = " and ".join(f"{each.name} ({parameter})" for each, parameter in CALIBRATED.items())
        raise MethodError(f"{kind.name} has nothing to calibrate; what can be calibrated is {known}")
    parameter = CALIBRATED[kind]
    if parameter in given:
        raise MethodError(f"{parameter} is what calibrating {kind.name} finds: leave {parameter}= out")
    if kind is TemperatureScaling and given.get("mode") == "bias":
        raise MethodError(f"{kind.name}: t is calibrated, and mode=bias has none; leave mode out")
    return kind(**given, **{parameter: 1.0})


async def calibrate(
    method: Method,
    engine: Engine,
    experiment: Experiment,
    graders: GraderPool,
    loss: float = 0.01,
    progress: Progress | None = None,
) -> Calibration:
    """Find the value that saves most thinking for at most `loss` of accuracy.

    Args:
        method: from `uncalibrated`.
        engine: where tokens come from.
        experiment: the held-out problems, and how they are asked; its methods and samples play no part.
        graders: judge the answers.
        loss: share of problems, 0.01 for one point; it may be negative to ask for a gain.
        progress: told of every response that is measured.

    Raises:
        EngineError: the engine cannot serve the method or a request.
        MethodError: no value keeps the accuracy, or a response failed.
    """
    progress = progress or Progress()
    check(engine, replace(experiment, methods=[method]))
    find = _tau if isinstance(method, EntroCut) else _temperature
    return await find(method, engine, experiment, graders, loss, progress)


async def _tau(
    method: Method, engine: Engine, experiment: Experiment, graders: GraderPool, loss: float, progress: Progress
) -> Calibration:
    """One observation serves all values, because what a cut would have led to is known at every probe."""
    assert isinstance(method, EntroCut)
    problems = [experiment.asked(problem) for problem in experiment.problems.problems]
    progress.begin(f"{method.name}, never cut", len(problems), 0)
    observed = await observe(
        method,
        engine,
        problems,
        replace(experiment.sampling, seed=experiment.seed),
        graders,
        experiment.concurrency,
        progress.advance,
    )
    tau = _rounded(calibrate_tau(observed, loss), observed)
    outcomes = [chain.outcome(tau) for chain in observed]
    uncut = [(chain.finally_correct, chain.finally_thinking_tokens) for chain in observed]
    return _found(replace(method, tau=tau), "tau", tau, "never cut", loss, outcomes, uncut)


def _rounded(tau: float, observed: Sequence[Observed]) -> float:
    """The same cuts with as few digits as can be, but at least 3: the middle between two entropies is the safest."""

    def cuts(value: float) -> list[tuple[bool, int]]:
        return [chain.outcome(value) for chain in observed]

    shorter = (float(f"{tau:.{digits}g}") for digits in range(3, 17))
    return next((value for value in shorter if cuts(value) == cuts(tau)), tau)


async def _temperature(
    method: Method, engine: Engine, experiment: Experiment, graders: GraderPool, loss: float, progress: Progress
) -> Calibration:
    """Every value is a run of its own, because a changed logit changes the whole of what follows."""
    assert isinstance(method, TemperatureScaling)
    plain = Plain()
    scaled = {t: replace(method, t=t) for t in TEMPERATURES}
    trial = replace(experiment, methods=[plain, *scaled.values()], samples=1)
    with (
        tempfile.TemporaryDirectory(prefix="satisfice-") as folder,
        RunFolder.create_or_open(folder, trial.configuration(engine)) as run_folder,
    ):
        await run(engine, trial, run_folder, graders, progress)
        measured = {str(each): _outcomes(run_folder.traces(str(each))) for each in trial.methods}
    reference = measured[str(plain)]
    wanted = fmean(right for right, _ in reference) - loss - 1e-12
    for t, candidate in sorted(scaled.items()):
        outcomes = measured[str(candidate)]
        if fmean(right for right, _ in outcomes) >= wanted:
            return _found(candidate, "t", t, str(plain), loss, outcomes, reference)
    raise MethodError(
        f"{method.name}: no t of {', '.join(map(str, TEMPERATURES))} keeps the accuracy within {loss:.12g} of "
        f"{wanted + loss:.3g} on these {len(reference)} problems: allow a larger loss"
    )


def _outcomes(traces: Sequence[Trace]) -> list[tuple[bool, int]]:
    failed = [trace for trace in traces if trace.error is not None]
    if failed:
        reason = str(failed[0].error).splitlines()[0]
        raise MethodError(
            f"{failed[0].method} failed on {len(failed)} of {len(traces)} problems, so nothing can be calibrated; "
            f"first on {failed[0].problem_id}: {reason}"
        )
    return [(trace.correct, trace.cost.thinking_tokens) for trace in traces]


def _found(
    method: Method,
    parameter: str,
    value: float,
    baseline: str,
    loss: float,
    outcomes: Sequence[tuple[bool, int]],
    reference: Sequence[tuple[bool, int]],
) -> Calibration:
    accuracy, thinking = fmean(right for right, _ in outcomes), fmean(tokens for _, tokens in outcomes)
    whole = fmean(tokens for _, tokens in reference)
    low, high = wilson(accuracy, len(outcomes))
    return Calibration(
        method=str(method),
        parameter=parameter,
        value=value,
        baseline=baseline,
        loss=loss,
        n=len(outcomes),
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        baseline_accuracy=fmean(right for right, _ in reference),
        thinking_tokens=thinking,
        baseline_thinking_tokens=whole,
        thinking_kept=thinking / whole if whole else None,
    )
