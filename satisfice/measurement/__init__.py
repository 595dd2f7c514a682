"""What a run shows: accuracy with its interval, length, saving against the baseline, and which methods are worth it.

`summarise` makes the table of a run from its configuration and traces; below it lie pure functions on numbers:
`statistics`, `metrics`, `verbosity`, `cost`, `information` and `optimal_length`.
"""

from satisfice.measurement.columns import Columns, is_correct, never_closed
from satisfice.measurement.metrics import accuracy_efficiency_score, pareto_front
from satisfice.measurement.ragged import problem_means
from satisfice.measurement.rows import MARGIN, Row, Summary
from satisfice.measurement.statistics import (
    Estimate,
    Tokens,
    accuracy,
    accuracy_difference,
    clopper_pearson,
    describe_tokens,
    discordant,
    majority_is_correct,
    mcnemar,
    pass_at_k,
    saving,
)
from satisfice.measurement.summary import summarise
from satisfice.measurement.verbosity import repetition_share

__all__ = [
    "MARGIN",
    "Columns",
    "Estimate",
    "Row",
    "Summary",
    "Tokens",
    "accuracy",
    "accuracy_difference",
    "accuracy_efficiency_score",
    "clopper_pearson",
    "describe_tokens",
    "discordant",
    "is_correct",
    "majority_is_correct",
    "mcnemar",
    "never_closed",
    "pareto_front",
    "pass_at_k",
    "problem_means",
    "repetition_share",
    "saving",
    "summarise",
]
