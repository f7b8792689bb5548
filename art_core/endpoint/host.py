"""A server on this machine: an application under uvicorn in a thread, on a loopback port."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from art_core.base.errors import BackendError, ConfigError
from art_core.endpoint.engine import ModelNames
from art_core.endpoint.listener import (
    LOOPBACK,
    UVICORN_OPTIONS,
    api_url,
    listening_socket,
    pass_by_proxies,
)
from art_core.endpoint.open_files import ExhaustionReport, raise_open_files
from art_core.endpoint.transcripts import MAX_IDS

POLL_S = 0.01


class AppHost:
    """Serves the application of `make_app` between `start` and `stop`; also a context manager.

    `port` 0 takes a free one. `certfile` and `keyfile` (PEM) serve TLS.
    """

    def __init__(
        self,
        make_app: Callable[[], Any],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        certfile: str | None = None,
        keyfile: str | None = None,
    ) -> None:
        self._make_app = make_app
        self._address = (host, port)
        self._tls: dict[str, Any] = {"ssl_certfile": certfile, "ssl_keyfile": keyfile}
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def base_url(self) -> str:
        """The URL for OpenAI clients, `http://<host>:<port>/v1`."""
        return api_url(*self._address, "https" if self._tls["ssl_certfile"] else "http")

    def start(self, timeout_s: float = 30.0) -> Self:
        """Start serving; return when the endpoint answers.

        This also raises the process's limit of open files, and adds this machine to `no_proxy`.
        Raises ConfigError if starlette or uvicorn is missing or the port is taken, BackendError if
        the endpoint does not start in time.
        """
        raise_open_files()
        pass_by_proxies()
        self._server, listener = self._make()
        self._thread = threading.Thread(
            target=self._run, args=(listener,), name="art-endpoint", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + timeout_s
        while not self._server.started:
            if self._failure is not None or not self._thread.is_alive():
                raise BackendError(
                    f"the endpoint ended while it started: {self._failure!r}"
                ) from self._failure
            if time.monotonic() > deadline:
                self._server.should_exit = True
                raise BackendError(f"the endpoint did not start within {timeout_s:g} s")
            time.sleep(POLL_S)
        return self

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop serving and cut off running requests. A second call does nothing."""
        if self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise BackendError(f"the endpoint did not stop within {timeout_s:g} s")
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _make(self) -> tuple[Any, socket.socket]:
        try:
            import uvicorn

            app = _reporting(self._make_app())
        except ImportError as error:
            raise ConfigError(
                f"serving an endpoint needs {error.name!r}, which is not installed",
                "pip install 'art-core[endpoint]'",
            ) from error
        config = uvicorn.Config(
            app,
            log_level="error",
            lifespan="on",
            timeout_graceful_shutdown=1,
            **self._tls,
            # httptools stores headers of any length, before the key is checked
            http="auto" if self._address[0] in LOOPBACK else "h11",
            **UVICORN_OPTIONS,
        )
        listener = listening_socket(*self._address)
        self._address = listener.getsockname()[:2]
        return uvicorn.Server(config), listener

    def _run(self, listener: socket.socket) -> None:
        try:
            self._server.run(sockets=[listener])
        except BaseException as error:
            self._failure = error
        finally:
            listener.close()


def _reporting(app: Any) -> Any:
    """Return an application whose event loop reports a lack of open files once a minute."""

    async def called(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":  # the first call, in the event loop of the server
            asyncio.get_running_loop().set_exception_handler(ExhaustionReport())
        await app(scope, receive, send)

    return called


class EndpointHost(AppHost):
    """Serves models over HTTP.

    `api_key` is random by default. The other options are those of `AppHost` and of
    `art_core.endpoint.server.create_app`.
    """

    def __init__(
        self,
        models: ModelNames,
        *,
        api_key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        request_timeout_s: float = 600.0,
        max_body_bytes: int = 16 << 20,
        remembered_ids: int = MAX_IDS,
    ) -> None:
        self.api_key = api_key or secrets.token_urlsafe(32)

        def app() -> Any:
            from art_core.endpoint.server import create_app

            return create_app(
                models,
                api_key=self.api_key,
                request_timeout_s=request_timeout_s,
                max_body_bytes=max_body_bytes,
                remembered_ids=remembered_ids,
            )

        super().__init__(app, host=host, port=port)
