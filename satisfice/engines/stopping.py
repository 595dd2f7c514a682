"""Where a generation ends: an end-of-text token, a stop text that may be cut over tokens anywhere, or the limit.

An engine that makes its tokens itself looks after every one of them, so a sequence ends with the very token that
completes a stop, and what holds the stop is known to the token.
"""

from collections.abc import Sequence
from typing import Literal

from satisfice.engines.base import Sampling

End = tuple[Literal["stop", "length"], str | int | None, int]
"""How a generation ended: the finish, what stopped it, and how many tokens hold the stop; as in `Generation`."""


class StopWatch:
    """Follows one sequence, whose new tokens are appended to `ids` one by one.

    Args:
        ids: the sequence, the prompt alone at first; only read.
        sampling: what ends it, and how many new tokens it has at most.
        end_ids: the model's own end-of-text tokens.
        token_bytes: the text of each token id, see `satisfice.thinking.token_bytes`; read where there are stop texts.
    """

    def __init__(
        self, ids: Sequence[int], sampling: Sampling, end_ids: frozenset[int], token_bytes: Sequence[bytes]
    ) -> None:
        self._ids = ids
        self._prompt_length = len(ids)
        self._sampling = sampling
        self._stop_ids = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else end_ids)
        self._token_bytes = token_bytes
        self._stops = {stop.encode(): stop for stop in sampling.stop}
        self._longest = max(map(len, self._stops), default=0)
        self._tail = b""  # as much of the text so far as a stop may begin in
        self._stopped: tuple[str, int] | None = None  # the stop that was found, and the place where it begins
        self._looking_ahead = False

    def finished(self) -> End | None:
        """How the sequence ends with its newest token, None where it goes on; to be called once for each token."""
        token = self._ids[-1]
        if token in self._stop_ids:
            return "stop", token, 1
        if self._stops:
            self._look(token)
        full = len(self._ids) - self._prompt_length >= self._sampling.max_tokens
        if self._stopped is not None and (full or not self._looking_ahead):
            stop, first = self._stopped
            return "stop", stop, len(self._ids) - first
        return ("length", None, 0) if full else None

    def _look(self, token: int) -> None:
        """Note the stop that the newest token completes; in a token that was written to look ahead, a final one."""
        text = self._tail + self._bytes_of(token)
        ahead = self._sampling.lookahead
        passed = ahead if self._looking_ahead else ()
        self._looking_ahead = False
        for written, stop in self._stops.items():
            if written in text and stop not in passed:
                self._stopped = stop, len(self._ids) - self._tokens_holding(written)
                self._looking_ahead = stop in ahead and text.endswith(written)
                self._tail = b""
                return
        self._tail = text[-self._longest :]

    def _bytes_of(self, token: int) -> bytes:
        return self._token_bytes[token] if token < len(self._token_bytes) else b""

    def _tokens_holding(self, stop: bytes) -> int:
        text, count = b"", 0
        while stop not in text and count < len(self._ids) - self._prompt_length:
            count += 1
            text = self._bytes_of(self._ids[-count]) + text
        return count
