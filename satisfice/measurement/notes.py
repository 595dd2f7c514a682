"""The sentences above a table: what makes it doubtful, and what it does not rest on."""

from collections.abc import Sequence

from satisfice.measurement.rows import Row

CUT_OFTEN = 0.01
"""Where more of the baseline's responses than this are cut off, the limit may decide a comparison (ours)."""

CUT_SELDOM = 0.005
"""Share of cut responses to aim at when choosing a token limit (ours)."""


def doubts(rows: Sequence[Row], baseline: str, cap: int | None) -> list[str]:
    """What makes the whole comparison doubtful, with what to try."""
    limit = "the token limit" if cap is None else f"the token limit of {cap:,}"
    doubts = []
    for row in rows:
        if not row.traces:
            continue
        assert row.truncated_share is not None
        assert row.unclosed_share is not None
        if row.truncated_share == 1:
            doubts.append(
                f"Every response of {row.method} was cut off by {limit}, so none is right and nothing is measured but "
                "the limit: raise --max-tokens; if the texts in the report look finished, the model's end token or "
                "chat template is not the one that is used."
            )
            continue
        if row.method == baseline and row.truncated_share > CUT_OFTEN:
            doubts.append(
                f"The baseline {row.method} was cut off by {limit} in {100 * row.truncated_share:.1f} % of its "
                "responses, which count as wrong: the limit, not the method, may decide this comparison. Raise "
                f"--max-tokens until it is less than {100 * CUT_SELDOM:g} %."
            )
        if row.unclosed_share > 0.5:
            doubts.append(
                f"{row.method} never closed its thinking in {100 * row.unclosed_share:.0f} % of its responses: raise "
                "--max-tokens, or say which markers the model uses with --thinking-format."
            )
        if row.accuracy == 0 and row.traces > 3:  # of fewer it says nothing
            doubts.append(
                f"No response of {row.method} is right: look at some in the report, and check --grader, --instruction "
                "and the gold answers (--column answer=NAME) before comparing anything."
            )
    return doubts


def notes_of(rows: Sequence[Row], baseline: str) -> list[str]:
    """What is unfinished, unpaired or failed, and so left out of some numbers."""
    notes = []
    if len({row.traces for row in rows if row.traces}) > 1:
        notes.append(
            "The methods have different numbers of traces so far: the columns of one method alone, and the picture, "
            "rest on different problems; accuracy difference, saving and AES do not."
        )
    for row in rows:
        if row.expected_traces is not None and row.traces + row.failed < row.expected_traces:
            notes.append(f"{row.method} is not finished: {row.traces:,} of {row.expected_traces:,} traces are there.")
    for row in rows:
        if row.unpaired or row.unpaired_baseline:
            notes.append(
                f"{row.method} is compared with {baseline} on {row.paired_traces:,} pairs; {row.unpaired:,} of its "
                f"traces and {row.unpaired_baseline:,} of {baseline} have no partner and are left out of it."
            )
    for row in rows:
        if row.failed:
            notes.append(
                f"{row.method} failed in {row.failed:,} of {row.traces + row.failed:,} responses. They are left out "
                "of every number but this one; if hard problems fail more often, what is left is too easy."
            )
    return notes
