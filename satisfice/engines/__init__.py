"""Where tokens come from: one contract (`base`), one file an engine."""

from satisfice.engines.base import (
    Capability,
    Child,
    Engine,
    EngineClosed,
    EngineError,
    EngineFailed,
    Generation,
    Leaf,
    Sampling,
    Scores,
    TokenTree,
    Usage,
    require,
)

__all__ = [
    "Capability",
    "Child",
    "Engine",
    "EngineClosed",
    "EngineError",
    "EngineFailed",
    "Generation",
    "Leaf",
    "Sampling",
    "Scores",
    "TokenTree",
    "Usage",
    "require",
]
