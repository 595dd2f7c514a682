"""The lab's own spelling of every method: none is missing, each is written in the lab's words and runs."""

import asyncio
from dataclasses import replace

import pytest

from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import METHODS, lab_spellings, parse_method
from satisfice.lab import DEMO_METHODS
from satisfice.problems import load_problems
from satisfice.runs.experiment import every_method


@pytest.fixture(scope="module")
def engine():
    engine = TransformersEngine.load("lab")
    yield engine
    engine.close()


def solve(engine, spelled, problems):
    sampling = engine.default_sampling

    async def all_of_them():
        jobs = (
            parse_method(spelled).solve(engine, problem, replace(sampling, seed=seed))
            for seed, problem in enumerate(problems)
        )
        return await asyncio.gather(*jobs)

    return asyncio.run(all_of_them())


def test_every_registered_method_has_one_spelling():
    names = [parse_method(spelled).name for spelled in lab_spellings()]
    assert sorted(names) == sorted(METHODS), "a method was registered or removed: change the method's `on_lab`"


def test_they_are_spelled_as_tables_show_them():
    assert [str(parse_method(spelled)) for spelled in lab_spellings()] == list(lab_spellings())
    assert set(DEMO_METHODS["lab"]) <= set(lab_spellings())


@pytest.mark.parametrize("spelled", [each for each in lab_spellings() if not each.startswith("no-wait")])
def test_texts_are_written_in_the_labs_words(tokenizer, spelled):
    """The lab's vocabulary is closed; words of no-wait that it lacks are left out by that method itself."""
    method = parse_method(spelled)
    for parameter in ("cue", "inducer", "markers"):
        for text in getattr(method, parameter, "").split("|"):
            assert tokenizer.unk_token_id not in tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_the_engine_of_the_lab_can_do_them_all_but_what_takes_training(engine):
    methods, left_out = every_method("lab", engine)
    assert [sentence.partition(":")[0] for sentence in left_out] == ([] if engine.levels else ["tldr"])
    assert len(methods) + len(left_out) == len(lab_spellings())


@pytest.mark.parametrize("spelled", [each for each in lab_spellings() if not each.startswith("tldr")])
def test_each_of_them_solves_a_problem(engine, spelled):
    (trace,) = solve(engine, spelled, load_problems("lab:calibration", limit=1).problems)
    assert trace.method == spelled
    assert trace.response_ids


@pytest.mark.slow
def test_none_of_them_costs_more_than_ten_times_plain(engine):
    problems = load_problems("lab:calibration", limit=50).problems
    methods, _ = every_method("lab", engine)
    tokens = {
        spelled: sum(trace.cost.total_tokens for trace in solve(engine, spelled, problems))
        for spelled in map(str, methods)
    }
    assert max(tokens.values()) <= 10 * tokens["plain"], tokens
