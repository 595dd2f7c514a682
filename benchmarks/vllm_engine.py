"""What the vLLM engine costs against vLLM itself, side by side in one run; and how often it writes the same text.

    python benchmarks/vllm_engine.py
    python benchmarks/vllm_engine.py --agreement 16

The same weights, prompts and forced lengths, all at once, by four arms in an order that turns from round to round:
vLLM's own `LLM.generate` with its own sampler, the vllm engine, the vllm engine with a control and entropies on every
request, and the transformers engine. Nothing that one round has computed is there for the next.

With `--agreement N`, every method answers the first N problems by the vllm and by the transformers engine with the same
seeds, greedily and by the recommended sampling, and the responses that are the same to the token are counted.
"""

import argparse
import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.engines.vllm import CPU_BLOCK, VLLMEngine
from satisfice.intervention.controls import EndScaling
from satisfice.intervention.method import together
from satisfice.lab import WEIGHTS
from satisfice.problems import load_problems
from satisfice.runs.experiment import every_method


def requests(engine: Any, options: Any) -> list[tuple[list[int], int, Sampling]]:
    """Prompt, marker state and sampling of each request; the lengths are forced and differ."""
    problems = load_problems("lab:test", limit=options.requests).problems
    prompts = [engine.thinking.render(engine.tokenizer, [{"role": "user", "content": one.prompt}]) for one in problems]
    return [
        (
            prompt.ids,
            prompt.state,
            Sampling(temperature=0.6, top_p=0.95, max_tokens=40 + 31 * seed % 80, ignore_eos=True, seed=seed),
        )
        for seed, prompt in enumerate(prompts)
    ]


def by_engine(engine: Any, calls: list[Any], *, controlled: bool = False) -> int:
    async def all_of_them() -> int:
        results = await asyncio.gather(
            *(
                engine.generate(
                    ids,
                    sampling,
                    control=EndScaling(gain=0.1, state=state) if controlled else None,
                    entropy=controlled,
                )
                for ids, state, sampling in calls
            )
        )
        return sum(len(result.ids) for result in results)

    return asyncio.run(all_of_them())


def by_vllm(model: Any, calls: list[Any]) -> int:
    from vllm import SamplingParams

    parameters = [
        SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            ignore_eos=True,
            detokenize=False,
        )
        for _, _, sampling in calls
    ]
    model.reset_prefix_cache()
    outputs = model.generate([{"prompt_token_ids": ids} for ids, _, _ in calls], parameters, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def agreement(engine: Any, peer: Any, count: int) -> None:
    problems = load_problems("lab:test", limit=count).problems
    methods, left_out = every_method("lab", engine)
    print(*left_out, sep="\n")
    total = Counter[str]()
    for method in methods:
        same = {}
        for name, sampling in (("greedy", Sampling(temperature=0.0)), ("recommended", engine.default_sampling)):
            settings = replace(sampling, max_tokens=260)

            async def solve(one: Any, method: Any = method, settings: Sampling = settings) -> list[Any]:
                jobs = (method.solve(one, problem, replace(settings, seed=n)) for n, problem in enumerate(problems))
                return await together(*jobs)

            pairs = list(zip(asyncio.run(solve(engine)), asyncio.run(solve(peer)), strict=True))
            same[name] = sum(ours.response_ids == theirs.response_ids for ours, theirs in pairs)
            total["responses"] += len(pairs)
            total["same response"] += same[name]
            total["same answer"] += sum(ours.answer == theirs.answer for ours, theirs in pairs)
            total["tokens"] += sum(len(ours.response_ids) for ours, _ in pairs)
        print(f"{method.name:24} {same} of {count} each", flush=True)
    print(dict(total))


def speed(engine: VLLMEngine, loaded: TransformersEngine, options: argparse.Namespace) -> None:
    from vllm import LLM

    own = LLM(
        str(WEIGHTS),
        dtype="float32",
        enforce_eager=True,
        block_size=CPU_BLOCK,
        max_num_seqs=options.batch,
        kv_cache_memory_bytes=1 << 28,
        skip_tokenizer_init=True,
    )
    calls = requests(engine, options)

    def fresh() -> TransformersEngine:
        return TransformersEngine(loaded.model, loaded.tokenizer, max_batch=options.batch, threads=1)

    def vllm_engine(**how: bool) -> int:
        engine.forget()
        return by_engine(engine, calls, **how)

    arms: dict[str, Callable[[], int]] = {
        "vLLM itself, its own sampler": lambda: by_vllm(own, calls),
        "vllm engine": vllm_engine,
        "vllm engine, control and entropies": lambda: vllm_engine(controlled=True),
        "transformers engine": lambda: by_engine(fresh(), calls),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()  # warm
    names = list(arms)
    for number in range(options.rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            started, worked = time.perf_counter(), time.process_time()
            written = arms[name]()
            seconds[name].append((time.perf_counter() - started, time.process_time() - worked))
    base = names[0]
    print(f"{options.requests} requests, {written} tokens, {options.batch} rows, {options.rounds} rounds")
    for name in names:
        wall, worked = (
            [mine[which] / theirs[which] for mine, theirs in zip(seconds[name], seconds[base], strict=True)]
            for which in (0, 1)
        )
        print(
            f"{name:40} wall {statistics.median(wall):.2f} ({min(wall):.2f} … {max(wall):.2f})  "
            f"processor {statistics.median(worked):.2f} ({min(worked):.2f} … {max(worked):.2f})  "
            f"{written / statistics.median(worked for _, worked in seconds[name]):.0f} tokens a processor second"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--agreement", type=int, metavar="N", help="compare the responses to N problems instead")
    options = parser.parse_args()
    engine = VLLMEngine.load("lab", max_batch=options.batch)
    loaded = TransformersEngine.load("lab")
    if options.agreement:
        agreement(engine, loaded, options.agreement)
    else:
        speed(engine, loaded, options)
    engine.close()


if __name__ == "__main__":
    main()
