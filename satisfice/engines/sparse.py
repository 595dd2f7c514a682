"""Sparse decoding: a step reads a budget of the keys and values before it (Kinetics, 2506.05333, section 5).

Only decoding is sparse; a prefill pass reads all. In each layer, for each head of keys by itself:

- `local` reads the last `budget` tokens, or the first `sinks` of the sequence and the last `budget - sinks`;
- `block-topk` cuts the sequence into blocks of `block` tokens from its beginning. The newest `recent / block` of them
  are read whatever they hold, the last of which is still being filled. Of the others, which are all full, those are
  read whose mean key has the highest score: q . mean(K) / sqrt(d), averaged over the query heads that share the head of
  keys. So `budget / block` blocks are read, `budget` tokens at most and `budget - block + 1` at least.

The paper's program departs from that (LiteSys): it always reads four sinks too, and its first layer stays dense. Ours
does neither unless asked, so that a budget is a budget. With `block=1`, `block-topk` is the paper's oracle top-k.

What is chosen is gathered, and attention runs on that alone. The means of blocks are computed anew from all keys in
every step, which reads more than a kernel would that keeps them: this shows what a budget does to accuracy; no speed is
claimed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from satisfice.attention import Attention
from satisfice.engines.attending import attending, replace, replaceable
from satisfice.engines.base import EngineError

DENSE, WRITTEN, SEAM = range(3)
"""How the keys and values of a token were computed: reading all; sparse, as one that was written; sparse, as the last
of a prompt, after which writing begins."""

_BEYOND = ("softcap", "s_aux", "sinks", "position_bias", "sliding_window")
"""What some models hand to their attention besides queries, keys and values; none of it is known here."""


@dataclass(eq=False)
class Reading:
    """One decoding step of some rows.

    Attributes:
        attention: what the rows read.
        lengths: (B,) tokens of each row, the one that is being computed included.
        whole: rows that read all, because their token is one of a prompt.
        layers: how many layers have read so.
    """

    attention: Attention
    lengths: torch.Tensor
    whole: list[int]
    layers: int = 0

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
        if unknown := [name for name in _BEYOND if more.get(name) is not None]:
            raise EngineError(f"its layers have {' and '.join(unknown)}")
        self.layers += 1
        if key.shape[2] <= self.attention.budget:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **more)  # type: ignore[no-any-return]
        places = chosen(self.attention, query[:, :, 0], key, self.lengths)
        output = attend(query[:, :, 0], key, value, places, self.lengths, more.get("scaling"))[:, None]
        if self.whole:
            at, mask = self.whole, attention_mask
            mask = mask if mask is None or len(mask) == 1 else mask[at]
            output[at] = sdpa_attention_forward(module, query[at], key[at], value[at], mask, **more)[0]
        return output, None


def check(attention: Attention, layer_kinds: set[str], model: PreTrainedModel, name: str) -> None:
    """Refuse an attention that cannot be decoded with, or a model whose attention is another.

    Args:
        attention: a sparse one.
        layer_kinds: kinds of attention that the model's layers have.
        model: the model.
        name: of the engine, for messages.

    Raises:
        EngineError: what is wrong, and what to do.
    """
    if attention.kind == "top-k":
        raise EngineError(
            f"{attention} finds its tokens for free, which is a bound and no method: to decode like it, say "
            "block-topk:block=1"
        )
    if attention.kind == "block-topk":
        budget, block = attention.budget, attention.block
        if budget % block:
            near = [str(size) for size in (budget // block * block, (budget // block + 1) * block) if size]
            raise EngineError(f"{attention} has no whole number of blocks: use a budget of {' or '.join(near)}")
        if budget <= attention.recent:
            raise EngineError(
                f"{attention} reads the newest {attention.recent} tokens and leaves no block to choose: use a budget "
                f"of at least {attention.recent + block}, smaller blocks, or local:budget={budget}"
            )
    if layer_kinds != {"full_attention"}:
        raise EngineError(
            f"{name} has layers with sliding windows, which read a budget of their own: leave --attention out"
        )
    used = model.config._attn_implementation
    if not replaceable(model):
        raise EngineError(f"{name} computes attention by {used}, which cannot be replaced: leave --attention out")


def install(model: PreTrainedModel, name: str) -> int:
    """Put our attention into a model, which may then be `attending` a `Reading`.

    Returns:
        how many layers have it.

    Raises:
        EngineError: the model does not let its attention be replaced, or does more in it than we know of.
    """
    refusal = f"{name} does not let its attention be replaced, so it cannot read a budget: leave --attention out"
    undo = replace(model)
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    trial = Reading(Attention("local", 1), torch.ones(1, dtype=torch.int64, device=model.device), [])
    try:
        with torch.inference_mode(), attending(trial):
            model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=model.device), use_cache=False)
    except EngineError as error:
        undo()
        raise EngineError(f"{refusal} ({error})") from None
    if trial.layers != layers:
        undo()
        raise EngineError(refusal)
    return trial.layers


def reusable(made: bytes | bytearray, shared: int, prompt: int, *, scoring: bool, goes_on: bool) -> int:
    """How many of the first `shared` tokens of a computed sequence a request may take over.

    A score is a prefill and takes over dense tokens alone. A request that writes takes over its prompt as it finds it,
    so that a chain goes on from what was written sparsely; what it wrote itself must have been written sparsely. A seam
    after which the prompt goes on with other tokens than were written is not taken over: without it, what a prompt
    computes would depend on whether another request ended there.

    Args:
        made: how each token of the sequence was computed, `DENSE`, `WRITTEN` or `SEAM`.
        shared: tokens that it has in common with the request.
        prompt: tokens of the request's prompt.
        scoring: whether the request writes nothing.
        goes_on: whether the token that follows these in the sequence follows them in the request, too.
    """
    if scoring:
        begun = bytes(made[:shared])
        return len(begun) - len(begun.lstrip(bytes([DENSE])))
    own = made.find(DENSE, prompt - 1, shared)
    if own >= 0:
        return own
    seam = 0 < shared < prompt and made[shared - 1] == SEAM
    return shared - 1 if seam and not goes_on else shared


def chosen(attention: Attention, query: torch.Tensor, key: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which tokens a step reads.

    Args:
        attention: a sparse one, whose budget is below T.
        query: (B, H, D) of the newest token of each row.
        key: (B, K, T, D) of all tokens, its own among them.
        lengths: (B,) tokens of each row; what is in `key` beyond is none of its own.

    Returns:
        (B, K or 1, budget) places in each row; those that are not below its length are to be left out.
    """
    if attention.kind == "local":
        place = torch.arange(attention.budget, device=key.device)
        left_out = (lengths - attention.budget).clamp(min=0)
        return (place + left_out[:, None] * (place >= attention.sinks))[:, None]
    block = attention.block
    heads, visible, dimension = key.shape[1:]
    # A query group reads the same blocks: the mean of its scores is the score of its mean.
    mean_query = query.unflatten(1, (heads, -1)).mean(dim=2, dtype=torch.float32)
    full = visible // block
    mean_keys = key[:, :, : full * block].unflatten(2, (full, block)).mean(dim=3, dtype=torch.float32)
    scores = torch.einsum("bkd,bknd->bkn", mean_query, mean_keys) / dimension**0.5
    scores = pad(scores, (0, -(-visible // block) - full))
    number = torch.arange(scores.shape[-1], device=key.device)
    newest = ((lengths - 1) // block)[:, None]
    recent = (number > newest - attention.recent // block) & (number <= newest)
    scores = scores.masked_fill(recent[:, None], torch.inf).masked_fill((number > newest)[:, None], -torch.inf)
    # Of equal ones the earlier, whatever else is in the batch; topk promises nothing.
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., : attention.budget // block]
    return (best[..., None] * block + torch.arange(block, device=key.device)).flatten(2)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    places: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of (B, H, D) queries to the tokens at (B, K or 1, N) places alone: (B, H, D')."""
    batch, heads = key.shape[:2]
    there = (places < lengths[:, None, None]).expand(batch, heads, -1)
    at = places.clamp(max=key.shape[2] - 1).expand(batch, heads, -1)[..., None]
    keys, values = (each.gather(2, at.expand(-1, -1, -1, each.shape[-1])) for each in (key, value))
    groups = query.unflatten(1, (heads, -1))
    read = scaled_dot_product_attention(groups, keys, values, attn_mask=there[:, :, None], scale=scaling)
    return read.flatten(1, 2)
