"""Adaptive Think (arXiv 2505.18237): stop thinking once the distribution over answers is sharp.

Before any thinking and after each step of it, thinking is closed on the side and the model's candidate answers are
weighed: the options of a multiple-choice question, or what a small beam search writes into a box. The entropy of
their probabilities, averaged over the candidates, is compared with a share of the largest value that one candidate
can contribute. The published code cuts finished responses; here the decision falls while the model thinks.
"""

import functools
import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from satisfice.engines.base import Capability, Sampling
from satisfice.intervention.answers import canonical, label
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Knob, Method, MethodError
from satisfice.intervention.probing import boxed, think_to_paragraph
from satisfice.parameters import Because, NotBlank, Noun, Share
from satisfice.thinking import decode, encode_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Variant = Literal["auto", "choice", "free"]
Duplicates = Literal["sum", "first"]

LARGEST_TERM = 1 / (math.e * math.log(2))
"""The maximum of -p log2 p, in bits: about 0.5307."""
MERGE = {"choice": 120, "free": 200}
"""Characters of a step at least, with the paper's values."""
MOST_LIKELY = 20
"""Next tokens among which options are looked for: as many as servers give."""

_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]", re.MULTILINE)
_ONE_TOKEN = Sampling(temperature=0, top_p=1, max_tokens=1)


@dataclass(frozen=True)
class Candidate:
    """A candidate answer.

    Attributes:
        answer: its text.
        ids: the tokens that write it, the brace that closes the box included.
        probability: of those tokens, given all before them; not normalised.
    """

    answer: str
    ids: tuple[int, ...]
    probability: float


@dataclass(frozen=True)
class AdaptiveThink(Method):
    """Weigh the candidate answers after each step of thinking, and stop once their entropy is small.

    Attributes:
        alpha: thinking stops once the mean entropy is at most this share of 0.5307 bits, the most that one candidate
            can add to it. The value in both example configurations of the paper's code; which value is behind the
            paper's main result is not known.
        variant: "choice" weighs the options of the question, "free" the answers of a beam search; "auto" takes
            "choice" for problems of the choice grader.
        merge: characters that a step has at least; paragraphs are joined until it has. None: the paper's 120 for
            choice and 200 for free.
        width: next tokens tried from each place, paths followed and candidates kept by the beam search.
        depth: tokens of a candidate at most.
        duplicates: what becomes of candidates with the same text: "sum" adds their probabilities up (ours), "first"
            keeps the first that was found, as the paper's code does.
        min_candidates: with fewer, thinking goes on (ours). A single candidate has no entropy, so with 1, as in the
            paper, it ends thinking at once.
        cue: the text after the end-of-thinking marker that asks for a free answer; it leaves the box open.
        choice_cue: the same for an option; its letter follows as the next token.
        max_probes: after so many the model is left alone (ours).
        think_ratio: share of the token limit after which thinking is closed (ours).
    """

    name: ClassVar[str] = "adaptive-think"
    summary: ClassVar[str] = "weighs candidate answers after each step of thinking; stops once their entropy is small"
    paper: ClassVar[str] = "2505.18237 (Adaptive Think)"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGPROBS, Capability.PREFIX_REUSE})
    takes_control: ClassVar[bool] = True
    knobs: ClassVar[tuple[Knob, ...]] = (Knob("alpha", (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4), shared=True),)
    # A paragraph is a whole pass over the chain, so each is a step; alpha as with deer's threshold on the lab.
    on_lab: ClassVar[str] = r'alpha=0.005,merge=0,cue="The answer is \\boxed{"'

    alpha: Annotated[Share, Because("1 stops before any thinking")] = 0.1
    variant: Variant = "auto"
    merge: NonNegativeInt | None = None
    width: PositiveInt = 5
    depth: PositiveInt = 10
    duplicates: Duplicates = "sum"
    min_candidates: PositiveInt = 1
    cue: Annotated[NotBlank, Noun("a text that asks for an answer")] = "The final answer is \\boxed{"
    choice_cue: Annotated[NotBlank, Noun("a text that asks for an option")] = "The answer is"
    max_probes: PositiveInt = 32
    think_ratio: Share = 0.9

    @property
    def breadth(self) -> int:
        return self.width

    async def respond(self, draft: Draft) -> None:
        limit = int(self.think_ratio * draft.remaining)
        options = self._options(draft)
        cue = self.choice_cue if options else self.cue
        for step in range(self.max_probes):
            if draft.closed:  # the prompt has switched thinking off
                break
            asked = [*draft.sequence, *draft.closing(cue)]
            candidates = await (_weigh(draft, asked, options) if options else self._search(draft, asked))
            if self._sharp(draft, step, candidates):
                draft.close_thinking(cue)
                draft.force(max(candidates, key=lambda candidate: candidate.probability).ids)
                if draft.remaining:
                    draft.end()
                    return
                break
            if not await self._think_step(draft, limit, "choice" if options else "free"):
                break
        else:
            await draft.think(limit - len(draft.ids))
        await draft.conclude()

    def _sharp(self, draft: Draft, step: int, candidates: Sequence[Candidate]) -> bool:
        """Whether the candidates are few and uneven enough to stop."""
        total = math.fsum(candidate.probability for candidate in candidates)
        shares = [candidate.probability / total for candidate in candidates] if total else []
        enough = len(shares) >= self.min_candidates
        entropy = mean_entropy(shares) if shares else None
        sharp = enough and entropy is not None and entropy <= self.alpha * LARGEST_TERM
        draft.note(
            "probe",
            step=step,
            entropy=entropy,
            at_most=self.alpha * LARGEST_TERM,
            candidates={label(candidate.answer): share for candidate, share in zip(candidates, shares, strict=False)},
            exit=sharp,
        )
        return sharp

    async def _think_step(self, draft: Draft, limit: int, variant: str) -> bool:
        """Think on by one step; whether thinking is still going on after it."""
        characters = MERGE[variant] if self.merge is None else self.merge
        start = len(draft.ids)
        while await think_to_paragraph(draft, limit):
            if len(draft.text(draft.ids[start:])) >= characters:
                return True
        return False

    def _options(self, draft: Draft) -> dict[str, tuple[int, ...]]:
        """The tokens of each option's letter, with and without a space before it; none where the answer is free."""
        problem = draft.problem
        if self.variant == "free" or (self.variant == "auto" and problem.grader.partition(":")[0] != "choice"):
            return {}
        letters = option_letters(problem.prompt)
        if not letters:
            raise MethodError(
                f"adaptive-think: problem {problem.id} names no options as lines that begin with 'A.', 'B.'; use "
                "variant=free"
            )
        tokens = {}
        for letter in letters:
            spelled = [encode_after(draft.engine.tokenizer, text) for text in (f" {letter}", letter)]
            # A tokenizer without such a token writes its unknown one, or several.
            single = [ids[0] for ids in spelled if len(ids) == 1 and draft.text(ids).strip() == letter]
            tokens[letter] = tuple(dict.fromkeys(single))
            if not tokens[letter]:
                raise MethodError(
                    f"adaptive-think: {draft.engine.name} has no single token for the option {letter}; use variant=free"
                )
        return tokens

    async def _search(self, draft: Draft, asked: list[int]) -> list[Candidate]:
        """The answers that a beam search finds, most likely first."""
        found: dict[Hashable, Candidate] = {}
        live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        tokenizer = draft.engine.tokenizer
        for _ in range(self.depth):
            continuations = await draft.probe_paths(asked, [path for path, _ in live], top_logprobs=self.width)
            grown = []
            for (path, logprob), continuation in zip(live, continuations, strict=True):
                for token, more in (continuation.top_logprobs or [{}])[0].items():
                    longer = (*path, token)
                    answer = (
                        boxed(self.cue, draft.text(longer)) if _has_brace(tokenizer, len(tokenizer), token) else None
                    )
                    if answer:
                        self._add(found, Candidate(answer, longer, math.exp(logprob + more)))
                    elif answer is None and token not in draft.engine.end_ids:
                        grown.append((longer, logprob + more))
            live = sorted(grown, key=lambda path: -path[1])[: self.width]
            best = sorted((candidate.probability for candidate in found.values()), reverse=True)[: self.width]
            # A path only gets less likely: what is after the last candidate now will never be among them.
            if not live or (len(best) == self.width and best[-1] >= math.exp(live[0][1])):
                break
        return sorted(found.values(), key=lambda candidate: -candidate.probability)[: self.width]

    def _add(self, found: dict[Hashable, Candidate], new: Candidate) -> None:
        key = canonical(new.answer)
        old = found.setdefault(key, new)
        if old is not new and self.duplicates == "sum":
            likelier = max(old, new, key=lambda candidate: candidate.probability)
            found[key] = Candidate(likelier.answer, likelier.ids, old.probability + new.probability)


@functools.lru_cache(maxsize=1 << 16)  # searches meet the same few tokens again and again
def _has_brace(tokenizer: "PreTrainedTokenizerBase", size: int, token: int) -> bool:
    """Whether a token may close a box; `size` tells a tokenizer from itself before tokens were added."""
    return "}" in decode(tokenizer, [token])


async def _weigh(draft: Draft, asked: list[int], options: dict[str, tuple[int, ...]]) -> list[Candidate]:
    """The options with the probabilities of their letters as the next token."""
    continuation = await draft.probe(asked, _ONE_TOKEN, top_logprobs=MOST_LIKELY)
    most_likely = (continuation.top_logprobs or [{}])[0]
    probabilities = {token: math.exp(logprob) for token, logprob in most_likely.items()}
    return [
        Candidate(
            letter,
            (max(tokens, key=lambda token: probabilities.get(token, 0.0)),),
            math.fsum(probabilities.get(token, 0.0) for token in tokens),
        )
        for letter, tokens in options.items()
    ]


def option_letters(question: str) -> list[str]:
    """The letters of the last list of options in a question: lines that begin with "A.", "(A)" or "A:", and so on."""
    letters: list[str] = []
    for match in _OPTION.finditer(question):
        if match[1] == "A":
            letters = ["A"]
        elif letters and ord(match[1]) == ord(letters[-1]) + 1:
            letters.append(match[1])
    return letters if len(letters) > 1 else []


def mean_entropy(probabilities: Sequence[float]) -> float:
    """Entropy in bits of a distribution, divided by the number of its outcomes."""
    return -math.fsum(p * math.log2(p) for p in probabilities if p > 0) / len(probabilities)
