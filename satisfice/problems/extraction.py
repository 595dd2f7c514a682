"""Finding the answer in what a model wrote after thinking.

Order of search, the same for every kind of answer:

1. The last `\\boxed{...}` or `\\fbox{...}`. Where the last box is not closed, the response broke off inside its
   answer and nothing is extracted: an earlier box would be credit for an answer that was being revised.
2. What follows the last "answer is", "answer:" or "answer =".
3. As a last resort: the last number where a number is expected, the last option letter that stands apart where a
   choice is expected, the text itself where free text is expected and it is a single line.

Every pattern takes time linear in the length of the text, because this code runs beside the event loop on whatever
a model wrote.
"""

import re
from typing import Literal

AnswerKind = Literal["math", "number", "choice", "text"]
"""What an answer is expected to be; it decides the last resort of the search."""

THOUSANDS = r"(?:\d{1,3}(?:(?:,\\!|\{,\}|\\,|,)\d{3})+(?!\d))"
"""A number whose digits are grouped by commas or by LaTeX's ways to write one."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_OPEN = re.compile(r"\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"\s*([\w\\(+\-−.][^\s$]*)")

_PHRASE = re.compile(
    r"\banswers?(?:\s{1,9}(?:to|for)\b[^.:\n]{0,100}?)?\s{0,9}(?:\b(?:is|are|was)\b\s{0,9}:?|:|=)\s{0,9}(?!\s{0,9}not\b)",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!](?=\s|$)|\n")

_NUMBER = re.compile(
    rf"""
    (?:(?<![\w)\]}}.])[-+−])?  # a sign, but not the minus of a difference
    (?: \\[dt]?frac\{{-?\d+\}}\{{\d+\}}
      | (?<![A-Za-z_\d.]) (?: {THOUSANDS}(?:\.\d+)? | \d+(?:\.\d+)?(?:\s?/\s?\d+)? | \.\d+ )
        (?: [eE][-+]?\d+ | \s?(?:\\times|\\cdot|×)\s?10\s?\^\s?(?:\{{\s?[-+−]?\d+\s?\}}|[-+−]?\d+) )?
    )
    """,
    re.VERBOSE,
)

_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathsf|mbox)(?=\s*\{)")
_LETTER = re.compile(r"[\s({\[$]*([A-Za-z])(?![A-Za-z])")
_LETTER_AFTER_PHRASE = re.compile(
    r"[\s$]*(?:(?i:option|choice)\s+)?(?:[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Z])(?![A-Za-z'’]))"
)
_LETTER_APART = re.compile(r"\(([A-Z])\)|(?<![\w.])([A-Z])(?=[.):](?:\s|$))|^[ \t]*([A-Z])[ \t]*$", re.MULTILINE)


def extract_answer(text: str, kind: AnswerKind = "math") -> str | None:
    """The answer that `text` gives, as it is written there, or None where it gives none.

    Args:
        text: what was written after thinking, and nothing of the thinking itself.
        kind: what is expected. "math": a box or a phrase. "number": also the last number. "choice": the letter of
            an option, returned as a capital. "text": also the whole text, if it is a single line.
    """
    if _BOX.search(text):
        content = last_box(text)
        return _letter(_LETTER, content) if content and kind == "choice" else content

    text = text.replace("**", "").replace("__", "")
    phrases = list(_PHRASE.finditer(text))
    after_phrase = phrases[-1].end() if phrases else None
    if kind == "choice":
        letter = None if after_phrase is None else _letter(_LETTER_AFTER_PHRASE, text[after_phrase : after_phrase + 99])
        return letter or _last_letter(text)
    if after_phrase is not None and (claim := _claim(text, after_phrase)):
        return _stated_number(claim) if kind == "number" else claim
    if kind == "number":
        numbers = _NUMBER.findall(text)
        return numbers[-1] if numbers else None
    line = text.strip()
    return line if kind == "text" and line and "\n" not in line else None


def last_box(text: str) -> str | None:
    """The content of the last `\\boxed` or `\\fbox`; None where there is none, or it is empty or not closed.

    `\\boxed 42`, without braces, holds everything up to the next space or dollar sign.
    """
    openings = [match.end() for match in _BOX.finditer(text)]
    if not openings:
        return None
    start = openings[-1]
    if unbraced := _UNBRACED.match(text, start):
        return unbraced[1].rstrip(".,;:") or None
    if not (opening := _OPEN.match(text, start)):
        return None
    depth = 1
    for brace in _BRACE.finditer(text, opening.end()):
        if brace[0] in "{}":
            depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[opening.end() : brace.start()].strip() or None
    return None


def first_number(text: str) -> str | None:
    """The number that a short claim such as "x = 72 clips" states: the first one after its last equals sign."""
    number = _NUMBER.search(text.rsplit("=", 1)[-1]) or _NUMBER.search(text)
    return number[0] if number else None


def unstyled(text: str) -> str:
    """`text` without the commands that only choose a font, such as `\\text`; all braces go with them."""
    return re.sub(r"[{}]", "", _FONT.sub("", text)) if _FONT.search(text) else text


def _claim(text: str, start: int) -> str | None:
    """What is said from `start` on: the formula that stands there, else the rest of the sentence."""
    if formula := _FORMULA.match(text, start):
        return next(group for group in formula.groups() if group is not None).strip() or None
    end = _SENTENCE_END.search(text, start)
    return text[start : end.start() if end else len(text)].strip(" \t*`\"'“”,;:") or None


def _stated_number(claim: str) -> str:
    # The first number of "\sqrt{16}" is not what it states: what looks like a formula is left to the grader.
    if "\\" in claim or "^" in claim:
        return claim
    return first_number(claim) or claim


def _letter(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.match(unstyled(text))
    return next(group for group in match.groups() if group).upper() if match else None


def _last_letter(text: str) -> str | None:
    matches = list(_LETTER_APART.finditer(text))
    return next(group for group in matches[-1].groups() if group) if matches else None
