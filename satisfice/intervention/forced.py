"""Which tokens of a response its budget forced: an engine takes them for the model's, a trace and its cost do not."""

import functools
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from satisfice.engines.base import Generation
from satisfice.intervention.controls import ConfidenceRule, ThinkingBudget
from satisfice.intervention.draft import Draft
from satisfice.intervention.text_ends import ENDS, level_of
from satisfice.lazy import PreTrainedTokenizerBase
from satisfice.thinking import ThinkingFormat

if TYPE_CHECKING:
    from satisfice.intervention.budget_batch import ThinkingBudgetBatch

_ROUNDING = 1e-4
"""By how much two means of the same log-probabilities may differ, added up in another order and precision."""

_LOCK = threading.Lock()
"""Of the batches below, each of which serves one response at a time."""


def claim_forced(draft: Draft, budget: ThinkingBudget, generation: Generation) -> int | None:
    """Say which tokens a budget forced in a response that one engine call has written.

    What is forced follows from the tokens, so it is found by going through them once more, whatever the engine. How
    sure the model was is taken from the log-probabilities of the generation.

    Args:
        draft: holds the response.
        budget: its control.
        generation: what the engine returned; with log-probabilities where the budget has a `ConfidenceRule`.

    Returns:
        how many tokens the response had when the budget began to close its thinking; None where it did not.
    """
    budget = replace(budget, state=draft.prompt.state)
    with _LOCK:
        batch = _batch(draft.engine.thinking, draft.engine.tokenizer)
        forced = _followed(batch, budget, draft.ids)
        if budget.confidence is not None:
            forced = _met(draft, budget, budget.confidence, generation, batch, forced)
    places = [place for place, token in enumerate(forced) if token >= 0 and token == draft.ids[place]]
    for place in places:
        draft.claim(place, place + 1)
    end = draft.tracker.end
    if not (draft.closed and end and end - 1 in places):
        return None
    begin = end - 1
    while begin and begin - 1 in places:
        begin -= 1
    return begin


@functools.lru_cache(maxsize=8)
def _batch(thinking: ThinkingFormat, tokenizer: PreTrainedTokenizerBase) -> "ThinkingBudgetBatch":
    # With these comes torch, which a file of a method must not bring along.
    from satisfice.engines.control_batch import Markers
    from satisfice.intervention.budget_batch import ThinkingBudgetBatch

    return ThinkingBudgetBatch(Markers(thinking, tokenizer, len(tokenizer)), 1)


def _followed(batch: "ThinkingBudgetBatch", budget: ThinkingBudget, ids: Sequence[int], fired: int = -1) -> list[int]:
    batch.admit(0, budget)
    return batch.replay(0, ids, fired)


def _met(
    draft: Draft,
    budget: ThinkingBudget,
    rule: ConfidenceRule,
    generation: Generation,
    batch: "ThinkingBudgetBatch",
    forced: list[int],
) -> list[int]:
    """What was forced if `rule` was met on the way; `forced` as it is where it was not."""
    end, values = draft.tracker.end, _values(rule, generation)
    if not (draft.closed and end):
        return forced
    window: deque[float] = deque(maxlen=rule.window)
    above = float("inf") if rule.above is None else rule.above - _ROUNDING
    below = float("-inf") if rule.below is None else rule.below + _ROUNDING
    state, tail = budget.state, 0
    inside = batch.markers.thinking.tolist()
    for place in range(min(end, len(values))):
        token, before = draft.ids[place], state
        state = int(batch.markers.states_on_host[before, token])
        level, tail = level_of(batch.text_ends[token].tolist(), tail)
        if not (inside[before] and inside[state]):
            window.clear()
            continue
        if forced[place] < 0:
            window.append(values[place])
        if len(window) < rule.window or place + 1 < rule.least or level < ENDS.index(rule.end):
            continue
        mean = sum(window) / rule.window
        if mean >= above or mean <= below:
            found = _followed(batch, budget, draft.ids, place + 1)
            if found[end - 1] == draft.ids[end - 1]:
                return found
    return forced


def _values(rule: ConfidenceRule, generation: Generation) -> list[float]:
    """What `rule` reads of each token."""
    if not rule.top:
        return generation.logprobs or []
    likeliest = [sorted(top.values(), reverse=True)[: rule.top] for top in generation.top_logprobs or []]
    return [-sum(top) / len(top) for top in likeliest]
