"""What the routes have in common: bodies, numbers, pages and errors."""

from __future__ import annotations

import logging
import math
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from art_core import ArtError, BackendError, ConfigError, MetricError
from art_serverless.protocol import MOST_ITEMS
from art_serverless.server.errors import RefusedError

log = logging.getLogger("art_serverless")


def refusal(error: Exception) -> RefusedError:
    """Return what an error means to who asked."""
    if isinstance(error, RefusedError):
        return error
    for kinds, status in (
        ((ConfigError, MetricError), 422),
        ((BackendError,), 503),
        ((ArtError,), 500),
    ):
        if isinstance(error, kinds):
            return RefusedError(status, str(error))
    log.error("a request failed", exc_info=error)
    return RefusedError(500, f"{type(error).__name__}: {error}")


async def body_of(http: Request, limit: int) -> bytes:
    """Read a request's body; RefusedError 413 when it is larger than `limit` bytes."""
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > limit:
            raise RefusedError(413, f"the body is larger than {limit} bytes")
    return bytes(body)


def parsed(body: bytes) -> dict[str, Any]:
    """Return a body as an object; RefusedError 400 for anything else."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RefusedError(400, f"the body must be an object, got {type(value).__name__}")
    return value


def number(http: Request, name: str, low: float, high: float) -> float:
    """Return a number of the query, kept between two bounds; the lower one when it is missing."""
    text = http.query_params.get(name)
    if not text:
        return low
    try:
        return min(max(float(text), low), high) if math.isfinite(float(text)) else low
    except ValueError:
        raise RefusedError(422, f"{name} must be a number, got {text!r:.80}") from None


def limit_of(http: Request) -> int:
    """Return how many items a page may have."""
    return int(number(http, "limit", 0, MOST_ITEMS)) or MOST_ITEMS


def page_of(items: list[dict[str, Any]], limit: int) -> Response:
    """Return the first items as a page that says whether there are more."""
    shown = items[:limit]
    return answer({"data": shown, "has_more": len(items) > len(shown)})


def refused(error: RefusedError) -> Response:
    """Return an error as a response."""
    return answer(error.body(), error.status)


async def http_error(_: Request, error: Exception) -> Response:
    """Answer what Starlette refuses by itself."""
    assert isinstance(error, HTTPException)
    return refused(RefusedError(error.status_code, f"{error.detail}; see /docs for what there is"))


def answer(value: Any, status: int = 200) -> Response:
    """Return a value as a JSON response."""
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")
