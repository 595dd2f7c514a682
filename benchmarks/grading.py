"""What grading costs: the time to grade 10,000 answers, against another version of this package.

    git worktree add ../before COMMIT
    python benchmarks/grading.py --against ../before --problems math500.jsonl --problems gsm8k_test.jsonl

Each version grades the same answers in a fresh process, in turn, with one grader process of its own. Counted are
seconds of processor time of both processes, imports included, because other programs on the machine change the time on
the wall. The ratio is that of the medians of the rounds. The answers are made from the gold answers of the problems
given: in a box, after "the answer is", as a last formula, in another spelling, and wrong. `--one` grades once and
prints the seconds; it is what the rounds call.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

ANSWERS = 10_000
ROUNDS = 3


def made_answers(files: list[Path], count: int, seed: int = 0) -> list[dict[str, object]]:
    """`count` answers to problems of the files, as `GraderPool.grade_all` takes them; the same for one seed."""
    golds = [json.loads(line)["answer"] for file in files for line in file.read_text().splitlines()]
    golds = [str(gold).rpartition("####")[2].strip() for gold in golds]
    draw = random.Random(seed)
    forms = (
        "Adding these up gives the total. So the answer is \\boxed{{{0}}}.",
        "We check both cases. Therefore, the final answer is $\\boxed{{{0}}}$.",
        "Both cases agree. The answer is ${0}$.",
        "Hence we get\n\n$$\n{0}\n$$",
        "**Final Answer**\n\n\\[\n\\boxed{{ {0} }}\n\\]",
        "\\boxed{{{1}}}",
        "I first had 7, then 12. The answer is {1}.",
    )
    answers = []
    for _ in range(count):
        gold = draw.choice(golds)
        # A quarter of the answers is wrong: another problem's gold answer.
        given = gold if draw.random() < 0.75 else draw.choice(golds)
        respelled = given.replace("\\frac", "\\dfrac").replace(",", ", ")
        text = draw.choice(forms).format(given, respelled)
        answers.append({"grader": "math", "answer": text, "gold": gold, "finished": True})
    return answers


def seconds(answers: list[dict[str, object]]) -> tuple[float, int]:
    """Processor time of one pool with one process, and how many answers it finds right."""
    from satisfice.problems import GraderPool

    with GraderPool(workers=1) as pool:
        grades = pool.grade_all(answers)
    spent = sum(os.times()[:4])  # of this process and, as they have ended, of its children
    return spent, sum(grade.correct for grade in grades)


def measured(tree: Path, arguments: list[str]) -> tuple[float, int]:
    """The same in a fresh process that imports the package from `tree`."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    taken, right = done.stdout.split()
    return float(taken), int(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=Path, action="append", required=True, help="JSONL with gold answers")
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--answers", type=int, default=ANSWERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--one", action="store_true", help="grade once with the version on the path, print seconds")
    options = parser.parse_args()
    if options.one:
        print(*seconds(made_answers(options.problems, options.answers)))
        return
    here = Path(__file__).resolve().parent.parent
    trees = {"here": here} | ({"against": options.against.resolve()} if options.against else {})
    arguments = ["--answers", str(options.answers)]
    for file in options.problems:
        arguments += ["--problems", str(file.resolve())]
    taken: dict[str, list[float]] = {name: [] for name in trees}
    for number in range(options.rounds):
        # Every other round in the other order, so that a machine that gets slower favours nobody.
        for name in list(trees) if number % 2 == 0 else reversed(trees):
            spent, right = measured(trees[name], arguments)
            taken[name].append(spent)
            print(f"{name}: {spent:.2f} s, {right} of {options.answers} right", flush=True)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(json.dumps({"answers": options.answers, "seconds": {n: round(s, 2) for n, s in medians.items()}}))
    if "against" in medians:
        print(f"time here / time against: {medians['here'] / medians['against']:.2f}")


if __name__ == "__main__":
    main()
