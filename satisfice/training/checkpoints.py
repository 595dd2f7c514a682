"""What a checkpoint of `LengthGRPOTrainer` holds besides TRL's own files, and which one a training may go on from.

The state file is written last, so a checkpoint that holds it is complete. It says what decided the weights, and a
training that something else decides does not go on from it.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig

from satisfice.reinforcement.objective import ObjectiveError

STATE_FILE = "objective.json"
"""In each checkpoint: the objective's state, what decided the training, and what else the trainer must remember."""
CONFIGURED = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "seed", "max_steps", "num_generations", "temperature",
    "top_p", "max_completion_length", "generation_batch_size", "num_iterations", "beta", "loss_type",
)  # fmt: skip
"""Settings that a training must go on with, where nobody says what decided it."""


class SaveState(TrainerCallback):  # type: ignore[misc]
    """Writes the state file into each checkpoint, when all the rest of it is there.

    Args:
        state: what to write, as plain data.
        wait: returns when every process has written its part of the checkpoint.
    """

    def __init__(self, state: Callable[[], dict[str, Any]], wait: Callable[[], None]) -> None:
        self.state = state
        self.wait = wait

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when it has written the rest of a checkpoint."""
        self.wait()
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(self.state(), indent=1))
            os.replace(unfinished, path)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a folder, complete or not, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NUMBER.search(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder; None where there is none."""
    return next((path for path in checkpoints(folder) if (path / STATE_FILE).is_file()), None)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds besides TRL's own files.

    Raises:
        ObjectiveError: it is not complete, or another trainer's.
    """
    path = checkpoint / STATE_FILE
    if not path.is_file():
        raise ObjectiveError(
            f"{checkpoint} was not written by this trainer, or not to its end: it holds no {STATE_FILE}"
        )
    saved: dict[str, Any] = json.loads(path.read_text())
    return saved


def check_decided_by(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint of a training that something else decided.

    Raises:
        ObjectiveError: with what was different, old and new.
    """
    before = _flat(read_state(checkpoint).get("decided_by", {}))
    # As it would be read back, so that a tuple is the list that it was written as.
    after = _flat(json.loads(json.dumps(now)))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if changed:
        shown = "; ".join(f"{key} {_spelled(before.get(key))} -> {_spelled(after.get(key))}" for key in changed[:6])
        more = f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise ObjectiveError(
            f"{checkpoint} is of another training ({shown}{more}): go on with what it was begun with, or start in "
            "another directory"
        )


def configured(args: GRPOConfig, train_dataset: Dataset) -> dict[str, Any]:
    """What decides a training of which nobody says so: the main settings, and the data set by its digest."""
    settings = {name: vars(args)[name] for name in CONFIGURED}
    rows = json.dumps(train_dataset.to_list(), default=str)
    digest = hashlib.sha256(rows.encode()).hexdigest()[:16]
    return {**settings, "lr_scheduler_type": str(args.lr_scheduler_type), "train_dataset": digest}


_NUMBER = re.compile(r"checkpoint-(\d+)$")


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys spelled with dots."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _spelled(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
