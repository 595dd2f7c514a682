"""short-m@k (arXiv 2505.17813, "Don't Overthink it"): k thinkings side by side; the m that end first vote.

The shortest of several thinkings about one problem is more often right than the longest. So k begin together, and as
soon as m of them have ended, the others are stopped; those m give their answers, and the majority wins.

Where this departs from the paper: "first" is counted in tokens and not in seconds, so that a seed decides the outcome,
whatever else the engine has to do. Thinkings that are stopped while they are still shorter than one of the m, because
the engine had kept them waiting, are therefore continued up to that length.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveInt

from satisfice.engines.base import Capability
from satisfice.intervention.answers import given_answer, label, majority
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method, MethodError, together


@dataclass(frozen=True)
class ShortMAtK(Method):
    """A majority vote among the `m` of `k` responses whose thinking ends after the fewest tokens.

    Of answers with as many votes, the one with the shortest thinking wins (the paper's), then the one that was begun
    first (ours). A response without an answer, or one that was cut off, does not vote. Where fewer than `m` end their
    thinking within the limit, those vote; where none does, the first response is returned, cut off; where nobody votes,
    the one with the shortest thinking is.

    Attributes:
        m: how many have to end their thinking. The paper reports 1 and 3; the default is one of them.
        k: how many think. The default is ours.
    """

    name: ClassVar[str] = "short-m@k"
    summary: ClassVar[str] = "k thinkings side by side, stopped when m have ended; the majority of those m"
    paper: ClassVar[str] = "2505.17813 (Don't Overthink it)"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CANCEL})
    takes_control: ClassVar[bool] = True
    # As many as self-consistency's there.
    on_lab: ClassVar[str] = "k=4"

    m: PositiveInt = 3
    k: PositiveInt = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m > self.k:
            raise MethodError(f"short-m@k: m is {self.m}, but only {self.k} think (k); m must be {self.k} or less")

    @property
    def breadth(self) -> int:
        return self.k

    async def respond(self, draft: Draft) -> None:
        chains = [draft.fork(index, cancellable=True) for index in range(self.k)]
        await self._race(chains)
        ended = await self._photo_finish(chains)
        lengths = {index: len(chains[index].ids) for index in ended}

        await together(*(chains[index].conclude() for index in ended))
        answers = [given_answer(chains[index]) for index in ended]
        vote = majority(answers)
        adopted = ended[vote.winner or 0] if ended else 0

        given = dict(zip(ended, answers, strict=True))
        for index, chain in enumerate(chains):
            draft.note(
                "response",
                index=index,
                answer=label(given.get(index)),
                tokens=len(chain.ids),
                thinking=lengths.get(index, len(chain.ids)),
                votes=given.get(index) is not None,
            )
        draft.note("vote", tally=vote.tally, ended=len(ended), without_answer=answers.count(None), adopted=adopted)
        draft.adopt(chains[adopted])

    async def _race(self, chains: Sequence[Draft]) -> None:
        """Let all think until `m` have ended, or all have ended or reached the limit."""
        under_way = {asyncio.create_task(chain.think()) for chain in chains}
        everyone = list(under_way)
        try:
            while under_way and sum(map(_ended, chains)) < self.m:
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises what went wrong
        finally:
            for task in everyone:
                task.cancel()
            await asyncio.gather(*everyone, return_exceptions=True)

    async def _photo_finish(self, chains: Sequence[Draft]) -> list[int]:
        """The `m` chains whose thinking ended first in tokens, shortest first; fewer where fewer ended."""
        order = _by_length(chains)
        if len(order) >= self.m:
            bound = len(chains[order[self.m - 1]].ids)
            behind = [chain for chain in chains if not _ended(chain) and len(chain.ids) < bound]
            await together(*(chain.think(bound - len(chain.ids)) for chain in behind))
            order = _by_length(chains)
        return order[: self.m]


def _ended(chain: Draft) -> bool:
    """Whether its thinking is over: closed, or ended with the whole text."""
    return chain.closed or chain.finished


def _by_length(chains: Sequence[Draft]) -> list[int]:
    """The chains whose thinking is over, by their tokens until then; of equals the one that was begun first."""
    return sorted((i for i, chain in enumerate(chains) if _ended(chain)), key=lambda i: (len(chains[i].ids), i))
