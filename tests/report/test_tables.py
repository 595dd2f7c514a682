import csv
import io
import json
from pathlib import Path

import pytest
from synthetic_run import write_run

from satisfice.measurement import Row, Summary, summarise
from satisfice.report import markdown, to_csv
from satisfice.report.tables import columns
from satisfice.runs.run_folder import read_run


def a_summary(folder: Path, **parameters: object) -> Summary:
    run = read_run(write_run(folder, **parameters))  # type: ignore[arg-type]
    return summarise(run.config, run.traces)


def test_csv_has_every_field_and_the_main_ones_first(tmp_path: Path) -> None:
    summary = a_summary(tmp_path / "run", problems=10, methods=3)
    text = to_csv(summary)
    assert text.startswith(
        "method,n,accuracy,accuracy_low,accuracy_high,thinking_tokens,total_tokens,token_saving,truncated_share,"
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    assert set(rows[0]) == set(Row.model_fields)
    assert [row["method"] for row in rows] == [row.method for row in summary.rows]
    assert rows[0]["token_saving"] == ""
    assert float(rows[1]["token_saving"]) == summary.rows[1].token_saving


def test_columns_without_a_value_are_left_out(tmp_path: Path) -> None:
    single = [column.name for column in columns(a_summary(tmp_path / "single", problems=10, methods=2))]
    assert "McNemar p" in single
    assert not {"probes", "errors", "pass@2", "maj@2"} & set(single)
    several = [column.name for column in columns(a_summary(tmp_path / "several", problems=10, samples=2, methods=3))]
    assert {"probes", "pass@2", "maj@2"} <= set(several)
    more = a_summary(tmp_path / "more", problems=6, samples=5, methods=1)
    assert [column.name for column in columns(more) if column.name.startswith("pass@")] == [
        "pass@2",
        "pass@4",
        "pass@5",
    ]
    [row] = csv.DictReader(io.StringIO(to_csv(more)))
    assert json.loads(row["coverage"]) == {str(k): value for k, value in more.rows[0].coverage.items()}
    assert "McNemar p" not in several


@pytest.mark.parametrize("methods", [1, 5])
def test_markdown_table_is_well_formed(tmp_path: Path, methods: int) -> None:
    summary = a_summary(tmp_path / "run", problems=10, methods=methods, finished=0.5)
    text = markdown(summary)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == methods + 2
    assert len({line.count("|") for line in table}) == 1
    assert "is not finished: 5 of 10 traces are there." in text.replace("\\", "")


def test_markdown_of_hostile_names_is_text(tmp_path: Path) -> None:
    text = markdown(a_summary(tmp_path / "run", problems=8, methods=2, hostile=True))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "\\<b\\>bad" in text
    assert "<b" not in text.replace("\\<b", "")


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2", "@sum(A1)", "\tx", "\rx"])
def test_no_method_is_a_formula_in_a_csv(tmp_path: Path, name: str) -> None:
    summary = a_summary(tmp_path / "run", problems=10, methods=3)
    odd = summary.rows[1].model_copy(update={"method": name, "accuracy_difference": -0.25})
    text = to_csv(summary.model_copy(update={"rows": [summary.rows[0], odd]}))
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["method"] for row in rows] == ["plain", "'" + name.replace("\r", "␍")]
    assert rows[1]["accuracy_difference"] == "-0.25", "numbers stay numbers"
