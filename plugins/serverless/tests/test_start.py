"""`art serve` from the command line: errors come before anything is served."""

from __future__ import annotations

import argparse
import os
import re
import socket
from urllib.parse import urlsplit

import pytest

from art_core import Plugins
from art_core.base.errors import ConfigError
from art_core.endpoint.listener import listening_socket
from art_core.testing.echo import EchoBackend, echo_spec
from art_serverless import plugin
from art_serverless.server.start import serve


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Run `art serve` with arguments up to its first line: `started(*arguments)`."""
    monkeypatch.delenv("ART_API_KEY", raising=False)
    plugins = Plugins.discover()
    spec = type("Echo", (), {"art_backends": plugin.hookimpl(lambda self: [echo_spec()])})
    plugins.register(spec(), "test-echo")
    parser = argparse.ArgumentParser(exit_on_error=False)
    plugin._arguments(parser)

    def start(*arguments):
        given = ["--backend", echo_spec().name, "--dir", str(tmp_path), *arguments]
        return next(iter(serve(parser.parse_args(given), plugins)))

    return start


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "99999"], "cannot listen on 127.0.0.1:99999"),
        (["--keyfile", "key.pem"], "has no certificate"),
        (["--certfile", "nowhere.pem"], "TLS cannot be served with certificate nowhere.pem"),
        (["--base-model", "=path"], "a base model is NAME or NAME=PATH"),
    ],
)
def test_what_cannot_be_served_is_an_error_that_names_it(started, arguments, said):
    with pytest.raises(ConfigError, match=said):
        started(*arguments)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "much"])
@pytest.mark.parametrize("option", ["--grace-s", "--max-body-mb", "--idle-minutes"])
def test_a_number_that_is_none_is_refused(started, option, value):
    with pytest.raises(argparse.ArgumentError, match=f"invalid number value: '{value}'"):
        started(f"{option}={value}")


def test_the_printed_url_of_an_ipv6_address_can_be_used(started, monkeypatch):
    monkeypatch.setattr("art_serverless.server.start.backend", lambda *_, **__: EchoBackend())
    try:
        listening_socket("::1", 0).close()
    except ConfigError:
        pytest.skip("no IPv6 on this machine")
    line = started("--host", "::1", "--port", "0")
    url = urlsplit(re.search(r"http://\S+/v1", line)[0])
    assert url.hostname == "::1"
    assert url.port > 0


def test_the_files_of_the_server_are_for_their_owner_only(started, tmp_path):
    earlier = os.umask(0o022)
    try:
        (tmp_path / "serve").mkdir()
        with pytest.raises(ConfigError):
            started("--port", "99999")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(earlier)
    assert (tmp_path / "serve").stat().st_mode & 0o077 == 0
    for file in (tmp_path / "serve").rglob("*"):
        assert file.stat().st_mode & 0o077 == 0, file


def test_answers_are_sent_at_once():
    """asyncio sets TCP_NODELAY on connections of a listener with a protocol number."""
    with listening_socket("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_headers_are_limited_before_a_key_is_seen(serving):
    server = serving()
    assert server._server.config.http == "h11"
    with socket.create_connection(server.listener.getsockname()) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /health HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
