"""A server of the completions protocol over real HTTP on loopback, whose every word and every fault is scripted."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from satisfice.engines.base import Sampling
from satisfice.thinking import decode

QUESTION = "Start with 10. Steps in the order of their letters: c) +5, d) *3. What is the result?"
RESPONSE = "10 + 5 = 15.\n15 * 3 = 45.\nWait, let me check.\n10 + 5 = 15.\n</think>\n\nThe answer is \\boxed{45}."
FLAT = [-1.0 - 0.25 * rank for rank in range(30)]
"""Log-probabilities of the likeliest tokens, whatever was asked."""


@dataclass
class Fault:
    """What goes wrong with one completion request.

    Attributes:
        status: answer with this status instead.
        headers: of that answer.
        silent: seconds of silence before anything is said.
        drop_after: close the connection after so many messages of a stream.
        body: answer with this text instead; HEADERS in it stands for the headers of the request.
        event: write this in place of the first message of a stream.
        finish: the finish reason, in place of the true one.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    silent: float = 0.0
    drop_after: int | None = None
    body: str | None = None
    event: str | None = None
    finish: str | None = None


class FakeServer:
    """Serves one model, whose answer to `prompt` is `answer`, and goes on with it from any prefix.

    Attributes:
        kind: "vllm", "llamacpp" or "standard".
        faults: taken one by one, by completion requests in the order in which they come.
        requests: bodies of the completion requests so far.
        times: when they came.
        most_at_once: how many of them were under way at once at most.
        given_up: how many streams were closed by the client before they had ended.
        caches: whether it keeps prompts, and says so.
        chunk: tokens in one message of a stream.
        pause: seconds between two messages.
        key: the key that it asks for.
        refuses: parameters that it refuses with 400.
        processed: whether its log-probabilities are those after temperature.
        completes: whether it has completions at all.
        adds_bos: whether it puts a token before a prompt that is a text.
        lists: the models that it says it has.
        context_length: what it says of each.
        plugin: whether it runs satisfice's plugin.
        stop_reason: what it says ended an answer that did not come to its limit.
        root: the path under which it serves.
        broken: what goes wrong with every completion request.
        broken_list: what goes wrong with every request for the list of models.
        cap: tokens that it writes at most, whatever it was asked for.
        endless: whether it goes on past max_tokens and past the end, up to so many messages.
        nulls: whether a message without text has null for it.
        others: answers that it likes less than `answer`, each less than the one before. Of those that begin like the
            response so far, each has a token to go on with: the first has a logit of 10 there, the next of 8 and so on,
            all other tokens of 0.
        obeys_bias: whether it adds `logit_bias` to these.
        biased_logprobs: whether its log-probabilities are those after the bias.
        hides: tokens that it does not show as text, nor say otherwise.
    """

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int], answer: Sequence[int], kind: str = "vllm", port: int = 0
    ) -> None:
        self.tokenizer, self.prompt, self.answer, self.kind = tokenizer, list(prompt), list(answer), kind
        self.faults: list[Fault] = []
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.most_at_once = self.at_once = self.given_up = 0
        self.caches, self.chunk, self.pause, self.key = True, 1, 0.0, ""
        self.refuses: set[str] = set()
        self.processed, self.completes, self.adds_bos, self.lists = False, True, False, ["fake"]
        self.context_length: int | None = 1024
        self.plugin = False
        self.stop_reason: str | None = None
        self.root = "/v1"
        self.broken: Fault | None = None
        self.broken_list: Fault | None = None
        self.cap: int | None = None
        self.endless = 0
        self.nulls = False
        self.others: list[list[int]] = []
        self.obeys_bias, self.biased_logprobs = True, False
        self.hides: set[int] = set()
        self._seen: list[list[int]] = []
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.handle_error = lambda *request: None  # a client that hangs up is no news
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.root}"

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.listing(self)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                try:
                    server.completion(self, body)
                except (BrokenPipeError, ConnectionResetError):
                    server.given_up += 1
                    self.close_connection = True
                finally:
                    with server._lock:
                        server.at_once -= 1

        return Handler

    # -- what it says

    def listing(self, handler: Any) -> None:
        if self._refused_path(handler, "/models") or self._refused_key(handler):
            return
        if self.broken_list is not None:
            body = self.broken_list.body or {"error": {"message": "scripted"}}
            _send(handler, self.broken_list.status, body, self.broken_list.headers)
            return
        length = {} if self.context_length is None else {"max_model_len": self.context_length}
        entries = [{"id": name, "object": "model", "owned_by": self.kind, **length} for name in self.lists]
        _send(handler, 200, {"object": "list", "data": entries})

    def completion(self, handler: Any, body: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append(body)
            self.times.append(time.monotonic())
            fault = self.faults.pop(0) if self.faults else self.broken or Fault()
        if self._refused_path(handler, "/completions") or self._refused_key(handler):
            return
        if not self.completes:
            _send(handler, 404, {"error": {"message": "Not Found"}})
            return
        time.sleep(fault.silent)
        if fault.body is not None:
            body_with_headers = fault.body.replace("HEADERS", json.dumps(str(handler.headers))[1:-1])
            _send(handler, fault.status, body_with_headers, fault.headers)
            return
        if fault.status != 200:
            _send(handler, fault.status, {"error": {"message": "scripted"}}, fault.headers)
            return
        wrong = sorted(self.refuses & body.keys()) or (self._refused_prompt(body) and ["prompt"])
        if wrong:
            _send(handler, 400, {"error": {"message": f"{wrong[0]} is not known here"}})
            return
        if self.plugin and "malformed" in str(body.get("vllm_xargs")):
            _send(handler, 400, {"error": {"message": "satisfice_control is not a control"}})
            return
        ids = self._ids(body["prompt"])
        cached = self._cached(ids)
        new, finish = self._continuation(ids, body)
        if self.cap is not None and len(new) > self.cap:
            new, finish = new[: self.cap], "length"
        if self.endless:
            words = self.answer[:-1]
            new = [*new, *(words[place % len(words)] for place in range(self.endless))]
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new), "total_tokens": len(ids) + len(new)}
        if self.caches:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        if not body.get("stream"):
            message = {"choices": [self._choice(new, body, finish)], "usage": usage}
            _send(handler, 200, message)
            return
        self._stream(handler, body, new, fault.finish or finish, usage, fault, cached)

    def _stream(
        self,
        handler: Any,
        body: dict[str, Any],
        new: list[int],
        finish: str,
        usage: dict[str, Any],
        fault: Fault,
        cached: int,
    ) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        pieces = [new[place : place + self.chunk] for place in range(0, len(new), self.chunk)] or [[]]
        for count, piece in enumerate(pieces):
            if fault.drop_after == count:
                handler.connection.close()
                handler.close_connection = True
                return
            last = count == len(pieces) - 1
            message: dict[str, Any] = {"choices": [self._choice(piece, body, finish if last else None)]}
            if self.kind == "llamacpp":
                message["timings"] = {"cache_n": cached, "prompt_n": usage["prompt_tokens"] - cached}
            _event(handler, fault.event if count == 0 and fault.event is not None else json.dumps(message))
            time.sleep(self.pause)
        if body.get("stream_options", {}).get("include_usage"):
            _event(handler, json.dumps({"choices": [], "usage": usage}))
        _event(handler, "[DONE]")
        handler.wfile.write(b"0\r\n\r\n")

    def _choice(self, ids: list[int], body: dict[str, Any], finish: str | None) -> dict[str, Any]:
        shown = [token for token in ids if token != self.tokenizer.eos_token_id and token not in self.hides]
        choice: dict[str, Any] = {"index": 0, "text": decode(self.tokenizer, shown), "finish_reason": finish}
        if self.nulls and not choice["text"]:
            choice["text"] = None
        count = body.get("logprobs") or 0
        scale = 1 / (body["temperature"] or 1) if self.processed else 1
        tops = [{(token + rank) % len(self.tokenizer): scale * FLAT[rank] for rank in range(count)} for token in ids]
        for token, top in zip(ids, tops, strict=True):
            if count and (body.get("logit_bias") or {}).get(str(token), 0) >= 100:  # far from likely by itself
                top.update({token: -60.0, (token + count) % len(self.tokenizer): FLAT[0]})
        if self.biased_logprobs and body.get("logit_bias"):
            tops = [{token: -100.0 * rank for rank, token in enumerate(top)} for top in tops]
        if self.kind == "vllm":
            if body.get("return_token_ids"):
                choice["token_ids"] = ids
                choice["stop_reason"] = self.stop_reason if finish == "stop" else None
            if count:
                choice["logprobs"] = {
                    "tokens": [f"token_id:{token}" for token in ids],
                    "token_logprobs": [scale * FLAT[0]] * len(ids),
                    "top_logprobs": [{f"token_id:{t}": value for t, value in top.items()} for top in tops],
                }
        if self.kind == "llamacpp" and count:
            choice["logprobs"] = {
                "content": [
                    {
                        "id": token,
                        "logprob": FLAT[0] * scale,
                        "top_logprobs": [{"id": t, "logprob": value} for t, value in top.items()],
                    }
                    for token, top in zip(ids, tops, strict=True)
                ]
            }
        return choice

    # -- how it reads

    def _refused_path(self, handler: Any, path: str) -> bool:
        if handler.path != f"{self.root}{path}":
            _send(handler, 404, {"detail": "Not Found"})
            return True
        return False

    def _refused_key(self, handler: Any) -> bool:
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            _send(handler, 401, {"error": {"message": f"wrong key {handler.headers.get('Authorization')}"}})
            return True
        return False

    def _refused_prompt(self, body: dict[str, Any]) -> bool:
        return self.kind == "standard" and not isinstance(body["prompt"], str)

    def _ids(self, prompt: Any) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        ids = list(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        return [self.tokenizer.bos_token_id, *ids] if self.adds_bos else ids

    def _cached(self, ids: list[int]) -> int:
        with self._lock:
            known = max((_common(ids, seen) for seen in self._seen), default=0)
            self._seen.append(ids)
        return min(known, len(ids) - 1) if self.caches else 0

    def _continuation(self, ids: list[int], body: dict[str, Any]) -> tuple[list[int], str]:
        new: list[int] = []
        stops = [] if self.kind == "llamacpp" else body.get("stop") or []
        while len(new) < body["max_tokens"]:
            token = self.next_token(ids, new, body)
            if token is None:
                break
            new.append(token)
            if token == self.tokenizer.eos_token_id or token in body.get("stop_token_ids", ()):
                return new, "stop"
            if any(stop in decode(self.tokenizer, new) for stop in stops):
                return new, "stop"
        return new, "length"

    def next_token(self, ids: list[int], new: list[int], body: dict[str, Any]) -> int | None:
        """The token after `ids` and `new`; None where there is nothing more to say."""
        logits = {token: 10.0 - 2 * rank for rank, token in enumerate(self._liked(ids, new))}
        if self.obeys_bias:
            for token, bias in (body.get("logit_bias") or {}).items():
                logits[int(token)] = logits.get(int(token), 0.0) + bias
        return max(logits, key=logits.__getitem__, default=None)

    def _liked(self, ids: list[int], new: list[int]) -> list[int]:
        """What may come next, the likeliest first."""
        whole, begun = [*ids, *new], len(self.prompt)
        paths = [self.answer, *self.others]
        if whole[:begun] == self.prompt:
            rest = whole[begun:]
            liked = [path[len(rest)] for path in paths if path[: len(rest)] == rest and len(path) > len(rest)]
            if liked:
                return list(dict.fromkeys(liked))
            if any(path[: len(ids) - begun] == ids[begun:] for path in paths):
                return [self.tokenizer.eos_token_id]  # a bias led off every path
        again = [*self.answer, *self.answer]
        return again[len(new) : len(new) + 1]


def _common(left: list[int], right: list[int]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


def _send(handler: Any, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    payload = (body if isinstance(body, str) else json.dumps(body)).encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(payload)))
    handler.end_headers()
    handler.wfile.write(payload)


def _event(handler: Any, data: str) -> None:
    line = f"data: {data}\n\n".encode()
    handler.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
    handler.wfile.flush()


def sampled(**changes: object) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 200, **changes})
