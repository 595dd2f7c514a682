r"""Words and names are no products of letters: "seat" is not "east", though the algebra would say so.

Whether letters are a word or factors cannot be known, so the gold answer decides by its look: `xy`, `abc` and `mn` are
products, everything in `\text{...}`, capitals side by side (ABC, a triangle or an order) and other runs of three or
more letters are words. Text is expected in the spelling of `satisfice.problems.spelling`.
"""

import re

_FACTORS = ("abcd", "hijk", "ijklmn", "klmn", "mnpq", "pqrst", "rst", "uvwxyz", "axy", "bxy", "abx", "aby", "kmn")
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "lim", "max", "min", "gcd", "lcm", "mod", "det", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sqrt", "frac", "inf", "sup", "deg", "arg", "dim", "lg", "cis", "sgn"}  # fmt: skip # noqa: E501
# Words that join, so that a number beside them is not the whole answer.
CONNECTIVES = {"and", "or", "of", "to", "out", "plus", "minus", "times", "by", "over", "then", "is", "are", "not", "but", "between", "from", "with", "where", "when", "if", "for", "through", "until", "than", "divided", "squared", "cubed", "half", "halves", "third", "thirds", "quarter", "quarters", "remainder", "at", "mod", "modulo", "dozen", "dozens", "factorial", "choose", "either", "least", "most"}  # fmt: skip # noqa: E501
_NUMBERS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "hundred", "thousand", "million", "billion"}  # fmt: skip # noqa: E501
_SHORT_WORDS = {"no", "on", "ok", "up"}
_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*)\}")
_LETTERS = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_WORDING = re.compile(r"[^\W\d_]+(?:[\s'.,!?\"()-]+[^\W\d_]+)*[\s.!?\"']*")
_SEPARATOR = re.compile(r"\s*[,;]\s*(?:(?:and|or)\s+)?|\s+(?:and|or|&)\s+")
_ARTICLE = re.compile(r"^(?:the|an?)\s+(?=\w{2})", re.IGNORECASE)


def is_word(letters: str) -> bool:
    """Whether a run of letters is a word that may stand as a unit after a number, not a product nor "and" or "of"."""
    small = letters.lower()
    return len(letters) >= 3 and small not in CONNECTIVES | _NUMBERS | _FUNCTIONS and not are_factors(letters)


def is_remark(words: str) -> bool:
    """Whether words in brackets after a number only comment on it: "5 (five)", not "5 (or six)"."""
    return not {word.lower() for word in words.split()} & (CONNECTIVES - {"is", "are", "of", "the", "from", "by"})


def are_factors(letters: str) -> bool:
    """Whether a run of letters may be read as a product: one or two small letters, or three and more in a usual row."""
    if letters.lower() in _SHORT_WORDS:
        return False
    if len(letters) == 1 or (len(letters) == 2 and not letters.isupper()):
        return True
    if not letters.islower():
        return False
    return any(set(letters) <= set(row) for row in _FACTORS) and sorted(letters) == list(letters)


def wording(text: str) -> str | None:
    r"""The words that the whole of `text` is, in small letters and single spaces; None where it is a formula.

    `\text{East}` is "east", `ABC` is "abc", `\text{(C)}` is "c"; `xy`, `\sin x` and `x` are formulas.
    """
    marked = _TEXT.search(text) is not None
    if "\\" in _TEXT.sub("", text):
        return None
    plain = _TEXT.sub(r"\1", text).strip().strip("\"'`* ")
    while plain[:1] == "(" and plain[-1:] == ")" and plain.count("(") == 1:
        plain = plain[1:-1].strip()
    if not plain or not _WORDING.fullmatch(plain):
        return None
    runs = _LETTERS.findall(plain)
    if not marked and (all(are_factors(run) for run in runs) or any(run.lower() in _FUNCTIONS for run in runs)):
        return None
    return _bare(plain)


def single_letter(text: str) -> str | None:
    r"""The letter that the whole of `text` is, in brackets or not: E, (E), \text{E}, \text{(E)}."""
    match = re.fullmatch(r"\(?\s*([A-Za-z])\s*\)?\.?", _TEXT.sub(r"\1", text).strip())
    return match[1] if match else None


def names(text: str) -> tuple[tuple[str, ...], bool] | None:
    """The names that `text` lists, two at least, and whether their order counts; None where it is anything else.

    Names are words or capital letters. Their order counts where commas divide them, not where "and" joins two.
    """
    inside = text[2:-2].strip() if text.startswith("\\{") and text.endswith("\\}") else text
    plain = _TEXT.sub(r"\1", inside)
    parts = [part.strip().strip("()") for part in _SEPARATOR.split(plain)]
    if len(parts) < 2 or "\\" in plain:
        return None
    for part in parts:
        if not (re.fullmatch(r"[A-Z]", part) or wording(part) or (_TEXT.search(inside) and _WORDING.fullmatch(part))):
            return None
    ordered = inside is text and ("," in plain or ";" in plain or len(parts) > 2)
    return tuple(_bare(part) for part in parts), ordered


def _bare(text: str) -> str:
    text = _ARTICLE.sub("", " ".join(text.split()))
    return re.sub(r"[^\w\s-]", "", text).strip().casefold()
