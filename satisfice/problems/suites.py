"""The benchmarks by their names: where from, how many problems, which grader, and what publications do with them.

They come from the Hub at a pinned revision, or from JSONL files of the reader's, in a directory under the name of the
suite. Copies of the same benchmark differ, so the number of problems is checked, and what a reader has to know of it
stands in the notes of the problem set. The revisions are those that public evaluation code pins: inspect_evals 0.28 for
AIME, GSM8K and GPQA, several repositories alike for the others. Of Minerva no pinned copy is known to us.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Hub:
    """A data set of the Hub.

    Attributes:
        path, config, split: as the `datasets` library takes them.
        revision: the commit.
        record: makes a record as in a JSONL file of one of its rows.
    """

    path: str
    config: str | None
    split: str
    revision: str
    record: Callable[[Mapping[str, Any]], dict[str, Any]]


def _fields(problem: str, answer: str, name: str | None) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Rows whose question, answer and name have fields of their own; of a list of one answer it is the answer."""

    def record(row: Mapping[str, Any]) -> dict[str, Any]:
        gold = row[answer]
        if isinstance(gold, list) and len(gold) == 1:
            gold = gold[0]
        # One pair of dollar signs around the whole is style, several answers in dollar signs are left as they are.
        if isinstance(gold, str) and gold.count("$") == 2 and gold.startswith("$") and gold.endswith("$"):
            gold = gold[1:-1]
        return {"problem": row[problem], "answer": gold, "id": None if name is None else str(row[name])}

    return record


def _gpqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of GPQA, whose right answer is a field of its own: options in an order that the question alone decides."""
    options = [row["Correct Answer"], *(row[f"Incorrect Answer {number}"] for number in (1, 2, 3))]
    order = random.Random(row["Question"]).sample(range(4), 4)
    return {
        "problem": row["Question"].strip(),
        "choices": [options[place].strip() for place in order],
        "answer": order.index(0),
        "id": row["Record ID"],
    }


@dataclass(frozen=True)
class Suite:
    """One benchmark.

    Attributes:
        rows: problems that a copy may have, the usual number first.
        grader: what judges its answers.
        samples: responses to each problem that careful publications take.
        note: what to know when results are compared.
        hub: where it comes from unless a directory is given; None where no pinned copy is known.
    """

    rows: tuple[int, ...]
    grader: str
    samples: int
    note: str = ""
    hub: Hub | None = None


USUAL_CAP = 32768
"""Tokens of a response at most, in most publications on these suites."""

SUITES = {
    "math500": Suite(
        (500,), "math", 4, "42 problems have figures as text.",
        Hub(
            "HuggingFaceH4/MATH-500", None, "test", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            _fields("problem", "answer", "unique_id"),
        ),
    ),
    "amc23": Suite(
        (40,), "math", 16, "Another set called AMC has 83 problems of more than one year.",
        Hub(
            "math-ai/amc23", None, "test", "80815d37005feb82cd7f8fbc6901d5d3eff43057",
            _fields("question", "answer", "id"),
        ),
    ),
    "aime24": Suite(
        (30,), "math", 64, "One problem is 3.3 points: single runs of this set say little.",
        Hub(
            "Maxwell-Jia/AIME_2024", None, "train", "8d88b2876a82a080e2f172cc9b25d0d9d2cb4792",
            _fields("Problem", "Answer", "ID"),
        ),
    ),
    "aime25": Suite(
        (30,), "math", 64, "One problem is 3.3 points: single runs of this set say little.",
        Hub(
            "math-ai/aime25", None, "test", "563bb8404243c5f09de6ec262f2db674fe5bce9b",
            _fields("problem", "answer", "id"),
        ),
    ),
    "olympiadbench": Suite(
        (675, 674), "math", 4,
        "Publications say 674 or 675 problems: the Hub's copy has 674, that of Qwen's repository 675; 94 have several "
        "answers.",
        Hub(
            "Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train", "91184b52131e7fc9455fef848035173aea8cc01a",
            _fields("question", "final_answer", "id"),
        ),
    ),
    "gsm8k": Suite(
        (1319,), "math", 1, "",
        Hub(
            "openai/gsm8k", "main", "test", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
            _fields("question", "answer", None),
        ),
    ),
    "gpqa-diamond": Suite(
        (198,), "choice", 4, "The order of the options is ours, or that of your file.",
        Hub("Idavidrein/gpqa", "gpqa_diamond", "train", "5233cd1db58884ed0bf678c7c6be731722a23f84", _gpqa),
    ),
    "minerva": Suite((272,), "math", 4, "Graders differ most here: answers have units and need a tolerance."),
}  # fmt: skip


def suite_file(name: str, directory: str | Path) -> Path:
    """The file of a suite.

    Raises:
        ValueError: it is not in the directory.
    """
    file = Path(directory) / f"{name}.jsonl"
    if not file.exists():
        raise ValueError(f"there is no {file}: --data-dir is to hold {name}.jsonl, one problem a line")
    return file


def suite_notes(name: str, found: int) -> tuple[str, ...]:
    """What to know of a suite of which a copy has `found` problems.

    Raises:
        ValueError: no copy of it has so many.
    """
    suite = SUITES[name]
    if found not in suite.rows:
        usual = " or ".join(f"{rows:,}" for rows in suite.rows)
        raise ValueError(f"{name} has {usual} problems, this copy {found:,}: it is another set, or a part of it")
    advice = f"{name}: {found:,} problems; usual are {suite.samples} samples a problem and {USUAL_CAP:,} tokens."
    return (f"{advice} {suite.note}".strip(),)
