"""Soft landing: a cap on thinking that is announced, and that waits for the end of a sentence.

A hard cap (budget forcing, s1, arXiv 2501.19393) cuts a thought in two, and the answer is drawn from half of it. Here
the model is told in time, by a few words that are written into its thinking `lead` tokens before the cap, and at the
cap it may finish its sentence, within `grace` tokens. Both are forced through logits in one engine call: in a request
to vLLM the keys `hint`, `hint_lead`, `grace_tokens` and `grace_end` do the same.
"""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import NonNegativeInt, PositiveInt

from satisfice.engines.base import Capability
from satisfice.intervention.controls import ThinkingBudget
from satisfice.intervention.draft import Draft
from satisfice.intervention.forced import claim_forced
from satisfice.intervention.method import CAPS, Knob, Method, MethodError
from satisfice.intervention.text_ends import End
from satisfice.thinking import ThinkingFormat


@dataclass(frozen=True)
class SoftLanding(Method):
    """Announce a cap on thinking, and let the last sentence be finished. All defaults are ours.

    Attributes:
        max_thinking: tokens of thinking, counted from the start of the response, after which it is to end.
        lead: by how many tokens before that the hint comes.
        hint: what is written into thinking then; empty writes nothing. It cuts in where the model is, so it should
            begin as a new clause may.
        grace: at most so many tokens more than `max_thinking`, until there is a `until`; 0 is a hard cap.
        until: what ends the grace: a "sentence", a "line", a "paragraph", or any "token".
        cue: written after a forced closing marker to draw an answer.
    """

    name: ClassVar[str] = "soft-landing"
    summary: ClassVar[str] = "announces a cap on thinking with a hint, and lets the last sentence be finished"
    paper: ClassVar[str] = "2501.19393 (s1) with a landing of ours"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTROL})
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("max_thinking", CAPS[:-1]),  # the smallest leaves no room for the usual lead
    )
    on_lab: ClassVar[str] = 'max_thinking=70,hint="",grace=48,until=paragraph'

    max_thinking: PositiveInt = 2048
    lead: NonNegativeInt = 64
    hint: str = " Time is nearly up, so"
    grace: NonNegativeInt = 64
    until: End = "sentence"
    cue: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hint and self.lead >= self.max_thinking:
            raise MethodError(
                f"soft-landing: lead is {self.lead} and max_thinking {self.max_thinking}; the hint has to come after "
                "the start, so give a smaller lead"
            )

    def control(self, thinking: ThinkingFormat) -> ThinkingBudget:
        if thinking.close in self.hint:
            raise MethodError(f"soft-landing: hint contains {thinking.close!r}, which would end thinking; leave it out")
        return ThinkingBudget(
            most=self.max_thinking,
            cue=self.cue,
            hint=self.hint,
            hint_at=self.max_thinking - self.lead if self.hint else None,
            grace=self.grace,
            grace_end=self.until,
        )

    async def respond(self, draft: Draft) -> None:
        generation = await draft.write()
        closed = claim_forced(draft, self.control(draft.engine.thinking), generation)
        if closed is not None:
            draft.note("closed", back=len(draft.ids) - closed, grace=closed - self.max_thinking)
