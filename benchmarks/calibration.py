"""The proof of calibration: what is promised is kept, in simulations and on the lab, and by whom it is not.

    python benchmarks/calibration.py simulate                 curves whose true risk is known
    python benchmarks/calibration.py shared RUN --methods M   a grid whose settings share their thinking, into a run
    folder python benchmarks/calibration.py lab RUN                  random divisions of one large run python
    benchmarks/calibration.py watch                    time to alarm, and false alarms python
    benchmarks/calibration.py serve                    a real server whose method is made worse half-way

Every part prints a Markdown table. One thread is enough.
"""

import argparse
import asyncio
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from satisfice.measurement import clopper_pearson
from satisfice.measurement.risk import BETS, SHARES, RiskAlarm, confidence_sequence

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE


# -- deciding, for many calibrations at once


def betting(losses, bound, level):
    """Whether each of many calibrations certifies: losses (problems, runs); its largest capital counts."""
    stakes = BETS / (1 - bound)
    parts = np.log(SHARES)[:, None] + np.zeros((1, losses.shape[1]))
    best = np.full(losses.shape[1], -np.inf)
    for row in losses:
        parts = parts + np.log1p(stakes[:, None] * (bound - row[None, :]))
        best = np.maximum(best, np.logaddexp.reduce(parts, axis=0))
    return best >= -np.log(level)


def hoeffding(losses, bound, level):
    """The same by Hoeffding's inequality on losses scaled from -1..1, which does not see how small their spread is."""
    n = losses.shape[0]
    below = np.maximum(0, (bound - losses.mean(axis=0)) / 2)
    return np.exp(-2 * n * below**2) <= level


def by_eye(losses, bound, level):
    """The same by looking: the observed loss is within the bound."""
    return losses.mean(axis=0) <= bound + 1e-12


def last_of_sequence(passed):
    """(settings, runs) of verdicts to the place of the last before the first that failed; -1 where there is none."""
    return np.cumprod(passed, axis=0).sum(axis=0) - 1


def boldest(passed):
    """(settings, runs) to the place of the last that passed, wherever it stands: what the eye takes."""
    settings = passed.shape[0]
    return np.where(passed.any(axis=0), settings - 1 - passed[::-1].argmax(axis=0), -1)


RULES = {
    "certified (betting)": (betting, last_of_sequence),
    "Hoeffding instead of betting": (hoeffding, last_of_sequence),
    "by eye": (by_eye, boldest),
}


def table(rows, heads):
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)


def share(count, n):
    low, high = clopper_pearson(count / n, n)
    return f"{count / n:.1%} ({low:.1%} … {high:.1%})"


# -- simulations

CURVES = {
    "rising": [0.0, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.09],
    "flat, at the bound": [0.02] * 8,
    "flat, below it": [0.005] * 8,
    "U-shaped": [0.012, 0.004, -0.004, -0.008, -0.004, 0.012, 0.03, 0.06],
    "one bad between good": [0.0, 0.002, 0.004, 0.035, 0.004, 0.006, 0.008, 0.01],
}
SAVINGS = np.linspace(0.1, 0.6, 8)
"""Of the settings, from harmless to bold."""


def simulate(arguments):
    bound, runs = 0.02, arguments.repetitions
    rng = np.random.default_rng(0)
    rows = []
    for name, curve in CURVES.items():
        risks = np.array(curve)
        oracle = last_of_sequence((risks < bound)[:, None])[0]
        for n in (100, 300, 1000):
            drawn = rng.random((n, runs))  # one draw a problem, so that settings are as alike as they are on a run
            gains = 0.015
            losses = [
                np.where(drawn < gains + max(risk, 0), 1.0, 0.0) - np.where(drawn > 1 - gains - max(-risk, 0), 1.0, 0.0)
                for risk in risks
            ]
            for rule, (decide, choose) in RULES.items():
                place = choose(np.array([decide(each, bound, LEVEL) for each in losses]))
                some = place >= 0
                violations = int((some & (risks[place] >= bound)).sum())
                saved = np.where(some, SAVINGS[place], 0).mean()
                best = SAVINGS[oracle] if oracle >= 0 else 0.0
                rows.append(
                    (name, n, rule, share(violations, runs), f"{some.mean():.0%}", f"{saved:.1%}", f"{best:.1%}")
                )
    print(f"bound {bound:.0%} of net loss, confidence {CONFIDENCE:.0%}, {runs:,} calibrations each\n")
    table(rows, ("curve", "n", "rule", "bound violated", "certifies", "mean saving", "oracle"))


# -- the lab


def matrices(folder):
    """Losses and costs of a run: problems' ids, {method: (net losses, thinking tokens)}, the baseline's tokens."""
    from satisfice.runs.run_folder import read_run

    run = read_run(folder)
    baseline = {trace.problem_id: trace for trace in run.traces["plain"]}
    ids = sorted(baseline)
    found = {}
    for method, traces in run.traces.items():
        if method == "plain" or len(traces) < len(ids):
            continue
        there = {trace.problem_id: trace for trace in traces}
        net = np.array([float(baseline[i].correct) - float(there[i].correct) for i in ids])
        beside = any(trace.cost.total_tokens > trace.cost.retained_tokens for trace in traces)
        found[method] = net, np.array([there[i].cost.total_tokens for i in ids]), beside
    return ids, found, np.array([baseline[i].cost.total_tokens for i in ids])


def value(method, parameter, default):
    text = dict(pair.split("=") for pair in method.partition(":")[2].split(",") if "=" in pair and '"' not in pair)
    return float(text.get(parameter, default))


def lab(arguments):
    """Calibrate on n problems drawn from the run; the truth is the mean over all others."""
    ids, found, base_tokens = matrices(arguments.run)
    print(
        f"{len(ids):,} problems, {arguments.divisions} divisions, confidence {CONFIDENCE:.0%}; costs are all tokens\n"
    )
    ladders = {
        "temperature-scaling (t)": ("temperature-scaling", "t", 0.9, True),
        "budget-forcing (max_thinking)": ("budget-forcing", "max_thinking", 0, True),
        "entrocut (tau)": ("entrocut", "tau", 0, False),
    }
    rng = np.random.default_rng(1)
    for title, (name, parameter, default, down) in ladders.items():
        methods = [method for method in found if method.split(":")[0] == name]
        if not methods:
            continue
        methods.sort(key=lambda method: value(method, parameter, default), reverse=down)
        losses = np.array([found[method][0] for method in methods])
        tokens = np.array([found[method][1] for method in methods])
        print(f"**{title}**, on all {len(ids):,}: " + "; ".join(
            f"{value(m, parameter, default):g}: {loss.mean():+.2%}, saves {1 - cost.sum() / base_tokens.sum():.1%}"
            for m, loss, cost in zip(methods, losses, tokens, strict=True)
        ) + "\n")  # fmt: skip
        rows = []
        for n in (100, 300, 1000):
            orders = [rng.permutation(len(ids)) for _ in range(arguments.divisions)]
            inside = np.array([order[:n] for order in orders]).T
            outside = [order[n:] for order in orders]
            truth = np.array([[loss[rest].mean() for rest in outside] for loss in losses])
            saved = np.array([[1 - cost[rest].sum() / base_tokens[rest].sum() for rest in outside] for cost in tokens])
            columns = np.arange(arguments.divisions)
            for bound in (0.01, 0.02, 0.05):
                oracle = last_of_sequence(truth < bound)
                best = np.where(oracle >= 0, saved[oracle, columns], 0).mean()
                for rule, (decide, choose) in RULES.items():
                    passed = np.array([decide(loss[inside], bound, LEVEL) for loss in losses])
                    place = choose(passed)
                    some = place >= 0
                    violations = int((some & (truth[place, columns] >= bound)).sum())
                    mean = np.where(some, saved[place, columns], 0).mean()
                    rows.append(
                        (n, f"{bound:.0%}", rule, share(violations, arguments.divisions), f"{some.mean():.0%}",
                         f"{mean:.1%}", f"{best:.1%}")
                    )  # fmt: skip
        table(rows, ("n", "max loss", "rule", "bound violated", "certifies", "mean saving", "oracle"))


def shared(arguments):
    """Every setting on every problem, what they share generated once; killed and started again, it goes on."""
    from satisfice.engines.loading import opened_engine
    from satisfice.engines.remembering import RememberingEngine
    from satisfice.intervention import parse_method
    from satisfice.problems import GraderPool, load_problems
    from satisfice.runs.experiment import Experiment, Progress, Task, record, try_to_solve
    from satisfice.runs.run_folder import RunFolder

    problems = load_problems(arguments.problems, limit=arguments.limit)
    methods = [parse_method(text) for text in ["plain", *arguments.methods]]

    async def carry_out(engine):
        experiment = Experiment(problems, methods, engine.default_sampling, concurrency=128)
        generated = recalled = 0
        with (
            RunFolder.create_or_open(arguments.run, experiment.configuration(engine)) as folder,
            GraderPool() as graders,
        ):
            done, gate, progress = folder.done(), asyncio.Semaphore(64), Progress()

            async def solve(problem):
                nonlocal generated, recalled
                async with gate:
                    remembering = RememberingEngine(engine)
                    for method in methods:
                        if (str(method), problem.id, 0) not in done:
                            task = Task(method, problem, 0)
                            await record(
                                task, await try_to_solve(remembering, *experiment.asks(task)), folder, graders, progress
                            )
                    generated, recalled = generated + remembering.generated, recalled + remembering.recalled

            await asyncio.gather(*(solve(problem) for problem in problems.problems))
        print(f"{generated:,} tokens generated, {recalled:,} more had been generated already for another setting")

    started = time.perf_counter()
    with opened_engine("transformers", arguments.model, thinking=None, companions={}, threads=1) as engine:
        asyncio.run(carry_out(engine))
    print(f"{time.perf_counter() - started:.0f} s")


# -- watching


def watch(arguments):
    bound, n, runs = 0.03, 10_000, arguments.repetitions
    rng = np.random.default_rng(2)
    rows = []
    for title, risks in (
        ("always at the bound, 3 %", lambda i: 0.03),
        ("always half of it, 1.5 %", lambda i: 0.015),
        ("always twice it, 6 %", lambda i: 0.06),
        ("half of it for 1,000, then twice it", lambda i: 0.015 if i < 1000 else 0.06),
        ("at it for 1,000, then twice it", lambda i: 0.03 if i < 1000 else 0.06),
        ("half of it for 1,000, then five times it", lambda i: 0.015 if i < 1000 else 0.15),
    ):
        change = next((i for i in range(n) if risks(i) > bound), n)
        early = caught = 0
        delays = []
        for _ in range(runs):
            alarm, drawn = RiskAlarm(bound, LEVEL), rng.random(n)
            for i in range(n):
                if alarm.add(float(drawn[i] < risks(i))):
                    break
            if alarm.raised_at is not None and alarm.raised_at <= change:
                early += 1
            elif alarm.raised_at is not None:
                caught += 1
                delays.append(alarm.raised_at - change)
        delay = "" if not delays else f"{np.median(delays):.0f} ({np.percentile(delays, 90):.0f})"
        rows.append((title, share(early, runs), share(caught, runs) if change < n else "", delay))
    print(f"bound {bound:.0%}, confidence {CONFIDENCE:.0%}, {n:,} compared responses, {runs:,} watches each\n")
    table(rows, ("risk", "false alarms", "alarms", "compared responses until then: median (90th percentile)"))
    missed = 0
    for _ in range(runs):
        seen = np.cumsum(rng.random(2000) < bound)
        at = range(10, 2001, 10)
        intervals = [confidence_sequence(float(seen[i - 1]), i, LEVEL) for i in at]
        missed += any(not low <= bound <= high for low, high in intervals)
    print(f"confidence sequence: the true risk was ever outside in {share(missed, runs)} of {runs:,} watches of 2,000")


def serve(arguments):
    """A server with a watch answers real requests; half-way its method gets another one's body, under the same name."""
    from dataclasses import dataclass

    from satisfice.engines.loading import opened_engine
    from satisfice.intervention import parse_method
    from satisfice.intervention.methods.temperature_scaling import TemperatureScaling
    from satisfice.problems import load_problems
    from satisfice.server.app import ChatServer, Settings
    from satisfice.server.process import listen, process
    from satisfice.server.watch import WatchSettings

    worse = parse_method("budget-forcing:max_thinking=40")
    broken = threading.Event()

    @dataclass(frozen=True)
    class Breaking(TemperatureScaling):
        def draft(self, *given, **options):
            return (worse if broken.is_set() else super()).draft(*given, **options)

        async def respond(self, draft):
            await (worse if broken.is_set() else super()).respond(draft)

    method = Breaking(t=0.85)
    problems = load_problems("lab:certify", limit=arguments.requests).problems
    watched = WatchSettings(share=arguments.shadow, max_loss=0.08, confidence=CONFIDENCE, on_alarm="baseline")
    with opened_engine("transformers", "lab", thinking=None, companions={}, threads=1) as engine:
        chat = ChatServer(engine, Settings("lab", method, max_tokens=960, watch=watched))
        running, listener = process(chat, 5), listen("127.0.0.1", 0)
        thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
        thread.start()

        def ask(path, **fields):
            connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=600)
            given = json.dumps({"model": "lab", **fields}) if fields else None
            connection.request("POST" if fields else "GET", path, given, {"content-type": "application/json"})
            return json.loads(connection.getresponse().read())

        def answered(problem):
            return ask("/v1/chat/completions", messages=[{"role": "user", "content": problem.prompt}])

        def state(requests):
            while chat.watch.under_way:
                time.sleep(0.05)
            found = ask("/health")["watch"]
            rows.append(
                (requests, "worse" if broken.is_set() else "as certified", found["compared"],
                 f"{found['disagreement'] or 0:.1%} ({found['low']:.1%} … {found['high']:.1%})",
                 f"{found['e_value']:.3g}", found["alarm_at"] or "no", found["answered_by"], found["shadow_tokens"])
            )  # fmt: skip

        rows = []
        with ThreadPoolExecutor(16) as pool:
            for start in range(0, len(problems), 50):
                if start >= len(problems) // 2:
                    broken.set()
                list(pool.map(answered, problems[start : start + 50]))
                state(start + 50)
        chat.stop("shutdown")
        running.should_exit = True
        thread.join(30)
    table(
        rows, ("requests", "method", "compared", "disagreement", "e-value", "alarm at", "answered by", "shadow tokens")
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("simulate")
    part.add_argument("--repetitions", type=int, default=2000)
    part.set_defaults(call=simulate)
    part = parts.add_parser("lab")
    part.add_argument("run", type=Path)
    part.add_argument("--divisions", type=int, default=500)
    part.set_defaults(call=lab)
    part = parts.add_parser("shared")
    part.add_argument("run", type=Path)
    part.add_argument("--model", default="lab")
    part.add_argument("--problems", default="lab:certify")
    part.add_argument("--limit", type=int, default=3000)
    part.add_argument("--methods", nargs="+", required=True)
    part.set_defaults(call=shared)
    part = parts.add_parser("watch")
    part.add_argument("--repetitions", type=int, default=500)
    part.set_defaults(call=watch)
    part = parts.add_parser("serve")
    part.add_argument("--requests", type=int, default=800)
    part.add_argument("--shadow", type=float, default=0.5)
    part.set_defaults(call=serve)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
