"""Self-consistency (arXiv 2203.11171): several responses, and the answer that most of them give."""

from dataclasses import dataclass
from typing import ClassVar

from satisfice.intervention.answers import given_answer, label, majority
from satisfice.intervention.method import Draft, Method, MethodError, together


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

    k: int = 8

    def __post_init__(self) -> None:
        if self.k < 1:
            raise MethodError(f"self-consistency: k is {self.k}; it must be 1 or more")

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
