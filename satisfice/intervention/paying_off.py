"""Where early exit saves time and where it costs more than it saves: what was measured, as data.

The table of docs/results/early-exit.md, by `benchmarks/early_exit.py`: the lab's model, its own spelling of each
method, one thread. Time is processor time, of the server too where there is one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from satisfice.engines.base import Engine
from satisfice.intervention.composed import Composed
from satisfice.intervention.method import Method

ENGINES = {
    "transformers": "the transformers engine",
    "vllm": "vLLM in this process",
    "openai": "a vLLM server over HTTP",
}
"""What each engine is called in a sentence, by what its name begins with."""


@dataclass(frozen=True)
class Measured:
    """One method on one engine.

    Attributes:
        method, engine: by name.
        kept: share of plain decoding's response tokens that it kept, with 32 problems at once.
        alone: its time over that of plain decoding, one problem at a time.
        together: the same with 32 problems at once, and no others.
        busy: the same with 128 problems, 32 at once, so that others wait for the place of those that end; None where it
            was not measured.
    """

    method: str
    engine: str
    kept: float
    alone: float
    together: float
    busy: float | None = None

    @property
    def worst(self) -> float:
        """The largest of these times."""
        return max(self.alone, self.together, self.busy or 0.0)

    def __str__(self) -> str:
        busy = "" if self.busy is None else f", {self.busy:.2f} times while others waited"
        return (
            f"it kept {self.kept:.0%} of plain's tokens and took {self.alone:.2f} times its time one problem at a "
            f"time, {self.together:.2f} times with 32 at once{busy}"
        )


MEASURED = (
    Measured("deer", "transformers", kept=0.34, alone=0.28, together=0.32, busy=0.40),
    Measured("entrocut", "transformers", kept=0.37, alone=0.28, together=0.36, busy=0.41),
    Measured("adaptive-think", "transformers", kept=0.35, alone=0.27, together=0.50, busy=0.55),
    Measured("fractured-stop", "transformers", kept=0.75, alone=0.76, together=0.86, busy=1.04),
    Measured("decoding-tree", "transformers", kept=0.51, alone=0.76, together=2.50, busy=2.98),
    Measured("deer", "vllm", kept=0.34, alone=0.28, together=0.31, busy=0.42),
    Measured("entrocut", "vllm", kept=0.37, alone=0.26, together=0.36, busy=0.43),
    Measured("adaptive-think", "vllm", kept=0.35, alone=0.30, together=0.70, busy=0.91),
    Measured("fractured-stop", "vllm", kept=0.75, alone=0.74, together=0.82, busy=1.12),
    Measured("deer", "openai", kept=0.36, alone=0.69, together=1.57),
    Measured("adaptive-think", "openai", kept=0.37, alone=1.16, together=2.73),
    Measured("fractured-stop", "openai", kept=0.87, alone=1.43, together=2.53),
)


def slower(methods: Iterable[Method], engine: Engine) -> list[str]:
    """A sentence for each method that is known to cost more time on this engine than it saves.

    Args:
        methods: that were chosen; of a strategy joined with a control the strategy is meant.
        engine: that they are to run on.
    """
    kind = engine.name.partition(":")[0]
    names = {(each.strategy if isinstance(each, Composed) else each).name for each in methods}
    return [
        f"{one.method} costs more time than it saves on {ENGINES[kind]}, as far as was measured: {one} "
        "(docs/results/early-exit.md)"
        for one in MEASURED
        if one.engine == kind and one.method in names and one.worst > 1
    ]
