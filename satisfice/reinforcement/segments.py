"""Segments of a response: where the right answer first stands, how redundant the rest is, where the steps end.

Objectives see numbers only. What they need to know about the text of a response is found out here, and handed to them
as token counts in `Rollouts.boundaries`, `Rollouts.redundancy` and `Rollouts.steps`.

Everything is found in text and given back in tokens. The text is put together from the bytes of the tokens
themselves, so the way back is exact, also where a character is cut over several tokens.
"""

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from itertools import takewhile

from satisfice.engines.base import Capability, Engine, require
from satisfice.lazy import PreTrainedTokenizerBase
from satisfice.problems.statements import stated_answer
from satisfice.reinforcement.objective import Step
from satisfice.thinking import Phase, Prompt, ThinkingFormat, decode, encode_after
from satisfice.token_text import TokenText

Judge = Callable[[str, str, str], int | None]
"""From question, thinking and gold answer to the place (in characters of the thinking) after the sentence in which
the right answer is first derived; None where there is none. DEPO has a fine-tuned language model for it."""


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
        response_ids: ids of everything after the prompt.
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


# -- redundancy

TRANSITIONS = ("But", "Alternatively", "However", "Another")
"""Phrases that open another path of reasoning, counted as they are spelled: with a capital they begin a sentence."""

REFLECTIONS = ("Wait", "Hmm", "Hmmm", "Not sure", "Going back", "Backtrack", "Trace back")
"""Phrases of self-reflection, counted in any case.

Together with `TRANSITIONS` this is the list that DLER (arXiv 2510.15110) analyses; DEPO's own lists are not public.
Which of them are transitions is ours.
"""


def redundancy(text: str, transitions: Sequence[str] = TRANSITIONS, reflections: Sequence[str] = REFLECTIONS) -> int:
    """How redundant the text after the first right answer is: the larger of two counts of whole phrases (DEPO's K).

    Args:
        text: everything after the first right answer.
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
        response_ids: ids of everything after the prompt.
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

    After each step, and before the first one, thinking is closed, the answer's beginning is written, and the engine
    says how likely the gold answer is:

        p_j = P(gold closer | prompt, steps 1..j, closing marker, cue)
        importance_j = max(0, p_j - p_(j-1))

    The paper's own estimator is not public. This is the step potential of SPAE (arXiv 2601.03823) reduced to its
    accuracy term, with the answer given instead of sampled, so it costs no generation (ours). All places are scored
    side by side; score several responses with `asyncio.gather`.

    Args:
        engine: scores; the policy itself, or a frozen copy of it.
        prompt: as it was rendered for the response.
        response_ids: ids of everything after the prompt.
        ends: of its steps, from `split_steps`.
        gold: the right answer.
        cue: written after the closing marker; it asks for the answer.
        closer: ends the answer, so that 3 is not taken for the beginning of 36.

    Returns:
        one step for each of `ends`. A step after which the engine's context has no room for the answer has
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

    before, *others = await asyncio.gather(*(probability(end) for end in (0, *ends)))
    steps = []
    for end, after in zip(ends, others, strict=True):
        steps.append(Step(end, 0.0 if before is None or after is None else max(0.0, after - before)))
        before = before if after is None else after
    return steps


def _asking(engine: Engine, prompt: Prompt, so_far: Sequence[int], text: str) -> list[int]:
    """Token ids that close thinking after `so_far`, where it is not closed, and go on with `text`."""
    tokenizer, thinking = engine.tokenizer, engine.thinking
    automaton = thinking.automaton(tokenizer)
    phase = automaton.phase(automaton.run(so_far, prompt.state))
    if phase is Phase.ANSWER:
        return encode_after(tokenizer, thinking.closing.removeprefix(thinking.close) + text)
    opening = encode_after(tokenizer, thinking.opening) if phase is Phase.BEFORE else []
    return [*opening, *thinking.forced_close(tokenizer, decode(tokenizer, so_far), text)]
