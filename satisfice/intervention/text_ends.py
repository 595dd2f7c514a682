"""Where a text pauses, token by token: at the end of a sentence, of a line, of a paragraph.

A control sees tokens, so what a token ends must be told from it and from little that stands before it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from satisfice.lazy import PreTrainedTokenizerBase, np
from satisfice.thinking import token_bytes

End = Literal["token", "sentence", "line", "paragraph"]
"""A place in a text: after any token, or after one that ends this much of it. Each also holds all that follow it."""

ENDS: tuple[End, ...] = ("token", "sentence", "line", "paragraph")
"""In their order; the place in it is an end's level."""

_STOPS = ".!?…。！？"
_CLOSERS = "\"'”’)]}*"
"""What may stand between the last character of a sentence and its end."""

DIGIT = 4
"""Of a tail: the text ends with a digit. What is below it counts line breaks, 2 for all that are more."""


@dataclass(frozen=True)
class TextEnds:
    """What the tokens of a vocabulary end; (V,) each.

    The text before a token is told by a small number, its tail: how many line breaks it ends with, and whether with a
    digit. A full stop after a digit ends a sentence only if white space follows it in the same token, because it may
    be a decimal point; where a line break follows, that ends the line in any case.

    Attributes:
        breaks: int64, line breaks among the white space at its end, 2 for all that are more.
        blank: int64, 1 where it is nothing but white space, so that the line breaks before it count, too.
        digit: int64, `DIGIT` where it ends with a digit.
        stop: int64, 1 where it ends a sentence whatever stands before it.
        point: int64, 1 where it does so but after a digit.
    """

    breaks: "np.ndarray"
    blank: "np.ndarray"
    digit: "np.ndarray"
    stop: "np.ndarray"
    point: "np.ndarray"


@functools.lru_cache(maxsize=8)
def text_ends(tokenizer: PreTrainedTokenizerBase) -> TextEnds:
    """What each token of a tokenizer ends."""
    written = [text.decode(errors="replace") for text in token_bytes(tokenizer)]
    rows = [_ends_of(text) for text in written]
    return TextEnds(*np.array(rows, dtype=np.int64).reshape(-1, 5).T)


def _ends_of(text: str) -> tuple[int, int, int, int, int]:
    said = text.rstrip()
    breaks = min(2, text[len(said) :].count("\n"))
    sentence = said.rstrip(_CLOSERS)
    stops = sentence.endswith(tuple(_STOPS))
    before = sentence.rstrip(_STOPS)
    decimal = stops and sentence[len(before) :] == "." and said == sentence == text
    point = int(decimal and not before)
    stop = int(stops and not point and not (decimal and before[-1:].isdigit()))
    return breaks, int(not said), DIGIT * said[-1:].isdigit() if said == text else 0, stop, point


def level_of(ends: Sequence[int], tail: int) -> tuple[int, int]:
    """What a token ends, as a place in `ENDS`, and the tail of the text after it.

    Args:
        ends: the token's breaks, blank, digit, stop and point, see `TextEnds`.
        tail: of the text before it.
    """
    breaks, blank, digit, stop, point = ends
    breaks = min(2, breaks + blank * (tail % DIGIT))
    sentence = stop | point * (tail < DIGIT)
    return breaks + 1 if breaks else sentence, breaks + digit
