"""What a run costs: which shape belongs to a model's name."""

import json

import pytest

from satisfice.lab import ADAPTERS
from satisfice.measurement.cost import SHAPES
from satisfice.runs.costs import shape_of


def test_an_adapter_has_the_shape_of_the_model_below_it():
    assert shape_of("transformers:smollm2") == SHAPES["smollm2"]
    for name in ADAPTERS:
        assert shape_of(f"transformers:{name}") == SHAPES["smollm2"]


def test_the_directory_of_an_adapter_has_the_shape_of_what_it_belongs_to(tmp_path):
    for base, shape in (("smollm2-words", SHAPES["smollm2"]), ("Qwen/Qwen3-0.6B", SHAPES["Qwen/Qwen3-0.6B"])):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        assert shape_of(f"transformers:{tmp_path}") == shape
    for says in ({}, {"base_model_name_or_path": str(tmp_path)}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(says))
        with pytest.raises(ValueError, match=f"the shape of {tmp_path} is not known: give --params, --layers"):
            shape_of(str(tmp_path))


def test_a_shape_that_is_not_known_is_asked_for():
    with pytest.raises(ValueError, match="give --params, --layers"):
        shape_of("transformers:nobody/knows")
