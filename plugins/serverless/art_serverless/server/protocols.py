"""The routes of the other protocols: each is a chat completion of the model that it names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response

from art_core.endpoint.engine import CONTEXT_HEADER
from art_core.endpoint.http import bearer_key, json_body, unless_disconnected
from art_core.endpoint.protocols.answers import answered, stored_response
from art_core.endpoint.protocols.completions import COMPLETIONS
from art_core.endpoint.protocols.form import Protocol
from art_core.endpoint.protocols.messages import MESSAGES
from art_core.endpoint.protocols.responses import RESPONSES
from art_core.endpoint.protocols.stored import StoredResponses
from art_core.endpoint.score import is_score
from art_serverless.server.inference import Inference
from art_serverless.server.keys import Keys


@attrs.define(eq=False)
class ProtocolRoutes:
    """Handlers of requests in other protocols. Stored responses belong to the key that asked."""

    inference: Inference
    keys: Keys
    _stored: dict[str, StoredResponses] = attrs.field(factory=dict)

    async def responses(self, http: Request) -> Response:
        """Sample, as OpenAI's Responses do."""
        return await self._answered(http, RESPONSES, await json_body(http))

    async def response(self, http: Request) -> Response:
        """Return or delete a response that was stored."""
        return stored_response(http, self._stored_of(http))

    async def messages(self, http: Request) -> Response:
        """Sample, as Anthropic's Messages do. The key may be in the header x-api-key."""
        return await self._answered(http, MESSAGES, await json_body(http))

    async def count_tokens(self, http: Request) -> Response:
        """Count the tokens of a prompt, as Anthropic does."""
        return await self._forwarded(http, await json_body(http), "messages/count_tokens")

    async def completions(self, http: Request) -> Response:
        """Continue a text without a chat template, or return its log-probs with echo=true,
        max_tokens=0 and logprobs=1.
        """
        body = await json_body(http)
        if is_score(body):
            return await self._forwarded(http, body, "completions")
        return await self._answered(http, COMPLETIONS, body)

    async def _answered(
        self, http: Request, protocol: Protocol, body: Mapping[str, Any]
    ) -> Response:
        chat = partial(self.inference.chat, context=http.headers.get(CONTEXT_HEADER, ""))
        answer = answered(protocol, body, self._stored_of(http), chat)
        return await unless_disconnected(http, answer)

    async def _forwarded(self, http: Request, body: dict[str, Any], route: str) -> Response:
        context = http.headers.get(CONTEXT_HEADER, "")
        return await unless_disconnected(http, self.inference.forwarded(body, context, route))

    def _stored_of(self, http: Request) -> StoredResponses:
        # without keys there is one owner, whatever a request sends
        key = bearer_key(http) if self.keys.accepted else ""
        return self._stored.setdefault(key, StoredResponses())
