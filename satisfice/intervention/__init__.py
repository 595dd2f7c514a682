"""Methods that act at decoding time, by name: one file a method, controls in `controls.py`.

A method is spelled `name:parameter=value,parameter=value`. Values with commas stand in quotes; inside double
quotes, escapes are those of JSON: `budget-forcing:max_thinking=512,cue="Final Answer:\\n"`. A strategy and a
control are joined by a plus sign: `budget-forcing:max_thinking=512+temperature-scaling:t=0.9`.
"""

import json
import re
import typing
from typing import Any

from satisfice.intervention.adaptive_think import AdaptiveThink
from satisfice.intervention.best_of_n import BestOfN
from satisfice.intervention.budget_forcing import BudgetForcing
from satisfice.intervention.composed import compose
from satisfice.intervention.cothink import CoThink
from satisfice.intervention.decoding_tree import DecodingTree
from satisfice.intervention.deer import Deer, DeerPro
from satisfice.intervention.entrocut import EntroCut
from satisfice.intervention.fractured import Fractured, FracturedStop
from satisfice.intervention.length_filtered_vote import LengthFilteredVote
from satisfice.intervention.method import Draft, Method, MethodError, Watch
from satisfice.intervention.no_thinking import NoThinking
from satisfice.intervention.no_wait import NoWait
from satisfice.intervention.plain import Plain
from satisfice.intervention.self_consistency import SelfConsistency
from satisfice.intervention.temperature_scaling import TemperatureScaling
from satisfice.intervention.tldr import TLDR
from satisfice.parameters import convert, describe_parameters, nearest, no_parameter, parameter_types

__all__ = ["METHODS", "Draft", "Method", "MethodError", "Watch", "describe", "parse_method", "read_method"]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Plain,
        NoThinking,
        TemperatureScaling,
        BudgetForcing,
        NoWait,
        Deer,
        DeerPro,
        EntroCut,
        AdaptiveThink,
        Fractured,
        FracturedStop,
        DecodingTree,
        SelfConsistency,
        LengthFilteredVote,
        BestOfN,
        CoThink,
        TLDR,
    )
}
"""Every method by name."""

_PLUS = re.compile(r"""\s*\+\s*(?=[a-z])(?=(?:[^"']|"(?:[^"\\]|\\.)*"|'[^']*')*$)""")
"""A plus sign outside quotes that a method name follows."""
_PARAMETER = re.compile(r"""\s*([\w-]+)\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^,]*)\s*(?:,|$)""")


def parse_method(text: str) -> Method:
    """The method spelled by `text`.

    Raises:
        MethodError: no such method or parameter (with the nearest that exists), or a value that does not fit.
    """
    methods = [kind(**given) for kind, given in read_method(text)]
    return methods[0] if len(methods) == 1 else compose(methods)


def read_method(text: str) -> list[tuple[type[Method], dict[str, Any]]]:
    """What `text` names, not yet made: each method and the parameters that are given, several where it has a plus.

    Raises:
        MethodError: as for `parse_method`, but for values that only the method itself can refuse.
    """
    return [_read_part(part.strip()) for part in _PLUS.split(text)]


def _read_part(text: str) -> tuple[type[Method], dict[str, Any]]:
    name, _, rest = text.partition(":")
    if name not in METHODS:
        raise MethodError(f"there is no method {name!r}{nearest(name, METHODS)}; `satisfice methods` lists them all")
    kind = METHODS[name]
    parameters = parameter_types(kind)
    given: dict[str, Any] = {}
    position = 0
    while position < len(rest):
        match = _PARAMETER.match(rest, position)
        if match is None:
            raise MethodError(f"{name}: cannot read {rest[position:]!r}; write parameters as name=value,name=value")
        position = match.end()
        key, raw = match[1].replace("-", "_"), match[2].strip()
        if key not in parameters:
            raise MethodError(no_parameter(name, key, parameters))
        given[key] = _value(name, key, raw, parameters[key])
    return kind, given


def _value(method: str, key: str, raw: str, hint: Any) -> Any:
    if raw[:1] == '"':
        value: str | None = json.loads(raw)
    elif raw[:1] == "'":
        value = raw[1:-1]
    else:
        value = None if raw.lower() == "none" and type(None) in typing.get_args(hint) else raw
    try:
        return convert(value, hint)
    except ValueError as error:
        raise MethodError(f"{method}: {key} cannot be {raw!r}: {error}") from None


def describe(kind: type[Method]) -> dict[str, Any]:
    """A method as plain data: name, summary, paper, needs and parameters with type, default and meaning."""
    return {
        "name": kind.name,
        "summary": kind.summary,
        "paper": kind.paper,
        "needs": sorted(kind.needs),
        "parameters": describe_parameters(kind),
    }
