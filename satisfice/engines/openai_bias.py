"""Controls by the protocol's own `logit_bias`, for servers that do not run satisfice's plugin.

A request's `logit_bias` acts on all that it writes, a control only while the model thinks. So a request that carries
one is ended where thinking ends, and the answer is written by another one without it.
"""

import math
from typing import Any

from satisfice.engines.base import Capability, Engine, EngineError
from satisfice.engines.control_setting import Control
from satisfice.lazy import PreTrainedTokenizerBase
from satisfice.thinking import Phase, ThinkingFormat

MOST_BIAS = 100.0
"""The largest bias of the protocol, both ways; the least stands for minus infinity."""


def logit_bias(control: Control, thinking: ThinkingFormat, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """A control as a request's `logit_bias`.

    Raises:
        EngineError: it is none; the message says why and what to do.
    """
    biases = control.biases(thinking, tokenizer)
    for bias in biases.values():
        if not abs(bias) <= MOST_BIAS and bias != -math.inf:
            raise EngineError(
                f"a bias of {bias:g} is beyond the {-MOST_BIAS:g}..{MOST_BIAS:g} that logit_bias takes: choose one "
                "within, or take an engine that has control, such as transformers or vllm"
            )
    return {str(token): max(bias, -MOST_BIAS) for token, bias in biases.items()}


def bias_for(engine: Engine, control: Control) -> dict[str, float]:
    """A control for an engine that has no controls: the `logit_bias` that stands for it.

    Raises:
        EngineError: it is no bias, or the engine obeys none.
    """
    try:
        bias = logit_bias(control, engine.thinking, engine.tokenizer)
    except EngineError as refused:
        lacking = engine.lacking[Capability.CONTROL]
        raise EngineError(f"{engine.name} does not offer {Capability.CONTROL} ({lacking}), and {refused}") from None
    if bias and Capability.BIAS not in engine.capabilities:
        raise EngineError(f"{engine.name} does not offer {Capability.BIAS}: {engine.lacking[Capability.BIAS]}")
    return bias


class BiasedThinking:
    """Follows a response token by token, and says what a request that goes on with it is to carry.

    Args:
        state: the marker automaton's where the response begins.
        bias: what acts while the model thinks.
        thinking: how it marks thinking.
        tokenizer: the model's.
    """

    def __init__(
        self, state: int, bias: dict[str, float], thinking: ThinkingFormat, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._state, self._bias, self._thinking = state, bias, thinking
        self._automaton = thinking.automaton(tokenizer)

    @property
    def _thinks(self) -> bool:
        return self._automaton.phase(self._state) is Phase.THINKING

    def turns(self, token: int) -> bool:
        """Take one more token in; whether thinking begins or ends with it."""
        before = self._thinks
        self._state = self._automaton.step(self._state, token)
        return self._thinks is not before

    def fields(self) -> dict[str, Any]:
        """Of the request that goes on from here."""
        return {"logit_bias": self._bias} if self._thinks else {}

    def markers(self) -> tuple[str, ...]:
        """The texts at which that request has to end."""
        return self._thinking.closers if self._thinks else self._thinking.openers
