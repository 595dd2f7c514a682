r"""Congruences such as `x \equiv 3 \pmod{7}`: the same if they leave the same residues of the same modulus."""

import re

_MODULUS = re.compile(
    r"\s*,?\s*\(?\s*\\?(?:pmod|bmod|mod|text\{\s*mod\s*\}|mathrm\{\s*mod\s*\})\s*\{?\s*(\d+)\s*\}?\s*\)?\s*"
)
_RESIDUE = re.compile(r"(\\pm\s*|-)?(\d+)")
_RESIDUES = re.compile(r"(?:\\pm\s*|-)?\d+(?:\s*(?:,|;|or|and|\\text\{\s*(?:or|and)\s*\})\s*(?:\\pm\s*|-)?\d+)*")

_JOINED = re.compile(r"\s*,?\s*(?:\\text\{\s*or\s*\}|\bor\b)\s*|\s*,\s*(?=[^,]*\\equiv)")

Congruence = tuple[str, int, frozenset[int]]
"""What stands before the sign, without spaces; the modulus; the residues, each from 0 to below the modulus."""


def congruence(text: str) -> Congruence | None:
    """The congruence that the whole of `text` is, None where it is anything else or its numbers are not whole."""
    if "mod" not in text or len(text) > 500:
        return None
    several = [congruence(part) for part in _JOINED.split(text)] if text.count("mod") > 1 else []
    if several:
        # "n = 1 (mod 5) or n = 4 (mod 5)": one statement of two residues, where all else is the same.
        known = [part for part in several if part is not None]
        if len(known) < len(several) or len({part[:2] for part in known}) > 1:
            return None
        return known[0][0], known[0][1], frozenset().union(*(part[2] for part in known))
    modulus = None
    for match in _MODULUS.finditer(text):
        modulus = match
    if modulus is None or modulus.end() != len(text):
        return None
    before = text[: modulus.start()]
    left, _, right = before.rpartition(r"\equiv" if r"\equiv" in before else "=")
    n = int(modulus[1])
    if not _RESIDUES.fullmatch(right.strip()) or n == 0:
        return None
    residues = set()
    for sign, digits in _RESIDUE.findall(right):
        residues |= {value % n for value in ((int(digits), -int(digits)) if "pm" in sign else (int(sign + digits),))}
    return re.sub(r"\s", "", left), n, frozenset(residues)


def same_congruence(given: Congruence, gold: Congruence) -> bool:
    """Whether two congruences say the same; one of them may leave out of what it says it."""
    return given[1:] == gold[1:] and (given[0] == gold[0] or not given[0] or not gold[0])


def is_congruence(text: str) -> bool:
    r"""Whether `text` states a congruence of any kind: the algebra reads `\equiv` as nothing and must not see it."""
    return "\\equiv" in text or re.search(r"\\[pb]?mod(?![A-Za-z])", text) is not None
