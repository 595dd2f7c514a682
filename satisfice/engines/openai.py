"""Any server that speaks OpenAI's completions protocol: vLLM, llama.cpp's, SGLang, hosted ones.

A method goes on from unfinished responses, token by token, so what is needed is /v1/completions; chat completions
cannot be continued. What else a server can do is found out when the engine is loaded, with a few requests of one
token each, and what it cannot do is refused then, not in the middle of a run.

Answers are streamed. So a time limit bounds the silence and not the answer, a stop that the server does not know of
ends the request at once, and where a connection drops, the answer goes on after the tokens that had come.

Whatever fails is one of two things: `EngineError`, what this server will never serve as it was asked, and
`EngineFailed`, what it may serve another time and did not after some tries. No part of an answer is ever returned as
one. What a server says may hold the key that it was sent, so its words go through `Connection.quoted`.
"""

import asyncio
from collections.abc import Callable, Sequence

from satisfice.engines.base import (
    Capability,
    Engine,
    EngineClosed,
    EngineError,
    Generation,
    Sampling,
    Scores,
    check_prompt,
    in_this_loop,
)
from satisfice.engines.checkpoint import Checkpoint
from satisfice.engines.control_setting import Control
from satisfice.engines.openai_bias import BiasedThinking, bias_for
from satisfice.engines.openai_completion import Completion
from satisfice.engines.openai_connection import Connection
from satisfice.engines.openai_offer import MOST_LOGPROBS, Offer, examine
from satisfice.engines.openai_secrets import DEFAULT_KEY, read_key
from satisfice.thinking import ThinkingFormat, token_bytes


class OpenAIEngine(Engine):
    """A model at a server.

    Made by `load`. Requests may come from any event loop; one thread holds the connections.

    Args:
        model: its name at the server.
        checkpoint: its tokenizer and what else its directory says.
        thinking: how it marks thinking.
        connection: to the server; closed with the engine.
        offer: what the server was found to take and to give.
    """

    def __init__(
        self, model: str, checkpoint: Checkpoint, thinking: ThinkingFormat, connection: Connection, offer: Offer
    ) -> None:
        context_length = offer.context_length or checkpoint.context_length
        if context_length is None:
            raise EngineError(
                f"neither {connection.url} nor the tokenizer's directory says how many tokens {model} can hold: "
                "give as tokenizer a directory that has a config.json too"
            )
        self.name = f"openai:{model}"
        self.model = model
        self.tokenizer = checkpoint.tokenizer
        self.thinking = thinking
        self.end_ids = checkpoint.end_ids
        self.context_length = context_length
        self.default_sampling = checkpoint.default_sampling
        self.levels = checkpoint.levels
        self.capabilities = frozenset(Capability) - set(offer.lacking)
        self.lacking = offer.lacking
        self.offer = offer
        self.device = f"{offer.dialect.name} server at {connection.url}"
        self.connection = connection
        self.token_bytes = token_bytes(self.tokenizer)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        base_url: str,
        tokenizer: str | None = None,
        thinking: ThinkingFormat | None = None,
        api_key_env: str = DEFAULT_KEY,
        max_batch: int = 64,
        requests_per_minute: float | None = None,
        timeout: float = 600.0,
        max_retries: int = 6,
    ) -> "OpenAIEngine":
        """The engine for a model at a server, which is asked what it can do.

        Args:
            model: its name at the server.
            base_url: of the protocol, as http://127.0.0.1:8000/v1.
            tokenizer: directory or Hub id of the model's tokenizer; by default the model's name.
            thinking: how the model marks thinking, where it cannot be detected.
            api_key_env: the environment variable that holds the key, for servers that ask for one.
            max_batch: requests under way at once at most.
            requests_per_minute: requests begun in a minute at most; None leaves it to the server to say "too many".
            timeout: seconds without a byte from the server after which a request is given up; it is tried once more.
            max_retries: of one answer, dropped answers that are taken up again included, with exponential backoff,
                jitter and what the server asks for in Retry-After. All of them count as requests of the minute.

        Raises:
            EngineError: the server does not serve this model, the tokenizer is not the model's, or a setting is wrong.
            EngineFailed: the server cannot be reached, or fails.
        """
        api_key = read_key(api_key_env)
        try:
            checkpoint = Checkpoint.read(tokenizer or model)
        except EngineError as error:
            hint = "" if tokenizer else "; name the directory or Hub id of its tokenizer with --tokenizer"
            raise EngineError(f"{error}{hint}") from error
        thinking = thinking or ThinkingFormat.detect(checkpoint.tokenizer, tokenizer or model)
        connection = Connection(base_url, api_key, api_key_env, max_batch, requests_per_minute, timeout, max_retries)
        try:
            offer = connection.submit(examine(connection, model, checkpoint, thinking)).result()
            connection.say(*offer.shortcomings())
            return cls(model, checkpoint, thinking, connection, offer)
        except BaseException:
            connection.close()
            raise

    # -- the contract

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        control: Control | None = None,
        top_logprobs: int = 0,
        entropy: bool = False,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """See `Engine.generate`.

        The random numbers are the server's. It is sent a seed that is a hash of the sampling's and of the length of
        the prompt: the same request draws the same again as far as the server keeps to seeds, but a sequence that was
        stopped and resumed does not go on as it would have.
        """
        for asked, capability in (
            (top_logprobs > 0, Capability.LOGPROBS),
            (entropy, Capability.ENTROPY),
        ):
            if asked and capability not in self.capabilities:
                raise EngineError(f"{self.name} does not offer {capability}: {self.lacking[capability]}")
        if top_logprobs > MOST_LOGPROBS:
            raise EngineError(f"top_logprobs is {top_logprobs}; {self.name} was asked for {MOST_LOGPROBS} at most")
        biased = None
        if control is not None and Capability.CONTROL not in self.capabilities:
            bias = bias_for(self, control)
            biased = BiasedThinking(control.state, bias, self.thinking, self.tokenizer) if bias else None
            control = None
        room, words = len(prompt_ids) + sampling.max_tokens, len(self.token_bytes)
        check_prompt(self.name, prompt_ids, room, self.context_length, vocabulary=words)
        emit = None if on_token is None else in_this_loop(on_token)
        completion = Completion(self, list(prompt_ids), sampling, control, biased, top_logprobs, emit)
        future = self.connection.submit(completion.fetch())
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self.connection.closed:  # nobody cancelled the caller
                raise EngineClosed(f"the connection to {self.connection.url} is closed", completion.spent()) from None
            raise

    def check_control(self, control: Control) -> None:
        """See `Engine.check_control`; without the plugin, a control must be a bias that the protocol takes."""
        if Capability.CONTROL not in self.capabilities:
            bias_for(self, control)

    async def score(self, ids: Sequence[int], start: int) -> Scores:
        """Not offered.

        Raises:
            EngineError: always.
        """
        raise EngineError(f"{self.name} does not offer {Capability.SCORE}: {self.lacking[Capability.SCORE]}")

    def close(self) -> None:
        """Give up what is under way and close the connections."""
        self.connection.close()
