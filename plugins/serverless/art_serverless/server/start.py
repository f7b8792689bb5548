"""From the command line to a running server, and down again."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from art_core import Backend, BackendError, ConfigError, Plugins, backend
from art_core.base.files import close_in_children, close_lock
from art_core.endpoint.listener import api_url, bound_socket
from art_core.endpoint.open_files import ExhaustionReport, raise_open_files
from art_serverless.server.keys import exposure, server_keys
from art_serverless.server.settings import Settings, settings_of

log = logging.getLogger("art_serverless")

BACKLOG = 2048
IDLE_CHECKS_S = 20.0
EXIT_CHECKS_S = 0.1
CHAT_TIMEOUT_S = 600.0


def serve(arguments: argparse.Namespace, plugins: Plugins) -> Iterable[str]:
    """Serve until the process is told to stop; yield what to print."""
    plugins.backend(arguments.backend)
    directory = Path(arguments.dir or os.environ.get("ART_DIR") or ".art") / "serve"
    with _private(directory), _alone(directory):
        keys, about_keys = server_keys(directory, arguments.host, no_auth=arguments.no_auth)
        yield from _served(settings_of(arguments, directory, keys), about_keys)


def _served(settings: Settings, about_keys: str) -> Iterator[str]:
    _uvicorn()
    with _listening(settings.host, settings.port) as listener:
        host, port = listener.getsockname()[:2]
        url = api_url(host, port, "https" if settings.certfile else "http")
        served = backend(settings.backend, **settings.options)
        yield f"serving {settings.backend!r} at {url}; {about_keys}"
        warning = exposure(settings.host, tls=settings.certfile is not None)
        if warning:
            yield warning
        yield f"models lie in {settings.directory}; stop with Ctrl-C"
        with _signals_end_quietly():
            whole = asyncio.run(run(settings, listener, served))
        yield "stopped" if whole else "stopped; the next start sees to the step under way"


async def run(
    settings: Settings,
    listener: socket.socket,
    served: Backend,
    begun: Callable[[Any], None] = lambda _: None,
) -> bool:
    """Serve a backend until SIGINT or SIGTERM, then close it; False when a training step was left
    in the middle. `begun` is given uvicorn's server, whose `should_exit` ends it too.
    """
    uvicorn = _uvicorn()
    from art_serverless.server.app import create_app
    from art_serverless.server.inference import Inference
    from art_serverless.server.monitor import Monitor
    from art_serverless.server.private import PrivatePaths
    from art_serverless.server.routes import Server
    from art_serverless.server.seats import Seats
    from art_serverless.server.store import Store
    from art_serverless.server.work import Work

    store = Store(settings.directory)
    seats = Seats(
        backend=served,
        directory=settings.directory,
        base_models=settings.base_models,
    )
    private = PrivatePaths.of(settings.directory, settings.base_models)
    work = Work(store=store, seats=seats, private=private)
    inference = Inference(store=store, seats=seats, private=private, timeout_s=CHAT_TIMEOUT_S)
    app = create_app(
        Server(
            store=store,
            seats=seats,
            work=work,
            inference=inference,
            monitor=Monitor(),
            keys=settings.keys,
            max_body_bytes=settings.max_body_bytes,
            losses=Plugins.discover().losses(),
            private=private,
        )
    )
    left_behind = work.resume()
    if left_behind:
        log.warning("%d training jobs were left behind; they run now", left_behind)
    config = uvicorn.Config(
        app,
        http="h11",  # httptools holds headers of any length, before a key was seen
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=5,
        timeout_keep_alive=3600,
        backlog=BACKLOG,
        ssl_certfile=settings.certfile,
        ssl_keyfile=settings.keyfile,
    )
    server = uvicorn.Server(config)
    raise_open_files()
    asyncio.get_running_loop().set_exception_handler(ExhaustionReport())
    begun(server)
    async with AsyncExitStack() as held:
        held.callback(store.close)
        held.push_async_callback(seats.close)
        held.push_async_callback(inference.close)
        held.callback(asyncio.create_task(_tend(seats, settings.idle_s)).cancel)
        held.callback(asyncio.create_task(_wind_down(server, work)).cancel)
        await server.serve(sockets=[listener])
        return await work.stop(settings.grace_s)
    raise AssertionError("the block above returns or raises")


async def _tend(seats: Any, idle_s: float) -> None:
    while idle_s > 0:
        await asyncio.sleep(min(IDLE_CHECKS_S, idle_s))
        try:
            await seats.put_to_sleep(idle_s)
        except Exception:
            log.exception("a model could not be put to sleep")


async def _wind_down(server: Any, work: Any) -> None:
    """Let requests for news end at once, for which uvicorn would wait, and then cut them off."""
    while not server.should_exit:  # noqa: ASYNC110 uvicorn has a flag, no event
        await asyncio.sleep(EXIT_CHECKS_S)
    work.wind_down()


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Let uvicorn end at a signal, which it raises again afterwards, and the rest be closed too. A
    second signal waits for nothing: what was accepted is on the disk.
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
def _private(directory: Path) -> Iterator[None]:
    """Make the directory, and all files inside the block, readable by their owner only."""
    earlier = os.umask(0o077)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # of a directory that another user made for this one
            directory.chmod(0o700)
        yield
    finally:
        os.umask(earlier)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    fd = os.open(directory / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise BackendError(
            f"another `art serve` uses {directory}", "Stop it, or give another --dir."
        ) from None
    close_in_children(fd)
    try:
        yield
    finally:
        close_lock(fd)


def _listening(host: str, port: int) -> socket.socket:
    listener = bound_socket(host, port)
    try:
        listener.listen(BACKLOG)  # clients that connect while the backend is loaded wait
    except OSError as error:  # another server took the port between `bind` and here
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error
    return listener


def _uvicorn() -> Any:
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise _missing(error) from error
    return uvicorn


def _missing(error: ImportError) -> ConfigError:
    return ConfigError(
        f"`art serve` needs {error.name!r}, which is not installed",
        "pip install 'art-serverless[server]'",
    )
