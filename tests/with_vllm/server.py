"""A real `vllm serve` on loopback."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from satisfice.problems import load_problems

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
QUESTIONS = [problem.prompt for problem in load_problems("lab:test", limit=16).problems]


class Server:
    """A server that was started for these tests.

    Attributes:
        url: its address.
        process: it.
    """

    def __init__(self, model: Path, log: Path, *arguments: str, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        # vLLM for CPUs comes under another name, which its `vllm` command does not know; the module is the same.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--served-model-name", "lab", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
        command += ["--dtype", "float32", "--distributed-executor-backend", "uni"]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=out,
                stderr=out,
                env={**os.environ, **ENVIRONMENT, **environment},
                start_new_session=True,
            )

    def wait(self, seconds: float = 400) -> None:
        """Until it answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
                return
            except OSError:
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """End it, and the processes that it started."""
        for order in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, order)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)

    def post(self, path: str, **body: object) -> tuple[int, dict]:
        """Status and answer of a request."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def chat(self, question: str = QUESTIONS[0], **body: object) -> tuple[int, dict]:
        """Status and answer of a chat request; greedy and with the markers in the text, unless told otherwise."""
        settings = {"temperature": 0, "max_tokens": 200, "skip_special_tokens": False}
        messages = [{"role": "user", "content": question}]
        return self.post("/v1/chat/completions", model="lab", messages=messages, **(settings | body))

    def text(self, question: str = QUESTIONS[0], **body: object) -> str:
        """The text that a chat request is answered with."""
        status, answer = self.chat(question, **body)
        assert status == 200, answer
        return answer["choices"][0]["message"]["content"]
