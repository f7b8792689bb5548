"""A real server on loopback, in a thread of the test's process; and models that use it."""

from __future__ import annotations

import asyncio
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

import art_core as art
from art_core.endpoint.listener import listening_socket
from art_core.testing.backend import plugins_with_prices
from art_core.testing.echo import EchoBackend
from art_serverless.server.keys import Keys
from art_serverless.server.settings import Settings
from art_serverless.server.start import run

KEY = "a key of the tests"


class Serving:
    """`art serve` between `start` and `stop`."""

    def __init__(self, directory: Path, backend, api=run, **settings):
        self.backend, self._run_api = backend, api
        self.listener = listening_socket("127.0.0.1", 0)
        self.settings = Settings(
            backend="echo",
            options={},
            directory=directory,
            host="127.0.0.1",
            port=0,
            **{"keys": Keys((KEY.encode(),)), **settings},
        )
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def start(self):
        self.url_kept = self.url
        self._thread.start()
        assert self._begun.wait(60)
        while not self._server.started:
            assert self._thread.is_alive()
            threading.Event().wait(0.01)
        return self

    def set(self, event):
        """Set an asyncio event of the server's loop."""
        self._loop.call_soon_threadsafe(event.set)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self):
        def begun(server):
            self._server, self._loop = server, asyncio.get_running_loop()
            self._begun.set()

        self.whole = asyncio.run(self._run_api(self.settings, self.listener, self.backend, begun))


@pytest.fixture
def serving(tmp_path):
    """Start a server: `serving(backend, **settings)`; each is stopped at the end."""
    started = []

    def start(backend=None, directory=None, **settings):
        place = directory or tmp_path / "served"
        place.mkdir(exist_ok=True)
        server = Serving(place, backend or EchoBackend(gpu_cost_per_hour_usd=3600.0), **settings)
        started.append(server.start())
        return server

    yield start
    for server in started:
        if server._thread.is_alive():
            server.stop()


@pytest.fixture
def make_model(tmp_path):
    """Open a run on the client's side: `make_model(name)`."""

    def make(name="agent", **fields):
        return art.TrainableModel(
            name=name,
            project="demo",
            base_model="base",
            base_path=tmp_path / "client",
            sinks=[],
            plugins=plugins_with_prices(),
            **fields,
        )

    return make


@pytest.fixture
def connect():
    """Make a backend that talks to a server: `connect(server)`."""

    def make(server, **options):
        url = server if isinstance(server, str) else server.url
        given = {"base_url": url, "api_key": KEY, "progress": False, **options}
        return art.backend("serverless", **given)

    return make


@pytest.fixture
def listen():
    """Serve HTTP on loopback with a handler: `listen(Handler)` gives the URL of the API."""
    running = []

    def start(handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.handle_error = lambda *_: None  # a client that went away
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
