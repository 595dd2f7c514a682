"""A scripted engine: it replays chosen distributions, so that a test can assert every decision of a method.

The script is a function from the text so far to the next-token distribution, `{token text: probability}`. What is
left over to 1 is spread over all other tokens, so entropies are those of a full distribution. `follow` makes a
script that continues a few known texts word for word.
"""

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from copy import copy

import torch

from satisfice.engines.base import (
    Capability,
    Divergences,
    Engine,
    Generation,
    Leaf,
    Sampling,
    Scores,
    TokenTree,
    Usage,
)
from satisfice.engines.control_batch import Markers
from satisfice.thinking import ThinkingFormat

Script = Callable[[str], Mapping[str, float]]


class ScriptedEngine(Engine):
    """Replays a script over the lab's tokenizer; capabilities can be taken away to test refusals."""

    name = "scripted"

    def __init__(
        self,
        tokenizer,
        script: Script,
        *,
        thinking: ThinkingFormat | None = None,
        without: Sequence[Capability] = (),
        context_length: int = 4096,
    ):
        self.tokenizer = tokenizer
        self.script = script
        self.thinking = thinking or ThinkingFormat.detect(tokenizer)
        self.capabilities = frozenset(Capability) - set(without)
        self.context_length = context_length
        self.end_ids = frozenset({tokenizer.eos_token_id})
        self.default_sampling = Sampling()
        self.calls: list[tuple[str, Sampling, str]] = []
        """Every `generate` call: the text it continued, its sampling, and what it wrote."""
        self.cancelled: list[str] = []
        self.trees: list[ScriptedTree] = []
        self._seen: set[tuple[int, ...]] = set()

    def log_probabilities(self, text: str) -> torch.Tensor:
        given = self.script(text)
        size = len(self.tokenizer)
        rest = max(1e-9, 1 - sum(given.values()))
        probabilities = torch.full((size,), rest / (size - len(given)), dtype=torch.float64)
        for token, probability in given.items():
            index = self.tokenizer.convert_tokens_to_ids(token)
            assert self.tokenizer.convert_ids_to_tokens(index) == token, f"{token!r} is no token of the lab"
            probabilities[index] = max(probability, 1e-12)
        return torch.log(probabilities / probabilities.sum())

    async def generate(
        self, prompt_ids, sampling, *, control=None, top_logprobs=0, entropy=False, on_token=None
    ) -> Generation:
        ids: list[int] = []
        logprobs, tops, entropies = [], [], []
        usage = self._prefill(list(prompt_ids))
        edits = None
        if control is not None:
            edits = control.batch(Markers(self.thinking, self.tokenizer, len(self.tokenizer)), 1)
            edits.admit(0, control)
        slot = torch.zeros(1, dtype=torch.int64)
        finish, stopped_by, stop_tokens = "length", None, 0
        text = self.tokenizer.decode(list(prompt_ids))
        try:
            while len(ids) < sampling.max_tokens:
                await asyncio.sleep(0)
                raw = self.log_probabilities(text + self.tokenizer.decode(ids))
                logits = raw[None].float().clone()
                if edits is not None:
                    edits.look(logits, slot)
                    edits.apply(logits, slot)
                token = draw(logits[0], sampling.temperature, sampling.seed, len(prompt_ids) + len(ids))
                if edits is not None:
                    edits.observe(torch.tensor([token]), slot)
                ids.append(token)
                usage.generated += 1
                usage.forward_passes += 1
                logprobs.append(float(raw[token]))
                values, tokens = raw.topk(max(1, top_logprobs))
                tops.append(dict(zip(tokens.tolist(), values.tolist(), strict=True)))
                entropies.append(float(-(raw.exp() * raw).sum()))
                if on_token is not None:
                    on_token(token)
                if token in sampling.stop_ids or (token in self.end_ids and not sampling.ignore_eos):
                    finish, stopped_by, stop_tokens = "stop", token, 1
                    break
                written = self.tokenizer.decode(ids)
                found = [stop for stop in sampling.stop if stop in written]
                if found:
                    finish, stopped_by = "stop", found[0]
                    stop_tokens = next(
                        count for count in range(1, len(ids) + 1) if found[0] in self.tokenizer.decode(ids[-count:])
                    )
                    break
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        for end in range(len(prompt_ids), len(prompt_ids) + len(ids)):
            self._seen.add(tuple([*prompt_ids, *ids][:end]))
        self.calls.append((text, sampling, self.tokenizer.decode(ids)))
        return Generation(
            ids,
            finish,
            stopped_by,
            stop_tokens,
            logprobs if top_logprobs or entropy else None,
            tops if top_logprobs else None,
            entropies if entropy else None,
            usage,
        )

    def tree(self, prompt_ids, sampling, *, top, entropy_temperature) -> TokenTree:
        self.trees.append(ScriptedTree(self, list(prompt_ids), sampling, top, entropy_temperature))
        return self.trees[-1]

    async def score(self, ids, start) -> Scores:
        logprobs, entropies = [], []
        for place in range(start, len(ids)):
            raw = self.log_probabilities(self.tokenizer.decode(list(ids[:place])))
            logprobs.append(float(raw[ids[place]]))
            entropies.append(float(-(raw.exp() * raw).sum()))
        return Scores(logprobs, entropies, self._prefill(list(ids)))

    async def divergences(self, original, others, continued) -> Divergences:
        usage = self._prefill([*original, *continued])

        def after(beginning):
            places = range(len(beginning), len(beginning) + len(continued))
            ids = [*beginning, *continued]
            return torch.stack([self.log_probabilities(self.tokenizer.decode(ids[:place])) for place in places])

        before = after(original)
        return Divergences([(before.exp() * (before - after(each))).sum(-1).tolist() for each in others], usage)

    def _prefill(self, ids: list[int]) -> Usage:
        known = len(ids) - 1
        cached = max((length for length in range(known + 1) if tuple(ids[:length]) in self._seen), default=0)
        for end in range(1, known + 1):
            self._seen.add(tuple(ids[:end]))
        return Usage(prefilled=known - cached, cached=cached)


class ScriptedTree(TokenTree):
    """Replays the script of its engine in every branch.

    Attributes:
        steps: what each step has added, the texts of its branches in order.
        open: whether it is entered and not left.
    """

    def __init__(self, engine: ScriptedEngine, prompt_ids: list[int], sampling: Sampling, top: int, heat: float):
        self.engine, self.prompt_ids, self.sampling, self.top, self.heat = engine, prompt_ids, sampling, top, heat
        self.steps: list[list[str]] = []
        self.open = False
        self._branches: list[list[int]] = [[]]

    async def __aenter__(self):
        self.open = True
        self.usage = self.engine._prefill(self.prompt_ids)
        self.root = self._leaf([], self.sampling.seed)
        return self

    async def __aexit__(self, *failure):
        self.open = False

    async def advance(self, children):
        assert self.open
        assert children
        await asyncio.sleep(0)
        self._branches = [[*self._branches[child.parent], child.token] for child in children]
        assert len(self._branches[0]) < self.sampling.max_tokens
        self.steps.append([self.engine.tokenizer.decode(ids) for ids in self._branches])
        self.usage.generated += len(children)
        return [self._leaf(ids, child.seed) for ids, child in zip(self._branches, children, strict=True)]

    def _leaf(self, ids: list[int], seed: int) -> Leaf:
        self.usage.forward_passes += 1
        raw = self.engine.log_probabilities(self.engine.tokenizer.decode([*self.prompt_ids, *ids]))
        warm = torch.log_softmax(raw / self.heat, 0)
        entropy = float(-(warm.exp() * warm).sum())
        varentropy = float((warm.exp() * (-warm - entropy) ** 2).sum())
        values, tokens = raw.topk(self.top)
        sampled = draw(raw.float(), self.sampling.temperature, seed, len(self.prompt_ids) + len(ids))
        top = dict(zip(tokens.tolist(), values.tolist(), strict=True))
        return Leaf(entropy, varentropy, top, sampled, float(raw[sampled]))


def draw(logits: torch.Tensor, temperature: float, seed: int, position: int) -> int:
    """The next token by the random number of a seed at a position."""
    if temperature == 0:
        return int(logits.argmax())
    weights = torch.softmax(logits.double() / temperature, 0)
    threshold = random.Random(f"{seed}/{position}").random()
    return int((weights.cumsum(0) > threshold).nonzero()[0])


def follow(tokenizer, *texts: str, certainty: float = 1 - 1e-6) -> Script:
    """A script that continues the first of `texts` whose beginning the response so far is.

    The response is what follows the last assistant marker of the lab's template. After the end of a text, and
    off every text, the response ends.
    """
    written = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def script(text: str) -> dict[str, float]:
        response = text.rpartition("<|assistant|>")[2]
        so_far = tokenizer(response, add_special_tokens=False)["input_ids"]
        for ids in written:
            if len(ids) > len(so_far) and ids[: len(so_far)] == so_far:
                return {tokenizer.convert_ids_to_tokens(ids[len(so_far)]): certainty}
        return {tokenizer.eos_token: certainty}

    return script


def nats(*probabilities: float) -> float:
    """Entropy of a distribution given whole."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


class SeededEngine(ScriptedEngine):
    """Replays one script for each seed, so that the forks of a draft write what a test wants them to write."""

    name = "seeded"

    def __init__(self, tokenizer, scripts: Mapping[int, Script], **options):
        super().__init__(tokenizer, lambda text: {}, **options)
        self.scripts = scripts

    async def generate(self, prompt_ids, sampling, **options) -> Generation:
        replay = copy(self)  # records and caches are shared
        replay.script = self.scripts[sampling.seed]
        return await ScriptedEngine.generate(replay, prompt_ids, sampling, **options)
