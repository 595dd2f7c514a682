"""The ladder on a real language model, from run folders that `satisfice compare` has made: docs/results/smollm2.md.

    python benchmarks/smollm2.py --words runs/words --short runs/words-short --tldr runs/words-tldr \\
        --picture docs/results/smollm2.png

Everything is compared, paired by problem, with `plain` of the first run; a method that was not run is left out. The
runs should be finished: of one that was stopped, the responses that are there are the short ones. Nothing is run here.
"""

import argparse
from pathlib import Path

from ladder import Rung, picture, table
from supervision import compared

from satisfice.report.figures import to_png

RUNGS = (
    Rung("fine-tuned on long traces", "words", "plain"),
    Rung("temperature scaling", "words", "temperature-scaling"),
    Rung("cap of 80", "words", "budget-forcing:max_thinking=80", "muted"),
    Rung("supervision", "short", "plain", "correct"),
    Rung("TLDR, no level", "tldr", "plain", "front"),
    Rung("TLDR, short", "tldr", "tldr:level=short", "front"),
    Rung("TLDR, medium", "tldr", "tldr:level=medium", "front"),
    Rung("TLDR, long", "tldr", "tldr:level=long", "front"),
)
"""Of each rung the model is the option that names its run."""


def main() -> None:
    """Print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--short", type=Path, required=True)
    parser.add_argument("--tldr", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    asked_of = [(rung, compared([getattr(given, rung.model)], rung.method, given.words)) for rung in RUNGS]
    found = [(rung, comparison) for rung, comparison in asked_of if comparison is not None]
    print(table(found))
    if given.picture:
        given.picture.write_bytes(to_png(picture(found)))


if __name__ == "__main__":
    main()
