"""`thinking_level`: the length instruction of a TLDR-trained model, put after the question before vLLM sees it.

A processor of logits comes after the prompt is written, so this is an ASGI middleware:

    vllm serve MODEL --middleware satisfice.vllm_plugin.Levels

It takes the level out of a chat request's `vllm_xargs`, looks its instruction up in the `satisfice.json` beside the
model's weights, and writes it where training had it: after the last message of the user.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from satisfice.engines.checkpoint import find_levels
from satisfice.intervention.options import OptionError
from satisfice.levels import LEVELS, with_instruction
from satisfice.vllm_plugin.options import LEVEL, frees, read_defaults

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_CHAT = "/v1/chat/completions"


class Levels:
    """Obeys `thinking_level` in requests for chat completions; every other request passes through untouched."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self._instructions: dict[str, str] | None = None
        self._default: str | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(_CHAT):
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has left
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            changed = self._with_level(body, scope["app"].state.vllm_config)
        except OptionError as error:
            await _refuse(send, str(error))
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        headers.append((b"content-length", str(len(changed)).encode()))
        pending: list[Message] = [{"type": "http.request", "body": changed, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app({**scope, "headers": headers}, replay, send)

    def _with_level(self, body: bytes, vllm_config: Any) -> bytes:
        """The body of a request with its level written into its messages."""
        if self._instructions is None:
            model = vllm_config.model_config
            self._default = read_defaults(vllm_config.additional_config).get(LEVEL)
            self._instructions = find_levels(model.model, model.revision)
        try:
            request = json.loads(body)
            given = request.get("vllm_xargs") or {}
            level = given.pop(LEVEL, None)
        except (ValueError, AttributeError, TypeError):
            return body  # vLLM says what is wrong with it
        if level is None and not frees(given):
            level = self._default
        if level is None:
            return body
        if level not in LEVELS:
            raise OptionError(f"{LEVEL} is {level!r}; use one of {', '.join(LEVELS)}")
        if level not in self._instructions:
            raise OptionError(
                f"{LEVEL}: {vllm_config.model_config.model} was not trained on levels: there is no satisfice.json "
                f"beside its weights that names {level}"
            )
        request["messages"] = _instructed(request.get("messages"), self._instructions[level])
        return json.dumps(request).encode()


def _instructed(messages: Any, instruction: str) -> Any:
    """Chat messages with an instruction after the last one of the user."""
    users = [place for place, message in enumerate(messages or []) if message.get("role") == "user"]
    if not users:
        raise OptionError(f"{LEVEL} needs a message of the user after which to put its instruction")
    last = messages[users[-1]]
    content = last.get("content")
    if isinstance(content, list):  # parts: the instruction goes after the last text among them
        texts = [place for place, part in enumerate(content) if isinstance(part, dict) and part.get("type") == "text"]
        if not texts:
            raise OptionError(f"{LEVEL} needs a text in the user's last message after which to put its instruction")
        part = content[texts[-1]]
        content = [*content]
        content[texts[-1]] = {**part, "text": with_instruction(str(part.get("text", "")), instruction)}
    else:
        content = with_instruction(str(content or ""), instruction)
    return [*messages[: users[-1]], {**last, "content": content}, *messages[users[-1] + 1 :]]


async def _refuse(send: Send, reason: str) -> None:
    error = {"error": {"message": reason, "type": "BadRequestError", "param": LEVEL, "code": 400}}
    body = json.dumps(error).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
