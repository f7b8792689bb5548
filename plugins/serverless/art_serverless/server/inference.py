"""Chat completions, log-probs of texts and counted tokens are requests to the backend's own
endpoint.

The backend is always asked for the tokens of its answers. They are remembered for clients that do
not ask for them, so that training jobs may contain choices without tokens.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
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
from art_core.endpoint.errors import RequestError, shown
from art_core.endpoint.stream import joined
from art_serverless.protocol import InferenceName
from art_serverless.server.private import PrivatePaths
from art_serverless.server.sampled import SampledAnswers
from art_serverless.server.slots import ModelSlots
from art_serverless.server.store import Store, StoredModel

CONTEXTS = ("train", "eval")
Keep = Callable[[Mapping[str, Any]], None]


@attrs.define(kw_only=True, eq=False)
class Inference:
    """Forwards chat completions; a model stays loaded while one of its requests runs."""

    store: Store
    slots: ModelSlots
    timeout_s: float
    private: PrivatePaths = attrs.field(factory=PrivatePaths)
    sampled: SampledAnswers = attrs.field(factory=SampledAnswers)
    _client: httpx2.AsyncClient | None = None

    async def chat(self, request: dict[str, Any], context: str = "") -> Response:
        """Answer `POST /chat/completions`, streamed or not. Its costs belong to `context`."""
        stored, step = self._asked(request)
        _check_messages(request.get("messages"))
        fields = TokenFields.of(request)
        keep = None
        if not fields.all:
            keep = partial(self.sampled.remember, stored.id, request["messages"])
            request = fields.added_to(request)
        async with AsyncExitStack() as stack:
            model = await stack.enter_async_context(self.slots.using(stored))
            _check_budget(model)
            answer = await self._forward(model, request, step, context)
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

    async def forwarded(self, request: dict[str, Any], context: str, route: str) -> Response:
        """Forward a request that samples nothing: for log-probs of a text, or counted tokens."""
        stored, step = self._asked(request)
        async with self.slots.using(stored) as model:
            _check_budget(model)
            answer = await self._forward(model, request, step, context, route)
            try:
                content = await answer.aread()
            finally:
                await answer.aclose()
        if answer.status_code != HTTPStatus.OK:
            content = self.private.hide(content.decode(errors="replace")).encode()
        return Response(content, answer.status_code, media_type="application/json")

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    def _asked(self, request: Mapping[str, Any]) -> tuple[StoredModel, int | None]:
        name = request.get("model")
        if not isinstance(name, str):
            raise RequestError(400, f"model must be a string, got {shown(name)}", "model")
        return self.named(name)

    def named(self, text: str) -> tuple[StoredModel, int | None]:
        """Return the model and the step that a name refers to.

        Raises RequestError if there is no such model, or if several models fit.
        """
        name = InferenceName.parse(text)
        found = self.store.models_called(name.name, name.entity, name.project)
        if not found:
            served = ", ".join(m.address.uri for m in self.store.models()) or "none"
            message = f"no model {shown(text)}; served: {served}"[:2000]
            raise RequestError(404, message, "model", "model_not_found")
        if len(found) > 1:
            several = ", ".join(m.address.uri for m in found)
            raise RequestError(
                409, f"{shown(text)} may mean any of {several}; give one of these", "model"
            )
        return found[0], name.step

    async def _forward(
        self,
        model: TrainableModel,
        request: dict[str, Any],
        step: int | None,
        context: str,
        route: str = "chat/completions",
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
            f"{endpoint.base_url}/{route}",
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
            raise RequestError(
                503, f"the engine did not answer: {type(error).__name__} {error}"
            ) from None


def _check_budget(model: TrainableModel) -> None:
    """Raise BudgetError if the key that registered a model has nothing left."""
    budget = model.metrics_builder("train").budget
    if budget is not None:
        budget.check_left()


def _check_messages(messages: Any) -> None:
    whole = isinstance(messages, list) and all(isinstance(each, dict) for each in messages)
    if not whole or not messages:
        message = f"messages must be a list of at least one message, got {shown(messages)}"
        raise RequestError(400, message, "messages")


class _Stream(StreamingResponse):
    """Sends events. `resources` are released when the response ends, even before it starts."""

    def __init__(
        self, events: AsyncIterator[bytes], status: int, kind: str, resources: AsyncExitStack
    ) -> None:
        super().__init__(events, status, media_type=kind)
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            await super().__call__(scope, receive, send)


@attrs.frozen(kw_only=True)
class TokenFields:
    """The fields about tokens that a client asks for. The others are cut from the answer."""

    logprobs: bool
    token_ids: bool

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> TokenFields:
        """Return the fields that a request asks for."""
        return cls(
            logprobs=bool(request.get("logprobs")) or request.get("top_logprobs") is not None,
            token_ids=bool(request.get("return_token_ids")),
        )

    @property
    def all(self) -> bool:
        """True if the client asks for all fields, so that the server need not remember them."""
        return self.logprobs and self.token_ids

    def added_to(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request with all fields asked for."""
        more = {} if self.logprobs else {"logprobs": True}
        return {**request, **more, **({} if self.token_ids else {"return_token_ids": True})}

    def cut(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Return a completion, or a chunk of one, with the fields that were asked for."""
        cut = dict(completion)
        if not self.token_ids:
            cut.pop("prompt_token_ids", None)
            cut.pop("prompt_images", None)
        cut["choices"] = [self._cut_choice(choice) for choice in completion.get("choices") or ()]
        return cut

    def _cut_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        cut = dict(choice)
        if not self.token_ids:
            cut.pop("token_ids", None)
        if not self.logprobs and "logprobs" in cut:
            cut["logprobs"] = None
        return cut

    async def cut_stream(self, lines: AsyncIterator[str], keep: Keep) -> AsyncIterator[bytes]:
        """Yield the events of a stream with the fields that were asked for. `keep` is called with
        the whole completion at the end.
        """
        chunks: list[dict[str, Any]] = []
        async for line in lines:
            text = line.removeprefix("data:").strip()
            if not line.startswith("data:") or not text.startswith("{"):
                if text == "[DONE]":
                    keep(joined(chunks))
                yield line.encode() + b"\n"
                continue
            chunk = orjson.loads(text)
            chunks.append(chunk)
            yield b"data: " + orjson.dumps(self.cut(chunk)) + b"\n"
