"""Two processes see what one sees: groups are put together before anything is computed from them, rows are shared."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from training.setting import policy

SCRIPT = Path(__file__).parent / "distributed.py"
SUPERVISED = Path(__file__).parent / "distributed_supervised.py"
TESTS = Path(__file__).parents[1]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def carried_out(command: list[str]) -> None:
    # Of the same tree as this process, which need not be the installed one.
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-6000:]


def run(folder: Path, launcher: list[str], objective: str, rows: int, config: dict[str, Any]) -> list[dict[str, Any]]:
    folder.mkdir()
    carried_out([*launcher, str(SCRIPT), str(folder), objective, str(rows), json.dumps(config)])
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["tldr", "smartthinker"])
def test_a_group_that_straddles_two_processes(tmp_path: Path, tiny_config: Any, objective: str) -> None:
    # Three groups of four responses over two processes of six rows: the second group is in both.
    (alone,) = run(tmp_path / "one", [sys.executable], objective, 12, tiny_config)
    first, second = run(tmp_path / "two", TORCHRUN, objective, 6, tiny_config)
    assert (alone["world"], first["world"], second["world"]) == (1, 2, 2)
    assert first["rewards"] == second["rewards"] == alone["rewards"]
    assert first["advantages"] == second["advantages"] == alone["advantages"]
    assert [*first["local"], *second["local"]] == alone["advantages"]
    assert len({reward for _, reward in alone["rewards"]}) > 3


def chat(steps: int) -> list[dict[str, str]]:
    content = "<think>\n" + "c) 10+5=15\n" * steps + "</think>\n\nThe answer is \\boxed{15}."
    return [{"role": "assistant", "content": content}]


@pytest.mark.slow
def test_a_training_on_rows_shares_them(tmp_path: Path, tiny_config: Any, tokenizer: Any) -> None:
    policy(tiny_config).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    asked = [{"role": "user", "content": "Start with 10. c) +5. What is the result?"}]
    rows: dict[str, list[dict[str, Any]]] = {
        # Of different lengths, so that a mean over each process's own tokens would be another one.
        "sft": [{"messages": [*asked, *chat(steps)]} for steps in (1, 4, 2, 6)],
        "length-dpo": [{"prompt": asked, "chosen": chat(n), "rejected": chat(n + 3)} for n in (1, 2, 3, 4)],
        "offline-clip": [
            {"messages": [*asked, *chat(n)], "weight": weight} for n, weight in enumerate((1.5, -1.0, 0.5, -0.25), 1)
        ],
        "mixture": [{"messages": [*asked, *chat(1 + n)], "pool": ("short", "long")[n // 2]} for n in range(4)],
    }
    plans = {}
    for name, content in rows.items():
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in content))
        # With plain descent the step is the gradient.
        plans[name] = {
            "model": str(tmp_path / "start"), "data": str(data), "steps": 3, "rows_per_step": 4, "micro_batch": 1,
            "max_tokens": 100, "learning_rate": 0.1, "save_every": 1, "threads": 1, "trl": {"optim": "sgd"},
        }  # fmt: skip
    plans["mixture"] |= {"validation": "lab:calibration", "validation_limit": 3, "validate_every": 1, "diagnose": 2}
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    for folder, launcher in (("one", [sys.executable]), ("two", TORCHRUN)):
        carried_out([*launcher, str(SUPERVISED), str(tmp_path / "plans.json"), str(tmp_path / folder)])
    before = load_file(tmp_path / "start" / "model.safetensors")
    for name in plans:
        alone, shared = (load_file(tmp_path / folder / name / "model.safetensors") for folder in ("one", "two"))
        moved = max(float((alone[key] - before[key]).abs().max()) for key in before)
        apart = max(float((alone[key] - shared[key]).abs().max()) for key in before)
        assert moved > 1e-3, name
        assert apart < 1e-3 * moved + 1e-6, name
    assert (tmp_path / "two" / "mixture" / "diagnosis" / "diagnosis.json").is_file()
