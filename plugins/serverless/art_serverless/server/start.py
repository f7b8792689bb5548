"""`art serve` from its command line to the running server, and its end."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from art_core import Backend, BackendError, ConfigError, Plugins, backend
from art_core.base.files import close_in_children, close_lock, take_lock
from art_core.endpoint.listener import UVICORN_OPTIONS, api_url
from art_core.endpoint.listener import listening_socket as _listening
from art_core.endpoint.open_files import ExhaustionReport, raise_open_files
from art_serverless.server.keys import exposure, server_keys
from art_serverless.server.settings import Settings, settings_of

log = logging.getLogger("art_serverless")

IDLE_CHECKS_S = 20.0
EXIT_CHECKS_S = 0.1
CHAT_TIMEOUT_S = 600.0


@attrs.frozen(kw_only=True)
class Api:
    """An API that `art serve` offers: the module that serves it, the folder of its models, the path
    of its base URL, and what its keys begin with.
    """

    module: str
    folder: str
    path: str
    key_prefix: str = ""


APIS = {
    "training": Api(module="art_serverless.server.start", folder="serve", path="/v1"),
    "tinker": Api(
        module="art_serverless.tinker_api.start", folder="tinker", path="", key_prefix="tml-"
    ),
}


def check(_: Settings) -> None:
    """Do nothing: all settings fit."""


def serve(arguments: argparse.Namespace, plugins: Plugins) -> Iterable[str]:
    """Serve until a signal ends the process; yield the lines to print."""
    plugins.backend(arguments.backend)
    api = APIS[arguments.api]
    directory = Path(arguments.dir or os.environ.get("ART_DIR") or ".art") / api.folder
    with _private_files(directory), _locked(directory):
        keys, about_keys = server_keys(
            directory, arguments.host, no_auth=arguments.no_auth, prefix=api.key_prefix
        )
        yield from _served(settings_of(arguments, directory, keys), about_keys, api)


def _served(settings: Settings, about_keys: str, api: Api) -> Iterator[str]:
    _uvicorn()
    serving = importlib.import_module(api.module)
    serving.check(settings)
    # Clients can connect now; they wait until the backend is loaded.
    with _listening(settings.host, settings.port) as listener:
        host, port = listener.getsockname()[:2]
        url = api_url(host, port, "https" if settings.certfile else "http")
        url = url.removesuffix("/v1") + api.path
        served = backend(settings.backend, **settings.options)
        yield f"serving {settings.backend!r} at {url}; {about_keys}"
        warning = exposure(settings.host, tls=settings.certfile is not None)
        if warning:
            yield warning
        yield f"models lie in {settings.directory}; stop with Ctrl-C"
        with _closing_after_signals():
            whole = asyncio.run(serving.run(settings, listener, served))
        yield "stopped" if whole else "stopped; the next start completes the interrupted step"


async def run(
    settings: Settings,
    listener: socket.socket,
    served: Backend,
    started: Callable[[Any], None] = lambda _: None,
) -> bool:
    """Serve a backend until SIGINT or SIGTERM, then close it. Return False if a training step was
    interrupted. `started` is called with uvicorn's server, whose `should_exit` ends it too.
    """
    from art_serverless.server.app import create_app
    from art_serverless.server.inference import Inference
    from art_serverless.server.monitor import Monitor
    from art_serverless.server.private import PrivatePaths
    from art_serverless.server.routes import Server
    from art_serverless.server.slots import ModelSlots
    from art_serverless.server.store import Store
    from art_serverless.server.work import Work

    store = Store(settings.directory)
    slots = ModelSlots(
        backend=served,
        directory=settings.directory,
        base_models=settings.base_models,
        budgets=settings.keys.budgets,
    )
    private = PrivatePaths.of(settings.directory, settings.base_models)
    work = Work(store=store, slots=slots, private=private)
    inference = Inference(store=store, slots=slots, private=private, timeout_s=CHAT_TIMEOUT_S)
    plugins = Plugins.discover()
    app = create_app(
        Server(
            store=store,
            slots=slots,
            work=work,
            inference=inference,
            monitor=Monitor(),
            keys=settings.keys,
            max_body_bytes=settings.max_body_bytes,
            losses=plugins.losses(),
            advantages=plugins.advantages(),
            private=private,
        )
    )
    unfinished = work.resume()
    if unfinished:
        log.warning(
            "%d training jobs of an earlier server are unfinished; they run now", unfinished
        )
    server = http_server(app, settings)
    started(server)
    async with AsyncExitStack() as stack:
        stack.callback(store.close)
        stack.push_async_callback(slots.close)
        stack.push_async_callback(inference.close)
        stack.callback(asyncio.create_task(_unload_idle(slots, settings.idle_s)).cancel)
        stack.callback(asyncio.create_task(_wind_down(server, work)).cancel)
        await server.serve(sockets=[listener])
        return await work.stop(settings.grace_s)
    raise AssertionError("the block above returns or raises")


def http_server(app: Any, settings: Settings) -> Any:
    """Return uvicorn's server of an application; call it in the loop that serves."""
    uvicorn = _uvicorn()
    config = uvicorn.Config(
        app,
        http="h11",  # httptools stores headers of any length, before the key is checked
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=5,
        ssl_certfile=settings.certfile,
        ssl_keyfile=settings.keyfile,
        **UVICORN_OPTIONS,
    )
    raise_open_files()
    asyncio.get_running_loop().set_exception_handler(ExhaustionReport())
    return uvicorn.Server(config)


async def _unload_idle(slots: Any, idle_s: float) -> None:
    while idle_s > 0:
        await asyncio.sleep(min(IDLE_CHECKS_S, idle_s))
        try:
            await slots.put_to_sleep(idle_s)
        except Exception:
            log.exception("a model could not be put to sleep")


async def _wind_down(server: Any, work: Any) -> None:
    """End the requests that wait for events: uvicorn would wait for them, and then cut them off."""
    while not server.should_exit:  # noqa: ASYNC110 uvicorn has a flag, not an event
        await asyncio.sleep(EXIT_CHECKS_S)
    work.wind_down()


@contextmanager
def _closing_after_signals() -> Iterator[None]:
    """Let the block close everything after a signal, which uvicorn raises again when it has ended.

    A second signal ends the process at once: the accepted jobs are on disk.
    """
    signals = (signal.SIGINT, signal.SIGTERM)

    def once(*_: Any) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)

    earlier = [signal.signal(number, once) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, earlier, strict=True):
            signal.signal(number, handler)


@contextmanager
def _private_files(directory: Path) -> Iterator[None]:
    """Create the directory. It and all files created inside the block are for their owner only."""
    earlier = os.umask(0o077)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # another user created the directory for this one
            directory.chmod(0o700)
        yield
    finally:
        os.umask(earlier)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not take_lock(fd):
        os.close(fd)
        raise BackendError(
            f"another `art serve` uses {directory}", "Stop it, or give another --dir."
        )
    close_in_children(fd)
    try:
        yield
    finally:
        close_lock(fd)


def _uvicorn() -> Any:
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            f"`art serve` needs {error.name!r}, which is not installed",
            "pip install 'art-serverless[server]'",
        ) from error
    return uvicorn
