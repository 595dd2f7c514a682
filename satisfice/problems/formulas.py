r"""Finding formulas in prose: `$...$`, `$$...$$`, `\(...\)`, `\[...\]` and environments such as align.

A dollar sign may also be money. What stands between two of them is taken for a formula unless it reads like prose
("$5 and she has $") or reaches over a line break; then the second one may open the next formula. Every function takes
time linear in the length of the text.
"""

import re
from dataclasses import dataclass

_OPENING = re.compile(
    r"\$\$|(?<!\\)\$|(?<!\\)\\\(|(?<!\\)\\\[|\\begin\{(align|equation|gather|eqnarray|multline)(\*?)\}"
)
_CLOSINGS = {"$$": "$$", "\\(": "\\)", "\\[": "\\]"}
_ROWS = re.compile(r"\\begin\{(aligned|align\*?|split|gathered|alignedat)\}(?:\{\d+\})?(.*)\\end\{\1\}", re.DOTALL)
_DOLLAR = re.compile(r"(?<!\\)\$")
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,} +[A-Za-z]{3,}(?![A-Za-z]*\{)|[.!?] +[A-Z][a-z]|[.,] *$")
_ARGUMENT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|operatorname)\s*\{[^{}]*\}")
_JOINT = re.compile(
    r"(?:\s|\\(?:quad|qquad|,|;|:|!)|~)*"
    r"(?:[,;]?(?:\s|\\quad)*(?:and|or|und|et|y|e|ou|oder|和|或|&|\\text\s*\{[\s,]*(?:and|or)[\s,]*\})|[,;])"
    r"(?:\s|\\(?:quad|qquad|,|;|:|!)|~)*"
)


@dataclass(frozen=True)
class Formula:
    """A formula in a text: what stands between its delimiters, and where it begins and ends, these included."""

    text: str
    start: int
    end: int


def formulas(text: str) -> list[Formula]:
    """All formulas of a text, from the first to the last."""
    found, place = [], 0
    unclosed: set[str] = set()  # looking for the same mark again and again would take time squared
    while opening := _OPENING.search(text, place):
        start, inside = opening.span()
        if opening[0] == "$":
            closing = _DOLLAR.search(text, inside)
            if closing is None:
                break
            content = text[inside : closing.start()]
            if not _is_formula(content, text[closing.end() : closing.end() + 1]):
                # Money, or a dollar too many: the second dollar may open a formula.
                place = closing.start()
                if content.strip() and content.lstrip(" ")[:1] == "\n":
                    place = closing.end()
                continue
            end = closing.end()
        else:
            mark = rf"\end{{{opening[1]}{opening[2]}}}" if opening[1] else _CLOSINGS[opening[0]]
            stop = -1 if mark in unclosed else text.find(mark, inside)
            if stop < 0:
                unclosed.add(mark)
                place = inside
                continue
            content, end = text[inside:stop], stop + len(mark)
            if opening[1]:
                content = _last_row(content)
            elif rows := _ROWS.fullmatch(content.strip()):
                content = _last_row(rows[2])
        if content.strip():
            found.append(Formula(content.strip(), start, end))
        place = end
    return found


def last_group(text: str, found: list[Formula]) -> list[Formula]:
    """The last formula with those before it that "and" or a comma joins to it: "$k = 45$ and $n = 2$"."""
    group = found[-1:]
    for formula in reversed(found[:-1]):
        between = text[formula.end : group[0].start]
        if len(between) > 30 or not _JOINT.fullmatch(between):
            break
        group.insert(0, formula)
    return group


def joined(parts: list[str]) -> str:
    """Several answers as one list; an answer that was only repeated is one."""
    return ", ".join(dict.fromkeys(part.strip().rstrip(".,;") for part in parts))


def broken_dollars(text: str) -> str:
    r"""`text` without what two dollar signs enclose on lines of their own, which is neither formula nor money."""
    return re.sub(r"(?<![\\$])\$[ \t]*\n[^$\n]{0,200}\n[ \t]*\$(?!\$)", " ", text)


def _is_formula(content: str, following: str) -> bool:
    if not content.strip() or following.isdigit() or "\n\n" in content or content.lstrip(" ")[:1] == "\n":
        return False
    return not (len(content) > 1 and _PROSE.search(_ARGUMENT.sub(" ", content.rstrip(" .,"))))


def _last_row(content: str) -> str:
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", content) if row.strip()]
    return re.sub(r"(?<!\\)&", " ", rows[-1]) if rows else ""
