"""Where a thinking states an answer that is known: found by comparing text, without a model."""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

from satisfice.problems.extraction import THOUSANDS, last_box
from satisfice.problems.graders import plain_number


def stated_answer(question: str, thinking: str, gold: str) -> int | None:
    """The `Judge` without a model: the first sentence that states the gold answer, found by comparing text (ours).

    A gold answer that is a plain number is compared by value with whole numbers of the text, so 36 is found in
    "36.0" and not in "136"; any other is looked for as it is written, between word boundaries. The first sentence
    counts that

    1. concludes with it: "So 36.", "the answer is 36", a box. Where no sentence does, the first one that
    2. computes it: it stands after the sentence's last equals sign. Where none does, and the question itself does not
       contain it, the first one that
    3. mentions it.

    A sentence ends with a full stop, an exclamation or question mark, or its line.
    """
    if not gold.strip():
        return None
    stands_in = _finder(gold)
    letter = len(gold.strip()) == 1 and gold.strip().isalpha()  # an option's, too common to be a mention

    def concludes(sentence: str) -> bool:
        box = last_box(sentence)
        if box is not None and stands_in(box, "last"):
            return True
        cue = _CONCLUSION.search(sentence)
        named = _ANSWER.search(sentence)
        return (cue is not None and stands_in(sentence[cue.end() :], "last")) or (
            named is not None and stands_in(sentence[named.end() :], "first")
        )

    def computes(sentence: str) -> bool:
        _, sign, result = sentence.rpartition("=")
        return bool(sign) and stands_in(result, "first")

    def mentions(sentence: str) -> bool:
        return stands_in(sentence, "anywhere")

    sentences = list(_sentences(thinking))
    known = letter or stands_in(question, "anywhere")
    for says in (concludes, computes) if known else (concludes, computes, mentions):
        for start, end in sentences:
            if says(thinking[start:end]):
                return end
    return None


_SENTENCE_END = re.compile(r"""[.!?](?=["'”’)\]*$]{0,4}(?:[\s<]|\Z))["'”’)\]*$]{0,4}|[。！？]|(?<![:\n])\n""")
_CONCLUSION = re.compile(r"\b(?:so(?!\s+far\b)|thus|therefore|hence|answers?|result|conclude)\b", re.IGNORECASE)
_ANSWER = re.compile(r"\banswers?\s*(?:\bis\b|:|=)", re.IGNORECASE)
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}.])[-+−])?(?<![\w.])(?:{THOUSANDS}(?:\.\d+)?|\d+(?:\.\d+)?)(?!\w|\.\d)",
    re.ASCII,  # Chinese leaves no spaces between words and numbers
)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence, its closing sign included. A line that ends with a colon goes on."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        yield start, end.end()
        start = end.end()
    if start < len(text):
        yield start, len(text)


def _finder(gold: str) -> Callable[[str, str], bool]:
    """Whether the gold answer stands "anywhere" in a text, or is the "first" or "last" answer of its kind there.

    Of a number, those are the first and the last number of the text; of any other answer, the text must begin or end
    with it, give or take signs and, for a long one, words after it.
    """
    number = plain_number(gold)
    if number is not None:

        def found(text: str, where: str) -> bool:
            numbers = _NUMBER.findall(text)
            if where != "anywhere":
                numbers = numbers[:1] if where == "first" else numbers[-1:]
            return any(plain_number(candidate) == number for candidate in numbers)

        return found

    parts = re.findall(r"\\?\w+|[^\w\s]", gold)
    spelled = "".join(
        re.escape(part) + (r"\s+" if part[-1].isalnum() and following[:1].isalnum() else r"\s*")
        for part, following in pairwise([*parts, ""])
    ).removesuffix(r"\s*")
    spelled = re.sub(r"\\\\[dt]?frac", r"\\\\[dt]?frac", spelled)
    left, right = r"(?<!\w)" if parts[0][0].isalnum() else "", r"(?!\w)" if parts[-1][-1].isalnum() else ""
    # An option's letter is no article where it ends a sentence or follows "answer is", and never in lower case.
    short = len(gold.strip()) == 1
    flags = re.ASCII if short else re.ASCII | re.IGNORECASE
    anywhere = re.compile(left + spelled + right, flags)
    at_end = re.compile(left + spelled + right + r"[\W_]*\Z", flags) if short else anywhere
    at_start = re.compile(r"[\W_]{0,20}?" + left + spelled + right, flags)

    def spelled_out(text: str, where: str) -> bool:
        if where == "first":
            return at_start.match(text) is not None
        return (at_end if where == "last" else anywhere).search(text) is not None

    return spelled_out
