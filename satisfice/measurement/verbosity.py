"""How much of a thinking was needed: repetition, loops, and the place from which its answer never changed.

Everything here is a pure function of numbers. A boundary is a place at which thinking could have been closed, such as
the end of a paragraph; what the model would answer there is given by whoever asked it, or read it in the thinking.
The definitions are ours where no source is named.
"""

from collections.abc import Hashable, Sequence

import numpy as np

TOP = 5
"""The end marker counts as available at a boundary where it is among this many likeliest tokens (2505.07961, as it is
reported)."""

SHORTEST_LOOP = 64
"""Tokens that have to repeat at the end of a thinking before it is called a loop: as long as the block that the
sampler of Kinetics watches."""

LONGEST_PERIOD = 256
"""Tokens of the longest pattern that is looked for."""


def repetition_share(ids: Sequence[int], n: int = 8) -> float:
    """Share of the n-grams of a text that stood in it before (ours): 0 for a text without repetition, near 1 for a
    loop. Overlapping n-grams count; a text shorter than n tokens has no n-gram and a share of 0.

    Args:
        ids: token ids.
        n: length of an n-gram in tokens. Eight is long enough that plain prose repeats few, and short enough that
            a loop over one line is seen.
    """
    total = len(ids) - n + 1
    if total < 1:
        return 0.0
    distinct = len(set(zip(*(ids[start : start + total] for start in range(n)), strict=True)))
    return 1 - distinct / total


def tail_period(ids: Sequence[int], least: int = SHORTEST_LOOP) -> int | None:
    """The length of the pattern that a text repeats at its end, None where it does not end in a loop.

    A loop is a pattern that stands there at least three times and for at least `least` tokens, its last copy perhaps
    cut.

    Args:
        ids: token ids.
        least: tokens.
    """
    tail = np.asarray(ids[-max(least, 3 * LONGEST_PERIOD) :])
    for period in range(1, min(LONGEST_PERIOD, tail.size // 3) + 1):
        span = max(least, 3 * period)
        if span > tail.size:
            return None
        # The last token alone rules out most periods.
        if tail[-1] == tail[-1 - period] and np.array_equal(tail[-span:-period], tail[-span + period :]):
            return period
    return None


def settled(answers: Sequence[Hashable | None], final: Hashable | None) -> int | None:
    """The first boundary from which the answer is the final one and never changes again.

    Args:
        answers: the answer at each boundary in order, None where there was none.
        final: the answer that was given in the end.

    Returns:
        its place, or None where even the last boundary's answer is another, or there is no final answer.
    """
    place = None
    for index in range(len(answers) - 1, -1, -1):
        if final is None or answers[index] != final:
            break
        place = index
    return place


def overthinking_share(needed: float, total: float) -> float:
    """Share of a thinking that came after the place from which its answer never changed; 0 for an empty thinking.

    Raises:
        ValueError: more was needed than there was, or a length is negative.
    """
    if not 0 <= needed <= total:
        raise ValueError(f"of {total} tokens {needed} cannot have been needed")
    return 1 - needed / total if total else 0.0


def outcome_efficiency(correct: Sequence[bool], first_right: Sequence[float | None], tokens: Sequence[float]) -> float:
    """xi_O of Chen et al. (2412.21187): the mean over all responses of tokens up to the first right answer over all
    tokens, 0 for a response that is wrong.

    Args:
        correct: whether each response is right.
        first_right: tokens up to its first right answer; None where it is not known, which counts as all of them.
        tokens: all its tokens.

    Raises:
        ValueError: there is no response, or the lists have different lengths.
    """
    rows = list(zip(correct, first_right, tokens, strict=True))
    if not rows:
        raise ValueError("no response, so there is no efficiency")
    return float(np.mean([good * (1.0 if first is None or not all_ else first / all_) for good, first, all_ in rows]))


def process_efficiency(distinct: Sequence[float], tokens: Sequence[float]) -> float:
    """xi_P of Chen et al. (2412.21187): the mean over responses of tokens in solutions that are new over all tokens.

    Which solutions of a response are new has to be found first, by an LLM in the paper.

    Args:
        distinct: tokens of the solutions that differ from all before them, for each response.
        tokens: all its tokens.

    Raises:
        ValueError: there is no response, or a response has more tokens in new solutions than in all.
    """
    rows = list(zip(distinct, tokens, strict=True))
    if not rows or any(new > total for new, total in rows):
        raise ValueError("process efficiency needs responses whose new solutions are part of them")
    return float(np.mean([new / total if total else 1.0 for new, total in rows]))
