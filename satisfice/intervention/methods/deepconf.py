"""DeepConf (arXiv 2508.15260, "Deep Think with Confidence"): drop traces that lose confidence, weigh the others.

A token's confidence is the negative mean log-probability of the k likeliest tokens in its place: large where the
distribution is peaked. A group is a window of tokens that slides over a trace, and a trace is as sure as its least sure
group. A few traces are written whole first; what they reach sets the bar for all later ones, which are stopped as soon
as a window falls below it. The traces above the bar vote, each with its confidence as its weight.

Where this departs from the paper: later traces are written in waves as large as the warm-up, and agreement is looked at
between waves, not after every trace; a window is looked at every `check_every` tokens. So a seed decides the outcome,
and a stopped trace has at most `check_every - 1` tokens too many.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from satisfice.engines.base import Capability
from satisfice.intervention.answers import Vote, given_answer, label, majority
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method, MethodError, together
from satisfice.lazy import np

Measure = Literal["lowest", "bottom", "tail", "mean"]


@dataclass
class _Trace:
    """One trace: its draft, the confidence of each of its tokens, and whether it was stopped."""

    draft: Draft
    confidences: list[float] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class DeepConf(Method):
    """A vote of the traces that stay confident, weighted by their confidence.

    Of answers with the same weight, the one that was given first wins; the first trace that gave the winner is
    returned. A trace that was stopped, gives no answer or was cut off does not vote. Where no trace above the bar
    votes, every complete trace with an answer does (ours), and where there is none, the first trace is returned.

    Attributes:
        k: traces at most, those of the warm-up included. The default is ours; the paper goes up to 512.
        warmup: traces that are written whole to set the bar (the paper's N_init).
        keep: per cent of the warm-up's traces that the bar lets through (the paper's eta): its variants are 10, "low",
            and 90, "high".
        window: tokens of a group; a trace that is shorter is one group.
        top: likeliest tokens that a token's confidence is taken over.
        consensus: no more traces once two or more vote and an answer has this share of the weight (the paper's tau;
            that one voter agrees with nobody is ours); None writes all `k`.
        mode: "online" stops traces; "offline" writes all `k` whole and then keeps the `keep` per cent that are surest.
        measure: how sure a trace is: its "lowest" group, the mean of the "bottom" tenth of its groups, its last group
            ("tail"), or the mean of all tokens. Online it is "lowest", which alone is known before the end.
        check_every: tokens between two looks at the window (ours).
    """

    name: ClassVar[str] = "deepconf"
    summary: ClassVar[str] = "traces that lose confidence are stopped; the others vote by their confidence"
    paper: ClassVar[str] = "2508.15260 (Deep Think with Confidence)"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGPROBS, Capability.PREFIX_REUSE})
    takes_control: ClassVar[bool] = True
    on_lab: ClassVar[str] = "k=4,warmup=2,keep=90,window=16,check_every=16"

    k: PositiveInt = 32
    warmup: PositiveInt = 16
    keep: Annotated[float, Field(gt=0, le=100)] = 10.0
    window: PositiveInt = 2048
    top: Annotated[int, Field(ge=1, le=20)] = 20
    consensus: Annotated[float, Field(gt=0, le=1)] | None = 0.95
    mode: Literal["online", "offline"] = "online"
    measure: Measure = "lowest"
    check_every: PositiveInt = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "online" and self.warmup > self.k:
            raise MethodError(f"deepconf: warmup is {self.warmup}, but there are {self.k} traces in all (k)")
        if self.mode == "online" and self.measure != "lowest":
            raise MethodError(
                f"deepconf: measure is {self.measure}, which is known only at a trace's end: mode=offline"
            )

    @property
    def breadth(self) -> int:
        return self.warmup if self.mode == "online" else self.k

    async def respond(self, draft: Draft) -> None:
        first = self.warmup if self.mode == "online" else self.k
        traces = [_Trace(draft.fork(index)) for index in range(first)]
        await together(*(self._write(trace) for trace in traces))
        bar = self.bar([self.confidence(trace.confidences) for trace in traces])
        vote, voters = self._vote(traces, bar)
        while len(traces) < self.k and not (voters > 1 and self._agreed(vote)):
            wave = range(len(traces), min(self.k, len(traces) + self.warmup))
            later = [_Trace(draft.fork(index)) for index in wave]
            await together(*(self._write(trace, bar) for trace in later))
            traces += later
            vote, voters = self._vote(traces, bar)
        self._conclude(draft, traces, bar, vote)

    async def _write(self, trace: _Trace, bar: float | None = None) -> None:
        """Let a trace be written to its end, or until a whole window is below `bar`."""
        piece = None if bar is None else self.check_every
        while not trace.draft.finished and trace.draft.remaining:
            generation = await trace.draft.write(piece, top_logprobs=self.top)
            trace.confidences += [
                -sum(likeliest.values()) / len(likeliest) for likeliest in generation.top_logprobs or ()
            ]
            if bar is not None and len(trace.confidences) >= self.window:
                fresh = trace.confidences[-len(generation.ids) - self.window + 1 :]
                if min(groups(fresh, self.window)) < bar:
                    trace.stopped = True
                    return

    def confidence(self, confidences: Sequence[float]) -> float:
        """How sure a trace is, by `measure`; 0 for one without tokens."""
        if not confidences:
            return 0.0
        if self.measure == "mean":
            return float(np.mean(confidences))
        every = groups(confidences, self.window)
        if self.measure == "tail":
            return every[-1]
        if self.measure == "bottom":
            return float(np.mean(sorted(every)[: max(1, len(every) // 10)]))
        return min(every)

    def bar(self, sure: Sequence[float]) -> float:
        """The confidence that lets `keep` per cent of some traces through, and always the surest of them."""
        return min(max(sure), float(np.percentile(sure, 100 - self.keep)))

    def _vote(self, traces: Sequence[_Trace], bar: float) -> tuple[Vote, int]:
        """The vote of the traces that were not stopped and are as sure as the bar, and how many voted."""
        sure = [self.confidence(trace.confidences) for trace in traces]
        answers = [_answer(trace) if each >= bar else None for trace, each in zip(traces, sure, strict=True)]
        return majority(answers, sure), len(answers) - answers.count(None)

    def _agreed(self, vote: Vote) -> bool:
        """Whether one answer has so much of the weight that further traces are not worth their tokens."""
        total = sum(vote.tally.values())
        return self.consensus is not None and total > 0 and max(vote.tally.values()) >= self.consensus * total

    def _conclude(self, draft: Draft, traces: Sequence[_Trace], bar: float, vote: Vote) -> None:
        confidences = [self.confidence(trace.confidences) for trace in traces]
        if vote.winner is None:
            vote = majority([_answer(trace) for trace in traces], confidences)
        adopted = vote.winner or 0
        for index, (trace, sure) in enumerate(zip(traces, confidences, strict=True)):
            draft.note(
                "response",
                index=index,
                answer=label(_answer(trace)),
                tokens=len(trace.draft.ids),
                confidence=sure,
                stopped=trace.stopped,
                above=not trace.stopped and sure >= bar,
            )
        stopped = sum(trace.stopped for trace in traces)
        draft.note("vote", tally=vote.tally, bar=bar, traces=len(traces), stopped=stopped, adopted=adopted)
        draft.adopt(traces[adopted].draft)


def _answer(trace: _Trace) -> str | None:
    return None if trace.stopped else given_answer(trace.draft)


def groups(confidences: Sequence[float], window: int) -> list[float]:
    """The mean confidence of each window of tokens; of all tokens where there are fewer than a window.

    Args:
        confidences: one a token, at least one.
        window: tokens.
    """
    values = np.asarray(confidences, dtype=float)
    if len(values) <= window:
        return [float(values.mean())]
    return [float(mean) for mean in np.lib.stride_tricks.sliding_window_view(values, window).mean(axis=1)]
