"""How docstrings are read for the site; mkdocs.yml names this file as an extension of griffe."""

import re
from typing import Any

from griffe import Extension, Object

SECTION = re.compile(r"^( *)(Args|Attributes):\n((?:\1 +\S.*\n?|\n(?=\1 +\S))+)", re.MULTILINE)
GROUP = re.compile(r"^( +)([\w*]+(?:, [\w*]+)+):( .*\n?(?:\1 +\S.*\n?)*)", re.MULTILINE)


def one_by_one(text: str) -> str:
    """A docstring in which `low, high: its ends.` stands for each of them, as griffe asks for."""

    def repeated(group: re.Match[str]) -> str:
        last = "" if group[3].endswith("\n") else "\n"
        return "".join(f"{group[1]}{name}:{group[3]}{last}" for name in group[2].split(", "))

    return SECTION.sub(lambda found: f"{found[1]}{found[2]}:\n{GROUP.sub(repeated, found[3])}", text)


class OneByOne(Extension):
    """Names that share a description get it each."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = one_by_one(obj.docstring.value)
