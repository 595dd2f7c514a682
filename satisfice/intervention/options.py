"""What may be asked of a model's thinking by keys: a request's to a server, or the arguments of a host's processor.

Every door reads the same keys and gets the same controls for them; what carries them there differs.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from satisfice.engines.control_batch import Markers
from satisfice.engines.control_setting import Control
from satisfice.intervention.controls import EndScaling, SuppressTokens, ThinkingBudget, budget_texts, single_tokens
from satisfice.intervention.methods.no_wait import NoWait
from satisfice.parameters import NUMBER, misfit, shown

IGNORE_DEFAULTS = "satisfice_defaults"
"""The key that, with 0, frees a request from a server's defaults."""

MOST_NUMBER = 10_000_000
MOST_TEXT = 500
"""Characters of a text that is forced."""

Count = Annotated[int, Field(ge=0, le=MOST_NUMBER), NUMBER]


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
        if self.answer_cue and self.max_thinking_tokens is None and self.answer_tokens is None:
            raise ValueError("answer_cue does nothing without max_thinking_tokens or answer_tokens")
        if "wait_word" in given and not self.min_thinking_endings:
            raise ValueError("wait_word does nothing without min_thinking_endings")
        return self

    @property
    def writes(self) -> bool:
        """Whether tokens may be forced into the response."""
        return self.max_thinking_tokens is not None or self.answer_tokens is not None or self.min_thinking_endings > 0

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

    def _budget(self, markers: Markers, state: int, max_tokens: int, end_ids: tuple[int, ...]) -> ThinkingBudget:
        budget = ThinkingBudget(
            state=state,
            most=self.max_thinking_tokens,
            cue=self.answer_cue,
            ramp_start=self.soft_thinking_tokens,
            ramp_bias=self.ramp_bias,
            endings=self.min_thinking_endings,
            wait=self.wait_word,
            end_ids=end_ids if self.answer_tokens is not None else (),
        )
        if self.answer_tokens is None:
            return budget
        room = max(0, max_tokens - self.answer_tokens - len(budget_texts(markers, budget)[0]))
        most = room if budget.most is None else min(room, budget.most)
        # A ramp that was meant to end at a later cap keeps its slope: it is cut off, not compressed.
        start, bias = budget.ramp_start, budget.ramp_bias
        if start is not None and budget.most is not None and most < budget.most:
            bias *= max(0, most - start) / (budget.most - start)
        return ThinkingBudget(
            state=state, most=most, cue=budget.cue, ramp_start=start, ramp_bias=bias,
            endings=budget.endings, wait=budget.wait, end_ids=budget.end_ids,
        )  # fmt: skip


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
    for name, text in (("answer_cue", options.answer_cue), ("wait_word", options.wait_word)):
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
