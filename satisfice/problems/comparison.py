"""Comparing two answers without algebra: what is certain is decided here, at once, and the rest is left open.

Text, lists of names, times of day, ratios, congruences and numbers in other bases are never given to the algebra: it
would multiply their letters and digits. What remains is a formula on at least one side.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from satisfice.problems.clocks import Time, date, ratio, same_time, time_of_day
from satisfice.problems.congruences import Congruence, congruence, is_congruence, same_congruence
from satisfice.problems.notation import as_tuple
from satisfice.problems.number_words import are_factors, names, single_letter, wording
from satisfice.problems.quantities import Quantity, comma_number, equal_quantities, in_smallest, quantity, terminates
from satisfice.problems.spelling import LONGEST, respell

_BASED = re.compile(
    r"\(?([0-9A-Za-z]+)\)?\s*(?:_\s*\{?\s*(?:\\text\{\s*)?(?:base\s*\}?\s*)?|(?:\\text\{)?\s*\(?(?:in\s+)?base\s*\}?\s*)"
    r"(\d+|two|three|eight|ten|sixteen)\s*\)?\s*\}*"
)
_BASES = {"two": 2, "three": 3, "eight": 8, "ten": 10, "sixteen": 16}
_SEPARATOR = re.compile(
    r"\s*[,;]\s*(?:\\text\{\s*(?:and|or)\s*\}|(?:and|or)\b)?|\s*\\text\{[\s,]*(?:and|or)[\s,]*\}|\b(?:and|or)\b"
)
_RELATION = re.compile(r"\\(?:neq|leq|geq|approx|equiv|in|sim|to|subset)(?![A-Za-z])|[<>]")
_NAME = re.compile(
    r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?'?(?:\([^()=]{1,20}\))?|\\(?:text|mathrm)\{[^{}=]{1,60}\}|"
    r"[A-Za-z][A-Za-z ]{1,40}|\|?[A-Z]{2}\|?|\\angle ?[A-Z ]{1,6}|\[[A-Z]{3,6}\]"
)
_TEXT_ONLY = re.compile(r"\\text\{[^{}]*[A-Za-z]{2}[^{}]*\}")
_SIGN_UNITS = {"percent", "degree", "dollar", "euro"}  # 36 and $36, 90 and 90 degrees get one vote, 5 and 5 cm do not
_MARKED = re.compile(r"\\(?:text|mathrm)\{([^{}]*)\}")
_OPTION = re.compile(r"(?:\\text\{)?\s*\(([A-Z])\)")
_SUM = re.compile(r"[^=<>+]*[A-Za-z\d})][^=<>]*[+-][^=<>]*=")
_INSIDE = re.compile(r"\([^()]*\)|\{[^{}]*\}|\|[^|]*\|")
_BOUND = re.compile(r"\\(?:leq|geq|neq|pm|mp)(?![A-Za-z])|[<>]")
_FACTOR_AFTER = re.compile(r"[-+]?[\d.,/ ]+[A-Za-z]+")
_LOOSE_DIGITS = re.compile(r"\d\s+\d")
_NO_LATEX = re.compile(r"[^\\_^]*")
_OWN_NAME = re.compile(r"^[A-Za-z]'*(?:\([A-Za-z\d]\))?=")
_DERIVATIVE = re.compile(r"[A-Za-z]'+")
_SAID = {
    "empty set": r"\emptyset", "the empty set": r"\emptyset", "all real numbers": r"\mathbb{R}",
    "all reals": r"\mathbb{R}", "set of all real numbers": r"\mathbb{R}", "set of real numbers": r"\mathbb{R}",
    "real numbers": r"\mathbb{R}", "all integers": r"\mathbb{Z}", "set of all integers": r"\mathbb{Z}",
    "set of integers": r"\mathbb{Z}", "integers": r"\mathbb{Z}", "infinity": r"\infty",
}  # fmt: skip
_AMERICAN = (
    (re.compile(r"\b(col|fav|flav|hon|lab|neighb|behavi|harb|rum|hum|vap|od)our"), r"\1or"),
    (re.compile(r"\b(cent|theat|fib|lit|(?:\w*)met)re(?=s?\b)"), r"\1er"),
    (re.compile(r"\bgrey"), "gray"),
    (re.compile(r"\b(\w{4,})is(e|ed|es|ing|ation)\b"), r"\1iz\2"),
)


@dataclass(frozen=True)
class Reading:
    """An answer as it was understood; at most one of the special forms is there, beside the spelling.

    Attributes:
        alone: the value of a list that may be one number instead, such as 2,5.
        text: the answer in one spelling, without spaces that mean nothing.
        name: what stands before the equals sign, "" where nothing does.
        number: the number that it is or that its equation gives.
        contradicts: whether it is an equation of numbers that are not equal.
    """

    text: str
    name: str = ""
    number: Quantity | None = None
    contradicts: bool = False
    words: str | None = None
    letter: str | None = None
    names: tuple[tuple[str, ...], bool] | None = None
    time: Time | None = None
    date: tuple[int, int, int] | None = None
    ratio: tuple[Fraction, ...] | None = None
    congruence: Congruence | str | None = None
    based: tuple[str, int] | None = None
    items: tuple["Reading", ...] = ()
    alone: Fraction | None = None


def read(answer: str) -> Reading:
    """What an answer says, as far as that can be told without algebra."""
    return Reading(answer) if len(answer) > LONGEST else _read(answer)


@lru_cache(maxsize=4096)
def _read(answer: str) -> Reading:
    text = respell(answer)
    if (day := date(text)) is not None:
        return Reading(_packed(text), date=day)
    if number := quantity(text):
        return Reading(_packed(text), number=number)
    packed = _packed(text)
    if (time := time_of_day(text)) is not None:
        return Reading(packed, time=time)
    if (parts := ratio(text)) is not None:
        return Reading(packed, ratio=parts)
    if is_congruence(text) or "mod" in text:
        found = congruence(text)
        if found or is_congruence(text):
            return Reading(packed, congruence=found or packed)
    if (letter := single_letter(text)) is not None:
        return Reading(packed, letter=letter)
    if (listed := names(text)) is not None:
        return Reading(packed, names=listed)
    if (words := wording(text)) is not None:
        if (meant := _SAID.get(words)) is not None:
            return Reading(meant)
        return Reading(packed, words=words)
    if (match := _BASED.fullmatch(text)) is not None and any(digit.isdigit() for digit in match[1]):
        return Reading(packed, based=(match[1].upper(), _BASES.get(match[2]) or int(match[2])))
    if "=" in text and not _RELATION.search(text):
        return _equation(text, packed)
    items = _divided(text)
    if len(items) > 1:
        return Reading(packed, items=tuple(read(item) for item in items), alone=comma_number(text))
    return Reading(packed)


def same_answer(given: str, gold: str) -> bool | None:
    """Whether an answer is the gold answer; None where that takes algebra."""
    left, right = read(given), read(gold)
    if left.text and (left.text == right.text or _same_wording(left.text, right.text)):
        return True
    if left.items and any(item.name for item in left.items):
        left = read(as_tuple(respell(given), respell(gold)))
    elif right.items and any(item.name for item in right.items):
        right = read(as_tuple(respell(gold), respell(given)))
    return _same(left, right)


def answer_class(answer: str) -> Hashable:
    """What answers share that are the same for certain, however they are spelled: a key for counting votes."""
    return _key(read(answer))


def _same(given: Reading, gold: Reading) -> bool | None:
    if given.contradicts:
        return False
    if gold.names is not None or gold.words is not None or gold.letter is not None:
        return _same_words(given, gold)
    if given.words is not None:
        # cba is a word by its look, but a product where the gold answer is abc.
        return None if are_factors(gold.text) and sorted(given.words) == sorted(gold.text) else False
    if gold.date is not None:
        return given.date is not None and given.date[:2] == gold.date[:2] and gold.date[2] in (0, given.date[2])
    if gold.time is not None or gold.ratio is not None or gold.congruence is not None:
        return _same_special(given, gold)
    if _TEXT_ONLY.fullmatch(gold.text):
        return False
    if given.congruence is not None:
        return _residue_is(given, gold)
    if given.time is not None or given.date is not None:
        return False
    if _primes(given.text, gold.text) != _primes(gold.text, given.text):
        return False  # the algebra takes a derivative for the function
    if given.based is not None and gold.based is not None:
        return _value_in_base(given.based) == _value_in_base(gold.based)
    if (given.based is not None and gold.number is not None) or (gold.based is not None and given.number is not None):
        based, number = given.based or gold.based, given.number or gold.number
        # The base is often left out where the question names it.
        return based is not None and number is not None and based[0].isdigit() and int(based[0]) == number.value
    if gold.number is not None:
        return _same_number(given, gold.number, gold)
    if _SUM.match(_INSIDE.sub("", gold.text)) and not re.search(
        r"[=<>]|\\(?:[ln]?[egt]e?q?|in)(?![A-Za-z])", given.text
    ):
        return False  # the algebra would take the 0 of "x + y = 0" for the answer
    if gold.items and given.number is not None:
        return _all_are(gold.items, given)
    if gold.items and given.items:
        return _same_items(given.items, gold.items)
    return None


def _same_words(given: Reading, gold: Reading) -> bool | None:
    if gold.letter is not None:
        if given.letter is not None:
            return given.letter == gold.letter
        if options := set(_OPTION.findall(given.text)):
            return options == {gold.letter} and _OPTION.match(given.text) is not None
        return False if given.words or given.number or given.names else None
    if gold.words is not None:
        return _folded(_letters_of(given)) == _folded(gold.words)
    assert gold.names is not None
    if given.names is None:
        return False
    listed, ordered = gold.names
    return given.names[0] == listed if ordered else sorted(given.names[0]) == sorted(listed)


def _folded(words: str) -> str:
    """Words without hyphens and spaces, in American spelling: what people write in two ways."""
    for british, american in _AMERICAN:
        words = british.sub(american, words)
    return re.sub(r"[\s-]", "", words)


def _primes(text: str, other: str) -> list[str]:
    """The derivatives that a formula speaks of, f'' and y'; without its name where the other one has none."""
    if "'" not in text:
        return []
    return sorted(_DERIVATIVE.findall(text if "=" in other else _OWN_NAME.sub("", text)))


def _letters_of(reading: Reading) -> str:
    if reading.words is not None:
        return reading.words
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", reading.text).casefold()


def _same_special(given: Reading, gold: Reading) -> bool | None:
    if gold.time is not None:
        return given.time is not None and same_time(given.time, gold.time)
    if gold.congruence is not None:
        if isinstance(given.congruence, tuple) and isinstance(gold.congruence, tuple):
            return same_congruence(given.congruence, gold.congruence)
        return False
    if (parts := given.ratio or ratio(given.text)) is not None:
        return parts == gold.ratio
    if given.number is not None and isinstance(gold.ratio, tuple) and len(gold.ratio) == 2 and gold.ratio[1]:
        return bool(given.number.value == 1 / gold.ratio[1])
    return None if given.number is None and given.time is None else False


def _residue_is(given: Reading, gold: Reading) -> bool:
    """Whether a congruence leaves the one residue that the gold answer is."""
    if gold.number is None or not isinstance(given.congruence, tuple):
        return False
    return bool(given.congruence[2] == {gold.number.value})


def _same_number(given: Reading, wanted: Quantity, gold: Reading) -> bool | None:
    if given.number is not None:
        if given.name and gold.name and given.name != gold.name:
            return None
        return equal_quantities(given.number, wanted)
    if given.ratio is not None:
        return isinstance(given.ratio, tuple) and len(given.ratio) == 2 and given.ratio[1] * wanted.value == 1
    if given.names is not None or given.letter is not None:
        return False if given.names else None
    if given.items:
        if given.alone is not None:
            return given.alone == wanted.value
        return False if not any(re.search(r"[=\\]", item.text) for item in given.items) else None
    if _FACTOR_AFTER.fullmatch(given.text) or (_BOUND.match(given.text) and wanted.value):
        return False
    if re.search(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", "", given.text)) and "=" not in given.text:
        return _unreadable(given)
    return False if _loose(given.text) else None


def _unreadable(given: Reading) -> bool | None:
    """Wrong for certain where words stand beside a number that are no unit, open where letters may be factors."""
    words = re.findall(r"[A-Za-z]+", re.sub(r"\\(?!text)[A-Za-z]+", " ", given.text).replace("\\text", " "))
    return False if any(len(word) > 2 or word in ("of", "or", "to", "by", "is") for word in words) else None


def _loose(text: str) -> bool:
    """Whether digits stand beside digits with only a space between them: no product, whatever the algebra says."""
    return bool(_NO_LATEX.fullmatch(text) and _LOOSE_DIGITS.search(text))


def _all_are(items: tuple[Reading, ...], given: Reading) -> bool | None:
    """Whether the one number given is every item of a list, such as a double root."""
    assert given.number is not None
    found = [None if item.number is None else equal_quantities(given.number, item.number) for item in items]
    return False if False in found else (None if None in found else True)


def _same_items(given: tuple[Reading, ...], gold: tuple[Reading, ...]) -> bool | None:
    """Whether two lists hold the same in any order; None unless all items are numbers."""
    numbers = [item.number for item in (*given, *gold)]
    if any(number is None for number in numbers):
        return None
    if any(number is not None and (number.known or not terminates(number.value)) for number in numbers):
        return None if len(given) == len(gold) else False
    if any(item.name for item in (*given, *gold)):
        return None
    values = [sorted(item.number.value for item in side if item.number is not None) for side in (given, gold)]
    return values[0] == values[1]


def _value_in_base(based: tuple[str, int]) -> int | None:
    digits, base = based
    try:
        return int(digits, base)
    except ValueError:
        return None


def _equation(text: str, packed: str) -> Reading:
    """An equation: the number on its right, if it gives the value of something that has a name."""
    if len(items := _divided(text)) > 1:
        return Reading(packed, items=tuple(read(item) for item in items))
    sides = [side.strip() for side in text.split("=")]
    numbers = [quantity(side) for side in sides]
    known = [number for number in numbers if number is not None]
    contradicts = any(
        before is not None and after is not None and before.value != after.value and not before.rounded
        for before, after in pairwise(numbers)
    )
    if len(sides) == 2 and (parts := ratio(sides[1])) is not None and numbers[0] is None:
        return Reading(_packed(sides[1]), sides[0], ratio=parts)
    if len(sides) == 2 and numbers[0] is not None and re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?", sides[1]):
        sides, numbers, known = sides[::-1], numbers[::-1], known[:1]  # 7 = x
    named = _NAME.fullmatch(sides[0]) is not None
    if known and (len(known) == len(sides) or (named and len(known) == len(sides) - 1)):
        return Reading(packed, sides[0] if named else "", known[-1], contradicts)
    return Reading(packed, contradicts=contradicts)


def _divided(text: str) -> list[str]:
    """The items of a list, divided by commas, semicolons, "and" and "or" outside all brackets; else `text` alone."""
    if text.startswith("\\{") and text.endswith("\\}") and text.count("\\{") == 1:
        text = text[2:-2].strip()
    depth, start, place, parts = 0, 0, 0, []
    while place < len(text):
        if text[place] in "([{":
            # \text{ and } opens a brace that divides; every other brace protects.
            depth += 1
        elif text[place] in ")]}":
            depth -= 1
        if depth == 0 and text[place] in ",;\\ ao" and (match := _SEPARATOR.match(text, place)) and match.end() > place:
            if text[place] in "ao" and place and text[place - 1].isalnum():
                match = None
            if match:
                parts.append(text[start:place].strip())
                place = start = match.end()
                continue
        place += 1
    parts.append(text[start:].strip())
    parts = [part for part in parts if part]
    return parts or [text]


def _packed(text: str) -> str:
    """`text` without braces around one sign and without spaces, except between two digits or two letters."""
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"\s+(?![A-Za-z\d])|(?<![A-Za-z\d])\s+", "", text)
    return re.sub(r"(?<=\d)\s+(?=[A-Za-z])|(?<=[A-Za-z])\s+(?=\d)", "", text)


def _same_wording(left: str, right: str) -> bool:
    """Whether two texts are the same but for capitals and for what marks words as text."""
    if "\\text" not in left and "\\text" not in right:
        return False
    return _MARKED.sub(r"\1", left).strip().casefold() == _MARKED.sub(r"\1", right).strip().casefold()


def _key(reading: Reading) -> Hashable:
    if reading.number is not None:
        value, unit = reading.number.value, reading.number.unit
        return value if unit in _SIGN_UNITS or not unit else in_smallest(reading.number)
    if reading.words is not None:
        return _folded(reading.words)
    if reading.letter is not None:
        return reading.letter.casefold()
    if reading.names is not None:
        listed, ordered = reading.names
        return listed if ordered else tuple(sorted(listed))
    if reading.time is not None:
        return "time", reading.time.seconds
    special = reading.ratio or reading.date or reading.congruence or reading.based
    if special is not None:
        return type(special).__name__, special
    if reading.items:
        return "list", tuple(sorted(str(_key(item)) for item in reading.items))
    return reading.text.replace(" ", "")
