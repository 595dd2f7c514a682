"""What a run shows, in words, and no more than it shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from satisfice.measurement import Row, Summary

MARGIN = 0.02
"""A method is said to keep the accuracy only where its interval rules out a loss of more than this (ours)."""

COUNTED = {
    "thinking": "thinking tokens",
    "retained": "response tokens",
    "total": "tokens in all",
    "with prefill": "tokens, prefill included",
}
"""What each counting convention counts, as it reads in a sentence."""


@dataclass(frozen=True)
class Headline:
    """What a run shows.

    Attributes:
        lead: the finding, one sentence.
        evidence: how sure it is: intervals, number of problems, how the method was picked. May be empty.
    """

    lead: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.lead} {self.evidence}".strip()


def headline(summary: Summary) -> Headline:
    """What the run shows, from the table alone.

    The method put forward is one whose saving is clear: its interval lies above 0. Of those it is the one that
    saves most in the best class of accuracy that there is: a loss above `MARGIN` is ruled out; not seen; seen but
    perhaps by chance; certain.
    """
    base = summary.row(summary.baseline)
    compared = [row for row in summary.rows if row.paired_problems and row.method != summary.baseline]
    if not compared:
        return _alone(summary, base)
    savers = [row for row in compared if row.token_saving_low is not None and row.token_saving_low > 0]
    if not savers:
        return _nobody_saves(summary, compared)

    best = min(savers, key=lambda row: (_accuracy_class(row), -(row.token_saving or 0)))
    low, high = _difference(best)
    problems = f"{best.paired_problems:,} problem{'s' if best.paired_problems > 1 else ''}"
    if low > 0:
        verdict = "and is right more often"
    elif low >= -MARGIN:
        verdict = "and loses little accuracy" if high < 0 else "and keeps the accuracy"
    elif high < 0:
        verdict = "but loses accuracy"
    elif _accuracy_class(best) == 1:
        verdict = "with about the same accuracy"
    else:
        verdict = "but was right less often, perhaps by chance"
    lead = (
        f"{best.method} writes {percent(best.token_saving)} fewer {COUNTED[summary.convention]} than "
        f"{summary.baseline} {verdict}: {percent(best.paired_accuracy)} against "
        f"{percent(best.paired_baseline_accuracy)}."
    )
    evidence = [
        f"95 % intervals over {problems}: saving {percent(best.token_saving_low)} to "
        f"{percent(best.token_saving_high)}, accuracy difference {points(low)} to {points(high)} points."
    ]
    if low < -MARGIN and high >= 0:
        evidence.append(f"That is too wide to rule out a loss of {-100 * low:.1f} points.")
    if _accuracy_class(best) == 3 and len(savers) > 1:
        evidence.append(f"So do all {len(savers)} methods that save tokens.")
    elif len(compared) > 1:
        evidence.append(f"Of {len(compared)} methods it was picked by its results on these same problems.")
    return Headline(lead, " ".join(evidence))


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 in percent, which no line break tears apart; an en dash for None."""
    return "–" if share is None else f"{_rounded(100 * share, digits):.{digits}f}\N{NO-BREAK SPACE}%".replace("-", "−")


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of shares in percentage points, with its sign; an en dash for None."""
    return "–" if difference is None else f"{_rounded(100 * difference, digits):+.{digits}f}".replace("-", "−")


def _rounded(value: float, digits: int) -> float:
    """The value rounded, and never minus zero."""
    return round(value, digits) + 0.0


def _difference(row: Row) -> tuple[float, float]:
    assert row.accuracy_difference_low is not None
    assert row.accuracy_difference_high is not None
    return row.accuracy_difference_low, row.accuracy_difference_high


def _accuracy_class(row: Row) -> int:
    """0 a loss above the margin is ruled out, 1 not seen, 2 seen but perhaps by chance, 3 certain that something is
    lost."""
    low, high = _difference(row)
    assert row.accuracy_difference is not None
    if low >= -MARGIN:
        return 0
    if high < 0:
        return 3
    return 1 if row.accuracy_difference >= -MARGIN else 2


def _nobody_saves(summary: Summary, compared: Sequence[Row]) -> Headline:
    most = max(compared, key=lambda row: row.token_saving if row.token_saving is not None else float("-inf"))
    counted = COUNTED[summary.convention]
    if most.token_saving is None:
        return Headline(f"Nothing can be said about saving: {summary.baseline} wrote no {counted}.", "")
    if len(compared) == 1:
        lead = f"{most.method} does not clearly write fewer {counted} than {summary.baseline}."
        who = "It"
    else:
        lead = f"None of {len(compared)} methods clearly writes fewer {counted} than {summary.baseline}."
        who = f"The closest, {most.method},"
    change = f"{percent(abs(most.token_saving))} {'more' if most.token_saving < 0 else 'fewer'}"
    if most.token_saving_low is None:
        certainty = "one problem says nothing about others"
    else:
        certainty = f"95 % interval of the saving {percent(most.token_saving_low)} to {percent(most.token_saving_high)}"
    return Headline(
        lead,
        f"{who} wrote {change} on {most.paired_problems:,} problem{'s' if most.paired_problems > 1 else ''} "
        f"({certainty}), with accuracy {percent(most.paired_accuracy)} against "
        f"{percent(most.paired_baseline_accuracy)}.",
    )


def _alone(summary: Summary, base: Row) -> Headline:
    done = [row for row in summary.rows if row.n]
    if not done:
        return Headline("No problem has been solved yet.", "")
    shown = base if base.n else done[0]
    lead = (
        f"{shown.method} answers {percent(shown.accuracy)} of {shown.n:,} problem{'s' if shown.n > 1 else ''} with "
        f"{shown.cost:,.0f} {COUNTED[summary.convention]} each."
    )
    evidence = f"95 % interval of the accuracy: {percent(shown.accuracy_low)} to {percent(shown.accuracy_high)}."
    if len(summary.rows) > 1:
        evidence += f" Nothing can be compared with {summary.baseline} yet."
    return Headline(lead, evidence)
