"""Plugin files: methods, objectives, graders and problem sources of one's own, without a package around them.

What a file holds is known by its name in this process from then on, and goes with it to the processes that grade and to
the workers of a run. A package that is installed says the same by entry points and needs no loading; see
docs/write-your-own.md.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from satisfice.intervention import METHODS
from satisfice.problems import GRADERS, SOURCES
from satisfice.registry import PluginError, PluginFile, Registry, forget_file, load_file
from satisfice.reinforcement import OBJECTIVES

REGISTRIES: tuple[Registry[Any], ...] = (METHODS, OBJECTIVES, GRADERS, SOURCES)
"""All that can be written outside of this package."""


def load_plugins(paths: Sequence[str | Path]) -> list[str]:
    """Load plugin files; a file that is loaded already is left alone.

    Args:
        paths: Python files.

    Returns:
        the names that they hold, such as "method my-method".

    Raises:
        PluginError: a file cannot be read or imported, holds nothing that can be named, or names what exists.
    """
    names: list[str] = []
    for path in paths:
        file = PluginFile.read(path)
        load_file(file)
        try:
            found = [f"{registry.what} {kind.name}" for registry in REGISTRIES for kind in registry.classes_in(file)]
            if not found:
                bases = ", ".join(f"{registry.base.__module__}.{registry.base.__name__}" for registry in REGISTRIES)
                raise PluginError(f"plugin {path} holds no public class that subclasses one of {bases}")
            for registry in REGISTRIES:
                list(registry)  # a name that another file has is refused here
        except PluginError:
            forget_file(file)
            raise
        names += found
    return names
