"""What the plugin costs a server: tokens a second of vLLM with controls on for every request, with none, and without
the plugin, as ratios within one run.

Two engines with the same model live in one process, one without the plugin and one with it, and the arms take turns,
in an order that changes from round to round, so that whatever else the machine does falls on all of them alike:
"absent" is the engine without the plugin, "idle" has it and requests that ask for nothing, in the others every request
asks for controls. The controls are neutral in effect (a bias of almost nothing), and every response is forced to the
same length, so that all arms write the same number of tokens; what is measured is the work of the control, not what it
saves.

Three numbers: tokens a second by the wall's clock and by the processor time of the process, each over those of "absent"
in the same round; and the share of an arm's processor time that the plugin's methods take, by the time of the thread
that they run in. What other threads of the process compute in the meantime, which is not the plugin's, stands beside
it. The share leaves out what the plugin costs others (caches, say), and is the only number that other work on the
machine hardly moves.

    python benchmarks/serving.py --rounds 30
    python benchmarks/serving.py --rounds 30 --one-engine     # as a server has it: no second engine in the process
"""

import argparse
import functools
import json
import os
import time
from importlib.metadata import version

import numpy as np

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


def engine(model: str, batch: int, plugin: bool, settings: dict):
    """One engine, with or without the plugin."""
    from vllm import LLM
    from vllm.v1.sample import logits_processor

    installed = logits_processor._load_logitsprocs_plugins
    if not plugin:
        logits_processor._load_logitsprocs_plugins = list
    try:
        return LLM(
            model,
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            max_num_seqs=batch,
            additional_config=settings,
        )
    finally:
        logits_processor._load_logitsprocs_plugins = installed


def timed(spent: list[float]):
    """Count the processor time of the plugin's methods into `spent`: of their own thread, and of the whole process."""
    from satisfice.vllm_plugin.processor import ThinkingControls

    def counting(method):
        @functools.wraps(method)
        def counted(*arguments):
            own, whole = time.thread_time(), time.process_time()
            try:
                return method(*arguments)
            finally:
                spent[0] += time.thread_time() - own
                spent[1] += time.process_time() - whole

        return counted

    for name in ("update_state", "apply"):
        setattr(ThinkingControls, name, counting(getattr(ThinkingControls, name)))
    ThinkingControls.validate_params = classmethod(counting(ThinkingControls.validate_params.__func__))


def seconds_per_token(llm, prompts, tokens: int, xargs) -> tuple[float, float]:
    """Of one batch of responses of `tokens` tokens each: on the wall's clock, and of processor time."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.6, seed=0, max_tokens=tokens, ignore_eos=True, extra_args=xargs)
    wall, processor = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    written = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert written == tokens * len(prompts)
    return wall / written, processor / written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lab", help="a directory, or lab for the embedded model")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--one-engine", action="store_true", help="without the one that has no plugin: times inside only"
    )
    parser.add_argument("--markers", help="OPEN,CLOSE for a model that does not show its own")
    parser.add_argument("--json", help="where to write the numbers")
    arguments = parser.parse_args()

    from satisfice.lab import WEIGHTS
    from satisfice.problems import load_problems

    model = str(WEIGHTS) if arguments.model == "lab" else arguments.model
    settings = {"satisfice": {"thinking_format": arguments.markers}} if arguments.markers else {}
    kinds = (True,) if arguments.one_engine else (False, True)
    engines = {plugin: engine(model, arguments.batch, plugin, settings) for plugin in kinds}
    problems = load_problems("lab:test", limit=arguments.batch).problems
    tokenizer = engines[True].get_tokenizer()
    prompts = [
        {"prompt_token_ids": tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.prompt}], add_generation_prompt=True, return_dict=False
        )}
        for problem in problems
    ]  # fmt: skip
    arms = {"absent": (False, None), "idle": (True, None), **{name: (True, x) for name, x in CONTROLS.items()}}
    arms = {name: arm for name, arm in arms.items() if arm[0] in engines}
    seconds: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in arms}
    spent = [0.0, 0.0]
    timed(spent)
    for round_number in range(-1, arguments.rounds):  # one round to warm up
        order = list(arms)[round_number % len(arms) :] + list(arms)[: round_number % len(arms)]
        for name in order:
            plugin, xargs = arms[name]
            spent[:] = 0.0, 0.0
            wall, processor = seconds_per_token(engines[plugin], prompts, arguments.tokens, xargs)
            if round_number >= 0:
                seconds[name].append((wall, processor, *(each / arguments.tokens / len(prompts) for each in spent)))

    print(f"vllm {version('vllm-cpu')}, {arguments.batch} requests of {arguments.tokens} tokens, one process")
    print(
        f"{arguments.rounds} rounds; tokens a second over those of the same round without "
        f"{'controls' if arguments.one_engine else 'the plugin'}: median, quartiles"
    )
    for column, clock in enumerate(("wall", "processor")):
        base = np.array(seconds.get("absent", seconds["idle"]))[:, column]
        for name, values in seconds.items():
            own = np.array(values)[:, column]
            low, middle, high = np.quantile(base / own, (0.25, 0.5, 0.75))
            print(f"{clock:9} {name:6} {1 / np.median(own):8.1f} tokens/s   {middle:.3f}  {low:.3f} to {high:.3f}")
    print(
        "processor time inside the plugin: share of the arm's, median and quartiles; microseconds a step of the batch"
    )
    for name, values in seconds.items():
        _, processor, inside, meanwhile = np.array(values).T
        low, middle, high = np.quantile(inside / processor, (0.25, 0.5, 0.75))
        step, others = (np.median(each) * arguments.batch * 1e6 for each in (inside, meanwhile - inside))
        print(
            f"inside    {name:6} {middle:.2%}  {low:.2%} to {high:.2%}   {step:6.0f} us, other threads {others:6.0f} us"
        )
    if arguments.json:
        with open(arguments.json, "w") as out:
            json.dump({"batch": arguments.batch, "tokens": arguments.tokens, "seconds_per_token": seconds}, out)


if __name__ == "__main__":
    main()
