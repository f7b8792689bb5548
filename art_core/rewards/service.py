"""Services that answer for a judge: a model's own endpoint, an OpenAI-compatible one, litellm."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import urlsplit

import attrs

from art_core.base.errors import ConfigError
from art_core.client.openai_client import openai_package
from art_core.prices.book import provider_at

_OPENAI = "https://api.openai.com/v1"
FIRST_WAIT_S, LAST_WAIT_S = 0.5, 8.0
"""Seconds before the first retry and the longest wait, as of openai's own client."""
_AGAIN = (408, 409, 429)


class _Asking(Protocol):
    """What a service needs of a judge."""

    model: Any
    base_url: str | None
    api_key: str | None
    timeout: float
    max_retries: int

    @property
    def name(self) -> str:
        """The model's name."""


@attrs.frozen
class JudgeService:
    """The function that answers for a judge, and the names that prices go by."""

    create: Callable[..., Awaitable[Any]]
    model: str
    provider: str
    priced: bool = True

    @classmethod
    def of(cls, judge: _Asking) -> JudgeService:
        """Return the service that a judge's model, name or address names.

        Raises ConfigError when a key or litellm is missing.
        """
        limits: dict[str, Any] = {"timeout": judge.timeout, "max_retries": judge.max_retries}
        if not isinstance(judge.model, str):
            client = judge.model.openai_client().with_options(**limits)
            url = str(client.base_url)
            return cls(
                client.chat.completions.create,
                judge.model.get_inference_name(),
                provider_at(url) or urlsplit(url).netloc,
                priced=not hasattr(judge.model, "train"),
            )
        own, bare = judge.model.removeprefix("openai/"), "/" not in judge.model
        if judge.base_url:
            return cls._at_openai(judge, judge.model, limits)
        if bare or own != judge.model:
            return cls._at_openai(judge, own, limits)
        return cls._by_litellm(judge)

    @classmethod
    def _at_openai(cls, judge: _Asking, model: str, limits: dict[str, Any]) -> JudgeService:
        package = openai_package()
        url = judge.base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI
        key = judge.api_key or os.environ.get("OPENAI_API_KEY")
        if not key and url == _OPENAI:
            raise ConfigError(
                f"the judge {judge.name!r} needs a key", "Set OPENAI_API_KEY, or give api_key."
            )
        provider = provider_at(url) or urlsplit(url).netloc

        async def create(**request: Any) -> Any:
            async with package.AsyncOpenAI(base_url=url, api_key=key or "none", **limits) as client:
                return await client.chat.completions.create(**request)

        return cls(create, model, provider)

    @classmethod
    def _by_litellm(cls, judge: _Asking) -> JudgeService:
        try:
            litellm = import_module("litellm")
        except ImportError as error:
            raise ConfigError(
                f"the judge {judge.name!r} is asked through litellm, which is not installed",
                "pip install 'art-core[judges]', or give base_url for an OpenAI-compatible "
                "endpoint.",
            ) from error
        provider, _, model = judge.model.partition("/")

        async def create(**request: Any) -> Any:
            asked = request | {"model": judge.model, "api_key": judge.api_key}
            limits = {"timeout": judge.timeout, "num_retries": 0, "max_retries": 0}
            return await retried(lambda: litellm.acompletion(**asked, **limits), judge.max_retries)

        return cls(create, model, provider)


async def retried(call: Callable[[], Awaitable[Any]], max_retries: int) -> Any:
    """Return what a call returns; call it again, after growing waits, while the service is busy,
    fails, or can't be reached. litellm retries only where `tenacity` is installed.
    """
    wait = FIRST_WAIT_S
    for left in range(max_retries, -1, -1):
        try:
            return await call()
        except Exception as error:
            if not left or not _is_worth_another_try(error):
                raise
        await asyncio.sleep(wait * random.uniform(0.75, 1.0))
        wait = min(2 * wait, LAST_WAIT_S)
    raise AssertionError("unreachable")


def _is_worth_another_try(error: Exception) -> bool:
    status = getattr(error, "status_code", None)
    if not isinstance(status, int):
        return isinstance(error, OSError)
    return status in _AGAIN or status >= 500
