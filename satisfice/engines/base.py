"""The engine contract: the only way a method gets tokens.

An engine turns token ids into more token ids. It knows nothing of problems, methods or grades; methods know
nothing of models, devices or servers. What an engine can do it states as `capabilities`, what a method needs it
states as `needs`, and `require` compares the two before the first token is paid for.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from satisfice.thinking import ThinkingFormat

if TYPE_CHECKING:
    from satisfice.engines.control import Control


class Capability(StrEnum):
    """Something an engine may or may not be able to do."""

    CONTROL = "control"
    """Edits next-token logits with a `Control`."""
    LOGPROBS = "logprobs"
    """Gives log-probabilities of the chosen and the top tokens."""
    ENTROPY = "entropy"
    """Gives the entropy of the full next-token distribution."""
    SCORE = "score"
    """Gives log-probabilities of given tokens."""
    PREFIX_REUSE = "prefix reuse"
    """Does not compute a shared prefix twice."""
    CANCEL = "cancel"
    """Stops a request when its task is cancelled."""


class EngineError(ValueError):
    """A request that this engine cannot serve; the message says what to change."""


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


@dataclass
class Generation:
    """What one call of `generate` returned.

    Attributes:
        ids: the new token ids, the one that stopped the generation included.
        finish: "stop", "length" or "cancelled".
        stopped_by: the stop text or token id that ended it; None unless finish is "stop".
        stop_tokens: how many tokens at the end of `ids` hold the stop: `ids[:-stop_tokens]` is the text before it,
            to whole tokens; 0 unless finish is "stop".
        logprobs: natural log-probability of each new token, of the model's own distribution: before any control,
            temperature or truncation. None where not asked for.
        top_logprobs: per new token, the most likely tokens and their log-probabilities, most likely first.
        entropies: per new token, the entropy in nats of that same distribution over the full vocabulary.
        usage: what it cost.
    """

    ids: list[int]
    finish: str
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
        companions: other engines, by the names under which a method with two models asks for them.
    """

    name: str
    digest: str = ""
    tokenizer: PreTrainedTokenizerBase
    thinking: ThinkingFormat
    capabilities: frozenset[Capability]
    end_ids: frozenset[int]
    context_length: int
    default_sampling: Sampling
    companions: Mapping[str, "Engine"] = MappingProxyType({})

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
            control: edits the logits of this sequence.
            top_logprobs: how many of the most likely tokens to report at each step; any number above 0 also fills
                `Generation.logprobs`.
            entropy: whether to report the entropy of each step.
            on_token: called in the caller's event loop with each new token, in order.

        Raises:
            EngineError: the request cannot be served, whatever the load.
        """

    @abstractmethod
    async def score(self, ids: Sequence[int], start: int) -> Scores:
        """Log-probabilities of `ids[start:]`, each given all tokens before it.

        Raises:
            EngineError: `start` is not within 1..len(ids) - 1.
        """

    def close(self) -> None:  # noqa: B027 -- an engine may have nothing to free
        """Free what the engine holds; it cannot be used afterwards."""


def require(engine: Engine, needs: frozenset[Capability], who: str) -> None:
    """Refuse a method whose needs an engine does not meet.

    Raises:
        EngineError: names the method, the engine and what is missing.
    """
    missing = sorted(needs - engine.capabilities)
    if missing:
        raise EngineError(f"{who} needs {', '.join(missing)}, which {engine.name} does not offer")
