"""Fractured sampling (arXiv 2505.12992): answers drawn not only from whole thinkings but from their beginnings.

A budget of tokens is spent on three axes: n thinkings, H depths at which each is cut, m solutions a cut. Solutions
are short and share the prefix that they go on from, so a cut costs little where an engine keeps its cache.
"""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from satisfice.engines.base import Generation
from satisfice.intervention.answers import Vote, canonical, given_answer, label, majority
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Knob, Method, MethodError, together
from satisfice.intervention.methods.best_of_n import SCORERS, scorer_named
from satisfice.thinking import Phase, ThinkingTracker

Cuts = Literal["paper", "code"]
Weights = Literal["equal", "linear"]


@dataclass(frozen=True)
class Solution:
    """A response that begins with a part of one trajectory's thinking.

    Attributes:
        trajectory: where its thinking comes from.
        response: the whole of it; the trajectory itself where the solution is the trajectory's own.
        depth: 1 to H; H is the whole thinking.
        ended_by: what generated the solution.
        answer: what it answers, None where it gives none or was cut off.
    """

    trajectory: Draft
    response: Draft
    depth: int
    ended_by: Generation
    answer: str | None


@dataclass(frozen=True)
class Fractured(Method):
    """Vote, or choose by a scorer, among n x H x m solutions at H depths of n thinkings.

    The response that is returned is the first solution with the winning answer, with the part of the thinking that
    it goes on from. Solutions are counted trajectory by trajectory, each from its first cut to its last; of answers
    of equal weight the one that was counted first wins (ours). A solution without an answer, or one that was cut
    off, does not count. Where none counts, the first trajectory's deepest solution is returned.

    Attributes:
        n: trajectories, each a thinking of its own.
        depths: at how many places each is cut (the paper's H).
        m: solutions a cut.
        last: count, and generate, only the deepest so many depths (the paper's "H=-4" is last=4); None takes all.
        weights: "linear" gives a solution at depth t the weight 2t / (H (H + 1)); "equal" is 1 for all.
        scorer: choose by score instead of by vote, see best-of-n; with weights=linear the weighted scores of equal
            answers are added up.
        cuts: "paper" cuts every s = max(1, floor(L / H)) of L thinking tokens. "code" cuts at floor(t L / H); its
            depth H is the whole thinking, where the trajectory's own solution counts as the first.
        max_solution: tokens of one solution at most; the response's own limit stands above it.
    """

    name: ClassVar[str] = "fractured"
    summary: ClassVar[str] = "votes among solutions drawn at several depths of several thinkings"
    paper: ClassVar[str] = "2505.12992 (Fractured Sampling)"
    # Solutions of 16 tokens: a complete one has 7, and one cut in mid-calculation would go on calculating.
    on_lab: ClassVar[str] = "n=4,depths=4,m=1,max_solution=16"
    takes_control: ClassVar[bool] = True

    n: PositiveInt = 16
    depths: PositiveInt = 16
    m: PositiveInt = 4
    last: PositiveInt | None = None
    weights: Weights = "equal"
    scorer: str | None = None
    cuts: Cuts = "paper"
    max_solution: PositiveInt = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last is not None and self.last > self.depths:
            raise MethodError(f"fractured: last is {self.last}; it must be from 1 to depths, which is {self.depths}")
        if self.scorer is not None:
            object.__setattr__(self, "needs", scorer_named(self.scorer, self.name).needs)

    @property
    def breadth(self) -> int:
        return self.n * self.depths * self.m

    async def respond(self, draft: Draft) -> None:
        trajectories = [draft.fork(index) for index in range(self.n)]
        pools = await together(*(self._fracture(trajectory) for trajectory in trajectories))
        pool = [solution for solutions in pools for solution in solutions]
        scores = await together(*(self._score(solution) for solution in pool))
        vote = self._choose(pool, scores)
        # `max` keeps the first of the deepest ones.
        chosen = max(pools[0], key=lambda solution: solution.depth) if vote.winner is None else pool[vote.winner]

        rated = iter(scores)
        for index, solutions in enumerate(pools):
            draft.note(
                "trajectory",
                index=index,
                depths=[solution.depth for solution in solutions],
                thinking_tokens=[solution.response.tracker.span[1] for solution in solutions],
                answers=[label(solution.answer) for solution in solutions],
                scores=[next(rated) for _ in solutions] if self.scorer else None,
            )
        self._note_budget(draft, trajectories, pool)
        draft.note(
            "vote",
            tally=vote.tally,
            without_answer=sum(solution.answer is None for solution in pool),
            adopted=trajectories.index(chosen.trajectory),
            depth=chosen.depth,
        )
        if chosen.response is not chosen.trajectory:
            chosen.trajectory.adopt(chosen.response)
        draft.adopt(chosen.trajectory)

    async def _fracture(self, trajectory: Draft) -> list[Solution]:
        """One thinking, cut at all depths, and the solutions that follow from them."""
        thought = await trajectory.think(**self._options)
        begin, end = _opened_at(trajectory), len(trajectory.ids) - thought.stop_tokens
        if begin is None:
            # A response that never opened its thinking has nothing to cut: it is its own only solution.
            ended_by = await trajectory.write(**self._options) if _goes_on(trajectory, thought) else thought
            return [Solution(trajectory, trajectory, self.depths, ended_by, given_answer(trajectory))]
        whole = trajectory.tracker.span[1] if trajectory.closed else end
        own = self.cuts == "code"  # whether the trajectory goes on to a solution of its own

        jobs = [self._solve(trajectory, trajectory, self.depths)] if own else []
        for depth, tokens in self._cut(end - begin):
            at = whole if begin + tokens == end else begin + tokens
            for number in range(int(own and depth == self.depths), self.m):
                response = trajectory.fork(1 + (depth - 1) * self.m + number, at)  # 0 is the trajectory's own stream
                response.close_thinking()
                jobs.append(self._solve(trajectory, response, depth))
        # Sorting keeps the order of those at the same depth: the trajectory's own solution comes first at depth H.
        return sorted(await together(*jobs), key=lambda solution: solution.depth)

    def _cut(self, length: int) -> list[tuple[int, int]]:
        """Depths and the number of thinking tokens before each cut, the shallowest first.

        Where a thinking is shorter than H tokens some cuts coincide: one stands for all, at the deepest depth.
        """
        step = max(1, length // self.depths)
        depth_at: dict[int, int] = {}
        for depth in range(1, self.depths + 1):
            tokens = min(depth * step, length) if self.cuts == "paper" else depth * length // self.depths
            depth_at[tokens] = depth
        kept = self.depths - (self.last or self.depths)
        return [(depth, tokens) for tokens, depth in depth_at.items() if depth > kept]

    async def _solve(self, trajectory: Draft, response: Draft, depth: int) -> Solution:
        if not response.closed:
            # A trajectory that ended inside its thinking, or a cut that left no room to close it, has no solution.
            return Solution(trajectory, response, depth, Generation([], "length"), None)
        limit = None if response is trajectory else self.max_solution
        ended_by = await response.write(limit, **self._options)
        return Solution(trajectory, response, depth, ended_by, given_answer(response))

    @property
    def _options(self) -> dict[str, Any]:
        return SCORERS[self.scorer].options if self.scorer else {}

    async def _score(self, solution: Solution) -> float:
        if self.scorer is None:
            return 1
        if solution.answer is None:
            return 0
        return await SCORERS[self.scorer](solution.response, solution.ended_by)

    def _choose(self, pool: Sequence[Solution], scores: Sequence[float]) -> Vote:
        answers = [solution.answer for solution in pool]
        if self.scorer is not None and self.weights == "equal":
            # The best single solution: scores of equal answers are not added up.
            answered = [place for place, answer in enumerate(answers) if answer is not None]
            best = max(answered, key=scores.__getitem__, default=None)
            return Vote(best, {} if best is None else {str(label(answers[best])): scores[best]})
        total = self.depths * (self.depths + 1)
        linear = self.weights == "linear"
        weights = [Fraction(2 * solution.depth, total) if linear else Fraction(1) for solution in pool]
        return majority(answers, [weight * score for weight, score in zip(weights, scores, strict=True)])

    def _note_budget(self, draft: Draft, trajectories: Sequence[Draft], pool: Sequence[Solution]) -> None:
        """The paper's budget, n C_thinking + n m H C_solution, from the means of this problem."""
        thinking = fmean(trajectory.tracker.span[1] for trajectory in trajectories)
        solution = fmean(len(solution.ended_by.ids) for solution in pool)
        depths = self.last or self.depths
        draft.note(
            "budget",
            thinking_mean=thinking,
            solution_mean=solution,
            solutions=len(pool),
            formula=self.n * thinking + self.n * self.m * depths * solution,
        )


def _opened_at(response: Draft) -> int | None:
    """How many tokens of a response stand before its thinking, 0 where the prompt opens it; None without thinking."""
    tracker = ThinkingTracker(response.tracker.automaton, response.prompt.state)
    for token in response.ids:
        if tracker.phase is not Phase.BEFORE:
            break
        tracker.push(token)
    return tracker.position if tracker.phase is Phase.THINKING else None


def _goes_on(response: Draft, thought: Generation) -> bool:
    """Whether there is more to write: the model has not ended the whole response in its thinking or without any."""
    return thought.finish != "stop" or thought.stopped_by == response.engine.thinking.close


@dataclass(frozen=True)
class FracturedStop(Method):
    """One thinking that is cut short once the solutions at its cuts agree: the paper's early stopping.

    At `start` thinking tokens, and every `interval` after that, one solution is generated on the side. Thinking ends
    as soon as `repeats` solutions of this problem, in a row or not, gave the same answer; the last of them is
    returned. A thinking that the model ends itself goes on to its own answer. Where there is none, as at the token
    limit, the last solution with an answer is returned.

    Attributes:
        start: thinking tokens before the first cut.
        interval: thinking tokens between cuts.
        repeats: solutions with the same answer that end thinking.
        max_solution: tokens of one solution at most; the response's own limit stands above it.
    """

    name: ClassVar[str] = "fractured-stop"
    summary: ClassVar[str] = "ends thinking once solutions drawn along the way repeat an answer"
    paper: ClassVar[str] = "2505.12992 (Fractured Sampling, early stopping)"
    # Earlier predictions agree before there is an answer.
    on_lab: ClassVar[str] = "start=60,interval=15,max_solution=16"
    takes_control: ClassVar[bool] = True
    knobs: ClassVar[tuple[Knob, ...]] = (Knob("repeats", (6, 5, 4, 3, 2), shared=True),)

    start: PositiveInt = 6144
    interval: PositiveInt = 2048
    repeats: PositiveInt = 2
    max_solution: PositiveInt = 2048

    async def respond(self, draft: Draft) -> None:
        draft.withhold()
        seen: list[Hashable] = []
        newest: Draft | None = None
        for cut in itertools.count(1):
            thought = await draft.think(self.start + (cut - 1) * self.interval - len(draft.ids))
            if draft.phase is not Phase.THINKING or thought.finish == "stop" or not draft.remaining:
                break
            solution = draft.fork(cut)
            solution.close_thinking()
            await solution.write(self.max_solution)
            answer = given_answer(solution)
            if answer is not None:
                newest = solution
                seen.append(canonical(answer))
            times = 0 if answer is None else seen.count(seen[-1])
            draft.note("cut", number=cut, answer=label(answer), times=times)
            if times == self.repeats:
                draft.adopt(solution)
                return
        if _goes_on(draft, thought):
            await draft.write()
        if newest is not None and given_answer(draft) is None:
            draft.note("last prediction", answer=label(given_answer(newest)))
            draft.adopt(newest)
