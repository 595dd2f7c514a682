"""Parameters state type and bounds in annotations; whatever they are read from, the same is taken and refused."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from satisfice.intervention import METHODS, MethodError, describe, parse_method
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method
from satisfice.parameters import (
    NUMBER,
    Because,
    NotBlank,
    Noun,
    Probability,
    Share,
    bounds,
    check_parameters,
    convert,
    describe_parameters,
    in_words,
    may_be_none,
    misfit,
    nearest,
    no_parameter,
    parameter_types,
    schema_of,
)
from satisfice.reinforcement import OBJECTIVES, ObjectiveError, describe_objective, objective_from
from satisfice.reinforcement.objective import Objective


@dataclass
class Base:
    """A base.

    Attributes:
        weight: of the term; a float
            over two lines.
        mode: what to do.
    """

    weight: Probability = 0.5
    mode: Literal["a", "b"] = "a"


@dataclass
class Derived(Base):
    """Says more.

    Attributes:
        mode: what to do instead.
        limits: one a round.
        name: none for none.
    """

    limits: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (2, 1)
    name: str | None = None
    _step: int = field(default=0, init=False)


def test_parameters_are_the_fields_that_can_be_given():
    assert list(parameter_types(Derived)) == ["weight", "mode", "limits", "name"]


def test_listings_have_bounds_and_the_meaning_of_the_nearest_docstring_that_has_one():
    listed = describe_parameters(Derived)
    assert [list(entry) for entry in listed] == [["name", "type", "default", "bounds", "meaning"]] * 4
    assert [tuple(entry.values()) for entry in listed] == [
        ("weight", "float", 0.5, {"minimum": 0.0, "maximum": 1.0}, "of the term; a float over two lines."),
        ("mode", "a | b", "a", {"enum": ["a", "b"]}, "what to do instead."),
        ("limits", "int, ...", (2, 1), {"minItems": 1, "items": {"minimum": 1}}, "one a round."),
        ("name", "str | none", None, {}, "none for none."),
    ]


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Probability, "within 0..1"),
        (Share, "above 0 and at most 1"),
        (Annotated[float, Field(gt=-1, lt=1)], "above -1 and below 1"),
        (Annotated[int, Field(gt=2)], "at least 3"),  # a whole number's bounds are such that it can meet them
        (Annotated[int, Field(lt=9)] | None, "at most 8"),
        (Annotated[int, Field(ge=1, le=2)], "1 or 2"),
        (Annotated[int, Field(ge=2, le=64)], "within 2..64"),
        (Annotated[float, Field(ge=0, le=1e6)], "within 0..1000000"),
        (Literal["a", "b", "c"], "a, b or c"),
        (Annotated[str, Field(min_length=1)], "of at least one character"),
        (Annotated[tuple[PositiveInt, ...], Field(min_length=1)], "one or more, each at least 1"),
        (float, ""),
        (bool, ""),
    ],
)
def test_bounds_are_put_into_words(hint, words):
    assert in_words(bounds(schema_of(hint))) == words


@pytest.mark.parametrize(
    ("hint", "value", "sentence"),
    [
        (Probability, 1.5, "within 0..1"),
        (Probability, "2", "within 0..1"),
        (Probability, math.nan, "within 0..1"),
        (Probability, "much", "a number within 0..1"),
        (Probability, True, "a number within 0..1"),
        (Probability, None, "a number within 0..1"),
        (PositiveFloat, 0, "above 0"),
        (PositiveFloat, math.inf, "a finite number above 0"),
        (PositiveFloat | None, -1, "above 0, or none"),
        (PositiveInt, 2.5, "a whole number, at least 1"),
        (NonNegativeInt | None, "1.5", "a whole number, at least 0, or none"),
        (float, math.nan, "a finite number"),
        (float, "inf", "a finite number"),
        (float, "x", "a number"),
        (Literal["a", "b"], "c", "a or b"),
        (tuple[PositiveInt, ...], [2, 0], "a list of whole numbers, each at least 1"),
        (tuple[int, ...], [2, True], "a list of whole numbers"),
        (Annotated[NotBlank, Noun("a text that asks")], " ", "a text that asks"),
        (Annotated[str, Field(min_length=1)], "", "a text of at least one character"),
        (str, 3, "a text"),
        (bool, "perhaps", "true or false"),
        (Annotated[float, Field(lt=2), Because("from 2 on it is worth nothing")], 2, "below 2 (from 2 on it is worth"),
    ],
)
def test_what_does_not_fit_is_told_what_it_must_be(hint, value, sentence):
    with pytest.raises(ValueError, match="it must be") as caught:
        convert(value, hint)
    assert str(caught.value).startswith(f"it must be {sentence}")
    assert str(caught.value) == f"it must be {sentence}" or "worth" in sentence


@pytest.mark.parametrize("hint", [int, float, int | None, float | int, tuple[int, ...]])
def test_true_is_no_number(hint):
    with pytest.raises(ValueError, match=r"^it must be .*number"):
        convert([3, False] if hint == tuple[int, ...] else True, hint)


def test_true_is_what_it_says_where_it_may_be_given():
    assert convert(True, bool) is True
    assert convert("true", bool) is True
    assert convert(True, bool | int) is True


def test_values_that_fit_are_converted():
    assert convert("0.25", float) == 0.25
    assert convert([3, 2], tuple[int, ...]) == (3, 2)
    assert convert(None, PositiveInt | None) is None
    assert may_be_none(PositiveInt | None)
    assert may_be_none(Annotated[int | None, Field(ge=0)])
    assert not may_be_none(PositiveInt)


@dataclass(frozen=True)
class Checked:
    share: Share = 0.5
    count: PositiveInt | None = None
    limits: tuple[PositiveInt, ...] = (1,)
    loud: bool = False
    _state: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        check_parameters(self, "checked")


def test_an_instance_is_the_same_wherever_its_values_are_from():
    texts = Checked(share="1", count="3", limits=["4", 2], loud="true")
    numbers = Checked(share=np.float32(1), count=np.int64(3), limits=[4, 2], loud=True)
    assert texts == numbers == Checked(1.0, 3, (4, 2), True)
    assert hash(numbers.limits)
    for value in (texts.share, numbers.share, texts.count, numbers.count):
        assert type(value) in (int, float)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"share": 2}, "checked: share is 2; it must be above 0 and at most 1"),
        ({"share": 2.0}, "checked: share is 2; it must be above 0 and at most 1"),
        ({"share": "2.0"}, "checked: share is 2; it must be above 0 and at most 1"),
        ({"share": "two"}, "checked: share is 'two'; it must be a number above 0 and at most 1"),
        ({"share": None}, "checked: share is none; it must be a number above 0 and at most 1"),
        ({"share": True}, "checked: share is true; it must be a number above 0 and at most 1"),
        ({"count": 0}, "checked: count is 0; it must be at least 1, or none"),
        ({"limits": [3, 0]}, "checked: limits is [3, 0]; it must be a list of whole numbers, each at least 1"),
        ({"share": 0, "count": 0}, "checked: share is 0; it must be above 0 and at most 1"),
    ],
)
def test_an_instance_is_refused_in_one_sentence(given, sentence):
    with pytest.raises(ValueError, match="checked: ") as caught:
        Checked(**given)
    assert str(caught.value) == sentence


def test_a_parameter_of_any_type_is_taken_as_it_is():
    @dataclass
    class Odd:
        """Takes what no schema describes."""

        rate: Any = None
        kind: type[Draft] | None = None

        def __post_init__(self) -> None:
            check_parameters(self, "odd")

    assert Odd(rate=max, kind=Draft).rate is max
    assert [entry["bounds"] for entry in describe_parameters(Odd)] == [{}, {}]


class Asked(BaseModel):
    """A model of pydantic."""

    warmth: Annotated[float, Field(ge=0, le=2), NUMBER] | None = None
    part: Base | None = None
    many: list[Base] = []
    count: int = Field(1, ge=1)

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _agree(self) -> "Asked":
        if self.warmth == 2:
            raise ValueError("warm ones come by ones")
        return self


@pytest.mark.parametrize(
    ("given", "half"),
    [
        ({"warmth": 3}, "must be within 0..2, or none"),
        ({"warmth": True}, "must be a number within 0..2, or none"),
        ({"count": 0}, "must be at least 1"),
        ({"count": "x"}, "must be a whole number, at least 1"),
        ({"part": {"weight": 2}}, "must be within 0..1"),
        ({"part": 3}, "must be an object with keys, or none"),
        ({"many": [{"weight": 1}, {"weight": 2}]}, "must be within 0..1"),
        ({"many": 3}, "must be a list of objects"),
        ({"kept": "x"}, "is not known"),
        ({"warmth": 2}, "warm ones come by ones"),
    ],
)
def test_errors_of_pydantics_models_are_told_in_the_same_words(given, half):
    with pytest.raises(ValidationError) as caught:
        Asked.model_validate(given)
    assert misfit(Asked, caught.value.errors()[0]).startswith(half)


def test_the_nearest_word_is_named():
    assert nearest("wieght", ["weight", "mode"]) == ", did you mean 'weight'"
    assert nearest("zzz", ["weight", "mode"]) == ""
    assert (
        no_parameter("x", "wieght", ["weight"]) == "x has no parameter 'wieght', did you mean 'weight'; it has weight"
    )
    assert no_parameter("x", "y", []) == "x has no parameter 'y'; it has none"


# -- every method and every objective

KINDS: list[type[Method] | type[Objective]] = [*METHODS.values(), *OBJECTIVES.values()]
ESSENTIAL: dict[str, dict[str, Any]] = {"tldr": {"level": "short"}, "entrocut": {"tau": 0.1}}
"""What has to be given, and has no default."""
TOGETHER: dict[str, dict[str, Any]] = {
    # What other parameters must be so that this one acts, or may be at one of its own bounds.
    "temperature-scaling.bias": {"mode": "bias"},
    "budget-forcing.ignore": {"wait": "Wait"},
    "deer.min_entropy": {"monitor": "entropy"},
    "deer-pro.min_entropy": {"monitor": "entropy"},
    "deer.min_probe": {"probe_tokens": 20},
    "entrocut.every": {"trigger": "interval"},
    "fractured.last": {"depths": 16},
    "length-filtered-vote.n": {"quantiles": None},
    "length-filtered-vote.quantiles": {"n": 20},
    "aalc.gamma": {"gated": True},
    "dapo-overlong.limit": {"cache": None},
    "dler.limit": {"easy_limit": None},
    "grpo-lead.high": {"low": 5e-324},
    "grpo-lead.low": {"high": 10.0},
    "l1-exact.max_budget": {"min_budget": 1},
    "l1-max.max_budget": {"min_budget": 1},
    "tldr.cap": {"shape": "clipped"},
}
FREE: set[str] = set()
"""Numbers that may be any finite number, on purpose: there is none today."""

NUMBERS = {"integer", "number"}


def numbers() -> Iterator[Any]:
    """Every parameter that is a number: of which class, its name and its schema."""
    for kind in KINDS:
        for name, hint in parameter_types(kind).items():
            schema = schema_of(hint)
            options = schema.get("anyOf", [schema])
            if {option.get("type") for option in options} & NUMBERS:
                value = next(option for option in options if option.get("type") in NUMBERS)
                yield pytest.param(kind, name, value, id=f"{kind.__module__.rpartition('.')[2]}-{kind.name}.{name}")


def is_method(kind: type) -> bool:
    return issubclass(kind, Method)


def with_others(kind: Any, name: str, value: Any) -> dict[str, Any]:
    essential = ESSENTIAL.get(kind.name, {}) if is_method(kind) else {}
    return {**essential, **TOGETHER.get(f"{kind.name}.{name}", {}), name: value}


def spelled(kind: Any, given: dict[str, Any]) -> Any:
    """The same from text: a method's spelling, an objective's recipe."""
    if not is_method(kind):
        return objective_from(kind.name, {key: value if value is None else str(value) for key, value in given.items()})
    return parse_method(f"{kind.name}:" + ",".join(f"{key}={value}" for key, value in given.items()))


def refusal(kind: Any, make: Any, given: dict[str, Any]) -> str:
    with pytest.raises(MethodError if is_method(kind) else ObjectiveError) as caught:
        make(given)
    return str(caught.value)


def at_and_beyond(schema: dict[str, Any]) -> Iterator[tuple[str, float | None, float]]:
    """For each bound the value at it that is still good, None where the bound itself is out, and one that is not."""
    whole = schema["type"] == "integer"
    for key, way in (("minimum", -1), ("maximum", 1)):
        if key in schema:
            bound = schema[key]
            yield key, bound, bound + way if whole else math.nextafter(bound, way * math.inf)
    for key, way in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
        if key in schema:
            assert not whole
            yield key, math.nextafter(schema[key], way * math.inf), schema[key]


@pytest.mark.parametrize(("kind", "name", "schema"), numbers())
def test_every_number_is_bounded_or_free_on_purpose(kind, name, schema):
    bounded = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"} & schema.keys()
    assert bool(bounded) != (f"{kind.name}.{name}" in FREE)


@pytest.mark.parametrize(("kind", "name", "schema"), numbers())
def test_every_bound_holds_from_python_and_from_a_spelling(kind, name, schema):
    for key, at, beyond in at_and_beyond(schema):
        sentence = refusal(kind, lambda given: kind(**given), with_others(kind, name, beyond))
        assert sentence.startswith(f"{kind.name}: {name} is "), key
        assert "; it must be " in sentence
        assert "\n" not in sentence
        assert refusal(kind, lambda given: spelled(kind, given), with_others(kind, name, beyond)) == sentence
        given = with_others(kind, name, at)
        refused = ""
        try:
            made = kind(**given)
        except (MethodError, ObjectiveError) as error:
            refused = str(error)
        if refused and f"{kind.name}.{name}" not in TOGETHER:
            # A rule of several parameters may forbid it beside their defaults.
            assert "; it must be " not in refused, key
        else:
            assert not refused, key
            assert getattr(made, name) == at, key
            assert spelled(kind, given) == made, key


@pytest.mark.parametrize(("kind", "name", "schema"), numbers())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, False, "many"])
def test_what_is_no_finite_number_is_refused(kind, name, schema, value):
    sentence = refusal(kind, lambda given: kind(**given), with_others(kind, name, value))
    assert sentence.startswith(f"{kind.name}: {name} is ")
    if not isinstance(value, bool):
        assert refusal(kind, lambda given: spelled(kind, given), with_others(kind, name, value)) == sentence
    if schema["type"] == "integer":
        half = refusal(kind, lambda given: kind(**given), with_others(kind, name, 1.5))
        assert "1.5; it must be " in half


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}-{kind.name}")
def test_choices_and_texts_are_held_to_what_they_declare(kind):
    for name, hint in parameter_types(kind).items():
        schema = schema_of(hint)
        options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
        bounded = bounds(schema)
        if options[0].get("type") != "string":
            continue
        wrong = []
        if "enum" in bounded:
            wrong = ["none of these", bounded["enum"][0].upper()]
        elif "minLength" in bounded:
            wrong = [""]
        elif "pattern" in bounded:
            assert "noun" in options[0], f"{kind.name}.{name}: a pattern needs a Noun, which says it in words"
            wrong = ["", " "]
        for value in [*wrong, 3]:
            assert refusal(kind, lambda given: kind(**given), with_others(kind, name, value)).startswith(
                f"{kind.name}: {name} is "
            )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}-{kind.name}")
def test_listings_are_plain_data_with_bounds_that_the_default_meets(kind):
    described = describe(kind) if is_method(kind) else describe_objective(kind)
    assert json.loads(json.dumps(described))["name"] == kind.name
    for entry, hint in zip(described["parameters"], parameter_types(kind).values(), strict=True):
        assert entry["meaning"]
        assert "Annotated" not in entry["type"]
        assert convert(entry["default"], hint) == entry["default"]
        if entry["bounds"] and "pattern" not in entry["bounds"]:
            assert in_words(entry["bounds"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}-{kind.name}")
def test_a_misspelt_parameter_is_told_the_nearest(kind):
    for name in parameter_types(kind):
        if len(name) < 4:
            continue
        wrong = name[:-2] + name[-1] + name[-2] if name[-1] != name[-2] else name + "x"
        expected = f"{kind.name} has no parameter {wrong!r}, did you mean "
        make = (lambda given: spelled(kind, given)) if is_method(kind) else (lambda g: objective_from(kind.name, g))
        assert refusal(kind, make, {wrong: 1}).startswith(expected)


@dataclass(frozen=True)
class OfOnesOwn(Method):
    """Another person's method."""

    name: ClassVar[str] = "of-ones-own"
    summary: ClassVar[str] = "three paragraphs"
    paper: ClassVar[str] = ""

    paragraphs: PositiveInt = 3

    async def respond(self, draft: Draft) -> None:
        await draft.write()


def test_a_method_of_ones_own_is_checked_without_a_line_for_it():
    assert str(OfOnesOwn(4)) == "of-ones-own:paragraphs=4"
    with pytest.raises(MethodError, match=r"^of-ones-own: paragraphs is 0; it must be at least 1$"):
        OfOnesOwn(0)


def test_methods_and_objectives_are_all_looked_at():
    found = {(kind.name, name) for kind, name, _ in (parameter.values for parameter in numbers())}
    assert {("deer", "threshold"), ("temperature-scaling", "t"), ("crt", "eps"), ("l1-max", "delta")} <= found
    assert len(list(itertools.chain(numbers()))) > 90
    assert not [kind for kind in KINDS if not dataclasses.is_dataclass(kind)]
