"""No thinking: close it at once and answer, the other end of the scale from plain decoding."""

from dataclasses import dataclass
from typing import ClassVar

from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method
from satisfice.thinking import Phase


@dataclass(frozen=True)
class NoThinking(Method):
    """Answer without thinking.

    A hybrid model's chat template is asked to switch thinking off; where that leaves thinking open, an empty or
    prefilled thinking is written and closed.

    Attributes:
        prefill: what to write as the whole thinking where the template has no switch; empty by default (ours; some
            write a sentence that says that thinking is done).
    """

    name: ClassVar[str] = "no-thinking"
    summary: ClassVar[str] = "thinking closed at once"
    paper: ClassVar[str] = "2504.09858 (NoThinking)"

    prefill: str = ""

    async def respond(self, draft: Draft) -> None:
        if not self.prefill:
            draft.begin(thinking_on=False)
        if draft.phase is not Phase.ANSWER:
            draft.force_text(self.prefill)
            draft.close_thinking()
        await draft.write()
