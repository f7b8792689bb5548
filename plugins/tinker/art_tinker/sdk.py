"""Calls of the SDK: each on a thread of its own, with a timeout and with clear errors.

Some calls of the SDK block, and it retries a server that does not answer for five minutes. The
calls exist in SDK 0.20 and in the newest; `settled` hides that some return futures in one of them.
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
    """The service rejected a request or never got it: nothing was done, nothing is billed."""


def tinker() -> Any:
    """Return the SDK; ConfigError if it is not installed."""
    try:
        import tinker
    except ImportError as error:
        raise ConfigError(
            f"backend 'tinker' needs {error.name!r}, which is not installed", INSTALL
        ) from error
    return tinker


@attrs.frozen(kw_only=True)
class Connection:
    """The service's address, the key, and the timeout of its first answer."""

    base_url: str | None = None
    api_key: str | None = attrs.field(default=None, repr=False)
    connect_timeout_s: float = 30.0

    @property
    def where(self) -> str:
        """The service's address, for messages."""
        return self.base_url or os.environ.get("TINKER_BASE_URL") or "Tinker's own address"

    def options(self) -> dict[str, Any]:
        """Return the arguments of the SDK's clients; they read the environment for missing ones."""
        given = {"base_url": self.base_url, "api_key": self.api_key}
        return {name: value for name, value in given.items() if value is not None}

    async def open(self, metadata: Mapping[str, str]) -> tuple[Any, dict[str, int | None]]:
        """Begin a session; return its service client, and the service's base models with their
        context lengths.
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
        """Begin a session as `open` does; end it if the block raises."""
        service, models = await self.open(metadata)
        try:
            yield service, models
        except BaseException:
            await self.end(service, "errored")
            raise

    async def end(self, service: Any, status: str = "success") -> None:
        """End a session; a failure is logged."""
        try:
            await self.call(lambda: _end(service, status), END_TIMEOUT_S, "ending a session")
        except (BackendError, ConfigError) as error:
            log.warning("%s", error)

    def rest_client(self, service: Any) -> Any:
        """Return a client of the service's REST calls; in older SDKs it needs a session."""
        create = getattr(tinker(), "RestClient", None)
        return service.create_rest_client() if create is None else create(**self.options())

    def _capabilities(self, service: Any) -> Any:
        get = getattr(self.rest_client(service), "get_server_capabilities", None)
        return settled((get or service.get_server_capabilities)())

    async def call(
        self,
        work: Callable[[], T],
        timeout_s: float,
        doing: str,
        *,
        undo: Callable[[T], None] | None = None,
    ) -> T:
        """Run a blocking call of the SDK on a thread of its own, within `timeout_s`. A result that
        comes too late is passed to `undo`.

        Raises ConfigError for a missing or rejected key, RefusedError if the service did not accept
        the request, BackendError for other errors.
        """
        outcome: Future[T] = Future()
        outcome.set_running_or_notify_cancel()

        def run() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:
                outcome.set_exception(error)

        # Not a pool: its threads would delay the interpreter's end while the SDK retries.
        threading.Thread(target=run, name="art-tinker", daemon=True).start()
        in_time = False
        try:
            async with asyncio.timeout(timeout_s):
                found = await asyncio.wrap_future(outcome)
            in_time = True
            return found
        except TimeoutError as error:
            raise BackendError(
                f"{self.where} did not answer within {timeout_s:g} s: {doing}"
                f"{await self._unreachable()}",
                "Is it up, and reachable from here? A longer limit is an option of the backend.",
            ) from error
        except Exception as error:
            raise self.reason(error, doing) from error
        finally:
            if undo is not None and not in_time:
                outcome.add_done_callback(partial(_undone, undo))

    async def _unreachable(self) -> str:
        """Return the reason why a known address cannot be reached; "" if a server listens there."""
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
        """Return an error of the SDK as one of art-core's; others stay as they are."""
        if isinstance(error, (BackendError, ConfigError)):
            return error
        message = f"{type(error).__name__}: {error}"
        for secret in (self.api_key, os.environ.get("TINKER_API_KEY")):
            message = message.replace(secret, "***") if secret else message
        status = getattr(error, "status_code", None)
        if status in (401, 403) or "api_key" in message:
            return ConfigError(
                f"{doing} failed, {self.where} does not accept the API key ({message})",
                "Set TINKER_API_KEY, or give api_key=.",
            )
        if status == 402:
            return RefusedError(
                f"{doing} failed, billing is not in order ({message})", "See Tinker's console."
            )
        not_sent = type(error).__name__ == "APIConnectionError"
        # Errors of the user, according to the SDK. A late request (408) may have been done.
        of_user = getattr(error, "category", None) == "user" or (
            status is not None and 400 <= status < 500 and status != 408
        )
        kind = RefusedError if not_sent or of_user else BackendError
        return kind(f"{doing} failed: {message}")


def settled(value: Any) -> Any:
    """Return the result of a call; wait for it if the SDK returned a future."""
    result = getattr(value, "result", None)
    return result() if callable(result) else value


def requested(future: Any) -> Future[Any]:
    """Return a sampling request as a future of the standard library, as older SDKs do."""
    standard = getattr(future, "future", None)
    found: Future[Any] = standard() if callable(standard) else future
    return found


def _end(service: Any, status: str) -> None:
    end = getattr(service, "close", None)
    if end is not None:  # in older SDKs sessions end by themselves
        settled(end(status))


def _abandon(service: Any) -> None:
    with suppress(Exception):  # the error that led here is raised
        _end(service, "errored")


def _undone(undo: Callable[[T], None], outcome: Future[T]) -> None:
    """Undo a late result on a thread of its own: the current one may be the event loop's."""
    if outcome.exception() is None:
        threading.Thread(target=undo, args=(outcome.result(),), daemon=True).start()
