"""Runs that look like real ones, made from a seed: for the tests of the report, and for looking at it.

`python tests/report/synthetic_run.py FOLDER [METHODS]` writes one to a folder.
"""

import random
import sys
from pathlib import Path
from typing import Any

from satisfice.runs.run_folder import RunFolder
from satisfice.trace import Cost, Event, Grade, Trace

CAP = 640

# Spelling: how long its thinking is against plain, how much likelier it is to be right, probes a trace.
METHODS = {
    "plain": (1.0, 0.0, 0),
    "temperature-scaling:t=0.9": (0.52, 0.004, 0),
    "deer:tau=0.95": (0.66, -0.01, 3),
    "budget-forcing:budget=200": (0.38, -0.22, 0),
    "no-thinking": (0.0, -0.45, 0),
    "deer:tau=0.8": (0.45, -0.06, 4),
    "temperature-scaling:t=1.1": (1.25, -0.05, 0),
    "tldr:level=short": (0.35, -0.03, 0),
    "tldr:level=medium": (0.6, 0.0, 0),
    "tldr:level=long": (0.9, 0.02, 0),
    "adaptive-think": (0.5, -0.02, 0),
    "fractured-sampling:depths=4,answers=2": (0.8, 0.03, 6),
    "thought-switching-penalty:alpha=3,beta=600": (0.85, 0.01, 0),
    "certaindex": (0.62, -0.015, 5),
    "majority-vote:n=4": (1.0, 0.05, 0),
    "wait-removal": (0.7, -0.02, 0),
}

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!--<script>",
    "]]>&lt;b&gt;&amp;",
    "null \x00 bell \x07 escape \x1b[31m",
    "right to left \u202e gnorw \u2066 isolate",
    "line\u2028and paragraph\u2029separators",
    "{{ 7 * 7 }} {% raw %} ${7*7} $\\frac{1}{2}$",
)

STEPS = (
    "First I add {a} and {b}: that gives {c}.",
    "Wait, let me check that again. {a} + {b} = {c}, yes.",
    "So far we have {c}; what is left is {a}.",
    "Alternatively, take {c} - {b} = {a}, which fits.",
    "Hmm, is it {b} or {a}? The problem says {b}.",
    "Let $x = {a}$, then $x + {b} = {c}$.",
)


def write_run(
    folder: Path,
    *,
    problems: int = 60,
    samples: int = 1,
    methods: int = 5,
    finished: float = 1.0,
    hostile: bool = False,
) -> Path:
    """Write a run; the last method has only the share `finished` of its problems, and a hostile run has texts that
    attack the page in every place a text can stand."""
    names = list(METHODS)[:methods] + (["<b>bad</b>:$x_1$='\"--></svg>"] if hostile else [])
    config = {
        "schema_version": 1,
        "command": f"satisfice run {folder.name}",
        "model": "lab/reasoner-620k" if not hostile else HOSTILE[0],
        "problems": {"name": "two-digit sums" if not hostile else HOSTILE[1], "digest": "5b2f", "n": problems},
        "methods": names,
        "samples": samples,
        "seed": 0,
        "sampling": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "max_tokens": CAP},
        "versions": {"satisfice": "0.1.0", "torch": "2.6.0", "transformers": "5.23.0"},
        "device": "cpu, 1 thread",
        "baseline": "plain",
        "created": "2026-01-02T03:04:05+00:00",
    }
    with RunFolder.create_or_open(folder, config) as run:
        for method in names:
            done = round(problems * finished) if method == names[-1] else problems
            for problem in range(done):
                for sample in range(samples):
                    run.append(_trace(method, problem, sample, hostile))
    return folder


def _trace(method: str, problem: int, sample: int, hostile: bool) -> Trace:
    share, better, probes = METHODS.get(method, (0.7, 0.0, 1))
    shared = random.Random(f"{problem}/{sample}")  # what a problem is like is the same for all methods
    own = random.Random(f"{method}/{problem}/{sample}")
    hardness = shared.random()
    correct = shared.random() < 0.98 - 0.35 * hardness**2 + better
    natural = 120 * (1 + 3 * hardness) * own.lognormvariate(0, 0.25) * (1.0 if correct else 1.7)
    thinking = min(CAP, round(natural * share))
    truncated = thinking >= CAP
    answer = 0 if truncated else own.randint(12, 30)
    ids = [own.randrange(30_000) for _ in range(thinking + answer)]
    if truncated:
        ids[300:] = (ids[300:320] * CAP)[: len(ids) - 300]
    a, b = shared.randint(10, 99), shared.randint(10, 99)
    gold = str(a + b)
    extracted = None if truncated else gold if correct else str(a + b + own.choice((-10, -1, 1, 10)))
    text = hostile and HOSTILE[problem % len(HOSTILE)]
    events = [
        Event(
            at=round(thinking * (number + 1) / (probes + 1)),
            kind="probe",
            detail={"answer": text or gold, "confidence": round(own.uniform(0.5, 0.99), 3)},
        )
        for number in range(probes)
    ]
    return Trace(
        problem_id=f"sums/{problem:04d}" if not text else f"{text}/{problem}",
        source="lab",
        prompt=text or f"Ann has {a} marbles and Ben gives her {b} more.\nHow many marbles does Ann have now?",
        gold=gold,
        method=method,
        sample=sample,
        seed=sample,
        prompt_ids=list(range(40)),
        response_ids=ids,
        thinking_span=(0, thinking),
        thinking=text or _thinking(own, thinking, a, b),
        answer=""
        if truncated
        else text or f"Ann has **{extracted}** marbles.\n\nThe answer is \\boxed{{{extracted}}}.",
        stop="token limit" if truncated else "closed by method" if probes and own.random() < 0.7 else "marker",
        finished=not truncated,
        stopped_by="length" if truncated else "<|im_end|>",
        events=events,
        cost=Cost(
            thinking_tokens=thinking,
            answer_tokens=answer,
            forced_tokens=3 if probes else 0,
            probe_tokens=12 * probes,
            prefilled_tokens=40,
            forward_passes=thinking + answer + 12 * probes,
            seconds=round((thinking + answer + 12 * probes) / 90, 3),
        ),
        grade=Grade(
            correct=correct and not truncated,
            extracted=extracted,
            expected=gold,
            grader="numeric",
            note="truncated" if truncated else "",
        ),
    )


def _thinking(own: random.Random, tokens: int, a: int, b: int) -> str:
    words: list[str] = []
    while len(words) < tokens * 0.75:
        words.extend(own.choice(STEPS).format(a=a, b=b, c=a + b).split(" "))
        words[-1] += own.choice(("\n", " ", "\n\n"))
    return " ".join(words).replace("\n ", "\n").strip()


if __name__ == "__main__":
    arguments: list[Any] = sys.argv[1:]
    print(write_run(Path(arguments[0]), methods=int(arguments[1]) if len(arguments) > 1 else 5))
