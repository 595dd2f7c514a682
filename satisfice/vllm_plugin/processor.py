"""The logits processor that both of vLLM's model runners accept.

Runner V1 (vLLM's only one before 0.31, and still that of plain CPUs) tells about requests by their row and hands over
their tokens as lists; runner V2 tells about them by a slot of its own and keeps their tokens on the device. Both load
every class they find under the entry point, and V2 refuses to start with one that has not its interface. So one class
has both.
"""

import itertools
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as V1Processor

from satisfice.engines.control_batch import Markers
from satisfice.engines.control_setting import Control, decode_control
from satisfice.intervention.control_table import NOBODY, ControlTable
from satisfice.intervention.controls import ConfidenceRule, ThinkingBudget
from satisfice.intervention.drafted import DraftedTokens
from satisfice.intervention.options import OptionError, Options, check_against_model
from satisfice.intervention.prompt_reader import PromptReader
from satisfice.thinking import FAMILIES, ThinkingFormat, UnknownThinkingFormat
from satisfice.vllm_plugin.options import (
    NOT_COMPARED,
    certificate_in_use,
    certificate_warnings,
    check_sent,
    read_defaults,
    read_options,
)

if TYPE_CHECKING:
    from satisfice.runs.certificate import Place

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2Processor
except ImportError:  # vLLM before 0.31 has no such runner

    class V2Processor:  # type: ignore[no-redef]
        """Stands in for the interface that this vLLM does not have."""


try:
    from vllm.exceptions import VLLMValidationError
except ImportError:  # earlier versions turn any ValueError into an answer to the client
    VLLMValidationError = ValueError

logger = logging.getLogger("vllm.satisfice")

CONTROL = "satisfice_control"
"""The key of a control that satisfice's openai engine sends whole; it takes the place of all options."""


# -- what is served


@dataclass(frozen=True)
class Served:
    """What a plugin has to know of a server's model.

    Attributes:
        why_not: why no request can be controlled; empty where it can.
        defaults: the server's defaults.
        markers: the thinking format, on the CPU; None where `why_not` says why.
        reader: of prompts; None likewise.
        end_ids: tokens that end a response.
        drafts: tokens that are drafted at once at most; 0 without speculative decoding.
    """

    why_not: str
    defaults: dict[str, Any]
    markers: Markers | None = None
    reader: PromptReader | None = None
    end_ids: tuple[int, ...] = ()
    drafts: int = 0

    @classmethod
    def of(cls, vllm_config: Any) -> "Served":
        """What a configuration of vLLM says.

        Raises:
            OptionError: the server's defaults cannot be obeyed.
        """
        defaults = read_defaults(vllm_config.additional_config)
        served = cls._without_check(vllm_config, defaults)
        if path := certificate_in_use(vllm_config.additional_config):
            for said in certificate_warnings(path, _place(vllm_config, served.markers)):
                logger.warning(said)
            logger.info("%s: %s", path, NOT_COMPARED)
        options = read_options(None, defaults)
        if options is not None:
            if served.markers is None:
                raise OptionError(f"satisfice's defaults cannot be obeyed: {served.why_not}")
            check_against_model(options, served.markers, None)
            if served.drafts:
                _check_drafted(options.confidence_rule)
        return served

    @classmethod
    def _without_check(cls, vllm_config: Any, defaults: dict[str, Any]) -> "Served":
        speculation = vllm_config.speculative_config
        if speculation is not None and not getattr(vllm_config, "use_v2_model_runner", False):
            # It drops installed processors there, without a word to them.
            return cls(
                "under speculative decoding vLLM's model runner V1 shows its logits to no processor: start the server "
                "without it, or with runner V2 (VLLM_USE_V2_MODEL_RUNNER=1)",
                defaults,
            )
        if _sees_no_tokens(vllm_config):
            return cls(
                "with asynchronous scheduling, this model runner shows its tokens only to a processor that it was "
                "given by name: start the server with --logits-processors "
                f"{ThinkingControls.__module__}:ThinkingControls, or with --no-async-scheduling",
                defaults,
            )
        model_config = vllm_config.model_config
        tokenizer = _tokenizer(model_config)
        if tokenizer is None:
            return cls("satisfice needs the model's tokenizer, and it must be one of transformers", defaults)
        try:
            thinking_format = _thinking_format(vllm_config, tokenizer, defaults.get("thinking_format"))
        except UnknownThinkingFormat:
            return cls(
                f"cannot tell how {model_config.model} marks its thinking: no known marker is in its vocabulary or "
                "its chat template; start the server with the markers, as in --additional-config "
                """'{"satisfice": {"thinking_format": "<think>,</think>"}}'""",
                defaults,
            )
        except ValueError as error:
            raise OptionError(f"satisfice: {error}") from None
        markers = Markers(thinking_format, tokenizer, model_config.get_vocab_size())
        ends = model_config.try_get_generation_config().get("eos_token_id")
        end_ids = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
        return cls(
            "",
            defaults,
            markers,
            PromptReader(thinking_format, tokenizer),
            tuple(dict.fromkeys(token for token in end_ids if token is not None)),
            0 if speculation is None else speculation.num_speculative_tokens,
        )

    def controls(self, parameters: Any, prompt_ids: list[int] | None) -> list[Control]:
        """What a request's parameters ask for."""
        if self.markers is not None and (sent := _sent(parameters, self.markers)) is not None:
            return [sent]
        options = read_options(parameters.extra_args, self.defaults)
        if options is None or self.markers is None:
            return []
        assert self.reader is not None
        if parameters.structured_outputs is not None and options.writes:
            return []  # from the server's defaults: a request of its own was refused on arrival
        state = self.reader.state(prompt_ids)
        end_ids = (*self.end_ids, *(parameters.stop_token_ids or ()))
        return options.controls(self.markers, state, parameters.max_tokens or 2**31, end_ids)


def _place(vllm_config: Any, markers: Markers | None) -> "Place":
    """What a certificate is compared with: the model's name, its markers, the sampling of requests that name none, and
    the versions of packages."""
    from satisfice.runs.certificate import Place
    from satisfice.runs.experiment import versions_of

    model_config = vllm_config.model_config
    name = f"vllm:{model_config.model}"
    sampling = None
    if (read := getattr(model_config, "get_diff_sampling_param", None)) is not None:
        # What the model's authors or the operator set, over vLLM's own; the limit of a response is each request's.
        sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0} | (read() or {})
        sampling["top_k"] = max(0, sampling["top_k"])
    thinking = None if markers is None else markers.thinking_format
    return Place(name, None, thinking, sampling, versions=versions_of(name))


def _sees_no_tokens(vllm_config: Any) -> bool:
    """Whether runner V1 would leave placeholders in the lists of tokens."""
    return bool(
        vllm_config.scheduler_config.async_scheduling
        and not getattr(vllm_config, "use_v2_model_runner", False)
        and not _named(vllm_config)
    )


def _named(vllm_config: Any) -> bool:
    """Whether the server was told to use this processor, besides finding it installed."""
    own = f"{ThinkingControls.__module__}:ThinkingControls"
    return any(kind in (ThinkingControls, own) for kind in vllm_config.model_config.logits_processors or ())


def _tokenizer(model_config: Any) -> Any:
    try:
        from vllm.tokenizers import cached_tokenizer_from_config
    except ImportError:
        from vllm.transformers_utils.tokenizer import cached_tokenizer_from_configs as cached_tokenizer_from_config
    tokenizer = None if model_config.skip_tokenizer_init else cached_tokenizer_from_config(model_config)
    return tokenizer if hasattr(tokenizer, "backend_tokenizer") and hasattr(tokenizer, "chat_template") else None


def _thinking_format(vllm_config: Any, tokenizer: Any, given: str | None) -> ThinkingFormat:
    """What the server was told, what its reasoning parser knows, or what the tokenizer shows."""
    if given:
        return ThinkingFormat.parse(given)
    reasoning = getattr(vllm_config, "reasoning_config", None)
    parsers = (reasoning, getattr(vllm_config, "structured_outputs_config", None))
    name = next((found for config in parsers if (found := getattr(config, "reasoning_parser", ""))), "")
    markers = _parser_markers(name, tokenizer) if name else None
    try:
        detected = ThinkingFormat.detect(tokenizer, vllm_config.model_config.model)
    except UnknownThinkingFormat:
        if markers is None and reasoning is not None:
            markers = (reasoning.reasoning_start_str, reasoning.reasoning_end_str)
        if markers is None or not all(markers):
            raise
        detected = None
    if markers is None or (detected is not None and markers == (detected.open, detected.close)):
        assert detected is not None
        return detected
    families = (family for family in FAMILIES.values() if (family.open, family.close) == markers)
    return next(families, None) or ThinkingFormat.custom(*markers)


def _parser_markers(name: str, tokenizer: Any) -> tuple[str, str] | None:
    from vllm.reasoning import ReasoningParserManager

    try:
        parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer)
        start, end = parser.reasoning_start_str, parser.reasoning_end_str
    except Exception:  # a parser for another tokenizer fails in its own way; vLLM itself reports it
        return None
    return (start.strip(), end.strip()) if start and end else None


# -- checking a request on arrival


_SERVED: dict[int, tuple[Any, Served]] = {}
"""By the identity of a configuration, which is kept so that no other takes its place."""


def _served_on_arrival() -> Served | None:
    """What the server behind the current call serves.

    vLLM hands `validate_params` a request and nothing else, although its caller holds the configuration that decides
    whether the request can be obeyed. So the configuration is looked up in the caller.
    """
    frame = sys._getframe(1)
    while frame is not None:
        config = getattr(frame.f_locals.get("self"), "vllm_config", None)
        if config is not None:
            if id(config) not in _SERVED:
                _SERVED[id(config)] = (config, Served.of(config))
            return _SERVED[id(config)][1]
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _sent(parameters: Any, markers: Markers) -> Control | None:
    """The control that a request brings along, None where it brings none.

    Raises:
        OptionError: it brings something else, or what this model cannot obey.
    """
    text = (parameters.extra_args or {}).get(CONTROL)
    if text is None:
        return None
    try:
        control = decode_control(str(text))
        check_sent(control, markers)
        if parameters.structured_outputs is not None and isinstance(control, ThinkingBudget):
            raise OptionError("it writes tokens of its own, for which a structured output has no place")
    except ValueError as error:
        raise OptionError(f"{CONTROL}: {error}") from None
    return control


def _check(parameters: Any) -> None:
    given = parameters.extra_args or {}
    served = _served_on_arrival()
    options = read_options(given, {} if served is None else served.defaults)
    asks = not Options.model_fields.keys().isdisjoint(given)
    if CONTROL in given and asks:
        raise OptionError(f"{CONTROL} takes the place of all other keys of satisfice; leave them out")
    if served is None:
        return
    # What the defaults alone ask for changes no request that cannot obey it, but for one: no thinking is not silent.
    if not (CONTROL in given or asks):
        if options is not None and served.markers is not None and parameters.structured_outputs is None:
            check_against_model(options, served.markers, parameters.max_tokens, own_answer=False)
        return
    if served.markers is None:
        raise OptionError(served.why_not)
    if CONTROL in given:
        sent = _sent(parameters, served.markers)
        if served.drafts and isinstance(sent, ThinkingBudget):
            _check_drafted(sent.confidence)
        return
    assert options is not None
    if served.drafts:
        _check_drafted(options.confidence_rule)
    if parameters.structured_outputs is not None and options.writes:
        raise OptionError(
            "max_thinking_tokens, answer_tokens, min_thinking_endings, stop_loops and confidence_above or _below write "
            "tokens of their own, for which a structured output has no place; use thinking_temperature or "
            "thinking_bias, or vLLM's thinking_token_budget"
        )
    check_against_model(options, served.markers, parameters.max_tokens, own_answer="answer_tokens" in given)


def _check_drafted(rule: ConfidenceRule | None) -> None:
    """Refuse a rule that cannot be followed through tokens that are drafted.

    It would need the whole distribution after each of them, until the next step says which were accepted.
    """
    if rule is not None and not rule.top:
        raise OptionError(
            "confidence_above and confidence_below read the probability of each token, which is not kept for tokens "
            "that are drafted: under speculative decoding say confidence_top=20, which reads the likeliest ones"
        )


# -- the processor


@dataclass
class _Row:
    """A controlled request of runner V1: its slot, and its tokens so far, of which `seen` are taken note of."""

    slot: int
    output_ids: list[int]
    seen: int = field(default=0)


class ThinkingControls(V1Processor, V2Processor):
    """satisfice's controls of thinking, for both of vLLM's model runners."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """See vLLM; the request is refused with the reason."""
        try:
            _check(sampling_params)
        except OptionError as error:
            raise VLLMValidationError(str(error)) from None

    def __init__(self, vllm_config: Any, *place: Any) -> None:
        """Either interface's: `(device, is_pin_memory)` on V1, `(req_states,)` on V2."""
        self._table: ControlTable | None = None
        self._served = self._decide(vllm_config)
        if self._served.markers is None:
            logger.info("satisfice stays out of the way: %s", self._served.why_not)
            return
        self._v2: Any = place[0] if len(place) == 1 else None
        device = self._v2.device if self._v2 is not None else torch.device(place[0])
        requests = self._v2.max_num_reqs if self._v2 is not None else vllm_config.scheduler_config.max_num_seqs
        on_cpu = self._served.markers
        markers = Markers(on_cpu.thinking_format, on_cpu.tokenizer, on_cpu.vocabulary_size, device)
        self._table = ControlTable(markers, requests + 1)
        # V1: requests by row, free slots, and the slots of all rows, and of those with requests, as they are now.
        self._rows: dict[int, _Row] = {}
        self._free = list(range(requests, NOBODY, -1))
        self._slots: torch.Tensor | None = None
        self._controlled_slots: np.ndarray | None = None
        # V2: slots are vLLM's own, one higher; and the position of the last token that was taken note of.
        self._new: dict[int, Any] = {}
        self._controlled = torch.zeros(requests, dtype=torch.bool).numpy()
        self._noted = torch.zeros(requests + 1, dtype=torch.int64, device=device)
        self._drafted = DraftedTokens(self._table, self._served.drafts)

    def _decide(self, vllm_config: Any) -> Served:
        return Served.of(vllm_config)

    # -- runner V1

    def is_argmax_invariant(self) -> bool:
        """See vLLM: greedy decoding is controlled, too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """See vLLM: requests leave, enter and change rows."""
        if batch_update is None or self._table is None:
            return
        for row in batch_update.removed:
            self._leave(row)
        for row, parameters, prompt_ids, output_ids in batch_update.added:
            self._leave(row)
            written = list(itertools.takewhile(lambda token: token >= 0, output_ids))
            if self._admit(self._free[-1], parameters, prompt_ids, written):
                self._rows[row] = _Row(self._free.pop(), output_ids, len(written))
        for origin, target, direction in batch_update.moved:
            moving, other = self._rows.pop(origin, None), self._rows.pop(target, None)
            if moving is not None:
                self._rows[target] = moving
            if other is not None and direction is MoveDirectionality.SWAP:
                self._rows[origin] = other
            elif other is not None:
                self._free_slot(other)
        self._slots = self._controlled_slots = None

    def _leave(self, row: int) -> None:
        if (request := self._rows.pop(row, None)) is not None:
            self._free_slot(request)

    def _free_slot(self, request: _Row) -> None:
        assert self._table is not None
        self._table.release(request.slot)
        self._free.append(request.slot)

    def _apply_v1(self, logits: torch.Tensor) -> torch.Tensor:
        if self._table is None or not self._rows:
            return logits
        tokens_of_all = []
        for row in self._rows.values():
            if len(row.output_ids) != row.seen + 1 or row.output_ids[row.seen] < 0:
                return self._apply_uneven(logits)
            tokens_of_all.append(row.output_ids[row.seen])
        # Nearly always: one token of every request.
        for row in self._rows.values():
            row.seen += 1
        if self._controlled_slots is None:
            self._controlled_slots = np.array([row.slot for row in self._rows.values()])
        self._table.follow(np.array(tokens_of_all), self._controlled_slots)
        rows = self._slots_of(logits)
        self._table.look(logits, rows)
        self._table.apply(logits, rows)
        return logits

    def _apply_uneven(self, logits: torch.Tensor) -> torch.Tensor:
        """Where some requests have no new token, or several, as some were placeholders before."""
        assert self._table is not None
        while behind := [
            row for row in self._rows.values() if row.seen < len(row.output_ids) and row.output_ids[row.seen] >= 0
        ]:
            tokens = np.array([row.output_ids[row.seen] for row in behind])
            for row in behind:
                row.seen += 1
            self._table.follow(tokens, np.array([row.slot for row in behind]))
        rows = looked = self._slots_of(logits)
        if late := [index for index, row in self._rows.items() if row.seen < len(row.output_ids)]:
            looked = looked.clone()
            looked[late] = NOBODY  # these logits are not what the placeholder is chosen from
        self._table.look(logits, looked)
        self._table.apply(logits, rows)
        return logits

    def _slots_of(self, logits: torch.Tensor) -> torch.Tensor:
        """(B,) int64: the slots of all rows, the same tensor as long as they are the same."""
        assert self._table is not None
        if self._slots is None or len(self._slots) != len(logits):
            by_row = [NOBODY] * len(logits)
            for index, row in self._rows.items():
                by_row[index] = row.slot
            self._slots = torch.tensor(by_row).to(self._table.markers.device)
        return self._slots

    # -- runner V2

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """See vLLM: a request enters; what its prompt says is read in `apply_staged_writes`."""
        if self._table is None:
            return False
        asked = sampling_params.extra_args
        wanted = CONTROL in (asked or {}) or read_options(asked, self._served.defaults) is not None
        self._table.admit(req_idx + 1, [])
        self._controlled[req_idx] = wanted
        self._new.pop(req_idx, None)
        if wanted:
            self._new[req_idx] = sampling_params
        return wanted

    def apply_staged_writes(self) -> None:
        """See vLLM: the tokens of requests that have entered are on the device now."""
        if self._table is None or not self._new:
            return
        requests = self._v2
        for index, parameters in self._new.items():
            prompt, filled = int(requests.prompt_len.np[index]), int(requests.prefill_len.np[index])
            ids = requests.all_token_ids.gpu[index, :filled].tolist()
            self._admit(index + 1, parameters, ids[:prompt], written=ids[prompt:])
            self._noted[index + 1] = filled - 1
        self._new.clear()

    def _apply_v2(self, logits: torch.Tensor, step: Any) -> torch.Tensor:
        if self._table is None or not self._controlled[step.idx_mapping_np].any():
            return logits
        slots = step.expanded_idx_mapping.long() + 1
        # The token at a row's input is the one that was chosen last, unless it is of the prompt.
        position, tokens = step.pos.long(), step.input_ids.long()
        if self._served.drafts:
            self._follow_drafts(logits, slots, position, tokens, step)
            return logits
        fresh = position > self._noted[slots]
        self._noted[slots] = torch.where(fresh, position, self._noted[slots])
        self._table.observe(tokens, torch.where(fresh, slots, NOBODY))
        self._table.look(logits, slots)
        self._table.apply(logits, slots)
        return logits

    def _follow_drafts(
        self, logits: torch.Tensor, slots: torch.Tensor, position: torch.Tensor, tokens: torch.Tensor, step: Any
    ) -> None:
        """A step in which a request has several rows: after its last token, and after each that is drafted behind it.

        How far its last token lies beyond the one noted before says how many drafts were accepted in between.
        """
        assert self._table is not None
        place = step.expanded_local_pos.long()
        one_row_each = len(logits) == len(step.idx_mapping_np)
        owner = slots if one_row_each else step.idx_mapping.long() + 1
        last = torch.zeros_like(self._noted).scatter_reduce_(0, slots, position - place, "amax")[owner]
        accepted = last - self._noted[owner] - 1
        fresh = accepted >= 0
        self._drafted.go_back(owner, accepted.clamp(0, self._drafted.most), fresh)
        before = self._noted[slots]
        self._noted[owner] = torch.where(fresh, last, self._noted[owner])
        # Rows that stand for a draft without a token are thrown away by vLLM.
        seen = (position > before) & (tokens >= 0)
        tokens = tokens.clamp(min=0)
        for drafted in range(1 if one_row_each else self._drafted.most + 1):
            here = torch.where(place == drafted, slots, NOBODY)
            self._table.observe(tokens, torch.where(seen, here, NOBODY))
            self._table.look(logits, here)
            self._table.apply(logits, here)
            self._drafted.take(drafted, owner)

    # -- both

    def _admit(self, slot: int, parameters: Any, prompt_ids: list[int] | None, written: Sequence[int] = ()) -> bool:
        """Give a slot to a request, and say whether it has controls at all."""
        assert self._table is not None
        try:
            controls = self._served.controls(parameters, prompt_ids)
            if controls:
                self._table.admit(slot, controls, written)
            return bool(controls)
        except Exception:  # every request was checked on arrival; whatever slipped through must not end the others
            logger.exception("satisfice leaves a request alone that it cannot control: %s", parameters.extra_args)
            self._table.admit(slot, [])
            return False

    def apply(self, logits: torch.Tensor, step: Any = None) -> torch.Tensor:
        """See vLLM; V2 says with `step` which rows these are."""
        return self._apply_v1(logits) if step is None else self._apply_v2(logits, step)


class InstalledThinkingControls(ThinkingControls):
    """The class behind the entry point: steps aside where the server names `ThinkingControls` itself."""

    def _decide(self, vllm_config: Any) -> Served:
        if _named(vllm_config):
            return Served("the server names its processor itself", {})
        return super()._decide(vllm_config)
