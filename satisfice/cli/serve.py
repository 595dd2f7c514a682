"""`satisfice serve`."""

import logging
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from satisfice.cli.certified import certificate_of, warn_of_differences, warn_of_time
from satisfice.cli.options import (
    Calibrated,
    ConfidenceIfGiven,
    EngineOptions,
    MaxLossIfGiven,
    MaxTokens,
    MethodName,
    Plugins,
    pair,
)

if TYPE_CHECKING:
    from satisfice.runs.certificate import Certificate
    from satisfice.server.watch import WatchSettings

_server = partial(typer.Option, rich_help_panel="Server")
_bounds = partial(typer.Option, rich_help_panel="Bounds of requests")
_watch = partial(typer.Option, rich_help_panel="Watch (--shadow)")


@dataclass(frozen=True)
class ServerOptions:
    """Where the server listens, and what clients may call by which name."""

    host: Annotated[str, _server(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1"
    port: Annotated[int, _server(min=0, max=65535, help="0 takes a free one.")] = 8000
    served_name: Annotated[str | None, _server(help="What clients call the model; as given here unless set.")] = None
    effort: Annotated[
        list[str] | None,
        _server(help="NAME=METHOD, or NAME=FILE of `calibrate`: what a reasoning_effort stands for."),
    ] = None
    grace: Annotated[float, _server(min=0, help="Seconds that running requests have after SIGTERM.")] = 30.0


@dataclass(frozen=True)
class BoundOptions:
    """What requests may ask for, and how many at once."""

    max_concurrency: Annotated[int, _bounds(min=1, help="Requests answered at once.")] = 64
    max_queue: Annotated[int, _bounds(min=0, help="Requests that may wait besides; others get 429.")] = 256
    max_breadth: Annotated[int, _bounds(min=1, help="Sequences that one request may write at once.")] = 256
    max_request_tokens: Annotated[
        int | None, _bounds(min=1, help="Tokens that one request may have generated, samples and probes included.")
    ] = None
    max_body: Annotated[int, _bounds(min=1, help="Bytes of one request.")] = 1 << 20
    timeout: Annotated[float, _bounds(min=0.1, help="Seconds for one request, waiting included.")] = 600.0


@dataclass(frozen=True)
class WatchOptions:
    """How the answers of the method are watched: a share of the requests is answered by the baseline too.

    None stands for what `WatchSettings` has by default, so that what was given without --shadow can be refused.
    """

    shadow: Annotated[float | None, _watch(help="Share of the requests; none unless set.")] = None
    max_loss: MaxLossIfGiven = None
    confidence: ConfidenceIfGiven = None
    on_alarm: Annotated[
        str | None,
        _watch(help="baseline answers from then on, next more careful certified setting, or only warn (unless set)."),
    ] = None
    watch_state: Annotated[
        Path | None, _watch(help="File in which the watch survives a restart; satisfice-watch.json unless set.")
    ] = None
    shadow_capacity: Annotated[
        float | None, _watch(help="Share of --max-concurrency that shadows take at most; 0.1 unless set.")
    ] = None

    def settings(self, certificate: "Certificate | None") -> "WatchSettings | None":
        """What was asked for; None where no request is shadowed.

        Raises:
            ValueError: an option has no effect without another, or a number is out of its range.
        """
        from satisfice.server.watch import WatchSettings

        given = {name: value for name, value in asdict(self).items() if value is not None}
        if self.shadow is None:
            if given:
                idle = ", ".join(f"--{name.replace('_', '-')}" for name in given)
                raise ValueError(f"{idle} has no effect without --shadow SHARE, which watches: add it, or leave it out")
            return None
        if self.on_alarm == "next" and certificate is None:
            raise ValueError(
                "--on-alarm next needs --calibrated FILE, which says what the next more careful setting is"
            )
        names = {"shadow": "share", "watch_state": "state", "shadow_capacity": "capacity"}
        chosen = {names.get(name, name): value for name, value in given.items()}
        if certificate is not None:
            chosen |= {"careful": certificate.more_careful(), "baseline": certificate.against()}
        return WatchSettings(**{"state": Path("satisfice-watch.json"), **chosen})


def serve(
    *,
    method: MethodName = "plain",
    calibrated: Calibrated = None,
    plugin: Plugins = None,
    engine: EngineOptions,
    server: ServerOptions,
    bounds: BoundOptions,
    watch: WatchOptions,
    max_tokens: MaxTokens = None,
) -> None:
    """Serve a model over HTTP as OpenAI's API, every method included. API keys: SATISFICE_API_KEY=KEY[,KEY...].

    Requests that name no method are answered with --method, or with the method of a certificate. With --shadow a
    share of them is answered by the baseline too, off the user's path, and an alarm tells when too many answers
    differ.

    Example: satisfice serve lab --port 8000 --effort low=budget-forcing:max_thinking=70
    """
    if not all(find_spec(package) for package in ("fastapi", "prometheus_client", "uvicorn")):
        raise ValueError("serving needs the serve extra: in a clone of satisfice, pip install -e '.[serve]'")
    from satisfice.intervention import parse_method
    from satisfice.runs.certificate import read_certificate
    from satisfice.server.app import Settings
    from satisfice.server.process import serve as run_server
    from satisfice.server.wishes import efforts_from

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("satisfice.server").setLevel(logging.INFO)
    given = dict(pair("--effort", text, "low=temperature-scaling:t=0.7") for text in server.effort or [])
    keys = tuple(key.strip() for key in os.environ.get("SATISFICE_API_KEY", "").split(",") if key.strip())
    certificate = certificate_of(calibrated, method)
    chosen = parse_method(method) if certificate is None else certificate.chosen()
    watched = watch.settings(certificate)
    with engine.opened(methods=None) as opened:
        most = max_tokens or min(opened.default_sampling.max_tokens, opened.context_length)
        files = [read_certificate(spelled) for spelled in given.values() if spelled.endswith(".json")]
        for each in [*([certificate] if certificate is not None else []), *files]:
            warn_of_differences(each, opened, replace(opened.default_sampling, max_tokens=most), "", "")
        efforts = efforts_from(given, opened.levels)
        warn_of_time([chosen, *efforts.values()], opened)
        settings = Settings(
            server.served_name or engine.model,
            chosen,
            efforts,
            keys,
            bounds.max_concurrency,
            bounds.max_queue,
            most,
            bounds.max_breadth,
            bounds.max_body,
            bounds.timeout,
            bounds.max_request_tokens,
            watched,
        )
        run_server(opened, settings, server.host, server.port, server.grace)
