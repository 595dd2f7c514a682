"""EntroCut (arXiv 2601.22617): stop thinking where a probe of the answer begins with little entropy.

Of the paper only the idea is public: probe the answer while the model thinks, and cut where the mean entropy of the
first few tokens is low. When to probe, with which text, how many tokens and below which entropy are not known, so
all of them are parameters here, and `calibrate_tau` finds the last one on problems that are not reported on.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import ClassVar, Literal, get_args

from satisfice.engines.base import Capability, Engine, Sampling
from satisfice.intervention.answers import label
from satisfice.intervention.method import Draft, Method, MethodError, branch_seed, together
from satisfice.intervention.probing import marker_words, think_to_marker, think_to_paragraph
from satisfice.problems import GraderPool, Problem
from satisfice.thinking import Phase, encode_after
from satisfice.trace import Trace

Trigger = Literal["paragraph", "marker", "interval"]


@dataclass(frozen=True)
class EntroCut(Method):
    """Probe the answer while the model thinks, and cut where its first tokens have a mean entropy below `tau`.

    No parameter of the paper is public. All defaults are ours.

    Attributes:
        tau: nats. It has no default: it depends on the model, `k` and `cue`, so calibrate it (see
            docs/methods/entrocut.md).
        k: tokens of a probe whose entropies are averaged; fewer where the probe ends the text before.
        trigger: when to probe: at the end of each "paragraph", at each "marker", or at each "interval" of `every`
            tokens.
        markers: whole words, separated by |; for trigger=marker.
        every: tokens between two probes; for trigger=interval.
        cue: the text of the probe. Ending inside the box keeps tokens without any entropy out of the mean.
        close: put the end-of-thinking marker before the cue.
        max_probes: after so many the model is left alone.
        think_ratio: share of the token limit after which thinking is closed.
    """

    name: ClassVar[str] = "entrocut"
    summary: ClassVar[str] = "probes the answer while thinking; stops where its first tokens have an entropy below tau"
    paper: ClassVar[str] = "2601.22617 (EntroCut)"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.ENTROPY, Capability.PREFIX_REUSE})
    takes_control: ClassVar[bool] = True

    tau: float | None = None
    k: int = 4
    trigger: Trigger = "paragraph"
    markers: str = "Wait|Hmm|Alternatively"
    every: int = 64
    cue: str = "The final answer is \\boxed{"
    close: bool = True
    max_probes: int = 32
    think_ratio: float = 0.9

    def __post_init__(self) -> None:
        if self.tau is None:
            raise MethodError(
                "entrocut: tau has no published value and no default; find one with `satisfice calibrate MODEL "
                "--method entrocut` on problems that you will not report on, or try values around tau=0.1 nats"
            )
        for name, good, rule in (
            ("tau", self.tau > 0, "above 0"),
            ("k", self.k >= 1, "at least 1"),
            ("trigger", self.trigger in get_args(Trigger), " or ".join(get_args(Trigger))),
            ("every", self.every >= 1, "at least 1"),
            ("cue", self.close or self.cue.strip(), "a text that asks for an answer, where close=false"),
            ("max_probes", self.max_probes >= 1, "at least 1"),
            ("think_ratio", 0 < self.think_ratio <= 1, "above 0 and at most 1"),
        ):
            if not good:
                raise MethodError(f"entrocut: {name} is {getattr(self, name)!r}; it must be {rule}")
        for name, trigger in (("markers", "marker"), ("every", "interval")):
            if self.trigger != trigger and getattr(self, name) != getattr(EntroCut, name):
                raise MethodError(f"entrocut: {name} acts with trigger={trigger} only; leave it out")
        marker_words(self.markers, self.name)

    async def respond(self, draft: Draft) -> None:
        assert self.tau is not None
        limit = int(self.think_ratio * draft.remaining)
        probes, held = 0, await self.to_candidate(draft, limit, 0)
        while held is not None:
            probes += 1
            entropy, answer = await self.probe(draft, held)
            cut = entropy < self.tau
            draft.note("probe", back=held, entropy=entropy, answer=label(answer), exit=cut)
            if cut:
                draft.take_back(held)
                break
            held = await self.to_candidate(draft, limit, probes)
        await draft.conclude()

    async def to_candidate(self, draft: Draft, limit: int, probes: int) -> int | None:
        """Think up to where the next probe is due.

        Returns:
            how many tokens at the end of the response lie behind that place; None where thinking has ended.
        """
        if probes == self.max_probes:
            await draft.think(limit - len(draft.ids))
            return None
        if self.trigger == "marker":
            return await think_to_marker(draft, marker_words(self.markers, self.name), limit)
        if self.trigger == "paragraph":
            return 0 if await think_to_paragraph(draft, limit) else None
        while (left := limit - len(draft.ids)) > self.every:
            generation = await draft.think(self.every)
            if draft.closed or generation.finish == "stop":
                return None
            if draft.phase is Phase.THINKING:
                return 0
        await draft.think(left)
        return None

    async def probe(self, draft: Draft, held: int) -> tuple[float, str]:
        """The mean entropy in nats of a greedy probe `held` tokens before the end of the response, and its text.

        Where the context has no room left for a probe, the entropy is infinite.
        """
        cue = draft.closing(self.cue, held) if self.close else encode_after(draft.engine.tokenizer, self.cue)
        asked = [*draft.sequence[: len(draft.sequence) - held], *cue]
        probe = await draft.probe(asked, Sampling(temperature=0, top_p=1, max_tokens=self.k), entropy=True)
        assert probe.entropies is not None
        return fmean(probe.entropies) if probe.entropies else float("inf"), draft.text(probe.ids)


@dataclass(frozen=True)
class Observed:
    """One thinking that was probed at every candidate place and never cut.

    Attributes:
        entropies: of its probes, in nats.
        correct: whether the answer would have been right had thinking been cut at that probe.
        thinking_tokens: how long thinking would have been had it been cut at that probe.
        finally_correct: whether the answer of the whole thinking is right.
        finally_thinking_tokens: the length of the whole thinking.
    """

    entropies: tuple[float, ...]
    correct: tuple[bool, ...]
    thinking_tokens: tuple[int, ...]
    finally_correct: bool
    finally_thinking_tokens: int

    def outcome(self, tau: float) -> tuple[bool, int]:
        """Whether the answer would have been right with this tau, and the thinking tokens before it."""
        chances = zip(self.entropies, self.correct, self.thinking_tokens, strict=True)
        cuts = ((right, tokens) for entropy, right, tokens in chances if entropy < tau)
        return next(cuts, (self.finally_correct, self.finally_thinking_tokens))


async def observe(
    method: EntroCut,
    engine: Engine,
    problems: Sequence[Problem],
    sampling: Sampling,
    graders: GraderPool,
    concurrency: int = 64,
    advance: Callable[[Trace], None] = lambda trace: None,
) -> list[Observed]:
    """Run every probe that `method` could make on held-out problems, and see what cutting there would have given.

    Costs one answer a probe on top of the method itself.

    Args:
        method: its `tau` plays no part.
        engine: where tokens come from.
        problems: as they will be asked, with the instruction in their prompts.
        sampling: as it will be used.
        graders: judge the answers.
        concurrency: problems under way at once.
        advance: called with each whole response that was never cut, graded; its cost holds all that was spent on it.

    Raises:
        EngineError: the engine cannot serve a request.
        GraderError: a problem's grader does not exist or does not fit it.
    """
    gate = asyncio.Semaphore(concurrency)

    async def graded(problem: Problem, response: Draft) -> Trace:
        trace = response.trace()
        trace.grade = await graders.grade(
            grader=problem.grader,
            answer=trace.answer,
            gold=problem.answer,
            finished=trace.finished,
            problem_id=problem.id,
        )
        return trace

    async def observed(index: int, problem: Problem) -> Observed:
        async with gate:
            draft = Draft(engine, problem, replace(sampling, seed=branch_seed(sampling.seed, index)), str(method))
            limit = int(method.think_ratio * draft.remaining)
            entropies, cuts = [], []
            held = await method.to_candidate(draft, limit, 0)
            while held is not None:
                entropy, _ = await method.probe(draft, held)
                entropies.append(entropy)
                cut = draft.fork(0, at=len(draft.ids) - held)
                await cut.conclude()
                cuts.append(await graded(problem, cut))
                held = await method.to_candidate(draft, limit, len(entropies))
            await draft.conclude()
            whole = await graded(problem, draft)
            advance(whole)
            return Observed(
                tuple(entropies),
                tuple(cut.correct for cut in cuts),
                tuple(cut.cost.thinking_tokens for cut in cuts),
                whole.correct,
                whole.cost.thinking_tokens,
            )

    return await together(*(observed(index, problem) for index, problem in enumerate(problems)))


def calibrate_tau(observed: Sequence[Observed], loss: float = 0.01) -> float:
    """The largest tau, so the one that saves most, with which accuracy falls by no more than `loss`.

    Args:
        observed: from `observe`; a few hundred problems, none of which the method will be judged on.
        loss: share of problems, 0.01 for one point; it may be negative to ask for a gain.

    Returns:
        tau in nats, half-way between two entropies that were seen, or just above all of them.

    Raises:
        MethodError: there is no probe at all, or every tau at which anything is cut costs more than `loss`.
    """
    entropies = sorted({entropy for chain in observed for entropy in chain.entropies if entropy < float("inf")})
    if not entropies:
        raise MethodError("entrocut: nothing to calibrate tau on: no problem was probed; try another trigger")
    uncut = fmean(chain.finally_correct for chain in observed)
    between = [(low + high) / 2 for low, high in pairwise(entropies)]
    for tau in reversed([*between, entropies[-1] * 1.1 or 1e-9]):
        if fmean(chain.outcome(tau)[0] for chain in observed) >= uncut - loss - 1e-12:
            return tau
    raise MethodError(
        f"entrocut: no tau keeps the accuracy within {loss:.12g} of {uncut:.3g} on these {len(observed)} problems: "
        "low entropy does not tell right answers here; change the trigger, k or the cue, or allow a larger loss"
    )
