r"""Numbers with or without a unit, read exactly: 0.5, 1,000, 5 000, 3\frac{1}{2}, -2/3, 6.02 \times 10^{23}, \$18.

The value is a fraction, so that two spellings of one number are equal and two numbers never are. Text is expected in
the spelling of `satisfice.problems.spelling`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from satisfice.problems.number_words import CONNECTIVES, is_remark, is_word

LARGEST_POWER = 400
"""Powers of ten beyond it are left to the algebra: their digits would fill memory."""

_ROUNDED = 5

PERCENT = "percent"
"""The unit of a percentage."""

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d{1,3}(?:[ ]\d{3})+(?![ ]?\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_CURRENCY = (
    r"US(?=\s\d)|(?:USD?|AUD?|CAD?|NZD?|HKD?|SGD?|[ACRS])?\s?\\?\$|[€£₹¥₩₽₺₪₦₫₱]|Rs\.?|"
    r"(?:USD|EUR|GBP|INR|CHF|JPY|CNY|RMB|CAD|AUD)(?![A-Za-z])"
)
_QUANTITY = re.compile(
    rf"""
    (?:(?:\\text\s*\{{\s*)?(?:about|approximately|approx\.?|roughly|nearly|around|ca\.|exactly|precisely|only|just|
        \\approx|\\sim|~|=)\s*\}}?\s*)?
    (?P<sign>[-+]?)\s*(?P<currency>{_CURRENCY})?\s*(?P<sign_after>[-+]?)\s*
    (?: (?P<whole>\d+)\s*(?:\\frac\{{(?P<above>\d+)\}}\{{(?P<below>\d+)\}}
        | (?<=\d)\ (?P<over>\d+)\s?/\s?(?P<under>\d+)(?![\d.]))
      | \\frac\{{\s*(?P<numerator>[-+]?{_DECIMAL})\s*\}}\{{\s*(?P<denominator>[-+]?{_DECIMAL})\s*\}}
      | (?P<dividend>\d+)\s?/\s?(?P<divisor>\d+)(?![\d.])
      | (?P<start>\d*\.\d*)(?:\\(?:overline|bar|dot)\s*\{{?\s*(?P<overlined>\d+)\s*\}}?|\((?P<cycle>\d+)\))
      | (?P<shown>\d*\.\d+)\s*\\ldots
      | (?P<decimal>{_DECIMAL})
        (?: [eE](?P<exponent>[-+]?\d+) | \s?(?:\\times|\\cdot|\*|x(?=\s?10\s?\^))\s?10\s?\^\s?
          (?:\{{\s?(?P<braced>[-+]?\d+)\s?\}}|(?P<power>[-+]?\d+)) )?
    )
    (?P<rest>.*)
    """,
    re.VERBOSE | re.DOTALL,
)
_MIXED = re.compile(r"(?<![\d.^_{}])(?<![\d.^_{}] )(\d{1,9})\s*\\frac\{(\d{1,9})\}\{(\d{1,9})\}")
_BRACKETED = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*)\}")
_POWER = re.compile(r"\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d)")
_UNIT_TEXT = re.compile(r"[A-Za-z.'\s/€£₹¥₩₽₺₪₦₫₱-]*")
_UNIT_PART = re.compile(r"[A-Za-z%'€£₹¥₩₽₺₪₦₫₱$]+|/|\^\s*(?:\{\s*\d\s*\}|\d)|[^\s.]")
_UNIT_FRACTION = re.compile(r"\\frac\{\s*([^{}]+)\}\{\s*([^{}]+)\}")
_REMARK = re.compile(r"\s+\(\s*([A-Za-z]{3,}(?:\s+[A-Za-z]+)*)\s*\)\s*$")
_TEMPERATURE = re.compile(r"\bdegrees?\s+(C|F|[Cc]elsius|[Ff]ahrenheit)\b")
_EACH = re.compile(r"\s*(?:\\(?:text|mathrm)\s*\{\s*)?(?:per\b|an?\b|/)")
_SCALE = re.compile(r"\s*(hundred|thousand|million|billion|trillion)(?![A-Za-z])", re.IGNORECASE)
_COMPOSITE = re.compile(r"(?:\d+(?:\.\d+)?\s*[A-Za-z]+\.?(?:\s+and\b)?\s*){2,4}")
_COMPOSITE_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_CYCLE = re.compile(r"(\d*?)(\d+?)\2+")
_INDIAN = re.compile(r"[-+]?\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?")
_EUROPEAN = re.compile(r"[-+]?\d{1,3}(?:([. ])\d{3})(?:\1\d{3})*,\d+")

_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNITS = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches ''",
    "foot": "ft foot feet '",
    "yard": "yd yds yard yards",
    "mile": "mi mile miles",
    "g": "g gram grams",
    "mg": "mg milligram milligrams",
    "kg": "kg kgs kilogram kilograms",
    "pound": "lb lbs pound pounds £ gbp",
    "ounce": "oz ounce ounces",
    "second": "s sec secs second seconds",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "dollar": "$ usd dollar dollars buck bucks",
    "euro": "€ eur euro euros",
    "rupee": "₹ rs inr rupee rupees",
    "yen": "¥ jpy yen yuan rmb",
    "cent": "cent cents ¢",
    "franc": "chf franc francs",
    "won": "₩ krw",
    "ruble": "₽ rub ruble rubles rouble roubles",
    "lira": "₺ lira",
    "shekel": "₪ ils shekel shekels",
    "naira": "₦ ngn naira",
    "dong": "₫ vnd",
    "peso": "₱ php peso pesos",
    "degree": "degree degrees deg",
    "celsius": "celsius",
    "fahrenheit": "fahrenheit",
    "radian": "rad rads radian radians",
    "liter": "l liter liters litre litres",
    "ml": "ml milliliter milliliters millilitre millilitres",
    PERCENT: "% percent pct percentage procent",
    "mile/hour": "mph",
    "km/hour": "kmh kph",
}
_MONEY = {"dollar", "euro", "pound", "rupee", "yen", "cent"}
_MULTIPLES = {
    "length": "mm 1 cm 10 m 1000 km 1000000 inch 25.4 foot 304.8 yard 914.4 mile 1609344",
    "mass": "mg 1 g 1000 kg 1000000",
    "weight": "ounce 1 pound 16",
    "time": "second 1 minute 60 hour 3600 day 86400 week 604800",
    "years": "month 1 year 12",
    "money": "cent 1 dollar 100",
    "volume": "ml 1 liter 1000",
}
_MEASURES = {
    unit: (what, Fraction(number))
    for what, row in _MULTIPLES.items()
    for unit, number in zip(row.split()[::2], row.split()[1::2], strict=True)
}
"""Of each unit that is a multiple of another one: what it measures, and how many of the smallest it is."""
_KNOWN = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings.split()}
_DIMENSION = {"square", "sq", "cubic", "cu"}
_LINKS = {"per", "a", "an", "the", "in", "of", "total", "each", "long", "more", "less", "old", "tall", "wide", "apart"}


@dataclass(frozen=True)
class Quantity:
    """A number and its unit.

    Attributes:
        value: exact, without the unit: 25 for 25 %.
        unit: the name that all spellings of a known unit share, with its power ("cm^2", "km/hour"), the words of any
            other, "" where there is none.
        known: whether the unit is one whose spellings are known.
        step: one unit of the last decimal, where there are five or more and the number may be a rounded one; else 0.
    """

    value: Fraction
    unit: str = ""
    known: bool = False
    step: Fraction = Fraction(0)

    @property
    def rounded(self) -> bool:
        """Whether it may stand for another number."""
        return self.step > 0


def quantity(text: str) -> Quantity | None:
    """The number that the whole of `text` is, None where it is anything else."""
    match = _QUANTITY.fullmatch(text) if len(text) <= 200 else None
    if match is None or (match["sign"] and match["sign_after"]):
        return None
    value = _value(match)
    if value is None:
        return None
    if "-" in (match["sign"], match["sign_after"]):
        value = -value
    rest, symbol = match["rest"], ""
    if match["currency"]:
        bare_dollar = "$" in match["currency"] or match["currency"] == "US"
        symbol = "$" if bare_dollar else match["currency"].strip(". ").lower()
        if _EACH.match(rest):  # $5 per hour is 5 dollars per hour
            rest, symbol = f" {_KNOWN[symbol]}{rest}", ""
    unit = _unit(rest)
    if unit is None:
        return _composite(text)
    scale, name, known = unit
    decimals = len(match["decimal"].rpartition(".")[2]) if "." in (match["decimal"] or "") else 0
    power = int(match["exponent"] or match["braced"] or match["power"] or 0)
    step = scale * Fraction(10) ** (power - decimals) if decimals >= _ROUNDED else Fraction(0)
    if symbol:
        if not name or _KNOWN.get(symbol) == name or not known:
            name, known = _KNOWN.get(symbol, ""), symbol in _KNOWN
        elif name != "cent":
            return None
    return Quantity(value * scale, name, known, step)


def _composite(text: str) -> Quantity | None:
    """A quantity in several units of one kind, from the largest: 2 hours 30 minutes is 2.5 hours."""
    plain = " ".join(_BRACKETED.sub(r" \1 ", text).split())
    if not _COMPOSITE.fullmatch(plain):
        return None
    total, last, first = Fraction(0), None, ""
    for number, word in _COMPOSITE_PART.findall(plain):
        name = _KNOWN.get(word.lower(), "")
        measure = _MEASURES.get("minute" if word == "m" and first == "hour" else name)
        if measure is None or (last is not None and (measure[0] != last[0] or measure[1] >= last[1])):
            return None
        total, last, first = total + Fraction(number) * measure[1], measure, first or name
    return Quantity(total / _MEASURES[first][1], first, True)


def terminates(value: Fraction) -> bool:
    """Whether a value can be written as a decimal without end or rounding."""
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below == 1


def equal_quantities(given: Quantity, gold: Quantity) -> bool | None:
    """Whether two numbers are the same, None where one may be the other one rounded.

    Units are compared where both are known: 5 m is not 5 cm, but 500 cm. A percentage is right for the number before
    its sign and for the share that it is: 25 % is right for 25 and for 0.25. Of a fraction without end six decimals
    are enough, cut or rounded.
    """
    if given.known and gold.known and given.unit != gold.unit and not _same_degrees(given.unit, gold.unit):
        if gold.unit.startswith(f"{given.unit}/") and given.unit in _MONEY:
            return given.value == gold.value  # $5 where the question asks for dollars per hour
        (what, many), (wanted, needed) = _measure(given.unit), _measure(gold.unit)
        return what == wanted and given.value * many == gold.value * needed
    if given.value == gold.value:
        return True
    if (given.unit == PERCENT) != (gold.unit == PERCENT) and not (given.known and gold.known):
        shares = [one.value / 100 if one.unit == PERCENT else one.value for one in (given, gold)]
        if shares[0] == shares[1]:
            return True
    for one, exact in ((given, gold), (gold, given)):
        if one.rounded and not terminates(exact.value):
            left = abs(exact.value) - abs(one.value)
            near = 0 <= left < one.step or abs(left) <= one.step / 2
            return near and one.value * exact.value > 0 and one.step <= Fraction(1, 10**6)
    return False


def in_smallest(number: Quantity) -> tuple[Fraction, tuple[tuple[str, int], ...]]:
    """The value in the smallest unit of its kind, and what it measures: the same for 5 m and 500 cm."""
    what, many = _measure(number.unit)
    return number.value * many, what


def _same_degrees(left: str, right: str) -> bool:
    return "degree" in (left, right) and {left, right} <= {"degree", "celsius", "fahrenheit"}


@lru_cache(maxsize=256)
def _measure(unit: str) -> tuple[tuple[tuple[str, int], ...], Fraction]:
    """What a known unit measures, each part with its power, and how many of the smallest such unit it is."""
    parts: dict[str, int] = {}
    many = Fraction(1)
    for place, side in enumerate(unit.split("/")):
        name, _, power = side.partition("^")
        sign = -1 if place else 1
        what, times = _MEASURES.get(name, (name, Fraction(1)))
        parts[what] = parts.get(what, 0) + sign * int(power or 1)
        many *= times ** (sign * int(power or 1))
    return tuple(sorted(parts.items())), many


def mixed_as_fractions(text: str) -> str:
    r"""`text` with each mixed number as one fraction: the algebra would multiply the parts of `2\frac{1}{2}\pi`."""
    return _MIXED.sub(_as_fraction, text)


def _as_fraction(match: re.Match[str]) -> str:
    whole, above, below = (int(part) for part in match.groups())
    return rf"\frac{{{whole * below + above}}}{{{below}}}" if above < below else match[0]


def comma_number(text: str) -> Fraction | None:
    """The value of what looks like a list but may be one number: 2,5 or 1.234,5 or 12,34,567 (two lakhs).

    A comma with a space after it ends an item, and so does one that may divide thousands.
    """
    if _INDIAN.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if _EUROPEAN.fullmatch(text):
        return Fraction(re.sub("[. ]", "", text).replace(",", "."))
    match = re.fullmatch(r"([-+]?)(\d+),(\d+)", text)
    if match is None or (len(match[3]) == 3 and len(match[2]) <= 3 and not match[2].startswith("0")):
        return None
    value = Fraction(f"{match[2]}.{match[3]}")
    if value.denominator == 1:
        return None
    return -value if match[1] == "-" else value


def _value(match: re.Match[str]) -> Fraction | None:
    try:
        if match["whole"]:
            above, below = int(match["above"] or match["over"]), int(match["below"] or match["under"])
            # Of an improper fraction nobody knows whether it is added or multiplied.
            return int(match["whole"]) + Fraction(above, below) if above < below else None
        if match["numerator"]:
            return _decimal(match["numerator"]) / _decimal(match["denominator"])
        if match["dividend"]:
            return Fraction(int(match["dividend"]), int(match["divisor"]))
        if match["start"]:
            return _repeating(match["start"], match["overlined"] or match["cycle"])
        if match["shown"]:
            whole, _, digits = match["shown"].partition(".")
            found = _CYCLE.fullmatch(digits)
            # Of one digit three are asked for: 0.33... is a third by its look, 1.44... may be the square root of 2.
            if not found or len(digits) - len(found[1]) < 3:
                return None
            return _repeating(f"{whole}.{found[1]}", found[2])
        power = int(match["exponent"] or match["braced"] or match["power"] or 0)
        if abs(power) > LARGEST_POWER:
            return None
        return _decimal(match["decimal"]) * Fraction(10) ** power
    except (ValueError, ZeroDivisionError):
        return None


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", ""))


def _repeating(start: str, cycle: str) -> Fraction:
    """The value of a decimal that begins with `start` and goes on with `cycle` forever."""
    decimals = len(start.partition(".")[2])
    tail = Fraction(int(cycle), int("9" * len(cycle) + "0" * decimals))
    return Fraction(f"0{start}0" if start.endswith(".") else f"0{start}") + tail


def _known_unit(rest: str, bare: bool, joined: bool) -> str | None:
    """The name of a unit that `rest` is for certain, such as "cm^2" or "km/hour", None where it is anything else."""
    names: list[str] = []
    power, below = "", False
    for part in _UNIT_PART.findall(rest):
        word = part.lower()
        if part[0] == "^" or word in ("squared", "cubed"):
            if not names or "^" in names[-1]:
                return None
            digit = {"squared": "2", "cubed": "3"}.get(word) or part.strip("^{} ")
            names[-1] += f"^{digit}" if digit != "1" else ""
        elif word in ("/", "per", "a", "an") and names and not below:
            below = True
        elif word in _DIMENSION and not power:
            power = "^2" if word.startswith("sq") else "^3"
        elif name := _KNOWN.get(part if part in ("m", "g", "s", "h") else word):
            if len(names) > below or (power and "/" in name):
                return None
            if not names and len(part) == 1 and part.isalpha() and bare and (joined or part not in "mgshL"):
                return None
            names.append(name + power)
            power = ""
        else:
            return None
    return "/".join(names) if names and not power and len(names) == 1 + below else None


def is_unit(letters: str, apart: bool) -> bool:
    """Whether letters after a formula are a unit: a known one or a word; a single letter only where it stands apart."""
    if len(letters) == 1:
        return apart and letters in "mgshL"
    return letters.lower() in _KNOWN or is_word(letters)


def _unit(rest: str) -> tuple[int, str, bool] | None:
    """Scale, name and whether it is a known one, of the unit that `rest` is; None where `rest` is no unit."""
    bare = not _BRACKETED.search(rest)
    joined = rest[:1].isalpha()  # 18x, not 18 x
    rest = _UNIT_FRACTION.sub(r"\1/\2", rest)
    rest = _BRACKETED.sub(r" \1 ", rest)
    if (remark := _REMARK.search(rest)) and is_remark(remark[1]):
        rest = rest[: remark.start()]
    rest = (
        rest.replace(r"^\circ", " degrees ")
        .replace("\\%", " percent ")
        .replace("%", " percent ")
        .replace("\\$", " dollars ")
    )
    rest = _TEMPERATURE.sub(lambda match: "celsius" if match[1][0] in "Cc" else "fahrenheit", rest)
    scale = 1
    while named := _SCALE.match(rest):
        scale *= _SCALES[named[1].lower()]
        rest = rest[named.end() :]
    if known := _known_unit(rest, bare, joined):
        return scale, known, True
    rest = _POWER.sub(" ", rest) if re.search("[A-Za-z]", rest) else rest
    if not _UNIT_TEXT.fullmatch(rest):
        return None
    words = re.sub(r"[./-]", " ", rest).split()
    if not words:
        return (scale, "", False) if not rest.strip(" .") else None
    words = [word for word in words if word.lower() not in _DIMENSION]
    if len(words) == 2 and words[0].lower() == "per" and words[1].lower().startswith("cent"):
        words = [PERCENT]
    if words == [PERCENT]:
        return scale, PERCENT, True
    if not words:
        return scale, "", False
    if bare and joined:
        return None
    for place, word in enumerate(words):
        if word.lower() in _KNOWN and (len(word) > 1 or not bare or place > 0):
            continue
        if word.lower() in _LINKS and place > 0:
            continue
        if not (is_word(word) or (not bare and len(word) > 1 and word.lower() not in CONNECTIVES)):
            return None
    return (scale, " ".join(words).lower(), False) if len(words) <= 6 else None
