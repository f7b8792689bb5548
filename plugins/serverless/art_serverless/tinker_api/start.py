"""The server of `art serve --api tinker`, from its settings to its end."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from art_core import Backend, ConfigError
from art_serverless.server.settings import Settings
from art_serverless.server.start import http_server

log = logging.getLogger("art_serverless")

KEY_PREFIX = "tml-"
"""What keys begin with: the SDK sends no others."""


def check(settings: Settings) -> None:
    """Raise ConfigError for settings that this API can't serve."""
    if importlib.util.find_spec("tinker") is None:
        raise ConfigError(
            "`art serve --api tinker` needs 'tinker', which is not installed",
            "pip install 'art-serverless[tinker]'",
        )
    if not settings.base_models:
        raise ConfigError(
            "--api tinker lists its base models to clients, and none is given",
            "Give --base-model NAME or NAME=PATH, once for each.",
        )
    odd = [key for key in settings.keys.accepted if not key.startswith(KEY_PREFIX.encode())]
    if odd:
        raise ConfigError(
            f"a key does not begin with {KEY_PREFIX!r}, and the SDK of Tinker sends no others",
            "Set ART_API_KEY to one that does, or leave it out.",
        )


async def run(
    settings: Settings,
    listener: socket.socket,
    served: Backend,
    started: Callable[[Any], None] = lambda _: None,
) -> bool:
    """Serve a backend's single operations until SIGINT or SIGTERM, then close it. All base models
    are loaded first. `started` is called with uvicorn's server, whose `should_exit` ends it too.
    """
    from art_serverless.server.monitor import Monitor
    from art_serverless.server.private import PrivatePaths
    from art_serverless.tinker_api.app import create_app
    from art_serverless.tinker_api.routes import Routes
    from art_serverless.tinker_api.service import Service

    check(settings)
    make = getattr(served, "primitives", None)
    if make is None:
        raise ConfigError(
            f"the backend {settings.backend!r} has no single operations",
            "Use --backend local.",
        )
    primitives = make()
    bases = {
        name: await asyncio.to_thread(primitives.base, name, path)
        for name, path in settings.base_models.items()
    }
    service = Service(settings.directory, primitives, bases, settings.max_models)
    routes = Routes(
        service=service,
        monitor=Monitor(),
        private=PrivatePaths.of(settings.directory, settings.base_models),
        max_body_bytes=settings.max_body_bytes,
    )
    server = http_server(create_app(routes, settings.keys), settings)
    started(server)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(served.close)
        stack.push_async_callback(service.close)
        stack.callback(asyncio.create_task(_expiring(service, settings.session_s)).cancel)
        await server.serve(sockets=[listener])
    return True


async def _expiring(service: Any, session_s: float) -> None:
    while True:
        await asyncio.sleep(min(session_s / 4, 20.0))
        try:
            await service.expire(session_s)
        except Exception:
            log.exception("silent sessions could not be ended")
