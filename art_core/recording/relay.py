"""The recorder's HTTP side: it asks for tokens too, and passes on what comes and keeps it. Import
it only to serve.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import openai  # noqa: TID253
import orjson
from starlette.applications import Starlette  # noqa: TID253
from starlette.exceptions import HTTPException  # noqa: TID253
from starlette.requests import Request  # noqa: TID253
from starlette.responses import Response, StreamingResponse  # noqa: TID253
from starlette.routing import Route  # noqa: TID253

from art_core.backends import Endpoint
from art_core.client import openai_client
from art_core.costs.metered import ModelMeter
from art_core.endpoint.engine import CONTEXT_HEADER
from art_core.endpoint.errors import RequestError
from art_core.endpoint.http import bearer_key, guarded, json_body, only, unless_gone
from art_core.recording.recorder import Recording
from art_core.recording.stream import joined
from art_core.threads import having

CHAT = "/v1/chat/completions"
TOKENS = {"logprobs": True, "return_token_ids": True}
FORCING = ("response_format", "parallel_tool_calls", "tool_choice")


def create_relay(
    served: Endpoint,
    recordings: Mapping[str, Recording],
    *,
    trainable: bool,
    meter: ModelMeter | None = None,
) -> Starlette:
    """Make the application; a request's key says which of the recordings it belongs to."""
    relay = _Relay(served, recordings, TOKENS if trainable else {}, meter)
    return Starlette(
        routes=[Route(CHAT, guarded(relay.chat_completions), methods=["POST"])],
        exception_handlers={HTTPException: only(CHAT)},
        lifespan=relay.lifespan,
    )


class _Relay:
    _client: openai.AsyncOpenAI

    def __init__(
        self,
        served: Endpoint,
        recordings: Mapping[str, Recording],
        tokens: dict[str, bool],
        meter: ModelMeter | None,
    ) -> None:
        self._served = served
        self._meter = meter
        self._tokens = tokens
        self._recordings = recordings

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        made = openai_client(self._served, trainable=False, meter=self._meter)
        async with made as client:
            # Whoever asks tries again, if it wants to.
            self._client = client.with_options(max_retries=0)
            yield

    async def chat_completions(self, http: Request) -> Response:
        recording = self._recordings.get(bearer_key(http))
        if recording is None:
            reason = "no recording has this key; one's key is good inside its `with` block alone"
            raise RequestError(401, reason, None, "invalid_api_key")
        request = await json_body(http)
        try:
            if request.get("stream"):
                parts = self._parts(recording, request)
                # Awaited before the response starts, so that a refusal keeps its HTTP status.
                first = await anext(parts)
                return StreamingResponse(_after(first, parts), media_type="text/event-stream")
            whole = await unless_gone(http, self._whole(recording, request))
        except openai.APIStatusError as error:
            return Response(
                error.response.content, error.status_code, media_type="application/json"
            )
        except openai.APIConnectionError as error:
            reason = f"{self._served.base_url} cannot be reached: {error.__cause__ or error}"
            raise RequestError(503, reason, None, "engine_error") from error
        return Response(whole, media_type="application/json")

    async def _whole(self, recording: Recording, request: dict[str, Any]) -> bytes:
        async with self._asked(recording, request) as answer:
            content: bytes = await answer.read()
        recording.add(request, orjson.loads(content))
        return content

    async def _parts(
        self, recording: Recording, request: dict[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        chunks: list[dict[str, Any]] = []
        growing, rest = request.get("n") or 1, b""
        async with self._asked(recording, request) as answer:
            async for part in answer.iter_bytes():
                # Not as lines of text, which end at U+2028 too, in the middle of a chunk.
                *lines, rest = (rest + part).split(b"\n")
                fresh = _chunks(lines)
                chunks += fresh
                ended = sum(
                    bool(c.get("finish_reason")) for f in fresh for c in f.get("choices", ())
                )
                growing -= ended
                if ended and not growing:
                    recording.add(request, joined(chunks))
                yield part

    @asynccontextmanager
    async def _asked(self, recording: Recording, request: dict[str, Any]) -> AsyncIterator[Any]:
        context = {CONTEXT_HEADER: recording.context} if recording.context else {}
        asking = self._client.chat.completions.with_streaming_response.create(
            model=request.get("model", ""),
            messages=request.get("messages", []),
            extra_body=(_freed(request) if recording.unconstrained else request) | self._tokens,
            extra_headers=context,
        )
        async with AsyncExitStack() as stack:
            with having(recording.payers):
                answer = await stack.enter_async_context(asking)
            yield answer


def _chunks(lines: list[bytes]) -> list[dict[str, Any]]:
    told = [line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:")]
    return [orjson.loads(data) for data in told if data.startswith(b"{")]


def _freed(request: dict[str, Any]) -> dict[str, Any]:
    """Leave out what would force the form of an answer; a tool_choice of "none" hides the tools."""
    forced = {name for name in FORCING if request.get(name) != "none"}
    return {name: value for name, value in request.items() if name not in forced}


async def _after(first: bytes, parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        yield first
        async for part in parts:
            yield part
