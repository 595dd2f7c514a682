"""How an attention is spelled, and what may be said of it."""

import pytest

from satisfice.attention import Attention


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("dense", "dense"),
        ("top-k", "top-k:budget=1024"),
        ("block-topk:budget=64,block=8", "block-topk:budget=64,block=8"),
        ("block-topk:block=8,budget=64,recent=8", "block-topk:budget=64,block=8"),
        ("block-topk:budget=64,block=8,recent=24", "block-topk:budget=64,block=8,recent=24"),
        ("local:budget=32", "local:budget=32"),
        ("local:sinks=4,budget=32", "local:budget=32,sinks=4"),
    ],
)
def test_one_spelling_for_each(text, spelled):
    assert str(Attention.parse(text)) == spelled
    assert Attention.parse(spelled) == Attention.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("window", "no attention 'window'"),
        ("local:window=8", "'window=8' is no setting of local"),
        ("local:budget=-8", "'budget=-8' is no setting"),
        ("local:budget=8.5", "'budget=8.5' is no setting"),
        ("dense:budget=8", "'budget=8' is no setting of dense"),
        ("local:budget=0", "a budget and a block of at least 1, not 0"),
        ("block-topk:budget=8,block=0", "a block of at least 1, not 8 and 0"),
        ("local:budget=8,sinks=8", "8 sinks; they must be 0 or more and below the budget"),
        ("block-topk:budget=64,block=16,recent=8", "8 recent tokens; they must be a multiple of 16"),
    ],
)
def test_what_cannot_be_read_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        Attention.parse(text)


def test_a_setting_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="recent is no setting of local"):
        Attention("local", 64, recent=16)
    with pytest.raises(ValueError, match="no attention 'sparse'"):
        Attention("sparse")  # type: ignore[arg-type]
