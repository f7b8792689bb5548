"""The endpoint's routes, in Starlette. Import it only to serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette  # noqa: TID253
from starlette.exceptions import HTTPException  # noqa: TID253
from starlette.requests import Request  # noqa: TID253
from starlette.responses import Response, StreamingResponse  # noqa: TID253
from starlette.routing import Route  # noqa: TID253

from art_core.base.errors import ConfigError
from art_core.endpoint.engine import CONTEXT_HEADER, ModelNames, ServedModel, request_context
from art_core.endpoint.errors import RequestError
from art_core.endpoint.http import (
    MAX_BODY_BYTES,
    Handler,
    check_key,
    guarded,
    json_body,
    json_response,
    unknown_route,
    unless_disconnected,
)
from art_core.endpoint.prompt import (
    Prepared,
    PromptLimit,
    TemplateCheck,
    prepare,
    prompt_tokens,
    served_model,
    unknown_model,
)
from art_core.endpoint.protocols.answers import (
    COUNT,
    PROTOCOLS,
    RESPONSE,
    answered,
    stored_response,
)
from art_core.endpoint.protocols.completions import COMPLETIONS
from art_core.endpoint.protocols.form import Protocol
from art_core.endpoint.protocols.messages import MESSAGES
from art_core.endpoint.protocols.stored import StoredResponses
from art_core.endpoint.request import ChatRequest, chat_request
from art_core.endpoint.response import chunks, completion
from art_core.endpoint.sampling import sample
from art_core.endpoint.score import is_score, prompt_ids, score_request, scored
from art_core.endpoint.strict_json import json_bytes
from art_core.endpoint.transcripts import MAX_IDS, Transcripts

T = TypeVar("T")
PROMPT_THREADS = 4
OTHER_ROUTES = (
    "this endpoint has /v1/chat/completions, /v1/responses, /v1/messages, "
    "/v1/messages/count_tokens, /v1/completions, /v1/models, /health"
)


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
        *[
            Route(
                path,
                _keyed(partial(routes.translated, protocol), api_key, protocol.error),
                methods=["POST"],
            )
            for path, protocol in PROTOCOLS.items()
        ],
        Route(RESPONSE, _keyed(routes.response, api_key), methods=["GET", "DELETE"]),
        Route(COUNT, _keyed(routes.count_tokens, api_key, MESSAGES.error), methods=["POST"]),
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
        self._stored = StoredResponses()
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

    async def translated(self, protocol: Protocol, http: Request) -> Response:
        request_context.set(http.headers.get(CONTEXT_HEADER, ""))
        body = await json_body(http, self._max_body_bytes)
        if protocol is COMPLETIONS and is_score(body):
            return await unless_disconnected(http, self._score(body))
        answer = answered(protocol, body, self._stored, self._chat)
        return await unless_disconnected(http, answer)

    async def response(self, http: Request) -> Response:
        return stored_response(http, self._stored)

    async def count_tokens(self, http: Request) -> Response:
        body = await json_body(http, self._max_body_bytes)
        return await unless_disconnected(http, self._count(body))

    async def _count(self, body: Mapping[str, Any]) -> Response:
        def count(request: ChatRequest, served: ServedModel) -> int:
            return len(prompt_tokens(request, served, self._transcripts, self._limit)[1])

        try:
            asked = MESSAGES.parse({"max_tokens": 1, **body}, self._stored)
            tokens = await self._in_threads(asked.chat, count)
        except RequestError as error:
            raise MESSAGES.own(error) from error
        return json_response({"input_tokens": tokens})

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
        """Check a request, find its model and render its prompt."""

        def prepared(request: ChatRequest, served: ServedModel) -> Prepared:
            return prepare(request, served, self._transcripts, self._check, self._limit)

        return await self._in_threads(body, prepared)

    async def _in_threads(
        self, body: Mapping[str, Any], work: Callable[[ChatRequest, ServedModel], T]
    ) -> T:
        """Return the work on a request and its model. Work whose time is proportional to the
        request runs in threads.
        """
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        try:
            async with asyncio.timeout(self._timeout_s):
                request = await in_thread(chat_request, body)
                served = await served_model(self._models, request.model)
                return await in_thread(work, request, served)
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


def _keyed(
    handler: Handler,
    api_key: str | None,
    error_body: Callable[[RequestError], Mapping[str, Any]] = RequestError.body,
) -> Handler:
    async def keyed(http: Request) -> Response:
        if api_key is not None:
            check_key(http, [api_key.encode()])
        return await handler(http)

    return guarded(keyed, body=error_body)


def _event(value: Any) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "art-core"}
