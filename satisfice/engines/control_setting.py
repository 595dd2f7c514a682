"""A control as a request carries it: one setting, plain data, which can travel to another process.

What it does to logits is in the `ControlBatch` that it makes (`control_batch.py`), which alone needs tensors.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from satisfice.engines.base import Capability, EngineError
from satisfice.lazy import PreTrainedTokenizerBase
from satisfice.thinking import ThinkingFormat

if TYPE_CHECKING:
    from satisfice.engines.control_batch import ControlBatch, Markers


@dataclass(frozen=True, kw_only=True)
class Control(ABC):
    """Edits the next-token logits of one sequence while it thinks.

    Attributes:
        state: the marker automaton's state at the end of the ids that generation starts from (`Prompt.state`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    state: int = 0

    @abstractmethod
    def batch(self, markers: "Markers", slots: int) -> "ControlBatch":
        """An empty batch for controls of this class, with room for `slots` requests."""

    def biases(self, thinking: ThinkingFormat, tokenizer: PreTrainedTokenizerBase) -> dict[int, float]:
        """What this control adds to the logits of single tokens, always the same while the model thinks.

        For engines that have `Capability.BIAS` and no more. Controls that do nothing else override this.

        Returns:
            nats by token id; minus infinity where a token is made impossible.

        Raises:
            EngineError: it does something else; the message says what, and what to do.
        """
        raise EngineError(
            f"{type(self).__name__} is more than a constant bias, so it needs {Capability.CONTROL}: take an engine "
            "that has it, such as transformers or vllm"
        )


def encode_control(control: Control) -> str:
    """A control as JSON, to travel with a request to another process: the name of its class and its attributes."""
    return json.dumps({"class": type(control).__name__, **asdict(control)})


def decode_control(text: str) -> Control:
    """The control that `encode_control` wrote, of any class that is loaded; only data is read, and type-checked.

    Raises:
        ValueError: it is not the JSON of such a control.
    """
    known: dict[str, Any] = {kind.__name__: kind for kind in _subclasses(Control)}
    try:
        values = json.loads(text)
        kind = known[values.pop("class")]
    except (ValueError, TypeError, AttributeError, KeyError):
        raise ValueError(f"{text!r} is not a control as JSON, of a class among {', '.join(sorted(known))}") from None
    try:
        control: Control = TypeAdapter(kind).validate_json(json.dumps(values))
        return control
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"control {kind.__name__}: {reasons}") from None


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    return [found for child in kind.__subclasses__() for found in (child, *_subclasses(child))]
