"""The benchmarks by their names: which file, how many problems, which grader, and what publications do with them.

The files are the reader's: JSONL in a directory, under the name of the suite. Copies of the same benchmark differ, so
the number of problems is checked, and what a reader has to know of it stands in the notes of the problem set.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Suite:
    """One benchmark.

    Attributes:
        rows: problems that a copy may have, the usual number first.
        grader: what judges its answers.
        samples: responses to each problem that careful publications take.
        note: what to know when results are compared.
    """

    rows: tuple[int, ...]
    grader: str
    samples: int
    note: str = ""


USUAL_CAP = 32768
"""Tokens of a response at most, in most publications on these suites."""

SUITES = {
    "math500": Suite((500,), "math", 4, "42 problems have figures as text."),
    "amc23": Suite((40,), "math", 16, "Another set called AMC has 83 problems of more than one year."),
    "aime24": Suite((30,), "math", 64, "One problem is 3.3 points: single runs of this set say little."),
    "aime25": Suite((30,), "math", 64, "One problem is 3.3 points: single runs of this set say little."),
    "olympiadbench": Suite(
        (675, 674), "math", 4, "Publications say 674 or 675 problems: say which; 94 have several answers."
    ),
    "gsm8k": Suite((1319,), "math", 1),
    "gpqa-diamond": Suite((198,), "choice", 4, "Options stand in the order of the file: shuffle them once for all."),
    "minerva": Suite((272,), "math", 4, "Graders differ most here: answers have units and need a tolerance."),
}


def suite_file(name: str, directory: str | Path | None) -> Path:
    """The file of a suite.

    Raises:
        ValueError: no directory is named, or the file is not in it.
    """
    if directory is None:
        raise ValueError(f"{name} is read from a file of yours: say where {name}.jsonl lies with --data-dir")
    file = Path(directory) / f"{name}.jsonl"
    if not file.exists():
        raise ValueError(f"there is no {file}: --data-dir is to hold {name}.jsonl, one problem a line")
    return file


def suite_notes(name: str, found: int) -> tuple[str, ...]:
    """What to know of a suite of which `found` problems were read, the whole file.

    Raises:
        ValueError: no copy of it has so many.
    """
    suite = SUITES[name]
    if found not in suite.rows:
        usual = " or ".join(f"{rows:,}" for rows in suite.rows)
        raise ValueError(f"{name} has {usual} problems, this file {found:,}: it is another set, or a part of it")
    advice = f"{name}: {found:,} problems; usual are {suite.samples} samples a problem and {USUAL_CAP:,} tokens."
    return (f"{advice} {suite.note}".strip(),)
