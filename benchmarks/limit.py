"""What a lower token limit would have said of a run: read from its folder, nothing is generated.

    python benchmarks/limit.py runs/lab --limit 320

A response that is longer than the limit would have been cut off there, and a response that is cut off is wrong. So the
same responses give the table of any lower limit, but for methods that look at the limit themselves.
"""

import argparse
from pathlib import Path

from satisfice.measurement import is_correct
from satisfice.measurement.statistics import Estimate, accuracy_difference
from satisfice.runs.run_folder import read_run
from satisfice.trace import Trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--limit", type=int, required=True, help="tokens of a response at most")
    given = parser.parse_args()
    run = read_run(given.run)
    baseline = run.config["baseline"]
    own = int(run.config["sampling"]["max_tokens"])
    if given.limit >= own:
        parser.error(f"the run has a limit of {own} tokens; only lower ones can be read from it")
    base = {(trace.problem_id, trace.sample): trace for trace in run.traces[baseline]}
    print("| method | pairs | limit | accuracy | difference in points, paired (95 %) | cut off |")
    print("|---|---|---|---|---|---|")
    for method, traces in run.traces.items():
        pairs = [(trace, base[key]) for trace in traces if (key := (trace.problem_id, trace.sample)) in base]
        for limit in (own, given.limit):
            ours = [[right(trace, limit)] for trace, _ in pairs]
            theirs = [[right(partner, limit)] for _, partner in pairs]
            difference = accuracy_difference(ours, theirs) if method != baseline else None
            shown = "" if difference is None else f"{100 * difference.value:+.1f} ({interval(difference)})"
            cut = sum(is_cut(trace, limit) for trace, _ in pairs) / len(pairs)
            share = sum(verdict for [verdict] in ours) / len(pairs)
            print(f"| `{method}` | {len(pairs):,} | {limit} | {share:.1%} | {shown} | {cut:.2%} |")


def is_cut(trace: Trace, limit: int) -> bool:
    return trace.truncated or len(trace.response_ids) > limit


def right(trace: Trace, limit: int) -> bool:
    return is_correct(trace) and not is_cut(trace, limit)


def interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"{100 * estimate.low:+.1f} … {100 * estimate.high:+.1f}"


if __name__ == "__main__":
    main()
