"""Controls by the protocol's own `logit_bias`, for servers that do not run satisfice's plugin.

A request's `logit_bias` acts on all that it writes, a control only while the model thinks. So a request that carries
one is ended where thinking ends, and the answer is written by another one without it.
"""

import math
from typing import Any

from satisfice.engines.base import EngineError
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
        if MOST_BIAS < abs(bias) < math.inf or bias == math.inf:
            raise EngineError(
                f"a bias of {bias:g} is beyond the {-MOST_BIAS:g}..{MOST_BIAS:g} that logit_bias takes: choose one "
                "within, or take an engine that has control, such as transformers or vllm"
            )
    return {str(token): max(bias, -MOST_BIAS) for token, bias in biases.items()}


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
