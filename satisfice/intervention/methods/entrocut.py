"""EntroCut (arXiv 2601.22617): stop thinking where a probe of the answer begins with little entropy.

Of the paper only the idea is public: probe the answer while the model thinks, and cut where the mean entropy of the
first few tokens is low. When to probe, with which text, how many tokens and below which entropy are not known, so
all of them are parameters here, and `satisfice calibrate` certifies the last one on problems that are not reported on.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from satisfice.engines.base import Capability, Sampling
from satisfice.intervention.answers import label
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Knob, Method, MethodError
from satisfice.intervention.probing import marker_words, think_to_marker, think_to_paragraph
from satisfice.parameters import Share
from satisfice.thinking import Phase, encode_after

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
    knobs: ClassVar[tuple[Knob, ...]] = (Knob("tau", (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0), shared=True),)
    # The one token after the cue is the whole answer; tau is about what `satisfice calibrate` finds.
    on_lab: ClassVar[str] = r'tau=0.01,k=1,cue="The answer is \\boxed{"'

    tau: PositiveFloat | None = None
    k: PositiveInt = 4
    trigger: Trigger = "paragraph"
    markers: str = "Wait|Hmm|Alternatively"
    every: PositiveInt = 64
    cue: str = "The final answer is \\boxed{"
    close: bool = True
    max_probes: PositiveInt = 32
    think_ratio: Share = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is None:
            raise MethodError(
                "entrocut: tau has no published value and no default; find one with `satisfice calibrate MODEL "
                "--methods entrocut` on problems that you will not report on, or try values around tau=0.1 nats"
            )
        if not (self.close or self.cue.strip()):
            raise MethodError(
                f"entrocut: cue is {self.cue!r}; it must be a text that asks for an answer, where close=false"
            )
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
            how many tokens at the end of the response lie after that place; None where thinking has ended.
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
