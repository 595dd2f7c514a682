"""What a request and a server may ask for: the keys of `vllm_xargs` and of a server's defaults, checked at the door."""

import difflib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from satisfice.engines.control_batch import Markers
from satisfice.engines.control_setting import Control
from satisfice.intervention.composed import Composed
from satisfice.intervention.controls import MOST_TOP, MOST_WINDOW, ConfidenceRule, LoopRule, ThinkingBudget
from satisfice.intervention.method import Method
from satisfice.intervention.methods.budget_forcing import BudgetForcing
from satisfice.intervention.methods.confidence_exit import ConfidenceExit
from satisfice.intervention.methods.no_wait import NoWait
from satisfice.intervention.methods.soft_landing import SoftLanding
from satisfice.intervention.methods.stop_loops import StopLoops
from satisfice.intervention.methods.temperature_scaling import TemperatureScaling
from satisfice.intervention.methods.thinking_budget import RampedBudget
from satisfice.intervention.methods.tldr import TLDR
from satisfice.intervention.options import (
    IGNORE_DEFAULTS,
    MOST_NUMBER,
    MOST_TEXT,
    OptionError,
    Options,
)
from satisfice.intervention.options import checked as _checked
from satisfice.levels import LEVELS

if TYPE_CHECKING:
    from satisfice.runs.certificate import Place

DEFAULTS_VARIABLE = "SATISFICE_DEFAULTS"
"""The environment variable that holds a server's defaults, as JSON."""

LEVEL = "thinking_level"
"""The one key that the prompt has to obey, see `Levels`."""

KEYS = (*Options.model_fields, LEVEL, IGNORE_DEFAULTS)

_OF_A_CAP = {"soft_thinking_tokens", "ramp_bias", "hint", "hint_lead", "grace_tokens", "grace_end"}


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
    if "max_thinking_tokens" in asked:  # a ramp and a landing belong to the cap they were set for
        inherited = {key: inherited[key] for key in inherited.keys() - _OF_A_CAP}
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


def read_defaults(additional_config: object) -> dict[str, Any]:
    """A server's settings: `--additional-config '{"satisfice": {...}}'` or, without it, the environment's.

    The environment may also name a certificate, as @FILE, see `certified_defaults`.

    Args:
        additional_config: vLLM's.

    Returns:
        values by key: those of a request, and `thinking_format`.

    Raises:
        OptionError: they are not what a server can obey.
    """
    where = "--additional-config satisfice"
    found = additional_config.get("satisfice") if isinstance(additional_config, Mapping) else None
    if found is None:
        where = DEFAULTS_VARIABLE
        given = os.environ.get(DEFAULTS_VARIABLE) or "{}"
        if given.startswith("@"):
            return certified_defaults(given[1:])
        try:
            found = json.loads(given)
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


def certified_defaults(path: str) -> dict[str, Any]:
    """The settings that stand for the certified method of a file of `satisfice calibrate`.

    Args:
        path: of the certificate.

    Raises:
        OptionError: it cannot be read, certifies nothing, or its method is none that runs inside vLLM.
    """
    # The room of runs is heavier than a plugin should be where nobody asks for it.
    from satisfice.runs.certificate import CertificateError, read_certificate

    where = f"{DEFAULTS_VARIABLE}=@{path}"
    try:
        method = read_certificate(path).chosen()
    except CertificateError as error:
        raise OptionError(f"{where}: {error}") from None
    values = _of_method(method)
    if values is None:
        raise OptionError(
            f"{where}: {method} does not run inside vLLM, which takes temperature-scaling, budget-forcing, "
            "thinking-budget, soft-landing, stop-loops, confidence-exit, no-wait and tldr: use `satisfice serve "
            "--calibrated`"
        )
    _checked({key: values[key] for key in values.keys() - {LEVEL}}, where)
    return values


def certificate_in_use(additional_config: object) -> str:
    """The file of the certificate that gives a server its defaults, "" where none does."""
    if isinstance(additional_config, Mapping) and additional_config.get("satisfice") is not None:
        return ""
    given = os.environ.get(DEFAULTS_VARIABLE) or ""
    return given[1:] if given.startswith("@") else ""


NOT_COMPARED = (
    "model, thinking format, the sampling of requests that name none and versions were compared with the certificate; "
    "the values of the weights, and what requests ask for (sampling and token limit of their own, a system turn, an "
    "instruction), are not known to the plugin and were not"
)
"""What a server's log says of its certificate, whatever differs."""


def certificate_warnings(path: str, place: "Place") -> list[str]:
    """What to log at a server's start about the certificate that it obeys, one sentence each.

    Args:
        path: of a certificate that has been read as defaults.
        place: what is known of the server.
    """
    from satisfice.runs.certificate import read_certificate, warnings

    said = warnings(read_certificate(path), place)
    return [f"{DEFAULTS_VARIABLE}=@{path}: {each}" for each in said]


def _of_method(method: Method) -> dict[str, Any] | None:
    """The keys that make vLLM do what a method does; None where there are none."""
    if isinstance(method, Composed):
        strategy, bending = _of_method(method.strategy), _of_method(method.bending)
        return None if strategy is None or bending is None else strategy | bending
    if isinstance(method, TemperatureScaling):
        return {"thinking_temperature": method.t} if method.mode == "scale" else {"thinking_bias": method.bias}
    if isinstance(method, BudgetForcing):
        wanted = {"max_thinking_tokens": method.max_thinking, "answer_cue": method.cue or None}
        ignoring = {"min_thinking_endings": method.ignore, "wait_word": method.wait} if method.ignore else {}
        return {key: value for key, value in wanted.items() if value is not None} | ignoring
    if isinstance(method, RampedBudget):
        capped = {"max_thinking_tokens": method.max_thinking, "answer_cue": method.cue or None}
        ramp = {"soft_thinking_tokens": method.ramp_start, "ramp_bias": method.ramp_bias} if method.ramp_bias else {}
        return {key: value for key, value in capped.items() if value is not None} | ramp
    if isinstance(method, SoftLanding):
        landing: dict[str, Any] = {"max_thinking_tokens": method.max_thinking}
        landing |= {"hint": method.hint, "hint_lead": method.lead} if method.hint else {}
        landing |= {"grace_tokens": method.grace, "grace_end": method.until} if method.grace else {}
        return landing | _cue(method.cue)
    if isinstance(method, StopLoops):
        loops: dict[str, Any] = {
            "loop_ngram": method.ngram,
            "loop_repeats": method.repeats,
            "loop_window": method.window,
        }
        loops |= {"loop_periodic": method.periodic, "loop_end": method.until, "loop_grace": method.grace}
        return {"stop_loops": True, **loops} | _cue(method.cue)
    if isinstance(method, ConfidenceExit):
        thresholds = {"confidence_above": method.above, "confidence_below": method.below}
        sure = {key: value for key, value in thresholds.items() if value is not None}
        top = method.top if method.measure == "group" else 0
        sure |= {"confidence_window": method.window, "confidence_min_tokens": method.min_thinking}
        return {**sure, "confidence_end": method.at, "confidence_top": top} | _cue(method.cue)
    if method == NoWait():
        return {"suppress_reflection": True}
    return {LEVEL: method.level} if isinstance(method, TLDR) else None


def _cue(cue: str) -> dict[str, Any]:
    return {"answer_cue": cue} if cue else {}


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
    rules = [value for value in vars(control).values() if isinstance(value, LoopRule | ConfidenceRule)]
    for name, value in [pair for each in (control, *rules) for pair in vars(each).items()]:
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
        if control.loops is not None:
            _check_loops(control.loops)
        if control.confidence is not None:
            _within("confidence.window", control.confidence.window, 1, MOST_WINDOW)
            _within("confidence.top", control.confidence.top, 0, MOST_TOP)


def _check_loops(rule: LoopRule) -> None:
    _within("loops.ngram", rule.ngram, 1, MOST_WINDOW)
    _within("loops.repeats", rule.repeats, 2, MOST_WINDOW)
    _within("loops.window", rule.window, rule.ngram * rule.repeats, MOST_WINDOW)


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OptionError(f"{name} is {value}; it must be within {low}..{high}")
