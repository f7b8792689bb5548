"""Shared by the routes: numbers of a query, pages and errors."""

from __future__ import annotations

import errno
import logging
import math
import sqlite3
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from art_core import ArtError, BackendError, ConfigError, MetricError
from art_core.endpoint.errors import RequestError
from art_core.endpoint.http import json_response
from art_serverless.protocol import MOST_ITEMS
from art_serverless.server.errors import RefusedError

log = logging.getLogger("art_serverless")


def refusal(error: Exception) -> RequestError:
    """Return the answer that an error becomes."""
    if isinstance(error, RequestError):
        return error
    for kinds, status in (
        ((ConfigError, MetricError), 422),
        ((BackendError,), 503),
        ((ArtError,), 500),
    ):
        if isinstance(error, kinds):
            return RefusedError(status, str(error))
    if _is_too_deep(error):
        return RefusedError(400, "the body is nested too deeply", code="invalid_json")
    if _is_full(error):
        return RefusedError(507, f"the server's disk is full: {error}", code="storage_full")
    log.error("a request failed", exc_info=error)
    return RefusedError(500, f"{type(error).__name__}: {error}")


def _is_too_deep(error: Exception) -> bool:
    too_deep = isinstance(error, orjson.JSONEncodeError) and "ecursion limit" in str(error)
    return too_deep or isinstance(error, RecursionError)


def _is_full(error: Exception) -> bool:
    if isinstance(error, sqlite3.OperationalError):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_FULL)
        return code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OSError) and error.errno in full


def number(http: Request, name: str, low: float, high: float) -> float:
    """Return a number of the query, kept between two bounds; the lower one when it is missing."""
    text = http.query_params.get(name)
    if not text:
        return low
    try:
        return min(max(float(text), low), high) if math.isfinite(float(text)) else low
    except ValueError:
        raise RefusedError(422, f"{name} must be a number, got {text!r:.80}", name) from None


def limit_of(http: Request) -> int:
    """Return how many items a page may have."""
    return int(number(http, "limit", 0, MOST_ITEMS)) or MOST_ITEMS


def page_of(items: list[dict[str, Any]], limit: int) -> Response:
    """Return the first items as a page that says whether there are more."""
    shown = items[:limit]
    return json_response({"data": shown, "has_more": len(items) > len(shown)})


def refused(error: RequestError) -> Response:
    """Return an error as a response."""
    return json_response(error.body(), error.status)
