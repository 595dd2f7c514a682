"""Levels: the length instructions that a trained model obeys, in a small file beside its weights.

Training writes them, engines read them, and whoever serves the model finds there what to put after a question. The
same file says how the model marks its thinking; see `ThinkingFormat.detect`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

LEVELS = ("short", "medium", "long")
"""In their order of length."""

FILE = "satisfice.json"


def write_levels(folder: Path, instructions: Mapping[str, str], **more: object) -> Path:
    """Write the instruction of each level into a model's directory; `more` says how the model was trained."""
    path = folder / FILE
    path.write_text(json.dumps({"levels": dict(instructions), **more}, indent=2, ensure_ascii=False) + "\n")
    return path


def read_levels(folder: Path) -> dict[str, str]:
    """The instruction of each level that the model in this directory was trained on; empty where there is none.

    Raises:
        ValueError: the file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        levels = json.loads(path.read_text())["levels"]
        return {level: str(levels[level]) for level in LEVELS if level in levels}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what satisfice wrote ({error}); remove it or train again") from error


def with_instruction(question: str, instruction: str) -> str:
    """A question with an instruction about length after it, as in training."""
    return f"{question}\n\n{instruction}" if instruction else question
