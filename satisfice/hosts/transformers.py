"""satisfice inside Transformers' own `generate`: controls as a logits processor, methods as a custom generation loop.

    model.generate(**inputs, logits_processor=[ThinkingControls(tokenizer, max_thinking_tokens=256)])
    model.generate(**inputs, custom_generate=MethodGenerate(tokenizer), method="deer")

The first keeps Transformers' loop and edits logits in it, so everything else of `generate` works as usual. The second
lets a method decide when to ask for tokens, which takes an engine of ours over the same model.
"""

import asyncio
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import logits_process, stopping_criteria

from satisfice.engines.base import Sampling, derive_seed
from satisfice.engines.control_batch import Markers
from satisfice.engines.control_setting import Control
from satisfice.engines.transformers import TransformersEngine
from satisfice.intervention import Draft, Method, MethodError, parse_method
from satisfice.intervention.control_table import ControlTable
from satisfice.intervention.method import together
from satisfice.intervention.options import OptionError, check_against_model, checked, refuse_unknown
from satisfice.intervention.prompt_reader import PromptReader
from satisfice.problems.problem import Problem
from satisfice.thinking import Prompt, ThinkingFormat, decode

KEPT = 256
"""Steps that a processor can be taken back by; assisted generation drafts far fewer tokens at once."""


class HostError(ValueError):
    """Something that a host asks for and a door cannot do; the message says what to change."""


# -- controls, in Transformers' loop


@dataclass
class _Rows:
    """The responses that one call of `generate` is writing.

    Attributes:
        ids: (B, L) as they were seen last.
        taken: by length of `ids`, where all rows stood when the logits after it had been edited.
        table: the controls, row r under slot r + 1.
        slots: (B,) int64.
    """

    ids: torch.Tensor
    taken: dict[int, list[tuple[torch.Tensor, ...]]]
    table: ControlTable
    slots: torch.Tensor


class ThinkingControls(LogitsProcessor):
    """A control of ours in `model.generate(..., logits_processor=[...])`.

    Where each row's response begins, inside thinking or before it, is read from its prompt; rows may be padded on the
    left and differ in that. What a row has written is followed by its ids alone: ids that go on by one token from
    ids that were seen before continue the same response, so drafted tokens that are not accepted (assisted generation,
    prompt lookup) are taken back, and any other ids begin a new call.

    Args:
        tokenizer: the model's.
        control: any `Control`; its `state` is replaced by what the prompt says. It takes the place of all keys.
        thinking: how the model marks thinking, as a format or as text (`"<think>,</think>"`), where it cannot be
            detected from the tokenizer.
        max_new_tokens: as `generate` is given it; `answer_tokens` needs to know.
        end_ids: tokens that end a response besides the tokenizer's own: `model.generation_config.eos_token_id`.
        keys: those of the vLLM plugin, see `satisfice.intervention.options.Options`.

    Raises:
        OptionError: a key does not exist or does not fit, or the model cannot obey it.
        UnknownThinkingFormat: the tokenizer does not show how the model marks thinking.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        control: Control | None = None,
        *,
        thinking: ThinkingFormat | str | None = None,
        max_new_tokens: int | None = None,
        end_ids: int | Sequence[int] | None = None,
        **keys: Any,
    ) -> None:
        refuse_unknown(keys, "ThinkingControls")
        if control is not None and keys:
            raise OptionError(f"a control takes the place of all keys; leave out {', '.join(sorted(keys))} or it")
        if control is not None and not isinstance(control, Control):
            raise OptionError(f"control is {control!r}; it must be a Control, such as ThinkingBudget(most=256)")
        self._control = control
        self._options = checked(keys, "ThinkingControls")
        if self._options.answer_tokens is not None and max_new_tokens is None:
            raise OptionError("answer_tokens needs max_new_tokens, the same as generate's, to keep the answer's share")
        self._tokenizer = tokenizer
        self._thinking = _format_of(thinking, tokenizer)
        self._max_new_tokens = max_new_tokens
        self._end_ids = _ids_of(end_ids, tokenizer.eos_token_id)
        self._reader = PromptReader(self._thinking, tokenizer)
        check_against_model(self._options, Markers(self._thinking, tokenizer, len(tokenizer)), max_new_tokens)
        self._markers: Markers | None = None
        self._rows: _Rows | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # type: ignore[override]
        """Edit next-token scores.

        Args:
            input_ids: (B, L) prompts, padded on the left, with what has been written.
            scores: (B, V) logits.

        Returns:
            (B, V) new scores; `scores` itself is left alone.

        Raises:
            HostError: the rows are beams, or an assistant has another tokenizer.
        """
        _refuse_other_loops()
        rows = self._continued(input_ids, scores)
        if rows is None:
            rows = self._rows = self._begin(input_ids, scores)
        edited = scores.clone()
        rows.table.look(scores, rows.slots)
        rows.table.apply(edited, rows.slots)
        rows.taken[input_ids.shape[1]] = rows.table.snapshot()
        # Nothing is drafted for several rows at once, and what is kept of many steps is large.
        rows.taken.pop(input_ids.shape[1] - (KEPT if len(input_ids) == 1 else 1), None)
        rows.ids = input_ids
        return edited  # type: ignore[return-value]

    def _continued(self, ids: torch.Tensor, scores: torch.Tensor) -> _Rows | None:
        """The responses under way, brought to where `ids` end; None where `ids` do not continue them."""
        rows = self._rows
        if rows is None or len(rows.ids) != len(ids) or not self._fits(scores):
            return None
        length, seen = ids.shape[1], rows.ids.shape[1]
        if length == seen + 1 and torch.equal(ids[:, :-1], rows.ids):
            rows.table.observe(ids[:, -1], rows.slots)
            return rows
        # Fewer tokens than were seen, or others: some were drafted and not accepted, or this is another call.
        shorter = min(length, seen)
        agree = (ids[:, :shorter] == rows.ids[:, :shorter]).all(0)
        common = shorter if bool(agree.all()) else int(agree.logical_not().nonzero()[0])
        if common < length - 1 or common not in rows.taken:
            return None
        rows.table.restore(rows.taken[common])
        for longer in [each for each in rows.taken if each > common]:
            del rows.taken[longer]
        if common < length:
            rows.table.observe(ids[:, -1], rows.slots)
        return rows

    def _begin(self, ids: torch.Tensor, scores: torch.Tensor) -> _Rows:
        """New responses after the prompts `ids`."""
        count = len(ids)
        if not self._fits(scores):
            self._markers = Markers(self._thinking, self._tokenizer, scores.shape[1], scores.device)
            self._rows = None
        assert self._markers is not None
        table = self._rows.table if self._rows is not None else None
        if table is None or table.slots != count + 1:
            table = ControlTable(self._markers, count + 1)
        for row, prompt in enumerate(ids.tolist()):
            table.admit(row + 1, self._controls(self._reader.state(prompt)))
        return _Rows(ids, {}, table, torch.arange(1, count + 1, device=scores.device))

    def _controls(self, state: int) -> list[Control]:
        if self._control is not None:
            return [replace(self._control, state=state)]
        assert self._markers is not None
        return self._options.controls(self._markers, state, self._max_new_tokens or 2**31, self._end_ids)

    def _fits(self, scores: torch.Tensor) -> bool:
        markers = self._markers
        return markers is not None and markers.vocabulary_size == scores.shape[1] and markers.device == scores.device


def _refuse_other_loops() -> None:
    """Refuse loops of `generate` whose rows cannot be followed; a processor is told nothing of the loop it is in.

    Raises:
        HostError: the rows are beams, or an assistant has another tokenizer.
    """
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_name
        if str(frame.f_globals.get("__name__", "")).startswith("transformers"):
            if name == "_sample":
                return
            if name.endswith("beam_search"):
                raise HostError(
                    "ThinkingControls cannot follow beams, which change places at every step: set num_beams=1, or "
                    "sample with num_return_sequences"
                )
            if name == "_assisted_decoding":
                if frame.f_locals.get("assistant_tokenizer") is not None:
                    raise HostError(
                        "ThinkingControls reads the ids of one tokenizer: take an assistant with the model's own"
                    )
                return
        frame = frame.f_back  # type: ignore[assignment]


# -- methods, in place of Transformers' loop


class MethodGenerate:
    """Methods in `model.generate(..., custom_generate=MethodGenerate(tokenizer), method="deer")`.

    Every row is one problem, solved by the method on an engine of ours over the same model, all rows side by side.
    `generate` hands over prompts and not questions, so methods that ask the question anew, in other words or with
    thinking switched off, are refused. A callable is not handed a `streamer` by Transformers.

    Args:
        tokenizer: the model's; `generate` does not pass it to a callable.
        thinking: how the model marks thinking, where it cannot be detected.
        grader: how methods that compare answers read them, see `Problem.grader`.
        engine_options: passed to `TransformersEngine`, such as `max_batch_tokens`.

    Raises:
        UnknownThinkingFormat: the tokenizer does not show how the model marks thinking.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        thinking: ThinkingFormat | str | None = None,
        grader: str = "math",
        **engine_options: Any,
    ) -> None:
        self._tokenizer = tokenizer
        self._thinking = _format_of(thinking, tokenizer)
        self._reader = PromptReader(self._thinking, tokenizer)
        self._grader = grader
        self._engine_options = engine_options

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        logits_processor: Iterable[Any],
        stopping_criteria: Iterable[Any],
        generation_config: GenerationConfig,
        method: str | Method = "plain",
        **model_kwargs: Any,
    ) -> torch.LongTensor:
        """See Transformers; called by `generate`.

        Args:
            model: what `generate` belongs to.
            input_ids: (B, L) prompts, padded on the left, each as often as `num_return_sequences` says.
            logits_processor, stopping_criteria: what `generate` made of its settings; nothing beyond sampling, a
                greatest length and end-of-text tokens can be obeyed.
            generation_config: sampling and the greatest length, which bounds each response, forced tokens included.
            method: as spelled on the command line, or a `Method`.
            model_kwargs: of `generate`; the mask of the padding is read.

        Returns:
            (B, L + longest) int64: prompts and responses, padded on the right.

        Raises:
            HostError: `generate` was asked for what a method cannot do.
            MethodError: there is no such method, or it needs the question itself.
        """
        _refuse_settings(input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)
        chosen = parse_method(method) if isinstance(method, str) else method
        prompts = _without_padding(input_ids, model_kwargs.get("attention_mask"))
        # All randomness comes from torch's generator, as in generate itself.
        seed = int(torch.randint(2**62, ())) if generation_config.do_sample else 0
        sampling = _sampling_of(generation_config, input_ids.shape[1])
        engine = TransformersEngine(model, self._tokenizer, thinking=self._thinking, **self._engine_options)
        training = model.training
        try:
            ends = _ids_of(generation_config.eos_token_id, None)
            sampling = replace(sampling, stop_ids=tuple(token for token in ends if token not in engine.end_ids))
            chosen.check(engine)
            jobs = [
                self._solve(engine, chosen, ids, replace(sampling, seed=derive_seed(seed, f"sample/generate/{row}")))
                for row, ids in enumerate(prompts)
            ]
            # A thread of its own, because the caller's may run an event loop already, as notebooks do.
            with ThreadPoolExecutor(1) as pool:
                responses = pool.submit(asyncio.run, together(*jobs)).result()
        finally:
            engine.close()
            model.train(training)
        longest = max(map(len, responses))
        padding = _padding(generation_config, self._tokenizer)
        written = torch.full((len(responses), longest), padding, dtype=input_ids.dtype)
        for row, ids in enumerate(responses):
            written[row, : len(ids)] = torch.tensor(ids, dtype=input_ids.dtype)
        return torch.cat([input_ids, written.to(input_ids.device)], dim=1)  # type: ignore[return-value]

    async def _solve(
        self, engine: TransformersEngine, method: Method, prompt_ids: list[int], sampling: Sampling
    ) -> list[int]:
        text = decode(self._tokenizer, prompt_ids)
        draft = _GivenPrompt(
            engine,
            Problem("generate", text, "", grader=self._grader),
            sampling,
            method=str(method),
            control=method.control(engine.thinking),
            prompt=Prompt(text, prompt_ids, self._reader.state(prompt_ids)),
        )
        return (await method.complete(draft)).response_ids


class _GivenPrompt(Draft):
    """A draft after a prompt that came as tokens: there is no question that could be asked in another way."""

    def begin(self, thinking_on: bool = True, question: str | None = None) -> None:
        raise MethodError(
            f"{self.method} asks the question anew, but generate hands over a prompt and no question: use Method.solve "
            "with an engine, or a method that leaves the prompt alone"
        )


_OBEYED = (
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.MinPLogitsWarper,
    stopping_criteria.MaxLengthCriteria,
    stopping_criteria.EosTokenCriteria,
)
"""What `generate` makes of settings that an engine has too."""

_CARRIED = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position"}
"""What `generate` passes to every loop."""


def _refuse_settings(
    input_ids: torch.Tensor,
    processors: Iterable[Any],
    criteria: Iterable[Any],
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> None:
    """Refuse what a method on an engine cannot do.

    Raises:
        HostError: it names the setting.
    """
    for each in (*processors, *criteria):
        if not isinstance(each, _OBEYED):
            raise HostError(f"a method cannot obey {type(each).__name__} of generate: leave out what it was made from")
    if (config.num_beams or 1) > 1:
        raise HostError(f"num_beams is {config.num_beams}; a method writes one sequence a row: set it to 1")
    if config.return_dict_in_generate:
        raise HostError(
            "return_dict_in_generate is on; a method returns ids alone: use Method.solve for all of a trace"
        )
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise HostError("past_key_values are given, but an engine keeps its own cache: leave them out")
    foreign = sorted(name for name in model_kwargs.keys() - _CARRIED if model_kwargs[name] is not None)
    if foreign or input_ids.shape[1] == 0:
        raise HostError(f"a method is asked with input_ids alone, not with {', '.join(foreign) or 'an empty prompt'}")


def _without_padding(input_ids: torch.Tensor, mask: torch.Tensor | None) -> list[list[int]]:
    """The prompt of each row.

    Raises:
        HostError: padding is not on the left.
    """
    if mask is None:  # generate drops a mask of ones
        return [[int(token) for token in row] for row in input_ids.tolist()]
    prompts = []
    for row, (ids, seen) in enumerate(zip(input_ids.tolist(), mask.tolist(), strict=True)):
        start = seen.index(1) if 1 in seen else len(seen)
        if start == len(seen) or not all(seen[start:]):
            raise HostError(f"row {row} is padded on the right or in the middle: set tokenizer.padding_side to 'left'")
        prompts.append(ids[start:])
    return prompts


def _sampling_of(config: GenerationConfig, length: int) -> Sampling:
    most = int(config.max_length) - length
    if not config.do_sample:
        return Sampling(temperature=0.0, top_p=1.0, max_tokens=most)
    return Sampling(
        temperature=1.0 if config.temperature is None else float(config.temperature),
        top_p=1.0 if config.top_p is None else float(config.top_p),
        top_k=int(config.top_k or 0),
        min_p=float(config.min_p or 0.0),
        max_tokens=most,
    )


def _padding(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token after a response that is shorter than others, as generate chooses it."""
    ends = _ids_of(config.eos_token_id, tokenizer.eos_token_id)
    known = [token for token in (config.pad_token_id, tokenizer.pad_token_id, *ends) if token is not None]
    return int(known[0]) if known else 0


def _ids_of(given: int | Sequence[int] | None, own: int | None) -> tuple[int, ...]:
    ids = given if isinstance(given, Sequence) else [given]
    return tuple(dict.fromkeys(int(token) for token in (*ids, own) if token is not None))


def _format_of(thinking: ThinkingFormat | str | None, tokenizer: PreTrainedTokenizerBase) -> ThinkingFormat:
    if isinstance(thinking, str):
        return ThinkingFormat.parse(thinking)
    return thinking or ThinkingFormat.detect(tokenizer)
