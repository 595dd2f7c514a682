"""`diagnose`, `cost` and `regrade` as a user types them."""

import json
import re

import pytest
from report.synthetic_run import write_run

from satisfice import cli
from satisfice.runs import diagnosis
from satisfice.thinking import token_bytes

SHAPE = ["--params", "0.752e9", "--layers", "28", "--heads", "16", "--kv-heads", "8", "--head-dim", "128"]


@pytest.fixture
def satisfice(capsys, monkeypatch):
    """Runs a command in this process; its exit status and what it printed."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["satisfice", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        told = capsys.readouterr()
        return status, told.out, " ".join(told.err.split())

    return run


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "synthetic", problems=60, methods=3)


def test_a_run_is_diagnosed_without_its_model(satisfice, synthetic):
    status, out, err = satisfice("diagnose", synthetic)
    assert status == 0, err
    assert "thinking after the answer settled" in out
    assert "end marker" not in out  # only the model knows
    assert (synthetic / "timeline.svg").read_text().count("<svg") == 1
    found = json.loads((synthetic / "diagnosis.json").read_text())
    assert (found["method"], found["traces"], found["source"], found["at_hand"]) == ("plain", 60, "read", None)
    assert all(re.search(r"\d", each["because"]) for each in found["advice"])
    assert any(each["kind"] == "first" and "640" in each["because"] for each in found["advice"])


def test_another_method_and_one_problem_of_a_run(satisfice, synthetic):
    status, out, _ = satisfice("diagnose", synthetic, "--method", "deer:tau=0.95", "--problem", "sums/0007", "--json")
    assert (status, json.loads(out)["method"]) == (0, "deer:tau=0.95")
    for options, said in (
        (["--problem", "sums/9999"], "no trace of the problem 'sums/9999'"),
        (["--method", "no-wait"], "has no method 'no-wait', but plain,"),
    ):
        status, _, err = satisfice("diagnose", synthetic, *options)
        assert (status, said in err) == (2, True), err


def test_a_model_is_asked_at_every_boundary(satisfice, tmp_path, monkeypatch):
    status, out, err = satisfice("diagnose", "lab", "--limit", "6", "--out", tmp_path / "run", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["source"], found["courses"], found["known"]) == ("asked", 6, 1)
    assert found["at_hand"]["n"] > 0
    assert found["overthinking"]["value"] > 0.1
    assert found["accuracy_after"][0]["n"] == 6
    assert "entropy" in (tmp_path / "run" / "timeline.svg").read_text()
    # The run that it made is an ordinary one, and the model can be asked later.
    # The bytes of a vocabulary are put together once, not for every token: a real one takes a good part of a second.
    tables = []
    monkeypatch.setattr(diagnosis, "token_bytes", lambda tokenizer: tables.append(1) or token_bytes(tokenizer))
    again = json.loads(satisfice("diagnose", tmp_path / "run", "--ask", "lab", "--json")[1])
    assert again.pop("sure") == pytest.approx(found.pop("sure"), rel=1e-4)  # another batch rounds otherwise
    assert [each["value"] for each in again.pop("answer_entropy")] == pytest.approx(
        [each["value"] for each in found.pop("answer_entropy")], rel=1e-4
    )
    assert again == found
    assert len(tables) == 1
    status, _, err = satisfice("diagnose", tmp_path / "run", "--ask", "lab-tldr")
    assert (status, "another model" in err) == (2, True)
    assert satisfice("diagnose", "lab", "--ask", "lab")[0] == 2


def test_the_cost_of_one_response_is_the_papers(satisfice):
    status, out, err = satisfice(
        "cost", *SHAPE, "--prompt", "200", "--tokens", "16384", "--intensity", "562.5", "--json"
    )
    assert status == 0, err
    dense = json.loads(out)["cost"]["dense"]
    assert dense["flops"] / 1e12 == pytest.approx(56.2, abs=0.05)
    assert dense["memory_eflops"] / 1e12 == pytest.approx(8870.0, abs=0.05)
    only = json.loads(satisfice("cost", *SHAPE, "--tokens", "500", "--attention", "local:budget=64", "--json")[1])
    assert list(only["cost"]) == ["local:budget=64"]


def test_a_run_costs_what_its_lengths_say_and_a_budget_buys_a_policy(satisfice, synthetic, tmp_path):
    picture = tmp_path / "front.png"
    status, out, err = satisfice("cost", synthetic, *SHAPE, "--per-hour", "3", "--budget", "1e15", "--out", picture)
    assert status == 0, err
    assert "An oracle that knows the best policy" in " ".join(out.split())
    assert picture.read_bytes().startswith(b"\x89PNG")
    data = json.loads(satisfice("cost", synthetic, *SHAPE, "--budget", "1", "--json")[1])
    assert data["budget"]["best"] is None
    rows = {row["method"]: row for row in data["rows"]}
    assert rows["deer:tau=0.95"]["eflops_all"] > rows["deer:tau=0.95"]["eflops"]  # it probes
    assert rows["plain"]["tokens_squared"] > rows["plain"]["tokens"] ** 2
    limits = [point["cap"] for point in data["points"] if point["method"] == "deer:tau=0.95"]
    assert limits == [None]  # at another limit it would have probed otherwise


def test_a_sparse_run_is_another_run_and_says_so_everywhere(satisfice, tmp_path):
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    asked = ["compare", "lab", "--methods", "plain", "--limit", "3", "--max-tokens", "60"]
    kind = "block-topk:budget=16,block=4"
    assert satisfice(*asked, "--out", dense)[0] == 0
    status, out, err = satisfice(*asked, "--attention", kind, "--out", sparse, "--baseline", dense)
    assert status == 0, err
    assert f"decoded with {kind} attention" in out
    assert "against plain (transformers:lab, dense)" in " ".join(out.split())
    assert json.loads((sparse / "run.json").read_text())["attention"] == kind
    assert json.loads((sparse / "summary.json").read_text())["attention"] == kind
    assert f"transformers:lab with {kind} attention on lab" in (sparse / "report.html").read_text()
    assert "attention" not in json.loads((dense / "run.json").read_text())
    ids = [json.loads(next((each / "traces-plain.jsonl").open()))["response_ids"] for each in (dense, sparse)]
    assert ids[0] != ids[1]

    status, _, err = satisfice(*asked, "--attention", "local:budget=16", "--out", sparse)
    assert (status, f'attention: "{kind}" -> "local:budget=16"' in err) == (2, True), err
    status, _, err = satisfice("diagnose", sparse, "--ask", "lab")
    assert (status, f"ask with --attention {kind}" in err) == (2, True), err

    data = json.loads(satisfice("cost", dense, sparse, "--json")[1])
    assert [row["attention"] for row in data["rows"]] == ["dense", kind]
    assert {point["model"] for point in data["points"]} == {"transformers:lab", f"transformers:lab, {kind}"}
    as_dense = json.loads(satisfice("cost", sparse, "--attention", "dense", "--json")[1])["rows"][0]
    assert as_dense["bytes"] > data["rows"][1]["bytes"]
    out = satisfice("cost", dense, sparse)[1]
    assert "decoding it, block-topk:budget=16,block=4 or dense attention" in " ".join(out.split())


@pytest.mark.parametrize("engine", ["vllm", "openai"])
def test_an_engine_that_reads_by_no_budget_refuses_it(satisfice, engine):
    server = ["--base-url", "http://127.0.0.1:9/v1"] if engine == "openai" else []
    status, _, err = satisfice("compare", "lab", "--engine", engine, *server, "--attention", "local:budget=8")
    assert status == 2
    assert f"--attention goes with --engine transformers, not with {engine}" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name run folders, or describe a response"),
        ([*SHAPE[:-2], "--tokens", "5"], "--head-dim is missing"),
        ([*SHAPE, "--tokens", "5", "--attention", "sparse"], "no attention 'sparse'"),
        ([*SHAPE, "--tokens", "5", "--attention", "local:block=4"], "'block=4' is no setting of local"),
        ([*SHAPE, "--tokens", "5", "--accelerator", "abacus"], "no accelerator 'abacus'"),
    ],
)
def test_what_cannot_be_priced_is_refused(satisfice, arguments, said):
    status, _, err = satisfice("cost", *arguments)
    assert (status, said in err) == (2, True), err


def test_a_model_of_unknown_shape_is_refused_with_what_to_give(satisfice, synthetic):
    status, _, err = satisfice("cost", synthetic)
    assert (status, "give --params" in err) == (2, True), err


def test_a_run_is_graded_again(satisfice, synthetic):
    before = {file.name: file.read_bytes() for file in synthetic.glob("traces-*.jsonl")}
    status, out, err = satisfice("regrade", synthetic, "--grader", "exact")
    assert status == 0, err
    assert "of 180 verdicts differ" in out
    assert {file.name: file.read_bytes() for file in synthetic.glob("traces-*.jsonl")} == before
    data = json.loads(satisfice("regrade", synthetic, "--grader", "numeric", "--against", "numeric", "--json")[1])
    assert (data["changes"], data["file"]) == ([], None)


def test_information_of_a_run(satisfice, tmp_path):
    for folder, seed in (("run", 0), ("ideal", 1)):
        status, _, err = satisfice(
            "compare", "lab", "--limit", "3", "--samples", "2", "--methods", "plain", "--out", tmp_path / folder,
            "--seed", seed,
        )  # fmt: skip
        assert status == 0, err
    status, out, err = satisfice("information", tmp_path / "run")
    assert (status, "--ask MODEL" in " ".join(out.split()), "InfoBias of answers" in out) == (0, True, True), err
    status, out, err = satisfice(
        "information", tmp_path / "run", "--ask", "lab", "--ideal", tmp_path / "ideal", "--json"
    )
    assert status == 0, err
    found = json.loads(out)
    assert (found["followed"], found["responses"], len(found["program_bias"])) == (6, 6, 3)
    for trace in found["traces"]:
        assert len(trace["gains"]) == len(trace["places"]) - 1
        assert trace["targeted"] == pytest.approx([-gain for gain in trace["targeted_as_printed"]])
        assert trace["candidates"][0] not in trace["candidates"][1:]
    assert found["entropy"][0]["value"] > found["entropy"][-1]["value"]
    status, out, _ = satisfice("information", tmp_path / "run", "--ask", "lab")
    assert (status, bool(re.search(r"InfoGain +right answer", out))) == (0, True)  # in one line at 80 columns
    status, _, err = satisfice("information", tmp_path / "run", "--ask", "lab-tldr")
    assert (status, "another model" in err) == (2, True)


def test_information_refuses_an_ideal_run_that_does_not_fit(satisfice, synthetic, tmp_path):
    status, _, err = satisfice("information", synthetic, "--ideal", synthetic)
    assert (status, "make both runs with --samples 2 or more" in err) == (2, True), err
    other = write_run(tmp_path / "other", problems=5, methods=1)
    config = json.loads((other / "run.json").read_text())
    config["problems"]["digest"] = "another"
    (other / "run.json").write_text(json.dumps(config))
    status, _, err = satisfice("information", synthetic, "--ideal", other)
    assert (status, "a run of other problems" in err) == (2, True), err
