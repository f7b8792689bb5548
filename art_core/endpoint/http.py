"""Helpers of HTTP routes, in Starlette: bodies, keys, errors and clients that disconnect.

Import it only to serve.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import orjson
from starlette.exceptions import HTTPException  # noqa: TID253
from starlette.requests import ClientDisconnect, Request  # noqa: TID253
from starlette.responses import Response  # noqa: TID253

from art_core.endpoint.errors import RequestError, request_error
from art_core.endpoint.strict_json import json_bytes, json_text, whole_json

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")
MAX_BODY_BYTES = 16 << 20
API_KEY_HEADER = "x-api-key"
_SURROGATES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""Lone surrogates in JSON: escaped, or as bytes."""


def guarded(
    handler: Handler,
    as_error: Callable[[BaseException], RequestError] = request_error,
    body: Callable[[RequestError], Mapping[str, Any]] = RequestError.body,
) -> Handler:
    """Return a handler that answers an exception with the error that `as_error` returns for it, in
    the form of `body`.
    """

    async def answered(http: Request) -> Response:
        try:
            return await handler(http)
        except ClientDisconnect:
            return Response(status_code=499)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a tokenizer in Rust is not an Exception
            answer = as_error(error)
            return json_response(body(answer), answer.status)

    return answered


def bearer_key(http: Request) -> str:
    """Return the key in a request's Authorization header, else that of Anthropic's clients; ""
    without one.
    """
    scheme, _, key = http.headers.get("authorization", "").partition(" ")
    return (key if scheme.lower() == "bearer" else http.headers.get(API_KEY_HEADER, "")).strip()


def check_key(http: Request, keys: Iterable[bytes]) -> None:
    """Raise RequestError (401) unless a request has one of the keys."""
    sent = bearer_key(http).encode()
    # Every key is compared, in constant time: the duration must not depend on the keys.
    matches = [hmac.compare_digest(sent, key) for key in keys]
    if not any(matches):
        message = (
            "wrong or missing API key; send it as 'Authorization: Bearer <key>' or "
            "'x-api-key: <key>'"
        )
        raise RequestError(401, message)


async def json_body(http: Request, limit: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes; raises RequestError."""
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > limit:
            raise RequestError(413, f"the body is larger than {limit} bytes")
    try:
        value = _loaded(bytes(body))
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}", None, "invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(400, "the body must be a JSON object", None, "invalid_json")
    return value


def _loaded(body: bytes) -> Any:
    """Read JSON. Lone surrogates, which some clients send where they cut a text, become U+FFFD."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if _SURROGATES.search(body) is None:
            raise
        value = whole_json(body.decode(errors="surrogatepass"))
        if value is None:
            raise
        return orjson.loads(json_text(value))


async def unless_disconnected(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which must not read the body.

    If the client disconnects first, cancel `work` and raise ClientDisconnect.
    """
    working = asyncio.create_task(work)
    disconnected = asyncio.create_task(_disconnected(http))
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        disconnected.cancel()
        await asyncio.gather(working, disconnected, return_exceptions=True)


async def _disconnected(http: Request) -> None:
    # A body that was not read comes first, even if it is empty.
    while (await http.receive())["type"] != "http.disconnect":
        pass


def unknown_route(hint: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler of requests to routes that an application does not have."""

    async def refuse(http: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{error.detail}; {hint}"
        if http.url.path.startswith("/v1/v1/"):
            message += ". The base URL of an Anthropic client ends before /v1"
        answer = RequestError(error.status_code, message, None, "not_found")
        return json_response(answer.body(), answer.status)

    return refuse


def json_response(value: Any, status: int = 200) -> Response:
    """Return a response with a value as JSON."""
    return Response(json_bytes(value), status_code=status, media_type="application/json")
