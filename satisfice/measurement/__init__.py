"""What a run shows: accuracy with its interval, length, saving against the baseline, and which methods are worth it.

`summarise` makes the table of a run from its configuration and traces; `statistics` holds the pure functions below it.
"""

from satisfice.measurement.statistics import (
    Estimate,
    Tokens,
    accuracy,
    accuracy_difference,
    accuracy_efficiency_score,
    describe_tokens,
    discordant,
    majority_is_correct,
    mcnemar,
    pareto_front,
    pass_at_k,
    repetition_share,
    saving,
    wilson,
)
from satisfice.measurement.summary import Row, Summary, is_correct, summarise

__all__ = [
    "Estimate",
    "Row",
    "Summary",
    "Tokens",
    "accuracy",
    "accuracy_difference",
    "accuracy_efficiency_score",
    "describe_tokens",
    "discordant",
    "is_correct",
    "majority_is_correct",
    "mcnemar",
    "pareto_front",
    "pass_at_k",
    "repetition_share",
    "saving",
    "summarise",
    "wilson",
]
