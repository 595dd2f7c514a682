"""In Inspect: the real program on a task of two problems, without any network, and what a model of ours refuses."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

inspect_ai = pytest.importorskip("inspect_ai", reason="needs Inspect: make test-hosts")

from inspect_ai.log import read_eval_log  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
)
from inspect_ai.tool import ToolInfo  # noqa: E402

from satisfice.hosts import inspect as door  # noqa: E402
from satisfice.intervention import MethodError, lab_spellings  # noqa: E402
from satisfice.server.protocol import Refusal  # noqa: E402

pytestmark = pytest.mark.hosts

QUESTION = "Start with 10. Steps in the order of their letters: c) +5, d) *3. What is the result?"
TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def chains():
    return Task(
        dataset=[
            Sample(input=f"Start with {steps}. What is the result?", target=target)
            for steps, target in (
                ("10. Steps in the order of their letters: c) +5, d) *3", "45"),
                ("4. Steps in the order of their letters: b) *2, e) +7", "15"),
            )
        ],
        solver=[generate()],
        scorer=includes(),
    )
"""


def evaluate(tmp_path, *arguments):
    """The log of `inspect eval`, and what the program wrote."""
    (tmp_path / "chains.py").write_text(TASK)
    logs = tmp_path / f"logs-{len(list(tmp_path.iterdir()))}"
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "inspect"), "eval", "chains.py", "--model", "satisfice/lab",
            "--log-dir", str(logs), "--log-format", "json", "--display", "plain", "--no-log-realtime", *arguments,
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=280,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "INSPECT_TELEMETRY": ""},
    )  # fmt: skip
    written = list(logs.glob("*.json"))
    assert written, done.stdout[-3000:] + done.stderr[-3000:]
    return read_eval_log(written[0]), done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_the_program_logs_reasoning_and_usage_of_a_method(tmp_path):
    log, _ = evaluate(tmp_path, "-M", "method=budget-forcing:max_thinking=150", "--seed", "3", "--epochs", "2")
    assert log.status == "success"
    assert log.eval.model == "satisfice/lab"
    assert log.eval.model_args == {"method": "budget-forcing:max_thinking=150"}
    assert len(log.samples) == 4
    for sample in log.samples:
        reasoning, text = sample.output.message.content
        assert (reasoning.type, text.type) == ("reasoning", "text")
        assert len(reasoning.reasoning) > 40
        assert "boxed" in text.text
        assert "boxed" not in reasoning.reasoning
        usage, [facts] = sample.output.usage, sample.output.metadata["satisfice"]
        assert 0 < usage.reasoning_tokens < usage.output_tokens
        assert usage.output_tokens == facts["cost"]["total_tokens"]
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert facts["method"] == "budget-forcing:max_thinking=150"
    assert len({sample.output.metadata["satisfice"][0]["seed"] for sample in log.samples}) == 4
    assert log.stats.model_usage["satisfice/lab"].reasoning_tokens > 0
    assert log.results.scores[0].metrics["accuracy"].value > 0


@pytest.mark.timeout(300)
def test_the_solver_takes_the_place_of_the_models_method(tmp_path):
    log, _ = evaluate(tmp_path, "--solver", "satisfice/thinking", "-S", "method=no-thinking", "--temperature", "0")
    assert log.status == "success"
    for sample in log.samples:
        assert [part.type for part in sample.output.message.content] == ["text"]
        assert sample.output.metadata["satisfice"][0]["method"] == "no-thinking"


@pytest.mark.timeout(300)
def test_the_program_says_what_it_cannot_do(tmp_path):
    log, said = evaluate(tmp_path, "--frequency-penalty", "0.5")
    assert log.status == "error"
    assert "frequency_penalty is not supported; leave it out" in said


# -- without the program around it


@pytest.fixture(scope="module")
def model():
    made = door.SatisficeAPI("lab", method="budget-forcing:max_thinking=60", efforts={"low": "no-thinking"}, threads=1)
    yield made
    made.close()


def asked(model, *turns, tools=(), **config):
    turns = turns or (ChatMessageUser(content=QUESTION),)
    given = {"temperature": 0.0, "max_tokens": 200, "seed": 1, **config}
    return asyncio.run(model.generate(list(turns), list(tools), "auto", GenerateConfig(**given)))


def methods(output):
    return [facts["method"] for facts in output.metadata["satisfice"]]


def test_a_call_may_say_how_to_think(model):
    assert methods(asked(model)) == ["budget-forcing:max_thinking=60"]
    assert methods(asked(model, reasoning_effort="low")) == ["no-thinking"]
    assert methods(asked(model, reasoning_tokens=20)) == ["budget-forcing:max_thinking=20"]
    assert methods(asked(model, extra_body={"method": "plain"})) == ["plain"]


def test_choices_are_seeded_apart_and_counted_together(model):
    output = asked(model, num_choices=3, temperature=1.0)
    seeds = [facts["seed"] for facts in output.metadata["satisfice"]]
    assert len({*seeds}) == 3
    assert output.usage.output_tokens == sum(facts["cost"]["total_tokens"] for facts in output.metadata["satisfice"])
    again = asked(model, num_choices=3, temperature=1.0)
    assert [choice.message.text for choice in again.choices] == [choice.message.text for choice in output.choices]


def test_probes_are_part_of_the_usage(model):
    on_lab = next(spelled for spelled in lab_spellings() if spelled.startswith("deer:"))
    output = asked(model, extra_body={"method": on_lab})
    [facts] = output.metadata["satisfice"]
    assert facts["cost"]["probe_tokens"] > 0
    kept = facts["cost"]["thinking_tokens"] + facts["cost"]["answer_tokens"]
    assert output.usage.output_tokens == kept + facts["cost"]["probe_tokens"]


def test_a_limit_and_a_stop_end_a_response_as_inspect_names_it(model):
    assert asked(model, max_tokens=10, extra_body={"method": "plain"}).stop_reason == "max_tokens"
    stopped = asked(model, stop_seqs=["}"])
    assert stopped.stop_reason == "stop"
    assert "}" not in stopped.completion


def test_thinking_of_earlier_turns_is_not_sent_again(model):
    before = [ChatMessageUser(content=QUESTION)]
    after = ChatMessageUser(content=QUESTION)
    said = ChatMessageAssistant(content=[ContentReasoning(reasoning="Start with 10."), ContentText(text="45")])
    plain = ChatMessageAssistant(content="45")
    assert (
        asked(model, *before, said, after).usage.input_tokens == asked(model, *before, plain, after).usage.input_tokens
    )


@pytest.mark.parametrize(
    ("turns", "config", "reason"),
    [
        ([ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])], {}, "must be a text"),
        ([ChatMessageUser(content="a"), ChatMessageAssistant(content="b")], {}, "the last message must be the user's"),
        ([ChatMessageSystem(content="a")], {}, "the last message must be the user's"),
        ([], {"logprobs": True}, "logprobs is not supported"),
        ([], {"reasoning_effort": "high"}, r"means nothing here \(it knows low\): say what it stands for with -M"),
        ([], {"reasoning_effort": "low", "extra_body": {"method": "plain"}}, "both say how to think"),
        ([], {"extra_body": {"method": "der"}}, "did you mean 'deer'"),
        ([], {"extra_body": {"vllm_xargs": {}, "methods": "deer"}}, "did you mean 'method'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(model, turns, config, reason):
    with pytest.raises(Refusal, match=reason):
        asked(model, *turns, **config)


def test_tools_are_refused(model):
    with pytest.raises(Refusal, match="tools is not supported"):
        asked(model, tools=[ToolInfo(name="search", description="")])


def test_arguments_are_checked_when_the_model_is_made():
    with pytest.raises(ValueError, match="-M treads: there is no such setting; a model of satisfice has method,"):
        door.SatisficeAPI("lab", treads=1)
    with pytest.raises(MethodError, match="did you mean 'deer'"):
        door.SatisficeAPI("lab", method="der")
    with pytest.raises(ValueError, match="there is no such reasoning_effort"):
        door.SatisficeAPI("lab", efforts={"lowest": "plain"})


def test_a_spelling_that_inspect_cut_at_its_commas_is_put_together():
    assert door._spelled(["budget-forcing:max_thinking=20", "cue=So"]) == "budget-forcing:max_thinking=20,cue=So"
    with pytest.raises(MethodError, match="did you mean"):
        door.thinking("der")


def test_the_models_own_tokens_are_counted(model):
    assert asyncio.run(model.count_text_tokens(QUESTION)) == len(asyncio.run(model.tokenize(QUESTION))) > 10
