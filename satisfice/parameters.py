"""Parameters of methods and of objectives: fields of a dataclass, given by name, explained by its docstring."""

import difflib
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError


def parameter_types(kind: type) -> dict[str, Any]:
    """The type of each parameter of a dataclass, in their order."""
    hints = typing.get_type_hints(kind)
    return {parameter.name: hints[parameter.name] for parameter in fields(kind) if parameter.init}


def convert(value: Any, hint: Any) -> Any:
    """`value` as a parameter of this type.

    Raises:
        ValueError: it does not fit; the message is half a sentence that says why.
    """
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"{reason[0].lower()}{reason[1:]}") from None


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause that names the nearest of the `known` words, "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f", did you mean {near[0]!r}" if near else ""


def no_parameter(owner: str, key: str, parameters: Iterable[str]) -> str:
    """The sentence that refuses a parameter that `owner` does not have."""
    names = list(parameters)
    known = f"it has {', '.join(names)}" if names else "it has none"
    return f"{owner} has no parameter {key!r}{nearest(key, names)}; {known}"


def describe_parameters(kind: type) -> list[dict[str, Any]]:
    """The parameters of a dataclass as plain data: name, type, default and meaning."""
    hints = parameter_types(kind)
    return [
        {
            "name": parameter.name,
            "type": _type_name(hints[parameter.name]),
            "default": None if parameter.default is MISSING else parameter.default,
            "meaning": _meaning(kind, parameter.name),
        }
        for parameter in fields(kind)
        if parameter.init
    ]


def _type_name(hint: Any) -> str:
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(option) for option in options)
    if isinstance(hint, types.UnionType):
        return " | ".join(_type_name(option) for option in options)
    if typing.get_origin(hint) is tuple:
        return f"{_type_name(options[0])}, ..."
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _meaning(kind: type, parameter: str) -> str:
    """What the attribute section of the class, or of the nearest base that has one, says of a parameter."""
    for documented in kind.__mro__:
        found = _entry(documented.__doc__ or "", parameter)
        if found:
            return found
    return ""


def _entry(documentation: str, parameter: str) -> str:
    match = re.search(rf"^ +{parameter}: (.*?)(?=^ +\w+: |\Z)", documentation, re.MULTILINE | re.DOTALL)
    return " ".join(match[1].split()) if match else ""
