"""What runs in a worker process: requests from standard input, one JSON line each, answered on standard output.

Nine sets of reasoning-gym pass the answer to `eval`. While an answer is judged, an audit hook therefore refuses to
write files, to start processes and to use the network. That stops what a model may write by accident or by habit; it
is no sandbox against code that was written to break out.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from satisfice.problems import graders, gym
from satisfice.registry import PluginError, PluginFile, load_file

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of address space, where the system can limit it."""


def prepare(grader: str, plugin: Sequence[str] | None = None) -> None:
    """Load the plugin file that a grader comes from, given as path and text, and import what it needs.

    Raises:
        GraderError: the grader cannot be loaded here.
    """
    try:
        if plugin is not None:
            load_file(PluginFile(plugin[0], plugin[1].encode("latin-1")))
        graders.prepare(grader)
    except PluginError as error:
        raise graders.GraderError(
            f"{error} (in the process that grades, which may use {MEMORY_LIMIT >> 30} GiB: a grader that stands beside "
            "code that loads torch, such as a method, needs a file of its own)"
        ) from error


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "prepare": prepare,
    "judge": graders.judge,
    "make_problems": gym.make_problems,
}

_SIDE_EFFECTS = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "builtins.input")
_HARMLESS = ("os.listdir", "os.scandir")
_judging = SimpleNamespace(value=False)


def serve() -> None:
    """Answer requests from standard input until it ends."""
    # A library that prints must not write between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_resources()
    sys.addaudithook(_refuse_side_effects)
    for line in sys.stdin:
        function, arguments, timeout = json.loads(line)
        # The parent kills this process in time. Where the parent itself was killed, the alarm does it.
        if sys.platform != "win32":
            signal.alarm(int(timeout) + 5)
        _judging.value = function == "judge"
        try:
            reply = {"result": FUNCTIONS[function](*arguments)}
        except (graders.GraderError, gym.GymError) as error:
            reply = {"refused": str(error)}
        _judging.value = False
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        if sys.platform != "win32":
            signal.alarm(0)


def _refuse_side_effects(event: str, arguments: tuple[Any, ...]) -> None:
    if not _judging.value or event in _HARMLESS:
        return
    writing = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writing or event.startswith(_SIDE_EFFECTS):
        raise PermissionError(f"an answer must not cause {event}")


def _limit_resources() -> None:
    if sys.platform == "win32":
        return
    import resource

    for what, limit in ((resource.RLIMIT_AS, MEMORY_LIMIT), (resource.RLIMIT_CORE, 0)):
        # macOS knows a limit of address space but refuses to set it.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (limit, limit))


if __name__ == "__main__":
    serve()
