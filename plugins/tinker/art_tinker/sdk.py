"""The SDK's calls: each on a thread of its own, with a deadline and with reasons.

The SDK retries a server that does not answer for five minutes, and some of its calls block. Calls
are those that SDK 0.20 and the newest share; what one gives at once and the other as a future is
settled here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs

from art_core import BackendError, ConfigError

log = logging.getLogger("art_tinker")

T = TypeVar("T")
PROBE_S = 2.0
END_TIMEOUT_S = 10.0
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
            try:
                return service, self._capabilities(service)
            except BaseException:
                _abandon(service)
                raise

        service, found = await self.call(
            opened,
            self.connect_timeout_s,
            f"beginning a session at {self.where}",
            undo=lambda late: _abandon(late[0]),
        )
        models = {m.model_name: m.max_context_length for m in found.supported_models}
        return service, {name: length for name, length in models.items() if name}

    @asynccontextmanager
    async def opened(
        self, metadata: Mapping[str, str]
    ) -> AsyncIterator[tuple[Any, dict[str, int | None]]]:
        """Begin a session as `open` does; when the block fails, end it again."""
        service, models = await self.open(metadata)
        try:
            yield service, models
        except BaseException:
            await self.end(service, "errored")
            raise

    async def end(self, service: Any, status: str = "success") -> None:
        """End a session; that it could not be ended is logged."""
        try:
            await self.call(lambda: _end(service, status), END_TIMEOUT_S, "ending a session")
        except (BackendError, ConfigError) as error:
            log.warning("%s", error)

    def rest(self, service: Any) -> Any:
        """Return a client of the service's REST calls: an older SDK has it of a session alone."""
        made = getattr(tinker(), "RestClient", None)
        return service.create_rest_client() if made is None else made(**self.options())

    def _capabilities(self, service: Any) -> Any:
        ask = getattr(self.rest(service), "get_server_capabilities", None)
        return settled((ask or service.get_server_capabilities)())

    async def call(
        self,
        work: Callable[[], T],
        timeout_s: float,
        doing: str,
        *,
        undo: Callable[[T], None] | None = None,
    ) -> T:
        """Do blocking work of the SDK on a thread of its own, within `timeout_s`. What it gives
        when nobody waits any more goes to `undo`.

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
        taken = False
        try:
            async with asyncio.timeout(timeout_s):
                found = await asyncio.wrap_future(outcome)
            taken = True
            return found
        except TimeoutError as error:
            raise BackendError(
                f"{self.where} did not answer within {timeout_s:g} s: {doing}"
                f"{await self._silence()}",
                "Is it up, and reachable from here? A longer limit is an option of the backend.",
            ) from error
        except Exception as error:
            raise self.reason(error, doing) from error
        finally:
            if undo is not None and not taken:
                outcome.add_done_callback(partial(_undone, undo))

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
        # what the SDK itself counts as the user's error; a late request (408) may have been done
        users = getattr(error, "category", None) == "user" or (
            status is not None and 400 <= status < 500 and status != 408
        )
        refused = unreached or users
        return (RefusedError if refused else BackendError)(f"{doing} failed: {said}")


def settled(value: Any) -> Any:
    """Return what a call gave, waiting for it where the SDK made it a future."""
    result = getattr(value, "result", None)
    return result() if callable(result) else value


def requested(future: Any) -> Future[Any]:
    """Return a sampling request as a future of the standard library, which older SDKs give."""
    standard = getattr(future, "future", None)
    found: Future[Any] = standard() if callable(standard) else future
    return found


def _end(service: Any, status: str) -> None:
    end = getattr(service, "close", None)
    if end is not None:  # older SDKs have sessions that end by themselves
        settled(end(status))


def _abandon(service: Any) -> None:
    with suppress(Exception):  # why it is abandoned is the error that counts
        _end(service, "errored")


def _undone(undo: Callable[[T], None], outcome: Future[T]) -> None:
    """Undo what came too late, on a thread of its own, since this may be the event loop's."""
    if outcome.exception() is None:
        threading.Thread(target=undo, args=(outcome.result(),), daemon=True).start()
