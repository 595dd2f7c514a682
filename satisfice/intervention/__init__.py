"""Methods that act at decoding time, by name: one file a method in `methods/`, controls in `controls.py`.

A method is spelled `name:parameter=value,parameter=value`. Values with commas stand in quotes; inside double
quotes, escapes are those of JSON: `budget-forcing:max_thinking=512,cue="Final Answer:\\n"`. A strategy and a
control are joined by a plus sign: `budget-forcing:max_thinking=512+temperature-scaling:t=0.9`.
"""

import re
from typing import Any

from satisfice.intervention.composed import compose
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method, MethodError, Watch
from satisfice.parameters import describe_parameters, nearest, parameter_types
from satisfice.registry import Registry
from satisfice.spelling import read_parameters

__all__ = [
    "METHODS",
    "Draft",
    "Method",
    "MethodError",
    "Watch",
    "describe",
    "lab_spellings",
    "parse_method",
    "read_method",
]

METHODS: Registry[Method] = Registry(
    Method, "method", "satisfice.methods", "satisfice.intervention.methods", first=("plain", "no-thinking")
)
"""Every method by name."""


def lab_spellings() -> tuple[str, ...]:
    """What `all` stands for on the lab: every method with the parameters that suit it there, in their order."""
    return tuple(f"{kind.name}:{kind.on_lab}" if kind.on_lab else kind.name for kind in METHODS.values())


_PLUS = re.compile(r"""\s*\+\s*(?=[a-z])(?=(?:[^"']|"(?:[^"\\]|\\.)*"|'[^']*')*$)""")
"""A plus sign outside quotes that a method name follows."""


def parse_method(text: str) -> Method:
    """The method spelled by `text`.

    Raises:
        MethodError: no such method or parameter (with the nearest that exists), or a value that does not fit.
    """
    methods = [kind(**given) for kind, given in read_method(text)]
    return methods[0] if len(methods) == 1 else compose(methods)


def read_method(text: str) -> list[tuple[type[Method], dict[str, Any]]]:
    """What `text` names, not yet made: each method and the parameters that are given, several where it has a plus.

    Values are texts, or None where "none" is spelled and may be; the method reads them.

    Raises:
        MethodError: as for `parse_method`, but for values that only the method itself can refuse.
    """
    return [_read_part(part.strip()) for part in _PLUS.split(text)]


def _read_part(text: str) -> tuple[type[Method], dict[str, Any]]:
    name, _, rest = text.partition(":")
    if name not in METHODS:
        raise MethodError(f"there is no method {name!r}{nearest(name, METHODS)}; `satisfice methods` lists them all")
    kind = METHODS[name]
    try:
        return kind, read_parameters(name, rest, parameter_types(kind))
    except ValueError as error:
        raise MethodError(str(error)) from None


def describe(kind: type[Method]) -> dict[str, Any]:
    """A method as plain data: name, summary, paper, needs, parameters (type, default, bounds, meaning) and knobs.

    A knob is a parameter that `satisfice calibrate` can set, with its values from harmless to bold.
    """
    return {
        "name": kind.name,
        "summary": kind.summary,
        "paper": kind.paper,
        "needs": sorted(kind.needs),
        "parameters": describe_parameters(kind),
        "knobs": [
            {"parameter": knob.parameter, "grid": list(knob.grid), "where": dict(knob.where)} for knob in kind.knobs
        ],
    }
