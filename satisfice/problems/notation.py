r"""What the algebra would misread is written in another way before it sees it.

math-verify drops what it takes for a unit at the end of a text, also where that is a factor: it reads `2\pi rh` as
`2\pi r` and `4t` as 4. It takes degrees for radians, and knows neither that `x = 1, y = 2` is the pair `(1, 2)` nor
that `x < 2` is the interval `(-\infty, 2)`. Text is expected in the spelling of `satisfice.problems.spelling`.
"""

import re

from satisfice.problems.quantities import is_unit
from satisfice.problems.spelling import LONGEST

_LAST_LETTERS = re.compile(r"(?<![A-Za-z\\])([A-Za-z]+)$")
_LAST_UNIT = re.compile(r"\s+(?:(?:square|sq|cubic|cu)\.?\s+)?([A-Za-z]{2,})\s*\^\s*\{?[23]\}?$")
_LONE_LETTERS = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\s+(?=[A-Za-z](?![A-Za-z]))")
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_TRIGONOMETRIC = re.compile(
    r"\\(sin|cos|tan|cot|sec|csc)\s*(?:\(\s*(\d+(?:\.\d+)?)\s*\^\\circ\s*\)|\{\s*(\d+(?:\.\d+)?)\s*\^\\circ\s*\}|"
    r"(\d+(?:\.\d+)?)\s*\^\\circ)"
)
_EXPONENT = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?![\d.])")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z](?:_\{?\w+\}?)?)\s*=\s*([^=<>]+)")
_TUPLE = re.compile(r"\((.+)\)")
_FRENCH = re.compile(r"\](?=[^\[\]]*,[^\[\]]*[\[\]])([^\[\]]*,[^\[\]]*)([\[\]])|\[([^\[\]()]*,[^\[\]()]*)\[")
_OR = re.compile(r"\s*,?\s*(?:\\text\{\s*,?\s*or\s*\}|\bor\b|\\cup|\\lor)\s*")
_SIGN = r"(<|>|\\leq|\\geq)"
_ONE_SIDED = re.compile(r"\s*(?P<letter>[a-z])\s*(?P<sign><|>|\\leq|\\geq)\s*(?P<bound>[^<>=]+)")
_TURNED = re.compile(r"\s*(?P<bound>[^<>=]+?)\s*(?P<sign><|>|\\leq|\\geq)\s*(?P<letter>[a-z])\s*")
_MIRRORED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
_TWO_SIDED = re.compile(rf"\s*([^<>=]+?)\s*{_SIGN}\s*([a-z])\s*{_SIGN}\s*([^<>=]+)")
_INTERVAL = re.compile(r"(?:[a-z]\s*\\in\s*)?[(\[].*,.*[)\]]")


def for_algebra(given: str, gold: str) -> tuple[str, str]:
    """Both answers as the algebra reads them right; each is written in the way of the other one where both can be."""
    given, gold = (_FRENCH.sub(_english, text) if "]" in text or "[" in text else text for text in (given, gold))
    if max(len(given), len(gold)) > LONGEST:
        return given, gold
    given, gold = (_EXPONENT.sub(r"\1\\cdot 10^{\2}", text) for text in (given, gold))
    given, gold = as_tuple(given, gold), as_tuple(gold, given)
    given, gold = _as_interval(given, gold), _as_interval(gold, given)
    letters = (set(_LETTER.findall(given)), set(_LETTER.findall(gold)))
    return _shielded(_radians(given), letters[1]), _shielded(_radians(gold), letters[0])


def as_tuple(text: str, other: str) -> str:
    """`x = 1, y = 2` as `(1, 2)` where `other` is such a tuple; else `text`."""
    if "=" not in text or "," not in other or not _TUPLE.fullmatch(other.strip().rpartition("=")[2].strip()):
        return text
    parts = re.split(r"\s*(?:,|;|\\text\{\s*,?\s*and\s*\}|\band\b)\s*", text)
    found = [_ASSIGNMENT.fullmatch(part) for part in parts]
    values = {match[1]: match[2].strip() for match in found if match}
    if len(values) < max(2, len(parts)):
        return text
    return f"({', '.join(values[name] for name in sorted(values))})"


def _as_interval(text: str, other: str) -> str:
    r"""`x < 1 or x \geq 2` as a union of intervals where `other` is made of intervals; else `text`."""
    if not re.search(_SIGN, text) or not _INTERVAL.fullmatch(other.strip()):
        return text
    parts, letters = [], set()
    for part in _OR.split(text):
        if match := _ONE_SIDED.fullmatch(part) or _TURNED.fullmatch(part):
            letter, sign, bound = match["letter"], match["sign"], match["bound"]
            if match.re is _TURNED:
                sign = _MIRRORED[sign]
            closed = sign.startswith("\\")
            if sign in (">", r"\geq"):
                parts.append(f"{'[' if closed else '('}{bound},\\infty)")
            else:
                parts.append(f"(-\\infty,{bound}{']' if closed else ')'}")
        elif (match := _TWO_SIDED.fullmatch(part)) and (match[2] in (">", r"\geq")) == (match[4] in (">", r"\geq")):
            low, first, letter, second, high = match.groups()
            if first in (">", r"\geq"):
                low, first, second, high = high, second, first, low
            opening, closing = "[" if first.startswith("\\") else "(", "]" if second.startswith("\\") else ")"
            parts.append(f"{opening}{low},{high}{closing}")
        else:
            return text
        letters.add(letter)
    return r" \cup ".join(parts) if len(letters) == 1 else text


def _english(match: re.Match[str]) -> str:
    """An interval with its brackets turned outwards, ]1,2[, as (1,2)."""
    if match[3] is not None:
        return f"[{match[3]})"
    return f"({match[1]}{')' if match[2] == '[' else ']'}"


def _radians(text: str) -> str:
    def turned(match: re.Match[str]) -> str:
        angle = next(part for part in match.groups()[1:] if part)
        return rf"\{match[1]}(\frac{{{angle}\pi}}{{180}})"

    return _TRIGONOMETRIC.sub(turned, text) if "circ" in text else text


def _shielded(text: str, others: set[str]) -> str:
    """`text` whose last letters stand in braces where they are factors, which keeps them from being dropped."""
    if "\\text" not in text:
        text = _LONE_LETTERS.sub(r"\1", text)
    if (unit := _LAST_UNIT.search(text)) and is_unit(unit[1], True) and not set(unit[1]) & others:
        text = text[: unit.start()]
    match = _LAST_LETTERS.search(text)
    if match is None or match[0] == text:
        return text
    letters = match[1]
    apart = text[match.start() - 1 : match.start()].isspace()
    if is_unit(letters, apart) and not set(letters) & others:
        return text
    return text[: match.start()] + "".join(f"{{{letter}}}" for letter in letters)
