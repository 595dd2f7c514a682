"""Our own attention inside of a Transformers model, for the length of one forward pass and in one thread.

Transformers lets a model's attention be replaced by a function of a name. Ours computes "sdpa", as most models do,
unless the thread that calls it has said otherwise: then it hands every layer's queries, keys and values to what was
said.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "satisfice"
"""Our attention among those of Transformers."""

LayerAttention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""The attention of one layer: a module, (B, H, S, D) queries, (B, K, T, D) keys and values, a mask, and by name
whatever else the model hands over; it gives (B, S, H, D) and None, for weights that nobody reads."""

_now = threading.local()
"""What attention is in each thread: others may use the same model, and get what they would get without us."""


def replaceable(model: PreTrainedModel) -> bool:
    """Whether a model computes its attention as we do, and lets it be replaced."""
    return model.config._attn_implementation in ("sdpa", NAME) and model._can_set_attn_implementation()


def replace(model: PreTrainedModel) -> Callable[[], None]:
    """Put our attention into a model, which changes nothing outside of `attending`; what is returned takes it out."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    return lambda: model.set_attn_implementation(before)


@contextmanager
def attending(attention: LayerAttention) -> Iterator[None]:
    """Within, in this thread, the layers of models with our attention compute this one."""
    _now.attention = attention
    try:
        yield
    finally:
        _now.attention = None


def _attention(*handed: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Whatever attention is in this thread, see `LayerAttention`."""
    attention: LayerAttention | None = getattr(_now, "attention", None)
    if attention is None:
        attention = sdpa_attention_forward
    return attention(*handed, **more)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
