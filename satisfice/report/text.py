"""Making text from models safe to look at."""

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, but for tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what changes the direction of the text after it
    "\u2028\u2029\ufeff"
    "\ud800-\udfff]"  # halves of characters
)


def visible(text: str) -> str:
    """The text with everything that acts without being seen written out.

    Control characters become their pictures (NUL is ␀), directional controls, separators and lone surrogates their
    code points (⟨U+202E⟩). Without this a response could reorder the text around it, or be no valid text at all.
    """
    return _HIDDEN.sub(_written_out, text.replace("\r\n", "\n"))


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
