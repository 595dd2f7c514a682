"""Trees of branches for the transformers engine: one tree, one row of keys and values.

Every unique token of a tree is one slot of its row, in whatever order. A mask shows each branch its own ancestors
alone and a token's position is its depth, so one forward pass over (trees, branches) advances every branch of every
tree, and memory grows with unique tokens, not with branches times length. A slot that no branch sees is used again.

Trees have what room the engine's running rows leave over. Where that is too little the newest trees give way, which
keep their tokens and are computed again once there is room; so the oldest can always go on.
"""

import asyncio
import heapq
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import torch

from satisfice.engines.base import Child, EngineError, EngineFailed, Leaf, Sampling, TokenTree, Usage
from satisfice.engines.choosing import Choice, choose
from satisfice.engines.kv import RowCache
from satisfice.engines.prefixes import PrefixStore

FIRST_SLOTS = 256
"""Slots a tree has room for at first; doubled as trees grow."""
STEP_BRANCHES = 256
"""Branches of one forward pass at most, where several trees share it: their logits weigh a whole vocabulary each."""
GATHERING = 0.002
"""Seconds that a step waits for trees that are about to ask for theirs, as long as others keep coming."""
PATIENCE = 1.0
"""Seconds that a tree without room leaves older ones that ask for nothing alone: their owners may just be slow."""


class Attend(Protocol):
    """The model, as a forest runs it."""

    def __call__(
        self,
        cache: RowCache,
        ids: torch.Tensor,
        positions: torch.Tensor,
        seen: torch.Tensor,
        depths: torch.Tensor,
        logits_to_keep: int,
    ) -> torch.Tensor:
        """One forward pass over a cache that has been aimed.

        Args:
            cache: takes the new keys and values.
            ids: (B, S) tokens.
            positions: (B, S) their places in their sequences.
            seen: (B, S, visible) bool, the slots of its row that each of them attends to, itself included.
            depths: (B, visible) or (visible,) the places in their sequences of the tokens in those slots.
            logits_to_keep: of how many last tokens logits are wanted, 0 for all.

        Returns:
            (B, S or less, V) logits.
        """


@dataclass(eq=False)
class Call:
    """A step that the owner of a tree waits for.

    Attributes:
        children: what to add; None asks for the root.
        result: the leaves.
        since: when it was made, by the monotonic clock.
    """

    children: Sequence[Child] | None
    result: "Future[list[Leaf]]" = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Tree:
    """One tree: its tokens by slot, and what each leaf sees.

    Attributes:
        prompt: how many tokens the prompt has; they fill the first slots, in order.
        tokens, parents: by slot; the parent of the first token is -1.
        depths: (slots,) int64, each token's place in its sequence.
        depth: the place of all leaves in their sequences.
        leaves: slots of the newest tokens, one a branch.
        seeds: of the leaves.
        seen: (leaves, slots) bool, a leaf's ancestors and itself.
        row: where its keys and values are; None where it has to be computed (again).
        call: the step that is being waited for.
        closed: whether its owner is done with it.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        top: int,
        entropy_temperature: float,
        device: torch.device,
    ) -> None:
        self.prompt = len(prompt_ids)
        self.sampling, self.top, self.entropy_temperature = sampling, top, entropy_temperature
        self.tokens = list(prompt_ids)
        self.parents = list(range(-1, self.prompt - 1))
        self.depths = torch.arange(self.prompt, device=device)
        self.depth = self.prompt - 1
        self.leaves = [self.prompt - 1]
        self.seeds = [sampling.seed]
        self.seen = torch.ones(1, self.prompt, dtype=torch.bool, device=device)
        self.usage = Usage()
        self.row: int | None = None
        self.call: Call | None = None
        self.closed = False
        self._offspring = [1] * (self.prompt - 1) + [0]
        self._free: list[int] = []

    @property
    def unique(self) -> int:
        """Tokens of all living branches, shared ones counted once."""
        return len(self.tokens) - len(self._free)

    def grow(self, children: Sequence[Child]) -> None:
        """Make the children the leaves; release what no branch needs any more."""
        known = self.seen
        self.depth += 1
        followed = torch.tensor([child.parent for child in children], device=known.device)
        parents = [self.leaves[child.parent] for child in children]
        for parent in parents:
            self._offspring[parent] += 1
        for slot in self.leaves:
            self._release(slot)
        self.leaves = [self._place(child.token, parent) for child, parent in zip(children, parents, strict=True)]
        self.seeds = [child.seed for child in children]
        slots = torch.tensor(self.leaves, device=known.device)
        self.seen = known.new_zeros(len(children), len(self.tokens))
        self.seen[:, : known.shape[1]] = known[followed]
        self.seen[torch.arange(len(children), device=known.device), slots] = True
        self.depths = torch.cat([self.depths, self.depths.new_zeros(len(self.tokens) - len(self.depths))])
        self.depths[slots] = self.depth
        self.usage.generated += len(children)

    def _place(self, token: int, parent: int) -> int:
        if self._free:
            slot = heapq.heappop(self._free)  # the lowest, so that the row stays short
            self.tokens[slot], self.parents[slot] = token, parent
            return slot
        self.tokens.append(token)
        self.parents.append(parent)
        self._offspring.append(0)
        return len(self.tokens) - 1

    def _release(self, slot: int) -> None:
        while slot >= self.prompt and not self._offspring[slot]:
            heapq.heappush(self._free, slot)
            slot = self.parents[slot]
            self._offspring[slot] -= 1

    def inner(self) -> list[int]:
        """The slots before the leaves, parents before their children."""
        found = set(range(self.prompt)).difference(self.leaves)
        for leaf in self.leaves:
            slot = self.parents[leaf]
            while slot >= 0 and slot not in found:
                found.add(slot)
                slot = self.parents[slot]
        depths = self.depths.tolist()
        return sorted(found, key=depths.__getitem__)

    def sight(self, slots: Sequence[int]) -> torch.Tensor:
        """(len(slots), all slots) bool: what the tokens in `slots` see, found by walking up to the prompt."""
        at, parents = np.array(slots), np.array(self.parents)
        rows = np.arange(len(at))
        seen = np.arange(len(parents)) <= np.minimum(at, self.prompt - 1)[:, None]
        while len(rows := rows[at[rows] >= self.prompt]):
            seen[rows, at[rows]] = True
            at[rows] = parents[at[rows]]
        return torch.from_numpy(seen).to(self.seen.device)


class Forest:
    """All open trees of an engine, and the cache whose rows they are. Belongs to the engine's thread.

    Attributes:
        trees: the open ones, in the order in which they were opened.

    Args:
        attend: runs the model.
        device: where it runs.
        rows: trees that are computed at once at most.
        chunk: tokens of one forward pass at most where a prompt, or a tree that gave way, is computed.
        name: of the engine, for messages.
    """

    def __init__(self, attend: Attend, device: torch.device, rows: int, chunk: int, name: str) -> None:
        self.trees: list[Tree] = []
        self._attend, self._device, self._most_rows, self._chunk, self._name = attend, device, rows, chunk, name
        self._cache = RowCache()
        self._rows: list[Tree] = []
        self._last_step = 0.0

    @property
    def held(self) -> int:
        """Tokens that there are keys and values for, padding included."""
        return self._cache.rows * self._cache.length

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return any(tree.call is not None or tree.closed for tree in self.trees)

    @property
    def gathered(self) -> bool:
        """Whether no tree is left to wait for."""
        return all(tree.call is not None or tree.closed for tree in self.trees)

    def step(self, store: PrefixStore, room: int, alone: bool) -> None:
        """Serve the calls of all trees that there is room for.

        Args:
            store: where prompts may be known.
            room: tokens of keys and values that there may be, for all trees together.
            alone: whether nobody but trees could ever make more room.
        """
        for tree in [tree for tree in self.trees if tree.closed]:
            self.trees.remove(tree)
            self._vacate(tree)
        calling = [tree for tree in self.trees if tree.call is not None]
        for tree in calling:
            if tree.call is not None and tree.call.children is not None:
                tree.grow(tree.call.children)
                tree.call.children = None
        ready: list[Tree] = []
        for tree in calling:
            if len(tree.tokens) > room:
                if alone:
                    self._settle(tree, EngineError(self._too_large(tree, room)))
                continue
            housed = self._house(tree, store, room)
            # The oldest may drive out all others, so that somebody always gets on.
            while not housed and not ready and self.give_way(tree):
                housed = self._house(tree, store, room)
            if housed:
                ready.append(tree)
        for group in self._side_by_side(ready):
            self._advance(group)

    def give_way(self, asking: Tree | None = None) -> bool:
        """Give room back: what is not in use, or else that of the newest tree. Whether there was any.

        Args:
            asking: the tree that needs it; older trees make room for it only where nobody has got on for a while.
        """
        longest = max((len(tree.tokens) for tree in self._rows), default=0)
        if self._cache.rows == len(self._rows) and self._cache.length <= longest:
            others = [tree for tree in self.trees if tree.row is not None and tree is not asking]
            if asking is not None and asking.call is not None:
                stuck = time.monotonic() - max(self._last_step, asking.call.since) > PATIENCE
                order = self.trees.index
                others = [tree for tree in others if stuck or order(tree) > order(asking)]
            if not others:
                return False
            self._vacate(others[-1])
            longest = max((len(tree.tokens) for tree in self._rows), default=0)
        if self._rows:
            self._cache.resize(len(self._rows), min(longest, self._cache.length))
        else:
            self._cache = RowCache()
        return True

    def abandon(self, failure: EngineFailed) -> None:
        """Answer every call with an error and forget what was computed."""
        for tree in self._rows:
            tree.row = None
        self._rows.clear()
        self._cache = RowCache()
        # Whoever is answered may come with another call at once, which is not to be answered as well.
        for tree in [tree for tree in self.trees if tree.call is not None]:
            self._settle(tree, failure)

    @staticmethod
    def _settle(tree: Tree, outcome: "list[Leaf] | EngineError") -> None:
        """Answer the call of a tree; the owner may come with the next one at once."""
        assert tree.call is not None
        result, tree.call = tree.call.result, None
        if isinstance(outcome, EngineError):
            result.set_exception(outcome)
        else:
            result.set_result(outcome)

    # -- room

    def _too_large(self, tree: Tree, room: int) -> str:
        return (
            f"a tree of {tree.unique} tokens exceeds the max_batch_tokens of {self._name}, {room}: let fewer branches "
            "live at once, lower max_tokens, or raise max_batch_tokens"
        )

    def _house(self, tree: Tree, store: PrefixStore, room: int) -> bool:
        """Whether a tree has room for its leaves, with everything before them computed."""
        rows = len(self._rows) + (tree.row is None)
        longest = max(len(tree.tokens), *(len(other.tokens) for other in self._rows), 0)
        if rows > self._most_rows or not self._fit(rows, longest, room):
            return False
        if tree.row is None:
            tree.row = len(self._rows)
            self._rows.append(tree)
            self._compute(tree, tree.row, store)
        return True

    def _fit(self, rows: int, length: int, room: int) -> bool:
        """Whether `rows` rows of `length` slots fit; resizes the cache where they do and it is needed."""
        if rows <= self._cache.rows and length <= self._cache.length:
            return True
        longer = max(self._cache.length, FIRST_SLOTS)
        while longer < length:
            longer *= 2
        more = self._cache.rows if rows <= self._cache.rows else min(2 * rows, self._most_rows)
        # Doubling is only for speed; near the limit the trees share what there is.
        for some, slots in ((more, longer), (rows, longer), (rows, room // rows)):
            if some * slots <= room and slots >= length:
                self._cache.resize(some, slots)
                return True
        return False

    def _vacate(self, tree: Tree) -> None:
        """Take a tree's row away and let the last one move into its place."""
        if tree.row is None:
            return
        last = self._rows.pop()
        if last is not tree:
            assert last.row is not None
            self._cache.move(last.row, tree.row, 0, min(len(last.tokens), self._cache.length))
            self._rows[tree.row], last.row = last, tree.row
        tree.row = None

    # -- forward passes

    def _compute(self, tree: Tree, row: int, store: PrefixStore) -> None:
        """Compute all of a tree but its leaves, except for what is stored of its prompt."""
        pending = tree.inner()
        prompt = min(tree.prompt, len(pending))
        known, shared = store.find(tree.tokens, prompt), 0
        if known is not None:
            shared = known.tokens
            for place, pages in known.pages(0, shared):
                self._cache.put(row, place, pages)
        tree.usage.cached += shared
        for start in range(shared, len(pending), self._chunk):
            slots = pending[start : start + self._chunk]
            at = torch.tensor([slots], device=self._device)
            self._cache.aim(slice(row, row + 1), at, len(tree.tokens))
            ids = torch.tensor([[tree.tokens[slot] for slot in slots]], device=self._device)
            self._attend(self._cache, ids, tree.depths[at], tree.sight(slots)[None], tree.depths, logits_to_keep=1)
            tree.usage.prefilled += len(slots)
            tree.usage.forward_passes += 1
        store.add(tree.tokens, prompt, lambda first, last: self._cache.view(row, first, last))

    @staticmethod
    def _side_by_side(ready: Sequence[Tree]) -> list[list[Tree]]:
        """The trees of each forward pass: neighbours in the cache, so that nothing has to be copied."""
        groups: list[list[Tree]] = []
        for tree in sorted(ready, key=lambda tree: tree.row or 0):
            group = groups[-1] if groups else []
            widest = max(len(other.leaves) for other in [*group, tree])
            if group and group[0].row == (tree.row or 0) - len(group) and (len(group) + 1) * widest <= STEP_BRANCHES:
                group.append(tree)
            else:
                groups.append([tree])
        return groups

    def _advance(self, group: Sequence[Tree]) -> None:
        """One forward pass for the leaves of some trees."""
        width = max(len(tree.leaves) for tree in group)
        visible = max(len(tree.tokens) for tree in group)
        slots, ids = [], []
        seen = torch.zeros(len(group), width, visible, dtype=torch.bool, device=self._device)
        depths = torch.zeros(len(group), visible, dtype=torch.int64, device=self._device)
        for index, tree in enumerate(group):
            # A narrower tree repeats its last leaf: the same token is computed into the same slot once more.
            padded = [*tree.leaves, *tree.leaves[-1:] * (width - len(tree.leaves))]
            slots.append(padded)
            ids.append([tree.tokens[slot] for slot in padded])
            seen[index, : len(tree.leaves), : len(tree.tokens)] = tree.seen
            seen[index, len(tree.leaves) :, : len(tree.tokens)] = tree.seen[-1]
            depths[index, : len(tree.tokens)] = tree.depths
        at = torch.tensor(slots, device=self._device)
        first = group[0].row or 0
        self._cache.aim(slice(first, first + len(group)), at, visible)
        logits = self._attend(
            self._cache,
            torch.tensor(ids, device=self._device),
            depths.gather(1, at),
            seen,
            depths,
            logits_to_keep=0,
        )
        kept = [row[: len(tree.leaves)] for tree, row in zip(group, logits, strict=True)]
        leaves = self._leaves(group, torch.cat(kept))
        self._last_step = time.monotonic()
        for tree in group:
            tree.usage.forward_passes += len(tree.leaves)
            own, leaves = leaves[: len(tree.leaves)], leaves[len(tree.leaves) :]
            self._settle(tree, own)

    def _leaves(self, group: Sequence[Tree], logits: torch.Tensor) -> list[Leaf]:
        """What (branches, V) logits say of the leaves of some trees."""
        owners = [tree for tree in group for _ in tree.leaves]
        logits = logits.float()
        distribution = torch.log_softmax(logits, dim=-1)
        temperature = torch.tensor([tree.entropy_temperature for tree in owners], device=self._device)
        # A token that cannot follow adds nothing; its infinite surprise would make that NaN.
        surprise = -torch.log_softmax(logits / temperature[:, None], dim=-1).clamp(min=-1e4)
        weight = torch.exp(-surprise)
        entropy = (weight * surprise).sum(-1)
        varentropy = (weight * (surprise - entropy[:, None]) ** 2).sum(-1)
        values, tokens = distribution.topk(max(tree.top for tree in group), dim=-1)
        seeds = [seed for tree in group for seed in tree.seeds]
        choice = Choice.of([tree.sampling for tree in owners], seeds, self._device)
        following = torch.tensor([tree.depth + 1 for tree in group for _ in tree.leaves], device=self._device)
        sampled = choose(logits, choice, following)
        sampled_values = distribution.gather(1, sampled[:, None])[:, 0]
        return [
            Leaf(leaf_entropy, leaf_varentropy, _by_likelihood(tree.top, top_tokens, top_values), token, logprob)
            for tree, leaf_entropy, leaf_varentropy, top_tokens, top_values, token, logprob in zip(
                owners,
                entropy.tolist(),
                varentropy.tolist(),
                tokens.tolist(),
                values.tolist(),
                sampled.tolist(),
                sampled_values.tolist(),
                strict=True,
            )
        ]


def _by_likelihood(count: int, tokens: Sequence[int], values: Sequence[float]) -> dict[int, float]:
    """The first `count` of some tokens and their log-probabilities, most likely first and by id where equal."""
    return dict(sorted(zip(tokens[:count], values[:count], strict=True), key=lambda pair: (-pair[1], pair[0])))


class RowTree(TokenTree):
    """A tree as its owner holds it, in another thread than the engine's.

    Args:
        tree: the tree.
        forest: where it is planted when it is entered.
        vocabulary: how many token ids there are.
        wake: guards what the step loop looks at, and wakes it.
        start: sees to it that the step loop runs; raises where the engine is closed.
    """

    def __init__(
        self, tree: Tree, forest: Forest, vocabulary: int, wake: threading.Condition, start: Callable[[], None]
    ) -> None:
        self.usage = tree.usage
        self._tree, self._forest, self._vocabulary, self._wake, self._start = tree, forest, vocabulary, wake, start
        self._leaves = 0
        """How many leaves the last call gave; 0 while there is none to go on from."""

    async def __aenter__(self) -> Self:
        with self._wake:
            self._start()
            self._forest.trees.append(self._tree)
        try:
            [self.root] = await self._ask(None)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *failure: object) -> None:
        with self._wake:
            self._leaves = 0
            self._tree.closed = True
            self._wake.notify()

    async def advance(self, children: Sequence[Child]) -> list[Leaf]:
        """See `TokenTree.advance`."""
        if not children:
            raise EngineError("a tree needs at least one branch to go on with")
        for child in children:
            if not 0 <= child.parent < self._leaves:
                raise EngineError(f"parent {child.parent} is none of the {self._leaves} leaves that the tree gave last")
            if not 0 <= child.token < self._vocabulary:
                raise EngineError(f"token id {child.token} is not in the vocabulary, 0..{self._vocabulary - 1}")
        limit = self._tree.sampling.max_tokens
        if self._tree.depth - self._tree.prompt + 1 >= limit:
            raise EngineError(f"the branches have {limit} tokens, which is the max_tokens of their tree")
        self._leaves = 0
        return await self._ask(children)

    async def _ask(self, children: Sequence[Child] | None) -> list[Leaf]:
        call = Call(children)
        call.result.set_running_or_notify_cancel()  # from here on only the step loop settles it
        with self._wake:
            self._start()
            self._tree.call = call
            self._wake.notify()
        leaves = await asyncio.wrap_future(call.result)
        self._leaves = len(leaves)
        return leaves
