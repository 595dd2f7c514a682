"""What a run costs: which shape belongs to a model's name."""

import pytest

from satisfice.lab import ADAPTERS
from satisfice.measurement.cost import SHAPES
from satisfice.runs.costs import shape_of


def test_an_adapter_has_the_shape_of_the_model_below_it():
    assert shape_of("transformers:smollm2") == SHAPES["smollm2"]
    for name in ADAPTERS:
        assert shape_of(f"transformers:{name}") == SHAPES["smollm2"]


def test_a_shape_that_is_not_known_is_asked_for():
    with pytest.raises(ValueError, match="give --params, --layers"):
        shape_of("transformers:nobody/knows")
