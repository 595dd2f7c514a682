"""A server in a thread on a free loopback port, and an engine whose requests wait until a test lets them go."""

import asyncio
import http.client
import json
import threading
from contextlib import contextmanager

from intervention.scripted import ScriptedEngine, follow

from satisfice.server.app import ChatServer, Settings
from satisfice.server.process import listen, process

QUESTION = "Start with 10. Steps in the order of their letters: c) +5, d) *3. What is the result?"


class Running:
    """A server that answers.

    Attributes:
        chat: what it serves.
        process: what runs it.
        port: where it listens, on the loopback interface.
    """

    def __init__(self, engine, grace, **settings):
        self.chat = ChatServer(engine, Settings(**{"model": "lab", "max_tokens": 320, **settings}))
        self.process = process(self.chat, grace)
        self._socket = listen("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self.process.run, args=([self._socket],), daemon=True)
        self._thread.start()

    def client(self, **options):
        import openai

        options = {"api_key": "none", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", **options)

    def request(self, method, path, body=None, headers=None):
        """Status, headers and body of a request by hand."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = {"content-type": "application/json", **(headers or {})} if method == "POST" else headers or {}
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def post(self, headers=None, **fields):
        """Status, headers and parsed body of a chat completion by hand."""
        fields = {"model": "lab", "messages": [{"role": "user", "content": QUESTION}], **fields}
        status, answered, body = self.request("POST", "/v1/chat/completions", json.dumps(fields), headers)
        return status, answered, json.loads(body)

    def metric(self, name):
        """The value of one line of the metrics, 0 where it is not there yet."""
        for line in self.request("GET", "/metrics")[2].decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def end(self):
        self.process.should_exit = True
        self.chat.stop("shutdown")
        self._thread.join(30)
        self._socket.close()
        assert not self._thread.is_alive()


@contextmanager
def serving(engine, grace=30.0, **settings):
    running = Running(engine, grace, **settings)
    try:
        yield running
    finally:
        running.end()


class HeldEngine(ScriptedEngine):
    """Answers once `release` is called; until then it counts who waits and who was cancelled."""

    def __init__(self, tokenizer, **options):
        text = "<think>\nSo 45.\n\n</think>\n\nThe answer is \\boxed{45}."
        super().__init__(tokenizer, follow(tokenizer, text), **options)
        self.held = True
        self.failure = None
        self.waiting = 0
        self.stopped = 0

    async def generate(self, prompt_ids, sampling, **options):
        self.waiting += 1
        try:
            while self.held:
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        finally:
            self.waiting -= 1
        if self.failure is not None:
            raise self.failure
        return await super().generate(prompt_ids, sampling, **options)
