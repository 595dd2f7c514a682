from dataclasses import dataclass, field
from typing import Literal

import pytest

from satisfice.parameters import convert, describe_parameters, nearest, no_parameter, parameter_types


@dataclass
class Base:
    """A base.

    Attributes:
        weight: of the term; a float
            over two lines.
        mode: what to do.
    """

    weight: float = 0.5
    mode: Literal["a", "b"] = "a"


@dataclass
class Derived(Base):
    """Says more.

    Attributes:
        mode: what to do instead.
        limits: one a round.
        name: none for none.
    """

    limits: tuple[int, ...] = (2, 1)
    name: str | None = None
    _step: int = field(default=0, init=False)


def test_parameters_are_the_fields_that_can_be_given():
    assert list(parameter_types(Derived)) == ["weight", "mode", "limits", "name"]


def test_meanings_come_from_the_nearest_docstring_that_has_one():
    assert describe_parameters(Derived) == [
        {"name": "weight", "type": "float", "default": 0.5, "meaning": "of the term; a float over two lines."},
        {"name": "mode", "type": "a | b", "default": "a", "meaning": "what to do instead."},
        {"name": "limits", "type": "int, ...", "default": (2, 1), "meaning": "one a round."},
        {"name": "name", "type": "str | none", "default": None, "meaning": "none for none."},
    ]


def test_values_are_converted_or_refused_with_half_a_sentence():
    assert convert("0.25", float) == 0.25
    assert convert([3, 2], tuple[int, ...]) == (3, 2)
    with pytest.raises(ValueError, match=r"^input should be 'a' or 'b'$"):
        convert("c", Literal["a", "b"])


def test_the_nearest_word_is_named():
    assert nearest("wieght", ["weight", "mode"]) == ", did you mean 'weight'"
    assert nearest("zzz", ["weight", "mode"]) == ""
    assert (
        no_parameter("x", "wieght", ["weight"]) == "x has no parameter 'wieght', did you mean 'weight'; it has weight"
    )
    assert no_parameter("x", "y", []) == "x has no parameter 'y'; it has none"
