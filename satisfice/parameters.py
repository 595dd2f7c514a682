"""Parameters of methods, of objectives and of graders: fields of a dataclass that state type, bounds and meaning.

    threshold: Probability = 0.95          # or Annotated[float, Field(ge=0, le=1)]

Whatever needs to know them reads them from there: checking, listings, schemas of recipes, tables in the docs. Bounds
are held as JSON Schema names them, and put into words in one place, `in_words`.
"""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PydanticInvalidForJsonSchema,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, ErrorDetails

Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
"""A part of something, never nothing of it."""
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
NotBlank = Annotated[str, Field(pattern=r"\S")]


@dataclass(frozen=True)
class Noun:
    """What a value is, in an annotation whose bounds have no words of their own: a pattern for a text."""

    text: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema with this noun."""
        return {**handler(core), "noun": self.text}


@dataclass(frozen=True)
class Because:
    """Why the bounds of an annotation are what they are, for whoever is refused."""

    reason: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema with this reason."""
        return {**handler(core), "because": self.reason}


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"a number is needed, not {str(value).lower()}")
    return value


NUMBER = BeforeValidator(_no_boolean)
"""Last in the annotation of a number in a model of pydantic: true is none, although Python takes it for 1."""

_CONFIG = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)


# -- reading and checking


def parameter_types(kind: type) -> dict[str, Any]:
    """The annotation of each parameter of a dataclass, in their order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {parameter.name: hints[parameter.name] for parameter in fields(kind) if parameter.init}


class _Reader:
    """Reads the values of one parameter."""

    def __init__(self, hint: Any) -> None:
        self._adapter: TypeAdapter[Any] = TypeAdapter(hint, config=_CONFIG)
        try:
            self.schema: dict[str, Any] = _tidy(self._adapter.json_schema())
        except PydanticInvalidForJsonSchema:
            self.schema = {}
        kinds = _kinds(self.schema)
        self._number = bool(kinds & {"integer", "number"}) and "boolean" not in kinds

    def read(self, value: Any) -> Any:
        """`value` as this parameter.

        Raises:
            ValueError: it does not fit; the message is what it must be.
        """
        entries = value if isinstance(value, list | tuple) else [value]
        if self._number and any(isinstance(each, bool) for each in entries):
            raise ValueError(must_be(self.schema))
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            # Of a union the last branch is "none", so the first error is about the value.
            raise ValueError(must_be(self.schema, error.errors()[0]["type"])) from None


@cache
def _readers(kind: type) -> dict[str, _Reader]:
    return {name: _Reader(hint) for name, hint in parameter_types(kind).items()}


def check_parameters(instance: Any, owner: str, error: type[ValueError] = ValueError) -> None:
    """Read every parameter of a dataclass as what its annotation says, for `__post_init__`.

    Values come from Python, from a spelling or from a recipe: texts of numbers are read as numbers and lists as tuples,
    so an instance is the same wherever its values are from, and so is the sentence that refuses one.

    Args:
        instance: of a dataclass, frozen or not.
        owner: what it is called.
        error: raised with one sentence for the first value that does not fit.
    """
    for name, reader in _readers(type(instance)).items():  # type: ignore[arg-type]  # a class is hashable
        value = getattr(instance, name)
        try:
            read = reader.read(value)
        except ValueError as reason:
            raise error(f"{owner}: {name} is {shown(value, reader.schema)}; it must be {reason}") from None
        if read is not value:
            object.__setattr__(instance, name, read)


def convert(value: Any, hint: Any) -> Any:
    """`value` as a parameter of this annotation.

    Raises:
        ValueError: it does not fit; the message is half a sentence that says what it must be.
    """
    try:
        return _Reader(hint).read(value)
    except ValueError as reason:
        raise ValueError(f"it must be {reason}") from None


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause that names the nearest of the `known` words, "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f", did you mean {near[0]!r}" if near else ""


def no_parameter(owner: str, key: str, parameters: Iterable[str]) -> str:
    """The sentence that refuses a parameter that `owner` does not have."""
    names = list(parameters)
    known = f"it has {', '.join(names)}" if names else "it has none"
    return f"{owner} has no parameter {key!r}{nearest(key, names)}; {known}"


# -- bounds


BOUNDS = (
    "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "enum", "minLength", "maxLength", "pattern",
    "minItems", "items",
)  # fmt: skip
"""What bounds are called, as in JSON Schema. `items` holds the bounds of each entry."""

LONGEST_SHOWN = 100
"""Characters of a value that a sentence repeats at most."""

_SIDES = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}


def schema_of(hint: Any) -> dict[str, Any]:
    """The JSON Schema of an annotation, with "noun" and "because" where it says them; {} where there can be none."""
    return _Reader(hint).schema


def may_be_none(hint: Any) -> bool:
    """Whether None fits an annotation."""
    schema = schema_of(hint)
    return not_null(schema) is not schema


def not_null(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the schema of a value that may be null, that of the others."""
    others = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    return others[0] if len(others) == 1 else schema


def bounds(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Of a JSON Schema, what bounds its values; whether null is one of them is not said."""
    value = not_null(schema)
    found = {key: value[key] for key in BOUNDS if key in value}
    if "items" in found:
        found["items"] = bounds(found["items"])
    return found


def in_words(bounded: Mapping[str, Any]) -> str:
    """Bounds as the end of "it must be ...", "" where there are none."""
    if "enum" in bounded:
        return _either(bounded["enum"])
    if "items" in bounded:
        many, each = "one or more" if bounded.get("minItems") else "", in_words(bounded["items"])
        return ", ".join(filter(None, [many, each and f"each {each}"]))
    if "minLength" in bounded:
        least = bounded["minLength"]
        return f"of at least {'one character' if least == 1 else f'{least} characters'}"
    if "maxLength" in bounded:
        return f"of at most {bounded['maxLength']} characters"
    low, high = bounded.get("minimum"), bounded.get("maximum")
    if low is not None and high is not None:
        pair = isinstance(low, int) and isinstance(high, int) and high == low + 1
        return f"{low} or {high}" if pair else f"within {_digits(low)}..{_digits(high)}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return " and ".join(f"{word} {_digits(bounded[key])}" for key, word in words.items() if key in bounded)


def must_be(schema: Mapping[str, Any], error: str = "") -> str:
    """What a value of this JSON Schema must be, in words: the end of a sentence.

    Args:
        schema: of the value.
        error: what pydantic calls that which is wrong. Where a number is beyond its bounds, they alone are named.
    """
    value = not_null(schema)
    bounded = bounds(value)
    words, noun = in_words(bounded), _noun(value)
    unbounded = not all(side & bounded.keys() for side in _SIDES)
    if "items" in bounded:
        noun = _noun(value["items"]).removesuffix(" with keys")
        many, words = noun.partition(" ")[2] + "s", in_words(bounded["items"])
        noun = f"{'one or more' if bounded.get('minItems') else 'a list of'} {many}"
        said = f"{noun}, each {words}" if words else noun
    elif " or " in words or (words and error.startswith(("greater_", "less_"))):
        said = words
    elif error == "finite_number" and value.get("type") == "number":
        said = f"a finite number {words}".rstrip() if unbounded else words
    else:
        said = noun + (", " if words.startswith("at ") else " " if words else "") + words
    if value is not schema:
        said += ", or none"
    return said + (f" ({value['because']})" if "because" in value else "")


def misfit(model: type[BaseModel], error: ErrorDetails, *, none: bool = True) -> str:
    """What pydantic's error about a field of `model` comes to: "must be within 0..1", "is missing", ...

    Args:
        model: what was to be read.
        error: one of its errors.
        none: whether to say that there may be none, where there may.
    """
    if error["type"] in ("missing", "extra_forbidden"):
        return "is missing" if error["type"] == "missing" else "is not known"
    if error["type"] == "value_error" and not error["loc"]:  # a rule between fields has a sentence of its own
        return error["msg"].removeprefix("Value error, ")
    schema: Mapping[str, Any] = _model_schema(model)
    named = schema.get("$defs", {})

    def resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
        schema = not_null(schema)
        return named[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema

    for part in error["loc"]:
        inside = resolved(schema)
        if "properties" in inside:
            schema = inside["properties"].get(part, {})
        elif isinstance(part, int) and "items" in inside:
            schema = inside["items"]
        elif isinstance(inside.get("additionalProperties"), dict):
            schema = inside["additionalProperties"]
    optional = none and not_null(schema) is not schema
    return f"must be {must_be(resolved(schema), error['type'])}{', or none' if optional else ''}"


def shown(value: Any, schema: Mapping[str, Any] | None = None) -> str:
    """A value in a sentence. A number that was spelled looks like one that Python has."""
    if isinstance(value, str) and schema and _kinds(schema) & {"integer", "number"}:
        for kind in (int, float):
            try:
                return shown(kind(value))
            except ValueError:
                continue
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, int | float):
        return _digits(value)
    return repr(value) if len(repr(value)) <= LONGEST_SHOWN else f"{repr(value)[:LONGEST_SHOWN]}..."


@cache
def _model_schema(model: type[BaseModel]) -> dict[str, Any]:
    schema: dict[str, Any] = _tidy(model.model_json_schema())
    return schema


def _tidy(schema: Any) -> Any:
    """A schema without titles, whose bounds are of the type that they bound; those of whole numbers may be met."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidied = {key: _tidy(each) for key, each in schema.items() if key != "title" or not isinstance(each, str)}
    if tidied.get("type") == "integer":
        for key, bound, step in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
            if key in tidied:
                tidied[bound] = int(tidied.pop(key)) + step
    if tidied.get("type") == "number":
        tidied |= {key: float(tidied[key]) for side in _SIDES for key in side if key in tidied}
    return tidied


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """The types of JSON that a value, or an entry of a list, may have."""
    found = {str(option.get("type")) for option in schema.get("anyOf", (schema,))}
    items = not_null(schema).get("items")
    return found | _kinds(items) if isinstance(items, dict) else found


def _noun(schema: Mapping[str, Any]) -> str:
    nouns = {
        "number": "a number", "integer": "a whole number", "string": "a text", "boolean": "true or false",
        "array": "a list", "object": "an object with keys",
    }  # fmt: skip
    if "$ref" in schema:
        return nouns["object"]
    named = [_noun(option) for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    fallback = _either(named) if named else nouns.get(str(schema.get("type")), "of the type that is declared")
    return str(schema.get("noun", fallback))


def _either(options: Iterable[Any]) -> str:
    *others, last = map(str, options)
    return f"{', '.join(others)} or {last}" if others else last


def _digits(number: float) -> str:
    return f"{number:.12g}" if isinstance(number, float) else str(int(number))


# -- listings


def describe_parameters(kind: type) -> list[dict[str, Any]]:
    """The parameters of a dataclass as plain data: name, type, default, bounds as in `BOUNDS`, and meaning."""
    hints = parameter_types(kind)
    return [
        {
            "name": parameter.name,
            "type": _type_name(hints[parameter.name]),
            "default": None if parameter.default is MISSING else parameter.default,
            "bounds": bounds(_readers(kind)[parameter.name].schema),
            "meaning": meaning(kind, parameter.name),
        }
        for parameter in fields(kind)
        if parameter.init
    ]


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        return _type_name(typing.get_args(hint)[0])
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(option) for option in options)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " | ".join(_type_name(option) for option in options)
    if typing.get_origin(hint) is tuple:
        return f"{_type_name(options[0])}, ..."
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def meaning(kind: type, parameter: str) -> str:
    """What the attribute section of the class, or of the nearest base that has one, says of a parameter."""
    for documented in kind.__mro__:
        found = _entry(documented.__doc__ or "", parameter)
        if found:
            return found
    return ""


def _entry(documentation: str, parameter: str) -> str:
    match = re.search(rf"^ +{parameter}: (.*?)(?=^ +\w+: |\Z)", documentation, re.MULTILINE | re.DOTALL)
    return " ".join(match[1].split()) if match else ""
