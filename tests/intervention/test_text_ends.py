"""What a token ends: a sentence, a line, a paragraph, by the tokens alone."""

import pytest

from satisfice.intervention.text_ends import ENDS, TextEnds, _ends_of, level_of
from satisfice.lab.tokenizer import build_tokenizer


def ended(*tokens):
    """The name of the end after each token of a text."""
    found, tail = [], 0
    for token in tokens:
        level, tail = level_of(_ends_of(token), tail)
        found.append(ENDS[level])
    return found


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        (["So", " it", " is", "."], ["token", "token", "token", "sentence"]),
        (["No", "!", " Yes", "?", "…"], ["token", "sentence", "token", "sentence", "sentence"]),
        (["是", "。"], ["token", "sentence"]),
        (["(it is.)", " \"Yes.\"", "**done.**"], ["sentence", "sentence", "sentence"]),
        (["3", ".", "14"], ["token", "token", "token"]),  # a decimal point
        (["3.", "14", "3.1"], ["token", "token", "token"]),
        (["3", ".", "\n"], ["token", "token", "line"]),
        (["3. ", "3.\n"], ["sentence", "line"]),
        (["3", "...", "3?"], ["token", "sentence", "sentence"]),
        (["x", "\n", "\n", "\n", "x"], ["token", "line", "paragraph", "paragraph", "token"]),
        (["x", "\n", "  ", "\n", " \n\n "], ["token", "line", "line", "paragraph", "paragraph"]),
        (["x\n\n", "", "x", "\n x"], ["paragraph", "paragraph", "token", "token"]),
        (["\n\n\n"], ["paragraph"]),
        (["e.g", ".", "x"], ["token", "sentence", "token"]),  # which no token can tell
    ],
)  # fmt: skip
def test_what_a_text_ends(tokens, ends):
    assert ended(*tokens) == ends


def test_every_token_of_a_vocabulary_is_read():
    from satisfice.intervention.text_ends import text_ends

    tokenizer = build_tokenizer()
    found: TextEnds = text_ends(tokenizer)
    assert len(found.breaks) == len(tokenizer)
    row = tokenizer.convert_tokens_to_ids("\n\n")
    assert (found.breaks[row], found.blank[row]) == (2, 1)
    assert found.digit[tokenizer.convert_tokens_to_ids("36")] > 0
    assert found.point[tokenizer.convert_tokens_to_ids(".")] == 1
