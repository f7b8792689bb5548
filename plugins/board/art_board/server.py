"""The server of the page: a port on the loopback interface, and its end."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

from art_board.command import DEFAULT_PORT
from art_core import ConfigError, Record
from art_core.endpoint.listener import UVICORN_OPTIONS, listening_socket
from art_core.endpoint.open_files import raise_open_files

HOST = "127.0.0.1"
_PORTS_TRIED = 20


def serve(
    directories: Sequence[Path],
    port: int | None,
    taxonomy: Any,
    *,
    opens: bool = False,
    until_eof_of: TextIO | None = None,
) -> Iterator[str | Record]:
    """Serve the runs below directories until a signal ends the process, or `until_eof_of` ends;
    yield the lines to print.

    Raises ConfigError for a directory that does not exist and for a port that was given and is in
    use.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            f"`art board` needs {error.name!r}, which is not installed",
            "pip install 'art-core[board]'",
        ) from error
    from art_board.app import create_app
    from art_board.library import Library

    library = Library(directories, taxonomy)
    count = len(library.runs())
    with _listener(port) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}/"
        where = ", ".join(map(str, directories))
        about = f"{count} runs of {where}" if count else f"no runs in {where} yet"
        if port is None and not url.endswith(f":{DEFAULT_PORT}/"):
            about += f"; port {DEFAULT_PORT} is in use"
        yield Record({"url": url, "runs": count}, [f"{url}  {about}; stop with Ctrl-C"])
        if opens:
            webbrowser.open(url)
        raise_open_files()
        server = uvicorn.Server(uvicorn_config(create_app(library)))
        if until_eof_of is not None:
            Thread(target=_end_with, args=(server, until_eof_of), daemon=True).start()
        with suppress(KeyboardInterrupt):  # uvicorn raises Ctrl-C again when it has ended
            server.run(sockets=[listener])


def _end_with(server: Any, stream: TextIO) -> None:
    """End a server when a stream ends."""
    while stream.read(1):
        pass
    server.should_exit = True


def uvicorn_config(app: Any) -> Any:
    """Return uvicorn's settings; open streams of events do not hold its end back."""
    import uvicorn

    options = UVICORN_OPTIONS | {"timeout_keep_alive": 30}
    return uvicorn.Config(
        app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1, **options
    )


def _listener(port: int | None) -> socket.socket:
    """Listen on a port; without one, on the default or the next that is free."""
    if port is not None:
        return listening_socket(HOST, port)
    for each in range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED):
        try:
            return listening_socket(HOST, each)
        except ConfigError:
            continue
    return listening_socket(HOST, 0)
