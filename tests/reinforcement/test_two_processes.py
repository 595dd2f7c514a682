"""Two processes see what one sees: groups are put together before anything is computed from them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "distributed.py"
TESTS = Path(__file__).parents[1]


def run(folder: Path, launcher: list[str], objective: str, rows: int, config: dict[str, Any]) -> list[dict[str, Any]]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SCRIPT), str(folder), objective, str(rows), json.dumps(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["tldr", "smartthinker"])
def test_a_group_that_straddles_two_processes(tmp_path: Path, tiny_config: Any, objective: str) -> None:
    # Three groups of four responses over two processes of six rows: the second group is in both.
    (alone,) = run(tmp_path / "one", [sys.executable], objective, 12, tiny_config)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    first, second = run(tmp_path / "two", torchrun, objective, 6, tiny_config)
    assert (alone["world"], first["world"], second["world"]) == (1, 2, 2)
    assert first["rewards"] == second["rewards"] == alone["rewards"]
    assert first["advantages"] == second["advantages"] == alone["advantages"]
    assert [*first["local"], *second["local"]] == alone["advantages"]
    assert len({reward for _, reward in alone["rewards"]}) > 3
