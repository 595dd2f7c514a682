"""The answers that a thinking states on its way, read in its text."""

import re

from satisfice.problems.choices import MOST_OPTIONS
from satisfice.problems.extraction import extract_answer

MOST_CHARACTERS = 4_000
"""Of a longer paragraph only the end is read: what it concludes stands there."""

_PARAGRAPH_END = re.compile(r"\n\s*\n")


def stated_answers(thinking: str, grader: str) -> list[tuple[int, str | None]]:
    """What each paragraph of a thinking leaves as the answer so far.

    A paragraph states an answer where it has a box, a phrase such as "the answer is", or concludes with a value ("So
    7."); one that states none leaves the answer of the one before. What the model would have said if it had been
    asked can be another thing: only asking it tells.

    Args:
        thinking: the text.
        grader: the problem's; decides between option letters and values.

    Returns:
        for each paragraph the characters up to its end, and the answer so far, None before the first.
    """
    name, _, options = grader.partition(":")
    answers: list[tuple[int, str | None]] = []
    current, start = None, 0
    ends = [match.end() for match in _PARAGRAPH_END.finditer(thinking)]
    for end in [*ends, len(thinking)]:
        paragraph = thinking[start:end].strip()[-MOST_CHARACTERS:]
        start = end
        if not paragraph:
            continue
        if name == "choice":
            found = extract_answer(paragraph, "choice", int(options) if options else MOST_OPTIONS)
        else:
            found = extract_answer(paragraph, "math")
        current = found or current
        answers.append((end, current))
    return answers
