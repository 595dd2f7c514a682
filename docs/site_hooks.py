"""What the site needs beside MkDocs' own; mkdocs.yml names this file as a hook.

A folder in the navigation stands for its pages. Links lead to files of the clone, so that they work where the docs are
read in it: each such file becomes a page of the site. Formulas become MathML, which browsers draw without a script.
"""

import os
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)#\s]+)((?:#[^)\s]*)?)(?=\))")
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
BAR = re.compile(r'<mover>((?:(?!<mover>).)*?)<mo stretchy="true">&#x000AF;</mo></mover>')
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml"}


def on_config(config: Any) -> Any:
    config.nav = [expanded(entry) for entry in config.nav]
    return config


def expanded(entry: Any) -> Any:
    """An entry of the navigation, a folder replaced by its pages."""
    if isinstance(entry, str):
        return pages_in(entry) if entry.endswith("/") else entry
    ((title, inside),) = entry.items()
    return {title: [expanded(each) for each in inside] if isinstance(inside, list) else expanded(inside)}


def pages_in(folder: str) -> list[str]:
    pages = sorted((DOCS / folder).glob("*.md"), key=lambda page: (page.stem != "README", page.stem))
    return [page.relative_to(DOCS).as_posix() for page in pages]


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """The text with what stands outside of fenced blocks changed."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def place(target: Path) -> str:
    """Where a file or folder of the clone is in the site, as a source file of MkDocs."""
    if target.is_relative_to(DOCS):
        return (target / "README.md" if target.is_dir() else target).relative_to(DOCS).as_posix()
    name = target.relative_to(ROOT).as_posix()
    return f"source/{name}" if name.endswith(".md") else f"source/{name}.md"


def linked(text: str, folder: Path) -> Iterator[Path]:
    """The files of the clone that a page in that folder links to."""
    for target, _ in LINK.findall(FENCE.sub("", text)):
        found = (folder / target).resolve()
        if found.exists() and found.is_relative_to(ROOT):
            yield found


def with_links(text: str, folder: Path, page: str) -> str:
    """The text with its links as they lead from that page of the site; a broken one stays, for MkDocs to refuse."""

    def led(link: re.Match[str]) -> str:
        found = (folder / link[1]).resolve()
        if not found.exists() or not found.is_relative_to(ROOT):
            return link[0]
        return os.path.relpath(place(found), Path(page).parent) + link[2]

    return outside_fences(text, lambda prose: LINK.sub(led, prose))


def source_page(target: Path) -> str:
    """The page that shows a file of the clone, or the files of a folder."""
    name = target.relative_to(ROOT).as_posix()
    if target.suffix == ".md":
        return with_links(target.read_text(), target.parent, place(target))
    files = sorted(target.glob("*.*")) if target.is_dir() else [target]
    shown = []
    for file in files:
        heading = f"## {file.name}\n\n" if target.is_dir() else ""
        shown.append(f"{heading}````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text().rstrip()}\n````\n")
    return f"# {name}\n\n" + "\n".join(shown)


def on_files(files: Files, config: Any) -> Files:
    pages = [Path(file.abs_src_path) for file in files if file.src_uri.endswith(".md")]
    waiting, done = pages, set()
    while waiting:
        page = waiting.pop()
        for target in linked(page.read_text(), page.parent):
            if target.is_relative_to(DOCS) or target in done:
                continue
            done.add(target)
            files.append(File.generated(config, place(target), content=source_page(target)))
            if target.suffix == ".md":
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    if page.file.generated_by:
        return markdown
    return with_links(markdown, Path(page.file.abs_src_path).parent, page.file.src_uri)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    # In the code of a table a bar is escaped, which GitHub takes back and this parser does not.
    html = TABLE.sub(lambda table: table[0].replace("\\|", "|"), html)
    return FORMULA.sub(lambda found: in_mathml(found[3], block=found[2] == "["), html)


def in_mathml(latex: str, block: bool) -> str:
    drawn = convert(unescape(latex), display="block" if block else "inline")
    # Without a font for mathematics browsers leave the bar out, and a mean would look like what it is the mean of.
    return BAR.sub(r'<mrow class="bar">\1</mrow>', drawn)
