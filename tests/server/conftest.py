"""What the tests of the server share."""

import pytest

from satisfice.engines.transformers import TransformersEngine


@pytest.fixture(scope="module")
def engine():
    engine = TransformersEngine.load("lab", max_batch_tokens=1 << 15)
    yield engine
    engine.close()
