"""Segments of a response: where the right answer first stands, how redundant the rest is, where the steps end.

Objectives see numbers only. What they need to know about the text of a response is found out here, and handed to them
as token counts in `Rollouts.boundaries`, `Rollouts.redundancy` and `Rollouts.steps`.

Everything is found in text and given back in tokens. The text is put together from the bytes of the tokens
themselves, so the way back is exact, also where a character is cut over several tokens.
"""

import asyncio
import functools
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise, takewhile

from transformers import PreTrainedTokenizerBase

from satisfice.engines.base import Capability, Engine, require
from satisfice.problems.extraction import THOUSANDS, last_box
from satisfice.problems.graders import plain_number
from satisfice.reinforcement.objective import Step
from satisfice.thinking import Phase, Prompt, ThinkingFormat, decode, encode_after, token_bytes

Judge = Callable[[str, str, str], int | None]
"""From question, thinking and gold answer to the place (in characters of the thinking) behind the sentence in which
the right answer is first derived; None where there is none. DEPO has a fine-tuned language model for it."""


class TokenText:
    """The text of some tokens, and which of them hold it.

    Attributes:
        text: with one U+FFFD for each byte that belongs to no whole character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
        table = _token_bytes(tokenizer, len(tokenizer))
        # Ids beyond the tokenizer's own are a model's padding and stand for no text.
        pieces = [table[token] if token < len(table) else b"" for token in ids]
        self._escaped = b"".join(pieces).decode(errors="surrogateescape")
        self._ends = list(accumulate(map(len, pieces)))
        self.text = _STRAY_BYTE.sub("\ufffd", self._escaped)

    def tokens(self, offset: int) -> int:
        """How many tokens it takes to write the first `offset` characters."""
        behind = len(self._escaped[:offset].encode(errors="surrogateescape"))
        return bisect_left(self._ends, behind) + 1 if behind else 0


_STRAY_BYTE = re.compile("[\udc80-\udcff]")


@functools.lru_cache(maxsize=4)
def _token_bytes(tokenizer: PreTrainedTokenizerBase, vocabulary_size: int) -> list[bytes]:
    return token_bytes(tokenizer)  # the size is part of the key alone: a tokenizer may be given more tokens


# -- the first right answer


def first_right_answer(
    tokenizer: PreTrainedTokenizerBase,
    response_ids: Sequence[int],
    thinking_span: tuple[int, int],
    question: str,
    gold: str,
    judge: Judge | None = None,
) -> int:
    """Tokens of the response up to and including the sentence of its thinking that first gives the right answer.

    Args:
        tokenizer: the model's tokenizer.
        response_ids: ids of everything behind the prompt.
        thinking_span: start and end of thinking in them, as in `Split.span`.
        question: what was asked.
        gold: the right answer.
        judge: finds that sentence; `stated_answer` unless given.

    Returns:
        the number of tokens, -1 where the thinking does not give the right answer or there is no thinking.
    """
    start, end = thinking_span
    thinking = TokenText(tokenizer, response_ids[start:end])
    offset = (judge or stated_answer)(question, thinking.text, gold)
    return -1 if offset is None else start + thinking.tokens(offset)


def stated_answer(question: str, thinking: str, gold: str) -> int | None:
    """The `Judge` without a model: the first sentence that states the gold answer, found by comparing text (ours).

    A gold answer that is a plain number is compared by value with whole numbers of the text, so 36 is found in
    "36.0" and not in "136"; any other is looked for as it is written, between word boundaries. The first sentence
    counts that

    1. concludes with it: "So 36.", "the answer is 36", a box. Where no sentence does, the first one that
    2. computes it: it stands behind the sentence's last equals sign. Where none does, and the question itself does not
       contain it, the first one that
    3. mentions it.

    A sentence ends with a full stop, an exclamation or question mark, or its line.
    """
    if not gold.strip():
        return None
    stands_in = _finder(gold)
    letter = len(gold.strip()) == 1 and gold.strip().isalpha()  # an option's, too common to be a mention

    def concludes(sentence: str) -> bool:
        box = last_box(sentence)
        if box is not None and stands_in(box, "last"):
            return True
        cue = _CONCLUSION.search(sentence)
        named = _ANSWER.search(sentence)
        return (cue is not None and stands_in(sentence[cue.end() :], "last")) or (
            named is not None and stands_in(sentence[named.end() :], "first")
        )

    def computes(sentence: str) -> bool:
        _, sign, result = sentence.rpartition("=")
        return bool(sign) and stands_in(result, "first")

    def mentions(sentence: str) -> bool:
        return stands_in(sentence, "anywhere")

    sentences = list(_sentences(thinking))
    known = letter or stands_in(question, "anywhere")
    for says in (concludes, computes) if known else (concludes, computes, mentions):
        for start, end in sentences:
            if says(thinking[start:end]):
                return end
    return None


_SENTENCE_END = re.compile(r"""[.!?](?=["'”’)\]*$]{0,4}(?:[\s<]|\Z))["'”’)\]*$]{0,4}|[。！？]|(?<![:\n])\n""")
_CONCLUSION = re.compile(r"\b(?:so(?!\s+far\b)|thus|therefore|hence|answers?|result|conclude)\b", re.IGNORECASE)
_ANSWER = re.compile(r"\banswers?\s*(?:\bis\b|:|=)", re.IGNORECASE)
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}.])[-+−])?(?<![\w.])(?:{THOUSANDS}(?:\.\d+)?|\d+(?:\.\d+)?)(?!\w|\.\d)",
    re.ASCII,  # Chinese leaves no spaces between words and numbers
)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence, its closing sign included. A line that ends with a colon goes on."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        yield start, end.end()
        start = end.end()
    if start < len(text):
        yield start, len(text)


def _finder(gold: str) -> Callable[[str, str], bool]:
    """Whether the gold answer stands "anywhere" in a text, or is the "first" or "last" answer of its kind there.

    Of a number, those are the first and the last number of the text; of any other answer, the text must begin or end
    with it, give or take signs and, for a long one, words behind it.
    """
    number = plain_number(gold)
    if number is not None:

        def found(text: str, where: str) -> bool:
            numbers = _NUMBER.findall(text)
            if where != "anywhere":
                numbers = numbers[:1] if where == "first" else numbers[-1:]
            return any(plain_number(candidate) == number for candidate in numbers)

        return found

    parts = re.findall(r"\\?\w+|[^\w\s]", gold)
    spelled = "".join(
        re.escape(part) + (r"\s+" if part[-1].isalnum() and following[:1].isalnum() else r"\s*")
        for part, following in pairwise([*parts, ""])
    ).removesuffix(r"\s*")
    spelled = re.sub(r"\\\\[dt]?frac", r"\\\\[dt]?frac", spelled)
    left, right = r"(?<!\w)" if parts[0][0].isalnum() else "", r"(?!\w)" if parts[-1][-1].isalnum() else ""
    # An option's letter is no article where it ends a sentence or follows "answer is", and never in lower case.
    short = len(gold.strip()) == 1
    flags = re.ASCII if short else re.ASCII | re.IGNORECASE
    anywhere = re.compile(left + spelled + right, flags)
    at_end = re.compile(left + spelled + right + r"[\W_]*\Z", flags) if short else anywhere
    at_start = re.compile(r"[\W_]{0,20}?" + left + spelled + right, flags)

    def spelled_out(text: str, where: str) -> bool:
        if where == "first":
            return at_start.match(text) is not None
        return (at_end if where == "last" else anywhere).search(text) is not None

    return spelled_out


# -- redundancy

TRANSITIONS = ("But", "Alternatively", "However", "Another")
"""Phrases that open another path of reasoning, counted as they are spelled: with a capital they begin a sentence."""

REFLECTIONS = ("Wait", "Hmm", "Hmmm", "Not sure", "Going back", "Backtrack", "Trace back")
"""Phrases of self-reflection, counted in any case.

Together with `TRANSITIONS` this is the list that DLER (arXiv 2510.15110) analyses; DEPO's own lists are not public.
Which of them are transitions is ours.
"""


def redundancy(text: str, transitions: Sequence[str] = TRANSITIONS, reflections: Sequence[str] = REFLECTIONS) -> int:
    """How redundant the text behind the first right answer is: the larger of two counts of whole phrases (DEPO's K).

    Args:
        text: everything behind the first right answer.
        transitions: counted as they are spelled.
        reflections: counted in any case.
    """
    return max(_count(text, tuple(transitions), 0), _count(text, tuple(reflections), re.IGNORECASE))


def _count(text: str, phrases: tuple[str, ...], flags: int) -> int:
    if not phrases:
        return 0
    return sum(1 for _ in re.finditer(rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?!\w)", text, flags))


# -- steps


def split_steps(
    tokenizer: PreTrainedTokenizerBase,
    response_ids: Sequence[int],
    thinking_span: tuple[int, int],
    thinking: ThinkingFormat,
) -> list[int]:
    """Where the steps of a thinking end: its paragraphs, divided by empty lines.

    An empty paragraph, or one that holds a marker alone, belongs to the step before it, or to the first one. The last
    step ends with thinking, closing marker included, or where the response was cut off.

    Args:
        tokenizer: the model's tokenizer.
        response_ids: ids of everything behind the prompt.
        thinking_span: start and end of thinking in them, as in `Split.span`.
        thinking: how the model marks its thinking.

    Returns:
        for each step the tokens of the response up to and including it, rising; empty where nothing was thought.
    """
    begin, end = thinking_span
    written = TokenText(tokenizer, response_ids[begin:end])
    opening, closing = written.text.find(thinking.open), written.text.rfind(thinking.close)
    opens = opening >= 0 and not written.text[:opening].strip()
    start = opening + len(thinking.open) if opens else 0
    content = written.text[: closing if closing >= start else len(written.text)]
    ends: list[int] = []
    for gap in _GAP.finditer(content, start):
        tokens = begin + written.tokens(gap.end())
        # Only the first paragraph can be empty, and only a token that holds two gaps can end twice.
        if content[start : gap.end()].strip() and (not ends or tokens > ends[-1]):
            ends.append(tokens)
        start = gap.end() if ends else start
    if content[start:].strip() and (not ends or ends[-1] < end):
        ends.append(end)
    elif ends:
        ends[-1] = end
    return ends


_GAP = re.compile(r"\n[ \t]*\n\s*")


# -- the importance of steps


async def estimate_importance(
    engine: Engine,
    prompt: Prompt,
    response_ids: Sequence[int],
    ends: Sequence[int],
    gold: str,
    *,
    cue: str = "The answer is \\boxed{",
    closer: str = "}",
) -> list[Step]:
    """How much each step moved the model towards the right answer.

    Behind each step, and before the first one, thinking is closed, the answer's beginning is written, and the engine
    says how likely the gold answer is:

        p_j = P(gold closer | prompt, steps 1..j, closing marker, cue)
        importance_j = max(0, p_j - p_(j-1))

    The paper's own estimator is not public. This is the step potential of SPAE (arXiv 2601.03823) reduced to its
    accuracy term, with the answer given instead of sampled, so it costs no generation (ours). All places are scored
    side by side; score several responses with `asyncio.gather`.

    Args:
        engine: scores; the policy itself, or a frozen copy of it.
        prompt: as it was rendered for the response.
        response_ids: ids of everything behind the prompt.
        ends: of its steps, from `split_steps`.
        gold: the right answer.
        cue: written behind the closing marker; it asks for the answer.
        closer: ends the answer, so that 3 is not taken for the beginning of 36.

    Returns:
        one step for each of `ends`. A step behind which the engine's context has no room for the answer has
        importance 0.

    Raises:
        EngineError: the engine does not score.
    """
    require(engine, frozenset({Capability.SCORE}), "estimating the importance of steps")
    if not ends:
        return []

    async def probability(end: int) -> float | None:
        asked = _asking(engine, prompt, response_ids[:end], cue)
        answered = _asking(engine, prompt, response_ids[:end], cue + gold + closer)
        # The answer's first token may hold the cue's last character, as "{\\" does.
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, answered, strict=False)))
        start = len(prompt.ids) + end
        ids = [*prompt.ids, *response_ids[:end], *answered]
        if len(ids) > engine.context_length:
            return None
        return math.exp(math.fsum((await engine.score(ids, start + common)).logprobs))

    before, *behind = await asyncio.gather(*(probability(end) for end in (0, *ends)))
    steps = []
    for end, after in zip(ends, behind, strict=True):
        steps.append(Step(end, 0.0 if before is None or after is None else max(0.0, after - before)))
        before = before if after is None else after
    return steps


def _asking(engine: Engine, prompt: Prompt, so_far: Sequence[int], text: str) -> list[int]:
    """Token ids that close thinking behind `so_far`, where it is not closed, and go on with `text`."""
    tokenizer, thinking = engine.tokenizer, engine.thinking
    automaton = thinking.automaton(tokenizer)
    phase = automaton.phase(automaton.run(so_far, prompt.state))
    if phase is Phase.ANSWER:
        return encode_after(tokenizer, thinking.closing.removeprefix(thinking.close) + text)
    opening = encode_after(tokenizer, thinking.opening) if phase is Phase.BEFORE else []
    return [*opening, *thinking.forced_close(tokenizer, decode(tokenizer, so_far), text)]
