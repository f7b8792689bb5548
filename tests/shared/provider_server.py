"""A server that answers as Anthropic's and Gemini's do, with shapes that were recorded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs

TEXT = '{"score": 0.5}'

ANTHROPIC_USAGE = {
    "input_tokens": 1000,
    "cache_creation_input_tokens": 200,
    "cache_read_input_tokens": 400,
    "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 100,
    "service_tier": "standard",
    "inference_geo": "not_available",
}
GEMINI_USAGE = {
    "promptTokenCount": 1000,
    "candidatesTokenCount": 60,
    "thoughtsTokenCount": 40,
    "cachedContentTokenCount": 400,
    "totalTokenCount": 1100,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1000}],
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 400}],
}


def anthropic_answer(request: dict[str, Any], text: str = TEXT) -> dict[str, Any]:
    """Answer a Messages request: by a call of the tool if one is forced, else in text."""
    tools = [tool["name"] for tool in request.get("tools") or ()]
    block: dict[str, Any] = {"type": "text", "text": text}
    if tools:
        block = {"type": "tool_use", "id": "toolu_1", "name": tools[0], "input": json.loads(text)}
    return {
        "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF",
        "type": "message",
        "role": "assistant",
        "model": request["model"],
        "content": [block],
        "stop_reason": "tool_use" if tools else "end_turn",
        "stop_sequence": None,
        "usage": ANTHROPIC_USAGE,
    }


def gemini_answer(model: str, text: str = TEXT) -> dict[str, Any]:
    """Answer a generateContent request."""
    return {
        "candidates": [
            {
                "content": {"role": "model", "parts": [{"text": text}]},
                "finishReason": "STOP",
                "index": 0,
                "avgLogprobs": -0.01,
            }
        ],
        "usageMetadata": GEMINI_USAGE,
        "modelVersion": model,
        "responseId": "yKZvaPrGFtvjz7IPq7uEyA0",
    }


@attrs.define
class ProviderServer:
    """Keeps paths and requests; each answer of `failures` comes first, as (status, body)."""

    url: str = ""
    text: str = TEXT
    requests: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    failures: list[tuple[int, Any]] = attrs.field(factory=list)

    def answered(self, path: str, request: dict[str, Any]) -> tuple[int, Any]:
        """Return the status and body of the next answer."""
        self.requests.append((path, request))
        if self.failures:
            return self.failures.pop(0)
        if path.endswith("/messages"):
            return 200, anthropic_answer(request, self.text)
        return 200, gemini_answer(path.rpartition("/models/")[2].partition(":")[0], self.text)


@contextmanager
def providing() -> Iterator[ProviderServer]:
    """Run such a server."""
    server = ProviderServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = server.answered(self.path.partition("?")[0], json.loads(body))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    http.shutdown()
    http.server_close()
    thread.join()
