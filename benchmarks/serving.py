"""What the plugin costs a server: tokens a second of vLLM with controls on for every request, with none, and without
the plugin, as ratios within one run.

Three engines with the same model live in one process and take turns, in an order that changes from round to round, so
that whatever else the machine does falls on all of them alike. They differ in nothing but the plugin: "absent" has
none, "idle" has it and requests that ask for nothing, "on" has it and every request asks for a control. The controls
are neutral in effect (a bias of almost nothing), and every response is forced to the same length, so that all three
write the same number of tokens; what is measured is the work of the control, not what it saves.

    python benchmarks/serving.py --rounds 7
"""

import argparse
import json
import os
import statistics
import time
from importlib.metadata import version

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

CONTROLS = {
    "bias": {"thinking_bias": 1e-6},
    "cap": {"thinking_bias": 1e-6, "max_thinking_tokens": 100_000},
    "all": {
        "thinking_temperature": 0.999999,
        "thinking_bias": 1e-6,
        "suppress_reflection": 1,
        "max_thinking_tokens": 100_000,
        "soft_thinking_tokens": 99_999,
        "min_thinking_endings": 1,
    },
}


def engine(model: str, batch: int, plugin: bool):
    """One engine, with or without the plugin."""
    from vllm import LLM
    from vllm.v1.sample import logits_processor

    installed = logits_processor._load_logitsprocs_plugins
    if not plugin:
        logits_processor._load_logitsprocs_plugins = list
    try:
        return LLM(model, dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=batch)
    finally:
        logits_processor._load_logitsprocs_plugins = installed


def tokens_per_second(llm, prompts, tokens: int, xargs) -> float:
    """Of one batch of responses of `tokens` tokens each."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.6, seed=0, max_tokens=tokens, ignore_eos=True, extra_args=xargs)
    begin = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - begin
    written = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert written == tokens * len(prompts)
    return written / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lab", help="a directory, or lab for the embedded model")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="where to write the numbers")
    arguments = parser.parse_args()

    from satisfice.lab import WEIGHTS
    from satisfice.problems import load_problems

    model = str(WEIGHTS) if arguments.model == "lab" else arguments.model
    engines = {plugin: engine(model, arguments.batch, plugin) for plugin in (False, True)}
    problems = load_problems("lab:test", limit=arguments.batch).problems
    tokenizer = engines[True].get_tokenizer()
    prompts = [
        {"prompt_token_ids": tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.prompt}], add_generation_prompt=True, return_dict=False
        )}
        for problem in problems
    ]  # fmt: skip
    arms = {"absent": (False, None), "idle": (True, None), **{name: (True, x) for name, x in CONTROLS.items()}}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(-1, arguments.rounds):  # one round to warm up
        order = list(arms)[round_number % len(arms) :] + list(arms)[: round_number % len(arms)]
        for name in order:
            plugin, xargs = arms[name]
            rate = tokens_per_second(engines[plugin], prompts, arguments.tokens, xargs)
            if round_number >= 0:
                rates[name].append(rate)

    print(f"vllm {version('vllm-cpu')}, {arguments.batch} requests of {arguments.tokens} tokens, one process")
    print(f"{arguments.rounds} rounds; ratio to the same round without the plugin: median, lowest, highest")
    found = {}
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates["absent"], strict=True)]
        found[name] = {"tokens_per_second": values, "ratios": ratios}
        print(
            f"{name:8} {statistics.median(values):8.1f} tokens/s   "
            f"{statistics.median(ratios):.3f}   {min(ratios):.3f}   {max(ratios):.3f}"
        )
    if arguments.json:
        with open(arguments.json, "w") as out:
            json.dump({"batch": arguments.batch, "tokens": arguments.tokens, "arms": found}, out, indent=1)


if __name__ == "__main__":
    main()
