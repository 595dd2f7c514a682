"""Two families of methods at matched mean length, from a run folder: `make curve`, then

    python benchmarks/matched_length.py runs/curve temperature-scaling budget-forcing

For each setting of the first family, the accuracy of the second is interpolated linearly between its two settings
whose mean thinking lengths lie on either side (plain decoding is the unbounded end of both). Intervals are those of
the single settings; the interpolated value carries none of its own.
"""

import sys
from pathlib import Path

import numpy as np

from satisfice.measurement import summarise
from satisfice.runs.run_folder import read_run


def main() -> None:
    folder, ours, theirs = sys.argv[1:]
    run = read_run(Path(folder))
    rows = summarise(run.config, run.traces, "thinking").rows
    plain = next(row for row in rows if row.method == "plain")
    other = sorted(
        (row.thinking_tokens, row.accuracy) for row in [plain, *rows] if row.method.startswith((theirs, "plain"))
    )
    lengths, accuracies = zip(*other, strict=True)
    print(f"| {ours} | thinking tokens | accuracy | 95 % | {theirs} at the same length | difference |")
    print("|---|---|---|---|---|---|")
    for row in sorted((row for row in rows if row.method.startswith(ours)), key=lambda row: -row.thinking_tokens):
        matched = float(np.interp(row.thinking_tokens, lengths, accuracies))
        interval = f"{100 * row.accuracy_low:.1f} … {100 * row.accuracy_high:.1f}"
        print(
            f"| `{row.method}` | {row.thinking_tokens:.1f} | {100 * row.accuracy:.1f} % | {interval} "
            f"| {100 * matched:.1f} % | {100 * (row.accuracy - matched):+.1f} |"
        )


if __name__ == "__main__":
    main()
