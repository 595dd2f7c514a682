"""What a server can do, found out with a few requests of one token each when the engine is loaded."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from satisfice.engines.base import Capability, EngineError, Sampling
from satisfice.engines.checkpoint import Checkpoint
from satisfice.engines.openai_bias import MOST_BIAS
from satisfice.engines.openai_connection import Connection, RefusedError
from satisfice.engines.openai_dialects import DIALECTS, Chunk, Dialect, OutsideVocabulary
from satisfice.thinking import ThinkingFormat, decode, encode_after, token_bytes

MOST_LOGPROBS = 20
"""Most likely tokens that a server must report for it to offer log-probabilities at all: what our methods ask for."""
OVERRUN = 16
"""Tokens or messages after the end of an answer after which a server is cut off. Not the first: the last messages say
what the prompt cost."""
CONTROL_KEY = "satisfice_control"
"""Under `vllm_xargs`: a control for the plugin that satisfice brings to vLLM."""
CACHE_PROBE = 512
"""Tokens of the prompt that is sent twice; servers keep prompts in blocks of up to 128."""


@dataclass(frozen=True)
class Offer:
    """What a server was found to take and to give.

    Attributes:
        dialect: how it speaks.
        prompt_ids: whether a prompt may be token ids.
        adds_bos: whether it puts the token that begins a text before a prompt that is a text.
        finds_stops: whether it ends with the very token that completes a stop text.
        context_length: tokens of a sequence at most, by its own word.
        lacking: what it does not offer, and why.
    """

    dialect: Dialect
    prompt_ids: bool
    adds_bos: bool
    finds_stops: bool
    context_length: int | None
    lacking: dict[Capability, str]

    def shortcomings(self) -> list[str]:
        """A sentence for the user where the server lacks what most methods need and other servers have."""
        missing = [
            each
            for each in (Capability.CONTROL, Capability.BIAS, Capability.LOGPROBS, Capability.PREFIX_REUSE)
            if each in self.lacking
        ]
        if not missing:
            return []
        reasons = "; ".join(f"{each} ({self.lacking[each]})" for each in missing)
        return [f"this {self.dialect.name} server does not offer all that methods need. Missing: {reasons}"]

    def prompt(self, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int] | str:
        """A prompt as the server takes it."""
        return list(ids) if self.prompt_ids else _as_text(ids, tokenizer, self.adds_bos)


def _as_text(ids: Sequence[int], tokenizer: Any, adds_bos: bool) -> str:
    text = decode(tokenizer, ids)
    return text.removeprefix(tokenizer.bos_token) if adds_bos and tokenizer.bos_token else text


async def examine(connection: Connection, model: str, checkpoint: Checkpoint, thinking: ThinkingFormat) -> Offer:
    """Ask a server what it can do, one token at a time.

    Raises:
        EngineError: it cannot be used at all.
    """
    tokenizer, ends = checkpoint.tokenizer, checkpoint.end_ids
    words = token_bytes(tokenizer)
    context_length, listed = await _listed(connection, model)
    prompt = thinking.render(tokenizer, [{"role": "user", "content": "What is 17 + 25?"}])
    greedy = Sampling(temperature=0, top_p=1, max_tokens=1)

    async def ask(asked: list[int] | str, **more: Any) -> Any:
        body = {"model": model, "prompt": asked, "max_tokens": 1, "temperature": 0, "top_p": 1, "seed": 0}
        return await connection.ask({**body, **more})

    async def tried(dialect: Dialect, asked: list[int] | str, top_logprobs: int = 0, **more: Any) -> Chunk | None:
        """What a server answers in a dialect; None where it does not speak it."""
        try:
            message = await ask(asked, **{**dialect.extras(greedy, top_logprobs, ends), **more})
            return dialect.read(message, tokenizer, words)
        except OutsideVocabulary as error:
            raise EngineError(f"{connection.url} {error}") from error
        except RefusedError as refusal:
            if refusal.status in (401, 403):
                raise
            return None
        except EngineError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    try:
        plain = await ask(prompt.text)
    except RefusedError as refusal:
        elsewhere = "" if listed else await _elsewhere(connection)
        if elsewhere or refusal.status not in (404, 405):
            raise RefusedError(f"{refusal}{elsewhere}", refusal.status) from refusal
        raise EngineError(
            f"{connection.url} does not complete texts ({refusal}): satisfice goes on from unfinished responses, which "
            "chat completions cannot do; serve the model with vLLM, SGLang or llama.cpp, or load it with --engine vllm"
        ) from refusal
    try:
        first = DIALECTS[-1].read(plain, tokenizer, words)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        elsewhere = await _elsewhere(connection)
        raise EngineError(
            f"{connection.url}/completions wrote what is no completion: {connection.quoted(plain)}{elsewhere}"
        ) from error
    if max(first.new_tokens or 0, len(first.ids)) > OVERRUN:
        connection.say(
            f"{connection.url} was asked for 1 token and wrote {max(first.new_tokens or 0, len(first.ids))}: it does "
            "not keep max_tokens, answers are cut off here, and what it writes after the end counts as cost"
        )
    adds_bos = _adds_bos(plain, len(prompt.ids), connection)
    as_text = _as_text(prompt.ids, tokenizer, adds_bos)

    dialect: Dialect = DIALECTS[-1]
    prompt_ids = False
    for candidate in DIALECTS:
        for asked in (prompt.ids, as_text):
            chunk = await tried(candidate, asked)
            if chunk is None or (candidate.gives_ids and not chunk.ids):
                continue
            if isinstance(asked, list) and chunk.prompt_tokens not in (len(asked), None):
                continue  # it took the ids for something else
            dialect, prompt_ids = candidate, isinstance(asked, list)
            break
        else:
            continue
        break
    asked = prompt.ids if prompt_ids else as_text
    chunk = await tried(dialect, asked)
    begins = chunk.ids[:1] if chunk is not None else []
    finds_stops = False
    if dialect.finds_stops and (text := decode(tokenizer, begins)):
        stopped = await tried(dialect, asked, stop=[text], max_tokens=2)
        finds_stops = stopped is not None and stopped.ids == begins and stopped.finish == "stop"

    lacking = {
        Capability.ENTROPY: "servers report the likeliest tokens and not the whole distribution; use --engine "
        "transformers or vllm",
        Capability.SCORE: "servers report no entropies of given tokens; use --engine transformers or vllm",
        Capability.DISTRIBUTIONS: "servers report the likeliest tokens and not the whole distribution; use --engine "
        "transformers",
        Capability.TREE: "a server grows no trees of branches; use --engine transformers",
    }
    if not await _has_plugin(ask, asked):
        lacking[Capability.CONTROL] = "the server does not run satisfice's plugin, which vLLM alone can"
    likely: Chunk | None = None
    if not dialect.gives_ids:
        lacking[Capability.LOGPROBS] = "the server does not say which tokens it wrote"
    else:
        likely = await tried(dialect, asked, MOST_LOGPROBS, temperature=1)
        warmer = await tried(dialect, asked, MOST_LOGPROBS, temperature=2)
        if likely is None or warmer is None or not likely.tops or len(likely.tops[0]) < MOST_LOGPROBS:
            lacking[Capability.LOGPROBS] = f"the server does not report the {MOST_LOGPROBS} most likely tokens"
        elif _differ(likely, warmer):
            lacking[Capability.LOGPROBS] = (
                "the server's log-probabilities are those after temperature, not the model's own; start vLLM without "
                "--logprobs-mode"
            )
    if Capability.CONTROL in lacking:  # the plugin obeys all controls, those among them that are but a bias
        # Forced is what it would not have written, and what has to be seen when it is written.
        forced = next(each for each in (*thinking.close_ids(tokenizer), *prompt.ids) if [each] != begins)
        bias = {str(forced): MOST_BIAS, **{str(each): -MOST_BIAS for each in begins}}
        own = None if Capability.LOGPROBS in lacking else likely
        biased = await tried(dialect, asked, MOST_LOGPROBS if own else 0, logit_bias=bias)
        if reason := _no_bias(dialect, tokenizer, forced, biased, own):
            lacking[Capability.BIAS] = reason
    if not dialect.cancels:
        lacking[Capability.CANCEL] = "it is not known whether this server stops when a connection is closed"

    room = (context_length or checkpoint.context_length or CACHE_PROBE) // 2
    filler = (prompt.ids * CACHE_PROBE)[: min(CACHE_PROBE, room)]
    long = filler if prompt_ids else _as_text(filler, tokenizer, adds_bos)
    await tried(dialect, long)
    again = await tried(dialect, long)
    if again is None or again.cached_tokens is None:
        lacking[Capability.PREFIX_REUSE] = (
            "the server does not say how much of a prompt it had in its cache; start vLLM with "
            "--enable-prompt-tokens-details"
        )
    elif again.cached_tokens == 0:
        lacking[Capability.PREFIX_REUSE] = "the server had nothing in its cache of a prompt that it was sent twice"
    return Offer(dialect, prompt_ids, adds_bos, finds_stops, context_length, lacking)


async def _has_plugin(ask: Callable[..., Coroutine[Any, Any, Any]], prompt: list[int] | str) -> bool:
    """Whether the server reads controls: one that does refuses what is none; others do not look at it."""
    try:
        await ask(prompt, vllm_xargs={CONTROL_KEY: "malformed"})
    except RefusedError as refusal:
        return CONTROL_KEY in str(refusal)
    return False


def _no_bias(dialect: Dialect, tokenizer: Any, forced: int, biased: Chunk | None, own: Chunk | None) -> str:
    """Why a server offers no `logit_bias`; "" where it does.

    Args:
        dialect: how it speaks.
        tokenizer: the model's.
        forced: the token that it was to write, whatever it would have written.
        biased: what it answered; None where it refused.
        own: the likeliest tokens of the same place without a bias, where it reports them.
    """
    if biased is None:
        return "the server refuses logit_bias"
    text = decode(tokenizer, [forced])
    seen = [forced] if dialect.gives_ids else encode_after(tokenizer, text)
    if biased.ids[: len(seen)] != seen:
        lost = "" if dialect.gives_ids else ", or not as text"
        return f"the server does not obey logit_bias: a bias of {MOST_BIAS:g} did not make it write {text!r}{lost}"
    if own is not None and (not biased.tops or _differ(own, biased)):
        return "the server's log-probabilities are those after logit_bias, not the model's own"
    return ""


def _differ(one: Chunk, other: Chunk) -> bool:
    """Whether the likeliest tokens of the same place are not as likely in both."""
    return abs(_spread(one) - _spread(other)) > 0.1 * _spread(one) + 0.05


def _spread(chunk: Chunk) -> float:
    """How far the log-probabilities of the likeliest tokens lie apart: what a temperature changes, or a bias."""
    # A token that was written and is not among them may be reported as one more.
    values = sorted(chunk.tops[0].values(), reverse=True)[:MOST_LOGPROBS]
    return values[0] - values[-1]


async def _listed(connection: Connection, model: str) -> tuple[int | None, bool]:
    """The context length of a model by the server's list, None where it does not say; and whether there is a list.

    Raises:
        EngineError: the server lists other models only.
    """
    try:
        entries = _models(await connection.get("/models"))
    except RefusedError as refusal:
        if refusal.status not in (404, 405):
            raise
        return None, False
    if not entries:
        return None, False
    if model not in entries:
        raise EngineError(f"{connection.url} does not serve {model}, but {', '.join(sorted(entries)[:10])}")
    meta = entries[model].get("meta")
    lengths = (entries[model].get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None)
    return next((length for length in lengths if type(length) is int and length > 0), None), True


def _models(answer: Any) -> dict[str, dict[str, Any]]:
    """The entries of a list of models, by name; empty where the answer is none."""
    entries = answer.get("data") if isinstance(answer, dict) else None
    known = entries if isinstance(entries, list) else []
    return {entry["id"]: entry for entry in known if isinstance(entry, dict) and isinstance(entry.get("id"), str)}


async def _elsewhere(connection: Connection) -> str:
    """What to say where the protocol lies under /v1 and the base URL does not."""
    if connection.url.endswith("/v1"):
        return ""
    try:
        answer = await connection.get("/v1/models")
    except EngineError:
        return ""
    found = f"{connection.url}/v1"
    return f"; models are listed under {found}: give --base-url {found}" if _models(answer) else ""


def _adds_bos(message: Any, own: int, connection: Connection) -> bool:
    """Whether the server counts one token more in a prompt than its tokenizer here.

    Raises:
        EngineError: the two counts do not go together.
    """
    usage = message.get("usage") if isinstance(message, dict) else None
    counted = (usage or {}).get("prompt_tokens")
    if counted is not None and counted not in (own, own + 1):
        raise EngineError(
            f"{connection.url} makes {counted} tokens of a prompt of which the tokenizer here makes {own}: name the "
            "tokenizer of the model that is served with --tokenizer"
        )
    return counted == own + 1
