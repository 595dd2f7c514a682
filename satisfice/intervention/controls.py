"""Controls that methods ask engines for: what to do to next-token logits while a sequence thinks, as plain data.

The tensor code that does it is in `control_batches.py`.
"""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import ConfigDict

from satisfice.engines.base import EngineError
from satisfice.engines.control_setting import Control
from satisfice.intervention.text_ends import End
from satisfice.lazy import PreTrainedTokenizerBase
from satisfice.thinking import ThinkingFormat, encode_after, token_bytes

if TYPE_CHECKING:
    from satisfice.engines.control_batch import ControlBatch, Markers


@dataclass(frozen=True, kw_only=True)
class EndScaling(Control):
    """Makes the closing marker more or less likely while thinking (arXiv 2505.07961, temperature scaling).

    The raw logit z of the token that begins the marker, or goes on with a partly written one, becomes
    `z + max(z, 0) * gain + bias`. Dividing by a temperature T is `gain = 1/T - 1`; it acts on positive logits
    only, because dividing a negative logit by T < 1 would make stopping less likely instead of more.

    Attributes:
        gain: relative change of a positive logit.
        bias: absolute change of the logit; independent of the model's logit offset.
    """

    gain: float = 0.0
    bias: float = 0.0

    def batch(self, markers: "Markers", slots: int) -> "ControlBatch":
        """See `Control.batch`."""
        from satisfice.intervention.control_batches import EndScalingBatch

        return EndScalingBatch(markers, slots)

    def biases(self, thinking: ThinkingFormat, tokenizer: PreTrainedTokenizerBase) -> dict[int, float]:
        """See `Control.biases`."""
        if self.gain:
            raise EngineError(
                "a gain multiplies the logit of the closing marker, which is no constant bias: take a bias in its "
                "place (temperature-scaling:mode=bias), or an engine that has control, such as transformers or vllm"
            )
        close = thinking.close_ids(tokenizer)
        if len(close) > 1:
            raise EngineError(
                f"the closing marker {thinking.close!r} is {len(close)} tokens of this tokenizer, and which of them is "
                "biased depends on what is written of it, which is no constant bias: take an engine that has control, "
                "such as transformers or vllm"
            )
        return {close[0]: self.bias} if self.bias else {}


@dataclass(frozen=True, kw_only=True)
class SuppressTokens(Control):
    """Makes words impossible while thinking: the logit of every token that is one of them becomes minus infinity.

    The closing marker stays possible, whatever the words.

    Attributes:
        words: see `single_tokens`.
    """

    words: tuple[str, ...] = ()

    def batch(self, markers: "Markers", slots: int) -> "ControlBatch":
        """See `Control.batch`."""
        from satisfice.intervention.control_batches import SuppressTokensBatch

        return SuppressTokensBatch(markers, slots)

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The tokens that are one of the words."""
        return [token for ids in single_tokens(tokenizer, self.words).values() for token in ids]

    def biases(self, thinking: ThinkingFormat, tokenizer: PreTrainedTokenizerBase) -> dict[int, float]:
        """See `Control.biases`."""
        tokens, close = self.tokens(tokenizer), thinking.close_ids(tokenizer)
        if len(close) > 1 and not set(close).isdisjoint(tokens):
            raise EngineError(
                f"one of the words is a token of the closing marker {thinking.close!r}, which stays possible where it "
                "is the next of them, so its bias is not constant: leave that word out, or take an engine that has "
                "control, such as transformers or vllm"
            )
        return {token: -math.inf for token in tokens if token not in close}


MOST_WINDOW = 8192
"""Tokens that a rule may look back on: a step costs in proportion to it."""
MOST_TOP = 20
"""Likeliest tokens that a mean may be taken over."""


@dataclass(frozen=True, kw_only=True)
class LoopRule:
    """When thinking goes in circles: its last tokens have come before, in the same order, again and again (ours).

    Two forms. The last `ngram` tokens stand `repeats` times or more within the last `window` tokens, the first time at
    least (repeats - 1) * ngram tokens before the last, so that a short stretch ("0, 0, 0, ...") has to be as long as
    `repeats` of them side by side. Or, with `periodic`, the end of thinking is one stretch of p tokens `repeats` times
    in a row, for some p of at most window / repeats, and at least repeats * ngram tokens of it: text that is the same
    but for a word in between does not count.

    Only tokens of thinking count; the markers and what stands outside of them end every stretch. Thinking is ended at
    the next `end` while this holds, and after `grace` tokens more wherever it is.

    Attributes:
        ngram: tokens, at least 1.
        repeats: at least 2.
        window: tokens, at least repeats * ngram.
        periodic: see above.
        end: where in the text thinking may end.
        grace: tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = Control.__pydantic_config__

    ngram: int = 32
    repeats: int = 4
    window: int = 1024
    periodic: bool = False
    end: End = "token"
    grace: int = 0

    @property
    def farthest(self) -> int:
        """The greatest distance between two stretches that can matter, in tokens."""
        return self.window // self.repeats if self.periodic else self.window - self.ngram


@dataclass(frozen=True, kw_only=True)
class ConfidenceRule:
    """When the model is so sure, or so unsure, of what it writes that thinking is to end (ours, after DeepConf).

    A value a token of thinking that the model chose, under its own distribution, at temperature 1 and before anything
    edits it; the mean over the last `window` of them is compared.

    Attributes:
        above: thinking ends where the mean is this large: nothing is left to be won.
        below: thinking ends where the mean is this small: it is lost.
        window: tokens, at least 1.
        least: tokens of the response before which nothing ends.
        end: where in the text thinking may end.
        top: 0 for the log-probability of the token itself, in nats, at most 0. With k, DeepConf's confidence (arXiv
            2508.15260): the negative mean log-probability of the k likeliest tokens, which is large where the model is
            sure, and asks nothing of the token that was drawn.
    """

    __pydantic_config__: ClassVar[ConfigDict] = Control.__pydantic_config__

    above: float | None = None
    below: float | None = None
    window: int = 64
    least: int = 0
    end: End = "token"
    top: int = 0


@dataclass(frozen=True, kw_only=True)
class ThinkingBudget(Control):
    """Bounds the length of thinking from both sides, without anything but logits: for engines that cannot go back.

    Tokens are counted from the start of the response, as in budget forcing (arXiv 2501.19393), whose hard cap and
    ignored endings these are. A token is forced by a logit that no other comes near.

    - At most: once `most` tokens are written and thinking is open, the closing marker is written, with `cue` after
      it, and then the model goes on by itself. Whatever comes first inside thinking, so that a response that never
      opens it is left alone.
    - A soft landing (ours): from `hint_at` tokens on, once and where the model is not about to close thinking, `hint`
      is written into it. With `grace`, the cap waits for the next `grace_end`, for so many tokens at most.
    - In circles, or sure, or lost (ours): thinking is closed in the same way where `loops` or `confidence` says so.
    - Towards the end (ours): from `ramp_start` tokens on, the closing marker's logit rises linearly, by `ramp_bias`
      nats in all at `most` tokens.
    - At least: for the first `endings` times that the model would end its thinking, it writes `wait` instead. A
      sampled token cannot be taken back here, so the marker's first token is made impossible, and the first token
      of `wait` takes its logit over where that is the higher one. In greedy decoding this is s1's rule exactly;
      in sampling, `wait` is drawn with the probability that ending would have had, and counts as an ignored ending
      unless the model found it more likely than ending anyway.
    - Never empty: a token of `end_ids`, which would end the whole text inside thinking, is made impossible there,
      and the closing marker takes its logit over where that is the higher one.

    Attributes:
        most: tokens; None for no cap.
        cue: text.
        ramp_start: tokens; None for no ramp.
        ramp_bias: nats.
        endings: how many endings to ignore.
        wait: text.
        end_ids: tokens that end a response.
        hint: text; empty for none.
        hint_at: tokens; None for no hint.
        grace: tokens.
        grace_end: what the cap waits for.
        loops: None for no such rule.
        confidence: None for no such rule.
    """

    most: int | None = None
    cue: str = ""
    ramp_start: int | None = None
    ramp_bias: float = 0.0
    endings: int = 0
    wait: str = "Wait"
    end_ids: tuple[int, ...] = ()
    hint: str = ""
    hint_at: int | None = None
    grace: int = 0
    grace_end: End = "sentence"
    loops: LoopRule | None = None
    confidence: ConfidenceRule | None = None

    def batch(self, markers: "Markers", slots: int) -> "ControlBatch":
        """See `Control.batch`."""
        from satisfice.intervention.budget_batch import ThinkingBudgetBatch

        return ThinkingBudgetBatch(markers, slots)


def budget_texts(markers: "Markers", control: ThinkingBudget) -> tuple[list[int], ...]:
    """Token ids of what `control` may force: closing after an unfinished line, closing, what follows a marker, wait,
    the hint."""
    thinking_format, tokenizer = markers.thinking_format, markers.tokenizer
    after = thinking_format.closing.removeprefix(thinking_format.close) + control.cue
    return (
        thinking_format.forced_close(tokenizer, "unfinished", control.cue),
        thinking_format.forced_close(tokenizer, "", control.cue),
        encode_after(tokenizer, after) if after else [],
        encode_after(tokenizer, control.wait) if control.endings else [],
        encode_after(tokenizer, control.hint) if control.hint and control.hint_at is not None else [],
    )


@functools.lru_cache(maxsize=16)
def single_tokens(tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The tokens that are one of `words`, by word; none where the tokenizer has no token for it.

    A token is a word if their texts agree apart from case and the white space around them.

    Args:
        tokenizer: the model's tokenizer.
        words: in lower case (casefolded), without space around them.
    """
    found: dict[str, tuple[int, ...]] = dict.fromkeys(words, ())
    for token, written in enumerate(token_bytes(tokenizer)):
        word = written.decode(errors="replace").strip().casefold()
        if word in found:
            found[word] = (*found[word], token)
    return found
