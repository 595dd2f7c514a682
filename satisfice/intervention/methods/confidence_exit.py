"""Confidence exit: thinking ends where the model has been sure, or unsure, of its words for a while.

DeepConf (arXiv 2508.15260) stops parallel traces that lose confidence, and lets the others vote. Here it is one trace
and no vote: the mean over a sliding window either rises above a threshold, and there is nothing left to be won, or it
falls below one, and the trace is lost. Either way thinking is closed and the model answers. Nothing is generated on the
side, and the engine is asked once.

Where this departs from DeepConf: the default measure is the log-probability of the token that was drawn, not the mean
over the likeliest ones (`measure="group"`); a threshold comes from calibration, not from other traces of the problem; a
trace that is stopped still answers.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from satisfice.engines.base import Capability
from satisfice.intervention.controls import MOST_TOP, MOST_WINDOW, ConfidenceRule, ThinkingBudget
from satisfice.intervention.draft import Draft
from satisfice.intervention.forced import claim_forced
from satisfice.intervention.method import Knob, Method, MethodError
from satisfice.intervention.text_ends import End
from satisfice.thinking import ThinkingFormat

LARGEST_CONFIDENCE = 1000.0
"""Nats; far beyond what a vocabulary can give."""


@dataclass(frozen=True)
class ConfidenceExit(Method):
    """End thinking by the windowed mean of the model's confidence. All defaults are ours: calibrate.

    Attributes:
        above: thinking ends where the mean is this large; none for no such exit.
        below: thinking ends where the mean is this small; none for no such exit.
        measure: "token" is the log-probability of the token that was drawn, in nats, 0 at most. "group" is DeepConf's:
            the negative mean log-probability of the `top` likeliest tokens, large where the model is sure. Both of the
            model's own distribution, at temperature 1 and before anything edits it.
        top: how many tokens "group" takes.
        window: tokens of thinking that the mean is over.
        min_thinking: tokens of the response before which nothing ends.
        at: where thinking may end: after any "token", or only after one that ends a "sentence", a "line" or a
            "paragraph".
        cue: written after the closing marker to draw an answer.
    """

    name: ClassVar[str] = "confidence-exit"
    summary: ClassVar[str] = "ends thinking where a windowed mean log-probability says that it is sure, or lost"
    paper: ClassVar[str] = "2508.15260 (Deep Think with Confidence), its measure on one trace"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTROL, Capability.LOGPROBS})
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("above", (-0.0003, -0.001, -0.003, -0.01, -0.02, -0.03, -0.05, -0.07, -0.1, -0.15, -0.2)),
        Knob("below", (-4.0, -3.0, -2.5, -2.0, -1.5, -1.2, -1.0, -0.8, -0.6)),
        Knob("above", (30.0, 27.0, 25.0, 22.0, 20.0, 18.0, 16.0, 14.0, 12.0, 10.0), {"measure": "group"}),
    )
    on_lab: ClassVar[str] = "above=-0.003,window=16,min_thinking=0"

    above: Annotated[float, Field(ge=-LARGEST_CONFIDENCE, le=LARGEST_CONFIDENCE)] | None = -0.05
    below: Annotated[float, Field(ge=-LARGEST_CONFIDENCE, le=LARGEST_CONFIDENCE)] | None = None
    measure: Literal["token", "group"] = "token"
    top: Annotated[int, Field(ge=1, le=MOST_TOP)] = 20
    window: Annotated[int, Field(ge=1, le=MOST_WINDOW)] = 64
    min_thinking: NonNegativeInt = 128
    at: End = "paragraph"
    cue: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.above is None and self.below is None:
            raise MethodError("confidence-exit: above and below are both none, so that nothing would end; give one")
        if self.above is not None and self.below is not None and self.below >= self.above:
            raise MethodError(
                f"confidence-exit: below is {self.below:g} and above {self.above:g}, so that every mean would end "
                "thinking; below must be the smaller one"
            )
        if self.measure == "token" and self.above is not None and self.above > 0:
            raise MethodError(
                f"confidence-exit: above is {self.above:g}, but a log-probability is 0 at most; "
                "thresholds above 0 are for measure=group"
            )

    def control(self, thinking: ThinkingFormat) -> ThinkingBudget:
        rule = ConfidenceRule(
            above=self.above,
            below=self.below,
            window=self.window,
            least=self.min_thinking,
            end=self.at,
            top=self.top if self.measure == "group" else 0,
        )
        return ThinkingBudget(cue=self.cue, confidence=rule)

    async def respond(self, draft: Draft) -> None:
        generation = await draft.write(top_logprobs=self.top if self.measure == "group" else 1)
        at = claim_forced(draft, self.control(draft.engine.thinking), generation)
        if at is not None:
            draft.note("exit", back=len(draft.ids) - at)
