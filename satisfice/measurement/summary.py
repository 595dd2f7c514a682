"""The table of a run: one row a method, with everything that a fair comparison needs.

What is paired is compared only on what both sides have: the same problem and the same sample index. What is on one
side only is counted in the row, so that a comparison of an unfinished run says what it rests on. What failed is no
trace: it is part of no number but the count of it.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from satisfice.measurement import metrics, statistics
from satisfice.measurement.columns import REPEATING, Columns, Ints, pairs, ungraded_message
from satisfice.measurement.notes import doubts, notes_of
from satisfice.measurement.published import doubt
from satisfice.measurement.ragged import Grouped, Ragged, problem_means
from satisfice.measurement.rows import MARGIN, Row, Summary
from satisfice.trace import Cost, Trace


def summarise(
    config: Mapping[str, Any],
    traces_by_method: Mapping[str, Sequence[Trace]],
    convention: str | None = None,
    margin: float = MARGIN,
    failed: Mapping[str, int] | None = None,
) -> Summary:
    """The table of a run, finished or not.

    Args:
        config: content of run.json.
        traces_by_method: graded traces of each method; the order of methods is that of the configuration. A file of
            traces that was read brings its columns along, and is not read again.
        convention: the counting convention of cost, saving, AES and Pareto front; by default
            "total" where any method spent tokens beside its response (probes, branches, outlines), else "thinking".
        margin: the loss of accuracy, as a share, that a method which "keeps the accuracy" must rule out.
        failed: how many responses of each method were tried and could not be had.

    Raises:
        ValueError: there is no such convention, the margin is not between 0 and 1, a method or the baseline is not
            part of the configuration, or a trace has no grade.
    """
    if not 0 < margin < 1:
        raise ValueError(f"the margin is a share of problems above 0 and below 1, 0.01 for one point, not {margin}")
    methods = list(config["methods"])
    for method in traces_by_method:
        if method not in methods:
            raise ValueError(f"traces of method {method!r}, which the configuration does not list: {methods}")
    baseline = config.get("baseline") or methods[0]
    if baseline not in methods:
        raise ValueError(f"the baseline {baseline!r} is not one of the configuration's methods: {methods}")
    problems = config.get("problems") or {}
    expected = problems["n"] * config["samples"] if problems.get("n") and config.get("samples") else None
    cap = (config.get("sampling") or {}).get("max_tokens")
    if convention is not None:
        Cost().count(convention)  # refuses an unknown name before anything is computed

    columns = {method: Columns.of(traces_by_method.get(method, [])) for method in methods}
    for method, held in columns.items():
        if (row_number := held.ungraded) is not None:
            raise ValueError(ungraded_message(method, *held.row(row_number)))
    beside = [held.cost("total") > held.cost("retained") for held in columns.values()]
    convention = convention or ("total" if any(map(np.any, beside)) else "thinking")
    matched = {method: pairs(held, columns[baseline]) for method, held in columns.items() if method != baseline}
    joint = 1 - (1 - statistics.CONFIDENCE) / max(1, sum(rows.rows.size > 0 for rows, _ in matched.values()))

    rows = []
    for number, method in enumerate(methods, start=1):
        row = _row(number, method, columns[method], expected, convention)
        row.failed = (failed or {}).get(method, 0)
        if row.traces or row.failed:
            row.error_share = row.failed / (row.traces + row.failed)
        if row.traces and method != baseline:
            _fill_comparison(row, columns[method], columns[baseline], matched[method], joint)
        rows.append(row)
    _fill_front(rows)
    tested = [row for row in rows if row.mcnemar_p is not None]
    for row, adjusted in zip(tested, metrics.holm([row.mcnemar_p or 0.0 for row in tested]), strict=True):
        row.mcnemar_holm = adjusted

    notes = [*doubts(rows, baseline, cap), *notes_of(rows, baseline)]
    if any(
        np.any((held.cost(convention) < held.cost("total")) & spent)
        for held, spent in zip(columns.values(), beside, strict=True)
    ):
        notes.append(
            f"Counted are {convention} tokens, as asked: the probe, branch or outline tokens that some methods spend "
            "are left out. Count total tokens before you say what a method costs."
        )
    notes += _published(rows, baseline, str(problems.get("name", "")), str(config.get("model", "")))
    return Summary(
        model=str(config.get("model", "")),
        problems=str(problems.get("name", "")),
        problems_n=problems.get("n"),
        attention=str(config.get("attention", "dense")),
        baseline=baseline,
        convention=convention,
        margin=margin,
        joint_confidence=joint,
        cap=cap,
        rows=rows,
        notes=[*notes, *map(str, config.get("warnings") or [])],
    )


def _published(rows: Sequence[Row], baseline: str, suite: str, model: str) -> list[str]:
    """Whether plain decoding lies far from what was published; of other methods nothing is."""
    for row in rows:
        if row.method == baseline == "plain" and row.accuracy is not None:
            said = doubt(suite, model, statistics.Estimate(row.accuracy, row.accuracy_low, row.accuracy_high))
            return [said] if said else []
    return []


def _row(number: int, method: str, columns: Columns, expected: int | None, convention: str) -> Row:
    groups = columns.by_problem()
    samples = int(groups.sizes.max(initial=0))
    complete = groups.only(groups.sizes == samples)
    row = Row(
        number=number,
        method=method,
        n=len(groups),
        samples=samples,
        traces=len(columns),
        expected_traces=expected,
        complete_problems=len(complete),
        convention=convention,
    )
    if len(columns):
        _fill_accuracy(row, columns, groups, complete)
        _fill_costs(row, columns, convention)
    return row


def _fill_accuracy(row: Row, columns: Columns, groups: Grouped, complete: Grouped) -> None:
    right = columns.right
    estimate = statistics.accuracy(groups.of(right))
    assert estimate is not None
    row.accuracy, row.accuracy_low, row.accuracy_high = estimate.value, estimate.low, estimate.high
    row.area_oaa = metrics.area_under_oaa(right, columns.count("thinking_tokens"))
    if row.samples > 1:
        verdicts, votes = complete.of(right), complete.of(columns.votes)
        right_of = [int(sum(group)) for group in verdicts]
        row.pass_at_k = _mean([statistics.pass_at_k(row.samples, count, row.samples) for count in right_of])
        if right_of:
            for k in itertools.takewhile(lambda k: k < row.samples, (2**power for power in itertools.count(1))):
                covered = [statistics.pass_at_k(row.samples, count, k) for count in right_of]
                row.coverage[k] = float(np.mean(covered))
        row.maj_at_k = _mean(
            [
                statistics.majority_is_correct([vote or None for vote in group.tolist()], good)
                for group, good in zip(votes, verdicts, strict=True)
            ]
        )


def _fill_costs(row: Row, columns: Columns, convention: str) -> None:
    kinds: dict[str, Ints] = {
        "cost": columns.cost(convention),
        "thinking_tokens": columns.count("thinking_tokens"),
        "answer_tokens": columns.count("answer_tokens"),
        "probe_tokens": columns.count("probe_tokens"),
        "total_tokens": columns.cost("total"),
    }
    for kind, counts in kinds.items():
        tokens = statistics.describe_tokens(counts, columns.right)
        setattr(row, kind, tokens.mean)
        for part in ("median", "p95", "correct", "wrong"):
            setattr(row, f"{kind}_{part}", getattr(tokens, part))
    if row.thinking_tokens_wrong is not None and row.thinking_tokens_correct:
        row.wrong_over_right = row.thinking_tokens_wrong / row.thinking_tokens_correct

    row.truncated_share = _mean(columns.truncated)
    row.unclosed_share = _mean(columns.never_closed)
    repetition = columns.repetition
    if not np.isnan(repetition).any():
        row.repetition_share = _mean(repetition)
        row.repeating_share = _mean(repetition > REPEATING)
    row.seconds = _mean(columns.seconds)
    for name in ("forward_passes", "prefilled_tokens", "cached_tokens"):
        setattr(row, name, _mean(columns.count(name)))


def _fill_comparison(row: Row, columns: Columns, base: Columns, matched: tuple[Grouped, Ints], joint: float) -> None:
    groups, base_rows = matched
    row.paired_problems, row.paired_traces = len(groups), int(groups.rows.size)
    row.unpaired = len(columns) - row.paired_traces
    row.unpaired_baseline = len(base) - row.paired_traces
    if not len(groups):
        return
    there = Grouped(base_rows, groups.starts)
    right, base_right = groups.of(columns.right), there.of(base.right)
    row.paired_accuracy = _mean(problem_means(right))
    row.paired_baseline_accuracy = _mean(problem_means(base_right))
    difference = statistics.accuracy_difference(right, base_right)
    assert difference is not None
    row.accuracy_difference = difference.value
    row.accuracy_difference_low, row.accuracy_difference_high = difference.low, difference.high
    together = statistics.accuracy_difference(right, base_right, joint)
    assert together is not None
    row.accuracy_difference_joint_low, row.accuracy_difference_joint_high = together.low, together.high
    _fill_uncut(row, columns, base, matched, joint)
    if row.paired_traces == row.paired_problems:
        b, c = statistics.discordant(right.values.tolist(), base_right.values.tolist())
        row.only_baseline_correct, row.only_method_correct, row.mcnemar_p = b, c, statistics.mcnemar(b, c)

    tokens, base_tokens = groups.of(columns.cost(row.convention)), there.of(base.cost(row.convention))
    saving = statistics.saving(tokens, base_tokens)
    if saving is not None:
        row.token_saving, row.token_saving_low, row.token_saving_high = saving.value, saving.low, saving.high
        row.epr = metrics.efficiency_performance_ratio(saving.value, -difference.value)
        together = statistics.saving(tokens, base_tokens, joint)
        assert together is not None
        row.token_saving_joint_low, row.token_saving_joint_high = together.low, together.high
    pair = (
        row.paired_accuracy,
        _mean(problem_means(tokens)),
        row.paired_baseline_accuracy,
        _mean(problem_means(base_tokens)),
    )
    row.aes = metrics.accuracy_efficiency_score(*pair)
    alpha, beta, gamma = metrics.AES_SETS["1, 5, 10"]
    row.aes_strict = metrics.accuracy_efficiency_score(*pair, alpha=alpha, beta=beta, gamma=gamma)
    base_time = _mean(problem_means(there.of(base.seconds)))
    row.seconds_ratio = _mean(problem_means(groups.of(columns.seconds))) / base_time if base_time else None


def _fill_uncut(row: Row, columns: Columns, base: Columns, matched: tuple[Grouped, Ints], joint: float) -> None:
    """How often the token limit cut each side, and the difference without these pairs."""
    groups, base_rows = matched
    ours, theirs = columns.truncated[groups.rows], base.truncated[base_rows]
    row.paired_truncated_share, row.paired_baseline_truncated_share = _mean(ours), _mean(theirs)
    row.only_method_cut = int((ours & ~theirs).sum())
    row.only_baseline_cut = int((theirs & ~ours).sum())
    row.both_cut = int((ours & theirs).sum())
    whole = groups.rows_where(~(ours | theirs))
    row.uncut_pairs = int(whole.rows.size)
    right = whole.of(columns.right)
    base_right = Ragged(base.right[base_rows[~(ours | theirs)]], whole.starts)
    difference = statistics.accuracy_difference(right, base_right)
    together = statistics.accuracy_difference(right, base_right, joint)
    if difference is not None and together is not None:
        row.uncut_difference = difference.value
        row.uncut_difference_low, row.uncut_difference_high = difference.low, difference.high
        row.uncut_difference_joint_low, row.uncut_difference_joint_high = together.low, together.high


def _fill_front(rows: Sequence[Row]) -> None:
    """Which methods no other one dominates, and how far the others are from them."""
    placed = [(row, row.cost, row.accuracy) for row in rows if row.cost is not None and row.accuracy is not None]
    front = metrics.pareto_front([cost for _, cost, _ in placed], [accuracy for _, _, accuracy in placed])
    known = [(cost, accuracy) for _, cost, accuracy in placed]
    for (row, cost, accuracy), member in zip(placed, front, strict=True):
        row.pareto, row.gap = member, metrics.reasoning_efficiency_gap(accuracy, cost, known)


def _mean(values: Any) -> float:
    return float(np.mean(values))
