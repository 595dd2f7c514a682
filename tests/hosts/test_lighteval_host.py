"""In lighteval 0.13: on stand-ins with its fields and signatures, and, where it is installed, in itself."""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow.parquet
import pytest

import satisfice.hosts
from satisfice.engines.base import EngineError
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import MethodError, parse_method
from satisfice.problems import Problem, load_problems
from satisfice.runs.experiment import sample_seed
from satisfice.server.protocol import Refusal

FILE = Path(satisfice.hosts.__file__).parent / "lighteval.py"
QUESTION = "Start with 10. Steps in the order of their letters: c) +5, d) *3. What is the result?"


class LightevalModel:
    pass


@dataclass
class ModelResponse:
    input: str | list | None = None
    input_tokens: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    output_tokens: list[list[int]] = field(default_factory=list)
    reasonings: list[str | None] = field(default_factory=list)


class PromptManager:
    def __init__(self, use_chat_template=False, tokenizer=None, system_prompt=None):
        assert use_chat_template

    def prepare_prompt_api(self, doc):
        return [{"role": "user", "content": doc.query}]


@pytest.fixture
def lighteval(monkeypatch):
    """What `lighteval custom` makes of the file: the one class in it."""
    parts = {
        "models.abstract_model": {"LightevalModel": LightevalModel, "ModelConfig": object},
        "models.model_output": {"ModelResponse": ModelResponse},
        "tasks.prompt_manager": {"PromptManager": PromptManager},
        "tasks.requests": {"Doc": object},
        "utils.cache_management": {"SampleCache": lambda config: SimpleNamespace(config=config)},
    }
    for name in ("", ".models", ".tasks", ".utils"):
        monkeypatch.setitem(sys.modules, f"lighteval{name}", ModuleType("stand-in"))
    for name, content in parts.items():
        module = ModuleType(f"lighteval.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("SATISFICE_ENGINE", '{"threads": 1}')
    module = ModuleType("custom_model_module")
    exec(compile(FILE.read_text(), str(FILE), "exec"), vars(module))
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, LightevalModel) and each != LightevalModel
    ]
    assert len(found) == 1
    return found[0]


def configured(name):
    return SimpleNamespace(
        model_name=name, system_prompt=None, generation_parameters=SimpleNamespace(max_new_tokens=None)
    )


def doc(**given):
    settings = {"id": "0", "task_name": "chains", "query": QUESTION, "stop_sequences": [], "generation_size": 250}
    return SimpleNamespace(**{**settings, "num_samples": 1, **given})


def test_questions_are_answered_by_the_method_of_the_name(lighteval):
    model = lighteval(configured("lab@budget-forcing:max_thinking=60"))
    try:
        one, several = model.greedy_until([doc(), doc(id="1", num_samples=3)])
        assert (len(one.text), len(several.text)) == (1, 3)
        assert "boxed" in one.text[0]
        assert "boxed" not in one.reasonings[0]
        assert len(one.reasonings[0]) > 20
        assert model.tokenizer.decode(one.input_tokens).count("result?") == 1
        assert len({tuple(ids) for ids in several.output_tokens}) == 3
        [again] = model.greedy_until([doc()])
        assert again.output_tokens == one.output_tokens
        [stopped] = model.greedy_until([doc(stop_sequences=["}"])])
        assert "}" not in stopped.text[0]
        assert model.max_length > 250
        assert model._cache.config.model_name == "lab@budget-forcing:max_thinking=60"
        with pytest.raises(NotImplementedError, match="generative form"):
            model.loglikelihood([doc()])
        with pytest.raises(Refusal, match="must be a text"):
            model.greedy_until([doc(query=[{"type": "image"}])])
    finally:
        model.cleanup()


def test_a_name_or_setting_that_there_is_not_is_refused_at_once(lighteval, monkeypatch):
    with pytest.raises(MethodError, match="did you mean 'deer'"):
        lighteval(configured("lab@der"))
    for written, reason in (
        ('{"gpus": 1}', "gpus"),
        ('{"engine": "vlm"}', "there is no engine 'vlm'"),
        ("[]", "must be a JSON object"),
        ("{", "is not JSON"),
    ):
        monkeypatch.setenv("SATISFICE_ENGINE", written)
        with pytest.raises((EngineError, ValueError), match=reason):
            lighteval(configured("lab"))


# -- the real one

TASK = """
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc


def asked(line, task_name=None):
    return Doc(task_name=task_name, query=line["question"], choices=[line["answer"]], gold_index=0)


TASKS_TABLE = [
    LightevalTaskConfig(
        name="chains", prompt_function=asked, hf_repo="data", hf_subset="default", hf_avail_splits=["test"],
        evaluation_splits=["test"], generation_size=250, metrics=[Metrics.expr_gold_metric], stop_sequence=[],
    )
]
"""
METHOD = "budget-forcing:max_thinking=120"
MANY = 6


@pytest.mark.hosts
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("lighteval") is None, reason="needs lighteval: make test-lighteval")
def test_lighteval_grades_what_the_method_wrote(tmp_path):
    problems = load_problems("lab:calibration", limit=MANY).problems
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"question": each.prompt, "answer": each.answer}) for each in problems]
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "task.py").write_text(TASK)
    program = Path(sys.executable).parent / "lighteval"
    ran = subprocess.run(
        [program, "custom", f"lab@{METHOD}", FILE, "chains|0", "--custom-tasks", "task.py", "--save-details",
         "--output-dir", "out"],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"),
             "SATISFICE_ENGINE": '{"threads": 1}'},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    [results] = (tmp_path / "out" / "results").rglob("*.json")
    said = json.loads(results.read_text())
    assert said["config_general"]["model_config"]["model_name"] == f"lab@{METHOD}"
    [details] = (tmp_path / "out" / "details").rglob("*.parquet")
    rows = pyarrow.parquet.read_table(details).to_pylist()
    prompts = {each.prompt: each for each in problems}  # lighteval asks them in an order of its own
    assert sorted(row["doc"]["query"] for row in rows) == sorted(prompts)

    engine = TransformersEngine.load("lab", threads=1)
    try:
        for row in rows:
            doc = row["doc"]
            seed = sample_seed(0, f"{doc['task_name']}/{doc['id']}", 0)
            sampling = replace(engine.default_sampling, max_tokens=250, seed=seed)
            asked = Problem(id=doc["id"], prompt=doc["query"], answer=prompts[doc["query"]].answer)
            trace = asyncio.run(parse_method(METHOD).solve(engine, asked, sampling))
            wrote = row["model_response"]
            assert wrote["text"] == [trace.answer.strip()]
            assert wrote["reasonings"] == [trace.thinking.strip()]
            assert wrote["output_tokens"] == [trace.response_ids]
    finally:
        engine.close()
    right = sum(row["metric"]["extractive_match"] for row in rows) / MANY
    assert said["results"]["all"]["extractive_match"] == pytest.approx(right)
    assert 0.5 <= right <= 1
