"""An engine that answers a call that it has answered before from memory.

The settings of a method that only differ in when they stop make the same calls up to where they part. On this engine
whatever they share is generated once, and each of them still gets what it would have got alone: the random number of a
token depends on the seed and the position only, and a call with the same tokens, sampling and control has one answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from satisfice.engines.base import Engine, EngineAround, Generation, Sampling, Scores
from satisfice.engines.control_setting import Control, encode_control


class RememberingEngine(EngineAround):
    """An engine for the settings of one problem. It grows with every call: make a new one for the next problem.

    Trees are not remembered.

    Args:
        engine: where tokens come from. Its companions are remembered too, and counted.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.companions = {name: RememberingEngine(other) for name, other in engine.companions.items()}
        self._generations: dict[Any, Generation] = {}
        self._searched: dict[Any, list[Generation]] = {}
        self._scores: dict[Any, Scores] = {}
        self._generated = self._recalled = 0

    @property
    def generated(self) -> int:
        """Tokens that were really generated."""
        return self._generated + sum(other.generated for other in self._others())

    @property
    def recalled(self) -> int:
        """Tokens that came from memory."""
        return self._recalled + sum(other.recalled for other in self._others())

    def _others(self) -> list["RememberingEngine"]:
        return [other for other in self.companions.values() if isinstance(other, RememberingEngine)]

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
        """See `Engine.generate`; a call that was cancelled or failed is not remembered."""
        spelled = None if control is None else encode_control(control)
        key = (tuple(prompt_ids), sampling, spelled, top_logprobs, entropy)
        found = self._generations.get(key)
        if found is None:
            found = await self._engine.generate(
                prompt_ids, sampling, control=control, top_logprobs=top_logprobs, entropy=entropy, on_token=on_token
            )
            self._generations[key] = found
            self._generated += len(found.ids)
        else:
            self._recalled += len(found.ids)
            for token in found.ids if on_token is not None else ():
                on_token(token)  # type: ignore[misc]
        return replace(found, ids=[*found.ids])

    async def next_tokens(
        self, prompt_ids: Sequence[int], paths: Sequence[Sequence[int]], *, top_logprobs: int
    ) -> list[Generation]:
        """See `Engine.next_tokens`."""
        key = (tuple(prompt_ids), tuple(map(tuple, paths)), top_logprobs)
        found = self._searched.get(key)
        if found is None:
            found = self._searched[key] = await self._engine.next_tokens(prompt_ids, paths, top_logprobs=top_logprobs)
            self._generated += len(found)
        else:
            self._recalled += len(found)
        return [replace(generation, ids=[*generation.ids]) for generation in found]

    async def score(self, ids: Sequence[int], start: int) -> Scores:
        """See `Engine.score`."""
        key = (tuple(ids), start)
        if key not in self._scores:
            self._scores[key] = await self._engine.score(ids, start)
        return self._scores[key]
