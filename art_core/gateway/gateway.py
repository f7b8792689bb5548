"""Gateway: an HTTP server whose clients begin attempts; the trainer takes their groups."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict

from art_core.backends import Endpoint
from art_core.base.errors import ConfigError
from art_core.base.numbers import count_of, seconds_of
from art_core.client.meter import ModelMeter
from art_core.client.openai_client import openai_package
from art_core.client.recorder import Recording
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.endpoint.host import AppHost
from art_core.endpoint.listener import LOOPBACK, check_tls
from art_core.gateway.attempts import Attempts
from art_core.gateway.leases import LeaseRecordings
from art_core.queue.queue import AttemptQueue

if TYPE_CHECKING:
    from starlette.applications import Starlette

log = logging.getLogger("art_core")

TIMEOUT_S, MAX_ATTEMPTS, MIN_KEY_LENGTH = 3600.0, 4096, 16


class GatewayOptions(TypedDict, total=False):
    """The options of `model.gateway`."""

    host: str
    port: int
    api_key: str | None
    attempt_timeout_s: float
    max_attempts: int
    unconstrained: bool
    queue: AttemptQueue | None
    allow_remote: bool
    ssl_certfile: str | None
    ssl_keyfile: str | None


class Gateway(AppHost):
    """Records agents in other processes, containers and languages.

    `model.gateway(...)` makes one, and has its options. It serves inside `async with`, or between
    `start` and `stop`. `api_key` begins and ends attempts; `url` is the address of the gateway.
    """

    def __init__(
        self,
        served: Endpoint,
        *,
        trainable: bool,
        check_metrics: Callable[[Trajectory], None],
        meter: ModelMeter | None = None,
        context: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        attempt_timeout_s: float = TIMEOUT_S,
        max_attempts: int = MAX_ATTEMPTS,
        unconstrained: bool = False,
        queue: AttemptQueue | None = None,
        allow_remote: bool = False,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
    ) -> None:
        _check_address(host, allow_remote=allow_remote, tls=ssl_certfile is not None)
        check_tls(ssl_certfile, ssl_keyfile)
        self.api_key = _checked_key(api_key)
        self._served = served
        self._trainable = trainable
        self._check_metrics = check_metrics
        self._meter = meter
        self._closed = False

        def new_recording(trajectory: Trajectory) -> Recording:
            return Recording(trajectory=trajectory, context=context, unconstrained=unconstrained)

        self._attempts = Attempts(
            timeout_s=seconds_of("attempt_timeout_s", attempt_timeout_s),
            limit=count_of("max_attempts", max_attempts),
            new_recording=new_recording,
        )
        self._queue = queue
        self._leases = LeaseRecordings(
            limit=self._attempts.limit,
            new_recording=new_recording,
            is_leased=lambda key: queue is not None and queue.lease_state(key) == "open",
        )
        super().__init__(
            self._app, host=host, port=port, certfile=ssl_certfile, keyfile=ssl_keyfile
        )

    @property
    def url(self) -> str:
        """The address of the gateway, without `/v1`."""
        return self.base_url.removesuffix("/v1")

    async def group(self, scenario_id: str | None = None, *, size: int) -> TrajectoryGroup:
        """Wait for the next group of `size` attempts that are over, at one scenario or at any.

        A group is `size` attempts at one scenario that began one after another. Attempts that
        failed or did not end in time are its failures. A group that no attempt has joined for
        `attempt_timeout_s` seconds is returned as it is. ConfigError when the gateway is stopped.
        """
        group = await self._next(size, scenario_id)
        if group is None:
            raise ConfigError("the gateway is stopped, so no group can be finished")
        return group

    async def groups(self, *, size: int) -> AsyncGenerator[TrajectoryGroup, None]:
        """Yield each group of `size` attempts when it is finished, until the gateway is stopped."""
        while (group := await self._next(size, None)) is not None:
            yield group

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop serving, and end `groups`. Attempts whose group was not taken are lost."""
        self._closed = True
        self._attempts.notify()
        super().stop(timeout_s)

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    async def _next(self, size: int, scenario_id: str | None) -> TrajectoryGroup | None:
        if count_of("size", size) < 1:
            raise ConfigError(f"size must be at least 1, got {size}")
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        with self._attempts.calling(lambda: _wake(loop, changed)):
            while not self._closed:
                changed.clear()
                group = self._attempts.take(size, scenario_id)
                if group is not None:
                    return group
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._attempts.seconds_left()):
                        await changed.wait()
        return None

    def _app(self) -> Starlette:
        openai_package()
        from art_core.client.relay import create_relay
        from art_core.endpoint.http import MAX_BODY_BYTES
        from art_core.gateway.routes import attempt_routes

        routes = attempt_routes(
            self._attempts,
            api_key=self.api_key,
            model_name=self._served.model_name,
            check=self._check_metrics,
        )
        if self._queue is not None:
            from art_core.gateway.queue_routes import queue_routes

            routes += queue_routes(
                self._queue,
                self._leases,
                api_key=self.api_key,
                model_name=self._served.model_name,
                check=self._check_metrics,
            )
        return create_relay(
            self._served,
            self._recording_of,
            trainable=self._trainable,
            meter=self._meter,
            max_request_bytes=MAX_BODY_BYTES,
            other_routes=routes,
        )

    def _recording_of(self, key: str) -> Recording:
        return self._leases.recording_of(key) or self._attempts.recording_of(key)


def _wake(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the event loop of who waited is closed
        loop.call_soon_threadsafe(changed.set)


def _check_address(host: str, *, allow_remote: bool, tls: bool) -> None:
    """Raise ConfigError for an address of other machines, unless it is allowed."""
    if host in LOOPBACK:
        return
    if not allow_remote:
        raise ConfigError(
            f"a gateway on {host} can be reached from other machines",
            "Give allow_remote=True if that is intended, or host='127.0.0.1'.",
        )
    if not tls:
        log.warning(
            "the gateway on %s can be reached from other machines, and keys and conversations "
            "cross the network as plain text; give ssl_certfile, or use a proxy with TLS",
            host,
        )


def _checked_key(api_key: str | None) -> str:
    key = secrets.token_urlsafe(32) if api_key is None else api_key
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"api_key must have at least {MIN_KEY_LENGTH} ASCII characters without spaces",
            "Leave it out for a random one: gateway.api_key.",
        )
    return key
