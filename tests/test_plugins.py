"""Methods, objectives, graders and problem sources from outside: from packages, from files, and what is refused."""

import asyncio
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from satisfice import registry
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import METHODS, MethodError, describe, parse_method
from satisfice.intervention.answers import find_answer
from satisfice.plugins import load_plugins
from satisfice.problems import GRADERS, GraderError, GraderPool, ProblemsError, load_problems
from satisfice.registry import PluginError, PluginFile, Registry
from satisfice.reinforcement import OBJECTIVES, objective_from
from satisfice.reinforcement.objective import Rollouts
from satisfice.runs.run_folder import RunFolder, RunFolderError
from satisfice.runs.scale_out import EngineActor, Loading, describe_engine

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MINE = '''
from dataclasses import dataclass
from typing import ClassVar
from satisfice.intervention import Draft, Method

@dataclass(frozen=True)
class Mine(Method):
    """Mine.

    Attributes:
        n: tokens of thinking.
    """

    name: ClassVar[str] = "my-method"
    summary: ClassVar[str] = "mine"
    paper: ClassVar[str] = ""
    n: int = 5

    async def respond(self, draft: Draft) -> None:
        await draft.think(self.n)
        await draft.conclude()
'''


def write(folder, text=MINE, name="mine.py"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def package(folder, text=MINE, points="my-method = my_package:Mine", group="satisfice.methods", name="my-package"):
    """An installed package, as its folder on the path looks."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{module}-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{points}\n")
    return folder


def satisfice(*arguments, path=None):
    found = os.pathsep.join(map(str, filter(None, (path, ROOT, os.environ.get("PYTHONPATH")))))
    return subprocess.run(
        [sys.executable, "-m", "satisfice.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "HF_HUB_OFFLINE": "1", "PYTHONPATH": found},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A registry of methods that has looked nowhere yet, with a folder of packages on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return Registry(METHODS.base, METHODS.what, METHODS.group, METHODS.place)


# -- packages


def test_a_package_that_is_installed_is_known_by_its_name(tmp_path):
    run = tmp_path / "run"
    done = satisfice(
        "compare", "lab", "--methods", "plain", "my-method", "--limit", "5", "--out", str(run), path=package(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "my-method" in done.stdout
    config = json.loads((run / "run.json").read_text())
    assert config["methods"] == ["plain", "my-method"]
    assert config["plugins"] == {"my-package": {"version": "0.3"}}
    assert len((run / "traces-my-method.jsonl").read_text().splitlines()) == 5


def test_names_import_nothing_and_a_lookup_imports_one_package(fresh, tmp_path):
    package(tmp_path)
    package(tmp_path, "raise RuntimeError('broken')", "broken = broken_one:X", name="broken-one")
    assert {"my-method", "broken"} <= set(fresh)
    assert "my_package" not in sys.modules
    assert fresh["my-method"].summary == "mine"
    assert registry.plugins_in_use() == {"my-package": {"version": "0.3"}}
    with pytest.raises(
        PluginError, match=r"package broken-one 0\.3 offers a method 'broken' that cannot be loaded: Runt"
    ):
        fresh["broken"]
    sys.modules.pop("my_package")


@pytest.mark.parametrize(
    ("text", "points", "message"),
    [
        ("X = 3", "x = my_package:X", "package my-package 0.3: 3 is no method: it must subclass satisfice.interv"),
        ("class X: pass", "x = my_package:X", "package my-package 0.3: X is no method"),
        (MINE, "other = my_package:Mine", "its entry point is called 'other' and the method 'my-method'"),
        (MINE, "my-method = my_package:Nothing", "'my-method' that cannot be loaded: AttributeError"),
        (MINE, "my-method = not_there:Mine", "'my-method' that cannot be loaded: ModuleNotFoundError"),
        (MINE, "plain = my_package:Mine", "my-package 0.3 offers a method 'plain', and satisfice has one of that name"),
    ],
)
def test_a_package_that_does_not_fit_is_named_in_one_sentence(fresh, tmp_path, text, points, message):
    package(tmp_path, text, points)
    with pytest.raises(PluginError) as caught:
        fresh[points.partition(" ")[0]]
    sys.modules.pop("my_package", None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_packages_with_one_name_are_both_named(fresh, tmp_path):
    package(tmp_path)
    package(tmp_path, name="other-package", points="my-method = other_package:Mine")
    with pytest.raises(PluginError, match=r"package \S+ 0.3 and package \S+ 0.3 both offer a method 'my-method'"):
        fresh["my-method"]


# -- files


def test_a_file_is_loaded_for_one_command(tmp_path):
    run = tmp_path / "run"
    done = satisfice(
        "compare", "lab", "--plugin", str(ROOT / "examples/three_paragraphs.py"), "--plugin",
        str(ROOT / "examples/sums.py"), "--plugin", str(ROOT / "examples/remainder.py"), "--problems", "sums:3",
        "--instruction", "", "--grader", "remainder:10", "--methods", "plain", "three-paragraphs:paragraphs=2",
        "--limit", "4", "--out", str(run),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((run / "run.json").read_text())
    assert set(config["plugins"]) == {"three_paragraphs.py", "sums.py", "remainder.py"}
    assert all(len(each["sha256"]) == 64 for each in config["plugins"].values())
    traces = [json.loads(line) for line in (run / "traces-plain.jsonl").read_text().splitlines()]
    assert {trace["grade"]["grader"] for trace in traces} == {"remainder:10"}
    assert any(trace["grade"]["correct"] for trace in traces)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 +", "cannot be loaded: SyntaxError"),
        ("\n\nimport not_there", "cannot be loaded (line 3): ModuleNotFoundError: No module named 'not_there'"),
        ("raise SystemExit(3)", "cannot be loaded (line 1): SystemExit: 3"),
        ("class Mine: name = 'x'", "holds no public class that subclasses one of satisfice.intervention.method.Method"),
        (MINE.replace('"my-method"', '"deer"'), "offers a method 'deer', and satisfice has one of that name"),
        (MINE.replace('"my-method"', '"My Method"'), "no method can be called 'My Method'"),
        (MINE.replace("@dataclass(frozen=True)", ""), "the method Mine is no dataclass"),
        (MINE.replace("n: int = 5", "n: int"), "the parameter n of Mine has no default"),
        (MINE.replace("async def respond", "async def answer"), "the method Mine lacks respond"),
        (MINE.replace("    paper: ", "    papers: "), "the method Mine lacks paper"),
        (
            f"{MINE.partition('    async def')[0]}    def respond(self, draft): ...",
            "respond of Mine must be written as async def respond",
        ),
        (MINE.replace("n: int = 5", "n: 'Unheard' = 5"), "the parameters of Mine cannot be read: NameError"),
        (MINE.replace("n: int = 5", "needs: list = None"), "needs of Mine is None; it must be of the type frozenset"),
        (MINE.replace('name: ClassVar[str] = "my-method"', 'name: str = "my-method"'), "annotate it with ClassVar"),
        (MINE.replace("n: int = 5", "n: int = 5\n    def __post_init__(self): pass"), "super().__post_init__()"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence_and_forgotten(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(PluginError) as caught:
        load_plugins([path])
    assert f"plugin {path}" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert registry.loaded_files() == ()
    path.write_text(MINE)
    assert load_plugins([path]) == ["method my-method"]


def test_files_that_are_no_python_or_not_there(tmp_path):
    with pytest.raises(PluginError, match=r"must end with \.py"):
        load_plugins([tmp_path / "notes.txt"])
    with pytest.raises(PluginError, match="cannot be read: No such file"):
        load_plugins([tmp_path / "none.py"])


def test_the_command_line_says_it_in_one_sentence(tmp_path):
    path = write(tmp_path, "import not_there")
    done = satisfice("methods", "--plugin", str(path))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"satisfice: plugin {path} cannot be loaded (line 1)" in done.stderr


def test_again_does_nothing_and_the_same_name_twice_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    first, other = write(tmp_path), write(tmp_path / "a", MINE + "# other\n")
    load_plugins([first, first])
    with pytest.raises(PluginError, match="have the same name: rename one of them"):
        load_plugins([other])
    third = write(tmp_path, name="third.py")
    with pytest.raises(PluginError, match=r"names a method 'my-method', which plugin \S+mine.py has, too"):
        load_plugins([third])
    assert parse_method("my-method:n=3").n == 3


# -- other processes


def test_the_process_that_grades_knows_the_file(tmp_path):
    load_plugins([ROOT / "examples" / "remainder.py"])
    assert find_answer("so 4 or 13", "remainder:10") == "13"
    with GraderPool(workers=1) as pool:
        given = {"grader": "remainder:10", "gold": "3", "finished": True}
        grades = pool.grade_all([{**given, "answer": text} for text in ("13", "14", "none")])
    assert [grade.correct for grade in grades] == [True, False, False]
    assert grades[2].note == "no answer found"
    with pytest.raises(ProblemsError, match="must name a modulus of 2 or more"):
        load_problems("lab:test", limit=1, grader="remainder:1")


def test_a_grader_put_in_from_python_is_refused_where_it_cannot_go(monkeypatch):
    class Here(GRADERS["exact"]):
        name = "here"
        settle = GRADERS.base.settle

    monkeypatch.setitem(GRADERS, "here", Here)
    with GraderPool(workers=1) as pool, pytest.raises(GraderError, match="'here' was put in from Python"):
        pool.grade_all([{"grader": "here", "answer": "x", "gold": "x", "finished": True}])


def test_a_worker_of_a_run_loads_the_files_it_is_sent(tmp_path, monkeypatch):
    load_plugins([write(tmp_path)])
    method = parse_method("my-method")
    task = pickle.dumps((method, load_problems("lab:calibration", limit=1).problems[0], sampling()))
    loading = pickle.loads(pickle.dumps(Loading("transformers", "lab", plugins=registry.loaded_files())))
    monkeypatch.setattr(registry, "_files", {})  # as in another process
    sys.modules.pop("satisfice_plugin_mine")
    (tmp_path / "mine.py").unlink()
    outcome = pickle.loads(asyncio.run(EngineActor(loading).solve(task)))
    assert outcome.trace.method == "my-method"
    assert "packages" in describe_engine(loading)


def sampling():
    from satisfice.engines.base import Sampling

    return Sampling(temperature=0, max_tokens=300)


# -- the run folder


def test_a_plugin_that_has_changed_is_refused_and_a_new_one_is_noted(tmp_path):
    def configuration(**digests):
        return {"schema_version": 1, "methods": ["plain"], "plugins": {k: {"sha256": v} for k, v in digests.items()}}

    RunFolder.create_or_open(tmp_path, configuration(a="1")).close()
    RunFolder.create_or_open(tmp_path, configuration(b="2")).close()
    assert json.loads((tmp_path / "run.json").read_text())["plugins"] == {"a": {"sha256": "1"}, "b": {"sha256": "2"}}
    with pytest.raises(RunFolderError, match=r'plugins\.a\.sha256: "1" -> "3"'):
        RunFolder.create_or_open(tmp_path, configuration(a="3"))


# -- the examples


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_short_and_can_be_loaded(path):
    assert len(path.read_text().splitlines()) <= 60
    (name,) = load_plugins([path])
    assert f"`{name.split()[-1]}" in (ROOT / "docs" / "write-your-own.md").read_text()


def test_the_strategy_on_the_page_is_the_one_in_the_file():
    text = (ROOT / "examples" / "three_paragraphs.py").read_text()
    assert f"```python\n{text.partition(chr(10) * 2)[2]}```" in (ROOT / "docs" / "write-your-own.md").read_text()


@pytest.mark.parametrize("spelled", ["three-paragraphs:paragraphs=0", "later-end:least=-3"])
def test_parameters_of_the_examples_are_read_and_bounded(spelled):
    load_plugins(EXAMPLES)
    with pytest.raises(MethodError, match=r"is (0|-3); it must be at least 1"):
        parse_method(spelled)
    name = spelled.rpartition("=")[0]
    assert parse_method(f"{name}=7") == METHODS[name.partition(":")[0]](**{name.partition(":")[2]: 7})


def test_the_examples_do_what_they_say():
    load_plugins(EXAMPLES)
    engine = TransformersEngine.load("lab")
    problems = load_problems("sums:4", limit=3).problems
    assert [problem.id for problem in problems] == ["sums/4/0", "sums/4/1", "sums/4/2"]
    assert problems == load_problems("sums:4", limit=2).problems + problems[2:]
    solve = lambda spelled: asyncio.run(parse_method(spelled).solve(engine, problems[0], sampling()))  # noqa: E731
    try:
        cut = solve("three-paragraphs:paragraphs=1")
        assert [event.kind for event in cut.events][:1] == ["paragraph"]
        plain, later = solve("plain"), solve("later-end:least=250")
    finally:
        engine.close()
    assert (cut.stop, cut.thinking.count("\n\n")) in (("closed by method", 0), ("closed by method", 1))
    assert later.cost.thinking_tokens > plain.cost.thinking_tokens
    assert describe(METHODS["three-paragraphs"])["parameters"][0]["meaning"] == "how many."
    rollouts = Rollouts.of(torch.tensor([[25, 100, 50]]), torch.tensor([[True, True, False]]), max_length=100)
    assert objective_from("square-root", {"price": "0.4"}).rewards(rollouts).tolist() == [
        pytest.approx([0.8, 0.6, 0.0])
    ]
    assert "square-root" in OBJECTIVES
    with pytest.raises(ProblemsError, match="must name how many steps"):
        load_problems("sums:many")


def test_a_plugin_file_is_text_that_travels():
    file = PluginFile.read(EXAMPLES[0])
    assert pickle.loads(pickle.dumps(file)) == file
