"""A thinking budget with a ramp: ending becomes likelier as the budget runs out, and certain where it is spent.

A hard cap (budget forcing, s1, arXiv 2501.19393) cuts a sentence in two. Here the logit of the end-of-thinking token
rises over the last part of the budget, so that most thinking ends where a thought does, and the cap closes what is
left. It is all in the logits of one engine call: the keys `max_thinking_tokens`, `soft_thinking_tokens` and `ramp_bias`
of a request to vLLM do the same.

Where this differs from budget-forcing: no ignored endings; an end of the whole text inside thinking is not replaced.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from satisfice.engines.base import Capability
from satisfice.intervention.controls import ThinkingBudget
from satisfice.intervention.draft import Draft
from satisfice.intervention.forced import claim_forced
from satisfice.intervention.method import CAPS, Knob, Method
from satisfice.parameters import BelowOne
from satisfice.thinking import ThinkingFormat

LARGEST_RAMP = 1000.0
"""Nats; what a request to vLLM may ask for, too."""


@dataclass(frozen=True)
class RampedBudget(Method):
    """Bound thinking, and make its end likelier on the way there.

    Attributes:
        max_thinking: most tokens of thinking, counted from the start of the response. The default is ours.
        ramp_from: the share of `max_thinking` at which the end-of-thinking logit begins to rise (ours).
        ramp_bias: by how much it has risen at `max_thinking`, in nats; 0 leaves a hard cap. Ours, as in vLLM's keys.
        cue: written after a forced closing marker to draw an answer.
    """

    name: ClassVar[str] = "thinking-budget"
    summary: ClassVar[str] = "closes thinking at max_thinking tokens, and makes its end likelier on the way there"
    paper: ClassVar[str] = "2501.19393 (s1) with a ramp of ours"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTROL})
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("max_thinking", CAPS),
        Knob("ramp_bias", (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0)),
    )
    on_lab: ClassVar[str] = "max_thinking=120"

    max_thinking: PositiveInt = 2048
    ramp_from: BelowOne = 0.5
    ramp_bias: Annotated[float, Field(ge=0, le=LARGEST_RAMP)] = 8.0
    cue: str = ""

    @property
    def ramp_start(self) -> int | None:
        """The token at which the ramp begins; None where there is none."""
        return int(self.ramp_from * self.max_thinking) if self.ramp_bias else None

    def control(self, thinking: ThinkingFormat) -> ThinkingBudget:
        return ThinkingBudget(
            most=self.max_thinking, cue=self.cue, ramp_start=self.ramp_start, ramp_bias=self.ramp_bias
        )

    async def respond(self, draft: Draft) -> None:
        generation = await draft.write()
        if claim_forced(draft, self.control(draft.engine.thinking), generation) is not None:
            draft.note("closed", back=len(draft.ids) - (draft.tracker.end or 0))
