"""What may be asked of a model's thinking by keys: a request's to a server, or the arguments of a host's processor.

Every door reads the same keys and gets the same controls for them; what carries them there differs.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from satisfice.engines.control_batch import Markers
from satisfice.engines.control_setting import Control
from satisfice.intervention.controls import (
    MOST_TOP,
    MOST_WINDOW,
    ConfidenceRule,
    EndScaling,
    LoopRule,
    SuppressTokens,
    ThinkingBudget,
    budget_texts,
    single_tokens,
)
from satisfice.intervention.methods.confidence_exit import ConfidenceExit
from satisfice.intervention.methods.no_wait import NoWait
from satisfice.intervention.methods.soft_landing import SoftLanding
from satisfice.intervention.methods.stop_loops import StopLoops
from satisfice.intervention.text_ends import End
from satisfice.parameters import NUMBER, misfit, shown

IGNORE_DEFAULTS = "satisfice_defaults"
"""The key that, with 0, frees a request from a server's defaults."""

MOST_NUMBER = 10_000_000
MOST_TEXT = 500
"""Characters of a text that is forced."""

Count = Annotated[int, Field(ge=0, le=MOST_NUMBER), NUMBER]
Window = Annotated[int, Field(ge=1, le=MOST_WINDOW), NUMBER]


class OptionError(ValueError):
    """A request or a server's defaults that cannot be obeyed; the message says why."""


class Options(BaseModel):
    """What one request asks for. A key that is left out changes nothing.

    Attributes:
        thinking_temperature: divides the closing marker's logit while the model thinks; below 1 it stops sooner.
        thinking_bias: is added to that logit, in nats; above 0 it stops sooner.
        suppress_reflection: makes words that begin a second thought impossible while the model thinks (NoWait).
        max_thinking_tokens: closes thinking here.
        answer_cue: written after a marker that was forced.
        answer_tokens: of `max_tokens`, kept for the answer: thinking is closed early enough, and the end of the text
            inside thinking becomes the end of thinking.
        soft_thinking_tokens: from here on ending becomes more likely with every token, up to `max_thinking_tokens`.
        ramp_bias: by how much in all, in nats.
        min_thinking_endings: how many of the model's first endings are replaced by `wait_word`.
        wait_word: a text that invites second thoughts.
        hint: a text that is written into thinking before `max_thinking_tokens`.
        hint_lead: by how many tokens before.
        grace_tokens: how many tokens more the cap allows until there is a `grace_end`.
        grace_end: "sentence", "line", "paragraph" or "token".
        stop_loops: ends thinking that repeats itself, see `LoopRule`.
        loop_ngram, loop_repeats, loop_window, loop_periodic, loop_end, loop_grace: its `ngram`, `repeats`, ...
        confidence_above, confidence_below: end thinking where the model is so sure, or so unsure, see `ConfidenceRule`.
        confidence_window, confidence_min_tokens, confidence_end, confidence_top: its `window`, `least`, `end`, `top`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    thinking_temperature: Annotated[float, Field(ge=0.01, le=100), NUMBER] = 1.0
    thinking_bias: Annotated[float, Field(ge=-1000, le=1000), NUMBER] = 0.0
    suppress_reflection: bool = False
    max_thinking_tokens: Count | None = None
    answer_cue: str = Field(default="", max_length=MOST_TEXT)
    answer_tokens: Annotated[int, Field(ge=1, le=MOST_NUMBER), NUMBER] | None = None
    soft_thinking_tokens: Count | None = None
    ramp_bias: Annotated[float, Field(gt=0, le=1000), NUMBER] = 8.0
    min_thinking_endings: Annotated[int, Field(ge=0, le=64), NUMBER] = 0
    wait_word: str = Field(default="Wait", min_length=1, max_length=100)
    hint: str = Field(default="", max_length=MOST_TEXT)
    hint_lead: Count = SoftLanding.lead
    grace_tokens: Count = 0
    grace_end: End = SoftLanding.until
    stop_loops: bool = False
    loop_ngram: Window = StopLoops.ngram
    loop_repeats: Annotated[int, Field(ge=2, le=MOST_WINDOW), NUMBER] = StopLoops.repeats
    loop_window: Window = StopLoops.window
    loop_periodic: bool = StopLoops.periodic
    loop_end: End = StopLoops.until
    loop_grace: Count = StopLoops.grace
    confidence_above: Annotated[float, Field(ge=-1000, le=1000), NUMBER] | None = None
    confidence_below: Annotated[float, Field(ge=-1000, le=1000), NUMBER] | None = None
    confidence_window: Window = ConfidenceExit.window
    confidence_min_tokens: Count = ConfidenceExit.min_thinking
    confidence_end: End = ConfidenceExit.at
    confidence_top: Annotated[int, Field(ge=0, le=MOST_TOP), NUMBER] = 0

    @model_validator(mode="after")
    def _agree(self) -> "Options":
        given = self.model_fields_set
        if self.soft_thinking_tokens is not None and (
            self.max_thinking_tokens is None or self.soft_thinking_tokens >= self.max_thinking_tokens
        ):
            raise ValueError(
                f"soft_thinking_tokens is {self.soft_thinking_tokens} and max_thinking_tokens "
                f"{self.max_thinking_tokens}; the ramp needs a max_thinking_tokens above its beginning"
            )
        if "ramp_bias" in given and self.soft_thinking_tokens is None:
            raise ValueError("ramp_bias does nothing without soft_thinking_tokens, where the ramp begins")
        if self.answer_cue and self.max_thinking_tokens is None and self.answer_tokens is None and not self.exits:
            raise ValueError("answer_cue does nothing without max_thinking_tokens or answer_tokens")
        if "wait_word" in given and not self.min_thinking_endings:
            raise ValueError("wait_word does nothing without min_thinking_endings")
        self._land(given)
        self._exit(given)
        return self

    def _land(self, given: set[str]) -> None:
        """Refuse a landing that cannot be."""
        if (self.hint or self.grace_tokens) and self.max_thinking_tokens is None:
            name = "hint" if self.hint else "grace_tokens"
            raise ValueError(f"{name} does nothing without max_thinking_tokens, the cap to land at")
        if self.hint and self.max_thinking_tokens is not None and self.hint_lead >= self.max_thinking_tokens:
            raise ValueError(
                f"hint_lead is {self.hint_lead} and max_thinking_tokens {self.max_thinking_tokens}; the hint has to "
                "come after the start, so give a smaller hint_lead"
            )
        if "hint_lead" in given and not self.hint:
            raise ValueError("hint_lead does nothing without hint")
        if "grace_end" in given and not self.grace_tokens:
            raise ValueError("grace_end does nothing without grace_tokens")

    def _exit(self, given: set[str]) -> None:
        """Refuse rules of exits that cannot be."""
        loops = sorted(key for key in given if key.startswith("loop_"))
        if loops and not self.stop_loops:
            raise ValueError(f"{loops[0]} does nothing without stop_loops")
        if self.stop_loops and self.loop_window < self.loop_repeats * self.loop_ngram:
            raise ValueError(
                f"loop_window is {self.loop_window}, but {self.loop_repeats} times {self.loop_ngram} tokens "
                "(loop_repeats and loop_ngram) do not fit into it"
            )
        above, below = self.confidence_above, self.confidence_below
        further = sorted(key for key in given if key.startswith("confidence_"))
        if further and above is None and below is None:
            raise ValueError(f"{further[0]} does nothing without confidence_above or confidence_below")
        if above is not None and below is not None and below >= above:
            raise ValueError(f"confidence_below is {below:g} and confidence_above {above:g}; below must be the smaller")
        if above is not None and above > 0 and not self.confidence_top:
            raise ValueError(
                f"confidence_above is {above:g}, but a log-probability is 0 at most; above 0 are the values of "
                "confidence_top=20 and its like"
            )

    @property
    def exits(self) -> bool:
        """Whether thinking may be ended for what it is, at whatever length."""
        return self.stop_loops or self.confidence_above is not None or self.confidence_below is not None

    @property
    def writes(self) -> bool:
        """Whether tokens may be forced into the response."""
        return (
            self.max_thinking_tokens is not None
            or self.answer_tokens is not None
            or self.min_thinking_endings > 0
            or self.exits
        )

    def controls(self, markers: Markers, state: int, max_tokens: int, end_ids: tuple[int, ...]) -> list[Control]:
        """The controls that these options mean.

        Args:
            markers: the model's thinking format.
            state: the marker automaton's state where the response begins.
            max_tokens: most tokens that the response may have.
            end_ids: tokens that end a response.
        """
        found: list[Control] = []
        if self.thinking_temperature != 1 or self.thinking_bias:
            found.append(EndScaling(state=state, gain=1 / self.thinking_temperature - 1, bias=self.thinking_bias))
        if self.suppress_reflection:
            found.append(SuppressTokens(state=state, words=REFLECTION))
        if self.writes:
            found.append(self._budget(markers, state, max_tokens, end_ids))
        return found

    @property
    def confidence_rule(self) -> ConfidenceRule | None:
        """How sure, or how unsure, ends thinking."""
        if self.confidence_above is None and self.confidence_below is None:
            return None
        return ConfidenceRule(
            above=self.confidence_above,
            below=self.confidence_below,
            window=self.confidence_window,
            least=self.confidence_min_tokens,
            end=self.confidence_end,
            top=self.confidence_top,
        )

    def _budget(self, markers: Markers, state: int, max_tokens: int, end_ids: tuple[int, ...]) -> ThinkingBudget:
        loops = None
        if self.stop_loops:
            loops = LoopRule(
                ngram=self.loop_ngram,
                repeats=self.loop_repeats,
                window=self.loop_window,
                periodic=self.loop_periodic,
                end=self.loop_end,
                grace=self.loop_grace,
            )
        most = self.max_thinking_tokens
        budget = ThinkingBudget(
            state=state,
            most=most,
            cue=self.answer_cue,
            ramp_start=self.soft_thinking_tokens,
            ramp_bias=self.ramp_bias,
            endings=self.min_thinking_endings,
            wait=self.wait_word,
            end_ids=end_ids if self.answer_tokens is not None else (),
            hint=self.hint,
            hint_at=most - self.hint_lead if self.hint and most is not None else None,
            grace=self.grace_tokens,
            grace_end=self.grace_end,
            loops=loops,
            confidence=self.confidence_rule,
        )
        if self.answer_tokens is None:
            return budget
        room = max(0, max_tokens - self.answer_tokens - len(budget_texts(markers, budget)[0]))
        if most is None:
            return replace(budget, most=room)
        # What lands sooner than it was meant to lands as softly: its grace lies before the room's end, its hint as far
        # before the cap. A ramp keeps its slope: it is cut off, not compressed.
        sooner = min(room - min(room, self.grace_tokens), most)
        start, bias = budget.ramp_start, budget.ramp_bias
        if start is not None and sooner < most:
            bias *= max(0, sooner - start) / (most - start)
        hint_at = None if budget.hint_at is None else budget.hint_at - (most - sooner)
        return replace(budget, most=sooner, grace=min(room, self.grace_tokens), ramp_bias=bias, hint_at=hint_at)


REFLECTION = NoWait()._listed
"""The words of `suppress_reflection`: the default list of the method no-wait."""


def refuse_unknown(keys: Iterable[str], where: str) -> None:
    """Refuse keys that there are not.

    Args:
        keys: what is asked.
        where: what they came in, for the message.

    Raises:
        OptionError: it names the first such key, and what it may have been meant to be.
    """
    for key in sorted(set(keys) - Options.model_fields.keys()):
        near = difflib.get_close_matches(key, Options.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(Options.model_fields)}"
        raise OptionError(f"{where} has no key {key}; {hint}")


def checked(values: Mapping[str, Any], where: str) -> Options:
    """Options from values by key.

    Args:
        values: what is asked.
        where: what they came in, for the message.

    Raises:
        OptionError: a key does not exist, a value is out of place, or two do not go together.
    """
    try:
        return Options.model_validate(values)
    except ValidationError as error:
        reasons = []
        for found in error.errors():
            name = ".".join(map(str, found["loc"]))
            message = misfit(Options, found)
            reasons.append(f"{name} is {shown(found['input'])}; it {message}" if name else message)
        raise OptionError(f"{where}: {'; '.join(reasons)}") from None


def check_against_model(options: Options, markers: Markers, max_tokens: int | None, own_answer: bool = True) -> None:
    """Whether a model can obey.

    Args:
        options: what is asked.
        markers: the model's thinking format.
        max_tokens: as the request gives it; None where it does not.
        own_answer: whether `answer_tokens` is the request's own wish, not the server's default.

    Raises:
        OptionError: it cannot; the message says why.
    """
    close = markers.thinking_format.close
    for name, text in (("answer_cue", options.answer_cue), ("wait_word", options.wait_word), ("hint", options.hint)):
        if close in text:
            raise OptionError(f"{name} contains {close!r}, which is written anyway; leave it out")
    if options.suppress_reflection and not any(single_tokens(markers.tokenizer, REFLECTION).values()):
        raise OptionError(
            "suppress_reflection: this model's tokenizer has none of the words of reflection as one token"
        )
    if options.answer_tokens is not None and max_tokens is not None:
        closing = len(budget_texts(markers, ThinkingBudget(cue=options.answer_cue))[0])
        if max_tokens < options.answer_tokens + closing:
            way_out = (
                ""
                if own_answer
                else "; answer_tokens is this server's default: ask for more tokens, for a smaller answer_tokens in "
                f"vllm_xargs, or for none of its defaults with {IGNORE_DEFAULTS}=0"
            )
            raise OptionError(
                f"answer_tokens is {options.answer_tokens} and closing thinking takes {closing}, "
                f"but max_tokens is {max_tokens}{way_out}"
            )
