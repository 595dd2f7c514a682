"""TLDR at decoding time (arXiv 2505.07961): ask a model that was trained on levels for one of them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from satisfice.engines.base import Engine, EngineError
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Knob, Method, MethodError
from satisfice.levels import with_instruction


@dataclass(frozen=True)
class TLDR(Method):
    """Plain decoding under the length instruction of a level, in the words that the model was trained on.

    Without an instruction such a model is asked by the method `plain`.

    Attributes:
        level: short, medium or long. It has no default, so that every table names it.
    """

    name: ClassVar[str] = "tldr"
    summary: ClassVar[str] = "asks a model trained on levels for a short, medium or long thinking"
    paper: ClassVar[str] = "2505.07961 (TLDR)"
    takes_control: ClassVar[bool] = True
    knobs: ClassVar[tuple[Knob, ...]] = (Knob("level", ("long", "medium", "short")),)
    # Needs a model that was trained on levels; with the shipped weights `all` leaves it out and says so.
    on_lab: ClassVar[str] = "level=short"

    level: Literal["short", "medium", "long"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level is None:
            raise MethodError("tldr: say which level, as in tldr:level=short (short, medium or long)")

    def check(self, engine: Engine) -> None:
        super().check(engine)
        if self.level not in engine.levels:
            raise EngineError(
                f"tldr: {engine.name} was not trained on levels (its directory has no satisfice.json that names "
                f"{self.level}): train one with `satisfice train recipes/lab/tldr.yaml`, or give a model that was"
            )

    async def respond(self, draft: Draft) -> None:
        assert self.level is not None
        draft.begin(question=with_instruction(draft.problem.prompt, draft.engine.levels[self.level]))
        await draft.write()
