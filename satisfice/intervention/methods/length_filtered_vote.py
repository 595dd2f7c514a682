"""Length-filtered vote (arXiv 2502.07266): vote only among responses of lengths at which the model agrees.

Accuracy against length is an upside-down U, and where a model is right its answers agree. So responses are grouped
by length, and only the groups whose answers have the least entropy vote.
"""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from satisfice.intervention.answers import canonical, given_answer, label, majority
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method, MethodError, together
from satisfice.lazy import np


@dataclass(frozen=True)
class LengthFilteredVote(Method):
    """A majority vote among the bins of length whose answers have the least entropy.

    A response without an answer, or one that was cut off, is in no bin. Of bins with the same entropy the larger is
    kept, then the shorter; of answers with as many votes the one that was given first wins. Where no bin is large
    enough, all responses with an answer vote; where there is none, the first response is returned.

    Attributes:
        n: responses; the paper draws 20 to 50.
        width: of a bin, in lines that are not empty (the paper's D): bin b holds b * width to (b + 1) * width - 1.
        quantiles: measure length in tokens instead, and cut the responses at that many quantiles (ours).
        keep: how many bins vote (the paper's K).
        min_size: responses that a bin needs to be kept (ours). A single response has no entropy, so without a
            minimum the rule would prefer the odd ones out.
    """

    name: ClassVar[str] = "length-filtered-vote"
    summary: ClassVar[str] = "votes among responses of the lengths at which answers agree"
    paper: ClassVar[str] = "2502.07266 (When More is Less)"
    takes_control: ClassVar[bool] = True
    on_lab: ClassVar[str] = "n=8"

    n: PositiveInt = 20
    width: PositiveInt = 2
    quantiles: Annotated[int, Field(ge=2)] | None = None
    keep: PositiveInt = 3
    min_size: PositiveInt = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantiles is not None and self.quantiles > self.n:
            raise MethodError(f"length-filtered-vote: quantiles is {self.quantiles}; it must be from 2 to n, {self.n}")
        if self.quantiles is not None and self.width != type(self).width:
            raise MethodError("length-filtered-vote: width bins lines and quantiles bins tokens; give one of them")

    @property
    def breadth(self) -> int:
        return self.n

    async def respond(self, draft: Draft) -> None:
        responses = [draft.fork(index) for index in range(self.n)]
        await together(*(response.write() for response in responses))
        answers = [given_answer(response) for response in responses]
        bins = self._bins({i: responses[i] for i, answer in enumerate(answers) if answer is not None})

        entropies = {key: _entropy([answers[i] for i in members]) for key, members in bins.items()}
        large = [key for key, members in bins.items() if len(members) >= self.min_size]
        kept = sorted(large, key=lambda key: (entropies[key], -len(bins[key]), key))[: self.keep]
        voters = set(chain.from_iterable(bins[key] for key in kept or bins))
        vote = majority([answer if i in voters else None for i, answer in enumerate(answers)])
        adopted = vote.winner or 0

        for key, members in bins.items():
            draft.note(
                "bin",
                number=key,
                members=members,
                answers=[label(answers[i]) for i in members],
                entropy=entropies[key],
                votes=key in kept or not kept,
            )
        draft.note(
            "vote",
            tally=vote.tally,
            bins_voting=len(kept) or len(bins),
            filtered=bool(kept),
            without_answer=answers.count(None),
            adopted=adopted,
        )
        draft.adopt(responses[adopted])

    def _bins(self, responses: dict[int, Draft]) -> dict[int, list[int]]:
        """The responses of each bin, the shortest bin first."""
        if self.quantiles is None:
            numbers = {i: _lines(response) // self.width for i, response in responses.items()}
        else:
            tokens = {i: len(response.ids) for i, response in responses.items()}
            shares = np.arange(1, self.quantiles) / self.quantiles
            edges = np.quantile(list(tokens.values()), shares) if tokens else shares
            numbers = {i: int(np.searchsorted(edges, length)) for i, length in tokens.items()}
        return {number: [i for i in numbers if numbers[i] == number] for number in sorted(set(numbers.values()))}


def _lines(response: Draft) -> int:
    """Lines of thinking and answer that are not empty."""
    trace = response.trace()
    return sum(bool(line.strip()) for line in f"{trace.thinking}\n{trace.answer}".splitlines())


def _entropy(answers: list[str | None]) -> float:
    """Shannon entropy of the answers in nats; exact enough that equal shares give equal entropies."""
    counts = Counter(canonical(answer) for answer in answers if answer is not None).values()
    return math.fsum(count / len(answers) * math.log(len(answers) / count) for count in counts)
