"""The OpenAI client of a model asks for token ids and log-probs, and keeps them on each choice."""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from art_core.backends import Endpoint
from art_core.base.collector import collector_paused, importing
from art_core.base.errors import ConfigError
from art_core.client.meter import READABLE, ModelMeter, metered_client
from art_core.costs.builder import active_builder
from art_core.endpoint.engine import CONTEXT_HEADER
from art_core.endpoint.listener import pass_by_proxies
from art_core.endpoint.open_files import connections, raise_open_files

if TYPE_CHECKING:
    from openai import AsyncOpenAI

log = logging.getLogger("art_core")

REQUEST_TIMEOUT_S = 600.0
CHAT = "/chat/completions"
POOLS = 16
LOOPBACK = re.compile(
    r"http://(127\.\d+\.\d+\.\d+|localhost|\[::1\]|0\.0\.0\.0)(?=[:/]|$)", re.IGNORECASE
)
_STEP_OF_A_NAME = re.compile(r".(?:@|:step)(\d+)$", re.ASCII)


def openai_client(
    endpoint: Endpoint,
    *,
    trainable: bool,
    timeout: float = REQUEST_TIMEOUT_S,
    meter: ModelMeter | None = None,
) -> AsyncOpenAI:
    """Make an `AsyncOpenAI` client of an endpoint; ConfigError when openai is not installed.

    With `trainable`, chat completions ask for log-probs and token ids, and each choice gets
    `prompt_token_ids`, `token_ids` and the `policy_version` of the weights that made it. A `meter`
    sees every answer, for its cost.
    """
    make = _trainable_client() if trainable else openai_package().AsyncOpenAI
    options: dict[str, Any] = {"timeout": timeout}
    http: dict[str, Any] = {}
    if meter is not None:
        make = metered_client(make, meter)
    raise_open_files()
    pass_by_proxies()
    if LOOPBACK.match(endpoint.base_url):
        http["transport"] = _pooled_transport()()
    if meter is not None:
        http["event_hooks"] = {"response": [meter.see]}
        options["default_headers"] = {"Accept-Encoding": READABLE}
    if http:
        options["http_client"] = openai_package().DefaultAsyncHttpxClient(**http)
    client: AsyncOpenAI = make(base_url=endpoint.base_url, api_key=endpoint.api_key, **options)
    return client


@functools.cache
def _pooled_transport() -> Any:
    """Return a transport with small pools of connections to this machine: a pool inspects each of
    its connections twice per request, which at 256 concurrent requests costs more than the request
    itself. Requests wait for others if no file is left.
    """
    # httpx or its successor: the one that openai itself was built on.
    built_on = openai_package().DefaultAsyncHttpxClient.__mro__[1].__module__
    http: Any = importlib.import_module(built_on.partition(".")[0])

    class PooledTransport(http.AsyncBaseTransport):  # type: ignore[misc]
        def __init__(self) -> None:
            limit = max(1, connections(raise_open_files()) // POOLS)
            limits = http.Limits(max_connections=limit, max_keepalive_connections=None)
            # Plain HTTP needs no certificates, which take long to read.
            options = {"verify": False, "limits": limits}
            self._pools = [http.AsyncHTTPTransport(**options) for _ in range(POOLS)]
            self._waiting = [0] * POOLS

        async def handle_async_request(self, request: Any) -> Any:
            place = self._waiting.index(min(self._waiting))
            self._waiting[place] += 1
            try:
                return await self._pools[place].handle_async_request(request)
            finally:
                self._waiting[place] -= 1

        async def aclose(self) -> None:
            for pool in self._pools:
                await pool.aclose()

    return PooledTransport


def openai_package() -> Any:
    """Return the openai package; ConfigError when it is not installed."""
    try:
        with importing():
            import openai
    except ImportError as error:
        raise ConfigError(
            "the openai package is missing", "pip install 'art-core[openai]'"
        ) from error
    return openai


def policy_version(response: Any) -> int | None:
    """Return the training step of the weights behind a response: its `policy_version`, else that of
    its model's name: `<name>@<step>` or `<name>:step<step>`.
    """
    version = getattr(response, "policy_version", None)
    if version is not None:
        return int(version)
    named = _STEP_OF_A_NAME.search(str(getattr(response, "model", "")))
    return int(named[1]) if named else None


def asking_for_tokens(
    body: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a request's body and options with the request for log-probs and token ids, unless it
    declines them, and with the context of the active metrics builder ("train" or "eval") in a
    header.
    """
    extra = {"return_token_ids": True} | (options.get("extra_json") or {})
    # Code around a client passes options that it was not given as None or a sentinel of openai.
    asking = {**body, "logprobs": body.get("logprobs") is not False}
    changed = {**options, "extra_json": extra}
    builder = active_builder.get()
    if builder is not None and builder.context:
        changed["headers"] = {CONTEXT_HEADER: builder.context} | (options.get("headers") or {})
    return asking, changed


def keep_tokens(response: Any) -> Any:
    """Set the prompt's token ids, the policy version, a sampling that biases importance ratios and
    the grammar on each choice; return the completion.
    """
    version = policy_version(response)
    for choice in getattr(response, "choices", None) or ():
        _put(choice, response, response, version)
    return response


def _put(choice: Any, source: Any, head: Any, version: int | None) -> None:
    """Put the prompt of `head`, and the sampling and grammar of `source`, on a choice."""
    of_the_prompt = (("prompt_token_ids", head), ("prompt_images", head))
    for name, of in (*of_the_prompt, ("sampling", source), ("grammar", source)):
        value = getattr(of, name, None)
        if value or (value is not None and name == "prompt_token_ids"):
            setattr(choice, name, value)
    if version is not None:
        choice.policy_version = version


@functools.cache
def _trainable_client() -> Any:
    """Return a subclass of `AsyncOpenAI` that changes chat completions in `post`, which `create`
    and `parse` share, whole, raw and streamed, also under `beta`.
    """
    openai_package()
    with collector_paused():
        from openai import AsyncOpenAI as OpenAIClient
        from openai import AsyncStream
        from openai.types.chat import ChatCompletion, ChatCompletionChunk

    class TokenCompletion(ChatCompletion):
        @classmethod
        def construct(cls, *fields: Any, **values: Any) -> Any:
            return keep_tokens(ChatCompletion.construct(*fields, **values))

    class TokenStream(AsyncStream[ChatCompletionChunk]):
        async def __stream__(self) -> Any:
            keep = ChunkTokens().keep
            async for chunk in super().__stream__():
                yield keep(chunk)

    class TrainableOpenAI(OpenAIClient):
        async def post(self, path: str, **request: Any) -> Any:
            body = request.get("body")
            if path == CHAT and isinstance(body, Mapping):
                options = request.get("options") or {}
                request["body"], request["options"] = asking_for_tokens(body, options)
                if request.get("cast_to") is ChatCompletion:
                    request["cast_to"] = TokenCompletion
                if request.get("stream"):
                    request["stream_cls"] = TokenStream
            return await super().post(path, **request)

    return TrainableOpenAI


@attrs.define
class ChunkTokens:
    """Puts tokens where openai's own accumulator of a stream keeps them: those of the whole answer
    on the first chunk of each choice, the id of each token beside its log-prob.
    """

    _head: Any = None
    _seen: set[int] = attrs.field(factory=set)

    def keep(self, chunk: Any) -> Any:
        """Return a chunk with its tokens."""
        if getattr(chunk, "prompt_token_ids", None):
            self._head = chunk
        version = policy_version(chunk)
        for choice in getattr(chunk, "choices", None) or ():
            if choice.index not in self._seen:
                self._seen.add(choice.index)
                _put(choice, chunk, self._head, version)
            entries = getattr(getattr(choice, "logprobs", None), "content", None) or ()
            ids = getattr(choice, "token_ids", None) or ()
            if len(entries) == len(ids):
                for entry, token_id in zip(entries, ids, strict=True):
                    entry.token_id = token_id
        return chunk
