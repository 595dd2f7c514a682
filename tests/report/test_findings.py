from typing import Any

import pytest

from satisfice.measurement import Row, Summary
from satisfice.report import headline
from satisfice.report.findings import percent, points


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


def test_a_method_that_keeps_the_accuracy() -> None:
    ts = a_row("temperature-scaling:t=0.9", (0.004, -0.012, 0.02), (0.48, 0.45, 0.51))
    found = headline(a_summary(ts))
    assert words(found.lead) == (
        "temperature-scaling:t=0.9 writes 48.0 % fewer thinking tokens than plain and keeps the accuracy: "
        "91.2 % against 90.8 %."
    )
    assert words(found.evidence) == (
        "95 % intervals over 500 problems: saving 45.0 % to 51.0 %, accuracy difference −1.2 to +2.0 points."
    )


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        ((0.03, 0.01, 0.05), "and is right more often: 93.8 % against 90.8 %."),
        ((-0.01, -0.018, -0.002), "and loses little accuracy: 89.8 % against 90.8 %."),
        ((-0.01, -0.06, 0.04), "with about the same accuracy: 89.8 % against 90.8 %."),
        ((-0.05, -0.11, 0.01), "but was right less often, perhaps by chance: 85.8 % against 90.8 %."),
        ((-0.05, -0.08, -0.02), "but loses accuracy: 85.8 % against 90.8 %."),
    ],
)
def test_the_verdict_says_what_the_interval_allows(difference: tuple[float, float, float], verdict: str) -> None:
    found = headline(a_summary(a_row("deer", difference, (0.3, 0.2, 0.4))))
    assert words(found.lead).endswith(verdict)
    too_wide = difference[1] < -0.02 and difference[2] >= 0
    assert ("too wide to rule out a loss" in found.evidence) == too_wide


def test_a_wide_interval_is_named() -> None:
    found = headline(a_summary(a_row("deer", (-0.01, -0.064, 0.04), (0.3, 0.2, 0.4), n=30), convention="retained"))
    assert "fewer response tokens" in found.lead
    assert words(found.evidence).endswith("points. That is too wide to rule out a loss of 6.4 points.")
    assert "over 30 problems" in found.evidence


def test_accuracy_comes_before_saving() -> None:
    greedy = a_row("budget-forcing", (-0.2, -0.25, -0.15), (0.8, 0.75, 0.85))
    doubtful = a_row("tldr", (-0.05, -0.11, 0.01), (0.6, 0.55, 0.65))
    unclear = a_row("dts", (0.0, -0.05, 0.05), (0.5, 0.45, 0.55))
    keeper = a_row("deer", (0.0, -0.015, 0.015), (0.1, 0.05, 0.15))
    better_keeper = a_row("ts", (0.0, -0.015, 0.015), (0.2, 0.15, 0.25))
    unsure = a_row("luck", (0.01, -0.01, 0.03), (0.3, -0.05, 0.6))
    for rows in ([greedy, doubtful], [greedy, doubtful, unclear], [keeper, greedy, unclear, better_keeper, unsure]):
        best = {2: "tldr", 3: "dts", 5: "ts"}[len(rows)]
        found = headline(a_summary(*rows))
        assert found.lead.startswith(f"{best} writes")
        assert f"Of {len(rows)} methods it was picked by its results on these same problems." in found.evidence


def test_if_all_that_save_lose_it_says_so() -> None:
    rows = [a_row(name, (-0.2, -0.25, -0.15), (saving, saving, saving)) for name, saving in (("a", 0.3), ("b", 0.6))]
    found = headline(a_summary(*rows))
    assert words(found.lead).startswith("b writes 60.0 % fewer thinking tokens than plain but loses accuracy")
    assert found.evidence.endswith("So do all 2 methods that save tokens.")


def test_no_method_saves() -> None:
    longer = a_row("ts:t=1.1", (0.01, -0.01, 0.03), (-0.2, -0.3, -0.1))
    assert words(headline(a_summary(longer))) == (
        "ts:t=1.1 does not clearly write fewer thinking tokens than plain. It wrote 20.0 % more on 500 problems "
        "(95 % interval of the saving −30.0 % to −10.0 %), with accuracy 91.8 % against 90.8 %."
    )
    unsure = a_row("deer", (0.0, -0.01, 0.01), (0.1, -0.1, 0.3))
    found = headline(a_summary(longer, unsure))
    assert found.lead == "None of 2 methods clearly writes fewer thinking tokens than plain."
    assert words(found.evidence).startswith("The closest, deer, wrote 10.0 % fewer on 500 problems")
    single = a_row("deer", (0.0, -0.5, 0.5), (0.1, None, None), n=1)
    assert "on 1 problem (one problem says nothing about others)" in headline(a_summary(single)).evidence


def test_nothing_to_compare() -> None:
    assert words(headline(a_summary())) == (
        "plain answers 90.8 % of 500 problems with 812 thinking tokens each. "
        "95 % interval of the accuracy: 88.0 % to 93.0 %."
    )
    not_begun = Row(number=2, method="deer", n=0, samples=0, traces=0, expected_traces=500, complete_problems=0)
    assert str(headline(a_summary(not_begun))).endswith("Nothing can be compared with plain yet.")
    assert str(headline(a_summary(not_begun, n=0))) == "No problem has been solved yet."
    free = a_row("deer", (0.0, -0.01, 0.01), (0.0, None, None)).model_copy(update={"token_saving": None})
    assert headline(a_summary(free)).lead == "Nothing can be said about saving: plain wrote no thinking tokens."


def test_numbers_in_words() -> None:
    assert [words(percent(share)) for share in (0.9125, 1.0, -0.0001, -0.25, None)] == [
        "91.2 %",
        "100.0 %",
        "0.0 %",
        "−25.0 %",
        "–",
    ]
    assert [points(difference) for difference in (0.0123, -0.0123, -0.0001, None)] == ["+1.2", "−1.2", "+0.0", "–"]
