"""Addresses of HTTP servers on this machine: sockets, URLs, and proxies to be passed by."""

from __future__ import annotations

import os
import socket
from typing import Any

from art_core.base.errors import ConfigError
from art_core.base.files import close_socket_in_children

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_EXCEPT = ("no_proxy", "NO_PROXY")

BACKLOG = 2048
UVICORN_OPTIONS: dict[str, Any] = {
    "access_log": False,
    "ws": "none",  # there are no websockets, and importing their library may print warnings
    "timeout_keep_alive": 3600,  # clients keep connections open through a training step
    "backlog": BACKLOG,
}


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 takes a free one.

    Forked children close it, so that the port is free when this process ends. Raises ConfigError
    for an address that cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol must be given: asyncio sets TCP_NODELAY only then. Without it each answer waits
    # 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error}", "Give another port, or 0 for a free one."
        ) from error
    close_socket_in_children(listener)
    return listener


def api_url(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of an API on an address; an IPv6 address is written in brackets."""
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{port}/v1"


def check_tls(certfile: str | None, keyfile: str | None) -> None:
    """Raise ConfigError for a certificate or a key that cannot be used."""
    if keyfile and not certfile:
        raise ConfigError(f"the TLS key {keyfile} has no certificate", "Give the certificate, too.")
    if not certfile:
        return
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile)
    except OSError as error:  # an ssl.SSLError is one
        raise ConfigError(
            f"TLS cannot be served with certificate {certfile} and key {keyfile}: {error}",
            "Both are PEM files; the key belongs to the certificate.",
        ) from error


def pass_by_proxies() -> None:
    """Add this machine to `no_proxy` if environment variables name a proxy, for clients in this
    process and its children: a proxy cannot reach an endpoint here.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    given = ",".join(os.environ.get(name, "") for name in _EXCEPT).split(",")
    hosts = dict.fromkeys(host.strip() for host in given if host.strip())
    if "*" in hosts:
        return
    for name in _EXCEPT:
        os.environ[name] = ",".join(dict.fromkeys((*hosts, *LOOPBACK)))
