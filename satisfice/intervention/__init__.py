"""Methods that act at decoding time, by name: one file a method, controls in `controls.py`.

A method is spelled `name:parameter=value,parameter=value`. Values with commas stand in quotes; inside double
quotes, escapes are those of JSON: `budget-forcing:max_thinking=512,cue="Final Answer:\\n"`. A strategy and a
control are joined by a plus sign: `budget-forcing:max_thinking=512+temperature-scaling:t=0.9`.
"""

import difflib
import json
import re
import types
import typing
from dataclasses import MISSING, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from satisfice.intervention.adaptive_think import AdaptiveThink
from satisfice.intervention.best_of_n import BestOfN
from satisfice.intervention.budget_forcing import BudgetForcing
from satisfice.intervention.composed import compose
from satisfice.intervention.cothink import CoThink
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

__all__ = ["METHODS", "Draft", "Method", "MethodError", "Watch", "describe", "parse_method"]

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
        SelfConsistency,
        LengthFilteredVote,
        BestOfN,
        CoThink,
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
    parts = _PLUS.split(text.strip())
    if len(parts) > 1:
        return compose([parse_method(part) for part in parts])
    name, _, rest = text.strip().partition(":")
    if name not in METHODS:
        raise MethodError(f"there is no method {name!r}{_nearest(name, METHODS)}; `satisfice methods` lists them all")
    kind = METHODS[name]
    hints = typing.get_type_hints(kind)
    parameters = {parameter.name: hints[parameter.name] for parameter in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    position = 0
    while position < len(rest):
        match = _PARAMETER.match(rest, position)
        if match is None:
            raise MethodError(f"{name}: cannot read {rest[position:]!r}; write parameters as name=value,name=value")
        position = match.end()
        key, raw = match[1].replace("-", "_"), match[2].strip()
        if key not in parameters:
            known = f"it has {', '.join(parameters)}" if parameters else "it has none"
            raise MethodError(f"{name} has no parameter {key!r}{_nearest(key, parameters)}; {known}")
        given[key] = _value(name, key, raw, parameters[key])
    return kind(**given)


def _value(method: str, key: str, raw: str, hint: Any) -> Any:
    if raw[:1] == '"':
        value: str | None = json.loads(raw)
    elif raw[:1] == "'":
        value = raw[1:-1]
    else:
        value = None if raw.lower() == "none" and type(None) in typing.get_args(hint) else raw
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise MethodError(f"{method}: {key} cannot be {raw!r}: {reason[0].lower()}{reason[1:]}") from None


def _nearest(word: str, known: typing.Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f", did you mean {nearest[0]!r}" if nearest else ""


def describe(kind: type[Method]) -> dict[str, Any]:
    """A method as plain data: name, summary, paper, needs and parameters with type, default and meaning."""
    documentation = kind.__doc__ or ""
    hints = typing.get_type_hints(kind)
    return {
        "name": kind.name,
        "summary": kind.summary,
        "paper": kind.paper,
        "needs": sorted(kind.needs),
        "parameters": [
            {
                "name": parameter.name,
                "type": _type_name(hints[parameter.name]),
                "default": None if parameter.default is MISSING else parameter.default,
                "meaning": _meaning(documentation, parameter.name),
            }
            for parameter in fields(kind)  # type: ignore[arg-type]
        ],
    }


def _type_name(hint: Any) -> str:
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(option) for option in options)
    if isinstance(hint, types.UnionType):
        return " | ".join(_type_name(option) for option in options)
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _meaning(documentation: str, parameter: str) -> str:
    """What the class docstring's attribute section says of a parameter."""
    match = re.search(rf"^ +{parameter}: (.*?)(?=^ +\w+: |\Z)", documentation, re.MULTILINE | re.DOTALL)
    return " ".join(match[1].split()) if match else ""
