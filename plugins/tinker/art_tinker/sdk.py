"""The SDK's calls: each on a thread of its own, with a deadline and with reasons.

The SDK retries a server that does not answer for five minutes, and some of its calls block. Calls
are those that SDK 0.20 and the newest share; what one gives at once and the other as a future is
settled here.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs

from art_core import BackendError, ConfigError

T = TypeVar("T")
PROBE_S = 2.0
INSTALL = "pip install 'tinker>=0.20'"


class RefusedError(BackendError):
    """The service refused a request, or never got it: nothing of it was done, nothing is owed."""


def tinker() -> Any:
    """Import the SDK; ConfigError names what is missing."""
    try:
        import tinker
    except ImportError as error:
        raise ConfigError(
            f"backend 'tinker' needs {error.name!r}, which is not installed", INSTALL
        ) from error
    return tinker


@attrs.frozen(kw_only=True)
class Connection:
    """Where the service is, the key, and how long it may take to answer."""

    base_url: str | None = None
    api_key: str | None = attrs.field(default=None, repr=False)
    connect_timeout_s: float = 30.0

    @property
    def where(self) -> str:
        """The service's address, for messages."""
        return self.base_url or os.environ.get("TINKER_BASE_URL") or "Tinker's own address"

    def options(self) -> dict[str, Any]:
        """Return what a client of the SDK takes; it reads its environment for what is not given."""
        given = {"base_url": self.base_url, "api_key": self.api_key}
        return {name: value for name, value in given.items() if value is not None}

    async def open(self, metadata: Mapping[str, str]) -> tuple[Any, dict[str, int | None]]:
        """Begin a session; return its service client, and the base models that the service has with
        their context lengths.
        """

        def opened() -> tuple[Any, Any]:
            service = tinker().ServiceClient(user_metadata=dict(metadata), **self.options())
            return service, self._capabilities(service)

        service, found = await self.call(
            opened, self.connect_timeout_s, f"beginning a session at {self.where}"
        )
        models = {m.model_name: m.max_context_length for m in found.supported_models}
        return service, {name: length for name, length in models.items() if name}

    def rest(self, service: Any) -> Any:
        """Return a client of the service's REST calls: an older SDK has it of a session alone."""
        made = getattr(tinker(), "RestClient", None)
        return service.create_rest_client() if made is None else made(**self.options())

    def _capabilities(self, service: Any) -> Any:
        ask = getattr(self.rest(service), "get_server_capabilities", None)
        return settled((ask or service.get_server_capabilities)())

    async def call(self, work: Callable[[], T], timeout_s: float, doing: str) -> T:
        """Do blocking work of the SDK on a thread of its own, within `timeout_s`.

        Raises ConfigError for a key that is missing or refused, RefusedError when the service did
        not take the request, BackendError for anything else.
        """
        outcome: Future[T] = Future()
        outcome.set_running_or_notify_cancel()

        def run() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:
                outcome.set_exception(error)

        # Not a pool: its threads would hold up the interpreter's end while the SDK retries.
        threading.Thread(target=run, name="art-tinker", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(outcome)
        except TimeoutError as error:
            raise BackendError(
                f"{self.where} did not answer within {timeout_s:g} s: {doing}"
                f"{await self._silence()}",
                "Is it up, and reachable from here? A longer limit is an option of the backend.",
            ) from error
        except Exception as error:
            raise self.reason(error, doing) from error

    async def _silence(self) -> str:
        """Say why nobody answers at an address that is known; "" when somebody listens."""
        url = urlsplit(self.base_url or os.environ.get("TINKER_BASE_URL") or "")
        if not url.hostname:
            return ""
        port = url.port or {"http": 80}.get(url.scheme, 443)
        try:
            async with asyncio.timeout(PROBE_S):
                _, writer = await asyncio.open_connection(url.hostname, port)
        except OSError as error:  # a TimeoutError is one
            return f" ({os.strerror(error.errno) if error.errno else 'no connection'})"
        writer.close()
        await writer.wait_closed()
        return ""

    def reason(self, error: Exception, doing: str) -> Exception:
        """Return what an error of the SDK means here; errors of our own stay as they are."""
        if isinstance(error, (BackendError, ConfigError)):
            return error
        said = f"{type(error).__name__}: {error}"
        for secret in (self.api_key, os.environ.get("TINKER_API_KEY")):
            said = said.replace(secret, "***") if secret else said
        status = getattr(error, "status_code", None)
        if status in (401, 403) or "api_key" in said:
            return ConfigError(
                f"{doing} failed, {self.where} does not take the API key ({said})",
                "Set TINKER_API_KEY, or give api_key=.",
            )
        if status == 402:
            return RefusedError(
                f"{doing} failed, billing is not in order ({said})", "See Tinker's console."
            )
        unreached = type(error).__name__ == "APIConnectionError"
        refused = unreached or (status is not None and 400 <= status < 500)
        return (RefusedError if refused else BackendError)(f"{doing} failed: {said}")


def settled(value: Any) -> Any:
    """Return what a call gave, waiting for it where the SDK made it a future."""
    result = getattr(value, "result", None)
    return result() if callable(result) else value


async def sampled(future: Any) -> Any:
    """Wait for a sampling request: a future of its own kind, or one of the standard library."""
    if hasattr(future, "result_async"):
        return await future.result_async()
    return await asyncio.wrap_future(future)
