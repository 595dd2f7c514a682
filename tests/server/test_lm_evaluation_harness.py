"""lm-evaluation-harness against the server: the real program on a task of three problems, without any network.

It sends `stop` with every request (its tasks' `until`), which must not end the thinking.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from server.running import serving

from satisfice.engines.transformers import TransformersEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: pip install 'lm_eval[api]'"),
]

QUESTIONS = (
    ("Start with 10. Steps in the order of their letters: c) +5, d) *3. What is the result?", "45"),
    ("Start with 4. Steps in the order of their letters: b) *2, e) +7. What is the result?", "15"),
    ("Start with 9. Steps in the order of their letters: a) -3, f) *4. What is the result?", "24"),
)
TASK = """
task: chains
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["So", "\\n\\n"], do_sample: false}}
filter_list:
  - name: boxed
    filter:
      - {{function: regex, regex_pattern: '\\\\boxed\\{{(-?[0-9]+)\\}}'}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.mark.timeout(600)
def test_the_harness_scores_the_server_with_a_method(tmp_path):
    data = tmp_path / "chains.jsonl"
    data.write_text("".join(json.dumps({"question": text, "answer": gold}) + "\n" for text, gold in QUESTIONS))
    (tmp_path / "chains.yaml").write_text(TASK.format(data=data))
    engine = TransformersEngine.load("lab", max_batch_tokens=1 << 15)
    try:
        with serving(engine) as running:
            done = subprocess.run(
                [
                    sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions", "--model_args",
                    f"model=lab,base_url=http://127.0.0.1:{running.port}/v1/chat/completions,num_concurrent=2",
                    "--include_path", str(tmp_path), "--tasks", "chains", "--apply_chat_template",
                    "--gen_kwargs", "method=budget-forcing:max_thinking=150,max_gen_toks=300",
                    "--output_path", str(tmp_path / "out"), "--log_samples",
                ],
                capture_output=True, text=True, timeout=500,
                env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1",
                     "HF_DATASETS_OFFLINE": "1"},
            )  # fmt: skip
            served = running.metric('satisfice_requests_total{method="budget-forcing",outcome="ok"}')
    finally:
        engine.close()
    assert done.returncode == 0, done.stderr[-3000:]
    assert served == len(QUESTIONS)
    [samples] = (tmp_path / "out").rglob("samples_chains_*.jsonl")
    answers = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    assert all("\\boxed{" in answer for answer in answers)  # the stops slept while it thought
    assert not any("\n\n" in answer or "So" in answer for answer in answers)
    [results] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["chains"]["exact_match,boxed"] > 0
