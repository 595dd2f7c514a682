"""What a model's directory says besides its weights, as every engine reads it."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from satisfice.engines.base import EngineError, Sampling
from satisfice.lab import SHIPPED
from satisfice.levels import FILE as LEVELS_FILE
from satisfice.levels import read_levels


@dataclass(frozen=True)
class Checkpoint:
    """What a model's directory, or its place on the Hub, says.

    Attributes:
        tokenizer: the model's tokenizer.
        end_ids: tokens that end a response.
        default_sampling: what the model's authors recommend, where they do.
        levels: the length instructions that the model was trained on, by level.
        context_length: most tokens a sequence can hold; None where no configuration is there.
    """

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    default_sampling: Sampling
    levels: dict[str, str] = field(default_factory=dict)
    context_length: int | None = None

    @classmethod
    def read(cls, source: str) -> "Checkpoint":
        """What is in a directory, in a GGUF file or under a Hub id; "lab" and "lab-tldr" are embedded.

        Raises:
            EngineError: there is no tokenizer.
        """
        place = str(SHIPPED.get(source, source))
        options: dict[str, Any] = {}
        if source.endswith(".gguf"):
            place, options = str(Path(source).parent), {"gguf_file": Path(source).name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise EngineError(f"cannot load the tokenizer {source}: {' '.join(str(error).split())}") from error
        generation = None if options else _or_none(GenerationConfig, place)
        config = _or_none(AutoConfig, place, **options)
        text_config = config.get_text_config(decoder=True) if config is not None else None
        return cls(
            tokenizer,
            end_of_text_ids(generation, tokenizer),
            recommended(generation),
            find_levels(place),
            getattr(text_config, "max_position_embeddings", None),
        )


def _or_none(kind: Any, place: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(place, **options)
    except (OSError, ValueError):
        return None  # a directory that holds a tokenizer alone


def recommended(config: GenerationConfig | None) -> Sampling:
    """What a model's authors put into its generation config, over our defaults."""
    if config is None:
        return Sampling()
    if config.do_sample is False:
        return Sampling(temperature=0.0, top_p=1.0)
    given = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "min_p": getattr(config, "min_p", None),
        "max_tokens": config.max_new_tokens,
    }
    return replace(Sampling(), **{key: value for key, value in given.items() if value is not None})


def end_of_text_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a response, by a model's generation config and its tokenizer."""
    configured = config.eos_token_id if config is not None else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*ids, tokenizer.eos_token_id] if token is not None)


def digest_of(model: torch.nn.Module) -> str:
    """A digest over every value of every parameter and buffer that is saved with the model: any change shows.

    Each tensor is folded on its own device into three sums of 64 bits, of its words and of their products with weights
    that depend on the place, so that a model of gigabytes takes about as long as reading it once. It guards against
    mistakes, not against an adversary.
    """
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            found.update(repr(_fold(value.detach())).encode())
    return found.hexdigest()[:16]


_CHUNK = 1 << 20
"""Words of a tensor that are folded at once: 8 MiB of products."""


def _fold(value: torch.Tensor) -> list[int]:
    """Sums of a tensor's words, modulo 2**64: plain, and weighted by two mixes of their places."""
    flat = value.contiguous().flatten()
    if flat.dtype == torch.bool:
        flat = flat.to(torch.uint8)
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(flat.element_size())
    words = flat.view(whole) if whole is not None else flat.view(torch.int8)  # complex numbers and the like
    places = torch.arange(_CHUNK, dtype=torch.int64, device=words.device)
    sums = torch.zeros(3, dtype=torch.int64, device=words.device)
    for start in range(0, len(words), _CHUNK):
        chunk = words[start : start + _CHUNK].to(torch.int64)
        place = places[: len(chunk)] + start
        # Odd numbers of many bits: neighbours get unlike weights, and no weight is zero.
        first = place * 0x2545F4914F6CDD1D | 1
        second = (place ^ (place << 13)) * 0x5851F42D4C957F2D | 1
        sums += torch.stack([chunk.sum(), (chunk * first).sum(), (chunk * second).sum()])
    return [int(total) for total in sums.tolist()]


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dimension = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * dimension * dtype.itemsize)


def find_levels(source: str, revision: str | None = None) -> dict[str, str]:
    """The length instructions beside a model's weights, in its directory or on the Hub."""
    if Path(source).is_dir():
        return read_levels(Path(source))
    extra: dict[str, Any] = {"revision": revision} if revision else {}
    found = cached_file(source, LEVELS_FILE, _raise_exceptions_for_missing_entries=False, **extra)
    return read_levels(Path(found).parent) if found else {}
