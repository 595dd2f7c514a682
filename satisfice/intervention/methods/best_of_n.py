"""Best-of-n: several responses, and the one that a scorer likes best.

Papers score with a process reward model, a second and usually much larger model. None is shipped here. What is
shipped needs no other model; any other scorer is registered from Python, under a name that then works everywhere:

    SCORERS["prm"] = Scorer(my_reward_model)
    parse_method("best-of-n:n=8,scorer=prm")
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import PositiveInt

from satisfice.engines.base import Capability, Generation
from satisfice.intervention.answers import given_answer, label
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Knob, Method, MethodError, together


@dataclass(frozen=True)
class Scorer:
    """Rates finished responses.

    Attributes:
        rate: from a response and the generation that ended it to a number, 0 or more; higher is better. It may
            await, for instance a reward model on a server.
        needs: what an engine must be able to do. With `Capability.LOGPROBS` the generation has log-probabilities.
    """

    rate: Callable[[Draft, Generation], Awaitable[float]]
    needs: frozenset[Capability] = frozenset()

    @property
    def options(self) -> dict[str, Any]:
        """What to ask of `Draft.write` so that its generation can be rated."""
        return {"top_logprobs": 1} if Capability.LOGPROBS in self.needs else {}

    async def __call__(self, response: Draft, generation: Generation) -> float:
        """The score of one response.

        Raises:
            MethodError: it is no number from 0 on; with scores below 0, a sum over equal answers means nothing.
        """
        score = await self.rate(response, generation)
        if not 0 <= score < math.inf:
            raise MethodError(f"a scorer gave {score}; it must give a finite number, 0 or more, higher for better")
        return score


async def confidence(response: Draft, generation: Generation) -> float:
    """Geometric mean of the probabilities of the generated tokens; it ranks as their mean log-probability does.

    Thinking counts where it was generated, too: an answer only repeats what its thinking concludes, so its own tokens
    are likely whether it is right or wrong.
    """
    assert generation.logprobs is not None
    return math.exp(math.fsum(generation.logprobs) / len(generation.logprobs))


async def brevity(response: Draft, generation: Generation) -> float:
    """One over the length of the whole response in tokens: the shortest wins."""
    return 1 / len(response.ids)


SCORERS: dict[str, Scorer] = {
    "confidence": Scorer(confidence, frozenset({Capability.LOGPROBS})),
    "shortest": Scorer(brevity),
}
"""Every scorer by name; add your own."""


def scorer_named(name: str, method: str) -> Scorer:
    """The scorer of a name.

    Raises:
        MethodError: there is none.
    """
    if name not in SCORERS:
        raise MethodError(
            f"{method}: there is no scorer {name!r}; it is one of {', '.join(SCORERS)}, or one that Python code has "
            "put into satisfice.intervention.methods.best_of_n.SCORERS"
        )
    return SCORERS[name]


@dataclass(frozen=True)
class BestOfN(Method):
    """The response with the highest score of `n`.

    Only finished responses with an answer are scored; of equal scores the first wins. Where there is none, the first
    response is returned.

    Attributes:
        n: responses. The default is ours.
        scorer: "confidence" is the geometric mean of the probabilities of the response's tokens, "shortest" prefers
            the response with the fewest tokens. Papers use a process reward model, which is not shipped; register
            one in `SCORERS`.
    """

    name: ClassVar[str] = "best-of-n"
    summary: ClassVar[str] = "the response of n that a scorer likes best"
    paper: ClassVar[str] = ""
    takes_control: ClassVar[bool] = True
    knobs: ClassVar[tuple[Knob, ...]] = (Knob("n", (16, 12, 8, 6, 4, 3, 2, 1), shared=True, against_first=True),)
    on_lab: ClassVar[str] = "n=4"

    n: PositiveInt = 8
    scorer: str = "confidence"

    def __post_init__(self) -> None:
        super().__post_init__()
        # An instance's needs are those of its scorer.
        object.__setattr__(self, "needs", scorer_named(self.scorer, self.name).needs)

    @property
    def breadth(self) -> int:
        return self.n

    async def respond(self, draft: Draft) -> None:
        score = SCORERS[self.scorer]
        responses = [draft.fork(index) for index in range(self.n)]
        generations = await together(*(response.write(**score.options) for response in responses))
        answers = [given_answer(response) for response in responses]
        answered = [index for index, answer in enumerate(answers) if answer is not None]
        rated = await together(*(score(responses[index], generations[index]) for index in answered))
        scores = dict(zip(answered, rated, strict=True))
        best = max(answered, key=scores.__getitem__, default=0)  # of equals, `max` keeps the first
        for index, (response, answer) in enumerate(zip(responses, answers, strict=True)):
            tokens = len(response.ids)
            draft.note("response", index=index, answer=label(answer), tokens=tokens, score=scores.get(index))
        draft.note("chosen", scorer=self.scorer, adopted=best)
        draft.adopt(responses[best])
