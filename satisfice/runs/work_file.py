"""What a curation has found out with a model, kept on disk while it works, so that a kill loses nothing that is done.

    .work.jsonl   a line that says of what it is, then one a finding: key, value, and what the model had done for it

What a finding is, a step that was reworded or a chain that was scored, is for the curation to say. Lines are appended
and flushed one by one; a torn last one is cut off. In memory stay the places of the lines alone.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Self

from satisfice.engines.base import Divergences, Engine, EngineAround, EngineError, Generation, Sampling, Scores, Usage
from satisfice.engines.control_setting import Control
from satisfice.runs.trace_file import RunFolderError, lines
from satisfice.supervision.method import Memory


class WorkFile(Memory):
    """Findings in a file. Use it as a context manager, or call `close`.

    Attributes:
        spent: what the model has done for all of them, those of earlier processes included.
    """

    def __init__(self, path: Path, of: Mapping[str, Any]) -> None:
        """Open the file, or begin it.

        Args:
            path: of the file.
            of: what decides the findings, as JSON values.

        Raises:
            RunFolderError: the file is of something else, or damaged.
        """
        self.path = path
        self.spent = Usage()
        self._places: dict[str, int] = {}
        self._unsaid = Usage()
        header = json.dumps(dict(of), sort_keys=True)
        end = 0
        if path.exists():
            for number, start, line in lines(path):
                end = start + len(line)
                if number == 1:
                    if line.decode("utf-8", "replace").strip() != header:
                        raise RunFolderError(
                            f"{path.parent} holds unfinished work of another curation, other traces or another model: "
                            "give another folder, or delete this one"
                        )
                    continue
                try:
                    found = json.loads(line)
                    self._places[found["key"]] = start
                    self.spent.add(Usage(**found["spent"]))
                except (ValueError, KeyError, TypeError) as error:
                    raise RunFolderError(f"{path} line {number} is damaged ({error}): delete the file") from None
            os.truncate(path, end)
        self._file: BinaryIO = path.open("a+b")
        if not end:
            self._write(header)

    def get(self, key: str) -> Any:
        """See `Memory.get`."""
        if key not in self._places:
            return None
        self._file.seek(self._places[key])
        return json.loads(self._file.readline())["value"]

    def put(self, key: str, value: Any) -> None:
        """See `Memory.put`."""
        place = self._file.seek(0, os.SEEK_END)
        self._write(json.dumps({"key": key, "value": value, "spent": asdict(self._unsaid)}))
        self._places[key] = place
        self._unsaid = Usage()

    def count(self, usage: Usage) -> None:
        """Add what a call of the model has cost; it is written with the next finding."""
        self.spent.add(usage)
        self._unsaid.add(usage)

    def close(self, *, finished: bool = False) -> None:
        """Let go of the file; one that is not needed any more is removed."""
        self._file.close()
        if finished:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close()

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()


class CountedEngine(EngineAround):
    """An engine that tells what its calls cost, those of its companions too.

    Args:
        engine: where tokens come from.
        count: told after each call.
    """

    def __init__(self, engine: Engine, count: Callable[[Usage], None]) -> None:
        super().__init__(engine)
        self.companions = {name: CountedEngine(other, count) for name, other in engine.companions.items()}
        self._count = count

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        control: Control | None = None,
        top_logprobs: int = 0,
        entropy: bool = False,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """See `Engine.generate`."""
        try:
            made = await self._engine.generate(
                prompt_ids, sampling, control=control, top_logprobs=top_logprobs, entropy=entropy, on_token=on_token
            )
        except EngineError as error:
            self._count(error.usage)
            raise
        self._count(made.usage)
        return made

    async def next_tokens(
        self, prompt_ids: Sequence[int], paths: Sequence[Sequence[int]], *, top_logprobs: int
    ) -> list[Generation]:
        """See `Engine.next_tokens`."""
        try:
            found = await self._engine.next_tokens(prompt_ids, paths, top_logprobs=top_logprobs)
        except EngineError as error:
            self._count(error.usage)
            raise
        for generation in found:
            self._count(generation.usage)
        return found

    async def score(self, ids: Sequence[int], start: int) -> Scores:
        """See `Engine.score`."""
        scores = await self._engine.score(ids, start)
        self._count(scores.usage)
        return scores

    async def divergences(
        self, original: Sequence[int], others: Sequence[Sequence[int]], continued: Sequence[int]
    ) -> Divergences:
        """See `Engine.divergences`."""
        found = await self._engine.divergences(original, others, continued)
        self._count(found.usage)
        return found
