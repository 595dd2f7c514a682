"""A process that may be killed, and the handle by which its parent asks it.

The parent writes one JSON line a request and reads one JSON line back; `worker_main` is the other end. Python's
multiprocessing is not used: under its "spawn" method every child imports the main script of the parent again, and
with it whatever that imports, torch for instance. Here a child imports this room and what the grader needs.
"""

import json
import os
import subprocess
import sys
import threading
from typing import Any

from satisfice.problems.graders import GRADERS, GraderError

START_TIMEOUT = 120.0
"""Seconds until a fresh worker must have imported what it needs; slow disks and busy machines need their time."""

COMMAND = (sys.executable, "-P", "-m", "satisfice.problems.worker_main")


class WorkerCrashed(Exception):  # noqa: N818 - an outcome to be graded, not a mistake of the caller
    """The worker ended before it answered."""


class Worker:
    """One process that answers one request at a time; it is started when first asked and again after a kill."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._prepared: set[str] = set()
        self._closed = False
        self._lock = threading.Lock()

    def prepare(self, grader: str) -> None:
        """Start the process and let it import what `grader` needs.

        Raises:
            GraderError: it cannot start or cannot import it.
        """
        if self._process is not None and grader in self._prepared:
            return
        name = grader.partition(":")[0]
        if GRADERS.only_here(name):
            raise GraderError(
                f"grader {name!r} was put in from Python, so the process that grades does not know it: write it into a "
                "file and load that with satisfice.plugins.load_plugins"
            )
        file = GRADERS.file_of(name)
        plugin = (file.path, file.text.decode("latin-1")) if file else None  # bytes as JSON can carry them
        # A process that was there before may have died while it was idle, and its time may run out just as it replies.
        reason: Exception | None = None
        for _ in range(2):
            try:
                self.ask("prepare", grader, plugin, timeout=START_TIMEOUT)
            except (WorkerCrashed, TimeoutError) as error:
                reason = error
            if self._process is not None:  # else it was killed, and what it had imported is gone with it
                self._prepared.add(grader)
                return
        raise GraderError(
            f"the process of grader {grader!r} does not start; see what {' '.join(COMMAND)} says"
        ) from reason

    def ask(self, function: str, *arguments: Any, timeout: float) -> Any:
        """The result of the functions that `worker_main` offers, computed in the process.

        Raises:
            TimeoutError: it took longer than `timeout` seconds; the process has been killed.
            WorkerCrashed: the process ended by itself, over these arguments or before, while it was idle.
            GraderError: the function refused its arguments.
        """
        process = self._running_process()
        # The reply and the end of the time may come together: whichever takes the lock first has happened.
        deciding = threading.Lock()
        answered = timed_out = False

        def kill() -> None:
            nonlocal timed_out
            with deciding:
                timed_out = not answered
            if timed_out:
                process.kill()

        timer = threading.Timer(timeout, kill)
        timer.daemon = True
        timer.start()
        line = ""
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([function, arguments, timeout]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):
            pass  # the pipe broke or was closed: the process is gone, which the missing reply says below
        finally:
            with deciding:
                answered = True
            timer.cancel()
        complete = line.endswith("\n")
        if timed_out or not complete:
            self.kill()
        if not complete:
            if timed_out:
                raise TimeoutError(f"no reply after {timeout:g} s")
            raise WorkerCrashed
        reply = json.loads(line)
        if "refused" in reply:
            raise GraderError(reply["refused"])
        return reply["result"]

    def kill(self) -> None:
        """End the process at once; the next request starts another one."""
        with self._lock:
            process, self._process = self._process, None
            self._prepared.clear()
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                try:
                    if pipe is not None:
                        pipe.close()
                except OSError:
                    pass  # what was still to be written to a dead process is of no use

    @property
    def closed(self) -> bool:
        """Whether the process was ended for good."""
        return self._closed

    def close(self) -> None:
        """End the process for good."""
        with self._lock:
            self._closed = True
        self.kill()

    def _running_process(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._closed:
                raise WorkerCrashed
            if self._process is None:
                self._process = subprocess.Popen(
                    COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env=os.environ
                    | {
                        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
                        "PYTHONHASHSEED": "0",
                        # Every thread of a BLAS reserves address space, which is limited here.
                        "OMP_NUM_THREADS": "1",
                        "OPENBLAS_NUM_THREADS": "1",
                    },
                )
            return self._process
