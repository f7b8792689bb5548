"""A tiny OpenAI-compatible server on loopback whose model's tokens are the bytes of its text.

Its chat template renders a message as `role:content` and a newline, so that a conversation's next
prompt begins with the last prompt and its answer, token by token.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import attrs
import orjson

LOGPROB = -0.5
"""The log-probability of every sampled token with the weights of step 0."""
_STEPS_APART = 100
_END = b"\n"
_MANY_TOKENS = 1 << 20

Reply = Callable[[Sequence[dict[str, Any]], int], str]
"""Returns the answer to messages, with the weights of a step."""

Logprob = Callable[[str], float]
"""Returns the log-probability of every token of a model name's answers."""


class Names(Protocol):
    """The model names that are served, and the step of each."""

    def names(self) -> Sequence[str]:
        """Return all names."""

    def step_of(self, name: str) -> int | None:
        """Return the step of a name's weights; None for an unknown name."""


def prompt_tokens(messages: Sequence[dict[str, Any]]) -> list[int]:
    """Render messages to the tokens that the model sees."""
    lines = "".join(f"{m['role']}:{m.get('content') or ''}\n" for m in messages)
    return list(f"{lines}assistant:".encode())


@attrs.frozen
class EchoServer:
    """Serves until it is closed, each request on a thread of its own."""

    url: str
    _server: ThreadingHTTPServer

    @classmethod
    def start(cls, served: Names, reply: Reply, logprob: Logprob | None = None) -> EchoServer:
        """Listen on a free port of the loopback interface.

        By default the log-probs depend on the step, so that answers show which weights were asked.
        """

        def logprob_of_step(name: str) -> float:
            step = served.step_of(name) or 0
            return LOGPROB - (step % _STEPS_APART) / _STEPS_APART

        shown = logprob or logprob_of_step

        class Handler(_Handler):
            names = served
            answer = staticmethod(reply)
            logprob = staticmethod(shown)

        server = _Listener(("127.0.0.1", 0), Handler)
        poll_s = 0.02
        threading.Thread(target=server.serve_forever, args=(poll_s,), daemon=True).start()
        return cls(f"http://127.0.0.1:{server.server_port}/v1", server)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Listener(ThreadingHTTPServer):
    request_queue_size = 1024  # a burst of rollouts comes at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, but not of a client that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    names: Names
    answer: Reply
    logprob: Logprob

    def do_GET(self) -> None:
        if self.path.rstrip("/") != "/v1/models":
            return self._refuse(404, f"no such path: {self.path}")
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "echo"}
            for name in self.names.names()
        ]
        return self._json(200, {"object": "list", "data": listed})

    def do_POST(self) -> None:
        if self.path.rstrip("/") != "/v1/chat/completions":
            return self._refuse(404, f"no such path: {self.path}")
        try:
            request = orjson.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            name, messages = request["model"], request["messages"]
            prompt = prompt_tokens(messages)
        except (ValueError, KeyError, TypeError) as error:
            return self._refuse(400, f"not a chat completion request: {error!r}")
        step = self.names.step_of(name)
        if step is None:
            return self._refuse(404, f"no model {name!r}; served: {', '.join(self.names.names())}")
        if not isinstance(request.get("n") or 1, int):
            return self._refuse(400, f"n must be a count, got {request['n']!r}")
        answer, logprob = self.answer(messages, step), self.logprob(name)
        completion = _completion(request, prompt, step, answer, logprob)
        return self._stream(completion) if request.get("stream") else self._json(200, completion)

    def _stream(self, completion: dict[str, Any]) -> None:
        chunk = completion | {"object": "chat.completion.chunk"}
        chunk["choices"] = [
            {**choice, "delta": choice["message"]} for choice in completion["choices"]
        ]
        self._send(200, "text/event-stream", b"data: %b\n\ndata: [DONE]\n\n" % orjson.dumps(chunk))

    def _refuse(self, status: int, message: str) -> None:
        kind = "invalid_request_error"
        self._json(status, {"error": {"message": message, "type": kind, "param": None}})

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, "application/json", orjson.dumps(body))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log: it would be mixed into a test's output."""


def _completion(
    request: dict[str, Any], prompt: list[int], step: int, answer: str, logprob: float
) -> dict[str, Any]:
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or _MANY_TOKENS
    whole = answer.encode() + _END
    sampled = whole[:limit]
    finished = len(sampled) == len(whole)
    text = (sampled[:-1] if finished else sampled).decode(errors="replace")
    choice: dict[str, Any] = {
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop" if finished else "length",
        "logprobs": None,
    }
    if request.get("logprobs"):
        choice["logprobs"] = {"content": [_entry(token, logprob) for token in sampled]}
    response: dict[str, Any] = {
        "id": "echo",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "policy_version": step,
    }
    if request.get("return_token_ids"):
        choice["token_ids"] = list(sampled)
        response["prompt_token_ids"] = prompt
    count = request.get("n") or 1
    response["choices"] = [{"index": i, **choice} for i in range(count)]
    used = len(sampled) * count
    response["usage"] = {
        "prompt_tokens": len(prompt),
        "completion_tokens": used,
        "total_tokens": len(prompt) + used,
    }
    return response


def _entry(token: int, logprob: float) -> dict[str, Any]:
    text = chr(token)
    return {"token": text, "bytes": [token], "logprob": logprob, "top_logprobs": []}
