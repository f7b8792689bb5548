"""What routes share: bodies, keys, errors and clients that go away, in Starlette. Import it only to
serve.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.exceptions import HTTPException  # noqa: TID253
from starlette.requests import ClientDisconnect, Request  # noqa: TID253
from starlette.responses import Response  # noqa: TID253

from art_core.base.errors import ArtError
from art_core.base.files import json_line
from art_core.endpoint.errors import RequestError
from art_core.endpoint.strict_json import json_text, whole_json

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")
MAX_BODY_BYTES = 16 << 20
_HALVES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""How halves of characters are written, escaped or as bytes."""


def guarded(handler: Handler) -> Handler:
    """Return a handler whose errors are answers of OpenAI's shape."""

    async def answered(http: Request) -> Response:
        try:
            return await handler(http)
        except RequestError as error:
            return json_response(error.body(), error.status)
        except ClientDisconnect:
            return Response(status_code=499)
        except ArtError as error:
            body = RequestError(503, str(error), None, "engine_error").body()
            return json_response(body, 503)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a tokenizer in Rust is no Exception
            failure = RequestError(500, f"{type(error).__name__}: {error}", None, "internal_error")
            return json_response(failure.body(), 500)

    return answered


def bearer_key(http: Request) -> str:
    """Return the key that a request came with; "" without one."""
    scheme, _, key = http.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


async def json_body(http: Request, limit: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes; raises RequestError."""
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > limit:
            raise RequestError(
                413, f"the body is larger than {limit} bytes", None, "body_too_large"
            )
    try:
        value = _loaded(bytes(body))
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}", None, "invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(400, "the body must be a JSON object", None, "invalid_json")
    return value


def _loaded(body: bytes) -> Any:
    """Read JSON; halves of characters, which some clients send where they cut a text, become
    U+FFFD.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if _HALVES.search(body) is None:
            raise
        value = whole_json(body.decode(errors="surrogatepass"))
        if value is None:
            raise
        return orjson.loads(json_text(value))


async def unless_gone(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what comes of some work, which does not read the body; a client that disconnects
    cancels it, and ClientDisconnect is raised.
    """
    working, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(http))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(http: Request) -> None:
    # A body that was not read comes first, also an empty one.
    while (await http.receive())["type"] != "http.disconnect":
        pass


def only(*routes: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler of requests to other routes than an application has: it names these."""
    return elsewhere(f"this endpoint has {', '.join(routes)}")


def elsewhere(hint: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler of requests to other routes than an application has, with a hint."""

    async def refuse(http: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reason = f"{error.detail}; {hint}"
        if http.url.path.endswith("/responses"):
            reason += ". Have your client use chat completions instead of the Responses API"
        body = RequestError(error.status_code, reason, None, "not_found").body()
        return json_response(body, error.status_code)

    return refuse


def json_bytes(value: Any) -> bytes:
    """Return JSON; what JSON can't hold is replaced, as an agent can't mend a model's answer."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json_line(value).rstrip()


def json_response(value: Any, status: int = 200) -> Response:
    """Return an answer in JSON."""
    return Response(json_bytes(value), status_code=status, media_type="application/json")
