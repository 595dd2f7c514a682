"""Where tokens come from: one contract (`base`), one file an engine."""

from satisfice.engines.base import (
    Capability,
    Engine,
    EngineError,
    Generation,
    Sampling,
    Scores,
    Usage,
    require,
)

__all__ = ["Capability", "Engine", "EngineError", "Generation", "Sampling", "Scores", "Usage", "require"]
