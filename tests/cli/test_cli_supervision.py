"""`sample`, `curate` and `train` on curated data, as a user types them."""

import json

import pytest
from cli.test_cli import satisfice


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "samples"
    done = satisfice(
        "sample", "lab", "--problems", "lab:train", "--limit", "6", "--samples", "3", "--threads", "1",
        "--out", str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_samples_become_data_and_a_model(samples, tmp_path):
    run = json.loads((samples / "run.json").read_text())
    assert (run["methods"], run["samples"]) == (["plain"], 3)
    data = tmp_path / "data"
    done = satisfice(
        "curate", "shortest-correct:most=2", "--traces", str(samples), "--out", str(data), "--format", "datasets"
    )
    assert done.returncode == 0, done.stderr
    assert "of 18 traces" in done.stdout
    card = json.loads((data / "card.json").read_text())
    assert card["curation"] == "shortest-correct:most=2"
    assert card["command"].startswith("satisfice curate shortest-correct:most=2")
    assert card["traces"]["in"] == 18
    assert (data / "lengths.png").is_file()
    assert (data / "dataset" / "dataset_info.json").is_file()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: lab\ndata: {data}\nsteps: 1\nrows_per_step: 2\nmax_tokens: 500\nlearning_rate: 1e-4\nthreads: 1\n"
    )
    done = satisfice("train", str(recipe), "--out", str(tmp_path / "model"), "--set", "micro_batch=2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "micro_batch: 2" in (tmp_path / "model" / "recipe.yaml").read_text()


def test_pruning_with_the_model_that_wrote_the_traces(samples, tmp_path):
    done = satisfice(
        "curate", "pir:ratio=1", "--traces", str(samples), "--out", str(tmp_path / "data"), "--model", "lab",
        "--threads", "1", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert card["tokens"]["after"]["mean"] < card["tokens"]["before"]["mean"]


def test_every_curation_is_listed():
    done = satisfice("curate", "--list", "--json")
    listed = json.loads(done.stdout)
    assert {"sft", "tokensqueeze", "reweighting", "pir", "o1-pruner"} <= {entry["name"] for entry in listed}
    for entry in listed:
        assert entry["summary"]
        assert all(parameter["meaning"] for parameter in entry["parameters"])
    (only,) = json.loads(satisfice("curate", "pir:ratio=0.5", "--list", "--json").stdout)
    assert only["name"] == "pir"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["curate"], "say what to make of which traces"),
        (["curate", "tokensqueze", "--traces", "x", "--out", "y"], "did you mean 'tokensqueeze'"),
        (["curate", "sft", "--traces", "x", "--out", "y"], "no run.json"),
        (["curate", "sft", "--traces", "x", "--out", "y", "--format", "csv"], "must be jsonl or datasets"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments, says):
    done = satisfice(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
