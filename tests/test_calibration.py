"""Calibrating a parameter on held-out problems: what is chosen, from which numbers, and what is refused."""

import asyncio

import pytest
from intervention.scripted import ScriptedEngine
from intervention.thinker import SURE, play, thinker

from satisfice.calibration import CALIBRATED, TEMPERATURES, calibrate, uncalibrated
from satisfice.engines.base import Capability, EngineError, Sampling
from satisfice.experiment import Experiment, Progress
from satisfice.intervention import MethodError, parse_method
from satisfice.intervention.entrocut import EntroCut
from satisfice.intervention.temperature_scaling import TemperatureScaling
from satisfice.problems import GraderPool, Problem, ProblemSet

FIRST = "So 1.\n\n"
SECOND = "Wait, let me check.\nSo 3.\n\n"


class RaisedEngine(ScriptedEngine):
    """Its logits are positive, as those of real models are where a token is likely, so that dividing them acts."""

    def log_probabilities(self, text):
        return super().log_probabilities(text) + 20


def answering(tokenizer, stop_after_first):
    """A script: one paragraph more or less decides the answer, 1 after the first and 3 after the second.

    Args:
        tokenizer: the lab's.
        stop_after_first: probability of the end of thinking behind the first paragraph; "Wait" has 0.5.
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


def problems(*answers):
    asked = [Problem(f"p{place}", f"Start with {place}", answer) for place, answer in enumerate(answers)]
    return ProblemSet("held out", asked, [])


def find(engine, spelled, answers, loss=0.0, progress=None, **options):
    options.setdefault("sampling", Sampling(temperature=0, max_tokens=60))
    experiment = Experiment(problems(*answers), (), **options)
    with GraderPool(workers=1) as graders:
        return asyncio.run(calibrate(uncalibrated(spelled), engine, experiment, graders, loss, progress))


# -- entrocut's tau


def test_tau_separates_the_sure_probe_from_the_unsure_one(tokenizer):
    engine = ScriptedEngine(tokenizer, answering(tokenizer, 0.4))
    found = find(engine, "entrocut:k=1", ["3", "3", "3"])
    unsure = 0.673  # nats of 0.6 and 0.4
    assert 0 < found.value < unsure
    assert found.method == f"entrocut:tau={found.value},k=1"
    assert len(f"{found.value:g}") <= len("0.1234")  # no more digits than tell the probes apart
    assert (found.parameter, found.baseline, found.n) == ("tau", "never cut", 3)
    assert (found.accuracy, found.baseline_accuracy) == (1.0, 1.0)
    # Behind the second paragraph the model stops on its own: there is nothing to save without a loss.
    assert found.thinking_tokens == found.baseline_thinking_tokens
    assert found.thinking_kept == 1.0
    assert found.accuracy_low == pytest.approx(0.438, abs=0.01)  # Wilson's, of 3 in 3


def test_a_larger_loss_buys_a_larger_tau(tokenizer):
    engine = ScriptedEngine(tokenizer, answering(tokenizer, 0.4))
    found = find(engine, "entrocut:k=1", ["3", "1"], loss=0.0)
    # Cutting at the first probe loses the first problem and wins the second.
    assert found.value > 0.673
    assert found.accuracy == found.baseline_accuracy == 0.5
    assert found.thinking_kept == pytest.approx(found.thinking_tokens / found.baseline_thinking_tokens)
    assert found.thinking_kept < 0.5
    again = parse_method(found.method)
    trace = asyncio.run(again.solve(engine, problems("1").problems[0], Sampling(temperature=0, max_tokens=60)))
    assert trace.cost.thinking_tokens == found.thinking_tokens


def test_problems_are_asked_as_they_will_be(tokenizer):
    engine = ScriptedEngine(tokenizer, answering(tokenizer, 0.4))
    find(engine, "entrocut:k=1", ["3"], instruction="Think briefly", system="Use short")
    assert all("Use short" in text.replace("<|unknown|>", " ") for text, _, _ in engine.calls)
    assert all("Start with 0\n\nThink" in text for text, _, _ in engine.calls)


# -- temperature scaling's t


def test_t_is_the_smallest_that_keeps_the_accuracy(tokenizer):
    # exp(20) p is 17.7 for the end and 19.3 for "Wait": thinking ends behind the first paragraph where t < 0.917.
    engine = RaisedEngine(tokenizer, answering(tokenizer, 0.1))
    kept = find(engine, "temperature-scaling", ["3", "3"])
    assert (kept.parameter, kept.value, kept.baseline) == ("t", 0.95, "plain")
    assert kept.method == "temperature-scaling:t=0.95"
    assert (kept.accuracy, kept.thinking_kept) == (1.0, 1.0)
    allowed = find(engine, "temperature-scaling", ["3", "3", "1"], loss=0.34)
    assert allowed.value == min(TEMPERATURES)
    assert allowed.accuracy == pytest.approx(1 / 3)
    assert allowed.baseline_accuracy == pytest.approx(2 / 3)
    assert allowed.thinking_kept < 0.5


def test_the_default_value_is_spelled_as_the_method_alone(tokenizer):
    # 17.0 against 19.3: the end comes first where t < 0.881.
    found = find(RaisedEngine(tokenizer, answering(tokenizer, 0.05)), "temperature-scaling", ["3"])
    assert (found.method, found.value) == ("temperature-scaling", 0.9)


def test_a_gain_can_be_asked_for(tokenizer):
    engine = RaisedEngine(tokenizer, answering(tokenizer, 0.1))
    assert find(engine, "temperature-scaling", ["1", "1", "3"], loss=-0.33).accuracy == pytest.approx(2 / 3)
    with pytest.raises(MethodError, match="no t of"):
        find(engine, "temperature-scaling", ["1", "1", "3"], loss=-0.34)


def test_where_no_t_keeps_the_accuracy_it_is_said(tokenizer):
    # 19.2 against 19.3: even t = 0.98 ends thinking too soon.
    engine = RaisedEngine(tokenizer, answering(tokenizer, 0.45))
    with pytest.raises(MethodError, match=r"no t of 0.98, .* keeps the accuracy within 0.01 of 1 on these 2 problems"):
        find(engine, "temperature-scaling", ["3", "3"], loss=0.01)


def test_a_run_that_fails_calibrates_nothing(tokenizer):
    script = answering(tokenizer, 0.1)

    def failing(text):
        if "Start with 1" in text:
            raise RuntimeError("the model is on fire")
        return script(text)

    with pytest.raises(MethodError, match=r"plain failed on 1 of 2 problems.*p1: RuntimeError: the model is on fire$"):
        find(RaisedEngine(tokenizer, failing), "temperature-scaling", ["3", "3"])


# -- both


@pytest.mark.parametrize(
    ("make_engine", "spelled", "runs"),
    [(ScriptedEngine, "entrocut:k=1", 1), (RaisedEngine, "temperature-scaling", 1 + len(TEMPERATURES))],
)
def test_every_response_is_reported(tokenizer, make_engine, spelled, runs):
    begun, traces = [], []
    progress = Progress(lambda *what: begun.append(what), traces.append)
    find(make_engine(tokenizer, answering(tokenizer, 0.1)), spelled, ["3", "1"], 1.0, progress)
    assert [(total, done) for _, total, done in begun] == [(2, 0)] * runs
    assert len(traces) == 2 * runs
    assert {trace.problem_id: trace.correct for trace in traces[:2]} == {"p0": True, "p1": False}


def test_what_is_looked_for_is_left_out_and_everything_else_stays():
    assert uncalibrated("entrocut") == EntroCut(tau=1.0)
    assert uncalibrated("entrocut:k=2,trigger=marker") == EntroCut(tau=1.0, k=2, trigger="marker")
    assert uncalibrated("temperature-scaling") == TemperatureScaling(t=1.0)
    assert {kind.name for kind in CALIBRATED} == {"entrocut", "temperature-scaling"}


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        (
            "plain",
            "plain has nothing to calibrate; what can be calibrated is entrocut (tau) and temperature-scaling (t)",
        ),
        ("entrocut:tau=0.1", "tau is what calibrating entrocut finds: leave tau= out"),
        ("temperature-scaling:t=0.9", "t is what calibrating temperature-scaling finds"),
        ("temperature-scaling:mode=bias,bias=2", "mode=bias has none"),
        ("entrocut:k=1+temperature-scaling", "one method is calibrated at a time"),
        ("entrocut:every=3", "every acts with trigger=interval only"),
        ("entrocat", "did you mean 'entrocut'"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_sentence(spelled, message):
    with pytest.raises(MethodError) as caught:
        uncalibrated(spelled)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_engine_that_cannot_do_it_is_refused_before_anything_is_paid_for(tokenizer):
    without = ScriptedEngine(tokenizer, answering(tokenizer, 0.4), without=[Capability.ENTROPY, Capability.CONTROL])
    for spelled, missing in (("entrocut", "entropy"), ("temperature-scaling", "control")):
        with pytest.raises(EngineError, match=f"{spelled} needs {missing}"):
            find(without, spelled, ["3"])
    with pytest.raises(EngineError, match="lower max_tokens"):
        find(ScriptedEngine(tokenizer, {}.get), "entrocut", ["3"], sampling=Sampling(max_tokens=4096))
    assert without.calls == []
