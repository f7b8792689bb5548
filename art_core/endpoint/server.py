"""The endpoint's HTTP side: routes, keys, limits and errors, in Starlette. Import it only to
serve.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson
from starlette.applications import Starlette  # noqa: TID253
from starlette.exceptions import HTTPException  # noqa: TID253
from starlette.requests import ClientDisconnect, Request  # noqa: TID253
from starlette.responses import Response, StreamingResponse  # noqa: TID253
from starlette.routing import Route  # noqa: TID253

from art_core.endpoint.chat import Prepared, prepare, served_model, unknown_model
from art_core.endpoint.engine import CONTEXT_HEADER, ModelNames, request_context
from art_core.endpoint.errors import RequestError
from art_core.endpoint.request import chat_request
from art_core.endpoint.response import chunks, completion
from art_core.endpoint.sampling import sample
from art_core.endpoint.transcripts import MAX_IDS, Transcripts
from art_core.errors import ArtError

Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    models: ModelNames,
    *,
    api_key: str | None,
    request_timeout_s: float = 600.0,
    max_body_bytes: int = 16 << 20,
    remembered_ids: int = MAX_IDS,
) -> Starlette:
    """Make the application. `api_key` None serves everyone; /health needs no key.

    `request_timeout_s` bounds the whole of a request; one that is late is cancelled in the engine
    and answered 503. `remembered_ids`: token ids of served conversations that are remembered.
    """
    transcripts = Transcripts(remembered_ids)
    routes = _Routes(models, request_timeout_s, max_body_bytes, transcripts)
    table = [
        Route("/health", routes.health, methods=["GET"]),
        Route("/v1/models", _guarded(routes.list_models, api_key), methods=["GET"]),
        Route("/v1/models/{name:path}", _guarded(routes.one_model, api_key), methods=["GET"]),
        Route("/v1/chat/completions", _guarded(routes.chat_completions, api_key), methods=["POST"]),
    ]
    return Starlette(routes=table, exception_handlers={HTTPException: _http_error})


class _Routes:
    def __init__(
        self,
        models: ModelNames,
        request_timeout_s: float,
        max_body_bytes: int,
        transcripts: Transcripts,
    ) -> None:
        self._models = models
        self._timeout_s = request_timeout_s
        self._max_body_bytes = max_body_bytes
        self._transcripts = transcripts

    async def health(self, _: Request) -> Response:
        return _json({"status": "ok"})

    async def list_models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [_model(name) for name in self._models.names()]})

    async def one_model(self, http: Request) -> Response:
        name = http.path_params["name"]
        if name not in self._models.names():
            raise unknown_model(name, self._models)
        return _json(_model(name))

    async def chat_completions(self, http: Request) -> Response:
        request_context.set(http.headers.get(CONTEXT_HEADER, ""))
        request = chat_request(await _body(http, self._max_body_bytes))
        try:
            async with asyncio.timeout(self._timeout_s):
                served = await served_model(self._models, request.model)
        except TimeoutError:
            reason = (
                f"the weights of {request.model!r} were not loaded within {self._timeout_s:g} s"
            )
            raise RequestError(503, reason, "model", "engine_timeout") from None
        prepared = prepare(request, served, self._transcripts)
        if not request.stream:
            return await self._whole(http, prepared)
        events = self._events(prepared)
        # Awaited before the response starts: an engine that fails at once gets its HTTP status.
        first = await anext(events)
        return StreamingResponse(_after(first, events), media_type="text/event-stream")

    async def _whole(self, http: Request, prepared: Prepared) -> Response:
        async def collect() -> dict[str, Any]:
            async with aclosing(sample(prepared, self._timeout_s, self._transcripts)) as steps:
                return await completion(prepared, steps)

        work, gone = asyncio.create_task(collect()), asyncio.create_task(_disconnected(http))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=499)
            return _json(work.result())
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _events(self, prepared: Prepared) -> AsyncGenerator[bytes, None]:
        async with aclosing(sample(prepared, self._timeout_s, self._transcripts)) as steps:
            async for chunk in chunks(prepared, steps):
                yield _event(chunk)
        yield b"data: [DONE]\n\n"


async def _after(first: bytes, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        yield first
        try:
            async for event in events:
                yield event
        except RequestError as error:
            yield _event(error.body())


def _guarded(handler: Handler, api_key: str | None) -> Handler:
    async def guarded(http: Request) -> Response:
        try:
            _check_key(http, api_key)
            return await handler(http)
        except RequestError as error:
            return _json(error.body(), error.status)
        except ClientDisconnect:
            return Response(status_code=499)
        except ArtError as error:
            return _json(RequestError(503, str(error), None, "engine_error").body(), 503)
        except Exception as error:
            failure = RequestError(500, f"{type(error).__name__}: {error}", None, "internal_error")
            return _json(failure.body(), 500)

    return guarded


def _check_key(http: Request, api_key: str | None) -> None:
    if api_key is None:
        return
    scheme, _, key = http.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(
        key.strip().encode(), api_key.encode()
    ):
        raise RequestError(
            401,
            "wrong or missing API key; send the endpoint's key as 'Authorization: Bearer ...'",
            None,
            "invalid_api_key",
        )


async def _body(http: Request, limit: int) -> Any:
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > limit:
            raise RequestError(
                413, f"the body is larger than {limit} bytes", None, "body_too_large"
            )
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is not JSON: {error}", None, "invalid_json") from None


async def _disconnected(http: Request) -> None:
    # Once the body is read, http.disconnect is the one message that can come.
    await http.receive()


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "/v1/chat/completions, /v1/models, /health"
    body = RequestError(
        error.status_code, f"{error.detail}; this endpoint has {known}", None, "not_found"
    ).body()
    return _json(body, error.status_code)


def _event(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "art-core"}


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")
