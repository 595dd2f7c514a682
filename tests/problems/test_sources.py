import gzip
import importlib.util
import json

import pytest

from satisfice.problems import ProblemsError, grade_answer, load_problems


@pytest.fixture
def jsonl(tmp_path):
    def write(*records, name="set.jsonl"):
        path = tmp_path / name
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


def refusal(spec, **options):
    with pytest.raises(ProblemsError) as refused:
        load_problems(spec, **options)
    return str(refused.value)


def test_a_file_of_problems(jsonl):
    loaded = load_problems(
        jsonl(
            {"id": "a", "problem": "1+1?", "answer": "2", "source": "sums", "level": 3},
            {"id": 7, "question": "1+2?", "gold": 3},
            {"prompt": "1+3?", "solution": "It is \\boxed{4}."},
        )
    )
    assert loaded.name == "set"
    assert loaded.skipped == []
    first, second, third = loaded.problems
    assert (first.id, first.prompt, first.answer, first.source, first.grader) == ("a", "1+1?", "2", "sums", "math")
    assert (second.id, second.answer, second.source) == ("7", "3", "set")
    assert (third.id, third.answer) == ("set/3", "4")


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (27.0, "27"),
        (27, "27"),
        (-1.5, "-1.5"),
        (1e-7, "0.0000001"),
        (1e22, "10000000000000000000000"),
        (" 5 ", "5"),
        ("She has 48/2 = <<48/2=24>>24.\n#### 72", "72"),
        ("...\n#### 1,450 \n", "1,450"),
        (r"We get \boxed{3}, that is, $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_gold_answers(jsonl, given, answer):
    assert load_problems(jsonl({"problem": "?", "answer": given})).problems[0].answer == answer


def test_the_gold_answer_of_a_worked_solution_can_be_graded(jsonl):
    problem = load_problems(jsonl({"question": "?", "answer": "sum\n#### 1,450"})).problems[0]
    assert grade_answer(problem.grader, r"\boxed{1450}", problem.answer).correct


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object but a list"),
        ("3", "not a JSON object but a number"),
        ("null", "not a JSON object but null"),
        ("[" * 100_000, "not JSON"),
        ({"problem": "?", "level": 1}, "no field answer or solution or gold; its fields are problem, level"),
        ({"answer": "1", "text": "?"}, "no field problem or question or prompt; its fields are answer, text"),
        ({}, "no field problem or question or prompt; it has no fields"),
        ({"problem": "?", "answer": ""}, "answer is empty"),
        ({"problem": "?", "answer": "  "}, "answer is empty"),
        ({"problem": "?", "answer": None}, "answer is null"),
        ({"problem": " ", "answer": "1"}, "problem is empty"),
        ({"problem": "?", "answer": ["1"]}, "answer must be text or a number, it is a list"),
        ({"problem": "?", "answer": True}, "answer must be text or a number, it is true"),
        ('{"problem": "?", "answer": NaN}', "answer is nan"),
        ({"problem": ["?"], "answer": "1"}, "problem must be text, it is a list"),
        ({"problem": "?", "answer": "1", "id": [1]}, "id must be text or a whole number, it is a list"),
        ({"problem": "?", "answer": "1", "source": 3}, "source must be text, it is a number"),
        ({"problem": "?", "solution": r"so \boxed{5"}, "the box in solution is empty or not closed"),
        ({"problem": "?", "answer": "1", "choices": "AB"}, "choices must be a list of texts"),
        ({"problem": "?", "answer": "A", "choices": ["x"]}, "choices must be 2 to 26 options, there are 1"),
        ({"problem": "?", "answer": "E", "choices": ["x", "y"]}, "answer 'E' is neither a letter from A to B"),
        ({"problem": "?", "answer": 2, "choices": ["x", "y"]}, "answer 2 is neither"),
        ({"problem": "?", "answer": 1, "choices": ["1", "2"]}, "answer 1 may be an index or an option's text"),
        ('{"problem": "\\ud800", "answer": "1"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(jsonl, line, reason):
    path = jsonl({"problem": "?", "answer": "1"}, line)
    message = refusal(path)
    assert path in message
    assert f"line 2: {reason}" in message
    assert "1 bad line (" in message

    loaded = load_problems(path, skip_bad=True)
    assert len(loaded.problems) == 1
    assert len(loaded.skipped) == 1
    assert loaded.skipped[0].startswith(f"line 2: {reason}")


def test_bad_lines_are_shown_together_five_at_most(jsonl):
    message = refusal(jsonl(*["x"] * 7))
    assert "7 bad lines" in message
    assert [f"line {n}:" in message for n in range(1, 8)] == [True] * 5 + [False] * 2
    assert message.endswith("and 2 more")


def test_the_same_id_twice_is_a_bad_line(jsonl):
    path = jsonl({"id": "a", "problem": "1?", "answer": 1}, "", {"id": "a", "problem": "2?", "answer": 2})
    assert "line 3: its id 'a' was used on line 1 before" in refusal(path)
    loaded = load_problems(path, skip_bad=True)
    assert [problem.prompt for problem in loaded.problems] == ["1?"]
    assert len(loaded.skipped) == 1


def test_byte_order_mark_windows_line_ends_blank_lines_and_unicode_separators(tmp_path):
    path = tmp_path / "dos.jsonl"
    path.write_bytes(
        '\ufeff{"problem": "one\u2028line", "answer": 1}\r\n\r\n  \r\n{"problem": "b", "answer": 2}'.encode()
    )
    loaded = load_problems(str(path))
    assert [(problem.id, problem.prompt) for problem in loaded.problems] == [("dos/1", "one\u2028line"), ("dos/4", "b")]


def test_a_compressed_file(tmp_path):
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"problem": "?", "answer": 1}\n'))
    assert load_problems(str(path)).problems[0].id == "set/1"
    path.write_bytes(path.read_bytes()[:-12])
    assert "cannot be read" in refusal(str(path))
    path.write_bytes(b"plain")
    assert "cannot be read" in refusal(str(path))


def test_a_file_in_another_encoding(tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_bytes('{"problem": "Größe", "answer": 1}'.encode("latin-1"))
    assert "line 1: not UTF-8 text" in refusal(str(path))


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content, encoding="utf-8")
    assert refusal(str(path)) == f"{path} holds no problems"


def test_a_file_of_bad_lines_only_is_refused_even_if_they_may_be_skipped(jsonl):
    assert refusal(jsonl("x", "y"), skip_bad=True).endswith("holds no problems: all of its lines are bad")


def test_limit(jsonl):
    path = jsonl(*({"problem": f"{n}?", "answer": n} for n in range(5)), "bad line after the limit")
    assert [problem.answer for problem in load_problems(path, limit=3).problems] == ["0", "1", "2"]
    assert len(load_problems(path, limit=99, skip_bad=True).problems) == 5
    assert "limit of 0" in refusal(path, limit=0)


def test_choices_become_lettered_options(jsonl):
    records = [
        {"problem": "Capital?", "choices": ["Rome", "Paris"], "answer": answer} for answer in ("b", "Paris", 1, " B")
    ]
    for problem in load_problems(jsonl(*records)).problems:
        assert problem.prompt == "Capital?\n\nA. Rome\nB. Paris"
        assert (problem.answer, problem.grader) == ("B", "choice:2")
        assert grade_answer(problem.grader, r"\boxed{\text{B}}", problem.answer).correct


def test_columns_of_another_name(jsonl):
    path = jsonl({"q": "1?", "a": 1, "key": "k", "answer": "not this"})
    problem = load_problems(path, columns={"prompt": "q", "answer": "a", "id": "key"}).problems[0]
    assert (problem.id, problem.prompt, problem.answer) == ("k", "1?", "1")
    assert "no field x; its fields are q, a, key, answer" in refusal(path, columns={"prompt": "q", "answer": "x"})
    assert "no field uid" in refusal(path, columns={"prompt": "q", "id": "uid"})
    assert "not for 'gold'" in refusal(path, columns={"gold": "a"})


def test_a_grader_for_all(jsonl):
    path = jsonl({"problem": "?", "answer": "Paris"})
    assert load_problems(path, grader="exact").problems[0].grader == "exact"
    assert "no grader 'maths'" in refusal(path, grader="maths")


def test_the_digest_tells_whether_problems_changed(jsonl):
    records = [{"id": "a", "problem": "?", "answer": 1}, {"id": "b", "problem": "?", "answer": 2}]
    digest = load_problems(jsonl(*records)).digest
    assert len(digest) == 64
    assert load_problems(jsonl(*records, name="copy.jsonl")).digest == digest
    for changed in (
        [records[0], records[1] | {"answer": 3}],
        [records[0], records[1] | {"problem": "!"}],
        [records[0], records[1] | {"id": "c"}],
        records[::-1],
        records[:1],
    ):
        assert load_problems(jsonl(*changed)).digest != digest


def test_lab_splits():
    loaded = load_problems("lab:test", limit=5)
    assert loaded.name == "lab:test"
    assert [problem.id for problem in loaded.problems] == [f"lab/test/{n}" for n in range(5)]
    assert {problem.grader for problem in loaded.problems} == {"math"}
    assert all(problem.prompt.startswith("Start with") for problem in loaded.problems)
    for problem in loaded.problems:
        assert grade_answer(problem.grader, f"The answer is \\boxed{{{problem.answer}}}.", problem.answer).correct


@pytest.mark.parametrize("split", ["train", "calibration", "certify", "test", "longer"])
def test_a_lab_split_is_the_same_thousand_for_everybody(split):
    everything = load_problems(f"lab:{split}")
    assert len(everything.problems) == 1000
    assert len({problem.prompt for problem in everything.problems}) == 1000
    assert load_problems(f"lab:{split}", seed=7).digest == everything.digest
    assert load_problems(f"lab:{split}", limit=10).problems == everything.problems[:10]


def test_lab_refusals():
    assert "no split 'dev'; use one of train, calibration, certify, test, longer" in refusal("lab:dev")
    assert "no split ''" in refusal("lab")
    assert "takes no split" in refusal("lab:test", split="test")
    assert "takes no columns" in refusal("lab:test", columns={"prompt": "q"})


def test_what_names_no_problems(tmp_path):
    assert "there is no file nowhere.jsonl" in refusal("nowhere.jsonl")
    assert "there is no file data/nowhere.json;" in refusal("data/nowhere.json")
    assert "there is no file a/b/c;" in refusal("a/b/c")
    for form in ("problems.jsonl", "lab:", "owner/name", "reasoning-gym:NAME"):
        assert form in refusal("no-suite")
    table = tmp_path / "set.csv"
    table.write_text("problem,answer\n")
    assert "is no JSONL file by its name" in refusal(str(table))
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    assert "cannot be read" in refusal(str(folder))


def test_a_file_has_no_splits(jsonl):
    assert "has no splits: leave out split 'test'" in refusal(jsonl({"problem": "?", "answer": 1}), split="test")


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hub that holds one data set, gsm/main, and records what was asked for."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, name=None, *, split):
        asked.append((path, name, split))
        if path != "gsm/main":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub.")
        if split not in ("test", "train"):
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train', 'test'].")
        return datasets.Dataset.from_dict({"question": ["1?", "2?"], "answer": ["x\n#### 1", "y\n#### 2"], "n": [1, 2]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_data_set(hub):
    loaded = load_problems("gsm/main")
    assert loaded.name == "gsm/main"
    assert [(p.id, p.prompt, p.answer) for p in loaded.problems] == [
        ("gsm/main/0", "1?", "1"),
        ("gsm/main/1", "2?", "2"),
    ]
    renamed = load_problems("gsm/main:socratic", split="train", columns={"id": "n", "answer": "n"}, limit=1)
    assert [(p.id, p.answer) for p in renamed.problems] == [("1", "1")]
    assert hub == [("gsm/main", None, "test"), ("gsm/main", "socratic", "train")]


def test_hub_refusals(hub):
    message = refusal("gsm/main", columns={"prompt": "text"})
    assert "has no column 'text'; it has question, answer, n" in message
    message = refusal("gsm/other")
    assert "gsm/other cannot be loaded (and there is no such directory here): Dataset 'gsm/other' doesn't" in message
    assert "split 'dev' of gsm/main cannot be loaded" in refusal("gsm/main", split="dev")


def test_a_data_set_without_the_usual_columns_says_which_it_has(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "test.csv").write_text("frage,answer\n1?,1\n")
    message = refusal(str(tmp_path))
    assert "has no column problem or question or prompt; it has frage, answer: say which one is the prompt" in message
    loaded = load_problems(str(tmp_path), columns={"prompt": "frage"})
    assert (loaded.name, loaded.problems[0].prompt, loaded.problems[0].answer) == (tmp_path.name, "1?", "1")


def test_the_hub_needs_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert (
        refusal("gsm/main") == "gsm/main needs the datasets library: in a clone of satisfice, pip install -e '.[hub]'"
    )


def test_reasoning_gym_needs_its_extra(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "reasoning_gym" else found(name))
    assert (
        refusal("reasoning-gym:chain_sum")
        == "reasoning-gym is not installed: in a clone of satisfice, pip install -e '.[gym]'"
    )


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["0", "1", "2", "3"], 1, "B"),  # index and text name the same option
        (["0", "1", "2"], "2", "C"),
        ([2, 0, 1], 0, "refused"),
        (["B", "A", "D", "C"], "B", "refused"),
        (["A", "B"], "A", "A"),
        (["x", "b"], "b", "B"),
    ],
)
def test_options_that_are_digits_or_letters_themselves(jsonl, choices, answer, letter):
    path = jsonl({"problem": "?", "choices": choices, "answer": answer})
    if letter == "refused":
        assert "say which with --answer-is letter, text or index" in refusal(path)
    else:
        assert load_problems(path).problems[0].answer == letter


@pytest.mark.parametrize(("answer_is", "letter"), [("letter", "B"), ("text", "A")])
def test_what_the_answer_is_can_be_said(jsonl, answer_is, letter):
    path = jsonl({"problem": "?", "choices": ["B", "A", "D"], "answer": "B"})
    assert load_problems(path, answer_is=answer_is).problems[0].answer == letter
    assert "not the index of one option" in refusal(path, answer_is="index")
    assert "answer_is is one of auto, letter, text, index, not 'place'" in refusal(path, answer_is="place")


def test_options_with_labels(jsonl):
    arc = {"question": "?", "choices": {"text": ["sun", "moon"], "label": ["1", "2"]}, "answerKey": "2"}
    listed = {"question": "!", "choices": [{"text": "sun", "label": "C"}, {"text": "B", "label": "B"}], "answer": "C"}
    first, second = load_problems(jsonl(arc, listed)).problems
    assert (first.prompt, first.answer, first.grader) == ("?\n\nA. sun\nB. moon", "B", "choice:2")
    assert second.answer == "A"
    arc["choices"]["label"] = ["1"]
    assert "one label for each text" in refusal(jsonl(arc))
    arc["choices"]["label"] = ["2", "2"]
    assert "two choices have the same label" in refusal(jsonl(arc))


@pytest.mark.parametrize("gold", ["notfound", "Proof", r"\text{proof}", "N/A", "not found."])
def test_a_gold_answer_that_is_none_is_refused_unless_it_is_kept(jsonl, gold):
    path = jsonl({"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": gold})
    assert "line 2: answer" in refusal(path)
    assert "keep it with --any-gold" in refusal(path)
    assert len(load_problems(path, skip_bad=True).problems) == 1
    assert load_problems(path, any_gold=True).problems[1].answer == gold


def test_words_that_may_be_answers_are_kept(jsonl):
    assert load_problems(jsonl({"problem": "?", "answer": r"\text{none}"})).problems[0].answer == r"\text{none}"


def test_other_field_names_are_said_once_with_the_option_to_copy(jsonl):
    message = refusal(jsonl(*({"text": f"{n}?", "label": n} for n in range(20))))
    assert "none of its 20 lines has a field problem or question or prompt; its fields are text, label" in message
    assert message.endswith("say which one is the prompt, for example --column prompt=text")
    assert "\n" not in message
    message = refusal(jsonl(*({"question": f"{n}?", "label": n} for n in range(3))))
    assert message.endswith("say which one is the answer, for example --column answer=label")


def test_a_file_without_gold_answers_is_not_told_to_take_its_questions_for_them(jsonl):
    message = refusal(jsonl(*({"id": n, "question": f"{n}?"} for n in range(4))))
    assert message.endswith(
        "none of these is left to be the answer, and every problem needs a gold answer to be graded by"
    )
    message = refusal(jsonl({"answer": "1", "source": "here"}))
    assert message.endswith("none of these is left to be the prompt, and every problem needs a question")


def test_a_file_of_another_kind_is_told_how_it_can_be_read(tmp_path):
    pytest.importorskip("datasets")
    table = tmp_path / "own" / "sums.csv"
    table.parent.mkdir()
    table.write_text("problem,answer\n2+2?,4\n")
    assert "put sums.csv into a directory of its own and give that, with --split train" in refusal(str(table))
    assert load_problems(str(table.parent), split="train").problems[0].answer == "4"
    (tmp_path / "notes.txt").write_text("x")
    assert "directory of its own" not in refusal(str(tmp_path / "notes.txt"))


def test_a_missing_field_in_some_lines_is_said_once_for_all(jsonl):
    records = [{"problem": "?", "answer": 1}, *({"problem": f"{n}?", "level": n} for n in range(9)), "{"]
    message = refusal(jsonl(*records))
    assert "10 bad lines (correct them, or leave them out with --skip-bad" in message
    assert message.count("no field answer") == 1
    assert "line 2: no field answer or solution or gold; its fields are problem, level" in message
    assert "(and 8 more lines)" in message
    assert "line 11: not JSON" in message


def test_a_grader_in_a_line_is_read_or_refused(jsonl):
    path = jsonl({"problem": "?", "answer": "Paris", "grader": "exact"}, {"problem": "!", "answer": 2})
    assert [problem.grader for problem in load_problems(path).problems] == ["exact", "math"]
    assert [problem.grader for problem in load_problems(path, grader="numeric").problems] == ["numeric"] * 2
    assert "no grader 'maths'" in refusal(jsonl({"problem": "?", "answer": 1, "grader": "maths"}))
    assert "grader must be text, it is a number" in refusal(jsonl({"problem": "?", "answer": 1, "grader": 7}))
    choices = {"problem": "?", "choices": ["x", "y"], "answer": "A"}
    assert load_problems(jsonl(choices | {"grader": "choice"})).problems[0].grader == "choice:2"
    assert "does not fit a problem with choices" in refusal(jsonl(choices | {"grader": "math"}))
    named = load_problems(jsonl({"problem": "?", "answer": "x", "how": "exact"}), columns={"grader": "how"})
    assert named.problems[0].grader == "exact"


def test_questions_that_stand_there_again_are_said(jsonl):
    records = [{"problem": "Same?", "answer": 1}] * 3 + [{"problem": f"{n}?", "answer": n} for n in range(3)]
    (note,) = load_problems(jsonl(*records)).notes
    assert note.startswith("2 of 6 problems ask a question that was asked before")
    assert "3 times ('Same?')" in note
    assert load_problems(jsonl(*records[3:])).notes == ()


def test_several_boxes_of_a_worked_solution_are_one_gold_answer(jsonl):
    solution = r"The roots are $\boxed{2}$ and $\boxed{3}$."
    assert load_problems(jsonl({"problem": "?", "solution": solution})).problems[0].answer == "2, 3"


@pytest.mark.parametrize(
    ("choices", "answer", "options", "gold"),
    [
        ({"A": "red", "B": "blue"}, "B", {}, "B"),
        (["red", "blue", "green"], "(C)", {}, "C"),
        (["red", "blue", "green"], "C.", {}, "C"),
        (["red ", "blue"], "red", {}, "A"),
        ([0.5, 1.5], 1.5, {}, "B"),
        (["red", "blue"], 1.0, {}, "B"),
        (["red", "blue"], "1", {"answer_is": "index"}, "B"),
    ],
)
def test_forms_of_options_and_of_the_right_one(tmp_path, choices, answer, options, gold):
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps({"question": "Which?", "choices": choices, "answer": answer}))
    assert load_problems(str(path), **options).problems[0].answer == gold


def test_prompts_without_gold_answers_are_taken_where_nobody_needs_one(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"question": "What is 1 + 1?"}\n{"question": "Which?", "choices": ["red", "blue"]}\n'
        '{"question": "What is 2 + 2?", "answer": "4"}\n{"question": "And?", "answer": null}\n'
    )
    found = load_problems(str(path), without_gold=True).problems
    assert [problem.answer for problem in found] == ["", "", "4", ""]
    assert [problem.grader for problem in found] == ["math", "choice:2", "math", "math"]
    assert found[1].prompt.endswith("A. red\nB. blue")
    with pytest.raises(ProblemsError, match="has 3 bad lines"):
        load_problems(str(path))
