"""Rotary factors that depend on how long a sequence is, for each row of a batch by itself.

Transformers chooses such factors by the longest position of a whole batch. So a short row beside a long one would be
rotated by the wrong factors, and so would any row beside padding. Two kinds of models have them:

- "longrope" (Phi-3, Phi-4-mini): one set of factors up to the length of the first training, another beyond it. A
  sequence that grows beyond it is another one from its first token on: it is computed again, as `generate` does.
- "dynamic" (NTK): factors that grow with every token beyond `max_position_embeddings`. Up to there, which is all that
  the engine serves, they are fixed.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

_ONE_AT_A_TIME = threading.Lock()
"""Held through a forward pass, since several engines may have one model."""


class RowwiseRotary:
    """Sees to it that each row of a forward pass is rotated by its own factors.

    The model itself is left as it is: other threads may use it meanwhile, and get what they would get without us.

    Attributes:
        limit: tokens of a sequence from beyond which it has other factors; None where there is no such length.
    """

    def __init__(self, modules: Sequence[nn.Module], limit: int | None, most: int) -> None:
        # Transformers writes the factors that it chose into the module, so we have it choose in a copy.
        self._modules = [(module, deepcopy(module)) for module in modules]
        self._most = most if limit is None else limit
        self.limit = limit

    @classmethod
    def of(cls, model: nn.Module) -> "RowwiseRotary | None":
        """That of a model; None for most, whose factors are the same for all lengths."""
        modules = [(module, _kinds(module)) for module in model.modules() if hasattr(module, "rope_type")]
        modules = [(module, kinds) for module, kinds in modules if any(map(_depends_on_length, kinds))]
        if not modules:
            return None
        config: Any = modules[0][0].config
        limit = _trained_length(config) if "longrope" in modules[0][1] else None
        return cls([module for module, _ in modules], limit, int(config.max_position_embeddings))

    def is_long(self, length: int) -> bool:
        """Whether a sequence of `length` tokens has the factors of long ones."""
        return self.limit is not None and length > self.limit

    @contextmanager
    def rows(self, long: Sequence[bool]) -> Iterator[None]:
        """Within, a forward pass over rows of which `long` says whether they are long rotates each as it is."""
        with _ONE_AT_A_TIME:
            for module, own in self._modules:
                module.forward = self._rotating(module.forward, own.forward, list(long))
            try:
                yield
            finally:
                for module, _ in self._modules:
                    del module.forward

    def _rotating(self, theirs: Callable[..., Any], ours: Callable[..., Any], long: list[bool]) -> Callable[..., Any]:
        """What stands in for a module's forward pass."""
        thread = threading.get_ident()

        def forward(x: torch.Tensor, position_ids: torch.Tensor, *more: Any, **named: Any) -> Any:
            if threading.get_ident() != thread:
                return theirs(x, position_ids, *more, **named)
            return self._rotate(lambda places: ours(x, places, *more, **named), long, position_ids)

        return forward

    def _rotate(self, rotate: Callable[[torch.Tensor], Any], long: list[bool], position_ids: torch.Tensor) -> Any:
        """Cosines and sines, (B, S, D) each; `rotate` chooses by the highest position that it is given."""
        short = [] if all(long) else rotate(position_ids.clamp(max=self._most - 1))
        if not any(long):
            return short
        beyond = position_ids.new_full((position_ids.shape[0], 1), self._most)
        found = [part[:, :-1] for part in rotate(torch.cat([position_ids, beyond], dim=1))]
        if short:
            chosen = torch.tensor(long, device=position_ids.device)[:, None, None]
            found = [torch.where(chosen, *parts) for parts in zip(found, short, strict=True)]
        return tuple(found)


def _kinds(module: Any) -> list[str]:
    return list(module.rope_type.values()) if isinstance(module.rope_type, dict) else [str(module.rope_type)]


def _depends_on_length(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind


def _trained_length(config: Any) -> int:
    parameters = config.rope_parameters
    nested = [each for each in parameters.values() if isinstance(each, dict)]
    return min(int(each["original_max_position_embeddings"]) for each in nested or [parameters])
