"""Where problems come from, and how answers are graded.

`load_problems` reads a problem set from a file, the lab, the Hugging Face Hub or reasoning-gym. `GraderPool` grades
answers while a run goes on; `extract_answer` shows what it takes for the answer in a text. Importing this room is
cheap: the computer algebra and the data set library are imported when they are used, the former in other processes.
"""

from satisfice.problems.extraction import extract_answer
from satisfice.problems.graders import GRADERS, GRADING_VERSION, Grader, GraderError, grade_answer
from satisfice.problems.grading import GraderPool
from satisfice.problems.problem import Problem
from satisfice.problems.sources import SOURCES, ProblemsError, ProblemSet, ProblemSource, load_problems

__all__ = [
    "GRADERS",
    "GRADING_VERSION",
    "SOURCES",
    "Grader",
    "GraderError",
    "GraderPool",
    "Problem",
    "ProblemSet",
    "ProblemSource",
    "ProblemsError",
    "extract_answer",
    "grade_answer",
    "load_problems",
]
