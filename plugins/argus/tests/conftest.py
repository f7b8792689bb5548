"""An Argus server on loopback that enforces the wire schema 1.1 as the real one does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import attrs
import pytest

import art_core as art

TOKEN = "em_live_" + "x" * 20
TYPES = {
    "batch_start", "batch_done", "batch_failed", "job_start", "job_epoch", "job_done", "job_failed",
    "resource_snapshot", "log_line",
}  # fmt: skip
REQUIRED = {"schema_version", "event_type", "timestamp", "batch_id", "source"}
ENVELOPE = REQUIRED | {"event_id", "job_id", "data"}
SOURCE = {"project", "host", "user", "commit", "command"}


def envelope_error(event: Any) -> str:
    """What is wrong with an envelope; empty for a good one. Any error fails a whole POST: 422."""
    if not isinstance(event, dict) or not REQUIRED <= event.keys() <= ENVELOPE:
        return "keys missing or unknown"
    source, job_id, event_id = event["source"], event.get("job_id"), event.get("event_id")
    checks = {
        "event_type": event["event_type"] in TYPES,
        "batch_id": isinstance(event["batch_id"], str) and 1 <= len(event["batch_id"]) <= 128,
        "job_id": job_id is None or (isinstance(job_id, str) and len(job_id) <= 256),
        "source": isinstance(source, dict) and {"project"} <= source.keys() <= SOURCE,
        "event_id": event_id is None or (isinstance(event_id, str) and 8 <= len(event_id) <= 64),
        "data": isinstance(event.get("data", {}), dict),
        "timestamp": isinstance(event["timestamp"], str),
    }
    return ", ".join(name for name, good in checks.items() if not good)


def item_error(event: dict[str, Any]) -> str:
    """The error of one event, or None; only this event is rejected."""
    kind, data = event["event_type"], event.get("data", {})
    if event["schema_version"] != "1.1":
        return "Unsupported schema_version"
    if not event.get("event_id"):
        return "event_id required"
    if kind.startswith("job_") and event.get("job_id") is None:
        return f"{kind} needs a job_id"
    if kind == "job_epoch" and not isinstance(data.get("epoch"), int):
        return "epoch: Input should be a valid integer"
    numbers = {"train_loss", "val_loss", "lr", "elapsed_s", "total_elapsed_s"} & data.keys()
    if not all(isinstance(data[n], (int, float)) for n in numbers):
        return "Input should be a valid number"
    return ""


@attrs.define(eq=False)
class Argus:
    """The server's events, and its next answers."""

    url: str = ""
    events: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    posts: list[int] = attrs.field(factory=list)
    deduplicated: int = 0
    answers: list[tuple[int, dict[str, str], str]] = attrs.field(factory=list)
    stumble_on: set[str] = attrs.field(factory=set)
    stop: dict[str, Any] = attrs.field(factory=lambda: {"requested": False})
    asked: list[str] = attrs.field(factory=list)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """Events of a type, in the order of their arrival."""
        return [e for e in self.events.values() if e["event_type"] == kind]

    def take(self, event: dict[str, Any]) -> dict[str, Any]:
        known = event.get("event_id")
        if known in self.events:
            self.deduplicated += 1
            return {"event_id": known, "status": "deduplicated", "db_id": 1}
        error = item_error(event)
        if known in self.stumble_on:
            self.stumble_on.discard(known)
            error = "internal: OperationalError('database is locked')"
        if error:
            return {"event_id": known, "status": "rejected", "error": error}
        self.events[known] = event
        return {"event_id": known, "status": "accepted", "db_id": len(self.events)}


class Handler(BaseHTTPRequestHandler):
    argus: Argus

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._denied():
            return None
        events = body.get("events") if self.path == "/api/events/batch" else [body]
        if self.path not in ("/api/events/batch", "/api/events"):
            return self._json(404, {"detail": "Not Found"})
        self.argus.posts.append(len(events))
        if not 1 <= len(events) <= 500:
            return self._json(422, {"detail": "1 to 500 events"})
        errors = [f"events.{i}: {e}" for i, x in enumerate(events) if (e := envelope_error(x))]
        if errors:
            return self._json(422, {"detail": errors})
        if self.path == "/api/events" and body["schema_version"] != "1.1":
            return self._json(415, {"detail": "Unsupported schema_version"})
        results = [self.argus.take(event) for event in events]
        rejected = sum(r["status"] == "rejected" for r in results)
        return self._json(
            200, {"accepted": len(results) - rejected, "rejected": rejected, "results": results}
        )

    def do_GET(self) -> None:
        if self._denied():
            return
        self.argus.asked.append(unquote(self.path))
        self._json(200, self.argus.stop)

    def _denied(self) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token.startswith("em_live_"):
            self._json(403 if token else 401, {"detail": "an API token is needed"})
            return True
        if self.argus.answers:
            status, headers, text = self.argus.answers.pop(0)
            self._send(status, headers, text.encode())
            return True
        return False

    def _json(self, status: int, body: Any) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def argus() -> Iterator[Argus]:
    state = Argus()
    handler = type("Bound", (Handler,), {"argus": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def token() -> str:
    return TOKEN


@pytest.fixture
def run(tmp_path: Path) -> art.RunInfo:
    return art.RunInfo(
        project="demo",
        name="agent",
        run_dir=tmp_path / "run",
        base_model="tiny",
        config={"seed": 7},
    )


@pytest.fixture
def make_row():
    """Makes a row: `make_row(seq, {"reward/mean": 0.5}, split="val")`; its step is its seq."""

    def make(seq: int, metrics: dict[str, float], **changes: Any) -> art.MetricsRow:
        at = datetime(2026, 5, 1, tzinfo=UTC) + timedelta(seconds=10 * seq)
        given = {"seq": seq, "attempt": 1, "step": seq, "split": "train", "recorded_at": at}
        return art.MetricsRow(**(given | changes), metrics=metrics)

    return make
