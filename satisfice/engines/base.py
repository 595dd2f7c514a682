"""The engine contract: the only way a method gets tokens.

An engine turns token ids into more token ids. It knows nothing of problems, methods or grades; methods know
nothing of models, devices or servers. What an engine can do it states as `capabilities`, what a method needs it
states as `needs`, and `require` compares the two before the first token is paid for.
"""

import asyncio
import functools
import hashlib
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Self

from satisfice.attention import DENSE, Attention
from satisfice.lazy import PreTrainedTokenizerBase
from satisfice.thinking import ThinkingFormat

if TYPE_CHECKING:
    from satisfice.engines.control_setting import Control


class Capability(StrEnum):
    """Something an engine may or may not be able to do."""

    CONTROL = "control"
    """Edits next-token logits with any `Control`."""
    BIAS = "token bias"
    """Adds constants to the logits of single tokens while the model thinks: all that some controls do, see
    `Control.biases`. Whoever has `CONTROL` has this."""
    LOGPROBS = "logprobs"
    """Gives log-probabilities of the chosen and the top tokens."""
    ENTROPY = "entropy"
    """Gives the entropy of the full next-token distribution."""
    SCORE = "score"
    """Gives log-probabilities of given tokens."""
    DISTRIBUTIONS = "distributions"
    """Compares whole next-token distributions at given tokens."""
    PREFIX_REUSE = "prefix reuse"
    """Does not compute a shared prefix twice."""
    CANCEL = "cancel"
    """Stops a request when its task is cancelled."""
    TREE = "tree"
    """Grows many branches of one prompt in step, computing every shared token once."""


@dataclass
class Usage:
    """What one generation cost the engine. Tokens, except `forward_passes`.

    Attributes:
        generated: sampled tokens.
        prefilled: prompt positions computed for this request alone.
        cached: prompt positions served from a cache.
        forward_passes: model calls this request took part in.
    """

    generated: int = 0
    prefilled: int = 0
    cached: int = 0
    forward_passes: int = 0

    def add(self, other: "Usage") -> None:
        """Take in what something else has cost."""
        self.generated += other.generated
        self.prefilled += other.prefilled
        self.cached += other.cached
        self.forward_passes += other.forward_passes


class EngineError(ValueError):
    """A request that this engine cannot serve; the message says what to change.

    Attributes:
        usage: what the request had cost until then. Nothing of it was returned.
    """

    def __init__(self, message: str, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.usage = usage or Usage()


class EngineFailed(EngineError):  # noqa: N818
    """The engine itself went wrong; the same request may be served another time."""


class EngineClosed(EngineFailed):
    """The engine was closed, so no request will be served any more."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: of the softmax; 0 is greedy.
        top_p: nucleus: the smallest set of tokens whose probability reaches this share is kept.
        top_k: how many of the most likely tokens are kept, with others as likely as the last of them; 0 keeps all.
        min_p: tokens below this share of the largest probability are dropped.
        max_tokens: tokens generated at most.
        stop: texts that end the generation; the token that completes one is part of the result.
        lookahead: those of `stop` after which, where they end a token, one more is written: it shows whether they
            stand as words of their own. An engine may leave it out; whoever needs it asks for it then.
        stop_ids: token ids that end the generation, besides the model's own end-of-text tokens.
        ignore_eos: go on past the model's own end-of-text tokens.
        seed: of this request. The random number for the token at position p of a sequence depends on (seed, p)
            alone, so a sequence that is stopped, probed and resumed goes on as if it had not been interrupted.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 4096
    stop: tuple[str, ...] = ()
    lookahead: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, bounds in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0 (0 keeps all tokens)"),
            ("min_p", 0 <= self.min_p < 1, "at least 0 and below 1"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("stop", "" not in self.stop, "texts of at least one character"),
        ):
            if not good:
                raise EngineError(f"{name} is {getattr(self, name)}; it must be {bounds}")


@dataclass
class Generation:
    """What one call of `generate` returned.

    Attributes:
        ids: the new token ids, the one that stopped the generation included.
        finish: "stop" or "length". Whatever else happens to a request is raised: it is no result.
        stopped_by: the stop text or token id that ended it; None unless finish is "stop".
        stop_tokens: how many tokens at the end of `ids` hold the stop and what was written after it to look ahead:
            `ids[:-stop_tokens]` is the text before it, to whole tokens; 0 unless finish is "stop".
        logprobs: natural log-probability of each new token, of the model's own distribution: before any control,
            temperature or truncation. None where not asked for.
        top_logprobs: per new token, the most likely tokens and their log-probabilities, most likely first.
        entropies: per new token, the entropy in nats of that same distribution over the full vocabulary.
        usage: what it cost.
    """

    ids: list[int]
    finish: Literal["stop", "length"]
    stopped_by: str | int | None = None
    stop_tokens: int = 0
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    entropies: list[float] | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass
class Scores:
    """Log-probabilities of given tokens.

    Attributes:
        logprobs: one natural log-probability a token from `start` on.
        entropies: the entropy in nats of the distribution each of them was drawn from.
        usage: what it cost.
    """

    logprobs: list[float]
    entropies: list[float]
    usage: Usage = field(default_factory=Usage)


@dataclass
class Divergences:
    """How far other beginnings move what follows.

    Attributes:
        values: for each beginning the divergence at each token, in nats, 0 or more.
        usage: what it cost.
    """

    values: list[list[float]]
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Child:
    """A token that a branch of a tree goes on with.

    Attributes:
        parent: the leaf that it follows, as its place in the list that the tree gave last.
        token: its id.
        seed: of the branch from here on; decides what is drawn after this token.
    """

    parent: int
    token: int
    seed: int


@dataclass(frozen=True)
class Leaf:
    """What may follow the last token of one branch.

    Attributes:
        entropy: of the full next-token distribution at the tree's entropy temperature, in nats.
        varentropy: variance of -ln p under that same distribution, in nats squared.
        top: the most likely next tokens and their natural log-probabilities, most likely first and by id where
            equal; of the model's own distribution, at temperature 1.
        sampled: the token that the branch's seed draws next, by the tree's sampling.
        sampled_logprob: its natural log-probability in the model's own distribution.
    """

    entropy: float
    varentropy: float
    top: dict[int, float]
    sampled: int
    sampled_logprob: float


class TokenTree(ABC):
    """Branches that begin with one prompt and grow in step, one token each at a time.

    An asynchronous context manager: entering computes the prompt, leaving frees what the tree holds. A branch that
    is always continued with what its leaf has `sampled`, under the sampling's own seed, is what `generate` writes.

    Attributes:
        root: the leaf at the end of the prompt; there once the tree is entered.
        usage: what the tree has cost so far. Every branch counts as a row of its own in `forward_passes`; `generated`
            are the tokens that were added to the tree.
    """

    root: Leaf
    usage: Usage

    @abstractmethod
    async def advance(self, children: Sequence[Child]) -> list[Leaf]:
        """Add one token to every branch that is to live on, and say what may follow each of them.

        Two children of one leaf are two branches from there on. A leaf without a child is released, together with all
        tokens before it that no other branch shares.

        Args:
            children: at least one; a `parent` counts the leaves of the call before, or is 0 for the root.

        Returns:
            a leaf for each child, in the same order.

        Raises:
            EngineError: the tree cannot be served, whatever the load: too deep, or more tokens than there is room for.
        """

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(self, *failure: object) -> None: ...


def check_tokens(name: str, ids: Sequence[int], vocabulary: int) -> None:
    """Refuse tokens, of which there is at least one, that are not in the vocabulary of the engine `name`.

    Raises:
        EngineError: one is not.
    """
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        wrong = next(token for token in ids if not 0 <= token < vocabulary)
        raise EngineError(f"token id {wrong} is not in the vocabulary of {name}, 0..{vocabulary - 1}")


def check_prompt(
    name: str, ids: Sequence[int], room: int, limit: int, *, vocabulary: int | None = None, what: str = "context length"
) -> None:
    """Refuse a prompt that cannot be served, or not with as many tokens after it as `room` takes.

    Args:
        name: the engine's.
        ids: the prompt.
        room: tokens, those of the prompt included.
        limit: most tokens that there is room for.
        vocabulary: how many token ids there are, where the engine knows.
        what: what limits them.

    Raises:
        EngineError: it cannot.
    """
    if not ids:
        raise EngineError("a prompt needs at least one token")
    if vocabulary is not None:
        check_tokens(name, ids, vocabulary)
    if room > limit:
        raise EngineError(
            f"{len(ids)} prompt tokens and {room - len(ids)} new ones exceed the {what} of {name}, {limit}: lower "
            f"max_tokens to {max(0, limit - len(ids))} or less"
        )


class Engine(ABC):
    """Where tokens come from.

    Attributes:
        name: model and engine, for messages and run folders.
        digest: tells models apart that share a name: changes when the weights do. "" where it cannot be known.
        tokenizer: the model's tokenizer.
        thinking: how the model marks its thinking.
        capabilities: what this engine can do.
        end_ids: tokens that end a response.
        context_length: most tokens a sequence can hold, prompt included.
        default_sampling: what the model's authors recommend, where they do.
        levels: the length instructions that the model was trained on, by level; empty for most models.
        companions: other engines, by the names under which a method with two models asks for them.
        lacking: why it does not offer some capabilities, where that can be said, and what to do.
        attention: what a decoding step reads of the keys and values before it, as far as we decide it.
    """

    name: str
    digest: str = ""
    tokenizer: PreTrainedTokenizerBase
    thinking: ThinkingFormat
    capabilities: frozenset[Capability]
    end_ids: frozenset[int]
    context_length: int
    default_sampling: Sampling
    levels: Mapping[str, str] = MappingProxyType({})
    companions: Mapping[str, "Engine"] = MappingProxyType({})
    lacking: Mapping[Capability, str] = MappingProxyType({})
    attention: Attention = DENSE

    @abstractmethod
    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        control: "Control | None" = None,
        top_logprobs: int = 0,
        entropy: bool = False,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """Continue `prompt_ids`; several samples are several calls, a common prefix is computed once.

        Args:
            prompt_ids: the sequence so far.
            sampling: how to choose tokens.
            control: edits the logits of this sequence; see `check_control`.
            top_logprobs: how many of the most likely tokens to report at each step; any number above 0 also fills
                `Generation.logprobs`.
            entropy: whether to report the entropy of each step.
            on_token: called in the caller's event loop with each new token, in order.

        Returns:
            a generation that ended by itself ("stop") or at `max_tokens` ("length").

        Raises:
            EngineError: the request cannot be served, whatever the load.
            EngineFailed: the engine went wrong or was closed before the request was done; nothing of it is returned.
        """

    def check_control(self, control: "Control") -> None:  # noqa: B027 -- most engines take every control, or none
        """Refuse a control that `generate` would refuse, where `capabilities` alone do not say so.

        Raises:
            EngineError: the engine cannot do what it asks for.
        """

    async def next_tokens(
        self, prompt_ids: Sequence[int], paths: Sequence[Sequence[int]], *, top_logprobs: int
    ) -> list[Generation]:
        """What may follow each of several short continuations of one prompt: one step of a search.

        An engine that reuses prefixes reads the prompt once.

        Args:
            prompt_ids: what all of them begin with.
            paths: the continuations, a few tokens each; an empty one asks what follows the prompt.
            top_logprobs: how many of the most likely next tokens to report, at least 1.

        Returns:
            for each path what `generate` gives at temperature 0 for a single token after it.

        Raises:
            EngineError: the request cannot be served, whatever the load.
            EngineFailed: the engine went wrong or was closed before the request was done; nothing of it is returned.
        """
        likeliest = Sampling(temperature=0, top_p=1, max_tokens=1)
        asked = [
            asyncio.ensure_future(self.generate([*prompt_ids, *path], likeliest, top_logprobs=top_logprobs))
            for path in paths
        ]
        try:
            if asked:
                await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for each in asked:
                each.cancel()  # what is done already stays as it is
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
        found = [outcome for outcome in outcomes if isinstance(outcome, Generation)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        # What is no engine's refusal is a fault of its own, and is not to be hidden by one.
        failure = next((one for one in failures if not isinstance(one, EngineError)), next(iter(failures), None))
        if isinstance(failure, EngineError):
            spent = Usage()
            for outcome in (*found, *failures):
                if isinstance(outcome, Generation | EngineError):
                    spent.add(outcome.usage)
            failure.usage = spent
        if failure is not None:
            raise failure
        return found

    @abstractmethod
    async def score(self, ids: Sequence[int], start: int) -> Scores:
        """Log-probabilities of `ids[start:]`, each given all tokens before it.

        Raises:
            EngineError: `start` is not within 1..len(ids) - 1.
            EngineFailed: the engine went wrong or was closed before the request was done.
        """

    async def divergences(
        self, original: Sequence[int], others: Sequence[Sequence[int]], continued: Sequence[int]
    ) -> Divergences:
        """KL(P after `original` || P after another beginning), each followed by the same tokens.

        P is the distribution of the next token over the full vocabulary at temperature 1, before each of `continued`;
        see `Capability.DISTRIBUTIONS`.

        Args:
            original: the beginning that is compared with.
            others: beginnings in its place.
            continued: the tokens after each of them; at least one.

        Raises:
            EngineError: the engine gives no whole distributions, or something is empty or too long.
            EngineFailed: the engine went wrong or was closed before the request was done.
        """
        raise EngineError(f"{self.name} gives no whole distributions")

    def tree(self, prompt_ids: Sequence[int], sampling: Sampling, *, top: int, entropy_temperature: float) -> TokenTree:
        """A tree of continuations of `prompt_ids`, to be entered with `async with`; see `Capability.TREE`.

        Args:
            prompt_ids: what all branches begin with.
            sampling: how leaves draw their next token. `max_tokens` bounds the depth of the tree, `seed` is that of
                the root; what ends a branch is for the caller to decide.
            top: how many of the most likely tokens every leaf lists.
            entropy_temperature: of the distribution whose entropy and varentropy leaves report; above 0.

        Raises:
            EngineError: the engine grows no trees, or none like this.
        """
        raise EngineError(f"{self.name} grows no trees of branches")

    def close(self) -> None:  # noqa: B027 -- an engine may have nothing to free
        """Free what the engine holds; it cannot be used afterwards."""


class EngineAround(Engine):
    """An engine around another: it says of itself what that one says, and does something about some of the calls.

    Args:
        engine: where tokens come from. Whoever derives from this puts its companions around that one's.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.digest, self.tokenizer, self.thinking = (
            engine.name, engine.digest, engine.tokenizer, engine.thinking,
        )  # fmt: skip
        self.capabilities, self.lacking, self.end_ids = engine.capabilities, engine.lacking, engine.end_ids
        self.context_length, self.default_sampling = engine.context_length, engine.default_sampling
        self.levels, self.attention = engine.levels, engine.attention

    def check_control(self, control: "Control") -> None:
        """See `Engine.check_control`."""
        self._engine.check_control(control)

    async def next_tokens(
        self, prompt_ids: Sequence[int], paths: Sequence[Sequence[int]], *, top_logprobs: int
    ) -> list[Generation]:
        """See `Engine.next_tokens`."""
        return await self._engine.next_tokens(prompt_ids, paths, top_logprobs=top_logprobs)

    async def score(self, ids: Sequence[int], start: int) -> Scores:
        """See `Engine.score`."""
        return await self._engine.score(ids, start)

    async def divergences(
        self, original: Sequence[int], others: Sequence[Sequence[int]], continued: Sequence[int]
    ) -> Divergences:
        """See `Engine.divergences`."""
        return await self._engine.divergences(original, others, continued)

    def tree(self, prompt_ids: Sequence[int], sampling: Sampling, *, top: int, entropy_temperature: float) -> TokenTree:
        """See `Engine.tree`."""
        return self._engine.tree(prompt_ids, sampling, top=top, entropy_temperature=entropy_temperature)


def derive_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, 0 or more and below 2**63: whoever derives for another purpose gets another one.

    Every seed of a run is one such derivation from the seed of the run. It is never applied to its own result: a
    second derivation would name the whole way in its purpose, as in "fork/2/1".

    Args:
        seed: what to derive from.
        purpose: what for, such as "sample/PROBLEM/0", "choice/1", "fork/2" or "outline".
    """
    return int.from_bytes(hashlib.sha256(f"{purpose}/{seed}".encode()).digest()[:8], "big") >> 1


class _Delivery:
    """Tokens on their way into one event loop. It is woken for the first of them, and takes all that have come by then.

    Waking a loop costs a system call, and one more in the loop; a step of an engine has a token for every row.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Held by its own loop alone, see `_deliveries`, so that both go together.
        self._loop = weakref.ref(loop)
        self._tokens: deque[tuple[Callable[[int], None], int]] = deque()
        self._due = False

    def put(self, call: Callable[[int], None], token: int) -> None:
        """Have `call(token)` called in the loop, after all that was put before; for any thread."""
        self._tokens.append((call, token))
        if not self._due and (loop := self._loop()) is not None:
            self._due = True
            with suppress(RuntimeError):  # the loop is closed, so nobody waits for the token
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._due = False  # before the first is taken: whatever is put from now on wakes the loop again
        for _ in range(len(self._tokens)):
            call, token = self._tokens.popleft()
            try:
                call(token)
            except Exception as error:  # of one listener; the others hear theirs
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"a listener failed on token {token}", "exception": error}
                )


_deliveries: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Delivery]" = weakref.WeakKeyDictionary()


def in_this_loop(call: Callable[[int], None]) -> Callable[[int], None]:
    """What another thread may call to have `call` called in the event loop that runs now."""
    loop = asyncio.get_running_loop()
    delivery = _deliveries.get(loop)
    if delivery is None:
        delivery = _deliveries[loop] = _Delivery(loop)
    return functools.partial(delivery.put, call)


def require(engine: Engine, needs: frozenset[Capability], who: str) -> None:
    """Refuse a method whose needs an engine does not meet.

    Raises:
        EngineError: names the method, the engine and what is missing.
    """
    missing = sorted(needs - engine.capabilities)
    if missing:
        reasons = "".join(f"; {name}: {engine.lacking[name]}" for name in missing if name in engine.lacking)
        raise EngineError(f"{who} needs {', '.join(missing)}, which {engine.name} does not offer{reasons}")
