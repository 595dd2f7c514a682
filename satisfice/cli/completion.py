"""What the shell offers for a value that is being typed, after `satisfice --install-completion`.

A name that takes parameters is offered as it stands; files and directories are the shell's own business.
"""

from collections.abc import Iterable


def methods(incomplete: str) -> list[str]:
    """Methods; after a plus sign the one that is joined."""
    from satisfice.intervention import METHODS

    before, plus, last = incomplete.rpartition("+")
    return [f"{before}{plus}{name}" for name in _beginning([*METHODS, *([] if plus else ["all"])], last)]


def one_method(incomplete: str) -> list[str]:
    """Methods where there can be one only."""
    return [name for name in methods(incomplete) if name != "all"]


def objectives(incomplete: str) -> list[str]:
    """Objectives."""
    from satisfice.reinforcement import OBJECTIVES

    return _beginning(OBJECTIVES, incomplete)


def curations(incomplete: str) -> list[str]:
    """Curations."""
    from satisfice.supervision import CURATIONS

    return _beginning(CURATIONS, incomplete)


def models(incomplete: str) -> list[str]:
    """Models that are known by a name."""
    from satisfice.lab import ADAPTERS, SHIPPED

    return _beginning([*SHIPPED, "smollm2", *ADAPTERS], incomplete)


def problems(incomplete: str) -> list[str]:
    """Problem sets that are known by a name, and the beginnings of what other sources are spelled with."""
    from satisfice.lab import arithmetic, words
    from satisfice.problems import SOURCES

    splits = {"lab": arithmetic.SPLITS, "words": words.SPLITS}
    named = [f"{source}:{split}" for source, known in splits.items() for split in known]
    return _beginning([*named, *(f"{source}:" for source in SOURCES if source not in splits)], incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
