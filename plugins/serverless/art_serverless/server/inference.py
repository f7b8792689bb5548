"""Chat completions: a request goes on to the backend's own endpoint, and its answer comes back.

The tokens of the answer are remembered, so that choices without them can be trained on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from http import HTTPStatus
from typing import Any

import attrs
import httpx2
import orjson
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from art_core import TrainableModel
from art_core.endpoint.engine import CONTEXT_HEADER
from art_core.endpoint.errors import shown
from art_serverless.protocol import InferenceName
from art_serverless.server.errors import RefusedError
from art_serverless.server.private import PrivatePaths
from art_serverless.server.sampled import SampledAnswers
from art_serverless.server.seats import Seats
from art_serverless.server.store import Store, StoredModel
from art_serverless.server.token_fields import TokenFields

CONTEXTS = ("train", "eval")


@attrs.define(kw_only=True, eq=False)
class Inference:
    """Passes requests on; a model stays awake as long as one of its requests runs."""

    store: Store
    seats: Seats
    timeout_s: float
    private: PrivatePaths = attrs.field(factory=PrivatePaths)
    sampled: SampledAnswers = attrs.field(factory=SampledAnswers)
    _client: httpx2.AsyncClient | None = None

    async def chat(self, request: dict[str, Any], context: str = "") -> Response:
        """Answer `POST /chat/completions`, streamed or whole; `context` says what its costs are."""
        asked = request.get("model")
        if not isinstance(asked, str):
            raise RefusedError(400, f"model must be a string, got {shown(asked)}", "model")
        stored, step = self.named(asked)
        _check_messages(request.get("messages"))
        fields = TokenFields.of(request)
        if fields.all:
            keep = None
        else:
            keep = partial(self.sampled.remember, stored.id, request["messages"])
            request = fields.asking(request)
        async with AsyncExitStack() as stack:
            model = await stack.enter_async_context(self.seats.using(stored))
            answer = await self._sent(model, request, step, context)
            stack.push_async_callback(answer.aclose)
            kind = answer.headers.get("content-type", "application/json")
            if kind.startswith("text/event-stream"):
                cut = fields.cut_stream(answer.aiter_lines(), keep) if keep else answer.aiter_raw()
                return _Stream(cut, answer.status_code, kind, stack.pop_all())
            content = await answer.aread()
            if answer.status_code != HTTPStatus.OK:
                content = self.private.hide(content.decode(errors="replace")).encode()
            elif keep:
                completion = orjson.loads(content)
                keep(completion)
                content = orjson.dumps(fields.cut(completion))
            return Response(content, answer.status_code, media_type=kind)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    def named(self, asked: str) -> tuple[StoredModel, int | None]:
        """Return the model of a name and the step in it; RefusedError for none, and for several."""
        name = InferenceName.parse(asked)
        found = self.store.models_called(name.name, name.entity, name.project)
        if not found:
            served = ", ".join(m.address.uri for m in self.store.models()) or "none"
            said = f"no model {shown(asked)}; served: {served}"[:2000]
            raise RefusedError(404, said, "model", "model_not_found")
        if len(found) > 1:
            several = ", ".join(m.address.uri for m in found)
            raise RefusedError(
                409, f"{shown(asked)} may mean any of {several}; give one of these", "model"
            )
        return found[0], name.step

    async def _sent(
        self, model: TrainableModel, request: dict[str, Any], step: int | None, context: str
    ) -> httpx2.Response:
        endpoint = model.endpoint()
        if self._client is None:
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
            transport = httpx2.AsyncHTTPTransport(limits=limits, retries=2)
            self._client = httpx2.AsyncClient(
                transport=transport, timeout=self.timeout_s, trust_env=False
            )
        outgoing = self._client.build_request(
            "POST",
            f"{endpoint.base_url}/chat/completions",
            content=orjson.dumps({**request, "model": endpoint.inference_name(step)}),
            headers={
                "Authorization": f"Bearer {endpoint.api_key}",
                "Content-Type": "application/json",
                CONTEXT_HEADER: context if context in CONTEXTS else "",
            },
        )
        try:
            return await self._client.send(outgoing, stream=True)
        except httpx2.HTTPError as error:
            raise RefusedError(
                503, f"the engine did not answer: {type(error).__name__} {error}"
            ) from None


def _check_messages(messages: Any) -> None:
    whole = isinstance(messages, list) and all(isinstance(each, dict) for each in messages)
    if not whole or not messages:
        said = f"messages must be a list of at least one message, got {shown(messages)}"
        raise RefusedError(400, said, "messages")


class _Stream(StreamingResponse):
    """Passes events on; what is held for them is let go however that ends, or never begins."""

    def __init__(
        self, events: AsyncIterator[bytes], status: int, kind: str, held: AsyncExitStack
    ) -> None:
        super().__init__(events, status, media_type=kind)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)
