"""The watch of a server: a random share of its requests is answered by the baseline too, and an alarm compares.

Nobody waits for it. Whether a request is shadowed is drawn when it arrives, before anything is known of it, and its
shadow runs when no request waits for its turn, at most a share of the server's capacity at once. A shadow that has
begun is ended early by nothing but the time limit of all requests and the end of the server: a long one would be ended
more often, and the estimate would be one of short ones. Whatever is drawn and comes to no comparison is counted by what
became of it, and where that is more than `MOST_LOST` of what was drawn, /health, the metrics and the log say so.

Without gold answers the number is disagreement: how often the method's answer is another than the baseline's. It is no
harm by itself, and bounds it from above.
"""

import asyncio
import json
import logging
import os
import random
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satisfice.engines.base import EngineError, Sampling
from satisfice.intervention import Method
from satisfice.intervention.methods.plain import Plain
from satisfice.intervention.stops import Stops
from satisfice.problems import GraderPool, Problem
from satisfice.runs.certificate import thinking_digest
from satisfice.runs.run_folder import write_atomically
from satisfice.runs.watch import AnswerWatch
from satisfice.trace import Trace

if TYPE_CHECKING:
    from satisfice.server.app import ChatServer

log = logging.getLogger("satisfice.server")

ON_ALARM = ("baseline", "next", "warn")
WAITING = 256
"""Shadows that may wait for their turn."""
PAUSE = 0.02
"""Seconds between two looks whether there is room for a shadow."""
OUTCOMES = ("compared", "failed", "timeout", "dropped", "unanswered", "shutdown")
"""What comes of a request that was drawn: both answers were compared; the shadow failed; it took longer than a request
may; too many shadows waited; the request itself got no response to compare, because it failed, took too long or its
client went; the server ended first."""
MOST_LOST = 0.02
"""Share of the requests drawn that may come to no comparison before it is said."""


@dataclass(frozen=True)
class WatchSettings:
    """What an operator decides about the watch.

    Attributes:
        share: of the requests that are answered by the baseline too.
        max_loss: disagreement that is allowed.
        confidence: that no alarm is ever raised while it is at most that.
        on_alarm: "baseline" answers with the baseline from then on, "next" with the next more careful certified
            setting, "warn" goes on.
        careful: that next setting; None where there is none, which is the baseline then.
        state: the file in which the watch survives a restart; None keeps nothing.
        capacity: share of the requests answered at once that shadows may be at most.
        baseline: what is compared with.

    Raises:
        ValueError: a number is out of its range.
    """

    share: float
    max_loss: float = 0.03
    confidence: float = 0.95
    on_alarm: str = "warn"
    careful: Method | None = None
    state: Path | None = None
    capacity: float = 0.1
    baseline: Method = field(default_factory=Plain)

    def __post_init__(self) -> None:
        for name, value, good, rule in (
            ("--shadow", self.share, 0 < self.share <= 1, "above 0 and at most 1: 0.02 shadows one request in fifty"),
            ("--max-loss", self.max_loss, 0 < self.max_loss < 1, "between 0 and 1: 0.03 is three points"),
            ("--confidence", self.confidence, 0 < self.confidence < 1, "between 0 and 1, for example 0.95"),
            ("--on-alarm", self.on_alarm, self.on_alarm in ON_ALARM, f"one of {', '.join(ON_ALARM)}"),
            ("--shadow-capacity", self.capacity, 0 < self.capacity <= 1, "above 0 and at most 1"),
        ):
            if not good:
                raise ValueError(f"{name} is {value}; it must be {rule}")


class Watch:
    """The shadows of one server.

    Args:
        server: whose requests are shadowed.
        settings: what the operator decides.

    Attributes:
        method: that is watched: the server's for requests that name none.
        answers: the alarm over pairs of answers.
        tokens: that shadows have cost.
        outcomes: how many of the requests that were drawn came to each of `OUTCOMES`.
        replacement: what answers in place of the watched method since an alarm; None while it answers itself.

    Raises:
        ValueError: the file of the state is of another watch or damaged.
    """

    def __init__(self, server: "ChatServer", settings: WatchSettings) -> None:
        self._server, self.settings = server, settings
        self.method = server.settings.method
        if str(self.method) == str(settings.baseline):
            raise ValueError(
                f"--shadow compares with {settings.baseline}, which is what this server answers with anyway: "
                "give --method or --calibrated, or leave --shadow out"
            )
        settings.baseline.check(server.engine)
        if settings.careful is not None:
            settings.careful.check(server.engine)
        self.answers = AnswerWatch(settings.max_loss, settings.confidence)
        self.tokens = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self._said_lost = self._alarmed = False
        self.replacement: Method | None = None
        self._random = random.Random()
        self._waiting: deque[tuple[Problem, Sampling, Stops, Trace]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump: asyncio.Task[None] | None = None
        self._graders = GraderPool(workers=1)
        self._closed = False
        self._lock = None if settings.state is None else _held(settings.state)
        self._restore()

    @property
    def under_way(self) -> int:
        """Shadows that run or wait."""
        return len(self._tasks) + len(self._waiting)

    def draws(self, method: Method) -> bool:
        """Whether a request that has just arrived for this method is shadowed."""
        watched = self.replacement is None and str(method) == str(self.method)
        return watched and self._random.random() < self.settings.share

    def stands_in(self, method: Method) -> Method:
        """What answers for a method that the operator chose: itself, or after an alarm its replacement."""
        return self.replacement if self.replacement is not None and str(method) == str(self.method) else method

    def offer(self, problem: Problem, sampling: Sampling, stops: Stops, trace: Trace) -> None:
        """A request that was drawn has its answer."""
        if len(self._waiting) >= WAITING:
            self._lost("dropped")
            return
        self._waiting.append((problem, sampling, stops, trace))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())

    def unanswered(self, shutdown: bool = False) -> None:
        """A request that was drawn came to no response that could be compared."""
        self._lost("shutdown" if shutdown else "unanswered")

    @property
    def lost(self) -> float:
        """The share of the requests drawn that came to no comparison, of those of which it is known; 0 of none."""
        drawn = sum(self.outcomes.values())
        return 1 - self.outcomes["compared"] / drawn if drawn else 0.0

    @property
    def notes(self) -> list[str]:
        """What has to be said beside the numbers."""
        found = [self.answers.note] if self.answers.note else []
        if self.lost > MOST_LOST:
            drawn = sum(self.outcomes.values())
            reasons = ", ".join(
                f"{count} {name}" for name, count in self.outcomes.items() if count and name != "compared"
            )
            found.append(
                f"{drawn - self.outcomes['compared']} of {drawn} shadowed requests ({self.lost:.1%}) came to no "
                f"comparison ({reasons}): the numbers hold for the others only, and what is lost may be what differs"
            )
        return found

    def report(self) -> dict[str, Any]:
        """For /health and whoever asks."""
        return {
            "method": str(self.method),
            "baseline": str(self.settings.baseline),
            "counts": "disagreement with the baseline",
            **self.answers.report(),
            "answered_by": str(self.replacement or self.method),
            "shadows": dict(self.outcomes),
            "lost": self.lost,
            "shadow_tokens": self.tokens,
            "notes": self.notes,
        }

    def close(self) -> None:
        """End all shadows; what they would have said is lost, and counted."""
        if self._closed:
            return
        self._closed = True
        for task in [*self._tasks, *([self._pump] if self._pump else [])]:
            task.cancel()
        self.outcomes["shutdown"] += self.under_way
        self._waiting.clear()
        if any(self.outcomes.values()):
            self._keep()
        self._graders.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _run(self) -> None:
        server, most = self._server, max(1, int(self.settings.capacity * self._server.settings.max_concurrency))
        while self._waiting:
            room = server.running + len(self._tasks) < server.settings.max_concurrency or not server.running
            if len(self._tasks) < most and server.waiting == 0 and room:
                task = asyncio.create_task(self._shadow(*self._waiting.popleft()))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                await asyncio.sleep(PAUSE)

    async def _shadow(self, problem: Problem, sampling: Sampling, stops: Stops, trace: Trace) -> None:
        try:
            async with asyncio.timeout(self._server.settings.timeout):
                base = await self.settings.baseline.solve(self._server.engine, problem, sampling, stops=stops)
            self.tokens += base.cost.total_tokens
            await self.answers.compare(self._graders, trace, base, problem.grader)
        except TimeoutError:
            log.warning("a shadow took longer than %g s", self._server.settings.timeout)
            self._lost("timeout")
            return
        except EngineError as error:
            log.warning("a shadow failed: %s", error)
            self._lost("failed")
            return
        except Exception:
            log.exception("a shadow failed")
            self._lost("failed")
            return
        self.outcomes["compared"] += 1
        if self.answers.alarm.raised_at is not None and not self._alarmed:
            self._alarm()
        self._keep()

    def _lost(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        if self.lost <= MOST_LOST:
            self._said_lost = False
        elif not self._said_lost:
            self._said_lost = True
            log.warning("the watch: %s", self.notes[-1])
        self._keep()

    def _alarm(self) -> None:
        self._alarmed = True  # shadows that were under way add to the numbers, and nothing to this
        settings, found = self.settings, self.answers.report()
        if settings.on_alarm != "warn":
            careful = settings.careful if settings.on_alarm == "next" else None
            self.replacement = careful or settings.baseline
        then = "goes on" if self.replacement is None else f"is replaced by {self.replacement}"
        log.warning(
            "ALARM: %s disagrees with %s on more than %.1f %% of requests (seen on %.1f %% of %d, %.1f to %.1f %%; "
            "confidence %g): it %s",
            self.method, settings.baseline, 100 * settings.max_loss, 100 * found["disagreement"], found["compared"],
            100 * found["low"], 100 * found["high"], settings.confidence, then,
        )  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        """What is watched: a state of anything else says nothing of it."""
        engine = self._server.engine
        sampling = {**asdict(engine.default_sampling), "max_tokens": self._server.settings.max_tokens}
        del sampling["seed"]
        identity = {
            "method": str(self.method),
            "baseline": str(self.settings.baseline),
            "model": engine.name,
            "weights": engine.digest,
            "thinking": thinking_digest(engine.thinking),
            "sampling": sampling,
        }
        return dict(json.loads(json.dumps(identity)))  # as it will be read again: JSON has no tuples

    def _keep(self) -> None:
        if self.settings.state is None:
            return
        state = {
            **self._identity(),
            "answers": self.answers.state(),
            "tokens": self.tokens,
            "outcomes": self.outcomes,
            # What is still open when the process is killed; the shadow that has just ended is not.
            "under_way": 0 if self._closed else self.under_way - (asyncio.current_task() in self._tasks),
        }
        try:
            write_atomically(self.settings.state, json.dumps(state) + "\n")
        except OSError as error:
            log.error("the watch cannot write %s: %s", self.settings.state, error)

    def _restore(self) -> None:
        path = self.settings.state
        if path is None or not path.exists():
            return
        try:
            state = json.loads(path.read_bytes())
            other = _differing(state, self._identity())
            bound, confidence = float(state["answers"]["alarm"]["bound"]), float(state["answers"]["confidence"])
            mine = {"max loss": self.settings.max_loss, "confidence": self.settings.confidence}
            other += _differing({"max loss": bound, "confidence": confidence}, mine)
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            raise ValueError(self._no_state(error)) from None
        if other:
            raise ValueError(
                f"{path} is the state of another watch ({'; '.join(other)}): remove it to begin anew, or give another "
                "--watch-state"
            )
        try:
            answers = AnswerWatch.from_state(state["answers"])
            tokens, outcomes = int(state["tokens"]), {name: int(state["outcomes"][name]) for name in self.outcomes}
            outcomes["shutdown"] += int(state["under_way"])
            if outcomes["compared"] != answers.alarm.n or min(outcomes.values()) < 0:
                raise ValueError(f"{outcomes['compared']} compared, and {answers.alarm.n} in the test")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(self._no_state(error)) from None
        self.answers, self.tokens, self.outcomes = answers, tokens, outcomes
        log.info("the watch goes on after %d compared responses", answers.alarm.n)
        if answers.alarm.raised_at is not None:
            self._alarm()

    def _no_state(self, error: Exception) -> str:
        return f"{self.settings.state} holds no state of a watch ({error!r}): remove it, or give another --watch-state"


def _held(state: Path) -> int:
    """Keep the file of a state to this process: two servers would write over what the other has counted.

    Returns:
        the descriptor that holds it, of a file beside it, because the state itself is replaced again and again.

    Raises:
        ValueError: another process has it, or it cannot be written.
    """
    import fcntl  # exists on Unix only, and whoever watches by the library alone needs none of this

    path = state.with_name(f"{state.name}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"--watch-state {state} cannot be written: {error.strerror}") from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ValueError(f"another server keeps its watch in {state}: give this one another --watch-state") from None
    return descriptor


def _differing(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, a clause each; of sampling what differs in it."""
    found = []
    for name, value in now.items():
        before = was.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            found += _differing(before, value)
        elif before != value:
            found.append(f"{name} {'not said' if before is None else repr(before)} instead of {value!r}")
    return found
