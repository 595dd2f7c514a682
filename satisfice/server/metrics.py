"""What the server counts, for Prometheus. Labels are names from short lists, never anything that a client wrote."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from satisfice.server.protocol import probes
from satisfice.trace import Trace

if TYPE_CHECKING:
    from satisfice.server.watch import Watch

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768)

TOKEN_PHASES = {
    "thinking": "thinking_tokens",
    "answer": "answer_tokens",
    "probe": "probe_tokens",
    "branch": "branch_tokens",
    "outline": "outline_tokens",
    "prefilled": "prefilled_tokens",
    "cached": "cached_tokens",
}
"""Fields of `Cost` by the name of what the tokens were for."""


class Metrics:
    """The counters of one server, in a registry of their own.

    Args:
        running, waiting: how many requests are being answered, and how many wait for their turn.
    """

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("satisfice_requests_running", "Requests being answered.", registry=registry).set_function(running)
        Gauge("satisfice_requests_waiting", "Requests in the queue.", registry=registry).set_function(waiting)
        self._requests = Counter(
            "satisfice_requests",
            "Chat completions by method and outcome: ok, refused, failed, timeout, disconnect or shutdown.",
            ["method", "outcome"],
            registry=registry,
        )
        self._refusals = Counter(
            "satisfice_refusals", "Requests refused before they were a chat completion, by status.", ["status"],
            registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "satisfice_tokens", "Tokens of answered requests by what they were for.", ["phase"], registry=registry
        )
        self._stops = Counter(
            "satisfice_stops", "Why thinking ended, by method.", ["method", "reason"], registry=registry
        )
        self._truncated = Counter(
            "satisfice_truncated", "Responses that the token limit cut off.", ["method"], registry=registry
        )
        self._probes = Counter("satisfice_probes", "Trial answers asked on the side.", ["method"], registry=registry)
        self._seconds = Histogram(
            "satisfice_request_seconds",
            "From a request to the end of its response, waiting included.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "satisfice_first_text_seconds",
            "From a request to the first text that was ready to send.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        self._thinking = Histogram(
            "satisfice_thinking_tokens", "Thinking tokens of a response.", ["method"], buckets=TOKENS, registry=registry
        )

    def watch(self, watch: "Watch") -> None:
        """Show what the watch knows, read whenever somebody asks."""
        for name, meaning, value in (
            ("disagreement", "Share of shadowed requests whose answer is not the baseline's.",
             lambda: watch.answers.report()["disagreement"] or 0.0),
            ("disagreement_low", "Lower end of its confidence sequence.", lambda: watch.answers.report()["low"]),
            ("disagreement_high", "Upper end of its confidence sequence.", lambda: watch.answers.report()["high"]),
            ("e_value", "Evidence against the bound; 1 / (1 - confidence) raises the alarm.",
             lambda: watch.answers.alarm.largest),
            ("alarm", "1 since an alarm.", lambda: float(watch.answers.alarm.raised_at is not None)),
            ("shadow_tokens", "Tokens that shadows have cost.", lambda: float(watch.tokens)),
            ("lost", "Share of the requests drawn that came to no comparison.", lambda: watch.lost),
            ("unanswered", "Compared pairs in which neither side gave an answer; they count as agreeing.",
             lambda: float(watch.answers.unanswered)),
            ("shadows_under_way", "Shadows that run or wait.", lambda: float(watch.under_way)),
        ):  # fmt: skip
            Gauge(f"satisfice_watch_{name}", meaning, registry=self._registry).set_function(value)
        shadows = Gauge(
            "satisfice_watch_shadows", "Shadows by what came of them.", ["outcome"], registry=self._registry
        )
        for outcome in watch.outcomes:
            shadows.labels(outcome).set_function(lambda outcome=outcome: float(watch.outcomes[outcome]))

    def count(self, method: str, outcome: str) -> None:
        """A request that came to an end."""
        self._requests.labels(method, outcome).inc()

    def refused(self, status: int) -> None:
        """A request that was none."""
        self._refusals.labels(str(status)).inc()

    def first_text(self, method: str, seconds: float) -> None:
        """The first text of a response."""
        self._first.labels(method).observe(seconds)

    def answered(self, method: str, traces: list[Trace], seconds: float) -> None:
        """A request that got its response."""
        self._seconds.labels(method).observe(seconds)
        for trace in traces:
            for phase, field in TOKEN_PHASES.items():
                self._tokens.labels(phase).inc(getattr(trace.cost, field))
            self._stops.labels(method, trace.stop).inc()
            self._truncated.labels(method).inc(trace.truncated)
            self._probes.labels(method).inc(probes(trace))
            self._thinking.labels(method).observe(trace.cost.thinking_tokens)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return bytes(generate_latest(self._registry))
