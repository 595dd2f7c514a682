"""The steps of a thinking: where one ends and the next begins, and what each of them is for.

A thinking is a text, and its steps are pieces of it: put together they are the text again, character by character.
Code blocks and formulas are never cut, whatever stands in them.
"""

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Literal

Splitter = Literal["paragraph", "sentence", "marker"]
"""By empty lines; by sentences and lines; or into stretches of sentences of which each begins with a marker phrase."""


def segment(text: str, splitter: Splitter = "paragraph") -> list[str]:
    """The steps of a text, in their order; joined they are the text.

    White space belongs to the step before it, or to the first one. A text without any boundary is one step; one of
    white space alone has none.
    """
    steps, start = [], 0
    for end in _ends(text, splitter, _protected(text)):
        if text[start:end].strip():
            steps.append(text[start:end])
            start = end
    if text[start:].strip():
        steps.append(text[start:])
    elif steps:
        steps[-1] += text[start:]
    return steps


def first_step(text: str, splitter: Splitter = "paragraph") -> int | None:
    """Where the first step of a text ends that is still being written; None where no step is complete yet.

    What an open formula or code block holds is inside it, as its end may be still to come.
    """
    for end in _ends(text, splitter, _protected(text, unfinished=True)):
        # What stands at the very end may still become another word than a marker phrase.
        open_phrase = splitter == "marker" and (found := _MARKED.match(text, end)) and found.end() == len(text)
        if text[:end].strip() and not open_phrase:
            return end
    return None


# -- boundaries

_GAP = re.compile(r"\n[ \t\r]*\n\s*")
_SENTENCE = re.compile(r"""(?:[.!?]["'”’)\]*]{0,4}(?=\s)|[。！？]["'”’」』）]{0,2})\s*|(?<!:)\n\s*""")
_NO_SENTENCE = re.compile(r"(?:^|[\s(])(?:e\.g|i\.e|etc|cf|vs|approx|resp|Eq|Fig|Dr|Mr|Mrs|Ms|St|No|[A-Z])\.$")
_NUMBERED = re.compile(r"(?:^|\n)[ \t]*\(?\d{1,3}\.$")


def _ends(text: str, splitter: Splitter, protected: list[tuple[int, int]]) -> Iterator[int]:
    """Where steps may end, rising."""
    if splitter == "paragraph":
        yield from _outside((match.end() for match in _GAP.finditer(text)), text, protected)
        return
    sentences = list(_outside(_sentence_ends(text), text, protected))
    if splitter == "sentence":
        yield from sentences
        return
    yield from (end for end in sentences if _MARKED.match(text, end))


def _sentence_ends(text: str) -> Iterator[int]:
    for match in _SENTENCE.finditer(text):
        sign = text[: match.start() + 1][-24:]  # no abbreviation or number of a list is longer
        if text[match.start()] == "." and (_NO_SENTENCE.search(sign) or _NUMBERED.search(sign)):
            continue
        yield match.end()


def _outside(ends: Iterator[int], text: str, protected: list[tuple[int, int]]) -> Iterator[int]:
    """Those of the ends that cut nothing protected."""
    spans = iter(protected)
    span = next(spans, None)
    for end in ends:
        while span is not None and span[1] <= end:
            span = next(spans, None)
        if span is None or not span[0] < end < span[1]:
            yield end


# -- what is never cut

_OPENERS = re.compile(
    r"(?P<fence>^[ \t]*(?:```+|~~~+))"
    r"|(?P<environment>\\begin\{(?P<name>[\w*]+)\})"
    r"|(?P<escaped>\\[\\$`])"
    r"|(?P<display>\$\$|\\\[)"
    r"|(?P<inline>\\\()"
    r"|(?P<code>`)"
    r"|(?P<dollar>\$)",
    re.MULTILINE,
)


def _protected(text: str, *, unfinished: bool = False) -> list[tuple[int, int]]:
    """Start and end of code blocks and formulas, rising and apart.

    A block of code that is not closed goes on to the end of the text. A formula that is not closed is none, unless the
    text is `unfinished`. A dollar sign opens a formula only where a sum of money cannot stand: it closes before the
    next empty line, with no space inside either sign.
    """
    spans: list[tuple[int, int]] = []
    position = 0
    while found := _OPENERS.search(text, position):
        kind, start = found.lastgroup, found.start()
        after = found.end()
        if found["fence"]:
            sign = found["fence"].strip()
            start = after - len(sign)
            closing = re.compile(rf"^[ \t]*{re.escape(sign[0])}{{{len(sign)},}}[ \t]*$", re.MULTILINE)
            close = closing.search(text, text.find("\n", after) if "\n" in text[after:] else len(text))
            end = close.end() if close else len(text) + unfinished
        elif found["name"]:
            end = _after(text, rf"\end{{{found['name']}}}", after, unfinished)
        elif kind == "display":
            end = _after(text, "$$" if found[0] == "$$" else r"\]", after, unfinished)
        elif kind == "inline":
            end = _after(text, r"\)", after, unfinished)
        elif kind == "code":
            end = _short(text, re.compile("`"), after, unfinished)
        elif kind == "dollar" and after < len(text) and not text[after].isspace():
            end = _short(text, re.compile(r"(?<=\S)(?<!\\)\$(?!\d)"), after, unfinished and not text[after].isdigit())
        else:
            end = -1
        if end < 0:
            position = after
            continue
        spans.append((start, end))
        position = max(end, after)
    return spans


def _after(text: str, closing: str, start: int, unfinished: bool) -> int:
    place = text.find(closing, start)
    if place >= 0:
        return place + len(closing)
    return len(text) + 1 if unfinished else -1


def _short(text: str, closing: re.Pattern[str], start: int, unfinished: bool) -> int:
    """The end of what cannot go on past an empty line."""
    gap = _GAP.search(text, start)
    found = closing.search(text, start, gap.start() if gap else len(text))
    if found:
        return found.end()
    return len(text) + 1 if unfinished and not gap else -1


# -- what a step is for


class StepKind(StrEnum):
    """The four kinds of steps of LIMOPro (arXiv 2505.19187); all but the first serve another one."""

    PROGRESSIVE = "progressive"
    VERIFICATION = "verification"
    MULTI_METHOD = "multi-method"
    CORRECTION = "correction"


FUNCTIONAL = (StepKind.VERIFICATION, StepKind.MULTI_METHOD, StepKind.CORRECTION)
"""Those that may be pruned."""

MARKERS: dict[StepKind, tuple[str, ...]] = {
    StepKind.PROGRESSIVE: ("let's solve", "first", "then", "next", "therefore", "we need to", "given that"),
    StepKind.VERIFICATION: ("wait", "let me check", "let me verify", "double-check", "double check", "going back to"),
    StepKind.MULTI_METHOD: (
        "alternatively",
        "another way",
        "let's try a different approach",
        "using another method",
        "we can also verify",
    ),
    StepKind.CORRECTION: (
        "this is wrong",
        "that is wrong",
        "the mistake was",
        "that's impossible",
        "this contradicts",
        "the error is",
    ),
}
"""Phrases by which the paper's first phase tells them, in any case; "double check" and "that is wrong" are ours."""


def _phrases(phrases: tuple[str, ...]) -> str:
    return "|".join(re.escape(phrase).replace("'", "['’]") for phrase in sorted(phrases, key=len, reverse=True))


_KINDS = re.compile(
    r"(?<!\w)(?:" + "|".join(f"(?P<{kind.name}>{_phrases(phrases)})" for kind, phrases in MARKERS.items()) + r")(?!\w)",
    re.IGNORECASE,
)
_MARKED = re.compile(
    r"\s*(?:(?:but|hmm|okay|ok|so|now|actually|oh)\b[,. ]*)?(?:"
    + "|".join(_phrases(phrases) for phrases in MARKERS.values())
    + r")(?!\w)",
    re.IGNORECASE,
)


def marked_kind(step: str) -> StepKind | None:
    """The kind of a step by its marker phrases; None where it has none.

    Where a step holds several, the one that stands first decides (ours: the paper says nothing of it).
    """
    found = _KINDS.search(step)
    return StepKind[found.lastgroup] if found and found.lastgroup else None


def ending_like(thinking: str, whole: str) -> str:
    """An edited thinking that ends with the white space that the whole one had before its marker."""
    return thinking.rstrip() + whole[len(whole.rstrip()) :]
