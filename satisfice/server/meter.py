"""An engine that counts what one request has it generate, and stops serving it where an operator's bound is reached.

What a method will cost is known only when it has run: it probes as often as the model hesitates, and draws until a
vote is decided. So a request is refused on arrival where its responses alone could exceed the bound, and ended on its
way where everything that it generates does.
"""

from collections.abc import Callable, Sequence
from typing import Self

from satisfice.engines.base import (
    Child,
    Engine,
    EngineAround,
    EngineError,
    Generation,
    Leaf,
    Sampling,
    TokenTree,
    Usage,
)
from satisfice.engines.control_setting import Control


class Meter:
    """Tokens that one request has had generated.

    Attributes:
        most: tokens at most.
        spent: tokens so far.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.spent = 0

    def check(self) -> None:
        """Refuse whatever comes after the bound.

        Raises:
            EngineError: the bound is reached.
        """
        if self.spent >= self.most:
            raise EngineError(
                f"the request has had {self.spent} tokens generated and is not finished; this server allows "
                f"{self.most} a request (--max-request-tokens): lower max_tokens or n, or choose another method"
            )


class MeteredEngine(EngineAround):
    """An engine for one request, its companions included.

    A call is let through whole while the bound is not reached, so it may be passed by what is under way then. Scoring
    generates nothing and is not counted.

    Args:
        engine: where tokens come from.
        meter: counts them.
    """

    def __init__(self, engine: Engine, meter: Meter) -> None:
        super().__init__(engine)
        self._meter = meter
        self.companions = {name: MeteredEngine(other, meter) for name, other in engine.companions.items()}

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
        self._meter.check()
        generation = await self._engine.generate(
            prompt_ids, sampling, control=control, top_logprobs=top_logprobs, entropy=entropy, on_token=on_token
        )
        self._meter.spent += len(generation.ids)
        return generation

    async def next_tokens(
        self, prompt_ids: Sequence[int], paths: Sequence[Sequence[int]], *, top_logprobs: int
    ) -> list[Generation]:
        """See `Engine.next_tokens`."""
        self._meter.check()
        found = await self._engine.next_tokens(prompt_ids, paths, top_logprobs=top_logprobs)
        self._meter.spent += len(found)
        return found

    def tree(self, prompt_ids: Sequence[int], sampling: Sampling, *, top: int, entropy_temperature: float) -> TokenTree:
        """See `Engine.tree`."""
        tree = super().tree(prompt_ids, sampling, top=top, entropy_temperature=entropy_temperature)
        return MeteredTree(tree, self._meter)


class MeteredTree(TokenTree):
    """A tree whose every new token is counted."""

    def __init__(self, tree: TokenTree, meter: Meter) -> None:
        self._tree, self._meter = tree, meter

    @property
    def root(self) -> Leaf:  # type: ignore[override]
        """See `TokenTree`."""
        return self._tree.root

    @property
    def usage(self) -> Usage:  # type: ignore[override]
        """See `TokenTree`."""
        return self._tree.usage

    async def advance(self, children: Sequence[Child]) -> list[Leaf]:
        """See `TokenTree.advance`."""
        self._meter.check()
        self._meter.spent += len(children)
        return await self._tree.advance(children)

    async def __aenter__(self) -> Self:
        await self._tree.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._tree.__aexit__(*failure)
