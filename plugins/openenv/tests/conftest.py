import importlib
import socket
import sys
import threading

import pytest
import uvicorn
from openenv.cli.commands.init import init

from waiting import until


def serve(app):
    """Serve an application on loopback; return its address and a function that stops it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started)

    def stop():
        server.should_exit = True
        thread.join()
        listener.close()

    return f"http://127.0.0.1:{listener.getsockname()[1]}", stop


@pytest.fixture(scope="session")
def echo_app(tmp_path_factory):
    """Return the application of OpenEnv's example, as `openenv init` writes it."""
    folder = tmp_path_factory.mktemp("openenv")
    init("echo_env", str(folder))
    sys.path.insert(0, str(folder))
    app = importlib.import_module("echo_env.server.app").app
    yield app
    sys.path.remove(str(folder))


@pytest.fixture
def served():
    """Serve applications for a test: `served(app)` returns the address."""
    stops = []

    def start(app):
        url, stop = serve(app)
        stops.append(stop)
        return url

    yield start
    for stop in stops:
        stop()
