"""The table of a run for people (Markdown, and the columns of the page) and for programs (CSV)."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from satisfice.measurement import Row, Summary
from satisfice.report.findings import COUNTED, headline, percent, points
from satisfice.report.text import visible

CSV_FIRST = (
    "method",
    "n",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "thinking_tokens",
    "total_tokens",
    "token_saving",
    "truncated_share",
)
"""Columns that stand first in a CSV; the other fields of `Row` follow."""


@dataclass(frozen=True)
class Column:
    """A column for people.

    Attributes:
        name: its heading.
        meaning: what it says, for the legend.
        value: the number of a row, by which it is sorted; None where there is none.
        shown: the number as text.
        interval: the 95 % interval as text, None where the column has none.
    """

    name: str
    meaning: str
    value: Callable[[Row], float | None]
    shown: Callable[[Row], str]
    interval: Callable[[Row], str] | None = None


def columns(summary: Summary) -> list[Column]:
    """The columns that say something about this run: one that no row has a value for is left out."""
    base, counted = summary.baseline, COUNTED[summary.convention]
    k = max((row.samples for row in summary.rows), default=0)
    candidates = [
        Column(
            "accuracy",
            f"mean over problems of the share of right samples ({_of_samples(k)}), with its 95 % interval; a truncated "
            "response is wrong",
            lambda row: row.accuracy,
            lambda row: percent(row.accuracy),
            lambda row: _range(row.accuracy_low, row.accuracy_high, percent),
        ),
        Column(
            "against baseline",
            f"accuracy minus that of {base} on the same problems and samples, in percentage points, with its 95 % "
            "interval",
            lambda row: row.accuracy_difference,
            lambda row: points(row.accuracy_difference),
            lambda row: _range(row.accuracy_difference_low, row.accuracy_difference_high, points),
        ),
        Column(
            "uncut pairs",
            f"the same without the pairs in which the token limit cut a response of the method or of {base}",
            lambda row: row.uncut_difference if row.only_method_cut + row.only_baseline_cut + row.both_cut else None,
            lambda row: points(row.uncut_difference),
            lambda row: _range(row.uncut_difference_low, row.uncut_difference_high, points),
        ),
        _share("truncated", "share of responses that the token limit cut off", lambda row: row.truncated_share),
        _tokens(counted, f"mean {counted} a response, truncated ones at their full length", lambda row: row.cost),
        Column(
            "saving",
            f"1 − {counted} / those of {base} on the same problems and samples, with its 95 % interval",
            lambda row: row.token_saving,
            lambda row: percent(row.token_saving),
            lambda row: _range(row.token_saving_low, row.token_saving_high, percent),
        ),
        _tokens(
            "thinking",
            "mean thinking tokens, the closing marker included",
            lambda row: None if summary.convention == "thinking" else row.thinking_tokens,  # what is counted, above
        ),
        _tokens("median", "median thinking tokens", lambda row: row.thinking_tokens_median),
        _tokens("p95", "95th percentile of the thinking tokens", lambda row: row.thinking_tokens_p95),
        _tokens("probes", "mean tokens of trial answers that were thrown away", lambda row: row.probe_tokens or None),
        _tokens(
            "total",
            "mean tokens generated, whatever for",
            lambda row: None if summary.convention == "total" else row.total_tokens,
        ),
        Column(
            "wrong / right",
            "mean thinking tokens of wrong traces over those of right ones",
            lambda row: row.wrong_over_right,
            lambda row: _plain(row.wrong_over_right, 2),
        ),
        Column(
            "failed",
            "responses that failed; they are part of no other number",
            lambda row: row.failed or None,
            lambda row: f"{row.failed:,}",
        ),
        _share(
            "repetition", "share of 8-grams of the thinking that stood in it before", lambda row: row.repetition_share
        ),
        *(_covered(fewer) for fewer in sorted({each for row in summary.rows for each in row.coverage})),
        _share(f"pass@{k}", f"chance that one of {k} samples is right", lambda row: row.pass_at_k),
        _share(f"maj@{k}", f"share of problems whose most frequent of {k} answers is right", lambda row: row.maj_at_k),
        Column(
            "AES",
            f"accuracy-efficiency score with alpha {summary.aes_alpha:g}, beta {summary.aes_beta:g}, gamma "
            f"{summary.aes_gamma:g}",
            lambda row: row.aes,
            lambda row: _plain(row.aes, 2),
        ),
        Column(
            "AES strict",
            "the same with 1, 5 and 10, which other publications use",
            lambda row: row.aes_strict,
            lambda row: _plain(row.aes_strict, 2),
        ),
        Column(
            "EPR",
            f"saving of {counted} over the share of problems lost, where any was lost",
            lambda row: row.epr,
            lambda row: _plain(row.epr, 1),
        ),
        Column(
            "REG",
            f"accuracy in points that is missing to the best method with as many {counted} or fewer",
            lambda row: row.gap,
            lambda row: _plain(None if row.gap is None else 100 * row.gap, 1),
        ),
        Column(
            "AUC-OAA",
            "mean over t up to 1,000 of the share that is right with fewer than t thinking tokens",
            lambda row: row.area_oaa,
            lambda row: _plain(row.area_oaa, 3),
        ),
        Column(
            "McNemar p",
            f"exact two-sided p of the problems that only one of the method and {base} got right",
            lambda row: row.mcnemar_p,
            lambda row: _probability(row.mcnemar_p),
        ),
        Column(
            "p, corrected",
            "the same after Holm, for all methods of this table together",
            lambda row: row.mcnemar_holm if sum(each.mcnemar_p is not None for each in summary.rows) > 1 else None,
            lambda row: _probability(row.mcnemar_holm),
        ),
        Column(
            "seconds",
            f"wall seconds of a trace over those of {base} on the same problems, waiting for the engine included",
            lambda row: row.seconds_ratio,
            lambda row: "–" if row.seconds_ratio is None else f"× {row.seconds_ratio:.2f}",
        ),
        Column("n", "problems with at least one trace", lambda row: row.n, lambda row: f"{row.n:,}"),
    ]
    return [column for column in candidates if any(column.value(row) is not None for row in summary.rows)]


def markdown(summary: Summary) -> str:
    """The headline, the notes and the table as Markdown."""
    shown = columns(summary)
    lines = [_cell(str(headline(summary))), ""]
    lines += [] if summary.attention == "dense" else [f"Decoded with {_cell(summary.attention)} attention.", ""]
    lines += [f"> {_cell(note)}\n>" for note in summary.notes]
    lines += [""] if summary.notes else []
    lines.append("| # | method | " + " | ".join(column.name for column in shown) + " |")
    lines.append("|--:|:--|" + "--:|" * len(shown))
    for row in summary.rows:
        cells = [str(row.number), _cell(row.method) + (" ◆" if row.pareto else "")]
        for column in shown:
            interval = column.interval(row) if column.interval else ""
            cells.append(column.shown(row) + (f" ({interval})" if interval else ""))
        lines.append("| " + " | ".join(cells) + " |")
    counted = COUNTED[summary.convention]
    lines += ["", f"◆ on the Pareto front of accuracy and {counted}. Saving and cost count {counted}.", ""]
    lines += [f"- **{column.name}**: {_cell(column.meaning)}" for column in shown]
    return "\n".join(lines) + "\n"


def to_csv(summary: Summary) -> str:
    """One line a method with every field of `Row`; shares from 0 to 1, an empty cell where there is no value.

    Texts that a spreadsheet would run as a formula get an apostrophe in front.
    """
    fields = [*CSV_FIRST, *(name for name in Row.model_fields if name not in CSV_FIRST)]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in summary.rows:
        cells = row.model_dump().items()
        texts = ((name, json.dumps(cell) if isinstance(cell, dict) else cell) for name, cell in cells)
        writer.writerow({name: _no_formula(cell) if isinstance(cell, str) else cell for name, cell in texts})
    return text.getvalue()


def _no_formula(text: str) -> str:
    """Text that stays text in a spreadsheet, whoever chose it."""
    shown = visible(text)  # a lone carriage return would end the line for some readers
    return f"'{shown}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else shown


def _tokens(name: str, meaning: str, value: Callable[[Row], float | None]) -> Column:
    return Column(name, meaning, value, lambda row: _plain(value(row), 0))


def _share(name: str, meaning: str, value: Callable[[Row], float | None]) -> Column:
    return Column(name, meaning, value, lambda row: percent(value(row)))


def _covered(k: int) -> Column:
    return _share(
        f"pass@{k}", f"chance that one of {k} of the samples is right, unbiased", lambda row: row.coverage.get(k)
    )


def _plain(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def _probability(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _range(low: float | None, high: float | None, shown: Callable[[float], str]) -> str:
    if low is None or high is None:
        return ""
    return f"{shown(low)} to {shown(high)}".replace("\N{NO-BREAK SPACE}%", "")


def _of_samples(k: int) -> str:
    return "one a problem" if k <= 1 else f"avg@{k}"


def _cell(text: str) -> str:
    """Text that stays text in a Markdown table: no markup, no line break, no end of the cell."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", visible(text)).replace("\n", " ")
