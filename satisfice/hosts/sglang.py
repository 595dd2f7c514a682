"""satisfice inside SGLang: the vLLM plugin's keys, by a custom logit processor that a request names.

    python -m sglang.launch_server --model-path MODEL --enable-custom-logit-processor --disable-overlap-schedule
    client.chat.completions.create(..., extra_body=request(max_thinking_tokens=256))

SGLang makes a processor anew for every batch, hands it the rows of the requests that named it, and lets it look at
the requests themselves. So what is known of a request is kept beside the class, by request, and is brought forward
by the tokens that have come since: one a step.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import torch

from satisfice.engines.control_batch import Markers
from satisfice.intervention.control_table import NOBODY, ControlTable
from satisfice.intervention.options import OptionError, Options, check_against_model, checked, refuse_unknown
from satisfice.intervention.prompt_reader import PromptReader
from satisfice.thinking import ThinkingFormat, UnknownThinkingFormat

try:
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
except ModuleNotFoundError:  # where requests are written, and not served
    CustomLogitProcessor = object

THINKING_FORMAT = "thinking_format"
"""The one key that is not the vLLM plugin's: how the model marks thinking, where its tokenizer does not show it."""

FIRST_SLOTS = 64
"""Requests that a table holds at first; it is made twice as large when it is full."""

OVERLAP = (
    "satisfice needs every token before the next one is chosen, but this server overlaps the two: start it with "
    "--disable-overlap-schedule"
)
SPECULATION = (
    "satisfice cannot follow drafted tokens, which SGLang does not show to a logit processor: start the server without "
    "speculative decoding"
)

PROCESSOR = json.dumps({"callable": b"csatisfice.hosts.sglang\nThinkingControls\n.".hex()})
"""The class as a request names it: a pickled reference, so that the server needs satisfice installed, and who sends the
request needs nothing. `ThinkingControls.to_str()` says the same at greater length."""


def request(thinking_format: str | None = None, **keys: Any) -> dict[str, Any]:
    """What a request's body holds besides: of `/v1/chat/completions` and `/v1/completions`, as it is.

    For `/generate`, `custom_params` belongs into `sampling_params`.

    Args:
        thinking_format: how the model marks thinking, where its tokenizer does not show it.
        keys: see `satisfice.intervention.options.Options`.

    Raises:
        OptionError: a key does not exist or does not fit. What the model cannot obey the server answers with 400.
    """
    refuse_unknown(keys, "request")
    checked(keys, "request")
    if thinking_format is not None:
        keys[THINKING_FORMAT] = thinking_format
    return {"custom_logit_processor": PROCESSOR, "custom_params": keys}


@dataclass
class _Followed:
    """A request that is under way.

    Attributes:
        request: SGLang's own record of it.
        slot: in the table.
        seen: how many of its tokens the table has seen.
        last: the last of them; None before the first.
    """

    request: Any
    slot: int
    seen: int = 0
    last: int | None = None


class _Model:
    """Everything that is known of the requests of one model: one for each thinking format, vocabulary and device."""

    def __init__(self, thinking: ThinkingFormat, tokenizer: Any, vocabulary: int, device: torch.device) -> None:
        self._markers = Markers(thinking, tokenizer, vocabulary, device)
        self._reader = PromptReader(thinking, tokenizer)
        self._table = ControlTable(self._markers, FIRST_SLOTS + 1)
        self._followed: dict[int, _Followed] = {}  # by id; the record is held, so no other request has the same

    def follow(self, request: Any, keys: Mapping[str, Any]) -> _Followed:
        """The request, admitted where it is new, or where it does not go on from what was seen of it.

        Raises:
            OptionError: the model cannot obey it.
        """
        known, written = self._followed.get(id(request)), request.output_ids
        if known is not None and (
            known.seen == 0 or (len(written) >= known.seen and written[known.seen - 1] == known.last)
        ):
            return known
        options = checked(keys, "custom_params")
        most = request.sampling_params.max_new_tokens
        check_against_model(options, self._markers, most)
        if known is None:
            known = self._followed[id(request)] = _Followed(request, self._free_slot())
        self._admit(known, options)
        return known

    def advance(self, rows: Sequence[_Followed | None]) -> torch.Tensor:
        """Take note of the tokens that the requests have written since; (B,) their slots."""
        slots = [NOBODY if each is None else each.slot for each in rows]
        behind = [each for each in rows if each is not None and each.seen < len(each.request.output_ids)]
        while behind:
            tokens = [int(each.request.output_ids[each.seen]) for each in behind]
            self._table.observe(self._tensor(tokens), self._tensor([each.slot for each in behind]))
            for each, token in zip(behind, tokens, strict=True):
                each.seen, each.last = each.seen + 1, token
            behind = [each for each in behind if each.seen < len(each.request.output_ids)]
        return self._tensor(slots)

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """Edit logits in place; (B, V) and (B,)."""
        self._table.look(logits, slots)
        self._table.apply(logits, slots)

    def _admit(self, known: _Followed, options: Options) -> None:
        request = known.request
        written = [int(token) for token in request.output_ids]
        state = self._reader.state([int(token) for token in request.origin_input_ids])
        most = request.sampling_params.max_new_tokens or 2**31
        ends = tuple(sorted({int(token) for token in request.eos_token_ids or ()}))
        self._table.admit(known.slot, options.controls(self._markers, state, most, ends), written)
        known.seen, known.last = len(written), written[-1] if written else None

    def _free_slot(self) -> int:
        for key in [key for key, each in self._followed.items() if each.request.finished()]:
            self._table.release(self._followed.pop(key).slot)
        taken = {each.slot for each in self._followed.values()}
        if len(taken) == self._table.slots - 1:
            self._table = ControlTable(self._markers, 2 * self._table.slots)
            for each in self._followed.values():
                self._admit(each, checked(_keys(each.request.sampling_params.custom_params), "custom_params"))
        return next(slot for slot in range(1, self._table.slots) if slot not in taken)

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._markers.device)


_MODELS: dict[tuple[int, str, int, str], _Model] = {}
"""By tokenizer, thinking format, vocabulary and device; a server has one, or a few."""


class ThinkingControls(CustomLogitProcessor):  # type: ignore[misc,valid-type]
    """A request's controls in SGLang, by the keys in its `custom_params`.

    A request that cannot be obeyed is ended with status 400 and a reason; the others of its batch go on.
    """

    def __call__(
        self, logits: torch.Tensor, custom_param_list: list[dict[str, Any] | None] | None = None
    ) -> torch.Tensor:
        """Edit next-token logits.

        Args:
            logits: (B, V), of the requests that named this class, in their order.
            custom_param_list: (B,) their `custom_params`, each with the request itself under `__req__`.

        Returns:
            `logits`, edited in place.
        """
        asked = [params for params in custom_param_list or () if params is not None]
        reason = SPECULATION if len(logits) != len(custom_param_list or ()) else OVERLAP if _overlaps() else ""
        if reason:
            for params in asked:
                _refuse(params["__req__"], reason)
            return logits
        rows: dict[_Model, list[_Followed | None]] = {}
        for row, given in enumerate(custom_param_list or ()):
            if given is None or not _keys(given):
                continue
            try:
                refuse_unknown(given.keys() - {"__req__", THINKING_FORMAT}, "custom_params")
                model = _model_of(given, logits)
                followed = model.follow(given["__req__"], _keys(given))
            except (OptionError, UnknownThinkingFormat, ValueError) as error:
                _refuse(given["__req__"], str(error))
                continue
            rows.setdefault(model, [None] * len(logits))[row] = followed
        for model, followed_rows in rows.items():
            model.apply(logits, model.advance(followed_rows))
        return logits


def _keys(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (params or {}).items() if key not in ("__req__", THINKING_FORMAT)}


def _model_of(params: Mapping[str, Any], logits: torch.Tensor) -> _Model:
    """Raises ValueError where the thinking format is unknown, or the server has no tokenizer."""
    tokenizer = params["__req__"].tokenizer
    if tokenizer is None:
        raise OptionError("satisfice reads markers from text: start the server without --skip-tokenizer-init")
    written = params.get(THINKING_FORMAT)
    key = (id(tokenizer), str(written), logits.shape[1], str(logits.device))
    if key not in _MODELS:
        thinking = ThinkingFormat.detect(tokenizer) if written is None else ThinkingFormat.parse(str(written))
        _MODELS[key] = _Model(thinking, tokenizer, logits.shape[1], logits.device)
    return _MODELS[key]


def _overlaps() -> bool:
    """Whether the server chooses a token before the one before it is in the request's record."""
    from sglang.srt.server_args import get_global_server_args

    return not get_global_server_args().disable_overlap_schedule


def _refuse(request: Any, reason: str) -> None:
    """End a request as SGLang ends one that it cannot parse; raising would end the server."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    request.to_finish = FINISH_ABORT(reason, HTTPStatus.BAD_REQUEST, "BadRequestError")
