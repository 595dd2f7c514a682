"""Self-consistency (arXiv 2203.11171): several responses, and the answer that most of them give."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveInt

from satisfice.intervention.answers import given_answer, label, majority
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Knob, Method, together


@dataclass(frozen=True)
class SelfConsistency(Method):
    """A majority vote among `k` responses; the first response with the winning answer is returned.

    A response without an answer, or one that was cut off, does not vote. Of answers with as many votes the one that
    was given first wins. Where nobody votes, the first response is returned.

    Attributes:
        k: responses. The default is ours; the paper draws up to 40.
    """

    name: ClassVar[str] = "self-consistency"
    summary: ClassVar[str] = "the answer that most of k responses give"
    paper: ClassVar[str] = "2203.11171 (self-consistency)"
    takes_control: ClassVar[bool] = True
    knobs: ClassVar[tuple[Knob, ...]] = (Knob("k", (16, 12, 8, 6, 4, 3, 2, 1), shared=True, against_first=True),)
    # A few responses tell voting from no voting, and stay below ten times plain.
    on_lab: ClassVar[str] = "k=4"

    k: PositiveInt = 8

    @property
    def breadth(self) -> int:
        return self.k

    async def respond(self, draft: Draft) -> None:
        responses = [draft.fork(index) for index in range(self.k)]
        await together(*(response.write() for response in responses))
        answers = [given_answer(response) for response in responses]
        vote = majority(answers)
        adopted = vote.winner or 0
        for index, (response, answer) in enumerate(zip(responses, answers, strict=True)):
            draft.note("response", index=index, answer=label(answer), tokens=len(response.ids))
        draft.note("vote", tally=vote.tally, without_answer=answers.count(None), adopted=adopted)
        draft.adopt(responses[adopted])
