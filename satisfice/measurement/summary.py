"""The table of a run: one row a method, with everything that a fair comparison needs.

What is paired is compared only on what both sides have: the same problem and the same sample index. What is on one
side only is counted in the row, so that a comparison of an unfinished run says what it rests on.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from satisfice.measurement import statistics
from satisfice.trace import Cost, Trace

SCHEMA_VERSION = 1

REPEATING = 0.5
"""A trace whose thinking has a larger share of repeated n-grams than this counts as repeating."""


Value = TypeVar("Value", bound=float)


class Row(BaseModel):
    """One method of a run. Token counts are means over all samples unless the name says otherwise; shares and
    accuracies are from 0 to 1.

    A field is None where it cannot be computed: everything but the counts without a trace; `*_correct` without a
    right trace and `*_wrong` without a wrong one; pass@k and maj@k with one sample; whatever compares for the
    baseline itself and without pairs; the McNemar fields with several samples; the intervals of one problem.

    Attributes:
        number: place of the method in the configuration, from 1.
        method: as spelled.
        n: problems with at least one trace.
        samples: most samples any problem has (the k of avg@k, pass@k and maj@k).
        traces, expected_traces: how many there are, and how many the configuration asks for.
        complete_problems: problems that have all `samples`; pass@k and maj@k are over these.
        accuracy, accuracy_low, accuracy_high: avg@k and its 95 % interval.
        pass_at_k: chance that one of k samples is right.
        maj_at_k: share of problems whose most frequent answer is right.
        cost, cost_correct, cost_wrong, cost_median, cost_p95: tokens under the summary's convention.
        thinking_tokens, answer_tokens, probe_tokens, total_tokens: tokens of each sort, with `_median`, `_p95`,
            `_correct` (mean over right traces) and `_wrong` (mean over wrong ones).
        wrong_over_right: thinking tokens of wrong traces over those of right ones, both means.
        truncated_share: traces that ran into the token limit; they are wrong and counted at full length.
        error_share: traces in which the method failed; they are wrong.
        repetition_share: mean share of repeated n-grams in the thinking; None also where the engine gave no ids.
        repeating_share: traces above `REPEATING`.
        seconds, forward_passes, prefilled_tokens, cached_tokens: means a trace.
        paired_problems, paired_traces: what is compared with the baseline.
        unpaired, unpaired_baseline: traces of the method, and of the baseline, that have no partner.
        paired_accuracy, paired_baseline_accuracy: avg@k of both on the pairs.
        accuracy_difference, accuracy_difference_low, accuracy_difference_high: method minus baseline on the pairs.
        only_baseline_correct, only_method_correct, mcnemar_p: discordant pairs and the exact test.
        token_saving, token_saving_low, token_saving_high: 1 - cost / baseline's cost on the pairs.
        seconds_ratio: seconds over the baseline's seconds on the pairs.
        aes: accuracy-efficiency score on the pairs, from the cost under the convention.
        pareto: whether no other method of the run has at most its cost and at least its accuracy.
    """

    number: int
    method: str
    n: int
    samples: int
    traces: int
    expected_traces: int | None
    complete_problems: int
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    pass_at_k: float | None = None
    maj_at_k: float | None = None
    cost: float | None = None
    cost_median: float | None = None
    cost_p95: float | None = None
    cost_correct: float | None = None
    cost_wrong: float | None = None
    thinking_tokens: float | None = None
    thinking_tokens_median: float | None = None
    thinking_tokens_p95: float | None = None
    thinking_tokens_correct: float | None = None
    thinking_tokens_wrong: float | None = None
    answer_tokens: float | None = None
    answer_tokens_median: float | None = None
    answer_tokens_p95: float | None = None
    answer_tokens_correct: float | None = None
    answer_tokens_wrong: float | None = None
    probe_tokens: float | None = None
    probe_tokens_median: float | None = None
    probe_tokens_p95: float | None = None
    probe_tokens_correct: float | None = None
    probe_tokens_wrong: float | None = None
    total_tokens: float | None = None
    total_tokens_median: float | None = None
    total_tokens_p95: float | None = None
    total_tokens_correct: float | None = None
    total_tokens_wrong: float | None = None
    wrong_over_right: float | None = None
    truncated_share: float | None = None
    error_share: float | None = None
    repetition_share: float | None = None
    repeating_share: float | None = None
    seconds: float | None = None
    forward_passes: float | None = None
    prefilled_tokens: float | None = None
    cached_tokens: float | None = None
    paired_problems: int = 0
    paired_traces: int = 0
    unpaired: int = 0
    unpaired_baseline: int = 0
    paired_accuracy: float | None = None
    paired_baseline_accuracy: float | None = None
    accuracy_difference: float | None = None
    accuracy_difference_low: float | None = None
    accuracy_difference_high: float | None = None
    only_baseline_correct: int | None = None
    only_method_correct: int | None = None
    mcnemar_p: float | None = None
    token_saving: float | None = None
    token_saving_low: float | None = None
    token_saving_high: float | None = None
    seconds_ratio: float | None = None
    aes: float | None = None
    pareto: bool | None = None


class Summary(BaseModel):
    """The table of a run.

    Attributes:
        model, problems, problems_n: what was run on what, as in the configuration.
        baseline: the method that the others are compared with.
        convention: the counting convention of cost, saving, AES and Pareto front (`satisfice.trace.CONVENTIONS`).
        cap: the token limit of a response, None where the configuration has none.
        aes_alpha, aes_beta, aes_gamma: constants of the AES.
        rows: one a method, in the order of the configuration.
        notes: what a reader has to know before believing the table, one sentence each.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    model: str
    problems: str
    problems_n: int | None
    baseline: str
    convention: str
    cap: int | None
    aes_alpha: float = statistics.AES_ALPHA
    aes_beta: float = statistics.AES_BETA
    aes_gamma: float = statistics.AES_GAMMA
    rows: list[Row]
    notes: list[str]

    def row(self, method: str) -> Row:
        """The row of a method.

        Raises:
            KeyError: the run has no such method.
        """
        for row in self.rows:
            if row.method == method:
                return row
        raise KeyError(method)


def summarise(
    config: Mapping[str, Any], traces_by_method: Mapping[str, Sequence[Trace]], convention: str = "retained"
) -> Summary:
    """The table of a run, finished or not.

    Args:
        config: content of run.json.
        traces_by_method: graded traces of each method; the order of methods is that of the configuration.
        convention: the counting convention of cost, saving, AES and Pareto front.

    Raises:
        ValueError: there is no such convention, a method or the baseline is not part of the configuration, or a
            trace has no grade.
    """
    Cost().count(convention)  # refuses an unknown name before anything is computed
    methods = list(config["methods"])
    for method in traces_by_method:
        if method not in methods:
            raise ValueError(f"traces of method {method!r}, which the configuration does not list: {methods}")
    baseline = config.get("baseline") or methods[0]
    if baseline not in methods:
        raise ValueError(f"the baseline {baseline!r} is not one of the configuration's methods: {methods}")
    problems = config.get("problems") or {}
    expected = problems["n"] * config["samples"] if problems.get("n") and config.get("samples") else None

    base_traces = traces_by_method.get(baseline, [])
    rows = [
        _row(number, method, traces_by_method.get(method, []), base_traces, method == baseline, expected, convention)
        for number, method in enumerate(methods, start=1)
    ]
    placed = [(row, row.cost, row.accuracy) for row in rows if row.cost is not None and row.accuracy is not None]
    front = statistics.pareto_front([cost for _, cost, _ in placed], [accuracy for _, _, accuracy in placed])
    for (row, _, _), member in zip(placed, front, strict=True):
        row.pareto = member

    return Summary(
        model=str(config.get("model", "")),
        problems=str(problems.get("name", "")),
        problems_n=problems.get("n"),
        baseline=baseline,
        convention=convention,
        cap=(config.get("sampling") or {}).get("max_tokens"),
        rows=rows,
        notes=[*_notes(rows, baseline), *map(str, config.get("warnings") or [])],
    )


def is_correct(trace: Trace) -> bool:
    """Whether a trace counts as right: graded so, and neither truncated nor failed.

    Raises:
        ValueError: the trace has no grade, though its method did not fail.
    """
    if trace.grade is None and trace.error is None:
        raise ValueError(
            f"{trace.method!r} on problem {trace.problem_id!r}, sample {trace.sample} has no grade: "
            "grade the run before measuring it"
        )
    return trace.correct and not trace.truncated and trace.error is None


def _row(
    number: int,
    method: str,
    traces: Sequence[Trace],
    base_traces: Sequence[Trace],
    is_baseline: bool,
    expected: int | None,
    convention: str,
) -> Row:
    problems = _by_problem(traces)
    samples = max(map(len, problems.values()), default=0)
    complete = [group for group in problems.values() if len(group) == samples]
    row = Row(
        number=number,
        method=method,
        n=len(problems),
        samples=samples,
        traces=len(traces),
        expected_traces=expected,
        complete_problems=len(complete),
    )
    if traces:
        _fill_accuracy(row, problems, complete)
        _fill_costs(row, traces, convention)
    if traces and not is_baseline:
        _fill_comparison(row, traces, base_traces, convention)
    return row


def _fill_accuracy(row: Row, problems: Mapping[str, list[Trace]], complete: Sequence[list[Trace]]) -> None:
    estimate = statistics.accuracy([[is_correct(trace) for trace in group] for group in problems.values()])
    assert estimate is not None
    row.accuracy, row.accuracy_low, row.accuracy_high = estimate.value, estimate.low, estimate.high
    if row.samples > 1:
        right = [[is_correct(trace) for trace in group] for group in complete]
        row.pass_at_k = _mean([statistics.pass_at_k(row.samples, sum(group), row.samples) for group in right])
        row.maj_at_k = _mean(
            [
                statistics.majority_is_correct([_extracted(trace) for trace in group], verdicts)
                for group, verdicts in zip(complete, right, strict=True)
            ]
        )


def _fill_costs(row: Row, traces: Sequence[Trace], convention: str) -> None:
    right = [is_correct(trace) for trace in traces]
    kinds: dict[str, Callable[[Cost], int]] = {
        "cost": lambda cost: cost.count(convention),
        "thinking_tokens": lambda cost: cost.thinking_tokens,
        "answer_tokens": lambda cost: cost.answer_tokens,
        "probe_tokens": lambda cost: cost.probe_tokens,
        "total_tokens": lambda cost: cost.total_tokens,
    }
    for kind, count in kinds.items():
        tokens = statistics.describe_tokens([count(trace.cost) for trace in traces], right)
        setattr(row, kind, tokens.mean)
        for part in ("median", "p95", "correct", "wrong"):
            setattr(row, f"{kind}_{part}", getattr(tokens, part))
    if row.thinking_tokens_wrong is not None and row.thinking_tokens_correct:
        row.wrong_over_right = row.thinking_tokens_wrong / row.thinking_tokens_correct

    row.truncated_share = _mean([trace.truncated for trace in traces])
    row.error_share = _mean([trace.error is not None for trace in traces])
    if all(trace.response_ids or not trace.thinking for trace in traces):
        shares = [statistics.repetition_share(trace.response_ids[slice(*trace.thinking_span)]) for trace in traces]
        row.repetition_share = _mean(shares)
        row.repeating_share = _mean([share > REPEATING for share in shares])
    row.seconds = _mean([trace.cost.seconds for trace in traces])
    row.forward_passes = _mean([trace.cost.forward_passes for trace in traces])
    row.prefilled_tokens = _mean([trace.cost.prefilled_tokens for trace in traces])
    row.cached_tokens = _mean([trace.cost.cached_tokens for trace in traces])


def _fill_comparison(row: Row, traces: Sequence[Trace], base_traces: Sequence[Trace], convention: str) -> None:
    pairs, row.unpaired, row.unpaired_baseline = _pairs(traces, base_traces)
    row.paired_problems = len(pairs)
    row.paired_traces = sum(map(len, pairs))
    if not pairs:
        return

    def sides(value: Callable[[Trace], Value]) -> tuple[list[list[Value]], list[list[Value]]]:
        ours = [[value(trace) for trace, _ in pairs_of_problem] for pairs_of_problem in pairs]
        base = [[value(trace) for _, trace in pairs_of_problem] for pairs_of_problem in pairs]
        return ours, base

    right, base_right = sides(is_correct)
    row.paired_accuracy = _mean(statistics.problem_means(right))
    row.paired_baseline_accuracy = _mean(statistics.problem_means(base_right))
    difference = statistics.accuracy_difference(right, base_right)
    assert difference is not None
    row.accuracy_difference = difference.value
    row.accuracy_difference_low, row.accuracy_difference_high = difference.low, difference.high
    if row.paired_traces == row.paired_problems:
        b, c = statistics.discordant([ours[0] for ours in right], [base[0] for base in base_right])
        row.only_baseline_correct, row.only_method_correct, row.mcnemar_p = b, c, statistics.mcnemar(b, c)

    tokens, base_tokens = sides(lambda trace: trace.cost.count(convention))
    saving = statistics.saving(tokens, base_tokens)
    if saving is not None:
        row.token_saving, row.token_saving_low, row.token_saving_high = saving.value, saving.low, saving.high
    row.aes = statistics.accuracy_efficiency_score(
        row.paired_accuracy,
        _mean(statistics.problem_means(tokens)),
        row.paired_baseline_accuracy,
        _mean(statistics.problem_means(base_tokens)),
    )
    seconds, base_seconds = sides(lambda trace: trace.cost.seconds)
    base_time = _mean(statistics.problem_means(base_seconds))
    row.seconds_ratio = _mean(statistics.problem_means(seconds)) / base_time if base_time else None


def _by_problem(traces: Sequence[Trace]) -> dict[str, list[Trace]]:
    """The traces of each problem, in the order of samples."""
    problems: dict[str, list[Trace]] = {}
    for trace in sorted(traces, key=lambda trace: (trace.problem_id, trace.sample)):
        problems.setdefault(trace.problem_id, []).append(trace)
    return problems


def _pairs(traces: Sequence[Trace], base_traces: Sequence[Trace]) -> tuple[list[list[tuple[Trace, Trace]]], int, int]:
    """Pairs of traces of the same problem and sample, grouped by problem; and how many of each side have no partner."""
    base = {(trace.problem_id, trace.sample): trace for trace in base_traces}
    groups = [
        [(trace, base[key]) for trace in group if (key := (trace.problem_id, trace.sample)) in base]
        for group in _by_problem(traces).values()
    ]
    pairs = [group for group in groups if group]
    paired = sum(map(len, pairs))
    return pairs, len(traces) - paired, len(base_traces) - paired


def _extracted(trace: Trace) -> str | None:
    """The vote of a trace: its answer as text, None where there is none."""
    if trace.grade is None or trace.grade.extracted is None:
        return None
    return trace.grade.extracted.strip() or None


def _mean(values: Sequence[float] | statistics.Floats) -> float:
    return float(np.mean(values))


def _notes(rows: Sequence[Row], baseline: str) -> list[str]:
    notes = []
    if len({row.traces for row in rows if row.traces}) > 1:
        notes.append(
            "The methods have different numbers of traces so far: the columns of one method alone, and the picture, "
            "rest on different problems; accuracy difference, saving and AES do not."
        )
    for row in rows:
        if row.expected_traces is not None and row.traces < row.expected_traces:
            notes.append(f"{row.method} is not finished: {row.traces:,} of {row.expected_traces:,} traces are there.")
    for row in rows:
        if row.unpaired or row.unpaired_baseline:
            notes.append(
                f"{row.method} is compared with {baseline} on {row.paired_traces:,} pairs; {row.unpaired:,} of its "
                f"traces and {row.unpaired_baseline:,} of {baseline} have no partner and are left out of it."
            )
    for row in rows:
        if row.error_share:
            failed = round(row.error_share * row.traces)
            notes.append(f"{row.method} failed on {failed:,} of {row.traces:,} traces; they count as wrong.")
    return notes
