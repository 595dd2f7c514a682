"""Rows of supervised training, from JSON lines to token ids.

A prompt is rendered exactly as at decoding time, and the response is put after it as it stands: chat templates are not
asked, because several of them remove the thinking from an assistant's turn.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from satisfice.thinking import Phase, Prompt, ThinkingFormat, encode_after
from satisfice.training.recipe import RecipeError


@dataclass(frozen=True)
class Rows:
    """A file of rows.

    Attributes:
        path: where it lies.
        rows: as JSON values, each with "messages", or each with "prompt", "chosen" and "rejected".
        digest: SHA-256 of the file.
        usual_loss: the name of the loss that fits the rows.
        instructions: text of each level, where the rows were made for levels.
    """

    path: Path
    rows: list[dict[str, Any]]
    digest: str
    usual_loss: str
    instructions: dict[str, str]


def read_rows(path: Path) -> Rows:
    """The rows of a file.

    Raises:
        RecipeError: there is no such file, or a line is no row; the message names file and line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"there are no data {path}: {error.strerror}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RecipeError(f"{path} line {number} is not JSON: {error}") from None
        if fault := _fault(row):
            raise RecipeError(f"{path} line {number}: {fault}")
        rows.append(row)
    if not rows:
        raise RecipeError(f"{path} holds no rows")
    preference = ["chosen" in row for row in rows]
    if any(preference) and not all(preference):
        raise RecipeError(f"{path} holds preference rows and others: train on one kind at a time")
    card = path.parent / "card.json"
    instructions: dict[str, str] = {}
    usual = "length-dpo" if preference[0] else "sft"
    if all("weight" in row for row in rows):
        usual = "offline-clip"
    elif all(row.get("pool") for row in rows):
        usual = "mixture"
    if card.is_file():
        instructions = dict(json.loads(card.read_text()).get("instructions") or {})
    return Rows(path, rows, hashlib.sha256(content).hexdigest(), usual, instructions)


def _fault(row: Any) -> str:
    """What is wrong with a row, in half a sentence; "" where nothing is."""
    if not isinstance(row, dict):
        return "a row is an object"
    if "chosen" in row or "rejected" in row:
        for key in ("prompt", "chosen", "rejected"):
            if not _is_chat(row.get(key)):
                return f"{key!r} must be a list of chat messages"
        if len(row["chosen"]) != 1 or len(row["rejected"]) != 1:
            return "'chosen' and 'rejected' must hold one message each"
        return ""
    if not _is_chat(row.get("messages")):
        return "a row needs 'messages', a list of chat messages, or 'prompt', 'chosen' and 'rejected'"
    messages = row["messages"]
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return "the last of the messages must be the assistant's, after a question"
    weight = row.get("weight", 0.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        return f"weight is {weight!r}; it must be a number"
    return ""


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
            for message in messages
        )
    )


# -- token ids


class Encoder:
    """Rows as token ids, the end of the response included."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, thinking: ThinkingFormat) -> None:
        self.tokenizer = tokenizer
        self.thinking = thinking

    def prompt(self, turns: Sequence[Mapping[str, str]]) -> Prompt:
        """A prompt as at decoding time."""
        return self.thinking.render(self.tokenizer, [dict(turn) for turn in turns])

    def response(self, prompt: Prompt, content: str) -> list[int]:
        """What the model is to write after a prompt: of the opening marker only what the prompt has not written.

        Raises:
            RecipeError: the prompt opens thinking, and the response never closes it.
        """
        automaton = self.thinking.automaton(self.tokenizer)
        if automaton.phase(prompt.state) is Phase.THINKING:
            if not any(marker in content for marker in self.thinking.closers):
                raise RecipeError(
                    f"the model's prompt opens thinking, and a response of the data never closes it: {content[:60]!r}; "
                    f"every response needs a thinking that ends with {self.thinking.close!r}"
                )
            place = max(prompt.text.rfind(marker) for marker in self.thinking.openers)
            written = prompt.text[place:]
            # A template may write a line break more or less than the model did.
            while written and not content.startswith(written):
                written = written[:-1] if written[-1].isspace() else ""
            content = content.removeprefix(written)
        ids = encode_after(self.tokenizer, content)
        end = self.tokenizer.eos_token_id
        if not isinstance(end, int):
            raise RecipeError("the model's tokenizer has no token that ends a text, so no response can end")
        return ids if ids[-1:] == [end] else [*ids, end]

    def example(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of messages as ids and labels; -100 where there is no loss."""
        *turns, assistant = row["messages"]
        prompt = self.prompt(turns)
        response = self.response(prompt, assistant["content"])
        return {"input_ids": [*prompt.ids, *response], "labels": [-100] * len(prompt.ids) + response}

    def pair(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A preference row as ids."""
        prompt = self.prompt(row["prompt"])
        return {
            "prompt_ids": prompt.ids,
            "chosen_ids": self.response(prompt, row["chosen"][0]["content"]),
            "rejected_ids": self.response(prompt, row["rejected"][0]["content"]),
        }


@dataclass(frozen=True)
class Encoded:
    """Encoded rows.

    Attributes:
        examples: as ids, those that fit.
        kept: the rows that they were made of, in the same order.
        left_out: how many have a longer response than there may be, or find no room in the model.
    """

    examples: list[dict[str, Any]]
    kept: list[dict[str, Any]]
    left_out: int


def encode_rows(rows: Sequence[dict[str, Any]], encoder: Encoder, max_tokens: int, room: int | None) -> Encoded:
    """Rows as ids, without those that are too long: cut they would teach to stop in the middle.

    Args:
        rows: all of one kind.
        encoder: makes the ids.
        max_tokens: of a response.
        room: tokens that the model can hold, prompt included; None where there is no limit.
    """
    examples, kept = [], []
    for row in rows:
        if "chosen" in row:
            example = encoder.pair(row)
            responses = [len(example["chosen_ids"]), len(example["rejected_ids"])]
            prompt = len(example["prompt_ids"])
        else:
            example = encoder.example(row)
            prompt = example["labels"].count(-100)
            responses = [len(example["labels"]) - prompt]
        if max(responses) <= max_tokens and (room is None or prompt + max(responses) <= room):
            examples.append(example)
            kept.append(row)
    return Encoded(examples, kept, len(rows) - len(kept))


def write_arrow(rows: Path, folder: Path) -> Path:
    """Write a file of rows as an Arrow data set, to be read with `datasets.load_from_disk`."""
    Dataset.from_json(str(rows)).save_to_disk(str(folder))
    return folder
