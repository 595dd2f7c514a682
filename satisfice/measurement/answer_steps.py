"""What each step of a thinking tells about its answer, put together over a run (InfoGain and InfoBias, 2505.18237).

The arithmetic is in `satisfice.measurement.information`; here are the records that it is applied to.
"""

import math
import re
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict

from satisfice.measurement import information
from satisfice.measurement.diagnosis import Measured, mean
from satisfice.measurement.information import Floats

MOST_STEPS = 8
"""Boundaries that are told."""
DIMENSIONS = 512
"""Of the embedding of a text."""
TINY = 1e-300
"""Least probability of an answer: its logarithm is taken."""


class AnswerSteps(BaseModel):
    """How likely each candidate answer is at each boundary of one thinking.

    Attributes:
        problem_id, sample: whose.
        right: whether its final answer is.
        places: thinking tokens before each boundary; the first is 0, before any thinking.
        candidates: the gold answer first, then what the model answered at any boundary, without repetition.
        log_probabilities: shape (places, candidates), natural logarithms.
    """

    model_config = ConfigDict(frozen=True)

    problem_id: str
    sample: int
    right: bool
    places: list[int]
    candidates: list[str]
    log_probabilities: list[list[float]]

    @property
    def distributions(self) -> list[Floats]:
        """The same, scaled so that the candidates of a boundary have probability 1."""
        rows = [np.asarray(row) - max(row) for row in self.log_probabilities]
        return [np.exp(row) / np.exp(row).sum() for row in rows]

    def entropies(self, base: float = math.e) -> list[float]:
        """Of the answer at each boundary."""
        return [information.entropy(row, base) for row in self.distributions]

    def gains(self, base: float = math.e) -> list[float]:
        """InfoGain of each step."""
        return information.information_gains(self.distributions, base)

    def targeted(self, base: float = math.e, *, as_printed: bool = False) -> list[float]:
        """InfoGain of each step for the right answer, by default positive where it gets likelier."""
        right = [max(float(row[0]), TINY) for row in self.distributions]
        return information.targeted_gains(right, base, as_printed=as_printed)


class Information(BaseModel):
    """InfoGain and InfoBias of one method of a run; a field is None or empty where nothing says it.

    Attributes:
        method: as spelled.
        followed: thinkings whose answers were asked for at every boundary.
        entropy, entropy_right, entropy_wrong: mean entropy in nats after 0, 1, 2, ... boundaries, of all thinkings, of
            those that end right and of those that end wrong; one that has fewer boundaries keeps its last.
        entropy_bits: the first in bits, as the program saves it.
        gain: mean InfoGain of step 1, 2, ... in nats, over the thinkings that have that step.
        targeted: the same for the right answer, positive where it gets likelier: the opposite of the printed sign.
        answers_bias: InfoBias in the paper's form, of which only the answers are looked at: minus the mutual
            information in nats of final and gold answers. What whole traces share is no less.
        answers_bias_error: the paper's bound of its error at confidence 0.95.
        responses: that it rests on.
        program_bias: InfoBias in the program's form by problem, against the traces of another run.
        program_bias_right, program_bias_wrong: means over problems by whether most of their samples are right.
    """

    model_config = ConfigDict(frozen=True)

    method: str
    followed: int = 0
    entropy: list[Measured] = []
    entropy_right: list[Measured] = []
    entropy_wrong: list[Measured] = []
    entropy_bits: list[float] = []
    gain: list[Measured] = []
    targeted: list[Measured] = []
    answers_bias: float
    answers_bias_error: float
    responses: int
    program_bias: dict[str, float] = {}
    program_bias_right: Measured | None = None
    program_bias_wrong: Measured | None = None


def step_numbers(followed: Sequence[AnswerSteps]) -> dict[str, object]:
    """The fields of `Information` that rest on thinkings that were followed."""
    entropy = _kept([steps.entropies() for steps in followed])
    return {
        "followed": len(followed),
        "entropy": entropy,
        "entropy_right": _kept([steps.entropies() for steps in followed if steps.right]),
        "entropy_wrong": _kept([steps.entropies() for steps in followed if not steps.right]),
        "entropy_bits": [each.value / math.log(2) for each in entropy],
        "gain": _each([steps.gains() for steps in followed]),
        "targeted": _each([steps.targeted() for steps in followed]),
    }


def answers_bias(answers: Sequence[str], golds: Sequence[str]) -> tuple[float, float]:
    """Minus the mutual information of answers and gold answers in nats, and the bound of its error.

    Args:
        answers, golds: of each response, in a spelling that is equal where answers are.

    Raises:
        ValueError: there is no response.
    """
    rows, row = np.unique(np.asarray(answers), return_inverse=True)
    columns, column = np.unique(np.asarray(golds), return_inverse=True)
    joint = np.zeros((len(rows), len(columns)))
    np.add.at(joint, (row, column), 1)
    return information.information_bias(joint), information.sampling_error(len(answers))


def program_bias(
    traces: dict[str, list[str]], ideal: dict[str, list[str]], tokens: dict[str, float], right: dict[str, bool]
) -> dict[str, object]:
    """The fields of `Information` in the program's form.

    Args:
        traces, ideal: texts of each problem's thinkings, as many of the one as of the other.
        tokens: mean thinking tokens of each problem.
        right: whether most of its samples are.

    Raises:
        ValueError: a problem has fewer than two of either, or no tokens.
    """
    names = list(traces)
    scores = [information.hsic(embed(traces[name]), embed(ideal[name])) for name in names]
    values = dict(zip(names, information.dataset_bias(scores, [tokens[name] for name in names]), strict=True))
    by_verdict = {verdict: [values[name] for name in names if right[name] == verdict] for verdict in (True, False)}
    return {
        "program_bias": values,
        "program_bias_right": mean(by_verdict[True]) if by_verdict[True] else None,
        "program_bias_wrong": mean(by_verdict[False]) if by_verdict[False] else None,
    }


def embed(texts: Sequence[str]) -> Floats:
    """Counts of words and pairs of words, hashed to `DIMENSIONS` places and scaled to length 1; shape (n, dimensions).

    Ours: the program embeds with a sentence model, which is not here. Two texts are near if they use the same words.
    """
    rows = np.zeros((len(texts), DIMENSIONS))
    for row, text in zip(rows, texts, strict=True):
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        for term in [*words, *map(" ".join, pairwise(words))]:
            row[zlib.crc32(term.encode()) % DIMENSIONS] += 1
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0))


def _kept(rows: Sequence[Sequence[float]]) -> list[Measured]:
    most = min(MOST_STEPS + 1, max(map(len, rows), default=0))
    return [mean([row[min(place, len(row) - 1)] for row in rows]) for place in range(most)]


def _each(rows: Sequence[Sequence[float]]) -> list[Measured]:
    most = min(MOST_STEPS, max(map(len, rows), default=0))
    return [mean([row[place] for row in rows if len(row) > place]) for place in range(most)]
