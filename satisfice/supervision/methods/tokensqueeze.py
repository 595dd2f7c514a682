"""TokenSqueeze: right traces whose depth suits the problem, reworded step by step, paired with longer wrong ones.

arXiv 2511.13223. Where this departs from the paper, or where the paper leaves it open:

* The divergence of a rewording is that of whole next-token distributions, as in the paper, where the engine gives them
  (`Capability.DISTRIBUTIONS`: the embedded one). Elsewhere it is estimated from the log-probabilities of the original
  continuation alone, by r - 1 - ln r at each of its tokens, which is unbiased for tokens drawn from the model at
  temperature 1 and never negative, but noisy. The data card says which of the two it was.
* Every step is refined after the original steps before it, so that all can be refined at once. Whether the paper's
  own are refined one after the other is not said.
* How steps are divided, which of more than `pairs` pairs are kept, and that the last step is left alone, is ours.
* What the limit cut off is no rejected response here.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from satisfice.engines.base import Capability, Engine, Sampling, derive_seed
from satisfice.supervision.method import Curation, Loss, Tools, exactly
from satisfice.supervision.rows import Item, PreferenceRow, Reason, Response, SampledProblem, length
from satisfice.supervision.steps import Splitter, first_step, segment
from satisfice.token_text import TokenText
from satisfice.trace import Trace


@dataclass(frozen=True)
class TokenSqueeze(Curation):
    """Preference pairs of a refined right response and a longer wrong one.

    1. Depth. Of N samples c are right, p = c / N. With q = alpha (1 - p), the k = ceil(q c) shortest right ones are
       positives: more of them, and so longer ones, for problems of middling difficulty.
    2. Pairs. Every positive with every wrong response that is longer than it, `pairs` a problem at most: first each
       positive with its first partner, then with its second, and so on.
    3. Wording. For each step of a positive, the model goes on `candidates` times from where the step begins. The
       shortest candidate takes its place whose divergence D(original || candidate) over the next `window` tokens of the
       original stays below `limit`. Where none does, the step stays.

    alpha, pairs, candidates, temperature, limit and window are the paper's. A sum over the window is its letter; with
    it the limit is very strict, so look at the share of accepted candidates on the card.

    Attributes:
        alpha: how fast the share of positives grows with difficulty.
        pairs: of one problem at most.
        refine_steps: whether steps are reworded; without it no model is needed.
        candidates: for each step.
        temperature: of the candidates.
        limit: the divergence that a candidate must stay below, in nats.
        window: tokens of the original continuation that are compared.
        divergence: over the window as a "sum" or a "mean".
        splitter: how the thinking is divided into steps: "paragraph", "sentence" or "marker".
        protect_last: whether the last step of the thinking is left alone: after it there is little to compare.
    """

    name: ClassVar[str] = "tokensqueeze"
    summary: ClassVar[str] = "short right traces, reworded step by step, preferred to longer wrong ones"
    paper: ClassVar[str] = "2511.13223 (TokenSqueeze)"
    samples: ClassVar[int] = 2
    loss: ClassVar[Loss] = "length-dpo"
    needs_own_model: ClassVar[bool] = True
    reads_logprobs: ClassVar[bool] = True

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.2
    pairs: Annotated[int, Field(ge=1)] = 64
    refine_steps: bool = True
    candidates: Annotated[int, Field(ge=1)] = 64
    temperature: Annotated[float, Field(gt=0)] = 1.0
    limit: Annotated[float, Field(ge=0)] = 0.005
    window: Annotated[int, Field(ge=1)] = 512
    divergence: Literal["sum", "mean"] = "sum"
    splitter: Splitter = "paragraph"
    protect_last: bool = True

    @property
    def needs(self) -> frozenset[Capability]:
        """Writing candidates needs no capability of its own; comparing them needs scores."""
        return frozenset({Capability.SCORE}) if self.refine_steps else frozenset()

    @property
    def needs_engine(self) -> bool:
        """Only refinement works with a model."""
        return self.refine_steps

    def remarks(self, engine: Engine | None) -> tuple[str, ...]:
        """How the divergence was found."""
        if engine is None or not self.refine_steps:
            return ()
        if Capability.DISTRIBUTIONS in engine.capabilities:
            return ("The divergence of each rewording was computed from whole next-token distributions.",)
        return (
            "The divergence of each rewording is an estimate, r - 1 - ln r at each given token: the engine gives no "
            "whole distributions, which the paper adds up.",
        )

    # -- depth and pairs

    def select(self, problem: SampledProblem) -> list[Item]:
        """Pairs of one problem, not yet reworded."""
        total, right = len(problem.traces), problem.right
        if right in (0, total):
            return list(problem.drop_all(Reason.ALL_RIGHT if right else Reason.NO_RIGHT))
        usable, drops = problem.positives()
        # ceil(alpha (1 - c/N) c), in whole numbers: a float a hair above an integer would take one more.
        depth = math.ceil(exactly(self.alpha) * (total - right) * right / total)
        positives = problem.shortest_first(usable)[:depth]
        wrong = [
            place
            for place, trace in enumerate(problem.traces)
            if not trace.correct and problem.fault(place) in (None, Reason.NO_ANSWER)
        ]
        partners = {
            place: [other for other in wrong if length(problem.traces[other]) > length(problem.traces[place])]
            for place in positives
        }
        rounds = max(map(len, partners.values()), default=0)
        paired = [
            (place, partners[place][turn])
            for turn in range(rounds)
            for place in positives
            if turn < len(partners[place])
        ]
        rows: list[Item] = [
            PreferenceRow(problem, chosen, problem.response(other), chosen.tokens)
            for place, other in paired[: self.pairs]
            for chosen in [problem.response(place)]
        ]
        used = {place for pair in paired[: self.pairs] for place in pair}
        could = {place for pair in paired for place in pair}
        for place in usable:
            if place not in used:
                reason = Reason.LONGER if place not in positives else Reason.NO_PARTNER
                drops += problem.drop([place], Reason.SURPLUS if place in could else reason)
        left = [drop for drop in drops if drop.place not in wrong]
        for place in wrong:
            if place not in used:
                left += problem.drop([place], Reason.SURPLUS if place in could else Reason.NOT_LONGER)
        return [*rows, *left]

    # -- wording

    async def refine(self, problem: SampledProblem, items: list[Item], tools: Tools) -> list[Item]:
        """The same pairs with their positives reworded, each positive once."""
        if not self.refine_steps:
            return items
        places = sorted({item.chosen.place for item in items if isinstance(item, PreferenceRow)})
        reworded = await asyncio.gather(*(self._reworded(problem, place, tools) for place in places))
        by_place = dict(zip(places, reworded, strict=True))
        made: list[Item] = []
        for item in items:
            if isinstance(item, PreferenceRow):
                response, notes = by_place[item.chosen.place]
                made.append(replace(item, chosen=response, notes=notes))
            else:
                made.append(item)
        return made

    async def _reworded(self, problem: SampledProblem, place: int, tools: Tools) -> tuple[Response, dict[str, float]]:
        engine, trace, response = tools.engine, problem.traces[place], problem.response(place)
        cuts = step_cuts(engine, trace, self.splitter)
        ids = [*trace.prompt_ids, *trace.response_ids]
        if len(cuts) < 2 or len(ids) > engine.context_length:
            return response, {"steps": max(0, len(cuts) - 1), "steps_reworded": 0}
        before = len(trace.prompt_ids)
        spans = [(before + start, before + end) for start, end in pairwise(cuts)]
        open_steps = spans[:-1] if self.protect_last else spans
        known = _Known(engine, trace, ids)

        async def chosen(number: int, span: tuple[int, int]) -> tuple[list[int], int, int]:
            start, end = span
            original = ids[start:end]
            continued = ids[end : end + self.window]
            if len(original) < 2 or not continued:
                return original, 0, 0

            async def choose() -> tuple[list[int], int, int]:
                seeds = [
                    derive_seed(tools.seed, f"rewording/{problem.id}/{trace.sample}/{trace.seed}/{number}/{candidate}")
                    for candidate in range(self.candidates)
                ]
                found = await self._candidates(engine, ids[:start], len(original) - 1, seeds)
                distances = await self._distances(tools, known, ids[:start], original, found, continued)
                accepted = [
                    (len(candidate), away, candidate)
                    for candidate, away in zip(found, distances, strict=True)
                    if away < self.limit
                ]
                return list(min(accepted)[2]) if accepted else original, len(found), len(accepted)

            step, tried, accepted = await tools.found(f"step/{problem.source}/{problem.id}/{place}/{number}", choose)
            return step, tried, accepted

        steps = await asyncio.gather(*(chosen(number, span) for number, span in enumerate(open_steps)))
        written = [token for step, _, _ in steps for token in step]
        last = ids[spans[-1][0] : spans[-1][1]] if self.protect_last else []
        thinking = TokenText(engine.tokenizer, [*written, *last]).text
        # A step may end inside a token of the marker: what stands before the marker is the thinking.
        for marker in problem.thinking.closers:
            thinking = thinking.partition(marker)[0]
        fewer = sum(end - start for start, end in open_steps) - len(written)
        changed = [ids[start:end] != step for (step, _, _), (start, end) in zip(steps, open_steps, strict=True)]
        notes = {
            "steps": float(len(spans)),
            "steps_reworded": float(sum(changed)),
            "candidates": float(sum(tried for _, tried, _ in steps)),
            "candidates_accepted": float(sum(accepted for _, _, accepted in steps)),
        }
        return (response.edited(thinking, fewer) if fewer else response), notes

    async def _distances(
        self,
        tools: Tools,
        known: "_Known",
        prefix: Sequence[int],
        original: Sequence[int],
        candidates: Sequence[Sequence[int]],
        continued: Sequence[int],
    ) -> list[float]:
        """How far each candidate in place of a step moves what follows, in nats."""
        if not candidates:
            return []
        beginnings = [[*prefix, *candidate] for candidate in candidates]
        mean = self.divergence == "mean"
        if Capability.DISTRIBUTIONS in tools.engine.capabilities:
            async with tools.comparing:
                compared = await tools.engine.divergences([*prefix, *original], beginnings, continued)
            return [math.fsum(each) / (len(each) if mean else 1) for each in compared.values]
        start = len(prefix) + len(original)
        expected = (await known.logprobs())[start : start + len(continued)]

        async def distance(beginning: Sequence[int]) -> float:
            given = (await tools.engine.score([*beginning, *continued], len(beginning))).logprobs
            return divergence(expected, given, mean=mean)

        return list(await asyncio.gather(*map(distance, beginnings)))

    async def _candidates(
        self, engine: Engine, prefix: Sequence[int], most: int, seeds: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """Different shorter steps, each complete, without a marker, and ending with a whole token."""
        # An empty line ends a paragraph; where it stands inside a formula the candidate is not complete, and dropped.
        stop = ("\n\n",) if self.splitter == "paragraph" else ()
        written = await asyncio.gather(
            *(
                engine.generate(
                    prefix,
                    Sampling(temperature=self.temperature, top_p=1.0, max_tokens=most, stop=stop, seed=seed),
                )
                for seed in seeds
            )
        )
        found: set[tuple[int, ...]] = set()
        for generation in written:
            text = TokenText(engine.tokenizer, generation.ids)
            end = first_step(text.text, self.splitter)
            if end is None:
                continue
            ids = tuple(generation.ids[: text.tokens(end)])
            whole = TokenText(engine.tokenizer, ids).text
            markers = (*engine.thinking.openers, *engine.thinking.closers)
            if whole == text.text[:end] and not any(marker in whole for marker in markers):
                found.add(ids)
        return sorted(found, key=lambda candidate: (len(candidate), candidate))


class _Known:
    """Log-probabilities of the tokens of a trace, from its run where that kept them; else they are scored, once."""

    def __init__(self, engine: Engine, trace: Trace, ids: Sequence[int]) -> None:
        self._engine, self._ids, self._start = engine, ids, len(trace.prompt_ids)
        self._kept = [each for each in trace.logprobs or [] if each is not None]
        self._scoring: asyncio.Task[list[float]] | None = None

    async def logprobs(self) -> list[float]:
        """One for each token of prompt and response, 0 for those of the prompt, which nobody asks for."""
        if len(self._kept) < len(self._ids) - self._start:
            self._scoring = self._scoring or asyncio.create_task(self._scored())
            self._kept = await self._scoring
        return [0.0] * self._start + self._kept

    async def _scored(self) -> list[float]:
        return (await self._engine.score(self._ids, self._start)).logprobs


def divergence(original: Sequence[float], reworded: Sequence[float], *, mean: bool = False) -> float:
    """An estimate of how far a rewording moves what follows, in nats.

    It is r - 1 - ln r at each token, r = p(reworded) / p(original).

    Args:
        original: natural log-probabilities of the continuation's tokens after the original step.
        reworded: those after the reworded one, of the same tokens.
        mean: over the tokens instead of their sum.
    """
    total = 0.0
    for before, after in zip(original, reworded, strict=True):
        ratio = after - before
        total += math.inf if ratio > 500 else math.expm1(ratio) - ratio
    return total / len(original) if mean else total


def step_cuts(engine: Engine, trace: Trace, splitter: Splitter) -> list[int]:
    """Where the steps of a thinking begin in the tokens of its response, and where the last one ends.

    Where a step ends inside a token, the token is its. Empty where the thinking is not one piece of the response, as
    when it was opened twice.
    """
    start, end = trace.thinking_span
    written = TokenText(engine.tokenizer, trace.response_ids[start:end])
    offset = written.text.find(trace.thinking) if trace.thinking else -1
    if offset < 0:
        return []
    cuts = [start + written.tokens(offset)]
    for step in segment(trace.thinking, splitter):
        offset += len(step)
        cut = start + written.tokens(offset)
        if cut > cuts[-1]:
            cuts.append(cut)
    return cuts
