"""The SDK's calls: deadlines, reasons, and what older and newer releases give."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
import tomllib
from concurrent.futures import Future
from pathlib import Path
from queue import Queue
from types import SimpleNamespace

import pytest
from tinker import RequestFailedError
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture
from tinker.types import RequestErrorCategory

import art_core as art
from art_tinker.sdk import Connection, RefusedError, requested, settled


class StatusError(Exception):
    def __init__(self, status_code):
        super().__init__(f"status {status_code}")
        self.status_code = status_code


class APIConnectionError(Exception):
    """Named as the SDK's."""


def done(value):
    future = Future()
    future.set_result(value)
    return future


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StatusError(401), art.ConfigError),
        (StatusError(402), RefusedError),
        (StatusError(422), RefusedError),
        (StatusError(408), art.BackendError),
        (RequestFailedError("no such loss", "r1", RequestErrorCategory.User), RefusedError),
        (RequestFailedError("out of luck", "r1", RequestErrorCategory.Server), art.BackendError),
        (APIConnectionError("refused"), RefusedError),
        (StatusError(500), art.BackendError),
        (RuntimeError("lost on the way"), art.BackendError),
    ],
)
async def test_an_error_of_the_sdk_is_one_of_ours_with_its_reason(error, kind):
    def work():
        raise error

    with pytest.raises(kind, match="saving failed|status 40") as caught:
        await Connection().call(work, 5.0, "saving")
    assert (type(caught.value) is RefusedError) == (kind is RefusedError)
    assert str(error) in str(caught.value)


async def test_a_call_is_given_up_at_its_deadline_with_what_it_was_for():
    free = threading.Event()
    with pytest.raises(art.BackendError, match=r"within 0.05 s: counting sheep"):
        await Connection().call(free.wait, 0.05, "counting sheep")
    free.set()


async def test_what_comes_after_the_deadline_is_undone():
    late, undone = threading.Event(), Queue()

    def work():
        late.wait(10)
        return "a session"

    with pytest.raises(art.BackendError, match="did not answer"):
        await Connection().call(work, 0.05, "beginning", undo=undone.put)
    late.set()
    assert await asyncio.to_thread(undone.get, timeout=10) == "a session"
    assert await Connection().call(work, 5.0, "beginning", undo=undone.put) == "a session"
    assert undone.empty()


async def test_an_address_where_somebody_listens_has_no_reason_beside_its_silence():
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = Connection(base_url=f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(art.BackendError, match=r"s: waiting\. Is it up"):
            await connection.call(lambda: time.sleep(0.5), 0.05, "waiting")


def test_futures_of_every_release_are_waited_for():
    assert settled(7) == settled(done(7)) == settled(AwaitableConcurrentFuture(done(7))) == 7
    plain = done(7)
    assert requested(plain) is plain
    assert requested(AwaitableConcurrentFuture(plain)) is plain


def test_what_renders_chat_templates_comes_along_where_there_is_no_torch_to_bring_it():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert "jinja2" in {re.match(r"[\w-]+", needed)[0] for needed in project["dependencies"]}


def test_a_session_is_asked_where_there_is_no_other_client(monkeypatch):
    monkeypatch.delattr("tinker.RestClient", raising=False)
    session = SimpleNamespace(create_rest_client=lambda: "of the session")
    assert Connection().rest_client(session) == "of the session"
