"""How commands are made: each option declared once, help with headings and an example, nothing slow imported."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

import pytest
import typer

from satisfice import cli
from satisfice.cli.command import Command, flat, made, spread
from satisfice.cli.options import Json, Limit, ReportOptions, pair, slug
from satisfice.intervention import parse_method

SLOW = ("torch", "transformers", "numpy", "scipy", "matplotlib", "jinja2", "sympy", "math_verify")

DIFFERS = {
    "--out": "what is written differs: a run folder, a file, a model",
    "--recipe": "an argument elsewhere",
    "--format": "what is written differs: a report, or data",
    "--attention": "what a step reads, or what a price is for",
    "--model": "below an adapter, or of a curation",
}
"""Options whose help or type may differ between commands, and why."""


def commands():
    """Every command by what is typed, as the parser has it."""
    found = {}
    for name, later in typer.main.get_command(cli.app).commands.items():
        command = later.loaded()
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {each}": inner[each] for each in inner}
    return found


COMMANDS = commands()


def options(command):
    return [option for option in command.params if option.param_type_name == "option"]


# -- the table and the files


def test_the_table_says_what_the_files_say():
    for listed in cli.COMMANDS.values():
        for name, summary in listed.items():
            attribute = name.replace("-", "_")
            found = getattr(import_module(f"satisfice.cli.{attribute}"), attribute)
            said = (
                found.info.help if isinstance(found, typer.Typer) else " ".join(found.__doc__.split("\n\n")[0].split())
            )
            assert said == summary, name


def test_every_file_of_a_command_is_in_the_table():
    listed = {name for heading in cli.COMMANDS.values() for name in heading}
    defined = {
        path.stem.replace("_", "-")
        for path in Path(cli.__file__).parent.glob("*.py")
        if re.search(rf"^(def {path.stem}\(|{path.stem} = typer\.Typer)", path.read_text(), re.MULTILINE)
    }
    assert defined == listed
    assert {"compare", "evaluate-levels", "lab"} <= defined


# -- options


def test_an_option_means_the_same_in_all_commands():
    declared = {}
    for name, command in COMMANDS.items():
        for option in options(command):
            flag = max(option.opts, key=len)
            meaning = (sorted(option.opts), option.help, option.bare_type(), option.multiple)
            first, known = declared.setdefault(flag, (name, meaning))
            assert flag in DIFFERS or meaning == known, f"{flag} of {name} is not that of {first}"
    assert len(declared) > 50
    shared = {"--seed", "--temperature", "--max-tokens", "--problems", "--method", "--json", "--counting", "--device"}
    assert shared <= declared.keys()


def test_every_option_is_declared_at_one_place_in_the_source():
    """No file but options.py names an option that it shares with another."""
    sources = {path.stem: path.read_text() for path in Path(cli.__file__).parent.glob("*.py")}
    flags = [re.findall(r'"(--[\w-]+)"', text) for name, text in sources.items() if name != "__init__"]
    helps = [help for text in sources.values() for help in re.findall(r'help="([^"]+)"', text)]
    named = [flag for found in flags for flag in set(found) if flag not in DIFFERS]
    twice = {flag for flag in named if named.count(flag) > 1}
    assert twice <= {"--column", "--companion", "--effort"}, twice
    assert len(helps) == len(set(helps)), {help for help in helps if helps.count(help) > 1}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_headings_and_begins_with_an_example(name):
    command = COMMANDS[name]
    for option in options(command):
        assert option.rich_help_panel, f"{name}: {option.opts} stands under no heading"
        assert option.help, f"{name}: {option.opts} says nothing"
    paragraphs = [" ".join(each.split()) for each in command.help.split("\n\n")]
    assert paragraphs[-1].startswith(f"Example: satisfice {name} ")
    assert "Example" not in "".join(paragraphs[:-1])


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_carried_out(name):
    words = shlex.split(COMMANDS[name].help.rpartition("Example: satisfice")[2])[len(name.split()) :]
    given = COMMANDS[name].make_context(name, words).params
    for method in [given.get("method"), *(given.get("methods") or [])]:
        assert method is None or parse_method(method)
    for key in ("recipe",):
        assert given.get(key) is None or (Path(__file__).parents[2] / given[key]).exists()


def test_help_is_printed_under_its_headings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        cli.app(args=["calibrate", "--help"])
    told = capsys.readouterr().out
    order = [
        "Example: satisfice calibrate",
        "Methods",
        "Model and engine",
        "Problems",
        "Sampling",
        "--seed",
        "Promise",
    ]
    places = [told.index(text) for text in order]
    assert places == sorted(places)


# -- groups


@dataclass(frozen=True)
class Colours:
    paper: Annotated[str, typer.Option(help="Under the ink.")]
    ink: Annotated[str, typer.Option("--ink", "-i", help="On the paper.")] = "black"
    pens: Annotated[int | None, typer.Option(min=1)] = None


@dataclass(frozen=True)
class PaleColours(Colours):
    ink: Annotated[str, typer.Option("--ink", "-i", help="On the paper.")] = "grey"


def drawing(kind):
    seen = {}

    def draw(*, colours: kind, name: Annotated[str, typer.Argument()], as_json: Json = False) -> None:
        """Draw."""
        seen.update(colours=colours, name=name, as_json=as_json)

    return made("draw", draw), seen


def test_a_group_is_put_together_from_its_options():
    command, seen = drawing(Colours)
    command.main(["flower", "-i", "red", "--paper", "white", "--pens", "3", "--json"], standalone_mode=False)
    assert seen == {"colours": Colours("white", "red", 3), "name": "flower", "as_json": True}
    assert command.help == "Draw."


def test_a_group_keeps_defaults_and_a_group_above_it_may_change_them():
    for kind, ink in ((Colours, "black"), (PaleColours, "grey")):
        command, seen = drawing(kind)
        command.main(["flower", "--paper", "white"], standalone_mode=False)
        assert seen["colours"] == kind("white", ink, None)


def test_what_a_group_requires_the_command_requires():
    command, seen = drawing(Colours)
    with pytest.raises(Exception, match=r"Missing parameter: paper"):
        command.main(["flower"], standalone_mode=False)
    with pytest.raises(Exception, match=r"0 is not in the range|greater than or equal to 1|x>=1"):
        command.main(["flower", "--paper", "white", "--pens", "0"], standalone_mode=False)
    assert seen == {}


def test_two_groups_with_one_name_are_refused():
    def twice(*, a: Colours, ink: Annotated[str, typer.Option()] = "x") -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'ink'"):
        flat(twice)


# -- --methods A B C


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["lab", "--methods", "a", "b", "c"], ["lab", *["--methods", "a", "--methods", "b", "--methods", "c"]]),
        (["-m", "a", "b", "--limit", "3"], [*["--methods", "a", "--methods", "b"], "--limit", "3"]),
        (["--methods", "a", "--methods", "b"], [*["--methods", "a", "--methods", "b"]]),
        (["--methods=a", "lab"], ["--methods=a", "lab"]),
        (["--limit", "3", "lab"], ["--limit", "3", "lab"]),
        (["lab", "--methods"], ["lab", "--methods"]),
        (["lab", "-m", "a", "-m", "--limit", "3"], ["lab", "--methods", "a", "-m"]),
    ],
)
def test_several_methods_after_one_option(given, read):
    assert spread(given, ["--methods", "-m"]) == read


@pytest.mark.parametrize("given", [["lab", "--methods"], ["lab", "--methods", "--limit", "3"]])
def test_methods_without_a_value_are_refused_and_do_not_mean_the_default(given):
    with pytest.raises(Exception, match=r"--methods.* requires an argument"):
        COMMANDS["compare"].make_context("compare", given)


def test_the_parser_reads_several_methods_and_leaves_the_single_one_of_others_alone():
    given = COMMANDS["compare"].make_context("compare", ["lab", "-m", "plain", "deer", "--limit", "3"]).params
    assert (given["model"], given["methods"], given["limit"]) == ("lab", ["plain", "deer"], 3)
    given = COMMANDS["solve"].make_context("solve", ["-m", "no-wait", "lab", "how many?"]).params
    assert (given["model"], given["question"], given["method"]) == ("lab", "how many?", "no-wait")
    assert all(isinstance(command, Command) for command in COMMANDS.values())


# -- what it costs to start


def started(*arguments, **environment):
    """Exit status, output and the slow modules that were imported, of the command line in a process of its own."""
    script = (
        "import sys, atexit, json\n"
        f"atexit.register(lambda: print(json.dumps([m for m in {SLOW!r} if m in sys.modules]), file=sys.stderr))\n"
        "from satisfice.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "COLUMNS": "160", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout, json.loads(done.stderr.splitlines()[-1])


def test_the_way_of_looking_sees_what_is_imported():
    assert "numpy" in started("report", "nowhere")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["compare", "--help"],
        ["lab", "--help"],
        ["methods"],
        ["objectives"],
        ["methods", "deer"],
        ["objectives", "--json"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_starting_imports_nothing_slow(arguments):
    code, out, slow = started(*arguments)
    assert (code, slow) == (0, [])
    assert out.strip()


def test_the_root_lists_every_command_with_its_line():
    _, out, _ = started("--help")
    for heading, listed in cli.COMMANDS.items():
        assert heading in out
        for name, summary in listed.items():
            assert re.search(rf"\b{name} +{re.escape(summary[:40])}", out)
    assert "--install-completion" in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_written_for_each_shell(shell):
    code, out, slow = started(_SATISFICE_COMPLETE=f"source_{shell}")
    assert (code, slow) == (0, [])
    assert "satisfice" in out
    assert "_SATISFICE_COMPLETE" in out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("satisfice eva", ["evaluate-levels"]),
        ("satisfice lab f", ["fine-tune"]),
        ("satisfice compare lab --max-", ["--max-tokens", "--max-batch", "--max-batch-tokens"]),
    ],
)
def test_completion_offers_commands_and_their_options(typed, offered):
    words = len(typed.split()) - 1
    code, out, slow = started(_SATISFICE_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(words))
    assert (code, slow) == (0, [])
    assert sorted(out.split()) == sorted(offered)


# -- what is written in options


def test_pairs_and_names_of_folders():
    assert pair("--column", " prompt = question", "a=b") == ("prompt", "question")
    for wrong in ("prompt", "=question", "prompt=", ""):
        with pytest.raises(ValueError, match=r"--column .* must look like a=b"):
            pair("--column", wrong, "a=b")
    assert slug("Qwen/Qwen3-1.7B-gsm8k:main test") == "qwen-qwen3-1.7b-gsm8k-main-test"


def test_groups_can_be_made_without_a_command_line():
    assert ReportOptions() == ReportOptions(counting=None, baseline=None, margin=0.01)
    assert Limit.__metadata__[0].min == 1


def test_a_complaint_is_printed_as_it_is_whatever_the_width(capsys, monkeypatch):
    from satisfice.cli import console

    monkeypatch.setattr(console.errors, "width", 20)
    console.complain("see [/tmp/a folder/with brackets] and much more than twenty characters")
    assert capsys.readouterr().err == "see [/tmp/a folder/with brackets] and much more than twenty characters\n"


def test_only_one_function_prints_to_standard_error():
    for path in Path(cli.__file__).parent.glob("*.py"):
        if path.name != "console.py":
            assert "errors.print" not in path.read_text(), f"{path.name}: use complain"
