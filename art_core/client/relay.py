"""The recorder's HTTP application: it adds the request for tokens, forwards, and records answers.
Import it only to serve.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any

import openai  # noqa: TID253
from starlette.applications import Starlette  # noqa: TID253
from starlette.exceptions import HTTPException  # noqa: TID253
from starlette.requests import Request  # noqa: TID253
from starlette.responses import Response, StreamingResponse  # noqa: TID253
from starlette.routing import Route  # noqa: TID253

from art_core.backends import Endpoint
from art_core.base.threads import having
from art_core.client.meter import ModelMeter
from art_core.client.openai_client import openai_client
from art_core.client.recorder import Recording
from art_core.endpoint.engine import CONTEXT_HEADER
from art_core.endpoint.errors import RequestError
from art_core.endpoint.http import (
    API_KEY_HEADER,
    bearer_key,
    guarded,
    json_body,
    json_response,
    unknown_route,
    unless_disconnected,
)
from art_core.endpoint.protocols.answers import (
    COUNT,
    PROTOCOLS,
    RESPONSE,
    answered,
    stored_response,
)
from art_core.endpoint.protocols.form import Protocol, error_of
from art_core.endpoint.protocols.messages import MESSAGES

CHAT = "/v1/chat/completions"
TOKENS = {"logprobs": True, "return_token_ids": True}
MAX_REQUEST_BYTES = 256 << 20
"""The served model has a limit of its own."""
_CONNECTION_HEADERS = {
    "connection", "content-encoding", "content-length", "date", "keep-alive", "proxy-authenticate",
    "server", "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip
_CLIENT_HEADERS = _CONNECTION_HEADERS | {
    "accept", "accept-encoding", "authorization", "content-type", "expect", "host",
    "proxy-authorization", "te", "user-agent", API_KEY_HEADER,
}  # fmt: skip
_OF_CLIENTS = ("x-stainless-", "anthropic-")
FORCING = ("response_format", "parallel_tool_calls", "structured_outputs", "tool_choice")
FORCING_COUNTS = ("output_config", "output_format", "tool_choice")
OTHER_ROUTES = f"this endpoint has {', '.join((CHAT, *PROTOCOLS, COUNT))}"


def create_relay(
    served: Endpoint,
    recording_of: Callable[[str], Recording],
    *,
    trainable: bool,
    meter: ModelMeter | None = None,
    max_request_bytes: int = MAX_REQUEST_BYTES,
    other_routes: Sequence[Route] = (),
) -> Starlette:
    """Make the application, with the routes of the protocols and others.

    `recording_of` returns the recording of a request's key, or raises RequestError.
    """
    relay = _Relay(served, recording_of, TOKENS if trainable else {}, meter, max_request_bytes)
    others = "".join(f", {path}" for path in dict.fromkeys(route.path for route in other_routes))
    return Starlette(
        routes=[
            *other_routes,
            Route(CHAT, guarded(relay.chat_completions), methods=["POST"]),
            *[
                Route(
                    path,
                    guarded(partial(relay.translated, each), body=each.error),
                    methods=["POST"],
                )
                for path, each in PROTOCOLS.items()
            ],
            Route(RESPONSE, guarded(relay.response), methods=["GET", "DELETE"]),
            Route(COUNT, guarded(relay.count_tokens, body=MESSAGES.error), methods=["POST"]),
        ],
        exception_handlers={HTTPException: unknown_route(OTHER_ROUTES + others)},
        lifespan=relay.lifespan,
    )


class _Relay:
    _client: openai.AsyncOpenAI

    def __init__(
        self,
        served: Endpoint,
        recording_of: Callable[[str], Recording],
        tokens: dict[str, bool],
        meter: ModelMeter | None,
        max_request_bytes: int,
    ) -> None:
        self._served = served
        self._meter = meter
        self._tokens = tokens
        self._recording_of = recording_of
        self._max_request_bytes = max_request_bytes

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        client = openai_client(self._served, trainable=False, meter=self._meter)
        async with client:
            # The agent's client decides about retries.
            self._client = client.with_options(max_retries=0)
            yield

    async def chat_completions(self, http: Request) -> Response:
        recording = self._recording(http)
        return await self._chat(recording, http, await json_body(http, self._max_request_bytes))

    async def translated(self, protocol: Protocol, http: Request) -> Response:
        recording = self._recording(http)
        body = await json_body(http, self._max_request_bytes)
        return await answered(
            protocol, body, recording.stored, partial(self._chat, recording, http)
        )

    async def response(self, http: Request) -> Response:
        return stored_response(http, self._recording(http).stored)

    async def count_tokens(self, http: Request) -> Response:
        recording = self._recording(http)
        body = await json_body(http, self._max_request_bytes)
        if recording.unconstrained:
            body = {name: value for name, value in body.items() if name not in FORCING_COUNTS}
        try:
            counted = self._client.post(COUNT.removeprefix("/v1"), cast_to=object, body=body)
            return json_response(await counted)
        except openai.APIStatusError as error:
            raise error_of(error.body, error.status_code) from error
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from error

    def _recording(self, http: Request) -> Recording:
        return self._recording_of(bearer_key(http))

    async def _chat(self, recording: Recording, http: Request, request: dict[str, Any]) -> Response:
        parts = self._parts(recording, request, http)
        try:
            # Awaited before the response starts, so that a refusal keeps its HTTP status.
            head = await unless_disconnected(http, _next(parts))
            if not request.get("stream"):
                content = await unless_disconnected(http, _read(parts))
                if isinstance(content, bytes):
                    return Response(content, head.status_code, _passed(head.headers))
                parts = _broken_off(content)
        except openai.APIStatusError as error:
            refusal = error.response
            return Response(refusal.content, refusal.status_code, _passed(refusal.headers))
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from error
        return StreamingResponse(_rest(parts), head.status_code, _passed(head.headers))

    def _unreachable(self, error: Exception) -> RequestError:
        reason = f"{self._served.base_url} cannot be reached: {error.__cause__ or error}"
        return RequestError(503, reason)

    async def _parts(
        self, recording: Recording, request: dict[str, Any], http: Request
    ) -> AsyncGenerator[Any, None]:
        """Give the answer's head, then its bytes. Bytes that end it are recorded before they are
        passed on, since the agent may leave its block as soon as it has them.
        """
        async with self._asked(recording, request, http) as answer:
            received = recording.begin(request)
            ended = False
            try:
                yield answer
                async for part in answer.iter_bytes():
                    recording.add(received, part)
                    yield part
                ended = True
            finally:
                recording.finish(received, ended=ended)

    @asynccontextmanager
    async def _asked(
        self, recording: Recording, request: dict[str, Any], http: Request
    ) -> AsyncIterator[Any]:
        context = {CONTEXT_HEADER: recording.context} if recording.context else {}
        asking = self._client.chat.completions.with_streaming_response.create(
            model=request.get("model", ""),
            messages=request.get("messages", []),
            extra_body=(_freed(request) if recording.unconstrained else request) | self._tokens,
            extra_headers=_own_headers(http) | context,
            extra_query=dict(http.query_params),
        )
        async with AsyncExitStack() as stack:
            with having(recording.payers):
                answer = await stack.enter_async_context(asking)
            yield answer


def _freed(request: dict[str, Any]) -> dict[str, Any]:
    """Remove fields that force the form of an answer; a tool_choice of "none" hides the tools."""
    forced = {name for name in FORCING if request.get(name) != "none"}
    return {name: value for name, value in request.items() if name not in forced}


def _own_headers(http: Request) -> dict[str, str]:
    """Return the headers that the agent itself has set, without those of its client."""
    return {
        name: value
        for name, value in http.headers.items()
        if name not in _CLIENT_HEADERS and not name.startswith(_OF_CLIENTS)
    }


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of an answer without those of its connection and its encoding."""
    return {
        name: value for name, value in headers.items() if name.lower() not in _CONNECTION_HEADERS
    }


async def _next(parts: AsyncGenerator[Any, None]) -> Any:
    return await anext(parts)


async def _read(parts: AsyncGenerator[Any, None]) -> bytes | OSError:
    """Return the bytes of an answer, or the error that broke it off."""
    try:
        async with aclosing(parts):
            return b"".join([part async for part in parts])
    except Exception as error:
        return ConnectionResetError(f"the answer broke off: {error!r}")


async def _broken_off(error: OSError) -> AsyncGenerator[Any, None]:
    """Break off for the agent too: its client does the same as without recording."""
    yield b""
    raise error


async def _rest(parts: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        async for part in parts:
            yield part
