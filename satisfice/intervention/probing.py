"""What the probing strategies share: thinking up to a place that is worth a probe, and reading a boxed trial answer.

A probe must leave no trace where thinking goes on. So the model writes its own way up to a place and past it, as in
plain decoding, and a probe asks from the tokens before it; only an exit takes anything back.
"""

import re

from satisfice.intervention.draft import Draft
from satisfice.intervention.method import MethodError
from satisfice.thinking import Phase

PARAGRAPH = "\n\n"

_WORD = re.compile(r"\w", re.ASCII)  # ASCII: Chinese leaves no spaces between words
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_LOOK_BEHIND = 4
"""Tokens before a marker that are decoded to see the character that stands before it."""


def marker_words(markers: str, method: str) -> tuple[str, ...]:
    """The words of a parameter such as "Wait|Alternatively", the longest first: "But wait" goes before "wait".

    Raises:
        MethodError: there is none, or one is empty.
    """
    words = markers.split("|")
    if not all(word.strip() for word in words):
        raise MethodError(f"{method}: markers is {markers!r}; it must be words separated by |, for example 'Wait|Hmm'")
    return tuple(sorted(words, key=len, reverse=True))


async def think_to_marker(draft: Draft, markers: tuple[str, ...], limit: int) -> int | None:
    """Think up to the next marker that stands as a word of its own: "Waiting" is no "Wait".

    Where the marker ends a token, what follows decides, so one more token is written. A side on which a marker does
    not end with a letter, as in "Wait,", needs no such check.

    Args:
        draft: the response.
        markers: the words, longest first.
        limit: tokens of the response at which thinking ends.

    Returns:
        how many tokens at the end of the response hold the marker and what was written to recognise it; None where
        thinking has ended, or its limit was reached, before one came.
    """
    open_ended = tuple(marker for marker in markers if _WORD.match(marker[-1]))
    while (left := limit - len(draft.ids)) > 0:
        generation = await draft.think(left, markers, lookahead=open_ended)
        if draft.closed or generation.stopped_by not in markers:
            return None
        held, marker = generation.stop_tokens, str(generation.stopped_by)
        before, _, after = draft.text(draft.ids[-held:]).partition(marker)
        before = draft.text(draft.ids[-held - _LOOK_BEHIND : -held]) + before
        open_left, open_right = _WORD.match(marker[0]), marker in open_ended
        if open_right and not after:  # the engine has not looked ahead
            following = await draft.think(min(1, limit - len(draft.ids)))
            if draft.closed or following.finish == "stop" or not following.ids:
                return None
            held += 1
            after = draft.text(draft.ids[-held:]).partition(marker)[2]
        inside_word = (open_left and _WORD.match(before[-1:])) or (open_right and _WORD.match(after[:1]))
        if draft.phase is Phase.THINKING and not inside_word:
            return held
    return None


async def think_to_paragraph(draft: Draft, limit: int) -> bool:
    """Think up to the next empty line.

    Args:
        draft: the response.
        limit: tokens of the response at which thinking ends.

    Returns:
        whether it came before thinking ended or its limit was reached.
    """
    while (left := limit - len(draft.ids)) > 0:
        generation = await draft.think(left, (PARAGRAPH,))
        if draft.closed or generation.stopped_by != PARAGRAPH:
            return False
        if draft.phase is Phase.THINKING:
            return len(draft.ids) < limit
    return False


def boxed(asked: str, text: str) -> str | None:
    """What `text` puts into the box that `asked` ends with, opened or about to be; None while the box is open.

    Only the brace that closes the box ends it, not the first one of a fraction.
    """
    depth, start = asked.count("{") - asked.count("}"), 0
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            start = start if depth else brace.end()
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if depth <= 0:
                return text[start : brace.start()].strip()
    return None
