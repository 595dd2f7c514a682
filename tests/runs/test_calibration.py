"""Calibration: which setting is certified, on what, for how many responses, and what is refused."""

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intervention.scripted import ScriptedEngine
from intervention.thinker import SURE, play, thinker

from satisfice.engines.base import Capability, EngineError, Sampling
from satisfice.engines.remembering import RememberingEngine
from satisfice.intervention import METHODS, MethodError, parse_method
from satisfice.intervention.answers import find_answer
from satisfice.intervention.methods.entrocut import EntroCut
from satisfice.measurement.risk import BettingTest
from satisfice.problems import GraderError, GraderPool, Problem, ProblemSet
from satisfice.runs.calibration import (
    CalibrationError,
    Promise,
    calibrate,
    check_enough,
    is_held_back,
    ladder,
    ladders,
    problems_at_least,
    sentences,
)
from satisfice.runs.certificate import (
    Certificate,
    CertificateError,
    Place,
    Saving,
    differences,
    other_versions,
    read_certificate,
    warnings,
)
from satisfice.runs.experiment import Experiment, Progress
from satisfice.runs.run_folder import read_run
from satisfice.runs.watch import AnswerWatch, disagree
from satisfice.thinking import ThinkingFormat

FIRST = "So 1.\n\n"
SECOND = "Wait, let me check.\nSo 3.\n\n"
LENIENT = Promise(max_loss=0.2, confidence=0.9, holdout=0.2)
GREEDY = Sampling(temperature=0, max_tokens=60)


class RaisedEngine(ScriptedEngine):
    """Its logits are positive, as those of real models are where a token is likely, so that dividing them acts."""

    def log_probabilities(self, text):
        return super().log_probabilities(text) + 20


def answering(tokenizer, stop_after_first=0.1):
    """A script: one paragraph more or less decides the answer, 1 after the first and 3 after the second.

    With 0.1 for the end behind the first paragraph thinking ends there where t < 0.917. A probe of entrocut is torn
    there (0.673 nats) and sure behind the second.
    """
    parts = {EntroCut.cue: play(tokenizer, {"1": 0.6, "2": 0.4 - 1e-9})}
    early, late = (
        thinker(tokenizer, FIRST + SECOND + "</think>", parts, f"\n\nThe answer is \\boxed{{{value}}}.")
        for value in (1, 3)
    )

    def script(text):
        response = text.rpartition("<|assistant|>")[2]
        if response.endswith(FIRST):
            return {"Wait": 0.5, "</think>": stop_after_first}
        if response.endswith(SECOND + "</think>\n\n" + EntroCut.cue):
            return {"3": SURE}
        return (late if "Wait" in response else early)(text)

    return script


def problems(answers):
    return ProblemSet(
        "asked", [Problem(f"p{place}", f"Start with {place}", gold) for place, gold in enumerate(answers)], []
    )


def find(engine, folder, texts, answers, promise=LENIENT, grids=(), progress=None, **options):
    options.setdefault("sampling", GREEDY)
    experiment = Experiment(problems(answers), (), concurrency=8, **options)
    with GraderPool(workers=1) as graders:
        return asyncio.run(
            calibrate(engine, experiment, ladders(texts, list(grids), 60), promise, folder, graders, progress)
        )


# -- what is certified


def test_the_last_that_passed_is_returned_and_never_the_first_that_failed(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    found = find(engine, tmp_path / "c", ["temperature-scaling"], ["3"] * 40)
    assert found.method == "temperature-scaling:t=0.98", "both save nothing, so the more careful one"
    verdicts = [(setting.value, setting.verdict) for setting in found.ladders["temperature-scaling"]]
    assert verdicts[:4] == [(0.98, "certified"), (0.95, "certified"), (0.9, "hopeless"), (0.85, "not tried")]
    assert found.observed_loss == 0
    assert found.bound <= 0.2
    assert found.saving.held_back
    assert found.saving.n == 8
    # Frugal: what is certified or hopeless is not tried on the rest, and nothing behind it at all.
    assert found.responses["taken"] < 0.3 * found.responses["full_grid"]
    assert found.responses["full_grid"] == 11 * 40
    assert read_certificate(tmp_path / "c" / "certificate.json").model_dump() == found.model_dump()


def test_of_all_that_is_certified_the_one_that_saves_most_is_taken(tokenizer, tmp_path):
    # Stopping early is right where the gold answer is 1: it wins some and loses fewer.
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    found = find(engine, tmp_path / "c", ["temperature-scaling"], ["1"] * 30 + ["3"] * 2, grids=["t=0.95,0.9"])
    assert found.method == "temperature-scaling"
    assert found.observed_loss < 0
    assert found.saving.value > 0.3
    assert found.saving.low is None or found.saving.low <= found.saving.value
    lines = sentences(found)
    assert lines[0] == "temperature-scaling is certified for a net loss of at most 20.00%, with confidence 0.9"
    assert any("held back from the choice" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "low", "said"),
    [
        (-0.2, -0.5, "it saves nothing here, so plain is the better choice"),
        (0.0, None, "it saves nothing here, so plain is the better choice"),
        (0.1, -0.1, "that it saves anything is not shown: the interval reaches 0"),
        (0.1, 0.05, None),
    ],
)
def test_a_certified_setting_that_saves_nothing_is_not_praised(value, low, said):
    saving = Saving(value=value, low=low, high=0.3, convention="thinking", n=30, held_back=True)
    found = sentences(
        Certificate(
            method="tldr:level=short", baseline="plain", loss="net", max_loss=0.2, confidence=0.95, levels={},
            n=20, observed_loss=0.0, bound=0.19, saving=saving,
        )
    )  # fmt: skip
    assert [line for line in found if "saves nothing" in line or "not shown" in line] == ([said] if said else [])


def test_harm_counts_no_gains(tokenizer, tmp_path):
    answers = ["1", "3"] * 20
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    promise = Promise(max_loss=0.4, confidence=0.9, loss="harm", holdout=0)
    found = find(engine, tmp_path / "harm", ["temperature-scaling"], answers, promise, ["t=0.9"])
    assert found.method is None
    assert found.ladders["temperature-scaling"][0].loss == pytest.approx(0.5, abs=0.2)
    net = find(engine, tmp_path / "net", ["temperature-scaling"], answers, Promise(0.4, 0.9, "net", 0), ["t=0.9"])
    assert net.method is not None or net.ladders["temperature-scaling"][0].loss < 0.2
    if net.saving is not None:
        assert not net.saving.held_back
        assert any("so this is optimistic" in line for line in sentences(net))


def test_none_qualifies_is_a_result_that_says_what_is_missing(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    found = find(engine, tmp_path / "c", ["temperature-scaling"], ["3"] * 40, grids=["t=0.9,0.8"])
    assert found.method is None
    lines = sentences(found)
    assert lines[0] == "no setting qualifies for a net loss of at most 20.00%, with confidence 0.9"
    assert "best bound reached: 100.00% by temperature-scaling, which lost 100.00% on" in lines[1]
    assert "more calibrating problems like these if nothing more were lost" in lines[2]
    with pytest.raises(CertificateError, match=r"certificate.json certifies nothing.*use the baseline plain"):
        read_certificate(tmp_path / "c" / "certificate.json").chosen()


def test_methods_share_the_level_and_it_is_said(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    found = find(
        engine, tmp_path / "c", ["temperature-scaling", "entrocut:k=1"], ["1"] * 40, grids=["t=0.95", "tau=0.7"]
    )
    # Cutting behind the first paragraph is right here.
    assert found.method == "entrocut:tau=0.7,k=1"
    # Each of them came to its end, so there was nobody left to hand anything on to.
    assert found.levels == {"temperature-scaling": pytest.approx(0.05), "entrocut:k=1": pytest.approx(0.05)}
    assert found.saving.convention == "total"
    assert any(
        line.startswith("the chance of 0.1 to be wrong was shared out: temperature-scaling 0.05")
        for line in sentences(found)
    )


def test_a_level_that_is_no_longer_needed_is_handed_on(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    found = find(
        engine, tmp_path / "c", ["temperature-scaling", "entrocut:k=1"], ["3"] * 40, grids=["t=0.95", "tau=0.7"]
    )
    assert found.levels == {"temperature-scaling": pytest.approx(0.05), "entrocut:k=1": pytest.approx(0.1)}
    assert found.method == "temperature-scaling:t=0.95"


def test_disagreement_needs_no_gold_and_says_how_the_baseline_differs_from_itself(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    promise = Promise(0.2, 0.9, "disagreement", 0.2)
    found = find(engine, tmp_path / "c", ["temperature-scaling"], [""] * 40, promise)
    assert found.method == "temperature-scaling:t=0.98"
    assert found.self_disagreement["share"] == 0
    assert any("the baseline disagrees with itself" in line for line in sentences(found))
    run = read_run(tmp_path / "c" / "batch-1")
    assert {trace.grade.note for trace in run.traces["plain"]} == {"no gold answer"}
    assert {trace.sample for trace in run.traces["plain"]} == {0, 1}


def test_a_vote_is_measured_against_the_vote_of_the_most(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    found = find(engine, tmp_path / "c", ["self-consistency"], ["3"] * 30, grids=["k=3,2,1"])
    assert (found.baseline, found.method) == ("self-consistency:k=3", "self-consistency:k=1")
    assert found.saving.value == pytest.approx(2 / 3)
    with pytest.raises(MethodError, match="calibrate a vote alone"):
        find(engine, tmp_path / "d", ["self-consistency", "temperature-scaling"], ["3"] * 60)


def test_answers_are_compared_as_the_grader_does():
    with GraderPool(workers=1) as graders:

        def same(left, right, grader="math"):
            return not asyncio.run(disagree(graders, grader, left, right))

        assert same("0.5", "\\frac{1}{2}")
        assert same("x+1", "1+x")
        assert not same("4", "5")
        assert same(None, None)
        assert not same(None, "5")
        assert same("B", "B", "choice:4")
        assert not same("B", "C", "choice:4")
        assert same("ab", "ab", "reasoning-gym:basic")
        assert not same("ab", "abc", "reasoning-gym:basic")


@pytest.mark.parametrize(
    ("left", "right", "grader", "differ"),
    [
        ("", "", "math", False),  # neither answers: nothing is lost
        ("", "It is \\boxed{5}.", "math", True),
        ("It is \\boxed{5}.", "", "math", True),
        ("I cannot say.", "No idea.", "math", False),
        ("It is \\boxed{0.5}.", "So \\boxed{\\frac{1}{2}}.", "math", False),
        ("B", "(B)", "choice:4", False),
        ("", "(B)", "choice:4", True),
    ],
)
def test_calibration_and_watch_count_a_pair_by_the_same_rule(left, right, grader, differ):
    watch = AnswerWatch(0.3, 0.9)
    watch.add(left, right, grader)
    assert watch.report()["disagreement"] == float(differ)
    assert watch.unanswered == (find_answer(left, grader) is None and find_answer(right, grader) is None)
    with GraderPool(workers=1) as graders:
        answers = (find_answer(text, grader) for text in (left, right))
        assert asyncio.run(disagree(graders, grader, *answers)) is differ


# -- the folder


def test_a_calibration_that_was_killed_goes_on_and_comes_to_the_same(tokenizer, tmp_path):
    answers = ["3"] * 40
    whole = find(RaisedEngine(tokenizer, answering(tokenizer)), tmp_path / "whole", ["temperature-scaling"], answers)
    seen = []

    def die(trace):
        seen.append(trace)
        if len(seen) == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(
            RaisedEngine(tokenizer, answering(tokenizer)), tmp_path / "c", ["temperature-scaling"], answers,
            progress=Progress(advance=die),
        )  # fmt: skip
    before = {path.name: path.read_bytes() for path in (tmp_path / "c" / "batch-1").glob("traces-*")}
    found = find(RaisedEngine(tokenizer, answering(tokenizer)), tmp_path / "c", ["temperature-scaling"], answers)
    for name, content in before.items():
        assert (tmp_path / "c" / "batch-1" / name).read_bytes().startswith(content)
    assert found.model_dump(exclude={"created"}) == whole.model_dump(exclude={"created"})


def test_problems_are_added_to_a_calibration_that_did_not_suffice(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    answers = ["1", *["3"] * 5] * 20  # t=0.9 loses 2 of 3: 5 lost and 1 won of 6
    promise = Promise(0.75, 0.9, "net", 0)
    few = find(engine, tmp_path / "c", ["temperature-scaling"], answers[:6], promise, ["t=0.9"])
    assert few.method is None
    assert few.ladders["temperature-scaling"][0].needed > 0
    calls = len(engine.calls)
    found = find(engine, tmp_path / "c", ["temperature-scaling"], answers, promise, ["t=0.9"])
    assert found.ladders["temperature-scaling"][0].n > 6
    asked = {text.rpartition("Start with")[2].split("<")[0].strip() for text, _, _ in engine.calls[calls:]}
    assert not asked & {str(number) for number in range(6)}, "what was there is not asked again"
    assert sorted(path.name for path in (tmp_path / "c").glob("batch-*")) == ["batch-1", "batch-2"]


def test_a_promise_cannot_be_changed_after_looking(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    find(engine, tmp_path / "c", ["temperature-scaling"], ["3"] * 30, grids=["t=0.95"])
    for changed, what in (
        ({"promise": Promise(0.25, 0.9, holdout=0.2)}, "max_loss"),
        ({"grids": ["t=0.95,0.9"]}, "settings"),
        ({"sampling": Sampling(temperature=0, max_tokens=59)}, "asked"),
    ):
        with pytest.raises(CalibrationError, match=f"was begun with other {what}: .* use another folder"):
            find(engine, tmp_path / "c", ["temperature-scaling"], ["3"] * 30, **{"grids": ["t=0.95"], **changed})
    with pytest.raises(CalibrationError, match="30 problems that are missing or different now, such as p"):
        find(engine, tmp_path / "c", ["temperature-scaling"], ["4"] * 30, grids=["t=0.95"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(CalibrationError, match="is not empty and holds no calibration"):
        find(engine, tmp_path / "other", ["temperature-scaling"], ["3"] * 30)


# -- responses that could not be had


class Flaky(RaisedEngine):
    """Fails at some questions, for the baseline, for a setting (which has a control) or for both."""

    def __init__(self, tokenizer, script, numbers, sides=("baseline", "setting")):
        super().__init__(tokenizer, script)
        self.numbers, self.sides, self.tries = {str(number) for number in numbers}, sides, 0

    async def generate(self, prompt_ids, sampling, *, control=None, **options):
        asked = self.tokenizer.decode(list(prompt_ids)).rpartition("Start with")[2].split("<")[0].strip()
        if asked in self.numbers and ("baseline" if control is None else "setting") in self.sides:
            self.tries += 1
            raise EngineError("too hot")
        return await super().generate(prompt_ids, sampling, control=control, **options)


STRICT = Promise(max_loss=0.1, confidence=0.9, holdout=0.2)
MANY = ["3"] * 140


def in_order(folder):
    """The numbers of the problems that decide, in the order in which the test sees them, and of those held back."""
    batches = json.loads((folder / "calibration.json").read_text())["batches"]
    numbers = [name[1:] for batch in batches for name, _ in batch]
    held = [is_held_back(place, STRICT.holdout) for place in range(len(numbers))]
    return ([each for each, out in zip(numbers, held, strict=True) if out is back] for back in (False, True))


@pytest.fixture(scope="module")
def order(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "c"
    found = find(
        RaisedEngine(tokenizer, answering(tokenizer)), folder, ["temperature-scaling"], MANY, STRICT, ["t=0.95"]
    )
    return (*in_order(folder), found)


@pytest.mark.parametrize("side", ["baseline", "setting"])
def test_a_response_that_fails_counts_as_lost_and_a_later_run_fills_its_place(tokenizer, tmp_path, order, side):
    calibrating, _, whole = order
    script, again = answering(tokenizer), {}

    def calibrated(numbers):
        engine = Flaky(tokenizer, script, numbers, [side])
        again["tries"] = engine
        return find(engine, tmp_path / "c", ["temperature-scaling"], MANY, STRICT, ["t=0.95"])

    found = calibrated(calibrating[:1])
    assert found.method == "temperature-scaling:t=0.95"
    assert found.failed == {"baseline": int(side == "baseline"), "method": int(side == "setting")}
    assert found.n > whole.n, "a loss takes more problems to make up for"
    assert found.observed_loss == pytest.approx(1 / found.n)
    name = "plain" if side == "baseline" else found.method
    said = f"1 of {found.n} responses ({1 / found.n:.1%}) of {name} could not be had and count as lost"
    assert any(line.startswith(said) for line in sentences(found))
    assert again["tries"].tries == 1, "once a run"
    # The order is that of the problems, whenever a response came.
    filled = calibrated([])
    assert filled.failed == {"baseline": 0, "method": 0}
    assert (filled.n, filled.observed_loss, filled.bound) == (whole.n, 0, whole.bound)


def test_more_than_two_percent_of_the_baseline_missing_certifies_nothing(tokenizer, tmp_path, order):
    calibrating, _, whole = order
    engine = Flaky(tokenizer, answering(tokenizer), calibrating[1:60:20], ["baseline"])
    with pytest.raises(CalibrationError) as caught:
        find(engine, tmp_path / "c", ["temperature-scaling"], MANY, STRICT, ["t=0.95"])
    said = str(caught.value)
    assert "nothing is certified: " in said
    assert "of plain could not be had, and at most 2% may be missing; the last because: EngineError: too hot" in said
    assert "The same command tries them again and goes on from there" in said
    assert not (tmp_path / "c" / "certificate.json").exists()
    engine.numbers = set()
    found = find(engine, tmp_path / "c", ["temperature-scaling"], MANY, STRICT, ["t=0.95"])
    assert (found.method, found.n) == (whole.method, whole.n)


def test_a_setting_that_fails_too_often_ends_its_own_sequence_only(tokenizer, tmp_path, order):
    calibrating, _, _ = order

    class HotWhenCold(Flaky):
        async def generate(self, prompt_ids, sampling, *, control=None, **options):
            self.sides = ["setting"] if control is not None and control.gain > 0.07 else []
            return await super().generate(prompt_ids, sampling, control=control, **options)

    engine = HotWhenCold(tokenizer, answering(tokenizer), calibrating[1:60:15])
    found = find(engine, tmp_path / "c", ["temperature-scaling"], MANY, STRICT, ["t=0.98,0.93,0.92"])
    row = found.ladders["temperature-scaling"]
    assert [each.verdict for each in row] == ["certified", "failing", "not tried"]
    assert found.method == "temperature-scaling:t=0.98"
    assert row[1].failed > 0.02 * row[1].n
    assert any("so it is not certified: at most 2% may be missing" in line for line in sentences(found))


def test_what_fails_among_the_problems_held_back_is_left_out_and_said(tokenizer, tmp_path, order):
    _, held_back, whole = order
    engine = Flaky(tokenizer, answering(tokenizer), held_back[:3])
    found = find(engine, tmp_path / "c", ["temperature-scaling"], MANY, STRICT, ["t=0.95"])
    assert whole.held_back == {"n": 28, "loss": 0, "failed": 0}
    assert found.held_back == {"n": 25, "loss": 0, "failed": 3}
    assert found.saving.n == 25
    assert "lost 0.00% on the problems held back, without 3 that could not be had there" in sentences(found)
    engine = Flaky(tokenizer, answering(tokenizer), held_back)
    found = find(engine, tmp_path / "d", ["temperature-scaling"], MANY, STRICT, ["t=0.95"])
    assert (found.method, found.saving.value, found.saving.n) == (whole.method, None, 0)


def test_a_baseline_without_answers_has_nothing_to_disagree_with(tokenizer, tmp_path):
    engine = ScriptedEngine(tokenizer, thinker(tokenizer, "So 1.\n\n</think>", {}, "\n\nThe result is none."))
    promise = Promise(0.2, 0.9, "disagreement", 0.2)
    with pytest.raises(MethodError, match=r"it gives no answer that its grader finds in 100% .*check --grader"):
        find(engine, tmp_path / "c", ["temperature-scaling"], [""] * 40, promise, ["t=0.95"])


def test_all_that_fails_certifies_nothing(tokenizer, tmp_path):
    few = Promise(max_loss=0.5, confidence=0.6, holdout=0)
    engine = Flaky(tokenizer, answering(tokenizer), range(8), ["baseline"])
    with pytest.raises(CalibrationError, match=r"of plain could not be had.*too hot"):
        find(engine, tmp_path / "c", ["temperature-scaling"], ["3"] * 8, few, ["t=0.95"])


def test_an_answer_that_no_grader_can_compare_counts_as_lost(tokenizer, tmp_path, monkeypatch):
    async def fails(*arguments):
        raise GraderError("the grader does not start")

    monkeypatch.setattr("satisfice.runs.calibration.disagree", fails)
    promise = Promise(0.2, 0.9, "disagreement", 0.2)
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    found = find(engine, tmp_path / "c", ["temperature-scaling"], [""] * 40, promise, ["t=0.95"])
    row = found.ladders["temperature-scaling"][0]
    assert (row.verdict, row.failed, row.failed_because) == ("failing", row.n, "the grader does not start")
    assert found.self_disagreement["n"] == 0
    assert found.self_disagreement["failed"] == row.n


@given(
    losses=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=80),
    missing=st.sets(st.integers(0, 79)),
    bound=st.sampled_from([0.01, 0.05, 0.3]),
)
def test_filling_in_what_was_missing_never_takes_capital_away(losses, missing, bound):
    """Why a later run may fill places: whatever was certified with gaps is certified without them, at each moment."""
    gaps, whole = BettingTest(bound, -1.0), BettingTest(bound, -1.0)
    for place, loss in enumerate(losses):
        gaps.add(1.0 if place in missing else loss)
        whole.add(loss)
        assert gaps.log_capital <= whole.log_capital + 1e-9
        assert gaps.p >= whole.p - 1e-12


# -- who is held back


@pytest.mark.parametrize("holdout", [0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.99])
def test_the_share_held_back_is_exact_over_all_however_they_were_added(holdout):
    held = [is_held_back(place, holdout) for place in range(1000)]
    for n in range(1, 1000):
        assert sum(held[:n]) == int(n * holdout + 1e-9)
    promise = Promise(0.1, 0.9, holdout=holdout)
    needed, all_ = problems_at_least(promise, 1), problems_at_least(replace(promise, holdout=0), 1)
    assert needed - int(needed * holdout + 1e-9) == all_
    assert needed - 1 - int((needed - 1) * holdout + 1e-9) < all_


def test_problems_that_are_added_one_by_one_are_held_back_in_the_same_share(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    promise = Promise(0.9, 0.5, "net", 0.3)
    for n in range(4, 11):
        find(engine, tmp_path / "c", ["temperature-scaling"], ["3"] * n, promise, ["t=0.95"])
    batches = json.loads((tmp_path / "c" / "calibration.json").read_text())["batches"]
    assert [len(batch) for batch in batches] == [4, 1, 1, 1, 1, 1, 1]
    found = find(engine, tmp_path / "c", ["temperature-scaling"], ["3"] * 10, promise, ["t=0.95"])
    assert found.saving.n == 3


def test_a_folder_that_divides_in_another_way_is_refused(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    find(engine, tmp_path / "c", ["temperature-scaling"], ["3"] * 30, grids=["t=0.95"])
    file = tmp_path / "c" / "calibration.json"
    kept = json.loads(file.read_text())
    del kept["format"]
    file.write_text(json.dumps(kept))
    with pytest.raises(CalibrationError, match="was begun by another version of satisfice, which divides"):
        find(engine, tmp_path / "c", ["temperature-scaling"], ["3"] * 30, grids=["t=0.95"])


# -- one run for the grid


def test_settings_that_share_their_thinking_get_what_they_would_get_alone(tokenizer, tmp_path):
    engine = ScriptedEngine(tokenizer, answering(tokenizer, 0.4))
    answers = ["3", "1"] * 15
    promise = Promise(0.6, 0.9, holdout=0)
    found = find(engine, tmp_path / "c", ["entrocut:k=1"], answers, promise, ["tau=0.01,0.1,0.7"])
    assert found.responses["of_these_shared"] > 0
    run = read_run(tmp_path / "c" / "batch-1")
    by_id = {problem.id: problem for problem in problems(answers).problems}
    for method in ("entrocut:tau=0.01,k=1", "entrocut:tau=0.1,k=1", "entrocut:tau=0.7,k=1"):
        for trace in run.traces[method][:4]:
            alone = asyncio.run(
                parse_method(method).solve(
                    ScriptedEngine(tokenizer, answering(tokenizer, 0.4)), by_id[trace.problem_id],
                    Sampling(temperature=0, max_tokens=60, seed=trace.seed),
                )
            )  # fmt: skip
            assert alone.response_ids == trace.response_ids
            cost, alone_cost = (each.cost.model_dump(exclude={"seconds", "cached_tokens", "prefilled_tokens"})
                                for each in (trace, alone))  # fmt: skip
            assert cost == alone_cost
            assert [event.model_dump() for event in alone.events] == [event.model_dump() for event in trace.events]


@pytest.mark.parametrize("kind", [kind for kind in METHODS.values() if any(knob.shared for knob in kind.knobs)])
def test_sharing_changes_nothing_with_sampling_on_a_real_engine(kind, make_engine):
    engine = make_engine()
    options = "" if kind is EntroCut else {"deer-pro": "max_probes=3,"}.get(kind.name, "")
    texts = {"fractured-stop": "fractured-stop:start=4,interval=4,max_solution=8"}.get(
        kind.name, f"{kind.name}:{options}".rstrip(",:")
    )
    settings = ladder(texts, {}, 48).settings[-3:]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=48, seed=5)
    problem = Problem("p", "Start with 1: a) +2. What is the result?", "3")
    shared = RememberingEngine(engine)

    async def both():
        for setting in settings:
            remembered = await setting.solve(shared, problem, sampling)
            alone = await setting.solve(engine, problem, sampling)
            assert remembered.response_ids == alone.response_ids
            assert remembered.cost.total_tokens == alone.cost.total_tokens

    asyncio.run(both())
    assert shared.recalled > 0


# -- what is refused


@pytest.mark.parametrize(
    ("answers", "sampling", "message"),
    [
        (["7"] * 40, GREEDY, r"none of its 8 responses is right: check --grader"),
        (["3"] * 40, Sampling(temperature=0, max_tokens=12), r"cuts off 100% of its responses.*raise --max-tokens"),
    ],
)
def test_a_baseline_that_says_nothing_is_refused_after_its_first_responses(tokenizer, tmp_path, monkeypatch, answers, sampling, message):  # fmt: skip # noqa: E501
    monkeypatch.setattr("satisfice.runs.calibration.FIRST_LOOK", 8)
    begun = []
    with pytest.raises(MethodError, match=message):
        find(
            RaisedEngine(tokenizer, answering(tokenizer)), tmp_path / "c", ["temperature-scaling"], answers,
            sampling=sampling, progress=Progress(begin=lambda *call: begun.append(call[0])),
        )  # fmt: skip
    assert begun == ["plain"]


@pytest.mark.parametrize(
    ("gold", "sampling", "message"),
    [
        ("7", GREEDY, r"none of its \d+ responses is right"),
        ("3", Sampling(temperature=0, max_tokens=12), r"cuts off 100% of its responses"),
    ],
)
def test_a_baseline_that_says_nothing_is_refused_where_a_large_bound_needs_few_of_it(tokenizer, tmp_path, gold, sampling, message):  # fmt: skip # noqa: E501
    with pytest.raises(MethodError, match=message):
        find(
            RaisedEngine(tokenizer, answering(tokenizer)), tmp_path / "c", ["temperature-scaling"], [gold] * 100,
            grids=["t=0.98"], sampling=sampling,
        )  # fmt: skip
    assert not (tmp_path / "c" / "certificate.json").exists()


def test_a_setting_that_fails_is_said_and_tried_again(tokenizer, tmp_path):
    script = answering(tokenizer)
    broken = [True]

    class Failing(RaisedEngine):
        async def generate(self, prompt_ids, sampling, **options):
            if broken[0] and options.get("control") is not None:
                raise RuntimeError("the model is on fire")
            return await super().generate(prompt_ids, sampling, **options)

    found = find(Failing(tokenizer, script), tmp_path / "c", ["temperature-scaling"], ["3"] * 30, grids=["t=0.95"])
    assert (found.method, found.ladders["temperature-scaling"][0].verdict) == (None, "failing")
    assert any(
        "of temperature-scaling:t=0.95 could not be had and count as lost, so it is not certified" in line
        and "the model is on fire; the same command tries them again" in line
        for line in sentences(found)
    )
    broken[0] = False
    found = find(Failing(tokenizer, script), tmp_path / "c", ["temperature-scaling"], ["3"] * 30, grids=["t=0.95"])
    assert found.method == "temperature-scaling:t=0.95"


def test_too_few_problems_are_refused_with_the_number_needed(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    with pytest.raises(CalibrationError) as caught:
        find(engine, tmp_path / "c", ["temperature-scaling"], ["3"] * 50, Promise(0.01, 0.95))
    needed = problems_at_least(Promise(0.01, 0.95), 1)
    assert f"that takes {needed}, 30% of them held back, even if nothing is lost" in str(caught.value)
    assert engine.calls == []
    assert not (tmp_path / "c").exists()
    check_enough(Promise(0.01, 0.95), 1, needed)
    with pytest.raises(CalibrationError, match="shared by 2 methods"):
        check_enough(Promise(0.01, 0.95), 2, needed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loss": 0}, "--max-loss is 0; it must be between 0 and 1"),
        ({"max_loss": 5}, "--max-loss is 5"),
        ({"confidence": 95}, "--confidence is 95; it must be between 0 and 1, for example 0.95"),
        ({"loss": "accuracy"}, "--loss is accuracy; it must be one of net, harm, disagreement"),
        ({"holdout": 1}, "--holdout is 1"),
        ({"max_loss": float("nan")}, "--max-loss is nan"),
    ],
)
def test_a_promise_out_of_range_is_one_sentence(options, message):
    with pytest.raises(CalibrationError, match=message) as caught:
        Promise(**options)
    assert "\n" not in str(caught.value)


def test_every_knob_is_a_parameter_whose_grid_goes_one_way_and_can_be_made():
    knobbed = {kind.name for kind in METHODS.values() if kind.knobs}
    assert knobbed >= {
        "temperature-scaling", "budget-forcing", "deer", "deer-pro", "entrocut", "adaptive-think", "fractured-stop",
        "self-consistency", "best-of-n", "tldr",
    }  # fmt: skip
    for name in knobbed:
        for knob in METHODS[name].knobs:
            given = ",".join(f"{key}={value}" for key, value in knob.where.items())
            if not knob.where:  # of several the first that is left out is meant
                others = [each for each in METHODS[name].knobs if not each.where]
                given = ",".join(f"{other.parameter}={other.grid[-1]}" for other in others[: others.index(knob)])
            made = ladder(f"{name}:{given}".rstrip(":"), {}, 1000)
            assert made.knob == knob
            assert len({str(setting) for setting in made.settings}) == len(made.settings) >= 2
            ladder(f"{name}:{given}".rstrip(":"), {knob.parameter: ",".join(map(str, knob.grid))}, 1000)


def test_what_is_varied_is_left_out_and_everything_else_stays():
    made = ladder("entrocut:k=2,trigger=marker", {"tau": "0.1,0.2"}, 1000)
    assert [str(each) for each in made.settings] == [
        "entrocut:tau=0.1,k=2,trigger=marker",
        "entrocut:tau=0.2,k=2,trigger=marker",
    ]
    assert [each.max_thinking for each in ladder("budget-forcing", {}, 200).settings] == [192, 128, 96, 64]
    biased = ladder("temperature-scaling:mode=bias", {}, 1000)
    assert (biased.knob.parameter, str(biased.settings[0])) == ("bias", "temperature-scaling:mode=bias,bias=0.25")
    assert ladder("temperature-scaling", {"bias": "1,2"}, 1000).knob.parameter == "bias"
    two = ladders(["deer", "deer-pro"], ["deer:threshold=0.9,0.8", "threshold=0.99"], 1000)
    assert [each.values for each in two] == [(0.9, 0.8), (0.99,)]


@pytest.mark.parametrize(
    ("texts", "grids", "message"),
    [
        (["plain"], [], "plain has no knob to calibrate; what can be calibrated is adaptive-think (alpha), best-"),
        (["entrocut:tau=0.1"], [], "tau is what calibrating entrocut finds: leave tau= out"),
        (["temperature-scaling:t=0.9"], [], "t is what calibrating temperature-scaling finds"),
        (
            ["entrocut:k=1+temperature-scaling"],
            [],
            "has two knobs, entrocut (tau) and temperature-scaling (t), and one is calibrated at a time",
        ),
        (["entrocut:tau=0.1+temperature-scaling:t=0.9"], [], "tau is what calibrating entrocut finds"),
        (["cothink+no-wait"], [], "cothink and no-wait have no knob to calibrate; what can be calibrated is"),
        (["budget-forcing+thinking-budget"], ["ramp_bias=1,2"], "has two knobs, budget-forcing (max_thinking) and thi"),
        (["budget-forcing:ignore=1+thinking-budget:max_thinking=9,ramp_bias=2"], [], "thinking-budget follows the tok"),
        (["thinking-budget:max_thinking=90"], ["ramp_bias=2,1"], "goes from harmless to bold from small to large"),
        (["entrocut:every=3"], [], "every acts with trigger=interval only"),
        (["entrocat"], [], "did you mean 'entrocut'"),
        (
            ["temperature-scaling"],
            ["tau=0.1,0.2"],
            "--grid tau=: this is the knob of none of the methods: temperature-",
        ),
        (
            ["temperature-scaling"],
            ["t=0.8,0.9"],
            "is out of order: temperature-scaling goes from harmless to bold from large",
        ),
        (["entrocut"], ["tau=0.3,0.3"], "out of order: entrocut goes from harmless to bold from small to large"),
        (["tldr"], ["level=short,long"], "in the order long, medium, short"),
        (["temperature-scaling"], ["t=warm"], "'warm' does not fit"),
        (["temperature-scaling"], ["0.9,0.8"], "must look like t=0.95,0.9,0.85"),
        (["temperature-scaling"], ["t=0.9,-1"], "'-1' does not fit: it must be within"),
        (["temperature-scaling:mode=scale"], ["bias=1,2"], "bias acts with mode=bias only; leave mode out"),
        (["deer", "deer"], [], "is tried twice"),
        (["self-consistency"], ["k=4"], "give at least two"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_sentence(texts, grids, message):
    with pytest.raises(MethodError) as caught:
        ladders(texts, grids, 1000)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_engine_that_cannot_do_it_is_refused_before_anything_is_paid_for(tokenizer, tmp_path):
    without = ScriptedEngine(tokenizer, answering(tokenizer), without=[Capability.ENTROPY, Capability.CONTROL])
    for spelled, missing in (("entrocut", "entropy"), ("temperature-scaling", "control")):
        with pytest.raises(EngineError, match=f"{spelled} needs {missing}"):
            find(without, tmp_path / spelled, [spelled], ["3"] * 40)
    assert without.calls == []


@pytest.mark.parametrize(
    ("text", "grids", "first", "knob"),
    [
        (
            "entrocut:k=1+temperature-scaling:t=0.9",
            {"tau": "0.1,0.2"},
            "entrocut:tau=0.1,k=1+temperature-scaling",
            "tau",
        ),
        ("entrocut:tau=0.1+temperature-scaling", {}, "entrocut:tau=0.1+temperature-scaling:t=0.98", "t"),
        ("budget-forcing+no-wait", {}, "budget-forcing:max_thinking=768+no-wait", "max_thinking"),
        ("cothink+temperature-scaling", {}, "cothink+temperature-scaling:t=0.98", "t"),
        ("thinking-budget:max_thinking=512", {}, "thinking-budget:max_thinking=512,ramp_bias=0.5", "ramp_bias"),
        ("thinking-budget:ramp_bias=4", {}, "thinking-budget:max_thinking=768,ramp_bias=4", "max_thinking"),
    ],
)
def test_of_a_strategy_and_a_control_the_one_whose_knob_is_left_out_is_varied(text, grids, first, knob):
    made = ladder(text, grids, 1000)
    assert (str(made.settings[0]), made.knob.parameter) == (first, knob)
    assert all(parse_method(str(each)) == each for each in made.settings)


def test_a_joined_method_is_certified_and_can_be_used(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    text = "budget-forcing+temperature-scaling:t=0.95"
    found = find(engine, tmp_path / "c", [text], ["3"] * 40, grids=["max_thinking=50,40"])
    assert found.method.startswith("budget-forcing:max_thinking=")
    assert found.method.endswith("+temperature-scaling:t=0.95")
    assert str(read_certificate(tmp_path / "c" / "certificate.json").chosen()) == found.method


# -- the certificate


def test_other_versions_are_said_with_what_differs():
    made = {"python": "3.11.7", "satisfice": "0.2", "torch": "2.6.0", "transformers": "5.1", "math-verify": "0.8"}
    certificate = Certificate(
        method=None, baseline="plain", loss="net", max_loss=0.1, confidence=0.9, levels={}, versions=made
    )
    now = {**made, "torch": "2.7.1", "python": "3.12.1", "math-verify": "0.9", "vllm": "0.11"}
    place = Place("scripted", versions=now)
    assert other_versions(certificate, place) == ["torch 2.6.0 -> 2.7.1"]
    (said,) = warnings(certificate, place)
    assert "other versions, under which responses may differ: torch 2.6.0 -> 2.7.1 (then -> now)" in said
    assert other_versions(certificate, Place("scripted", versions={**now, "torch": "2.6.0", "satisfice": "0.3"})) == [
        "satisfice 0.2 -> 0.3"
    ]
    served = certificate.model_copy(update={"versions": {"vllm": "0.10.2"}})
    assert other_versions(served, place) == ["vllm 0.10.2 -> 0.11"]
    assert other_versions(served, Place("scripted")) == []


def test_what_a_step_reads_is_compared_and_was_dense_where_nothing_is_said():
    blank = {"method": None, "baseline": "plain", "loss": "net", "max_loss": 0.1, "confidence": 0.9, "levels": {}}
    old, sparse = Certificate(**blank), Certificate(**blank, asked={"attention": "local:budget=64"})
    assert differences(old, Place("scripted", attention="dense")) == []
    assert differences(old, Place("scripted", attention="local:budget=64")) == [
        'attention "dense" -> "local:budget=64"'
    ]
    assert differences(sparse, Place("scripted", attention="dense")) == ['attention "local:budget=64" -> "dense"']
    assert differences(sparse, Place("scripted")) == []  # the place does not know


@pytest.fixture(scope="module")
def certified(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("certified") / "c"
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    find(engine, folder, ["temperature-scaling"], ["3"] * 40, grids=["t=0.98,0.95"])
    return json.loads((folder / "certificate.json").read_text())


def changed(content, where, value):
    """A copy with another value in one place; None takes the key away, a pair (key, value) adds one beside it."""
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in where[:-1]:
        inner = inner[key]
    old = inner.pop(where[-1])
    if isinstance(value, tuple):
        inner[value[0]] = old if value[1] is None else value[1]
    elif value is not None:
        inner[where[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["baseline"], "plian", r"its baseline cannot be read: there is no method 'plian', did you mean 'plain'"),
        (["baseline"], ("basline", None), r"damaged: basline: there is no such key, did you mean 'baseline'"),
        (["max_loss"], ("max_los", None), r"damaged: max_los: there is no such key, did you mean 'max_loss'"),
        (["asked"], ("aksed", None), r"damaged: aksed: there is no such key, did you mean 'asked'"),
        (["asked", "model_digest"], ("digest", None), r"damaged: asked.digest: there is no such key"),
        (["asked", "sampling"], [1], r"damaged: asked.sampling: \[1\] is no object"),
        (["asked", "model"], 3, r"damaged: asked.model: 3 is no text"),
        (["saving", "value"], ("valeu", None), r"damaged: saving.valeu: there is no such key, did you mean 'value'"),
        (["max_loss"], 7, r"damaged: max_loss: "),
        (["max_loss"], 0.001, r"damaged: ladders: temperature-scaling:t=0.98 is certified for a loss of at most 0\."),
        (["confidence"], 1.0, r"damaged: confidence: "),
        (["loss"], "accuracy", r"damaged: loss: "),
        (["n"], -1, r"damaged: n: "),
        (["n"], 4000, r"damaged: n and bound are 4000 and"),
        (
            ["method"],
            "temperature-scaling:t=0.5",
            r"damaged: method: temperature-scaling:t=0.5 is none of the settings",
        ),
        (["ladders"], {}, r"damaged: method: .* is none of the settings that its ladders certify"),
        (["ladders", "temperature-scaling", 0, "verdict"], "sure", r"damaged: ladders.temperature-scaling.0.verdict: "),
        (["levels"], None, r"damaged: levels: Field required"),
        (["bound"], float("nan"), r"damaged: bound: "),
    ],
)
def test_a_certificate_that_was_edited_by_hand_is_refused_with_file_and_key(tmp_path, certified, where, value, message):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(changed(certified, where, value)))
    with pytest.raises(CertificateError, match=message) as caught:
        read_certificate(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    file.write_text(json.dumps({**certified, "schema_version": 1}))
    assert read_certificate(file).method == certified["method"]


def test_a_certificate_says_what_differs_where_it_is_used(tokenizer, tmp_path):
    engine = RaisedEngine(tokenizer, answering(tokenizer))
    found = find(
        engine, tmp_path / "c", ["temperature-scaling"], ["1"] * 39 + ["3"], grids=["t=0.98,0.95,0.9"],
        instruction="Think.",
    )  # fmt: skip
    assert differences(found, Place.of(engine, GREEDY, instruction="Think.", system="")) == []
    assert warnings(found, Place.of(engine, GREEDY, instruction="Think.", system="")) == []
    place = Place.of(engine, Sampling(temperature=0.6, max_tokens=60), instruction="", system="")
    assert differences(found, place) == ["temperature 0 -> 0.6", 'instruction "Think." -> ""']
    other = replace(place, thinking=ThinkingFormat.custom("<a>", "</a>"), sampling=None, instruction=None)
    assert [each.split()[0] for each in differences(found, other)] == ["thinking"]
    engine.name = "another"
    assert differences(found, Place.of(engine)) == ['model and engine "scripted" -> "another"']
    assert "promises nothing here" in warnings(found, place)[0]
    assert str(found.chosen()) == found.method
    assert str(found.more_careful()) == "temperature-scaling:t=0.95"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no certificate"),
        ("[" * 100_000, "is no certificate"),
        ('{"kind": "satisfice certificate", "schema_version": -1}', "is damaged: "),
        ('{"method": "plain"}', "give the file that `satisfice calibrate --out` wrote"),
        ('{"kind": "satisfice certificate", "schema_version": 99}', "newer satisfice"),
        ('{"kind": "satisfice certificate", "method": 3}', "is damaged: method"),
        ('{"kind": "satisfice certificate", "schema_version": "x"}', "is damaged: schema_version"),
        (
            '{"kind": "satisfice certificate", "method": null, "baseline": "plain", "loss": "net", "max_loss": 0.1,'
            '"confidence": 0.9, "levels": {}, "asked": {"sampling": [1]}}',
            "is damaged: asked.sampling",
        ),
        (
            '{"kind": "satisfice certificate", "method": "deerest:threshold=0.9", "baseline": "plain", "loss": "net",'
            '"max_loss": 0.1, "confidence": 0.9, "levels": {}}',
            r"c\.json: its method cannot be read: there is no method 'deerest'",
        ),
    ],
)
def test_a_file_that_is_no_certificate_is_refused_in_one_sentence(tmp_path, content, message):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CertificateError, match=message):
        read_certificate(tmp_path / "c.json").chosen()
    with pytest.raises(CertificateError, match="there is no file"):
        read_certificate(tmp_path / "none.json")


def test_a_damaged_folder_is_refused_in_one_sentence(tokenizer, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "calibration.json").write_text(json.dumps({"max_loss": 0.2}))
    with pytest.raises(CalibrationError, match=r"calibration.json is damaged"):
        find(RaisedEngine(tokenizer, answering(tokenizer)), tmp_path / "c", ["temperature-scaling"], ["3"] * 40)
    (tmp_path / "c" / "calibration.json").write_text(json.dumps({"batches": [[["p1", "a"]], [["p1", "a"]]]}))
    with pytest.raises(CalibrationError, match=r"calibration.json is damaged .*twice"):
        find(RaisedEngine(tokenizer, answering(tokenizer)), tmp_path / "c", ["temperature-scaling"], ["3"] * 40)
