"""What probing costs on a long chain: milliseconds a token of one chain, by plain decoding and by probing methods.

    python benchmarks/long_chain.py --tokens 4096 16384

A tiny Llama of random weights thinks in paragraphs of 60 tokens, says "Wait" in every second one, and never ends, so
that every method probes as often as it can and never stops: what is measured is the engine's and the method's own work
and how it grows with the chain, not a model's. Every figure is of an engine of its own; methods take turns.
"""

import argparse
import asyncio
import statistics
import time
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import parse_method
from satisfice.lab import WEIGHTS
from satisfice.problems import Problem

PROBLEM = Problem("long", "What is 3 plus 4?", "7")
ENDLESS = "max_probes=1000000,think_ratio=1"
METHODS = {
    "plain": "plain",
    "deer": f"deer:threshold=1.0,{ENDLESS}",
    "entrocut": f"entrocut:tau=0.000001,{ENDLESS}",
    "adaptive-think": f"adaptive-think:alpha=0.000001,merge=0,depth=4,{ENDLESS}",
}
PARAGRAPH = 60
"""Tokens."""


class Rambling(LlamaForCausalLM):
    """Writes digits in paragraphs, whatever it has read; `words` are the ids of what it writes at which place."""

    words: dict[str, int]

    def forward(self, *arguments: Any, position_ids: torch.Tensor, **options: Any) -> Any:
        output = super().forward(*arguments, position_ids=position_ids, **options)
        following = position_ids[:, -output.logits.shape[1] :] + 1
        output.logits.zero_()
        output.logits[..., self.words["7"]], output.logits[..., self.words["8"]] = 3.0, 2.5
        for word, there in (
            ("\n\n", following % PARAGRAPH == 0),
            ("Wait", following % (2 * PARAGRAPH) == PARAGRAPH + 1),
            (",", following % (2 * PARAGRAPH) == PARAGRAPH + 2),
        ):
            output.logits[..., self.words[word]] += 30.0 * there
        return output


def rambling(tokenizer: Any, longest: int) -> Rambling:
    """The model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=longest + 1000, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = Rambling(config)
    texts = {tokenizer.decode([token]): token for token in range(len(tokenizer))}
    model.words = {word: texts[word] for word in ("7", "8", "\n\n", "Wait", ",")}
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384], help="of the chain")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(str(WEIGHTS))
    model = rambling(tokenizer, max(options.tokens))
    methods = list(dict.fromkeys(["plain", *options.methods]))
    for tokens in options.tokens:
        spent: dict[str, list[float]] = {name: [] for name in methods}
        probes = {}
        for number in range(options.rounds):
            turn = number % len(methods)
            for name in [*methods[turn:], *methods[:turn]]:
                engine = TransformersEngine(model, tokenizer, name="rambling", threads=1, max_batch_tokens=300_000)
                sampling = Sampling(temperature=0, top_p=1, max_tokens=tokens)
                started = time.perf_counter()
                trace = asyncio.run(parse_method(METHODS[name]).solve(engine, PROBLEM, sampling))
                spent[name].append((time.perf_counter() - started) * 1000 / tokens)
                engine.close()
                probes[name] = sum(event.kind == "probe" for event in trace.events)
        for name, values in spent.items():
            ratios = [own / plain for own, plain in zip(values, spent["plain"], strict=True)]
            print(
                f"{tokens} tokens, {name}: {statistics.median(values):.2f} ms a token, {statistics.median(ratios):.2f} "
                f"times plain ({min(ratios):.2f} to {max(ratios):.2f}), {probes[name]} probes",
                flush=True,
            )


if __name__ == "__main__":
    main()
