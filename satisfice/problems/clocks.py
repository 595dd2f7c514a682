"""Times of day, days of the year, and ratios, which share a colon with times: 1:20 is not 2:40, but 1:2 is 2:4.

Two digits from 00 to 59 after an hour from 0 to 24 make a time, also where the problem meant a ratio: a ratio is then
right only as it is written. "10:30" without a.m. or p.m. is read as on a clock of 24 hours, unless it is the gold
answer: then either half of the day is right.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?)?\s*"
    r"(?P<half>[ap]\.?\s?m\b\.?|noon\b|midnight\b|o'clock\b|h\b)?",
    re.IGNORECASE,
)
_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*)\}")
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*(?::|to)\s*\d+(?:\.\d+)?)+")
_NAMED_TIMES = {"noon": 43200, "midday": 43200, "midnight": 0}
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_MONTH_NAME = re.compile("|".join(_MONTHS), re.IGNORECASE)
_DAY = r"(?:the\s+)?(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?"
_DATES = (
    re.compile(rf"{_WEEKDAY}{_MONTH}\s+{_DAY}(?:(?:\s*,\s*|\s+)(?P<year>\d{{4}}))?", re.IGNORECASE),
    re.compile(rf"{_WEEKDAY}{_DAY}\s+(?:of\s+)?{_MONTH}(?:(?:\s*,\s*|\s+)(?P<year>\d{{4}}))?", re.IGNORECASE),
)


@dataclass(frozen=True)
class Time:
    """A time of day: seconds since midnight, or since midnight or noon where `half` of the day is not said."""

    seconds: int
    half: str


def time_of_day(text: str) -> Time | None:
    """The time that the whole of `text` is, None where it is anything else."""
    if ":" not in text and not re.search("m|noon", text, re.IGNORECASE):
        return None
    plain = " ".join(_TEXT.sub(r" \1 ", text).split())
    if (named := _NAMED_TIMES.get(plain.lower())) is not None:
        return Time(named, "p" if named else "a")
    match = _TIME.fullmatch(plain)
    if match is None or not (match["minute"] or (match["half"] or "").lower()[:1] in ("a", "p")):
        return None
    half = (match["half"] or "").lower()[:1]
    half = half if half in ("a", "p") else ""
    hour = int(match["hour"])
    if hour > (12 if half else 24):
        return None
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    return Time(hour * 3600 + int(match["minute"] or 0) * 60 + int(match["second"] or 0), half)


def same_time(given: Time, gold: Time) -> bool:
    """Whether two times are the same; a gold time that does not name its half of the day stands for both."""
    if not gold.half and given.half:
        return given.seconds % 43200 == gold.seconds % 43200 if gold.seconds < 46800 else given.seconds == gold.seconds
    return given.seconds == gold.seconds


def date(text: str) -> tuple[int, int, int] | None:
    """The month, the day and the year, 0 where it is not said, of a day such as July 4; None for anything else."""
    if len(text) > 60 or not _MONTH_NAME.search(text) or not any(map(str.isdigit, text)):
        return None
    plain = " ".join(_TEXT.sub(r" \1 ", text).split())
    match = _DATES[0].fullmatch(plain) or _DATES[1].fullmatch(plain)
    return match and (_MONTHS.index(match["month"][:3].lower()) + 1, int(match["day"]), int(match["year"] or 0))


def ratio(text: str) -> tuple[Fraction, ...] | None:
    """The parts of a ratio such as 3:4, divided by the first that is not zero; None where `text` is anything else."""
    if len(text) > 100:
        return None
    if "to" in text:
        text = _TEXT.sub(r"\1", text)
    if not _RATIO.fullmatch(text):
        return None
    parts = [Fraction(part.strip()) for part in text.replace("to", ":").split(":")]
    first = next((part for part in parts if part), None)
    return None if first is None else tuple(part / first for part in parts)
