"""The tables of parameters in the docs have the defaults and bounds of the code, and no parameter is left out."""

import importlib.util
import re
from pathlib import Path

import pytest

from satisfice.intervention import METHODS
from satisfice.parameters import parameter_types
from satisfice.reinforcement import OBJECTIVES
from satisfice.supervision import CURATIONS

DOCS = Path(__file__).parents[1] / "docs"
spec = importlib.util.spec_from_file_location("parameter_tables", DOCS / "parameter_tables.py")
assert spec
assert spec.loader
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)

LASER = """# LASER

| name | default | allowed | meaning |
|---|---|---|---|
| `target` | 1 | anything | tokens |
| `bonus` | 0.5 |  | where \\| is a bar |

| other | table |
|---|---|
"""


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_tables_are_what_the_code_says(page: Path) -> None:
    text = page.read_text()
    assert tables.as_the_code_has_it(page, text) == text, "make tables writes them"
    assert not re.search(r"\| *default *\| *meaning *\|", text), "a table of parameters says what is allowed"


def test_lists_have_every_name_with_the_page_that_is_about_it() -> None:
    for room, (_, registry, _) in tables.KINDS.items():
        text = (DOCS / room / "README.md").read_text()
        listed = re.findall(r"^\| \[`([^`]+)`\]\(([^)]+)\) \|", text, re.MULTILINE)
        assert [name for name, _ in listed] == list(registry)
        for name, link in listed:
            assert name in (DOCS / room / link).read_text().partition("\n")[0], link


def test_a_list_is_written_anew_and_what_is_around_it_is_kept() -> None:
    header = tables.LIST.format("objective")
    page = DOCS / "objectives" / "README.md"
    written = tables.with_list(page, f"before\n\n{header}\n|---|\n| gone | | | |\n\nafter\n")
    assert written.startswith(f"before\n\n{header}\n|---|---|---|---|\n| [`aalc`](aalc.md) | [AALC](https://arxiv.org/")
    assert written.endswith(" |\n\nafter\n")
    assert "gone" not in written
    with pytest.raises(ValueError, match="there is no table with the header"):
        tables.with_list(page, "no list\n")
    with pytest.raises(ValueError, match="no page in docs/methods has thinker in its title"):
        tables.page_of("thinker", "methods")


def test_everything_with_parameters_has_a_table() -> None:
    documented = {page for page in tables.pages() if "| default | allowed | meaning |" in page.read_text()}
    with_parameters = {name for name, kind in OBJECTIVES.items() if parameter_types(kind)}
    assert {page.stem for page in documented if page.parent.name == "objectives"} == with_parameters
    curations = {name for name, kind in CURATIONS.items() if parameter_types(kind)}
    assert {page.stem for page in documented if page.parent.name == "supervision"} == curations
    elsewhere = {
        "deer-pro": "deer",
        "fractured-stop": "fractured",
        "no-thinking": "plain-and-no-thinking",
        "short-m@k": "short-m-at-k",
        "tldr": None,
    }
    for name, kind in METHODS.items():
        if parameter_types(kind) and elsewhere.get(name, name):
            assert DOCS / "methods" / f"{elsewhere.get(name, name)}.md" in documented, name


def test_defaults_and_bounds_are_written_and_meanings_kept() -> None:
    written = tables.with_tables(DOCS / "objectives" / "laser.md", LASER)
    assert "| `target` | 8192 | a whole number, at least 1 | tokens |" in written
    assert "| `bonus` | 0.5 | above 0 | where \\| is a bar |" in written
    assert written.endswith("| other | table |\n|---|---|\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("`bonus`", "`bonsu`", "has no parameter `bonsu`"),
        ("| `bonus` | 0.5 |  | where \\| is a bar |\n", "", "leaves out bonus"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tables.with_tables(DOCS / "objectives" / "laser.md", LASER.replace(old, new))
