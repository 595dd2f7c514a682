"""Where a response begins: before thinking, inside it or after it, read from a prompt's tokens."""

import itertools
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from satisfice.thinking import ThinkingFormat, token_bytes

_USER, _AGAIN = "satisfice-first-message", "satisfice-second-message"
"""Texts that no template writes."""


class PromptReader:
    """Reads the marker automaton's state at the end of a prompt.

    A prompt may hold markers of earlier turns, and those that a user wrote. What counts is what stands after the
    last place where the chat template lets the assistant speak.

    Attributes:
        header: the bytes with which the template begins a response, up to the first marker; empty where there is no
            template, or none that could be read.
    """

    def __init__(self, thinking_format: ThinkingFormat, tokenizer: PreTrainedTokenizerBase) -> None:
        self._automaton = thinking_format.automaton(tokenizer)
        self._bytes = token_bytes(tokenizer)
        self._markers = [marker.encode() for marker in (*thinking_format.openers, *thinking_format.closers)]
        self.header = _header(thinking_format, tokenizer).encode()

    def state(self, prompt_ids: Sequence[int] | None) -> int:
        """The automaton's state where the response begins.

        Without a header in the prompt (a bare completion, say) the last marker decides: an opening one leaves
        thinking open, a closing one leaves it closed.

        Args:
            prompt_ids: None for a prompt of embeddings, which is taken to hold no markers.
        """
        written = b"".join(self._bytes[token] for token in prompt_ids or () if 0 <= token < len(self._bytes))
        place = written.rfind(self.header) if self.header else -1
        if place >= 0:
            return self._automaton.run_bytes(written[place + len(self.header) :])
        last = max(written.rfind(marker) for marker in self._markers)
        return self._automaton.run_bytes(written[last if last >= 0 else -max(map(len, self._markers)) :])


def _header(thinking_format: ThinkingFormat, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a chat template writes between a user's message and the response, however thinking is switched."""
    if not tokenizer.chat_template:
        return ""
    suffixes = []
    for thinking in (True, False):
        for marked in (_USER, _AGAIN):
            try:
                text = str(
                    tokenizer.apply_chat_template(
                        [{"role": "user", "content": marked}],
                        tokenize=False,
                        add_generation_prompt=True,
                        enable_thinking=thinking,
                        thinking=thinking,
                    )
                )
            except Exception:  # a template may refuse anything, in any way
                return ""
            suffixes.append(text.rpartition(marked)[2])
    agreed = itertools.takewhile(lambda characters: len(set(characters)) == 1, zip(*suffixes, strict=False))
    header = "".join(characters[0] for characters in agreed)
    for marker in (*thinking_format.openers, *thinking_format.closers):
        header = header.partition(marker)[0]
    return header
