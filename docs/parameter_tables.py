"""Writes what the registries know into the tables of the docs: `make tables`.

A table of parameters has a header that ends with `default | allowed | meaning`. Names and meanings are written by hand;
the columns between are the code's. A parameter whose default is none may say by hand what none comes to.

A list of all methods, objectives or curations, in the README of their folder, is the code's as a whole: one row a name,
with a link to its page. A page is of the names in its title.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from satisfice.intervention import METHODS, describe
from satisfice.parameters import in_words
from satisfice.reinforcement import OBJECTIVES, describe_objective
from satisfice.supervision import CURATIONS, describe_curation

PAGES = Path(__file__).parent
HEADER = re.compile(r"\| *(?:(method) *\|)? *(name|parameter|`[\w@-]+`) *\| *default *\| *allowed *\| *meaning *\|")
LIST = "| {} | paper | what it does | it needs |"
KINDS: Mapping[str, tuple[str, Mapping[str, Any], Callable[[Any], Mapping[str, Any]]]] = {
    "methods": ("method", METHODS, describe),
    "objectives": ("objective", OBJECTIVES, describe_objective),
    "supervision": ("curation", CURATIONS, describe_curation),
}
"""What each folder of pages is about: the word for it, its registry, and what describes one."""
ARXIV = re.compile(r"(\d{4}\.\d{4,5}) *(?:\((.*)\))?")
CELL = re.compile(r"(?<!\\)\|")

Parameters = Mapping[str, Mapping[str, Any]]


def documented(page: Path, header: re.Match[str]) -> Parameters:
    """The parameters that a table describes, by name.

    Its header names a method; otherwise it is the one that the page is named after, with its variants.
    """
    if page.parent.name != "methods":
        _, registry, described = KINDS[page.parent.name]
        return by_name(described(registry[page.stem]))
    named = header[2].strip("`") if header[2][0] == "`" else page.stem
    variants = [] if header[2][0] == "`" else [f"{page.stem}-pro"]
    found: dict[str, Mapping[str, Any]] = {}
    for name in reversed([named, *variants]):
        found |= by_name(describe(METHODS[name])) if name in METHODS else {}
    return found


def by_name(described: Mapping[str, Any]) -> Parameters:
    return {parameter["name"]: parameter for parameter in described["parameters"]}


def default_of(parameter: Mapping[str, Any], written: str) -> str:
    value = parameter["default"]
    if value is None:
        return written or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.12g}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    spelled = value.replace("\n", "\\n").replace("|", "\\|")
    return f"`{spelled}`" if value else "empty"


def allowed_in(parameter: Mapping[str, Any]) -> str:
    bounded = parameter["bounds"]
    if "enum" in bounded:
        return in_words({"enum": [f"`{choice}`" for choice in bounded["enum"]]})
    if parameter["type"] == "bool":
        return "true or false"
    whole = "a whole number, " if parameter["type"].startswith("int") and "items" not in bounded else ""
    words = in_words(bounded)
    if bounded.get("pattern") == r"\S":
        return "not blank"
    if "pattern" in bounded:
        return "with `{budget}`"
    return f"{whole}{words}" if words else "any text" if parameter["type"].startswith("str") else ""


def with_tables(page: Path, text: str) -> str:
    """The text of a page with the code's columns in its tables.

    Raises:
        ValueError: a table has a parameter that there is not, or leaves one out.
    """
    lines, written, number = text.split("\n"), [], 0
    while number < len(lines):
        written.append(lines[number])
        header = HEADER.fullmatch(lines[number])
        number += 1
        if not header:
            continue
        written.append(lines[number])
        number += 1
        seen: set[str] = set()
        method = ""
        while number < len(lines) and lines[number].startswith("|"):
            cells = [cell.strip() for cell in CELL.split(lines[number])[1:-1]]
            first = [cells.pop(0)] if header[1] else []
            parameters = by_name(describe(METHODS[method := first[0]])) if first else documented(page, header)
            name, default, _, meaning = cells
            if name.strip("`") not in parameters:
                raise ValueError(f"{page}: {method or page.stem} has no parameter {name}")
            parameter = parameters[name.strip("`")]
            seen.add(parameter["name"])
            columns = [*first, name, default_of(parameter, default), allowed_in(parameter), meaning]
            written.append(f"| {' | '.join(columns)} |")
            number += 1
        if missing := parameters.keys() - seen:
            raise ValueError(f"{page}: its table leaves out {', '.join(sorted(missing))}")
    return "\n".join(written)


def page_of(name: str, room: str) -> str:
    """The page whose title names it, as a link from a page of that folder.

    Raises:
        ValueError: no page does.
    """
    # `tldr` is a method for models that its objective has trained: one page has both.
    for folder in (room, *KINDS):
        for page in sorted((PAGES / folder).glob("*.md")):
            if name in re.split(r", | and ", page.read_text().partition("\n")[0].removeprefix("# ")):
                return page.name if folder == room else f"../{folder}/{page.name}"
    raise ValueError(f"no page in docs/{room} has {name} in its title: write one")


def in_cell(text: str) -> str:
    return text.replace("|", "\\|")


def papers(text: str) -> str:
    """Papers as links, by the short names that are known for them."""
    return in_cell(ARXIV.sub(lambda found: f"[{found[2] or found[1]}](https://arxiv.org/abs/{found[1]})", text))


def with_list(page: Path, text: str) -> str:
    """The text of the README of a folder, its list written anew.

    Raises:
        ValueError: it has no list.
    """
    word, registry, described = KINDS[page.parent.name]
    before, header, after = text.partition(LIST.format(word))
    if not header:
        raise ValueError(f"{page}: there is no table with the header {LIST.format(word)!r}")
    rows = [header, "|---|---|---|---|"]
    for name, kind in registry.items():
        about = described(kind)
        cells = [papers(about["paper"]), in_cell(about["summary"]), ", ".join(about["needs"])]
        rows.append(f"| [`{name}`]({page_of(name, page.parent.name)}) | {' | '.join(cells)} |")
    rest = after.removeprefix("\n").split("\n")
    while rest and rest[0].startswith("|"):
        rest.pop(0)
    return "\n".join([before + rows[0], *rows[1:], *rest])


def as_the_code_has_it(page: Path, text: str) -> str:
    """The text of a page with everything in it that is the code's.

    Raises:
        ValueError: a table does not fit what there is.
    """
    return with_list(page, text) if page.stem == "README" else with_tables(page, text)


def pages() -> list[Path]:
    """The pages of methods, objectives and curations."""
    return sorted(page for room in KINDS for page in (PAGES / room).glob("*.md"))


if __name__ == "__main__":
    for each in pages():
        each.write_text(as_the_code_has_it(each, each.read_text()))
