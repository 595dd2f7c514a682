"""What runs in a worker process: requests from standard input, one JSON line each, answered on standard output."""

import json
import os
import signal
import sys

from satisfice.problems import graders, gym

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of address space, where the system can limit it."""

FUNCTIONS = {"prepare": graders.prepare, "judge": graders.judge, "make_problems": gym.make_problems}


def serve() -> None:
    """Answer requests from standard input until it ends."""
    # A library that prints must not write between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_resources()
    for line in sys.stdin:
        function, arguments, timeout = json.loads(line)
        # The parent kills this process in time. Where the parent itself was killed, the alarm does it.
        if sys.platform != "win32":
            signal.alarm(int(timeout) + 5)
        try:
            reply = {"result": FUNCTIONS[function](*arguments)}
        except (graders.GraderError, gym.GymError) as error:
            reply = {"refused": str(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        if sys.platform != "win32":
            signal.alarm(0)


def _limit_resources() -> None:
    if sys.platform == "win32":
        return
    import resource

    for what, limit in ((resource.RLIMIT_AS, MEMORY_LIMIT), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(what, (limit, limit))
        except (OSError, ValueError):
            pass  # macOS knows the limit of address space but does not set it


if __name__ == "__main__":
    serve()
