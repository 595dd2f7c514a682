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
            levels(place),
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
    """A hash of the first values of every parameter: cheap, and different after any training step."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(f"{name}{tuple(parameter.shape)}".encode())
        found.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dimension = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * dimension * dtype.itemsize)


def levels(source: str, revision: str | None = None) -> dict[str, str]:
    """The length instructions beside a model's weights, in its directory or on the Hub."""
    if Path(source).is_dir():
        return read_levels(Path(source))
    extra: dict[str, Any] = {"revision": revision} if revision else {}
    found = cached_file(source, LEVELS_FILE, _raise_exceptions_for_missing_entries=False, **extra)
    return read_levels(Path(found).parent) if found else {}
