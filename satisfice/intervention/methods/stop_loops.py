"""Stop loops: thinking ends as soon as it goes in circles.

A model that has lost its way writes the same lines over and over until its tokens are used up. No probe and no second
model is needed to see that: the tokens say it. Every new token is compared with those before it, and when the last
`ngram` of them have stood there `repeats` times, thinking is over with the next line that is no other either. What
repeats by chance, such as a short formula, is too short; what repeats on purpose, such as a table, is why `repeats` and
`window` are yours to choose.

It is one engine call with a control; in a request to vLLM the keys `stop_loops` and `loop_*` do the same.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from satisfice.engines.base import Capability
from satisfice.intervention.controls import MOST_WINDOW, LoopRule, ThinkingBudget
from satisfice.intervention.draft import Draft
from satisfice.intervention.forced import claim_forced
from satisfice.intervention.method import Knob, Method, MethodError
from satisfice.intervention.text_ends import End
from satisfice.thinking import ThinkingFormat


@dataclass(frozen=True)
class StopLoops(Method):
    """End thinking that repeats itself. All defaults are ours.

    Attributes:
        ngram: how many of the last tokens have to be the same.
        repeats: how often they stand in the window, the last time included; the first time is at least
            (repeats - 1) * ngram tokens before.
        window: tokens that are looked at.
        periodic: True asks for one stretch, `repeats` times in a row, with nothing in between.
        until: where thinking may end, as long as it goes on repeating: after any "token", or only after one that ends a
            "sentence", a "line" or a "paragraph".
        grace: how many tokens are waited for that at most.
        cue: written after the closing marker to draw an answer.
    """

    name: ClassVar[str] = "stop-loops"
    summary: ClassVar[str] = "ends thinking once its last tokens have stood there several times before"
    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTROL})
    knobs: ClassVar[tuple[Knob, ...]] = (Knob("repeats", (16, 12, 10, 8, 7, 6, 5, 4, 3, 2)),)
    on_lab: ClassVar[str] = "ngram=12,repeats=2,window=256,until=paragraph"

    ngram: PositiveInt = 32
    repeats: Annotated[int, Field(ge=2)] = 4
    window: Annotated[int, Field(ge=2, le=MOST_WINDOW)] = 1024
    periodic: bool = False
    until: End = "line"
    grace: NonNegativeInt = 64
    cue: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < self.repeats * self.ngram:
            raise MethodError(
                f"stop-loops: window is {self.window}, but {self.repeats} times {self.ngram} tokens (repeats, ngram) "
                f"do not fit into it; use {self.repeats * self.ngram} or more"
            )

    def control(self, thinking: ThinkingFormat) -> ThinkingBudget:
        rule = LoopRule(
            ngram=self.ngram,
            repeats=self.repeats,
            window=self.window,
            periodic=self.periodic,
            end=self.until,
            grace=self.grace,
        )
        return ThinkingBudget(cue=self.cue, loops=rule)

    async def respond(self, draft: Draft) -> None:
        generation = await draft.write()
        at = claim_forced(draft, self.control(draft.engine.thinking), generation)
        if at is not None:
            draft.note("loop", back=len(draft.ids) - at)
