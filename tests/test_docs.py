"""Every code block of the README and the docs: what can be run here is run, and the rest is read as far as it can be.

A block that is not run has a reason directly above it: `<!-- not run: needs vLLM -->`. Its commands must parse all the
same: options, methods, objectives, recipes, splits and files must exist, and a folder that is read must have been
written by a command before it. `<!-- slow -->` stands above what is run with the slow tests. Blocks of `text` are
output.
"""

import ast
import asyncio
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml
from report.synthetic_run import write_run

from satisfice import cli
from satisfice.cli.options import slug
from satisfice.engines.loading import SETTINGS
from satisfice.intervention import METHODS, parse_method
from satisfice.lab.train import load_recipe as load_lab_recipe
from satisfice.problems import SOURCES, load_problems
from satisfice.problems.suites import SUITES
from satisfice.reinforcement import OBJECTIVES
from satisfice.runs.calibration import ladders
from satisfice.runs.experiment import ALL
from satisfice.thinking import ThinkingFormat
from satisfice.trace import CONVENTIONS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "python", "yaml", "json", "text"}
YOURS = {"MODEL", "SECOND_MODEL", "RECIPE", "DIR", "RUN", "URL", "..."}
"""What stands for something of the reader's."""
YOUR_PROBLEMS = re.compile(r"(/data/)?(gsm8k|gsm8k_test|math500|gpqa|held-out|problems)\.jsonl|runs/longer\.jsonl")
OTHER_PROGRAMS = {
    "vllm", "ray", "curl", "trl", "llama-server", "lm_eval", "torchrun", "accelerate", "cd", "git", "inspect",
    "litellm", "lighteval", "docker",
}  # fmt: skip
NEED_OTHERS = {
    "satisfice.engines.openai", "satisfice.engines.vllm", "satisfice.hosts.inspect", "satisfice.hosts.lighteval",
    "satisfice.hosts.litellm", "satisfice.training.verl",
}  # fmt: skip
"""Modules that can be imported only where another package is installed."""
RUN = {
    "compare", "sample", "curate", "summary", "report", "solve", "methods", "objectives", "diagnose", "cost", "regrade",
}  # fmt: skip
"""What a block without a mark may call: quick on the lab, if --limit says so."""


CommandLineError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises; it brings a click of its own."""
REFUSALS = (ValueError, AssertionError, OSError, CommandLineError)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, each with the comment directly above it."""
    lines = page.read_text().split("\n")
    found, number = [], 0
    while number < len(lines):
        if not (fence := re.fullmatch(r" *```(\w*)", lines[number])):
            number += 1
            continue
        end = next(later for later in range(number + 1, len(lines)) if lines[later].strip() == "```")
        mark = re.fullmatch(r"<!-- (.*) -->", lines[number - 1].strip()) if number else None
        text = "\n".join(lines[number + 1 : end]) + "\n"
        found.append(Block(page, number + 1, fence[1], text, mark[1] if mark else ""))
        number = end + 1
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(language: str, *, mark: str | None = None) -> list:
    """Blocks as parameters of a test."""
    return [
        pytest.param(block, id=str(block))
        for block in BLOCKS
        if block.language == language and (mark is None or block.mark == mark)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_names_its_language_and_every_mark_a_reason(page):
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block}: say which language it is: {', '.join(sorted(LANGUAGES))}"
        assert re.fullmatch(r"|slow|not run: \S.*", block.mark), f"{block}: cannot read its mark {block.mark!r}"
        assert not (block.mark and block.language in ("text", "json", "yaml")), f"{block}: needs no mark"
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    indented = re.search(r"(?:\A|\n)\n {4}(?![*-] )\S.*", prose)
    assert not indented, f"{page}: code by indentation is not checked, fence it: {indented and indented[0].strip()}"


# -- commands


def commands_of(text: str) -> list[list[str]]:
    """The simple commands of shell text: without comments, assignments before them, and files that they write to."""
    found: list[list[str]] = []
    command: list[str] = []
    lexer = re.compile(
        r"""(?P<gap>[ \t]+|\\\n)|(?P<comment>(?<![^\s])\#[^\n]*)|(?P<end>\n|;|&&|\|)|(?P<into>>)"""
        r"""|(?P<word>(?:'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s'"\\;&|>])+)""",
        re.DOTALL,
    )
    into = False
    for token in lexer.finditer(f"{text}\n"):
        if token.lastgroup == "word":
            if not into and (command or not re.match(r"[A-Z_]+=", token[0])):
                command.append("".join(shlex.split(token[0])))
            into = False
        elif token.lastgroup == "into":
            into = True
        elif token.lastgroup == "end" and command:
            found.append(command)
            command = []
    return found


def of_satisfice(command: list[str]) -> list[str] | None:
    """The arguments of satisfice within a command, which others may launch; None where it is not called."""
    if command[0] == "satisfice":
        return command[1:]
    if "satisfice.cli" in command:
        return command[command.index("satisfice.cli") + 1 :]
    if command[:3] == ["ray", "job", "submit"]:
        return command[command.index("satisfice") + 1 :]
    return None


def parsed(arguments: list[str]) -> tuple[str, dict[str, object]]:
    """Name and parameters of a command, as the command line reads them, which carries nothing out.

    Raises:
        CommandLineError: there is no such command or option, or a value does not fit.
    """
    if arguments[:1] == ["compare"]:
        arguments = [word for word in arguments if word != "..."]
    command, name = typer.main.get_command(cli.app), ""
    while hasattr(command, "commands"):
        word = arguments.pop(0)
        if word not in command.commands:
            raise typer.BadParameter(f"there is no command {name} {word}")
        command, name = command.commands[word], f"{name} {word}".strip()
        command = command.loaded() if isinstance(command, cli.Later) else command
    return name, command.make_context(name, arguments).params


def check_satisfice(arguments: list[str], written: set[str]) -> None:
    """Raises where a command could not be carried out as it is written; adds the folder that it writes to `written`."""
    name, given = parsed(arguments)
    model, problems = given.get("model"), given.get("problems")
    spelled = [*(given.get("methods") or [])] if name == "compare" else []
    if name in ("solve", "serve"):
        spelled.append(given["method"])
    efforts = [text.partition("=")[2] for text in given.get("effort") or ()]
    certificates = [*(each for each in efforts if each.endswith(".json")), given.get("calibrated")]
    spelled += [each for each in efforts if not each.endswith(".json")]
    for each in certificates:
        assert each is None or Path(each).suffix == ".json", f"{each} is no certificate"
    for text in spelled:
        if text != ALL:
            parse_method(text)
    if name == "calibrate":
        ladders(given["methods"], given["grid"], 10_000)
    if given.get("thinking_format"):
        ThinkingFormat.parse(given["thinking_format"])
    assert given.get("counting") in (None, *CONVENTIONS)
    assert given.get("engine_name", "transformers") in (*SETTINGS, "ray")
    assert given.get("worker_engine") in (None, *SETTINGS)
    if problems and problems.partition(":")[0] in {*SOURCES} - {"reasoning-gym"}:
        load_problems(problems, limit=1)
    elif problems and problems not in SUITES:  # loaded from the Hub, which is not here
        assert YOUR_PROBLEMS.fullmatch(problems), f"{problems} is no file that a reader may have"
    if model and Path(model).suffix in (".yaml", ".jsonl"):
        raise AssertionError(f"{model} is no model")
    if given.get("recipe") and str(given["recipe"]) not in YOURS:
        read = {
            "train": load_training_recipe,
            "lab train": load_lab_recipe,
            "lab fine-tune": load_words_recipe,
            "lab steps": load_steps_recipe,
        }[name]
        read(ROOT / given["recipe"], *([given["change"] or []] if name == "train" else []))
    for key in ("run", "baseline"):
        if given.get(key) is not None:
            assert str(given[key]) in (*written, *YOURS), f"no command before it writes {given[key]}"
    if name in ("compare", "evaluate-levels"):
        default = f"{model}-{problems or 'lab:test'}"
        if name == "evaluate-levels":
            default = f"{Path(model).name}-{problems}-levels"
        written.add(str(given.get("out") or Path("runs") / slug(default)))


def load_training_recipe(path: Path, changes: list[str]) -> object:
    pytest.importorskip("trl")
    from satisfice.training.recipe import load_recipe

    return load_recipe(path, changes)


def load_steps_recipe(path: Path) -> object:
    from satisfice.lab.step_sizes import load_steps_recipe as read

    return read(path)


def load_words_recipe(path: Path) -> object:
    pytest.importorskip("trl")
    from satisfice.training.words_sft import load_words_recipe as read

    return read(path)


@cache
def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@cache
def targets() -> dict[str, str]:
    """The targets of the Makefile with what they run."""
    found = re.findall(r"^([\w-]+):.*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {name: body.replace("$(BIN)/", "") for name, body in found}


def made_by_make() -> set[str]:
    return {folder for body in targets().values() for folder in re.findall(r"--out (\S+)", body)}


def check_command(command: list[str], written: set[str]) -> None:
    """Raises where a command names an option, a file, an extra or a target that does not exist."""
    arguments = of_satisfice(command)
    if arguments is not None:
        check_satisfice(arguments, written)
    elif command[0] == "pip":
        for word in command[1:]:
            assert not word.startswith("satisfice"), "there is no package satisfice on an index: pip install -e ."
            if named := re.fullmatch(r"\.\[(.*)\]", word):
                assert set(named[1].split(",")) <= extras(), f"no such extra: {word}"
    elif command[0] == "make":
        assert all(word in targets() for word in command[1:] if "=" not in word), f"no such target: {command}"
    elif command[0] == "python" and command[1].endswith(".py"):
        source = (ROOT / command[1]).read_text()
        for word in command[2:]:
            assert not word.startswith("--") or f'"{word}"' in source, f"{command[1]} has no option {word}"
        if command[1] == "benchmarks/early_exit.py" and "--methods" in command:
            for word in command[command.index("--methods") + 1 :]:
                if word not in ("DEER", "ENTROCUT", "ADAPTIVE"):
                    parse_method(word)
    elif command[:2] == ["python", "-c"]:
        check_python(command[2])
    elif command[:3] == ["python", "-m", "verl.trainer.main_ppo"]:
        estimator = next(word for word in command if word.startswith("algorithm.adv_estimator="))
        assert estimator.removeprefix("algorithm.adv_estimator=satisfice-") in OBJECTIVES
    elif command[:3] == ["python", "-m", "sglang.launch_server"]:
        assert {"--enable-custom-logit-processor", "--disable-overlap-schedule"} <= {*command}, "the door needs both"
    else:
        assert command[0] in OTHER_PROGRAMS, f"what is {command[0]}?"
    if command[0] == "curl":
        json.loads(command[command.index("-d") + 1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_carried_out_as_they_are_written(page):
    written = made_by_make()
    for block in blocks_of(page):
        if block.language == "sh":
            for command in commands_of(block.text):
                try:
                    check_command(command, written)
                except REFUSALS as error:
                    pytest.fail(f"{block}: {shlex.join(command)}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize(
    "wrong",
    [
        "satisfice compare lab --metods plain",
        "satisfice compare lab --methods plain tempreture-scaling",
        "satisfice compare lab --methods budget-forcing:cap=3",
        "satisfice compare lab --problems lab:testing",
        "satisfice compare lab --problems recipes/lab/tldr.yaml",
        "satisfice diagnoze lab",
        "satisfice calibrate lab --methods plain",
        "satisfice calibrate lab --methods deer --grid t=0.9,0.8",
        "satisfice serve lab --effort low=plane",
        "satisfice train recipes/lab/none.yaml --out x",
        "satisfice train recipes/lab/tldr.yaml --out x --set objective.name=tldrr",
        "satisfice summary runs/never",
        "satisfice compare lab --out runs/a && satisfice report runs/b",
        "pip install 'satisfice[serve]'",
        "pip install -e '.[sreve]'",
        "make test-browser",
        "python benchmarks/early_exit.py --round 3 --methods DEER",
        "curl localhost -d '{\"n\": 1,}'",
        "satisfise compare lab",
        "torchrun --nproc-per-node 2 -m satisfice.cli train recipes/lab/tldr.yaml --outt x",
    ],
)
def test_a_command_that_is_wrong_is_found(wrong):
    *right, last = commands_of(wrong)
    written: set[str] = set()
    for command in right:
        check_command(command, written)
    with pytest.raises(REFUSALS):
        check_command(last, written)


def test_shell_text_is_read_as_a_shell_reads_it():
    text = 'A=1 satisfice solve M "a # b" \\\n  -m p#q  # why, isn\'t it\n\npip install x && make demo | less > f\n'
    text += 'vllm serve \'& \n > x\' key="a \\" b"\n'
    assert commands_of(text) == [
        ["satisfice", "solve", "M", "a # b", "-m", "p#q"],
        ["pip", "install", "x"],
        ["make", "demo"],
        ["less"],
        ["vllm", "serve", "& \n > x", 'key=a " b'],
    ]


# -- Python, YAML, JSON


def check_python(text: str) -> None:
    """Raises where Python does not compile, or imports a name that a module which is here does not have."""
    tree = compile(text, "block", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        for module in [node.module] if isinstance(node, ast.ImportFrom) else []:
            top = module.partition(".")[0]
            if top != "satisfice" and importlib.util.find_spec(top) is None:
                continue
            try:
                loaded = importlib.import_module(module)
            except ImportError:
                if module not in NEED_OTHERS:
                    raise
                continue
            for alias in node.names:
                assert hasattr(loaded, alias.name), f"{module} has no {alias.name}"


@pytest.mark.parametrize("block", of("python"))
def test_python_compiles_and_imports_what_exists(block):
    check_python(block.text)


def test_python_that_is_wrong_is_found():
    with pytest.raises(AssertionError, match="has no TransformerEngine"):
        check_python("from satisfice.engines.transformers import TransformerEngine")
    with pytest.raises(SyntaxError):
        check_python("trainer = Trainer(model, args=)")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with what the docs take for granted: the clone's files, problems, and a run."""
    for name in ("recipes", "benchmarks", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    problems = load_problems("lab:calibration", limit=8).problems
    lines = [json.dumps({"problem": problem.prompt, "answer": problem.answer}) + "\n" for problem in problems]
    for name in ("problems.jsonl", "math500.jsonl"):
        (tmp_path / name).write_text("".join(lines))
    write_run(tmp_path / "runs" / "my-run", problems=20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def carry_out(block: Block, monkeypatch) -> None:
    if block.language == "python":
        code = compile(block.text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        scope = {"__name__": "block"}
        result = eval(code, scope)
        if inspect.iscoroutine(result):
            asyncio.run(result)
        return
    for command in commands_of(block.text):
        assert command[0] == "satisfice", f"{block}: mark what is not run here"
        name, given = parsed(command[1:])
        assert name in RUN, f"{block}: mark what is not run here"
        assert name != "compare" or block.mark or (given["limit"] or 1000) <= 50, f"{block}: takes long, mark it"
        monkeypatch.setattr(sys, "argv", command)
        assert not cli.app(args=command[1:], standalone_mode=False), f"{block}: {shlex.join(command)} failed"


@pytest.mark.parametrize("block", of("python", mark="") + of("sh", mark=""))
def test_what_can_be_run_runs(block, workspace, monkeypatch):
    if "trl" in block.text:
        pytest.importorskip("trl")
    carry_out(block, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("block", of("python", mark="slow") + of("sh", mark="slow"))
def test_what_takes_a_minute_runs(block, workspace, monkeypatch):
    carry_out(block, monkeypatch)


@pytest.mark.parametrize("block", of("yaml"))
def test_parts_of_recipes_are_read_by_the_reader_of_recipes(block):
    pytest.importorskip("trl")
    from satisfice.training.recipe import check_recipe
    from satisfice.training.supervised_recipe import check_supervised

    given = yaml.safe_load(block.text)
    if "data" in given or "supervision" in given:
        check_supervised(given, str(block))
        return
    whole = yaml.safe_load((ROOT / "recipes" / "lab" / "tldr.yaml").read_text())
    check_recipe(whole | given, str(block))


@pytest.mark.parametrize("block", of("json"))
def test_json_is_json(block):
    json.loads(block.text)


# -- words around the blocks


def test_no_page_and_no_message_names_a_package_on_an_index():
    for page in [*PAGES, ROOT / "pyproject.toml", *sorted((ROOT / "satisfice").rglob("*.py"))]:
        for found in re.finditer(r"pip install[^`\n#]*?[ ']satisfice\b(?!\.)[^`\n]*", page.read_text()):
            pytest.fail(f"{page.relative_to(ROOT)}: there is no such package yet: {found[0]}")


def test_markers_of_the_tests_name_targets_that_exist():
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    named = [target for marker in markers for target in re.findall(r"make ([\w-]+)", marker)]
    assert len(named) >= 4
    assert set(named) <= set(targets())


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.relative_to(ROOT)}: {target} does not exist"
        assert not anchor or anchor in anchors(file), f"{page.relative_to(ROOT)}: there is no heading for {target}"


def test_every_method_and_objective_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for name in [*METHODS, *OBJECTIVES]:
        assert f"`{name}`" in text, name


CHOICE = ROOT / "docs" / "choosing.md"


def test_what_each_method_needs_is_as_the_choice_has_it():
    rows = re.findall(r"^\| ([\w ,]+) \| ((?:`[\w@-]+`(?:, )?)+) \|", CHOICE.read_text(), re.MULTILINE)
    told = {name: needs for needs, names in rows for name in re.findall(r"`([\w@-]+)`", names)}
    assert told == {name: ", ".join(sorted(kind.needs)) or "nothing special" for name, kind in METHODS.items()}
