"""An OpenAI-like server that samples bytes and scores texts, in one of the ways that servers do."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


class ScoreServer:
    """`way`: "echo", "one token" (echo that refuses max_tokens=0), "prompt_logprobs", "nothing" (an
    answer without log-probs), "no route", or an HTTP status of each answer. The log-prob of a token
    is -token / 100; `texts` spells a token.
    """

    def __init__(self, way: str | int = "echo") -> None:
        self.way, self.asked, self.texts = way, [], chr
        self.keys: list[str] = []
        self.gives_ids = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                server.keys.append(self.headers["Authorization"])
                chats = self.path.endswith("/chat/completions")
                status, answer = server.chat(body) if chats else server.completion(body)
                data = orjson.dumps(answer)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if isinstance(self.way, int):
            return self.way, {"error": {"message": "out of order"}}
        if self.way == "no route":
            return 404, {"error": {"message": "no such path"}}
        if self.way == "one token" and body["max_tokens"] == 0:
            return 400, {"error": {"message": "max_tokens must be at least 1"}}
        ids = body["prompt"]
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length"}
        usage = {"prompt_tokens": len(ids), "completion_tokens": body["max_tokens"]}
        if self.way == "prompt_logprobs" and "prompt_logprobs" in body:
            entry = [{str(t): {"logprob": -t / 100, "decoded_token": self.texts(t)}} for t in ids]
            choice["prompt_logprobs"] = [None, *entry[1:]]
        elif self.way in ("echo", "one token") and body.get("echo"):
            shown = [*ids, *[33] * body["max_tokens"]]
            choice["logprobs"] = {
                "tokens": [self.texts(t) for t in shown],
                "token_logprobs": [None, *(-t / 100 for t in shown[1:])],
            }
        return 200, {"object": "text_completion", "choices": [choice], "usage": usage}

    def chat(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = list("".join(m["content"] for m in body["messages"]).encode())
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "!"},
                }
            ],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": 1,
                "total_tokens": len(prompt) + 1,
            },
        }
        return 200, {**answer, **({"prompt_token_ids": prompt} if self.gives_ids else {})}
