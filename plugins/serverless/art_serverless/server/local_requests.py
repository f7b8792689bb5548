"""Requests to a server without keys: only those of this machine's own programs are answered.

A web page that the user visits can reach the loopback too. It shows itself by an `Origin` of
elsewhere, by `Sec-Fetch-Site`, or, after its name was bound to 127.0.0.1, by its `Host`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from art_serverless.server.errors import RefusedError

_OWN_SITES = ("", "none", "same-origin")


def check_local(headers: Mapping[str, str]) -> None:
    """Raise RefusedError 403 for a request that a web page of elsewhere may have sent."""
    host = headers.get("host", "")
    if not _is_loopback(host):
        raise _refused("Host", host)
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise _refused("Origin", origin)
    site = headers.get("sec-fetch-site", "")
    if site not in _OWN_SITES:
        raise _refused("Sec-Fetch-Site", site)


def _is_loopback(host: str) -> bool:
    """Return True for `localhost`, 127.0.0.0/8 and `[::1]`, with any port or none."""
    name = None
    with suppress(ValueError):
        name = urlsplit(f"//{host}").hostname
    if name is None or "@" in host or "/" in host:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refused(header: str, value: str) -> RefusedError:
    return RefusedError(
        403,
        f"{header} {value!r:.200} is not of this machine; without keys (--no-auth) only its own "
        "programs are served, at http://127.0.0.1 or http://localhost. Leave --no-auth out and "
        "send the key",
    )
