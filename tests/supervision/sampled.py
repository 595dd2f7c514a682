"""Sampled problems made by hand, for the tests of curation."""

from itertools import count

from satisfice.supervision import SampledProblem
from satisfice.thinking import FAMILIES
from satisfice.trace import Cost, Grade, Trace

_seeds = count(10**6)


def trace(
    tokens, correct=True, *, sample=None, thinking="a) 1+1=2\nSo 2.\n\n", answer="\n\nThe answer is \\boxed{2}.", **more
):
    """A trace of so many tokens, five of them behind the thinking. Two with the same sample have the same seed."""
    seed = next(_seeds) if sample is None else 1000 + sample
    return Trace(
        problem_id=more.pop("problem_id", "p"),
        source="set",
        prompt=more.pop("prompt", "What is 1+1?"),
        gold=more.pop("gold", "2"),
        method="plain",
        sample=sample or 0,
        seed=more.pop("seed", seed),
        thinking=thinking,
        answer=answer,
        cost=Cost(thinking_tokens=max(0, tokens - 5), answer_tokens=min(5, tokens)),
        grade=more.pop("grade", Grade(correct=correct and more.get("finished", True), extracted="2", grader="math")),
        **more,
    )


def problem(*traces, **more):
    """A problem with these traces; a number stands for a right trace of that length, a negative one for a wrong."""
    made = [
        trace(abs(each), each > 0, sample=place) if isinstance(each, int) else each for place, each in enumerate(traces)
    ]
    return SampledProblem(
        id=more.pop("id", "p"),
        source="set",
        turns=more.pop("turns", ({"role": "user", "content": "What is 1+1?"},)),
        question=more.pop("question", "What is 1+1?"),
        gold=more.pop("gold", "2"),
        traces=tuple(made),
        thinking=more.pop("thinking", FAMILIES["think-tags"]),
        model="m",
        model_digest="d",
    )
