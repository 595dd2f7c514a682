"""What a request may ask for: the keys of its `vllm_xargs`, checked before it is let in, and the controls they mean."""

import difflib
import json
import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from satisfice.engines.control import Control, Markers
from satisfice.intervention.controls import EndScaling, SuppressTokens, ThinkingBudget, budget_texts, single_tokens
from satisfice.intervention.no_wait import NoWait
from satisfice.levels import LEVELS

DEFAULTS_VARIABLE = "SATISFICE_DEFAULTS"
"""The environment variable that holds a server's defaults, as JSON."""

LEVEL = "thinking_level"
"""The one key that the prompt has to obey, see `Levels`."""

IGNORE_DEFAULTS = "satisfice_defaults"
"""The key that, with 0, frees a request from the server's defaults."""

MOST_NUMBER = 10_000_000
MOST_TEXT = 500
"""Characters of a text that is forced."""

Count = Annotated[int, Field(ge=0, le=MOST_NUMBER)]


class OptionError(ValueError):
    """A request or a server's defaults that cannot be obeyed; the message says why."""


class Options(BaseModel):
    """What one request asks for. A key that is left out changes nothing.

    Attributes:
        thinking_temperature: divides the closing marker's logit while the model thinks; below 1 it stops sooner.
        thinking_bias: is added to that logit, in nats; above 0 it stops sooner.
        suppress_reflection: makes words that begin a second thought impossible while the model thinks (NoWait).
        max_thinking_tokens: closes thinking here.
        answer_cue: written behind a marker that was forced.
        answer_tokens: of `max_tokens`, kept for the answer: thinking is closed early enough, and the end of the text
            inside thinking becomes the end of thinking.
        soft_thinking_tokens: from here on ending becomes more likely with every token, up to `max_thinking_tokens`.
        ramp_bias: by how much in all, in nats.
        min_thinking_endings: how many of the model's first endings are replaced by `wait_word`.
        wait_word: a text that invites second thoughts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    thinking_temperature: float = Field(default=1.0, ge=0.01, le=100)
    thinking_bias: float = Field(default=0.0, ge=-1000, le=1000)
    suppress_reflection: bool = False
    max_thinking_tokens: Count | None = None
    answer_cue: str = Field(default="", max_length=MOST_TEXT)
    answer_tokens: Annotated[int, Field(ge=1, le=MOST_NUMBER)] | None = None
    soft_thinking_tokens: Count | None = None
    ramp_bias: float = Field(default=8.0, gt=0, le=1000)
    min_thinking_endings: int = Field(default=0, ge=0, le=64)
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

KEYS = (*Options.model_fields, LEVEL, IGNORE_DEFAULTS)


def read_options(extra_args: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> Options | None:
    """What a request asks for, over a server's defaults; None where that is nothing.

    Args:
        extra_args: of the request, those of other plugins among them.
        defaults: of the server.

    Raises:
        OptionError: a value is out of place, a key is misspelt, or `thinking_level` has not been taken care of.
    """
    given = dict(extra_args or {})
    asked = {key: value for key, value in given.items() if key in Options.model_fields}
    if given:
        for key in given.keys() - set(KEYS):
            if close := difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.85):
                raise OptionError(f"vllm_xargs has no {key}; did you mean {close[0]}?")
        if LEVEL in given:
            raise OptionError(
                f"{LEVEL} is an instruction in the prompt, which only the middleware can write: start the server with "
                "--middleware satisfice.vllm_plugin.Levels and ask at /v1/chat/completions"
            )
        if frees(given):
            defaults = {}
    inherited = {key: value for key, value in defaults.items() if key in Options.model_fields}
    if not asked and not inherited:
        return None
    if "max_thinking_tokens" in asked:  # a ramp belongs to the cap it was set for
        inherited = {key: inherited[key] for key in inherited.keys() - {"soft_thinking_tokens", "ramp_bias"}}
    return _checked({**inherited, **asked}, "vllm_xargs")


def frees(extra_args: Mapping[str, Any]) -> bool:
    """Whether a request wants none of the server's defaults.

    Raises:
        OptionError: it cannot be told.
    """
    value = extra_args.get(IGNORE_DEFAULTS, 1)
    if value not in (0, 1, "0", "1", "false", "true"):
        raise OptionError(f"{IGNORE_DEFAULTS} is {value!r}; use 0 for a request without the server's defaults")
    return value in (0, "0", "false")


def _checked(values: Mapping[str, Any], where: str) -> Options:
    try:
        return Options.model_validate(values)
    except ValidationError as error:
        reasons = []
        for found in error.errors():
            name = ".".join(map(str, found["loc"]))
            message = found["msg"].removeprefix("Value error, ")
            reasons.append(f"{name} is {found['input']!r}: {message}" if name else message)
        raise OptionError(f"{where}: {'; '.join(reasons)}") from None


def read_defaults(additional_config: object) -> dict[str, Any]:
    """A server's settings: `--additional-config '{"satisfice": {...}}'` or, without it, the environment's.

    Returns:
        values by key: those of a request, and `thinking_format`.

    Raises:
        OptionError: they are not what a server can obey.
    """
    where = "--additional-config satisfice"
    found = additional_config.get("satisfice") if isinstance(additional_config, Mapping) else None
    if found is None:
        where = DEFAULTS_VARIABLE
        try:
            found = json.loads(os.environ.get(DEFAULTS_VARIABLE) or "{}")
        except ValueError as error:
            raise OptionError(f"{where} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise OptionError(f'{where} must be a JSON object such as {{"thinking_temperature": 0.9}}, not {found!r}')
    values = dict(found)
    for key in ("thinking_format", LEVEL):
        if not isinstance(values.get(key, ""), str):
            raise OptionError(f"{where}: {key} is {values[key]!r}; it must be a text")
    if values.get(LEVEL, LEVELS[0]) not in LEVELS:
        raise OptionError(f"{where}: {LEVEL} is {values[LEVEL]!r}; use one of {', '.join(LEVELS)}")
    _checked({key: values[key] for key in values.keys() - {"thinking_format", LEVEL}}, where)
    return values


def check_against_model(options: Options, markers: Markers, max_tokens: int | None) -> None:
    """Whether a model can obey.

    Args:
        options: what is asked.
        markers: the model's thinking format.
        max_tokens: as the request gives it; None where it does not.

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
            raise OptionError(
                f"answer_tokens is {options.answer_tokens} and closing thinking takes {closing}, "
                f"but max_tokens is {max_tokens}"
            )


def check_sent(control: Control, markers: Markers) -> None:
    """Whether a control that came whole can be run beside those of other requests.

    Args:
        control: what was sent.
        markers: the model's thinking format.

    Raises:
        OptionError: it names what this model has not, or is out of all proportion; the message says why.
    """
    states = len(markers.thinking)
    if not 0 <= control.state < states:
        raise OptionError(f"state is {control.state}; this model's markers have 0..{states - 1}")
    for name, value in vars(control).items():
        if isinstance(value, int | float) and abs(value) > MOST_NUMBER:
            raise OptionError(f"{name} is {value}; at most {MOST_NUMBER:,} can be obeyed")
        if isinstance(value, str) and len(value) > MOST_TEXT:
            raise OptionError(f"{name} has {len(value)} characters; at most {MOST_TEXT} can be obeyed")
        if isinstance(value, tuple) and len(value) > MOST_TEXT:
            raise OptionError(f"{name} has {len(value)} entries; at most {MOST_TEXT} can be obeyed")
    if isinstance(control, ThinkingBudget):
        for token in control.end_ids:
            if not 0 <= token < markers.vocabulary_size:
                raise OptionError(f"end_ids holds {token}; this model's tokens are 0..{markers.vocabulary_size - 1}")
        if control.endings and not control.wait:
            raise OptionError("wait is empty; endings needs a text to write")
