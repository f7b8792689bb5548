"""The routes of the protocols, over any handler of chat completions. Import it only to serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, cast

from starlette.requests import Request  # noqa: TID253
from starlette.responses import Response, StreamingResponse  # noqa: TID253

from art_core.endpoint.errors import RequestError
from art_core.endpoint.http import json_response
from art_core.endpoint.protocols.completions import COMPLETIONS
from art_core.endpoint.protocols.form import Asked, Protocol, error_of
from art_core.endpoint.protocols.messages import MESSAGES
from art_core.endpoint.protocols.responses import RESPONSES
from art_core.endpoint.protocols.stored import StoredResponses
from art_core.endpoint.stream import EventData
from art_core.endpoint.strict_json import any_json

Chat = Callable[[dict[str, Any]], Awaitable[Response]]
"""A handler of chat completions: takes the body of a request, returns JSON or a stream."""

PROTOCOLS: Mapping[str, Protocol] = {
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/completions": COMPLETIONS,
}
"""The path of each protocol."""
COUNT = "/v1/messages/count_tokens"
RESPONSE = "/v1/responses/{response_id}"
_OF_THE_BODY = {"content-length", "content-type"}


async def answered(
    protocol: Protocol, body: Mapping[str, Any], stored: StoredResponses, chat: Chat
) -> Response:
    """Answer a request of a protocol by a chat completion; raises RequestError with the protocol's
    names of parameters. `stored` keeps the responses of the key.
    """
    # In a thread: the time is proportional to the body.
    asked = await asyncio.to_thread(protocol.parse, body, stored)
    try:
        answer = await chat(asked.chat)
    except RequestError as error:
        raise protocol.own(error) from error
    if isinstance(answer, StreamingResponse):
        # The response stays the same object: it releases what it holds when it ends.
        parts = cast("AsyncGenerator[Any, None]", answer.body_iterator)
        answer.body_iterator = _translated(protocol, asked, parts)
        return answer
    return _whole(protocol, asked, answer)


def _whole(protocol: Protocol, asked: Asked, answer: Response) -> Response:
    value = _value(bytes(answer.body))
    if answer.status_code >= 400:
        body = protocol.error(protocol.own(error_of(value, answer.status_code)))
    else:
        body = protocol.render(asked, _checked(value))
    rendered = json_response(body, answer.status_code)
    for name, text in answer.headers.items():
        if name not in _OF_THE_BODY:
            rendered.headers[name] = text
    return rendered


def _checked(completion: Any) -> Mapping[str, Any]:
    """Return a chat completion of another server, if it is one."""
    choices = completion.get("choices") if isinstance(completion, Mapping) else None
    if isinstance(choices, list) and choices and isinstance(choices[0].get("message"), Mapping):
        found: Mapping[str, Any] = completion
        return found
    raise RequestError(503, "the served model's answer has no choices")


def stored_response(http: Request, stored: StoredResponses) -> Response:
    """Answer a request for a response that was stored, or the request to delete it."""
    response_id = http.path_params["response_id"]
    body = stored.get(response_id).body
    if http.method == "DELETE":
        stored.delete(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})
    return json_response(body)


def _value(body: bytes) -> Any:
    try:
        return any_json(body)
    except ValueError:
        return body.decode(errors="replace")


async def _translated(
    protocol: Protocol, asked: Asked, parts: AsyncGenerator[Any, None]
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream of chunks; close it also if the client disconnects."""
    async with (
        aclosing(parts),
        aclosing(_chunks(parts)) as chunks,
        aclosing(protocol.events(asked, chunks)) as events,
    ):
        async for event in events:
            yield event


async def _chunks(parts: AsyncIterator[Any]) -> AsyncGenerator[Mapping[str, Any], None]:
    received = EventData()
    async for part in parts:
        for data in received.feed(part):
            value = _value(data)
            if isinstance(value, Mapping):
                yield value
