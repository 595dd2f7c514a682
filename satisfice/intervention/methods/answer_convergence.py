"""Answer convergence (arXiv 2506.02536): stop thinking once the answers asked for at the ends of chunks agree.

The paper finds that a model has mostly settled on its answer well before it stops thinking. So the thinking is cut
into chunks as it is written, the model is asked for its answer at the end of each, and where the same answer comes so
many times in a row, thinking ends there. What is taken from the paper is that rule; how a chunk is cut, how often the
answer has to come, the words that ask for it and how long an answer may be are parameters here, with defaults of ours.
The two other strategies of the paper (a likelier end marker, a trained stopper) are not part of this method.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import PositiveInt

from satisfice.engines.base import Capability, Sampling
from satisfice.intervention.answers import canonical, find_answer, label
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method, MethodError
from satisfice.intervention.probing import boxed, marker_words, think_to_marker, think_to_paragraph
from satisfice.parameters import Share
from satisfice.thinking import Phase, encode_after

Chunk = Literal["paragraph", "marker", "interval"]


@dataclass(frozen=True)
class AnswerConvergence(Method):
    """Ask for the answer at the end of each chunk of thinking, and stop once `agree` answers in a row are the same.

    Answers are the same as in a vote: 0.5 and 1/2 are one. A probe that gives no answer, or one that is cut off, starts
    the count again (ours), for nothing has converged there. What is asked leaves no trace in the thinking.

    Attributes:
        agree: how many equal answers in a row end thinking; 1 stops at the first answer. The default is ours.
        chunk: what a chunk ends with (ours): an empty line ("paragraph"), a word that is about to turn the thought
            ("marker"), or every `every` tokens ("interval").
        markers: whole words, separated by |; for chunk=marker.
        every: tokens of a chunk; for chunk=interval.
        cue: the text that asks for the answer (ours). Where it opens a box, what stands in the box is the answer.
        close: put the end-of-thinking marker before the cue (ours).
        probe_tokens: of an answer at most (ours). One that is longer counts as none.
        max_probes: after so many the model is left alone (ours).
        think_ratio: share of the token limit after which thinking is closed (ours).
    """

    name: ClassVar[str] = "answer-convergence"
    summary: ClassVar[str] = "asks for the answer after each chunk of thinking; stops once answers in a row agree"
    paper: ClassVar[str] = "2506.02536 (Answer Convergence)"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.PREFIX_REUSE})
    takes_control: ClassVar[bool] = True
    # A paragraph is a whole pass over the chain, so two that agree are a check that has found nothing.
    on_lab: ClassVar[str] = r'agree=2,cue="The answer is \\boxed{",probe_tokens=6'

    agree: PositiveInt = 3
    chunk: Chunk = "paragraph"
    markers: str = "Wait|Hmm|Alternatively"
    every: PositiveInt = 64
    cue: str = "The final answer is \\boxed{"
    close: bool = True
    probe_tokens: PositiveInt = 32
    max_probes: PositiveInt = 64
    think_ratio: Share = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.agree > self.max_probes:
            raise MethodError(
                f"answer-convergence: agree is {self.agree}, which {self.max_probes} probes (max_probes) never reach"
            )
        if not (self.cue.strip() or self.close):
            raise MethodError("answer-convergence: cue is empty; with close=false a text must ask for the answer")
        for name, chunk in (("markers", "marker"), ("every", "interval")):
            if self.chunk != chunk and getattr(self, name) != getattr(AnswerConvergence, name):
                raise MethodError(f"answer-convergence: {name} acts with chunk={chunk} only; leave it out")
        marker_words(self.markers, self.name)

    async def respond(self, draft: Draft) -> None:
        limit = int(self.think_ratio * draft.remaining)
        last, times = None, 0
        for _ in range(self.max_probes):
            held = await self._to_chunk_end(draft, limit)
            if held is None:
                break
            answer = await self._ask(draft, held)
            key = None if answer is None else canonical(answer)
            times = 0 if key is None else times + 1 if key == last else 1
            last = key
            draft.note("probe", back=held, answer=label(answer), in_a_row=times, exit=times >= self.agree)
            if times >= self.agree:
                draft.take_back(held)
                break
        else:
            await draft.think(limit - len(draft.ids))
        await draft.conclude()

    async def _to_chunk_end(self, draft: Draft, limit: int) -> int | None:
        """Think up to the end of the chunk.

        Returns:
            how many tokens at the end of the response stand after it; None where thinking has ended.
        """
        if self.chunk == "marker":
            return await think_to_marker(draft, marker_words(self.markers, self.name), limit)
        if self.chunk == "paragraph":
            return 0 if await think_to_paragraph(draft, limit) else None
        while (left := limit - len(draft.ids)) > 0:
            generation = await draft.think(min(self.every, left))
            if draft.closed or generation.finish == "stop" or len(draft.ids) >= limit:
                return None
            if draft.phase is Phase.THINKING:
                return 0
        return None

    async def _ask(self, draft: Draft, held: int) -> str | None:
        """The answer, greedy, `held` tokens before the end of the response; None where none is complete."""
        cue = draft.closing(self.cue, held) if self.close else encode_after(draft.engine.tokenizer, self.cue)
        asked = [*draft.sequence[: len(draft.sequence) - held], *cue]
        in_box = self.cue.count("{") > self.cue.count("}")
        stop = ("}",) if in_box else ()
        ids: list[int] = []
        while len(ids) < self.probe_tokens:
            greedy = Sampling(temperature=0, top_p=1, max_tokens=self.probe_tokens - len(ids), stop=stop)
            piece = await draft.probe([*asked, *ids], greedy)
            ids += piece.ids
            if in_box:
                answer = boxed(self.cue, draft.text(ids))
                if answer is not None:
                    return answer or None
                if piece.stopped_by != "}":  # a brace inside the answer is not its end
                    return None
            else:
                ended = piece.finish == "stop"
                text = draft.text(ids[:-1] if ended else ids)
                return find_answer(f"{self.cue}{text}", draft.problem.grader) if ended else None
        return None
