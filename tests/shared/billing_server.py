"""A server that answers as the usage APIs of OpenAI and Anthropic do, in recorded shapes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs

ADMIN_KEY = "sk-admin-0123456789"
DAYS_A_PAGE = 2


def openai_cost(line_item: str | None, usd: Any, currency: str = "usd") -> dict[str, Any]:
    return {
        "object": "organization.costs.result",
        "amount": {"value": usd, "currency": currency},
        "line_item": line_item,
        "project_id": None,
        "api_key_id": None,
        "quantity": None,
    }


def openai_tokens(model: str, **counts: Any) -> dict[str, Any]:
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": 0,
        "output_tokens": 0,
        "input_cached_tokens": 0,
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": 1,
        "project_id": None,
        "user_id": None,
        "api_key_id": None,
        "model": model,
        "batch": False,
        "service_tier": "default",
    } | counts


def anthropic_cost(model: str | None, cents: str, **others: Any) -> dict[str, Any]:
    return {
        "amount": cents,
        "context_window": "0-200k",
        "cost_type": "tokens",
        "currency": "USD",
        "description": "Claude Opus 5 Usage - Input Tokens",
        "inference_geo": "global",
        "model": model,
        "service_tier": "standard",
        "token_type": "uncached_input_tokens",
        "workspace_id": None,
    } | others


def anthropic_tokens(model: str, **counts: Any) -> dict[str, Any]:
    return {
        "uncached_input_tokens": 0,
        "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
        "server_tool_use": {"web_search_requests": 0},
        "api_key_id": None,
        "workspace_id": None,
        "model": model,
        "service_tier": "standard",
        "context_window": None,
        "inference_geo": None,
    } | counts


@attrs.define
class BillingServer:
    """Has results by path and day; each answer of `failures` comes first, as (status, headers,
    body). Keeps requests as (path, query), and the waits of a client that is given `waits.append`.
    """

    url: str = ""
    results: dict[tuple[str, str], list[dict[str, Any]]] = attrs.field(factory=dict)
    failures: list[tuple[int, dict[str, str], Any]] = attrs.field(factory=list)
    requests: list[tuple[str, dict[str, list[str]]]] = attrs.field(factory=list)
    waits: list[float] = attrs.field(factory=list)

    def add(self, path: str, day: str, *results: dict[str, Any]) -> None:
        """Add results of a day."""
        self.results.setdefault((path, day), []).extend(results)

    def page(self, path: str, query: dict[str, list[str]]) -> dict[str, Any]:
        """Return a page of days, and the cursor of the next one."""
        unix = path.startswith("/v1/organization/")
        first, end = (
            datetime.fromtimestamp(int(query[name][0]), UTC)
            if unix
            else datetime.fromisoformat(query[name][0])
            for name in (("start_time", "end_time") if unix else ("starting_at", "ending_at"))
        )
        days = [first + timedelta(days=n) for n in range((end - first).days)]
        at = int(query.get("page", ["page_0"])[0].removeprefix("page_"))
        shown = days[at : at + DAYS_A_PAGE]
        more = at + DAYS_A_PAGE < len(days)
        data = [self._bucket(path, day, unix=unix) for day in shown]
        page = {"data": data, "has_more": more}
        page |= {"next_page": f"page_{at + DAYS_A_PAGE}" if more else None}
        return {"object": "page"} | page if unix else page

    def _bucket(self, path: str, day: datetime, *, unix: bool) -> dict[str, Any]:
        results = self.results.get((path, day.date().isoformat()), [])
        ends = day, day + timedelta(days=1)
        if unix:
            start, end = (int(moment.timestamp()) for moment in ends)
            bucket = {"object": "bucket", "start_time": start, "end_time": end}
        else:
            start, end = (moment.strftime("%Y-%m-%dT%H:%M:%SZ") for moment in ends)
            bucket = {"starting_at": start, "ending_at": end}
        return bucket | {"results": results}

    def answered(self, target: str, headers: Any) -> tuple[int, dict[str, str], Any]:
        """Return the status, headers and body for a request."""
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        self.requests.append((parts.path, query))
        if self.failures:
            return self.failures.pop(0)
        unix = parts.path.startswith("/v1/organization/")
        key = headers["authorization"] if unix else headers["x-api-key"]
        is_known = unix or headers["anthropic-version"] == "2023-06-01"
        if not is_known or (key or "").removeprefix("Bearer ") != ADMIN_KEY:
            return 401, {}, {"error": {"message": f"Incorrect API key provided: {key}"}}
        return 200, {}, self.page(parts.path, query)


@contextmanager
def billing_server() -> Iterator[BillingServer]:
    """Run the server on this machine, on a free port."""
    server = BillingServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = server.answered(self.path, self.headers)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
