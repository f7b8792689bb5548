"""An OpenAI-compatible server that answers as a test scripts it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], Any]
USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}


class JudgeServer:
    """Keeps the requests; `answer(request)` gives a text, a message, or (status, body)."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.together = self.most_together = 0
        self._lock = threading.Lock()
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = script._answered(json.loads(body))
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def _answered(self, request: dict[str, Any]) -> tuple[int, Any]:
        with self._lock:
            self.requests.append(request)
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        try:
            given = self.answer(request)
        finally:
            with self._lock:
                self.together -= 1
        if isinstance(given, tuple):
            return given
        message = given if isinstance(given, dict) else {"role": "assistant", "content": given}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return 200, {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [choice],
            "usage": USAGE,
        }


@contextmanager
def judging(answer: Answer) -> Iterator[JudgeServer]:
    """Run such a server."""
    server = JudgeServer(answer)
    thread = threading.Thread(target=server._http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server._http.shutdown()
    server._http.server_close()
    thread.join()


def in_turn(*answers: Any) -> Answer:
    """Give the answers one after the other, the last one again and again."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]
