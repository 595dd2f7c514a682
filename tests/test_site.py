"""The site: its reference names what there is and what the docs use. `make docs` builds it and checks its links."""

import ast
import importlib.util
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REFERENCE = {
    module: page
    for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
    for module in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("module", REFERENCE)
def test_what_the_reference_names_exists(module):
    path = ROOT.joinpath(*module.split("."))
    assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


BUILT_IN = re.compile(r"satisfice\.(intervention\.methods|reinforcement\.objectives|supervision\.methods)\.")
"""One class a file, which has a page of its own."""
WITHIN = {"satisfice.cli", "satisfice.lab.arithmetic"}
"""What pages use to show how satisfice itself is made."""


def used_in(text):
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("satisfice"):
                yield node.module


def test_what_the_docs_import_is_in_the_reference():
    known = {*REFERENCE, *WITHIN, "satisfice.engines", "satisfice.problems"}  # these two export what their modules have
    used = {}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        used |= dict.fromkeys(used_in(page.read_text()), page.name)
    assert len(used) > 15
    missing = {module: page for module, page in used.items() if module not in known and not BUILT_IN.match(module)}
    assert not missing


@pytest.mark.skipif(importlib.util.find_spec("griffe") is None, reason="needs the docs extra")
def test_names_that_share_a_description_get_it_each():
    spec = importlib.util.spec_from_file_location("site_docstrings", ROOT / "docs" / "site_docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "Title.\n\nArgs:\n    low, high: its ends,\n        both.\n    n: how many.\n\nRaises:\n    A, B: never."
    assert module.one_by_one(text) == (
        "Title.\n\nArgs:\n    low: its ends,\n        both.\n    high: its ends,\n        both.\n    n: how many.\n\n"
        "Raises:\n    A, B: never."
    )


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the docs extra")
def test_links_to_files_of_the_clone_lead_to_pages_of_the_site():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = (
        "[a](../../recipes/lab/tldr.yaml) [b](../choosing.md#serve) [c](../objectives/) [d](none.md) [e](https://x.y)"
    )
    assert hooks.with_links(text, ROOT / "docs" / "methods", "methods/deer.md") == (
        "[a](../source/recipes/lab/tldr.yaml.md) [b](../choosing.md#serve) [c](../objectives/README.md) [d](none.md) "
        "[e](https://x.y)"
    )
    assert "<math" in hooks.in_mathml("a &lt; b", block=True)
    assert '<mrow class="bar"><mi>C</mi></mrow>' in hooks.in_mathml(r"C - \bar C", block=False)
    assert hooks.expanded({"Results": "results/"})["Results"][0] == "results/calibration.md"
