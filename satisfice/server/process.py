"""The server as a process: it listens, says so, and ends in order.

At the first SIGTERM or Ctrl-C it takes no more requests and goes on with those it has; `/health` answers 503, so that a
balancer looks elsewhere. It ends when they are done, after the time of grace, or at the second signal.
"""

import logging
import socket
import time
from types import FrameType

import uvicorn

from satisfice.engines.base import Capability, Engine, EngineError
from satisfice.intervention import METHODS, Method, MethodError
from satisfice.intervention.methods.tldr import TLDR
from satisfice.server.app import ChatServer, Settings

log = logging.getLogger("satisfice.server")

BACKLOG = 2048
"""Connections that may wait to be accepted."""
CLOSING = 5
"""Seconds that connections have to send what is ready, once all requests have ended."""


class Process(uvicorn.Server):
    """Uvicorn with a time of grace in which it still answers."""

    def __init__(self, config: uvicorn.Config, chat: ChatServer, grace: float) -> None:
        super().__init__(config)
        self.should_exit: bool = False
        self._chat, self._grace = chat, grace
        self._ends: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins to drain, the second one ends."""
        if self._ends is None:
            self._chat.draining = True
            self._ends = time.monotonic() + self._grace
        else:
            self._ends = 0.0

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; whether to end."""
        if self._ends is not None and not self.should_exit:
            left = len(self._chat.jobs)
            if left and counter % 10 == 0:
                log.info("draining: %d requests under way, %.0f s left", left, max(0, self._ends - time.monotonic()))
            if not left or time.monotonic() >= self._ends:
                if left:
                    log.warning("ending %d requests that are not finished", left)
                self._chat.stop("shutdown")
                self.should_exit = True
        return bool(await super().on_tick(counter))


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve on; port 0 takes a free one.

    Raises:
        ValueError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port") from None


def process(chat: ChatServer, grace: float) -> Process:
    """The process of a server; `run(sockets=[...])` blocks until it ends."""
    config = uvicorn.Config(
        chat.app(),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=CLOSING,
        backlog=BACKLOG,
    )
    return Process(config, chat, grace)


def serve(engine: Engine, settings: Settings, host: str = "127.0.0.1", port: int = 8000, grace: float = 30.0) -> None:
    """Serve until a signal.

    Args:
        engine: where tokens come from.
        settings: what the operator decides.
        host, port: where to listen; port 0 takes a free one.
        grace: seconds that running requests have after a signal.

    Raises:
        EngineError: the engine cannot serve a method of the settings.
        ValueError: the address cannot be listened on.
    """
    chat = ChatServer(engine, settings)
    with listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        log.info("serving %s on http://%s:%d/v1", settings.model, shown, listener.getsockname()[1])
        for line in [*_described(settings, host), *offered(engine)]:
            log.info("%s", line)
        try:
            process(chat, grace).run(sockets=[listener])
        finally:
            chat.stop("shutdown")
    log.info("ended")


def _described(settings: Settings, host: str) -> list[str]:
    """What an operator may want to know at once."""
    lines = [f"method {settings.method}" + "".join(f"; {name}: {each}" for name, each in settings.efforts.items())]
    lines.append(
        f"{settings.max_concurrency} requests at once, {settings.max_queue} in the queue, {settings.max_tokens} tokens "
        f"a response, {settings.request_tokens} generated for a request, {settings.timeout:g} s a request"
    )
    if settings.watch is not None:
        watch = settings.watch
        lines.append(
            f"{watch.share:.1%} of the requests for {settings.method} are answered by {watch.baseline} too; alarm "
            f"(then: {watch.on_alarm}) once it is certain, at {watch.confidence:g}, that over {watch.max_loss:.1%} of "
            "the answers differ. Without gold answers that is disagreement: no harm by itself, and some comes of "
            "sampling alone"
        )
    if not settings.api_keys:
        open_to_all = host not in ("127.0.0.1", "localhost", "::1")
        lines.append(
            "no API key: whoever reaches this address may use it; set SATISFICE_API_KEY"
            if open_to_all
            else "no API key: every program on this machine may use it"
        )
    return lines


def offered(engine: Engine) -> list[str]:
    """Which methods an engine can serve and, one line a reason, which not and why."""
    refused: dict[str, list[str]] = {}
    for name, kind in METHODS.items():
        missing = sorted(_needs(kind) - engine.capabilities)
        if missing:
            refused.setdefault("; ".join(_missing(engine, each) for each in missing), []).append(name)
        elif kind is TLDR and not engine.levels:
            refused.setdefault("the model was not trained on levels", []).append(name)
        elif reason := _refused_control(kind, engine):
            refused.setdefault(reason, []).append(name)
    names = {name for group in refused.values() for name in group}
    device = getattr(engine, "device", None)  # of the openai engine: which kind of server, and where
    where = f" ({device})" if isinstance(device, str) else ""
    lines = [f"tokens from {engine.name}{where}; methods: {', '.join(name for name in METHODS if name not in names)}"]
    return lines + [f"refused here: {', '.join(group)}: {reason}" for reason, group in refused.items()]


def _needs(kind: type[Method]) -> frozenset[Capability]:
    """What a method needs by its defaults; some need more or less by their parameters."""
    try:
        return kind().needs
    except MethodError:  # a parameter without a default
        return kind.needs


def _refused_control(kind: type[Method], engine: Engine) -> str:
    """Why an engine refuses the control of a method by its defaults; "" where it does not, or there is none."""
    try:
        control = kind().control(engine.thinking)
        if control is not None:
            engine.check_control(control)
    except MethodError:  # a parameter without a default
        pass
    except EngineError as refused:
        return str(refused)
    return ""


def _missing(engine: Engine, capability: Capability) -> str:
    why = engine.lacking.get(capability)
    return f"no {capability}" + (f", {why}" if why else "")
