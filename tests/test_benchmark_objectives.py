"""The table of all objectives: intervals cover, the correction counts rows, what is finished is not run again."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "objectives.py"


@pytest.fixture(scope="module")
def objectives():
    specification = importlib.util.spec_from_file_location("benchmark_objectives", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("between_seeds", [0.0, 0.02, 0.05])
def test_the_interval_over_seeds_and_problems_covers(objectives, between_seeds):
    """Seeds that differ by nothing, by as much as sampling 100 problems does, and by far more."""
    rng = np.random.default_rng(1)
    repeats, seeds, problems = 400, 3, 100
    covered = 0
    for _ in range(repeats):
        gained = np.clip(0.10 + rng.normal(0, between_seeds, (seeds, 1)) + rng.normal(0, 0.03, (1, problems)), 0, 1)
        draws = rng.random((seeds, problems))
        differences = (draws < gained).astype(float) - (draws > 0.96)
        found = objectives.pooled(differences.tolist())
        covered += found.low <= 0.06 <= found.high
    # A nominal 95 %, with three standard errors of this simulation below it.
    assert covered / repeats > 0.915


def test_one_seed_has_no_interval_and_equal_numbers_no_width(objectives):
    assert objectives.pooled([[1.0, 0.0]]) == objectives.Difference(0.5)
    assert objectives.pooled([[0.0, 0.0], [0.0, 0.0]]) == objectives.Difference(0.0, 0.0, 0.0, 1.0)


def test_holm_multiplies_by_what_is_left(objectives):
    assert objectives.holm([0.01, 0.04, 0.02]) == pytest.approx([0.03, 0.04, 0.04])
    assert objectives.holm([0.9, 0.5]) == [1.0, 1.0]


def written(folder, plan, name, seed, right, tokens, cut=False):
    rows = [{"id": f"p{k}", "correct": bool(k % 10 < right), "tokens": tokens, "cut": cut} for k in range(20)]
    content = {"plan": plan, "violations": None if name == "untrained" else 1.5, "asked": {"": rows}}
    (folder / f"{name}-{seed}.json").write_text(json.dumps(content))


def test_the_table_shows_both_sides_and_only_what_is_finished(objectives, tmp_path):
    plan = {"problems": "lab:test", "limit": 20, "max_tokens": 960}
    for seed in (0, 1):
        written(tmp_path, plan, "untrained", seed, right=9, tokens=100, cut=seed == 1)
        written(tmp_path, plan, "kimi", seed, right=10 - seed, tokens=50 - 10 * seed)
    written(tmp_path, plan, "kimi", 2, right=0, tokens=1)  # its untrained side is not there yet
    lines = objectives.table(tmp_path, ["kimi", "laser"], plan).splitlines()
    row = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert row[0] == "[`kimi`](../objectives/kimi.md)"
    assert row[2] == "2"
    assert row[3] == "95.0%"
    assert row[4].startswith("+5.0 (")
    assert row[6:] == ["45", "55% (50% … 60%)", "50.0% / 0.0%", "1.5"]
    assert not any("laser" in line for line in lines)
    with pytest.raises(SystemExit, match="limit 20 -> 30"):
        objectives.table(tmp_path, ["kimi"], {**plan, "limit": 30})


def test_what_is_finished_is_not_run_again(objectives, tmp_path, monkeypatch):
    monkeypatch.setattr(objectives, "satisfice", lambda *arguments: pytest.fail(f"ran {arguments}"))
    plan = {"problems": "lab:test", "limit": 20, "max_tokens": 960}
    written(tmp_path, plan, "kimi", 0, right=9, tokens=100)
    objectives.measure("kimi", 0, tmp_path, plan)
