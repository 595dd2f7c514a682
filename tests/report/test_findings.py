import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satisfice.measurement import Row, Summary, statistics, summarise
from satisfice.report import headline
from satisfice.report.findings import percent, points
from satisfice.trace import Cost, Grade, Trace


def a_row(method: str, difference: tuple[float, float, float], saving: tuple[float, Any, Any], n: int = 500) -> Row:
    return Row(
        number=2,
        method=method,
        n=n,
        samples=1,
        traces=n,
        expected_traces=n,
        complete_problems=n,
        paired_problems=n,
        paired_traces=n,
        paired_accuracy=0.908 + difference[0],
        paired_baseline_accuracy=0.908,
        accuracy_difference=difference[0],
        accuracy_difference_low=difference[1],
        accuracy_difference_high=difference[2],
        token_saving=saving[0],
        token_saving_low=saving[1],
        token_saving_high=saving[2],
        accuracy_difference_joint_low=difference[1],
        accuracy_difference_joint_high=difference[2],
        token_saving_joint_low=saving[1],
        token_saving_joint_high=saving[2],
        paired_truncated_share=0.001,
        paired_baseline_truncated_share=0.004,
    )


def cut(row: Row, uncut: tuple[float, float, float], base_share: float = 0.04) -> Row:
    """The row with pairs in which the baseline was cut off, and the difference without them."""
    pairs = round(base_share * row.n)
    return row.model_copy(
        update={
            "paired_truncated_share": 0.0,
            "paired_baseline_truncated_share": base_share,
            "only_baseline_cut": pairs,
            "uncut_pairs": row.n - pairs,
            "uncut_difference": uncut[0],
            "uncut_difference_low": uncut[1],
            "uncut_difference_high": uncut[2],
            "uncut_difference_joint_low": uncut[1],
            "uncut_difference_joint_high": uncut[2],
        }
    )


def a_summary(*rows: Row, convention: str = "thinking", n: int = 500) -> Summary:
    plain = Row(
        number=1,
        method="plain",
        n=n,
        samples=1,
        traces=n,
        expected_traces=500,
        complete_problems=n,
        accuracy=0.908 if n else None,
        accuracy_low=0.88 if n else None,
        accuracy_high=0.93 if n else None,
        cost=812.4 if n else None,
        truncated_share=0.004 if n else None,
    )
    return Summary(
        model="lab",
        problems="sums",
        problems_n=500,
        baseline="plain",
        convention=convention,
        cap=1024,
        rows=[plain, *rows],
        notes=[],
    )


def words(text: object) -> str:
    return str(text).replace("\N{NO-BREAK SPACE}", " ")


CUT = "right, 0.1 % against 0.4 % cut off by the token limit."


def test_a_method_that_keeps_the_accuracy() -> None:
    ts = a_row("temperature-scaling:t=0.9", (0.004, -0.009, 0.02), (0.48, 0.45, 0.51))
    found = headline(a_summary(ts))
    assert words(found.lead) == (
        "temperature-scaling:t=0.9 writes 48.0 % fewer thinking tokens than plain and keeps the accuracy within "
        f"1 point: 91.2 % against 90.8 % {CUT}"
    )
    assert words(found.evidence) == (
        "95 % intervals over 500 problems: saving 45.0 % to 51.0 %, accuracy difference −0.9 to +2.0 points."
    )
    strict = a_summary(ts).model_copy(update={"margin": 0.005})
    assert "is not decided at n = 500 (at most 0.9 points less" in headline(strict).lead
    generous = a_summary(ts).model_copy(update={"margin": 0.02})
    assert "keeps the accuracy within 2 points" in headline(generous).lead


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        ((0.03, 0.01, 0.05), " and is right more often: 93.8 % against 90.8 % "),
        ((0.03, 0.0, 0.05), " and keeps the accuracy within 1 point: 93.8 % against 90.8 % "),
        ((-0.005, -0.0081, -0.002), ", but is right less often, by at most 0.9 points: 90.3 % against 90.8 % "),
        (
            (-0.01, -0.06, 0.04),
            "; a difference in accuracy is not decided at n = 500 (at most 6 points less, at most 4 points more): "
            "89.8 % against 90.8 % ",
        ),
        (
            (0.0, -0.01, 0.01),
            "; a difference in accuracy is not decided at n = 500 (at most 1 point less, at most 1 point more): "
            "90.8 % against 90.8 % ",
        ),
        ((-0.05, -0.08, -0.02), ", but is right less often: 85.8 % against 90.8 % "),
    ],
)
def test_the_verdict_says_what_the_interval_allows(difference: tuple[float, float, float], verdict: str) -> None:
    found = headline(a_summary(a_row("deer", difference, (0.3, 0.2, 0.4))))
    assert words(found.lead) == f"deer writes 30.0 % fewer thinking tokens than plain{verdict}{CUT}"


@pytest.mark.parametrize("sign", [1, -1])
def test_what_the_token_limit_decides_is_no_gain_and_no_loss(sign: int) -> None:
    def turned(value: float, low: float, high: float) -> tuple[float, float, float]:
        return (value, low, high) if sign > 0 else (-value, -high, -low)

    row = a_row("deer", turned(0.027, 0.01, 0.044), (0.3, 0.2, 0.4))
    word = "more often" if sign > 0 else "less often"
    assert word in headline(a_summary(row)).lead
    assert word in headline(a_summary(cut(row, turned(0.02, 0.002, 0.04)))).lead
    for uncut in (turned(0.001, -0.009, 0.011), turned(-0.02, -0.03, -0.01)):
        found = headline(a_summary(cut(row, uncut)))
        assert "often" not in found.lead
        assert "the token limit may have decided, not the method" in found.lead
        assert "0.0 % against 4.0 % cut off" in words(found.lead)
        assert "Without the 20 pairs in which a response was cut off (20 of plain alone, 0 of deer alone)" in words(
            found.evidence
        )
    nothing = cut(row, (0, 0, 0), 1.0).model_copy(
        update={f"uncut_difference{end}": None for end in ("", "_low", "_high", "_joint_low", "_joint_high")}
    )
    found = headline(a_summary(nothing))
    assert "often" not in found.lead
    assert "nothing is left to compare" in found.evidence


def test_keeping_has_to_survive_the_cut_pairs_too() -> None:
    row = a_row("deer", (0.01, -0.005, 0.025), (0.3, 0.2, 0.4))
    assert "keeps the accuracy" in headline(a_summary(cut(row, (0.0, -0.008, 0.008)))).lead
    assert "keeps" not in headline(a_summary(cut(row, (-0.02, -0.03, -0.01)))).lead


def test_many_methods_are_judged_by_the_stricter_interval() -> None:
    rows = [
        a_row(name, (0.03, 0.001, 0.06), (0.3, 0.2, 0.4)).model_copy(
            update={"accuracy_difference_joint_low": -0.003, "accuracy_difference_joint_high": 0.063}
        )
        for name in ("a", "b", "c")
    ]
    found = headline(a_summary(*rows))
    assert "more often" not in found.lead
    assert "corrected for 3 comparisons" in found.evidence
    unknown = {
        f"{name}_joint_{end}": None for name in ("accuracy_difference", "token_saving") for end in ("low", "high")
    }
    found = headline(a_summary(*(row.model_copy(update=unknown) for row in rows)))
    assert "more often" not in str(found)
    assert found.lead == "None of 3 methods clearly writes fewer thinking tokens than plain."


def test_accuracy_comes_before_saving() -> None:
    greedy = a_row("budget-forcing", (-0.2, -0.25, -0.15), (0.8, 0.75, 0.85))
    doubtful = a_row("tldr", (-0.05, -0.11, 0.01), (0.6, 0.55, 0.65))
    unclear = a_row("dts", (0.0, -0.05, 0.05), (0.5, 0.45, 0.55))
    keeper = a_row("deer", (0.0, -0.009, 0.009), (0.1, 0.05, 0.15))
    better_keeper = a_row("ts", (0.0, -0.009, 0.009), (0.2, 0.15, 0.25))
    unsure = a_row("luck", (0.01, -0.005, 0.03), (0.3, -0.05, 0.6))
    for rows in ([greedy, doubtful], [greedy, doubtful, unclear], [keeper, greedy, unclear, better_keeper, unsure]):
        best = {2: "tldr", 3: "dts", 5: "ts"}[len(rows)]
        found = headline(a_summary(*rows))
        assert found.lead.startswith(f"{best} writes")
        assert f"Of {len(rows)} methods it was picked by its results on these same problems." in found.evidence


def test_if_all_that_save_lose_it_says_so() -> None:
    rows = [a_row(name, (-0.2, -0.25, -0.15), (saving, saving, saving)) for name, saving in (("a", 0.3), ("b", 0.6))]
    found = headline(a_summary(*rows))
    assert words(found.lead).startswith("b writes 60.0 % fewer thinking tokens than plain, but is right less often: ")
    assert found.evidence.endswith("So are all 2 methods that write fewer.")


def test_no_method_saves() -> None:
    longer = a_row("ts:t=1.1", (0.01, -0.005, 0.03), (-0.2, -0.3, -0.1))
    assert words(headline(a_summary(longer))) == (
        "ts:t=1.1 writes 20.0 % more thinking tokens than plain and keeps the accuracy within 1 point: 91.8 % against "
        f"90.8 % {CUT} 95 % intervals over 500 problems: saving −30.0 % to −10.0 %, accuracy difference −0.5 to +3.0 "
        "points."
    )
    unsure = a_row("deer", (0.0, -0.009, 0.01), (0.1, -0.1, 0.3))
    found = headline(a_summary(longer, unsure))
    assert found.lead == "None of 2 methods clearly writes fewer thinking tokens than plain."
    assert words(found.evidence).startswith(
        "The closest: Whether deer writes fewer or more thinking tokens than plain is not decided at n = 500 (here "
        "10.0 % fewer) and keeps the accuracy within 1 point: 90.8 % against 90.8 % "
    )
    single = a_row("deer", (0.0, -0.5, 0.5), (0.1, None, None), n=1)
    assert "One problem says nothing about the length of others" in headline(a_summary(single)).evidence


def test_failures_are_named() -> None:
    row = a_row("deer", (0.0, -0.005, 0.005), (0.3, 0.2, 0.4)).model_copy(update={"failed": 1200})
    assert str(headline(a_summary(row))).endswith("Left out are responses that failed: 1,200 of deer.")


def test_nothing_to_compare() -> None:
    assert words(headline(a_summary())) == (
        "plain answers 90.8 % of 500 problems with 812 thinking tokens each; 0.4 % are cut off by the token limit. "
        "95 % interval of the accuracy: 88.0 % to 93.0 %."
    )
    not_begun = Row(number=2, method="deer", n=0, samples=0, traces=0, expected_traces=500, complete_problems=0)
    assert str(headline(a_summary(not_begun))).endswith("Nothing can be compared with plain yet.")
    assert str(headline(a_summary(not_begun, n=0))) == "No problem has been solved yet."
    free = a_row("deer", (0.0, -0.01, 0.01), (0.0, None, None)).model_copy(update={"token_saving": None})
    assert headline(a_summary(free)).lead == "Nothing can be said about saving: plain wrote no thinking tokens."


# What every sentence has to keep to, over random runs and random tables.

CLAIMS = re.compile(r"(\S+) writes [\d.,]+ % (fewer|more)|(is right (more|less) often)|(keeps the accuracy)")


def check_claims(summary: Summary) -> set[str]:
    """Every claim of the headline is one that the numbers of its method justify, computed here again."""
    text = words(headline(summary))
    found = {match[2] or match[3] or match[5] for match in CLAIMS.finditer(text)}
    if not found:
        return found
    named = [row for row in summary.compared if re.search(rf"(?<![\w-]){re.escape(row.method)} (writes|has)", text)]
    assert len(named) == 1, text
    [row] = named
    cut_pairs = row.only_method_cut + row.only_baseline_cut + row.both_cut
    lows = [row.accuracy_difference_low, row.accuracy_difference_joint_low]
    highs = [row.accuracy_difference_high, row.accuracy_difference_joint_high]
    if cut_pairs:
        lows += [row.uncut_difference_low, row.uncut_difference_joint_low]
        highs += [row.uncut_difference_high, row.uncut_difference_joint_high]
    if "is right more often" in found:
        assert all(low is not None and low > 0 for low in lows), text
    if "is right less often" in found:
        assert all(high is not None and high < 0 for high in highs), text
    if "keeps the accuracy" in found:
        assert all(low is not None and low > -summary.margin for low in lows), text
    if "fewer" in found:
        assert row.token_saving_low is not None, text
        assert row.token_saving_joint_low is not None, text
        assert min(row.token_saving_low, row.token_saving_joint_low) > 0, text
    if "more" in found:
        assert row.token_saving_high is not None, text
        assert row.token_saving_joint_high is not None, text
        assert max(row.token_saving_high, row.token_saving_joint_high) < 0, text
    assert "cut off by the token limit" in text, "the cut share of both sides stands beside every accuracy"
    return found


@st.composite
def random_summaries(draw: st.DrawFn) -> Summary:
    """Tables with any intervals, also such as no run would give."""

    def interval(largest: float) -> tuple[float, float, float]:
        low, value, high = sorted(draw(st.floats(-largest, largest)) for _ in range(3))
        return value, low, high

    rows = []
    for number in range(draw(st.integers(1, 3))):
        row = a_row(f"method-{number}", interval(0.1), interval(0.9))
        if draw(st.booleans()):
            row = cut(row, interval(0.1))
        wider = {
            f"{name}_joint_{end}": getattr(row, f"{name}_{end}") + (0.02 if end == "high" else -0.02)
            for name in ("accuracy_difference", "token_saving", "uncut_difference")
            for end in ("low", "high")
            if getattr(row, f"{name}_{end}") is not None
        }
        rows.append(row.model_copy(update=wider if draw(st.booleans()) else {}))
    return a_summary(*rows).model_copy(update={"margin": draw(st.sampled_from([0.005, 0.01, 0.05]))})


@given(random_summaries())
@settings(max_examples=200, deadline=None)
def test_no_sentence_claims_more_than_its_interval(summary: Summary) -> None:
    check_claims(summary)


@st.composite
def random_runs(draw: st.DrawFn) -> Summary:
    """Runs in which methods differ a little, a lot, or by the token limit alone."""
    generator = random.Random(draw(st.integers(0, 10**6)))
    n, samples = draw(st.sampled_from([1, 2, 5, 30, 120])), draw(st.sampled_from([1, 3]))
    base_right, base_cut = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])), draw(st.sampled_from([0.0, 0.05, 0.4, 1.0]))
    methods = ["plain", *(f"method-{number}" for number in range(draw(st.integers(1, 3))))]
    traces: dict[str, list[Trace]] = {}
    for method in methods:
        change, factor = draw(st.sampled_from([-0.3, -0.02, 0.0, 0.05, 0.3])), draw(st.sampled_from([0.4, 0.97, 1, 2]))
        cuts, fails = draw(st.sampled_from([0.0, base_cut])), draw(st.sampled_from([0.0, 0.3]))
        plain = method == "plain"
        traces[method] = [
            Trace(
                problem_id=str(problem), method=method, sample=sample,
                finished=generator.random() >= (base_cut if plain else cuts),
                grade=Grade(correct=generator.random() < base_right + (0 if plain else change)),
                cost=Cost(
                    thinking_tokens=round(generator.lognormvariate(4, 0.7) * (1 if plain else factor)),
                    branch_tokens=draw(st.sampled_from([0, 0, 50])) if problem == 0 else 0,
                ),
            )
            for problem in range(n)
            for sample in range(samples)
            if generator.random() >= (0 if plain else fails)
        ]  # fmt: skip
    config = {"model": "lab", "problems": {"name": "sums", "n": n}, "methods": methods, "samples": samples}
    return summarise(config, traces, failed={method: n * samples - len(traces[method]) for method in methods})


@given(random_runs())
@settings(max_examples=60, deadline=None)
def test_no_sentence_of_a_run_claims_more_than_its_interval(summary: Summary) -> None:
    check_claims(summary)
    beside = any(
        row.total_tokens and row.total_tokens > row.thinking_tokens + row.answer_tokens + 1e-9  # type: ignore[operator]
        for row in summary.rows
    )
    assert summary.convention == ("total" if beside else "thinking")
    comparisons = len(summary.compared)
    assert summary.joint_confidence == pytest.approx(1 - (1 - statistics.CONFIDENCE) / max(1, comparisons))
    for row in summary.compared:
        for name in ("accuracy_difference", "token_saving", "uncut_difference"):
            low, joint_low = getattr(row, f"{name}_low"), getattr(row, f"{name}_joint_low")
            if low is not None:
                assert joint_low <= low + 1e-12, "what holds for all together is wider"


def test_the_check_of_claims_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    row = a_row("deer", (0.01, -0.02, 0.04), (0.3, 0.2, 0.4))
    monkeypatch.setattr("satisfice.report.findings.accuracy_claim", lambda row, summary: "more")
    with pytest.raises(AssertionError, match="more often"):
        check_claims(a_summary(row))


def test_numbers_in_words() -> None:
    assert [words(percent(share)) for share in (0.9125, 1.0, -0.0001, -0.25, None)] == [
        "91.2 %",
        "100.0 %",
        "0.0 %",
        "−25.0 %",
        "–",
    ]
    assert [points(difference) for difference in (0.0123, -0.0123, -0.0001, None)] == ["+1.2", "−1.2", "+0.0", "–"]
