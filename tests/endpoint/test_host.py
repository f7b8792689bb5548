"""Starting, stopping and disconnecting."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading

import httpx2
import pytest
from starlette.requests import ClientDisconnect, Request

from art_core.base.errors import BackendError, ConfigError
from art_core.endpoint.host import EndpointHost
from art_core.endpoint.http import unless_disconnected
from art_core.endpoint.listener import listening_socket
from art_core.endpoint.server import create_app
from waiting import until_async


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_disconnects_cancels_its_request(engine, host, stream) -> None:
    engine.pause_s, engine.lines = 0.05, ["a very long answer indeed"]
    body = {
        "model": "agent",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": stream,
        "n": 2,
    }
    headers = {"Authorization": f"Bearer {host.api_key}"}
    async with httpx2.AsyncClient(base_url=host.base_url, headers=headers) as client:
        task = asyncio.create_task(client.post("/chat/completions", json=body))
        await until_async(lambda: engine.running == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await until_async(lambda: engine.running == 0)
    assert engine.cancelled == 2


async def test_a_client_that_disconnects_inside_its_body_is_forgotten(models) -> None:
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [],
        "query_string": b"",
    }
    await create_app(models, api_key=None)(scope, receive, send)
    assert sent[0]["status"] == 499


async def test_work_ends_when_its_client_leaves_after_a_body_that_was_not_read() -> None:
    messages = iter([{"type": "http.request", "body": b""}, {"type": "http.disconnect"}])
    cancelled = []

    async def receive():
        return next(messages)

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(ClientDisconnect):
        await unless_disconnected(Request({"type": "http"}, receive), work())
    assert cancelled == [True]


async def test_without_a_key_everyone_is_served(models) -> None:
    app = create_app(models, api_key=None)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
        assert (await client.get("/v1/models")).status_code == 200


def test_stopping_twice_and_before_the_start_does_nothing(models) -> None:
    host = EndpointHost(models)
    host.stop()
    host.start()
    assert host.base_url.startswith("http://127.0.0.1:")
    host.stop()
    host.stop()


def test_stopping_cuts_off_requests_under_way(engine, models) -> None:
    engine.pause_s = 60

    async def ask_and_stop() -> None:
        host = EndpointHost(models).start()
        headers = {"Authorization": f"Bearer {host.api_key}"}
        body = {"model": "agent", "messages": [{"role": "user", "content": "hi"}]}
        async with httpx2.AsyncClient(base_url=host.base_url, headers=headers) as client:
            task = asyncio.create_task(client.post("/chat/completions", json=body))
            await until_async(lambda: engine.running == 1)
            await asyncio.to_thread(host.stop)
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(ask_and_stop())
    assert engine.running == 0


def test_a_port_that_is_taken_is_an_error_that_says_so(host, models) -> None:
    port = int(host.base_url.rsplit(":", 1)[1].removesuffix("/v1"))
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        EndpointHost(models, port=port).start()


def test_an_endpoint_on_an_ipv6_address_has_a_url_that_clients_read(models) -> None:
    host = EndpointHost(models, host="::1", port=8000)
    url = httpx2.URL(host.base_url)
    assert (url.host, url.port, url.path) == ("::1", 8000, "/v1")
    try:
        listening_socket("::1", 0).close()
    except ConfigError:
        pytest.skip("no IPv6 on this machine")
    with EndpointHost(models, host="::1") as host:
        assert httpx2.get(host.base_url.removesuffix("/v1") + "/health").status_code == 200


def test_a_missing_server_package_names_what_to_install(models, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"pip install 'art-core\[endpoint\]'"):
        EndpointHost(models).start()


class _FakeServer:
    started = False
    should_exit = False

    def __init__(self, run) -> None:
        self._run = run

    def run(self, sockets) -> None:
        self._run(self)


def _with_server(monkeypatch, run) -> None:
    import uvicorn

    monkeypatch.setattr(uvicorn, "Server", lambda config: _FakeServer(run))


def test_a_server_that_dies_while_it_starts_says_why(models, monkeypatch) -> None:
    def die(server) -> None:
        raise RuntimeError("no event loop")

    _with_server(monkeypatch, die)
    with pytest.raises(BackendError, match="no event loop"):
        EndpointHost(models).start()


def test_a_server_that_never_starts_or_never_stops_is_an_error(models, monkeypatch) -> None:
    free = threading.Event()
    _with_server(monkeypatch, lambda server: free.wait())
    host = EndpointHost(models)
    with pytest.raises(BackendError, match=r"did not start within 0\.05 s"):
        host.start(timeout_s=0.05)
    with pytest.raises(BackendError, match=r"did not stop within 0\.05 s"):
        host.stop(timeout_s=0.05)
    free.set()
    host.stop()


async def test_an_answer_does_not_wait_for_the_clients_delayed_acknowledgement(ask, host) -> None:
    """Each would wait 40 ms on a connection whose server has not set TCP_NODELAY."""
    await ask()
    (connection, *_) = host._server.server_state.connections
    served = connection.transport.get_extra_info("socket")
    assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
