"""Who writes the responses of a step.

Most are the policy's own. Where the objective wants so, the first ones of each group begin by closing their thinking;
where the recipe explores, the last ones are written with endings made likelier. All may be written by the transformers
engine, in place of TRL's generation.
"""

import asyncio
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from satisfice.engines.base import Sampling
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention.controls import EndScaling
from satisfice.levels import LEVELS
from satisfice.thinking import Phase, Prompt, ThinkingFormat, encode_after
from satisfice.training.recipe import Exploration


def begins_directly(place: int, group: int, share: float) -> bool:
    """Whether the response at this place of the batch is among the first ones of its group, of which a share is.

    Args:
        place: in the batch of all processes, so that a group that two of them share is divided the same.
        group: responses of a group.
        share: of each group, from 0 to 1.
    """
    return place % group < share * group


def exploring(
    explore: Exploration, level: int, prompt: Prompt, *, place: int, group: int, left: float
) -> EndScaling | None:
    """What makes an ending likelier in one response; None where nothing does.

    Args:
        explore: how much, in which share of the responses and at which levels.
        level: of the response's prompt; an index into `LEVELS`, -1 for none.
        prompt: the prompt.
        place: of the response in the batch of all processes.
        group: responses of a group.
        left: how much of the training lies ahead, from 1 to 0.
    """
    if ("unlabelled", *LEVELS)[level + 1] not in explore.levels:
        return None
    # The last ones of a group, because the objective may begin some of its first.
    if group - place % group > explore.share * group:
        return None
    return EndScaling(bias=explore.bias * left, state=prompt.state)


def closing(tokenizer: PreTrainedTokenizerBase, thinking: ThinkingFormat, prompt: Prompt) -> list[int]:
    """Token ids of an empty thinking after `prompt`.

    They are part of the response that begins with them, so whether to think at all is learned too.
    """
    opens = thinking.automaton(tokenizer).phase(prompt.state) is Phase.BEFORE
    opening = encode_after(tokenizer, thinking.opening) if opens else []
    return [*opening, *thinking.forced_close(tokenizer, "")]


def write_together(
    engine: TransformersEngine,
    prompt_ids: Sequence[list[int]],
    samplings: Sequence[Sampling],
    controls: Sequence[EndScaling | None],
) -> list[list[int]]:
    """One response to each prompt, (B,) token ids, from one batch that lets each go when it is finished."""

    async def write() -> list[list[int]]:
        asked = zip(prompt_ids, samplings, controls, strict=True)
        calls = [engine.generate(ids, sampling, control=control) for ids, sampling, control in asked]
        return [generation.ids for generation in await asyncio.gather(*calls)]

    return asyncio.run(write())
