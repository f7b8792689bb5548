"""The OpenAI client of a model asks for token ids and log-probs, and keeps them on each choice.

At a paid endpoint a meter reads the cost of each answer.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import orjson

from art_core.backends import Endpoint
from art_core.base.collector import collector_paused, importing
from art_core.base.errors import ConfigError
from art_core.costs.builder import MetricsBuilder, active_builder
from art_core.costs.stream import TrackedStream
from art_core.costs.track import MeteredCall, Payer, calls_inside, carry_payers, payer_of
from art_core.endpoint.engine import CONTEXT_HEADER
from art_core.endpoint.listener import pass_by_proxies
from art_core.endpoint.open_files import connections, raise_open_files
from art_core.metrics.receipt import TokenUsage
from art_core.prices.book import provider_at

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


SOURCE = "model"
"""Leaf of a model's own tokens: `costs/<context>/model`."""
READABLE = "gzip, deflate"
"""Encodings of a stream that can be read while it passes."""
_ANSWERS = ("/completions", "/responses")


@attrs.frozen(eq=False)
class ModelMeter:
    """Adds the cost of each answer to the run that pays; `own` is the model's builder."""

    base_url: str
    model_name: str
    own: MetricsBuilder

    def __attrs_post_init__(self) -> None:
        carry_payers()

    async def see(self, response: Any) -> None:
        """Read a response's usage, now or when its stream ends: an event hook of the HTTP client.

        Errors are logged only, so the response reaches the caller.
        """
        try:
            if response.request.method == "POST" and response.is_success:
                await self._see(response)
        except Exception:
            log.exception("the usage of an answer of %s could not be read", self.base_url)

    async def _see(self, response: Any) -> None:
        kind = response.headers.get("content-type", "")
        if kind.startswith("text/event-stream"):
            self._see_stream(response)
        elif kind.startswith("application/json"):
            body = orjson.loads(await response.aread())
            answers = response.request.url.path.endswith(_ANSWERS)
            if isinstance(body, dict) and (answers or body.get("usage")):
                call = self._call(response.request)
                call.add(call.payer.prices.usage(body, call.provider))

    def _see_stream(self, response: Any) -> None:
        call = self._call(response.request)
        prices = call.payer.prices
        reader = TrackedStream(
            None,
            call.add,
            tokens=lambda part: prices.tokens(part, call.provider),
            cost=lambda part: prices.extracted(part, call.provider),
        )
        encoding = response.headers.get("content-encoding", "identity")
        response.stream = _observed(response, _Events(reader, _decoder(encoding)))

    def _call(self, request: Any) -> _Call:
        model = orjson.loads(request.content).get("model") or self.model_name
        provider = provider_at(self.base_url) or urlsplit(self.base_url).netloc
        payer = payer_of(SOURCE, provider, model, self.own)
        return _Call(self.own, payer, provider, model)


@attrs.define(eq=False)
class _Call:
    """One request, its payer and the tracked call around it."""

    own: MetricsBuilder
    payer: Payer
    provider: str
    model: str
    inside: Any = attrs.field(factory=calls_inside.get)

    def add(self, usage: TokenUsage) -> None:
        """Add the cost, now or by the tracked call around this one."""
        if self.inside is None:
            self._book(usage)
        else:
            self.inside.meter(MeteredCall(usage, lambda: self._book(usage)))

    def _book(self, usage: TokenUsage) -> None:
        prices = (self.payer.prices, self.own.prices)
        rates = (book.rates(self.provider, self.model, usage) for book in prices)
        self.payer.add_usage(
            SOURCE,
            usage,
            provider=self.provider,
            model_name=self.model,
            rates=next((found for found in rates if found), None),
        )


@attrs.define(eq=False)
class _Events:
    """Reads the bytes of a stream of events as they pass."""

    reader: TrackedStream
    decoded: Callable[[bytes], bytes] | None
    rest: bytes = b""

    def see(self, part: bytes) -> None:
        """Read the chunks that a part of the stream completes."""
        if self.decoded is None:
            return
        *lines, self.rest = (self.rest + self.decoded(part)).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data.startswith(b"{"):
                self.reader.see(orjson.loads(data))
            elif data == b"[DONE]":
                self.reader.complete()
                self.end()  # before the caller has the end of the stream, and logs a row

    def end(self) -> None:
        """Count the usage that was read."""
        self.reader.finish()


def _decoder(encoding: str) -> Callable[[bytes], bytes] | None:
    if encoding == "identity":
        return bytes
    return zlib.decompressobj(47).decompress if encoding in READABLE.split(", ") else None


def _observed(response: Any, events: _Events) -> Any:
    """Return the stream of a response that shows its bytes to a reader."""
    # httpx or its successor: the one that openai itself was built on
    http: Any = importlib.import_module(type(response).__module__.partition(".")[0])
    inner = response.stream

    class ObservedStream(http.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in inner:
                _quietly(events.see, part)
                yield part

        async def aclose(self) -> None:
            _quietly(events.end)
            await inner.aclose()

    return ObservedStream()


def _quietly(read: Callable[..., None], *arguments: bytes) -> None:
    try:
        read(*arguments)
    except Exception:
        log.exception("a stream could not be read for its usage; it goes on")
