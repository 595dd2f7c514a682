"""Budget forcing (s1, arXiv 2501.19393): a hard cap on thinking, or more thinking by ignoring its end.

At most: when thinking reaches `max_thinking` tokens, the closing marker is written for the model. At least: the
first `ignore` times that the model ends its thinking, the ending is taken back and a word that invites second
thoughts is written instead; every round gets what is left of the budget, not the whole of it again.
"""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import NonNegativeInt

from satisfice.intervention.draft import Draft
from satisfice.intervention.method import CAPS, Knob, Method, MethodError
from satisfice.thinking import Phase


@dataclass(frozen=True)
class BudgetForcing(Method):
    """Cap thinking, or extend it.

    Attributes:
        max_thinking: most tokens of thinking, those of all rounds together; None leaves only the response's own
            limit. 0 closes thinking at once.
        cue: written after a forced closing marker to draw an answer; s1 uses "Final Answer:" optionally.
        ignore: how many endings to ignore; s1 tries 1 to 6 and sees loops from about 6.
        wait: what to write in place of an ignored ending; s1's best is "Wait".
    """

    name: ClassVar[str] = "budget-forcing"
    summary: ClassVar[str] = "closes thinking at max_thinking tokens; ignores the first endings to lengthen it"
    paper: ClassVar[str] = "2501.19393 (s1)"
    on_lab: ClassVar[str] = "max_thinking=70"
    takes_control: ClassVar[bool] = True
    knobs: ClassVar[tuple[Knob, ...]] = (Knob("max_thinking", CAPS),)

    max_thinking: NonNegativeInt | None = None
    cue: str = ""
    ignore: NonNegativeInt = 0
    wait: str = "Wait"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ignore and not self.wait:
            raise MethodError("budget-forcing: wait is empty; ignoring an ending needs a text to go on with")

    async def respond(self, draft: Draft) -> None:
        ignored = 0
        while not draft.closed:
            left = draft.remaining
            if self.max_thinking is not None:
                left = min(left, self.max_thinking - len(draft.ids))
            if left <= 0:
                break
            generation = await draft.think(max_tokens=left)
            if draft.phase is Phase.BEFORE and draft.finished:
                return  # a whole response without thinking
            if generation.finish != "stop" or (draft.closed and ignored == self.ignore):
                break
            # The model ended its thinking while endings are ignored, or the whole text inside its thinking.
            draft.take_back(generation.stop_tokens)
            if ignored == self.ignore:
                break
            ignored += 1
            draft.note("ending ignored", round=ignored)
            draft.force_text(self.wait)
        if draft.remaining:
            draft.close_thinking(self.cue)
            await self._answer(draft)

    async def _answer(self, draft: Draft) -> None:
        """Write the answer; thinking that the model opens again is under the same cap."""
        if self.max_thinking is None:
            await draft.write()
            return
        while True:
            generation = await draft.write(stop=draft.engine.thinking.openers)
            if draft.phase is not Phase.THINKING or generation.finish == "length":
                return
            left = self.max_thinking - draft.tracker.thinking_tokens
            if left > 0:
                generation = await draft.think(max_tokens=left)
                if draft.phase is Phase.THINKING:  # the model ended the whole text there, or the cap is reached
                    draft.take_back(generation.stop_tokens)
            if draft.phase is Phase.THINKING and draft.remaining:
                draft.close_thinking(self.cue)
