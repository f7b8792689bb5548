"""The endpoint's routes, in Starlette. Import it only to serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.applications import Starlette  # noqa: TID253
from starlette.exceptions import HTTPException  # noqa: TID253
from starlette.requests import Request  # noqa: TID253
from starlette.responses import Response, StreamingResponse  # noqa: TID253
from starlette.routing import Route  # noqa: TID253

from art_core.base.errors import ConfigError
from art_core.endpoint.engine import CONTEXT_HEADER, ModelNames, request_context
from art_core.endpoint.errors import RequestError
from art_core.endpoint.http import (
    MAX_BODY_BYTES,
    Handler,
    check_key,
    guarded,
    json_body,
    json_bytes,
    json_response,
    unknown_route,
    unless_disconnected,
)
from art_core.endpoint.prompt import (
    Prepared,
    PromptLimit,
    TemplateCheck,
    prepare,
    served_model,
    unknown_model,
)
from art_core.endpoint.request import chat_request
from art_core.endpoint.response import chunks, completion
from art_core.endpoint.sampling import sample
from art_core.endpoint.score import prompt_ids, score_request, scored
from art_core.endpoint.transcripts import MAX_IDS, Transcripts

PROMPT_THREADS = 4
OTHER_ROUTES = "this endpoint has /v1/chat/completions, /v1/completions, /v1/models, /health"


def create_app(
    models: ModelNames,
    *,
    api_key: str | None,
    request_timeout_s: float = 600.0,
    max_body_bytes: int = MAX_BODY_BYTES,
    remembered_ids: int = MAX_IDS,
) -> Starlette:
    """Return the application. With `api_key` None no key is needed; /health never needs one.

    A request that takes longer than `request_timeout_s` is cancelled in the engine and answered
    with 503. The token ids of served conversations are remembered, up to `remembered_ids`.
    """
    transcripts = Transcripts(remembered_ids)
    routes = _Routes(models, request_timeout_s, max_body_bytes, transcripts)
    table = [
        Route("/health", routes.health, methods=["GET"]),
        Route("/v1/models", _keyed(routes.list_models, api_key), methods=["GET"]),
        Route("/v1/models/{name:path}", _keyed(routes.one_model, api_key), methods=["GET"]),
        Route("/v1/chat/completions", _keyed(routes.chat_completions, api_key), methods=["POST"]),
        Route("/v1/completions", _keyed(routes.completions, api_key), methods=["POST"]),
    ]
    return Starlette(routes=table, exception_handlers={HTTPException: unknown_route(OTHER_ROUTES)})


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
        self._check = TemplateCheck()
        self._limit = PromptLimit()
        self._threads = ThreadPoolExecutor(PROMPT_THREADS, "art-endpoint-prompts")

    async def health(self, _: Request) -> Response:
        return json_response({"status": "ok"})

    async def list_models(self, _: Request) -> Response:
        return json_response(
            {"object": "list", "data": [_model(name) for name in self._models.names()]}
        )

    async def one_model(self, http: Request) -> Response:
        name = http.path_params["name"]
        if name not in self._models.names():
            raise unknown_model(name, self._models)
        return json_response(_model(name))

    async def chat_completions(self, http: Request) -> Response:
        request_context.set(http.headers.get(CONTEXT_HEADER, ""))
        body = await json_body(http, self._max_body_bytes)
        return await unless_disconnected(http, self._chat(body))

    async def completions(self, http: Request) -> Response:
        request_context.set(http.headers.get(CONTEXT_HEADER, ""))
        body = await json_body(http, self._max_body_bytes)
        return await unless_disconnected(http, self._score(body))

    async def _score(self, body: Mapping[str, Any]) -> Response:
        request = score_request(body)
        try:
            async with asyncio.timeout(self._timeout_s):
                served = await served_model(self._models, request.model)
                ids = await asyncio.to_thread(prompt_ids, request, served)
                return json_response(await scored(ids, served))
        except ConfigError as error:
            raise RequestError(400, str(error), "prompt") from error
        except TimeoutError:
            reason = f"the text was not scored within {self._timeout_s:g} s"
            raise RequestError(503, reason, None, "engine_timeout") from None

    async def _chat(self, body: Mapping[str, Any]) -> Response:
        prepared = await self._prepared(body)
        if not prepared.request.stream:
            async with aclosing(sample(prepared, self._timeout_s, self._transcripts)) as steps:
                return json_response(await completion(prepared, steps))
        events = self._events(prepared)
        # Awaited before the response starts, so that an early error sets the HTTP status.
        first = await anext(events)
        return StreamingResponse(_after(first, events), media_type="text/event-stream")

    async def _prepared(self, body: Mapping[str, Any]) -> Prepared:
        """Check a request, find its model and render its prompt. Work whose time is proportional to
        the request runs in threads.
        """
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        try:
            async with asyncio.timeout(self._timeout_s):
                request = await in_thread(chat_request, body)
                served = await served_model(self._models, request.model)
                return await in_thread(
                    prepare, request, served, self._transcripts, self._check, self._limit
                )
        except TimeoutError:
            reason = f"prompt and weights were not ready within {self._timeout_s:g} s"
            raise RequestError(503, reason, "model", "engine_timeout") from None

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


def _keyed(handler: Handler, api_key: str | None) -> Handler:
    async def keyed(http: Request) -> Response:
        if api_key is not None:
            check_key(http, [api_key.encode()])
        return await handler(http)

    return guarded(keyed)


def _event(value: Any) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "art-core"}
