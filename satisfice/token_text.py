"""Text of tokens and the way back: found in text, given in tokens.

The text is put together from the bytes of the tokens themselves, so the way back is exact, also where a character is
cut over several tokens.
"""

import functools
import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from satisfice.lazy import PreTrainedTokenizerBase
from satisfice.thinking import token_bytes


class TokenText:
    """The text of some tokens, and which of them hold it.

    Attributes:
        text: with one U+FFFD for each byte that belongs to no whole character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
        table = _token_bytes(tokenizer, len(tokenizer))
        # Ids beyond the tokenizer's own are a model's padding and stand for no text.
        pieces = [table[token] if token < len(table) else b"" for token in ids]
        self._escaped = b"".join(pieces).decode(errors="surrogateescape")
        self._ends = list(accumulate(map(len, pieces)))
        self.text = _STRAY_BYTE.sub("\ufffd", self._escaped)

    def tokens(self, offset: int) -> int:
        """How many tokens it takes to write the first `offset` characters."""
        after = len(self._escaped[:offset].encode(errors="surrogateescape"))
        return bisect_left(self._ends, after) + 1 if after else 0


_STRAY_BYTE = re.compile("[\udc80-\udcff]")


@functools.lru_cache(maxsize=4)
def _token_bytes(tokenizer: PreTrainedTokenizerBase, vocabulary_size: int) -> list[bytes]:
    return token_bytes(tokenizer)  # the size is part of the key alone: a tokenizer may be given more tokens
