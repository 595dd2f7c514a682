"""Plain decoding: the baseline that every method is compared with."""

from dataclasses import dataclass
from typing import ClassVar

from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method


@dataclass(frozen=True)
class Plain(Method):
    """One response, no intervention."""

    name: ClassVar[str] = "plain"
    summary: ClassVar[str] = "one response, no intervention: the baseline"
    paper: ClassVar[str] = ""

    async def respond(self, draft: Draft) -> None:
        await draft.write()
