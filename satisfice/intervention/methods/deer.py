"""DEER, dynamic early exit in reasoning (arXiv 2504.15895), and DEER-Pro, its calibrated form.

Where the model is about to turn to another thought, it is asked for its answer. If it is sure of that answer,
thinking ends there; if not, the trial answer is dropped and thinking goes on as if nobody had asked.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveInt

from satisfice.engines.base import Capability, Sampling
from satisfice.intervention.answers import label
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Knob, Method, MethodError, together
from satisfice.intervention.probing import boxed, marker_words, think_to_marker, think_to_paragraph
from satisfice.parameters import NotBlank, Noun, Probability, Share, Text
from satisfice.thinking import encode_after

Monitor = Literal["marker", "entropy"]
Mean = Literal["geometric", "arithmetic"]
Scored = Literal["answer", "all"]
Asking = Annotated[NotBlank, Noun("a text that asks for an answer")]


@dataclass(frozen=True)
class Trial:
    """A trial answer.

    Attributes:
        answer: as far as it was written, without the box.
        confidence: from 0 to 1.
        complete: whether it ended by itself within the probe's tokens.
    """

    answer: str
    confidence: float
    complete: bool


@dataclass(frozen=True)
class Deer(Method):
    """Ask for the answer at each reasoning transition, and stop thinking once the model is sure of it.

    Attributes:
        threshold: an answer of a higher confidence ends thinking (the paper's lambda).
        monitor: what a transition is. "marker": one of `markers` is about to be written. "entropy": the first token
            of a paragraph has more than `min_entropy`.
        markers: whole words, separated by |. The paper names these two; its code watches for one of them.
        min_entropy: nats over the full vocabulary, of the model's own distribution; for monitor=entropy.
        mean: of the probabilities of the answer's tokens: "geometric" is the paper's, "arithmetic" that of most of
            its code.
        scored: "answer" takes the tokens after the opening brace, the closing one included: the paper's inducer
            ends with an opened box, and its code skips the brace. "all" takes every token of the probe.
        inducer: the text that asks for the answer; the paper's code for mathematics.
        closer: the text that ends a trial answer; a brace does so where it closes the box.
        require_close: let the probe go on to the end-of-thinking marker, and trust no answer that it does not
            follow; what the paper's code does with Qwen3, which is sure of itself too easily.
        probe_tokens: of a probe at most. An answer that is longer is scored on what there is of it, or not trusted
            with require_close.
        min_probe: an answer with fewer scored tokens than this is not trusted (ours); nor is an empty one.
        max_probes: after so many the model is left alone; the default of the paper's code, whose author advises 50
            for long problems.
        think_ratio: share of the token limit after which thinking is closed; the default of the paper's code.
        parallel: let the chain go on while it is asked, and throw away what it wrote if it turns out to be sure. The
            answer is the same, sooner, for more tokens.
    """

    name: ClassVar[str] = "deer"
    summary: ClassVar[str] = "asks for a trial answer at each turn of thought; stops once the model is sure of it"
    paper: ClassVar[str] = "2504.15895 (DEER)"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGPROBS, Capability.PREFIX_REUSE})
    takes_control: ClassVar[bool] = True
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("threshold", (0.9999, 0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7), shared=True),
    )
    # Every opener is a turn of thought, and the answer is asked for in trained words, in which the lab is sure of
    # nearly everything: hence thresholds far above the paper's.
    on_lab: ClassVar[str] = (
        r'threshold=0.999,markers="Wait|But wait|Hmm|Alternatively",inducer="</think>\n\nThe answer is \\boxed"'
    )

    threshold: Probability = 0.95
    monitor: Monitor = "marker"
    markers: str = "Wait|Alternatively"
    min_entropy: NonNegativeFloat = 0.672
    mean: Mean = "geometric"
    scored: Scored = "answer"
    inducer: Asking = "\n**Final Answer**\n\\boxed"
    closer: Text = "}"
    require_close: bool = False
    probe_tokens: PositiveInt = 20
    min_probe: PositiveInt = 1
    max_probes: PositiveInt = 10
    think_ratio: Share = 0.9
    parallel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_probe > self.probe_tokens:
            raise MethodError(
                f"{self.name}: min_probe is {self.min_probe}; it must be within 1..{self.probe_tokens} (probe_tokens)"
            )
        for name, acts, condition in (
            ("markers", self.monitor == "marker", "monitor=marker"),
            ("min_entropy", self.monitor == "entropy", "monitor=entropy"),
            ("closer", not self.require_close, "require_close=false"),
        ):
            if not acts and getattr(self, name) != getattr(type(self), name):
                raise MethodError(f"{self.name}: {name} acts with {condition} only; leave it out")
        marker_words(self.markers, self.name)
        needs = {*type(self).needs}
        if self.monitor == "entropy":
            needs.add(Capability.ENTROPY)
        if self.parallel:
            needs.add(Capability.CANCEL)
        object.__setattr__(self, "needs", frozenset(needs))

    @property
    def inducers(self) -> tuple[str, ...]:
        """The wordings that ask for an answer."""
        return (self.inducer,)

    async def respond(self, draft: Draft) -> None:
        limit = int(self.think_ratio * draft.remaining)
        probes, held = 0, await self._to_transition(draft, limit, 0)
        while held is not None:
            probes += 1
            if self.parallel:
                sure, following = await self._ask_beside(draft, held, limit, probes)
            else:
                sure = await self._is_sure(draft, held)
                following = None if sure else await self._to_transition(draft, limit, probes)
            if sure:
                draft.take_back(held)
            held = following
        await draft.conclude()

    async def _to_transition(self, draft: Draft, limit: int, probes: int) -> int | None:
        """Think up to the next transition; how many tokens at the end lie after it, None where there is none."""
        if probes == self.max_probes:
            await draft.think(limit - len(draft.ids))
            return None
        if self.monitor == "marker":
            return await think_to_marker(draft, marker_words(self.markers, self.name), limit)
        while await think_to_paragraph(draft, limit):
            first = await draft.think(1, entropy=True)
            if draft.closed or first.finish == "stop":
                return None
            assert first.entropies is not None
            if first.entropies[0] > self.min_entropy:
                return 1
        return None

    async def _is_sure(self, draft: Draft, held: int) -> bool:
        """Whether the model is sure of its answer `held` tokens before the end of the response."""
        confidence, detail = await self._confidence(draft, held)
        sure = confidence > self.threshold
        draft.note("probe", back=held, confidence=confidence, **detail, exit=sure)
        return sure

    async def _confidence(self, draft: Draft, held: int) -> tuple[float, dict[str, Any]]:
        """The confidence that decides, and what else a reader of the trace wants to know."""
        trial = await self._try(draft, held, self.inducer)
        return trial.confidence, {"answer": label(trial.answer), "complete": trial.complete}

    async def _try(self, draft: Draft, held: int, inducer: str) -> Trial:
        """One trial answer, greedy, and the likelihood of the tokens in it."""
        asked = [*draft.sequence[: len(draft.sequence) - held], *encode_after(draft.engine.tokenizer, inducer)]
        marker = draft.engine.thinking.close
        stop = (marker,) if self.require_close else (marker, self.closer)
        ids: list[int] = []
        logprobs: list[float] = []
        text, answer = "", None
        while len(ids) < self.probe_tokens:
            greedy = Sampling(temperature=0, top_p=1, max_tokens=self.probe_tokens - len(ids), stop=stop)
            piece = await draft.probe([*asked, *ids], greedy, top_logprobs=1)
            assert piece.top_logprobs is not None
            ids += piece.ids
            logprobs += [max(top.values()) for top in piece.top_logprobs]
            text = draft.text(ids).partition(marker)[0]
            answer = boxed(inducer, text) if self.closer == "}" else _before(self.closer, text)
            if piece.stopped_by != self.closer or answer is not None:
                break
        complete = answer is not None and (not self.require_close or piece.stopped_by == marker)
        if ids and ids[-1] in draft.engine.end_ids:
            ids, logprobs = ids[:-1], logprobs[:-1]
        if self.scored == "answer" and self.closer == "}":
            logprobs = logprobs[_opener([draft.text([token]) for token in ids]) :]
        written = answer if answer is not None else draft.text(ids).partition(marker)[0].strip().removeprefix("{")
        trusted = written and len(logprobs) >= self.min_probe and (complete or not self.require_close)
        return Trial(written, mean_probability(logprobs, self.mean) if trusted else 0.0, complete)

    async def _ask_beside(self, draft: Draft, held: int, limit: int, probes: int) -> tuple[bool, int | None]:
        """Ask while the chain goes on to its next transition; whether the model is sure, and that transition.

        The decision always waits for the trial answer, so it is the same as without `parallel`, whoever is faster.
        """
        chain = draft.fork(0, cancellable=True)
        going_on = asyncio.create_task(self._to_transition(chain, limit, probes))
        try:
            sure = await self._is_sure(draft, held)
            following = None if sure else await going_on
        finally:
            going_on.cancel()
            await asyncio.gather(going_on, return_exceptions=True)
        if sure:
            draft.note("thrown away", back=held, tokens=len(chain.ids) - len(draft.ids))
        else:
            draft.adopt(chain)
        return sure, following


@dataclass(frozen=True)
class DeerPro(Deer):
    """DEER with several wordings of the question: the mean confidence, less `alpha` times its spread, decides.

    Attributes:
        alpha: weight of the mean absolute deviation of the confidences from their mean.
        inducer: the wordings, separated by |. Those of the paper are not published; these are ours, four as there.
        threshold: as in `deer`.
        monitor: as in `deer`.
        markers: as in `deer`.
        min_entropy: as in `deer`.
        mean: as in `deer`.
        scored: as in `deer`.
        closer: as in `deer`.
        require_close: as in `deer`.
        probe_tokens: as in `deer`, of each wording.
        min_probe: as in `deer`.
        max_probes: as in `deer`; all wordings of one transition are one probe.
        think_ratio: as in `deer`.
        parallel: as in `deer`.
    """

    name: ClassVar[str] = "deer-pro"
    summary: ClassVar[str] = "deer with several wordings: mean confidence less its spread decides"
    paper: ClassVar[str] = "2504.15895 (DEER-Pro)"
    on_lab: ClassVar[str] = (
        'threshold=0.999,markers="Wait|But wait|Hmm|Alternatively",'
        r'inducer="</think>\n\nThe answer is \\boxed|</think>\n\nThe final answer is \\boxed"'
    )

    inducer: Asking = (
        "\n**Final Answer**\n\\boxed|\nThe final answer is \\boxed|\nThe answer is \\boxed|\nFinal Answer: \\boxed"
    )
    alpha: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.inducers) < 2:
            raise MethodError(f"{self.name}: inducer holds one wording, which has no spread; separate several by |")
        if not all(text.strip() for text in self.inducers):
            raise MethodError(f"{self.name}: inducer is {self.inducer!r}; each must be a text that asks for an answer")

    @property
    def inducers(self) -> tuple[str, ...]:
        return tuple(self.inducer.split("|"))

    @property
    def breadth(self) -> int:
        return len(self.inducers)

    async def _confidence(self, draft: Draft, held: int) -> tuple[float, dict[str, Any]]:
        trials = await together(*(self._try(draft, held, inducer) for inducer in self.inducers))
        confidences = [trial.confidence for trial in trials]
        return calibrated(confidences, self.alpha), {
            "confidences": confidences,
            "answers": [label(trial.answer) for trial in trials],
            "complete": [trial.complete for trial in trials],
        }


def mean_probability(logprobs: Sequence[float], mean: Mean) -> float:
    """The mean probability of tokens with these natural log-probabilities; 0 where there are none."""
    if not logprobs:
        return 0.0
    return math.exp(fmean(logprobs)) if mean == "geometric" else fmean(map(math.exp, logprobs))


def calibrated(confidences: Sequence[float], alpha: float) -> float:
    """Mean confidence less `alpha` times the mean absolute deviation from it."""
    average = fmean(confidences)
    return average - alpha * fmean(abs(confidence - average) for confidence in confidences)


def _opener(texts: Sequence[str]) -> int:
    """How many of the first tokens do nothing but open the box."""
    written = ""
    for count, text in enumerate(texts, start=1):
        written = (written + text).strip()
        if written:
            return count if written == "{" else 0
    return 0


def _before(closer: str, text: str) -> str | None:
    answer, found, _ = text.partition(closer)
    return answer.strip() if found else None
