"""From run folders to data: problems put together, refusals, the card, what was written and what was left."""

import asyncio
import hashlib
import json
import math
import tracemalloc
from dataclasses import asdict

import pytest
from intervention.scripted import ScriptedEngine
from supervision.sampled import trace

from satisfice.engines.base import Capability, EngineClosed, EngineError, EngineFailed
from satisfice.problems import GraderPool
from satisfice.report.curation import write_lengths
from satisfice.runs.curation import Pool, check_curation, curate
from satisfice.runs.run_folder import RunFolder, RunFolderError
from satisfice.supervision import CurationError, parse_curation
from satisfice.supervision.method import TOGETHER
from satisfice.supervision.rows import digest_of_ids
from satisfice.thinking import FAMILIES
from satisfice.trace import Trace

MARKS = asdict(FAMILIES["think-tags"])


def written(folder, traces, **changes):
    """A run folder with these traces, in an order that keeps the samples of a problem apart."""
    config = {
        "model": "m", "model_digest": "d", "methods": ["plain"], "samples": 4, "thinking": MARKS,
        "instruction": "Box it.", "system": "Be kind.", **changes,
    }  # fmt: skip
    with RunFolder.create_or_open(folder, config) as run:
        for each in sorted(traces, key=lambda each: (each.sample, each.problem_id)):
            run.append(each)
    return folder


def four(problem_id, *lengths, **more):
    return [
        trace(abs(tokens), tokens > 0, sample=sample, problem_id=problem_id, **more)
        for sample, tokens in enumerate(lengths)
    ]


def carried_out(spelled, pool, out, **options):
    return asyncio.run(curate(parse_curation(spelled), pool, out, **options))


def rows(folder):
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


def test_the_samples_of_a_problem_come_together(tmp_path):
    pool = Pool([written(tmp_path / "run", [*four("a", 9, 5, -3, 8), *four('é"b', 4, 4, 4, -4), *four("c", -1)])])
    found = list(pool)
    assert [(each.id, [t.sample for t in each.traces]) for each in found] == [
        ("a", [0, 1, 2, 3]),
        ("c", [0]),
        ('é"b', [0, 1, 2, 3]),
    ]
    assert (len(pool), pool.traces, pool.samples) == (3, 9, 4)
    assert list(pool) == found  # again and again
    assert [turn["role"] for turn in found[0].turns] == ["system", "user"]
    assert found[0].turns[1]["content"] == "What is 1+1?\n\nBox it."
    assert found[0].question == "What is 1+1?"


def test_two_runs_of_one_model_are_one_pool(tmp_path):
    one = written(tmp_path / "one", four("a", 9, 5))
    other = written(tmp_path / "other", [trace(4, sample=0, problem_id="a", seed=77)], seed=1)
    (found,) = Pool([one, other])
    assert [each.cost.retained_tokens for each in found.traces] == [9, 5, 4]
    with pytest.raises(RunFolderError, match="given twice"):
        Pool([one, one])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "n", "model_digest": "e"}, "different models"),
        ({"model_digest": "e"}, "other weights"),
        ({"thinking": asdict(FAMILIES["seed-oss"])}, "mark thinking in different ways"),
        ({"methods": ["no-thinking"]}, "has no traces of 'plain'"),
    ],
)
def test_runs_that_make_no_pool_are_refused(tmp_path, changes, says):
    one = written(tmp_path / "one", four("a", 9, 5))
    other = written(tmp_path / "other", [], **changes)
    with pytest.raises(RunFolderError, match=says):
        Pool([one, other])


def test_the_only_method_is_taken_and_another_one_where_it_is_named(tmp_path):
    other = [trace(5, sample=0, problem_id="a").model_copy(update={"method": "no-wait"})]
    one = written(tmp_path / "one", other, methods=["no-wait"])
    assert Pool([one]).method == "no-wait"
    both = written(tmp_path / "both", [*four("a", 9, 5), *other], methods=["plain", "no-wait"])
    assert [each.traces[0].cost.retained_tokens for each in Pool([both])] == [9]
    assert [each.traces[0].cost.retained_tokens for each in Pool([both], "no-wait")] == [5]
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        Pool([tmp_path])


def test_a_torn_line_and_old_attempts_do_not_count(tmp_path):
    folder = written(tmp_path / "run", four("a", 9, 5))
    path = folder / "traces-plain.jsonl"
    failed = {"schema_version": 1, "problem_id": "z", "method": "plain", "error": "gone"}
    path.write_text(json.dumps(failed) + "\n" + path.read_text() + '{"schema_version":2,"problem_id":"b"')
    assert [each.id for each in Pool([folder])] == ["a"]
    path.write_text("nonsense\n")
    with pytest.raises(RunFolderError, match="not JSON"):
        Pool([folder])


def test_data_and_card(tmp_path):
    pool = Pool([written(tmp_path / "run", [*four("a", 9, 5, -3, 8), *four("b", -4, -4, -4, -5)])])
    done = carried_out("shortest-correct", pool, tmp_path / "data", command="satisfice curate ...")
    (row,) = rows(tmp_path / "data")
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert row["provenance"]["tokens_before"] == row["tokens"] == 5
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert card == done.card
    assert card["problems"] == {"in": 2, "kept": 1}
    assert card["traces"] == {"in": 8, "kept": 1}
    assert card["dropped"] == {"wrong answer": 5, "longer than what is kept of its problem": 2}
    assert card["traces"]["kept"] + sum(card["dropped"].values()) == 8
    assert [card["tokens"][name]["mean"] for name in ("before", "selected", "after")] == [7.3333, 5, 5]
    assert card["difficulty"] == {"in": 0.375, "kept": 0.75}
    assert card["diagnostics"]["tokens_right"] == pytest.approx(22 / 3, abs=1e-3)
    assert card["diagnostics"]["tokens_wrong"] == 4
    data = (tmp_path / "data" / "data.jsonl").read_bytes()
    assert card["data_digest"] == hashlib.sha256(data).hexdigest()
    traces = (tmp_path / "run" / "traces-plain.jsonl").read_bytes()
    assert list(card["runs"].values()) == [hashlib.sha256(traces).hexdigest()]
    assert card["command"] == "satisfice curate ..."
    said = (tmp_path / "data" / "README.md").read_text()
    assert "| wrong answer | 5 |" in said
    assert "| problems | 2 | 1 |" in said
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["README.md", "card.json", "data.jsonl"]
    with pytest.raises(RunFolderError, match="holds data already"):
        carried_out("sft", pool, tmp_path / "data")
    picture = write_lengths(done.before, done.after, tmp_path / "lengths.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_lengths_before_and_after_an_edit(tmp_path):
    thinking = "So 2.\n\nWait, check.\nSo 2.\n\n"
    run = written(tmp_path / "run", [trace(45, sample=0, problem_id="a", thinking=thinking)])
    card = carried_out("truncate-at-answer", Pool([run]), tmp_path / "data").card
    assert card["tokens"]["before"]["mean"] == 45
    assert card["tokens"]["after"]["mean"] < 45
    assert card["notes"] == {"steps": 2, "steps_kept": 1}


def test_nothing_left_is_said_and_leaves_nothing(tmp_path):
    pool = Pool([written(tmp_path / "run", four("a", -9, -5))])
    with pytest.raises(CurationError, match="nothing is left of 2 traces, most of them because: wrong answer"):
        carried_out("sft", pool, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_fewer_samples_than_needed_are_refused_before_anything(tmp_path):
    pool = Pool([written(tmp_path / "run", four("a", 9), samples=1)])
    with pytest.raises(CurationError, match="at least 2 responses"):
        carried_out("shortest-correct", pool, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_needs_a_model_says_so(tmp_path, tokenizer):
    pool = Pool([written(tmp_path / "run", four("a", 9, -15))])
    with pytest.raises(CurationError, match="say which, as --model m"):
        check_curation(parse_curation("pir"), pool, None)
    engine = ScriptedEngine(tokenizer, lambda text: {}, without=[Capability.SCORE])
    with pytest.raises(EngineError, match="needs score"):
        check_curation(parse_curation("pir"), pool, engine)
    engine = ScriptedEngine(tokenizer, lambda text: {})
    with pytest.raises(CurationError, match="companion 'j'"):
        check_curation(parse_curation("pir:judge=j"), pool, engine)
    engine.digest = "another"
    check_curation(parse_curation("pir"), pool, engine)
    with pytest.raises(CurationError, match="not the model that wrote"):
        check_curation(parse_curation("tokensqueeze"), pool, engine)
    check_curation(parse_curation("tokensqueeze:refine_steps=false"), pool, None)


class Failing(ScriptedEngine):
    """Fails for the first calls."""

    failures = 0

    async def score(self, ids, start):
        if self.failures:
            self.failures -= 1
            raise EngineFailed("gone")
        return await super().score(ids, start)


@pytest.mark.parametrize(("failures", "kept"), [(1, 1), (99, 0)])
def test_an_engine_that_fails_is_tried_again_and_then_counted(tmp_path, tokenizer, monkeypatch, failures, kept):
    monkeypatch.setattr("satisfice.runs.curation.PAUSE", 0)
    thinking = "So 2.\n\nWait. So 2.\n\n"
    run = written(
        tmp_path / "run",
        [trace(20, sample=0, problem_id="a", thinking=thinking), trace(9, sample=0, problem_id="b")],
    )
    engine = Failing(tokenizer, lambda text: {})
    engine.failures = failures
    with GraderPool() as graders:
        done = carried_out("pir", Pool([run]), tmp_path / "data", engine=engine, graders=graders)
    assert done.card["traces"]["kept"] == 1 + kept
    assert done.failed == 1 - kept
    assert done.card["dropped"] == ({} if kept else {"the engine failed": 1})


class Dying(ScriptedEngine):
    """Counts its scores, and is closed after some of them, as if the process were killed."""

    def __init__(self, tokenizer, scores):
        super().__init__(tokenizer, lambda text: {})
        self.left, self.scores = scores, 0

    async def score(self, ids, start):
        await asyncio.sleep(0)
        if self.scores == self.left:
            raise EngineClosed("closed")
        self.scores += 1
        return await super().score(ids, start)


@pytest.mark.parametrize("curation", ["pir:ratio=1", "pir:ratio=1,scope=data"])
def test_a_curation_that_was_killed_goes_on_where_it_was(tmp_path, tokenizer, curation):
    thinking = "So 2.\n\nWait. So 2.\n\nAlternatively. So 2.\n\n"
    run = written(tmp_path / "run", [trace(20, sample=0, problem_id=f"p{n}", thinking=thinking) for n in range(30)])
    pool, out = Pool([run]), tmp_path / "data"
    with GraderPool() as graders:
        whole = Dying(tokenizer, math.inf)
        expected = carried_out(curation, pool, tmp_path / "whole", engine=whole, graders=graders)
        assert whole.scores == 90
        first = Dying(tokenizer, 50)
        with pytest.raises(EngineClosed):
            carried_out(curation, pool, out, engine=first, graders=graders)
        assert [path.name for path in out.iterdir()] == [".work.jsonl"]
        with (out / ".work.jsonl").open("ab") as file:
            file.write(b'{"key": "chain/torn')
        with pytest.raises(RunFolderError, match="unfinished work of another curation"):
            carried_out("pir:ratio=0", pool, out, engine=Dying(tokenizer, 0), graders=graders)
        second = Dying(tokenizer, math.inf)
        done = carried_out(curation, pool, out, engine=second, graders=graders)
    # Chains of three scores each; only those that were under way when it died are scored again.
    assert 90 - 50 <= second.scores <= 90 - 50 + 3 * TOGETHER
    assert second.scores < 90
    assert rows(out) == rows(tmp_path / "whole")
    assert not (out / ".work.jsonl").exists()
    cost, before = done.card.pop("cost"), expected.card.pop("cost")
    assert cost["prefilled"] + cost["cached"] >= before["prefilled"] + before["cached"] > 0
    for card in (done.card, expected.card):
        del card["created"]
    assert done.card == expected.card


def test_a_system_turn_and_earlier_turns_are_in_the_rows(tmp_path):
    history = [("user", "Hello."), ("assistant", "Hi.")]
    own = four("a", 9, 11, system="Be brief.", history=history)
    run = written(tmp_path / "run", [*own, *four("b", 9, 11)])
    assert Trace.from_json(own[0].to_json()) == own[0]
    carried_out("sft", Pool([run]), tmp_path / "data")
    asked = {row["provenance"]["problem_id"]: row["messages"][:-1] for row in rows(tmp_path / "data")}
    assert [(turn["role"], turn["content"]) for turn in asked["a"]] == [
        ("system", "Be brief."), *history, ("user", "What is 1+1?\n\nBox it."),
    ]  # fmt: skip
    assert [turn["role"] for turn in asked["b"]] == ["system", "user"]
    assert asked["b"][0]["content"] == "Be kind."
    # Asked under another system turn it is another question.
    mixed = written(tmp_path / "mixed", [*four("a", 9, 11)[:1], *four("a", 9, 11, system="Be brief.")[1:]])
    with pytest.raises(CurationError, match="differ in prompt"):
        carried_out("sft", Pool([mixed]), tmp_path / "none")


def test_log_probabilities_are_read_by_who_asks(tmp_path):
    kept = four("a", 9, -15)
    for number, each in enumerate(kept):
        each.response_ids, each.logprobs = [1, 2, 3], [-0.5, -0.25, -0.125 - number]
    kept[1].logprobs[0] = None  # a method wrote it
    run = written(tmp_path / "run", kept)
    (plain,), (with_them,) = Pool([run]), Pool([run], logprobs=True)
    assert {each.logprobs for each in plain.traces} == {None}
    assert [each.logprobs for each in with_them.traces] == [each.logprobs for each in kept]
    carried_out("o1-pruner:variant=paper", Pool([run], logprobs=True), tmp_path / "data")
    right, wrong = sorted(rows(tmp_path / "data"), key=lambda row: row["provenance"]["samples"])
    assert right["likelihood"] == {"logprob": -0.875, "ids": digest_of_ids([1, 2, 3])}
    assert "likelihood" not in wrong


@pytest.mark.parametrize("name", ["sft", "tokensqueeze:refine_steps=false", "o1-pruner"])
def test_memory_does_not_grow_with_the_traces(tmp_path, name):
    def peak(problems):
        folder = tmp_path / f"run-{problems}"
        written(folder, [])
        text = "x" * 2000
        with (folder / "traces-plain.jsonl").open("w") as file:
            for sample in range(4):
                for number in range(problems):
                    tokens = 10 + 7 * sample + number % 5
                    each = trace(tokens, sample < 2, sample=sample, problem_id=f"p{number}", thinking=text)
                    file.write(each.to_json() + "\n")
        tracemalloc.start()
        carried_out(name, Pool([folder]), tmp_path / f"data-{problems}-{name[:3]}")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # imports and caches
    small, large = peak(50), peak(400)
    # 1400 more traces of 2000 characters each, of which only their places may stay.
    assert large - small < 1400 * 100
