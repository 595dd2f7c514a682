"""The ladder on a real language model, from run folders that `satisfice compare` has made: docs/results/smollm2.md.

    python benchmarks/smollm2.py --words runs/words --short runs/words-short --tldr runs/words-tldr \\
        --picture docs/results/smollm2.png

Everything is compared, paired by problem, with `plain` of the first folder; a method that was not run is left out, and
one that has fewer problems is compared on those. Nothing is run here.
"""

import argparse
from pathlib import Path

from ladder import Rung, picture, table
from supervision import compared

from satisfice.report.figures import to_png

RUNGS = (
    Rung("fine-tuned on long traces", "words", "plain"),
    Rung("temperature scaling", "words", "temperature-scaling"),
    Rung("temperature scaling, milder", "words", "temperature-scaling:t=0.95"),
    Rung("cap of 80", "words", "budget-forcing:max_thinking=80", "muted"),
    Rung("cap of 130", "words", "budget-forcing:max_thinking=130", "muted"),
    Rung("cap of 200", "words", "budget-forcing:max_thinking=200", "muted"),
    Rung("supervision", "short", "plain", "correct"),
    Rung("TLDR, no level", "tldr", "plain", "front"),
    Rung("TLDR, short", "tldr", "tldr:level=short", "front"),
    Rung("TLDR, medium", "tldr", "tldr:level=medium", "front"),
    Rung("TLDR, long", "tldr", "tldr:level=long", "front"),
)


def main() -> None:
    """Print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=Path, nargs="+", required=True)
    parser.add_argument("--short", type=Path, nargs="+", default=[])
    parser.add_argument("--tldr", type=Path, nargs="+", default=[])
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    base = given.words[0]
    asked = [
        (rung, measured)
        for rung in RUNGS
        for measured in [compared([folder], rung.method, base) for folder in getattr(given, rung.model)]
    ]
    done = [(rung, measured) for rung, measured in asked if measured is not None]
    print(table(done))
    if given.picture:
        given.picture.write_bytes(to_png(picture(done)))


if __name__ == "__main__":
    main()
