"""The OpenAI client that a model hands out: it asks for token ids and log-probs and keeps them on
each choice.
"""

from __future__ import annotations

import functools
import importlib
import re
from typing import TYPE_CHECKING, Any

from art_core.backends import Endpoint
from art_core.costs.metered import READABLE, ModelMeter
from art_core.endpoint.engine import CONTEXT_HEADER
from art_core.endpoint.open_files import connections, raise_open_files
from art_core.endpoint.proxies import pass_by_proxies
from art_core.errors import ConfigError
from art_core.metrics.builder import active_builder

if TYPE_CHECKING:
    from openai import AsyncOpenAI

REQUEST_TIMEOUT_S = 600.0
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
    """Connections to this machine in small pools: a pool looks at every connection that it has
    twice a request, which at 256 requests together costs more than the request itself. Requests
    for which no file is left wait for others.
    """
    # httpx or its successor: the one that openai itself was built on.
    built_on = openai_package().DefaultAsyncHttpxClient.__mro__[1].__module__
    http: Any = importlib.import_module(built_on.partition(".")[0])
    class PooledTransport(http.AsyncBaseTransport):  # type: ignore[misc]
        def __init__(self) -> None:
            most = max(1, connections(raise_open_files()) // POOLS)
            limits = http.Limits(max_connections=most, max_keepalive_connections=None)
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
        import openai
    except ImportError as error:
        raise ConfigError(
            "the openai package is missing", "pip install 'art-core[openai]'"
        ) from error
    return openai


def policy_version(response: Any) -> int | None:
    """Return the training step of the weights behind a response: its `policy_version`, else what
    its model is called: `<name>@<step>` or `<name>:step<step>`.
    """
    said = getattr(response, "policy_version", None)
    if said is not None:
        return int(said)
    named = _STEP_OF_A_NAME.search(str(getattr(response, "model", "")))
    return int(named[1]) if named else None


def asking_for_tokens(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request that asks for log-probs and token ids, unless it says otherwise, and tells
    the context of the active metrics builder, "train" or "eval", in a header.
    """
    extra = {"return_token_ids": True} | (request.get("extra_body") or {})
    # Code around a client passes on what it was not told, as None or a sentinel of openai's.
    asking = request | {"logprobs": request.get("logprobs") is not False, "extra_body": extra}
    builder = active_builder.get()
    if builder is not None and builder.context:
        said = {CONTEXT_HEADER: builder.context} | (request.get("extra_headers") or {})
        asking["extra_headers"] = said
    return asking


def keep_tokens(response: Any) -> Any:
    """Put the prompt's token ids, the policy version and a sampling that biases importance ratios
    on each choice; return the completion.
    """
    prompt_ids = getattr(response, "prompt_token_ids", None)
    version = policy_version(response)
    sampling = getattr(response, "sampling", None)
    for choice in getattr(response, "choices", ()):
        if prompt_ids is not None:
            choice.prompt_token_ids = prompt_ids
        if version is not None:
            choice.policy_version = version
        if sampling:
            choice.sampling = sampling
    return response


@functools.cache
def _trainable_client() -> Any:
    openai_package()
    from openai import AsyncOpenAI as OpenAIClient
    from openai.resources.chat import AsyncChat
    from openai.resources.chat.completions import AsyncCompletions

    class TrainableCompletions(AsyncCompletions):
        async def create(self, **request: Any) -> Any:
            response = await super().create(**asking_for_tokens(request))
            return response if request.get("stream") else keep_tokens(response)

        async def parse(self, **request: Any) -> Any:
            return keep_tokens(await super().parse(**asking_for_tokens(request)))

    class TrainableChat(AsyncChat):
        @functools.cached_property
        def completions(self) -> TrainableCompletions:
            return TrainableCompletions(self._client)

    class TrainableOpenAI(OpenAIClient):
        @functools.cached_property
        def chat(self) -> TrainableChat:
            return TrainableChat(self)

    return TrainableOpenAI
