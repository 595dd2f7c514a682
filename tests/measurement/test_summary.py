import json

import pytest

from satisfice.measurement import Summary, is_correct, statistics, summarise
from satisfice.trace import Cost, Grade, Trace

SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "max_tokens": 100}


def a_config(n: int = 2, samples: int = 1, methods: tuple[str, ...] = ("plain", "deer")) -> dict[str, object]:
    return {
        "model": "lab",
        "problems": {"name": "sums", "digest": "abc", "n": n},
        "methods": list(methods),
        "samples": samples,
        "sampling": SAMPLING,
        "baseline": "plain",
    }


def a_trace(
    method: str,
    problem: str,
    correct: bool,
    thinking: int,
    *,
    answer: int = 10,
    probe: int = 0,
    sample: int = 0,
    extracted: str | None = "x",
    finished: bool = True,
    seconds: float = 1.0,
    ids: list[int] | None = None,
) -> Trace:
    ids = list(range(thinking + answer)) if ids is None else ids
    return Trace(
        method=method,
        problem_id=problem,
        sample=sample,
        thinking="text" if thinking else "",
        response_ids=ids,
        thinking_span=(0, thinking),
        finished=finished,
        cost=Cost(thinking_tokens=thinking, answer_tokens=answer, probe_tokens=probe, seconds=seconds),
        grade=Grade(correct=correct, extracted=extracted),
    )


def test_a_small_run_by_hand() -> None:
    traces = {
        "plain": [a_trace("plain", "p1", True, 40, seconds=2.0), a_trace("plain", "p2", False, 90, finished=False)],
        "deer": [a_trace("deer", "p1", True, 20, probe=5), a_trace("deer", "p2", True, 30, probe=15)],
    }
    summary = summarise(a_config(), traces, "retained")
    plain, deer = summary.rows
    assert (plain.number, plain.n, plain.samples, plain.traces, plain.expected_traces) == (1, 2, 1, 2, 2)
    assert (plain.accuracy, plain.truncated_share) == (0.5, 0.5)
    assert (plain.thinking_tokens, plain.thinking_tokens_correct, plain.thinking_tokens_wrong) == (65.0, 40.0, 90.0)
    assert plain.wrong_over_right == pytest.approx(2.25)
    assert (plain.cost, plain.total_tokens, plain.answer_tokens) == (75.0, 75.0, 10.0)
    assert (deer.cost, deer.total_tokens, deer.probe_tokens) == (35.0, 45.0, 10.0)
    assert deer.cost_p95 == pytest.approx(30 + 0.95 * 10)
    assert deer.token_saving == pytest.approx(1 - 35 / 75)
    assert deer.accuracy_difference == 0.5
    assert (deer.only_baseline_correct, deer.only_method_correct, deer.mcnemar_p) == (0, 1, 1.0)
    assert deer.aes == pytest.approx((75 - 35) / 75 + 3 * 1.0)
    assert deer.seconds_ratio == pytest.approx(2 / 3)
    assert (plain.pareto, deer.pareto) == (False, True)
    assert deer.wrong_over_right is None
    assert deer.thinking_tokens_wrong is None
    assert (plain.token_saving, plain.accuracy_difference, plain.aes, plain.mcnemar_p) == (None,) * 4
    assert (plain.pass_at_k, plain.maj_at_k) == (None, None)
    assert (deer.only_method_cut, deer.only_baseline_cut, deer.both_cut, deer.uncut_pairs) == (0, 1, 0, 1)
    assert (deer.paired_truncated_share, deer.paired_baseline_truncated_share) == (0.0, 0.5)
    assert deer.uncut_difference == 0.0, "the gain is the pair that was cut off"
    [limit, beside] = summary.notes
    assert limit == (
        "The baseline plain was cut off by the token limit of 100 in 50.0 % of its responses, which count as wrong: "
        "the limit, not the method, may decide this comparison. Raise --max-tokens until it is less than 0.5 %."
    )
    assert beside.startswith("Counted are retained tokens, as asked: the probe, branch or outline tokens")
    assert (summary.cap, summary.baseline, summary.problems_n) == (100, "plain", 2)


def test_the_convention_decides_what_is_saved() -> None:
    traces = {
        "plain": [a_trace("plain", "p1", True, 40), a_trace("plain", "p2", True, 40)],
        "deer": [a_trace("deer", "p1", True, 20, probe=35), a_trace("deer", "p2", True, 20, probe=35)],
    }
    saving = {
        convention: summarise(a_config(), traces, convention).rows[1].token_saving
        for convention in ("thinking", "retained", "total")
    }
    assert saving == pytest.approx({"thinking": 0.5, "retained": 0.4, "total": 1 - 65 / 50})
    with pytest.raises(ValueError, match="no counting convention 'words'"):
        summarise(a_config(), traces, "words")
    for margin in (0.0, -0.01, 1.0, 5.0):
        with pytest.raises(ValueError, match="margin"):
            summarise(a_config(), traces, margin=margin)


def test_all_tokens_count_where_any_method_spends_some_beside_its_response() -> None:
    traces = {
        "plain": [a_trace("plain", "p1", True, 40)],
        "vote": [a_trace("vote", "p1", True, 30)],
        "short": [a_trace("short", "p1", True, 20)],
    }
    config = a_config(1, 1, ("plain", "vote", "short"))
    assert summarise(config, traces).convention == "thinking"
    assert [row.cost for row in summarise(config, traces).rows] == [40, 30, 20]
    for kind in ("probe_tokens", "branch_tokens", "outline_tokens"):
        vote = traces["vote"][0]
        costly = {**traces, "vote": [vote.model_copy(update={"cost": vote.cost.model_copy(update={kind: 150})})]}
        summary = summarise(config, costly)
        assert (summary.convention, {row.convention for row in summary.rows}) == ("total", {"total"})
        assert [row.cost for row in summary.rows] == [50, 190, 30]
        assert summary.row("vote").token_saving == pytest.approx(1 - 190 / 50)
        assert summary.row("short").token_saving == pytest.approx(1 - 30 / 50)
        assert summary.row("vote").pareto is False


def test_pass_and_majority_over_problems_with_all_samples() -> None:
    traces = {
        "plain": [
            *(a_trace("plain", "p1", ok, 10, sample=i, extracted=a) for i, (ok, a) in enumerate([(1, "7"), (0, "3")])),
            *(a_trace("plain", "p2", ok, 10, sample=i, extracted=a) for i, (ok, a) in enumerate([(0, "3"), (1, "7")])),
            *(a_trace("plain", "p3", ok, 10, sample=i, extracted=a) for i, (ok, a) in enumerate([(0, None), (0, " ")])),
            a_trace("plain", "p4", True, 10),
        ]
    }
    row = summarise(a_config(4, 2, ("plain",)), traces).rows[0]
    assert row.accuracy == pytest.approx((0.5 + 0.5 + 0 + 1) / 4)
    assert (row.n, row.samples, row.complete_problems, row.traces, row.expected_traces) == (4, 2, 3, 7, 8)
    assert row.pass_at_k == pytest.approx(2 / 3)
    assert row.maj_at_k == pytest.approx(1 / 3), "ties go to the earliest sample; no answer is no vote"


def test_coverage_is_told_for_powers_of_two_below_the_samples() -> None:
    verdicts = {"p1": (1, 0, 0, 0, 0), "p2": (1, 1, 1, 1, 1), "p3": (0, 0, 0, 0, 0)}
    traces = {
        "plain": [a_trace("plain", p, ok, 10, sample=i) for p, row in verdicts.items() for i, ok in enumerate(row)]
    }
    row = summarise(a_config(3, 5, ("plain",)), traces).rows[0]
    assert row.coverage == pytest.approx({2: (0.4 + 1 + 0) / 3, 4: (0.8 + 1 + 0) / 3})
    assert row.pass_at_k == pytest.approx(2 / 3)


def test_only_pairs_are_compared_and_the_rest_is_counted() -> None:
    traces = {
        "plain": [a_trace("plain", "p1", True, 40), a_trace("plain", "p2", False, 60), a_trace("plain", "p3", True, 9)],
        "deer": [a_trace("deer", "p2", True, 20), a_trace("deer", "p4", False, 500)],
    }
    summary = summarise(a_config(4), traces, "retained")
    deer = summary.rows[1]
    assert (deer.paired_problems, deer.paired_traces, deer.unpaired, deer.unpaired_baseline) == (1, 1, 1, 2)
    assert (deer.paired_accuracy, deer.paired_baseline_accuracy) == (1.0, 0.0)
    assert deer.accuracy_difference == 1.0
    assert deer.token_saving == pytest.approx(1 - 30 / 70)
    assert (deer.token_saving_low, deer.token_saving_high) == (None, None)
    assert deer.aes is None, "the baseline is never right on the pairs"
    assert deer.accuracy == 0.5
    assert any(note == "deer is not finished: 2 of 4 traces are there." for note in summary.notes)
    assert any("on 1 pairs; 1 of its traces and 2 of plain have no partner" in note for note in summary.notes)
    assert any("different numbers of traces" in note for note in summary.notes)


def test_samples_are_paired_by_index() -> None:
    traces = {
        "plain": [a_trace("plain", "p1", True, 40, sample=0), a_trace("plain", "p1", True, 60, sample=1)],
        "deer": [a_trace("deer", "p1", True, 20, sample=1)],
    }
    deer = summarise(a_config(1, 2), traces, "retained").rows[1]
    assert (deer.paired_traces, deer.unpaired_baseline) == (1, 1)
    assert deer.token_saving == pytest.approx(1 - 30 / 70)
    assert deer.mcnemar_p == 1.0
    traces["deer"].append(a_trace("deer", "p1", False, 20, sample=0))
    deer = summarise(a_config(1, 2), traces).rows[1]
    assert deer.mcnemar_p is None, "samples of one problem are not independent trials"


def test_truncated_traces_are_wrong_whatever_the_grade() -> None:
    truncated = a_trace("plain", "p1", True, 100, finished=False)
    assert not is_correct(truncated)
    [row] = summarise(a_config(1, 1, ("plain",)), {"plain": [truncated]}).rows
    assert (row.accuracy, row.truncated_share, row.thinking_tokens) == (0.0, 1.0, 100.0)


def test_failures_are_left_out_of_everything_and_counted() -> None:
    whole = {
        "plain": [a_trace("plain", f"p{i}", i % 3 > 0, 40 + i, finished=i % 5 > 0) for i in range(40)],
        "deer": [a_trace("deer", f"p{i}", i % 4 > 0, 41 + i) for i in range(40)],
    }
    half = {"plain": whole["plain"], "deer": whole["deer"][::2]}
    row = summarise(a_config(40), half, failed={"deer": 20}).rows[1]
    alone = summarise(a_config(40), half).rows[1]
    assert (row.failed, row.error_share, row.traces, row.paired_traces) == (20, 0.5, 20, 20)
    same = row.model_copy(update={"failed": 0, "error_share": 0.0})
    assert same == alone, "as if the failed ones had never been tried"
    assert row.token_saving is not None
    assert row.token_saving < 0.01
    notes = summarise(a_config(40), half, failed={"deer": 20}).notes
    assert any(note.startswith("deer failed in 20 of 40 responses. They are left out") for note in notes)
    assert not any("is not finished" in note for note in notes)
    nothing = summarise(a_config(40), {"plain": [], "deer": []}, failed={"plain": 40, "deer": 40})
    assert [(row.n, row.failed, row.accuracy, row.cost) for row in nothing.rows] == [(0, 40, None, None)] * 2


def test_a_method_that_fails_half_the_time_saves_nothing() -> None:
    same = {
        "plain": [a_trace("plain", f"p{i}", True, 90) for i in range(40)],
        "deer": [a_trace("deer", f"p{i}", True, 90) for i in range(0, 40, 2)],
    }
    row = summarise(a_config(40), same, failed={"deer": 20}).rows[1]
    assert (row.token_saving, row.accuracy_difference, row.truncated_share) == (0.0, 0.0, 0.0)
    assert row.token_saving_low is not None
    assert row.token_saving_low < 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"finished": False}, "Every response of plain was cut off by the token limit of 100"),
        ({"grade": Grade(correct=False)}, "No response of plain is right"),
        ({"stop": "token limit"}, "plain never closed its thinking in 100 % of its responses: raise --max-tokens"),
        ({"stop": "end of text"}, "plain never closed its thinking in 100 % of its responses"),
    ],
)
def test_a_run_that_measures_nothing_says_so_and_what_to_try(change: dict[str, object], words: str) -> None:
    fine = [a_trace("plain", f"p{i}", True, 40) for i in range(8)]
    assert summarise(a_config(8, 1, ("plain",)), {"plain": fine}).notes == []
    bad = [trace.model_copy(update=change) for trace in fine]
    [note] = summarise(a_config(8, 1, ("plain",)), {"plain": bad}).notes
    assert words in note
    assert "--" in note


def test_a_baseline_that_is_seldom_cut_needs_no_warning() -> None:
    for cut, warned in ((1, False), (2, False), (3, True)):
        traces = [a_trace("plain", f"p{i}", True, 40, finished=i >= cut) for i in range(200)]
        notes = summarise(a_config(200, 1, ("plain",)), {"plain": traces}).notes
        assert any("the limit, not the method" in note for note in notes) == warned


def test_many_methods_have_wider_intervals_for_sentences() -> None:
    methods = ("plain", "a", "b", "c")
    traces = {m: [a_trace(m, f"p{i}", (i * len(m)) % 7 > 2, 30 + (i * 7) % 11) for i in range(60)] for m in methods}
    one = summarise(a_config(60, 1, methods[:2]), {m: traces[m] for m in methods[:2]})
    assert one.joint_confidence == pytest.approx(0.95)
    assert one.rows[1].token_saving_joint_low == one.rows[1].token_saving_low
    three = summarise(a_config(60, 1, methods), traces)
    assert three.joint_confidence == pytest.approx(1 - 0.05 / 3)
    assert three.rows[1].token_saving_low == one.rows[1].token_saving_low
    estimate = statistics.accuracy_difference(
        [[is_correct(trace)] for trace in traces["a"]], [[is_correct(trace)] for trace in traces["plain"]], 1 - 0.05 / 3
    )
    assert estimate is not None
    assert three.rows[1].accuracy_difference_joint_low == estimate.low


def test_ungraded_traces_are_refused() -> None:
    ungraded = Trace(method="plain", problem_id="p1")
    with pytest.raises(ValueError, match="'plain' on problem 'p1', sample 0 has no grade"):
        summarise(a_config(1, 1, ("plain",)), {"plain": [ungraded]})
    with pytest.raises(ValueError, match="'dts', which the configuration does not list"):
        summarise(a_config(), {"dts": []})


def test_repetition_is_of_the_thinking_only() -> None:
    looping = a_trace("plain", "p1", False, 20, ids=[7] * 20 + list(range(10)))
    fine = a_trace("plain", "p2", True, 20, ids=list(range(20)) + [7] * 10)
    row = summarise(a_config(2, 1, ("plain",)), {"plain": [looping, fine]}).rows[0]
    assert row.repetition_share == pytest.approx((12 / 13) / 2)
    assert row.repeating_share == 0.5
    without_ids = fine.model_copy(update={"response_ids": []})
    row = summarise(a_config(2, 1, ("plain",)), {"plain": [looping, without_ids]}).rows[0]
    assert (row.repetition_share, row.repeating_share) == (None, None)


def test_a_run_that_has_not_begun() -> None:
    summary = summarise(a_config(), {})
    assert [(row.method, row.n, row.accuracy, row.cost, row.pareto) for row in summary.rows] == [
        ("plain", 0, None, None, None),
        ("deer", 0, None, None, None),
    ]
    assert "plain is not finished: 0 of 2 traces are there." in summary.notes


def test_a_baseline_without_traces_leaves_comparisons_open() -> None:
    summary = summarise(a_config(), {"deer": [a_trace("deer", "p1", True, 20), a_trace("deer", "p2", True, 20)]})
    deer = summary.rows[1]
    assert (deer.paired_problems, deer.unpaired, deer.token_saving, deer.aes) == (0, 2, None, None)
    assert deer.accuracy == 1.0
    assert deer.pareto is True


def test_a_summary_survives_json() -> None:
    traces = {"plain": [a_trace("plain", "p1", True, 40)], "deer": [a_trace("deer", "p1", False, 20)]}
    config = {**a_config(1), "warnings": ['device: "cpu" -> "gpu" when the run was resumed']}
    summary = summarise(config, traces)
    text = summary.model_dump_json()
    assert Summary.model_validate_json(text) == summary
    assert "NaN" not in text
    assert json.loads(text)["aes_gamma"] == 5.0
    assert summary.notes == config["warnings"]
    assert summary.row("deer").number == 2
    with pytest.raises(KeyError):
        summary.row("dts")
