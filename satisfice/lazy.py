"""Names from expensive packages, for files that must be quick to import: the package comes when it is first used.

Whoever lists methods or objectives reads all their files. torch and transformers take seconds to import and say
nothing about a parameter, so those files take `torch`, `np`, `Tensor` and `PreTrainedTokenizerBase` from here:

    from satisfice.lazy import Tensor, torch

A type checker sees the real packages. When the code runs, `torch` and `np` stand for modules that are imported with the
first attribute that is asked for, and the two classes are good for annotations alone: `isinstance` needs the real one.
Files that cannot do anything without the package, as those of engines and trainers, import it in the usual way.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, ForwardRef

__all__ = ["PreTrainedTokenizerBase", "Tensor", "np", "torch"]


class _Lazy(ModuleType):
    """A module that is imported with the first attribute that is asked for."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, found)  # from now on it is found without coming here, as fast as in the module itself
        return found


if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase
else:
    np = _Lazy("numpy")
    torch = _Lazy("torch")
    Tensor = ForwardRef("Tensor", module="torch")
    PreTrainedTokenizerBase = ForwardRef("PreTrainedTokenizerBase", module="transformers")
