"""Beside the endpoint: proxies, which must not get what is sent to this machine."""

from __future__ import annotations

import os

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_EXCEPT = ("no_proxy", "NO_PROXY")


def pass_by_proxies() -> None:
    """Where environment variables name a proxy, add this machine to `no_proxy`, for the clients of
    agents in this process and in those that it starts: a proxy cannot reach an endpoint here.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    given = ",".join(os.environ.get(name, "") for name in _EXCEPT).split(",")
    hosts = dict.fromkeys(host.strip() for host in given if host.strip())
    if "*" in hosts:
        return
    for name in _EXCEPT:
        os.environ[name] = ",".join(dict.fromkeys((*hosts, *LOOPBACK)))
