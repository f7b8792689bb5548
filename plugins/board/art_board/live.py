"""The rows of a run as server-sent events, while another process logs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson

from art_core import LoggedRun, MetricsRow

EVERY_S = 1.0
_PING_S = 15.0
_RETRY_MS = 2000
_TAIL = 50
"""Rows that a new reader gets at once."""
_AT_ONCE = 200


async def events(run: LoggedRun, after: int | None = None) -> AsyncIterator[bytes]:
    """Yield new rows as events `row`, whose ids are the rows' numbers, and the run's status as
    `status` when it changes. A browser that connects again sends the last id as `after`.
    """
    yield f"retry: {_RETRY_MS}\n\n".encode()
    seq = await asyncio.to_thread(_start, run) if after is None else after
    size, status, silent = -1, "", 0.0
    while True:
        now, grown = await asyncio.to_thread(_look, run)
        if now != status:
            status = now
            yield _event("status", {"status": status})
        if grown != size:
            rows = await asyncio.to_thread(_rows, run, seq)
            size = grown if len(rows) < _AT_ONCE else -1
            for row in rows:
                seq = row.seq
                yield _event("row", _values(row), seq)
            silent = 0.0
        elif silent >= _PING_S:
            yield b": still here\n\n"
            silent = 0.0
        silent += EVERY_S
        await asyncio.sleep(EVERY_S)


def _start(run: LoggedRun) -> int:
    try:
        last = run.last_row()
    except OSError:
        return 0
    return max(0, last.seq - _TAIL) if last else 0


def _look(run: LoggedRun) -> tuple[str, int]:
    try:
        return run.status(), run.history.stat().st_size
    except OSError:
        return "unreadable", 0


def _rows(run: LoggedRun, after: int) -> list[MetricsRow]:
    rows: list[MetricsRow] = []
    try:
        for row in run.rows(after=after):
            if row.seq:  # rows of ART have no number, and no process adds any
                rows.append(row)
            if len(rows) >= _AT_ONCE:
                break
    except OSError:
        return []
    return rows


def _values(row: MetricsRow) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "step": row.step,
        "split": row.split,
        "attempt": row.attempt,
        "at": row.recorded_at.isoformat(),
        "metrics": {k: v for k, v in row.metrics.items() if "/cum/" not in k},
        "usd": row.metrics.get("costs/cum/all"),
    }


def _event(name: str, value: Any, number: int | None = None) -> bytes:
    begin = f"id: {number}\n" if number is not None else ""
    return f"{begin}event: {name}\ndata: ".encode() + orjson.dumps(value, default=str) + b"\n\n"
