"""One forward pass over rows of several caches.

Rows lie side by side with rows of about their own length, in several caches (`satisfice.engines.rows`). All but
attention costs least in one pass over all of them; attention is computed for each cache by itself, so that nobody reads
the padding that a longer row would need.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from satisfice.engines.attending import attending, replace, replaceable
from satisfice.engines.base import EngineError
from satisfice.engines.kv import RowCache

Masks = dict[str, torch.Tensor]
"""What to add to attention scores, (B, 1, S, visible), by kind of attention."""

_UNKNOWN = ("position_bias",)
"""What some models hand to their attention a row, and we do not cut into parts."""


@dataclass(eq=False)
class Part:
    """The rows of one cache in a forward pass.

    Attributes:
        cache: has been aimed at them.
        rows: which rows of the pass they are.
        masks: theirs.
        visible: the keys and values that the layer which is being computed shows them.
    """

    cache: RowCache
    rows: slice
    masks: Masks
    visible: tuple[torch.Tensor, torch.Tensor] = field(init=False)


class JoinedCache(Cache):
    """Several caches, handed to a model as its `past_key_values` while it is `attending` them.

    Args:
        parts: the rows of each, in the order of the pass.

    Attributes:
        layers_attended: in how many layers they have been read.
        marks: what to hand to the model as masks: nothing is read from it, it tells kinds of attention apart.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__(layers=[])
        self._parts = parts
        self._keys: torch.Tensor | None = None
        self.layers_attended = 0
        first = parts[0]
        mask = next(iter(first.masks.values()))
        size = (parts[-1].rows.stop, 1, mask.shape[2], 1)
        self.marks: Masks = {kind: mask.new_zeros(size) for kind in first.masks}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, heads, S, dimension) new keys and values where they belong; attention looks the others up."""
        for part in self._parts:
            part.visible = part.cache.update(key_states[part.rows], value_states[part.rows], layer_idx)
        self._keys = key_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens visible to the row that sees most."""
        return max(part.cache.get_seq_length() for part in self._parts)

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **more: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The attention of a layer, see `attending.LayerAttention`."""
        kind = next((kind for kind, mark in self.marks.items() if mark is attention_mask), None)
        if kind is None or key is not self._keys or any(more.get(name) is not None for name in _UNKNOWN):
            raise EngineError("a layer changes what it hands to its attention")
        self.layers_attended += 1
        outputs = [
            sdpa_attention_forward(module, query[part.rows], *part.visible, part.masks[kind], **more)[0]
            for part in self._parts
        ]
        return torch.cat(outputs), None


def install(model: PreTrainedModel, kinds: set[str]) -> int:
    """Put our attention into a model, if it may be `attending` a `JoinedCache` then.

    Args:
        model: the model, which is tried.
        kinds: of attention that its layers have.

    Returns:
        how many layers have it; 0 where caches cannot be joined in one pass.
    """
    if not replaceable(model):
        return 0
    undo = replace(model)
    place = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    mask = torch.zeros((1, 1, 1, 1), dtype=model.dtype, device=model.device)
    parts = [Part(RowCache(), slice(row, row + 1), dict.fromkeys(kinds, mask)) for row in range(2)]
    for part in parts:
        part.cache.resize(1, 1)
        part.cache.aim(slice(0, 1), place, visible=1)
    joined = JoinedCache(parts)
    try:
        with torch.inference_mode(), attending(joined):
            model(
                input_ids=place.expand(2, 1),
                attention_mask=of_kinds(joined.marks),
                position_ids=place.expand(2, 1),
                past_key_values=joined,
                use_cache=True,
            )
    except Exception:  # whatever goes wrong, and models do much: they are run without joining
        joined.layers_attended = 0
    layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    if joined.layers_attended != layers:
        undo()
        return 0
    return layers


def of_kinds(masks: Masks) -> torch.Tensor | Masks:
    """Masks as models take them: those with one kind of attention take the mask alone."""
    return masks if len(masks) > 1 else next(iter(masks.values()))
