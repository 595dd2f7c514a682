"""What the lab's model checks, and what its checks are worth: read from run folders, nothing is generated.

    python benchmarks/checks.py runs/demo runs/demo-tldr

A thinking of the lab is passes over a chain, each of which ends with "So RESULT."; all but the first are checks. Prints
for each method the share of responses without a check, checks a response, how often the first pass is right, and how
often the answer is wrong after a right first pass or right after a wrong one.
"""

import argparse
import re
from pathlib import Path
from statistics import mean

from transformers import AutoTokenizer

from satisfice.lab import WEIGHTS
from satisfice.measurement.summary import is_correct
from satisfice.runs.run_folder import read_run

RESULT = re.compile(r"So (\d+)\.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    print("| run | method | n | no check | checks | first pass right | right, then wrong | wrong, then right |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in parser.parse_args().runs:
        for method, traces in read_run(folder).traces.items():
            results = [RESULT.findall(tokenizer.decode(t.response_ids[slice(*t.thinking_span)])) for t in traces]
            first = [found[:1] == [trace.gold] for found, trace in zip(results, traces, strict=True)]
            last = [is_correct(trace) for trace in traces]
            print(
                f"| {folder} | {method} | {len(traces)} | {mean(len(found) <= 1 for found in results):.1%} | "
                f"{mean(max(0, len(found) - 1) for found in results):.1f} | {mean(first):.1%} | "
                f"{mean(a and not b for a, b in zip(first, last, strict=True)):.1%} | "
                f"{mean(b and not a for a, b in zip(first, last, strict=True)):.1%} |"
            )


if __name__ == "__main__":
    main()
