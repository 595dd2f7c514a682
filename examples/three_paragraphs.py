"""A strategy: close thinking after three paragraphs, and let the model answer."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveInt

from satisfice.intervention import Draft, Method
from satisfice.intervention.probing import think_to_paragraph


@dataclass(frozen=True)
class ThreeParagraphs(Method):
    """Think for so many paragraphs at most.

    Attributes:
        paragraphs: how many.
    """

    name: ClassVar[str] = "three-paragraphs"
    summary: ClassVar[str] = "closes thinking after three paragraphs"
    paper: ClassVar[str] = ""
    takes_control: ClassVar[bool] = True

    paragraphs: PositiveInt = 3

    async def respond(self, draft: Draft) -> None:
        limit = draft.remaining
        for number in range(1, self.paragraphs + 1):
            if not await think_to_paragraph(draft, limit):
                break  # the model has closed its thinking, or the token limit is reached
            draft.note("paragraph", number=number)
        await draft.conclude()  # closes thinking where it is still open, and writes the answer
