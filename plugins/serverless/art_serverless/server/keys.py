"""Access to the server: API keys, or, without keys, requests of this machine's own programs."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from art_core import Budget, ConfigError, budget
from art_core.endpoint.errors import RequestError
from art_core.endpoint.listener import LOOPBACK

FILE = "serve.key"
MIN_KEY_LENGTH = 8
_OWN_SITES = ("", "none", "same-origin")


@attrs.frozen(repr=False)
class Keys:
    """The accepted keys. If there are none, requests need no key and must come from this machine's
    own programs. `budgets` has what the models of a key may cost, by the key's digest.
    """

    accepted: tuple[bytes, ...]
    budgets: Mapping[str, Budget] = attrs.field(factory=dict)

    def owner(self, key: str) -> str:
        """Return the digest of a key that has a budget, which models are registered with; "" of
        another key.
        """
        digest = digest_of_key(key.encode())
        return digest if digest in self.budgets else ""


def digest_of_key(key: bytes) -> str:
    """Return a name for a key that is not the key."""
    return hashlib.sha256(key).hexdigest()[:16]


def server_keys(directory: Path, host: str, *, no_auth: bool, prefix: str = "") -> tuple[Keys, str]:
    """Return the keys, and a text about their source: `ART_API_KEY`, else a file, which is created
    if it does not exist, with a key that begins with `prefix`.

    Raises ConfigError for `no_auth` on an address that other machines can reach.
    """
    if no_auth:
        if host not in LOOPBACK:
            raise ConfigError(
                f"--no-auth on {host}: anyone who reaches it could train and spend",
                f"Leave --no-auth out, or listen on {LOOPBACK[0]}.",
            )
        return Keys(()), "no key is needed (--no-auth)"
    given = os.environ.get("ART_API_KEY", "").strip()
    if given:
        return _checked((given.encode(),), "ART_API_KEY"), "the key is ART_API_KEY's"
    path = directory / FILE
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(prefix + secrets.token_urlsafe(32) + "\n")
    if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"other users of this machine may read {path}", f"chmod 600 {path}")
    lines = [words for line in path.read_text().splitlines() if (words := line.split())]
    if not lines:
        raise ConfigError(f"{path} holds no key", "Write one per line, or delete the file.")
    keys = _checked(tuple(key.encode() for key, *_ in lines), str(path))
    budgets = {
        digest_of_key(key.encode()): _budget(directory, digest_of_key(key.encode()), terms)
        for key, *terms in lines
        if terms
    }
    return attrs.evolve(keys, budgets=budgets), f"the key lies in {path}"


def _budget(directory: Path, owner: str, terms: list[str]) -> Budget:
    """Return the budget of a key, of terms such as `usd=25` behind it in its line."""
    given = dict(term.partition("=")[::2] for term in terms)
    try:
        amounts = {name: float(text) for name, text in given.items()}
        return budget(file=directory / "budgets" / f"{owner}.jsonl", **amounts)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{FILE}: {' '.join(terms)!r} behind a key are no terms of a budget: {error}",
            "Such as usd=25 per_step=0.5.",
        ) from error


def _checked(keys: tuple[bytes, ...], place: str) -> Keys:
    """Return the keys; ConfigError for one that is short enough to guess."""
    if min(map(len, keys)) < MIN_KEY_LENGTH:
        raise ConfigError(
            f"{place} has a key of fewer than {MIN_KEY_LENGTH} characters, which can be guessed",
            "Take a random one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return Keys(keys)


def exposure(host: str, *, tls: bool) -> str | None:
    """Return a warning if keys and conversations cross a network as plain text."""
    if tls or host in LOOPBACK:
        return None
    return (
        f"warning: {host} can be reached from other machines, and keys and conversations cross the "
        "network as plain text; give --certfile, or listen on 127.0.0.1 behind a proxy with TLS"
    )


def check_local(headers: Mapping[str, str]) -> None:
    """Raise RequestError (403) for a request that a web page of another site may have sent.

    Web pages can reach the loopback address. Their requests have an `Origin` or `Sec-Fetch-Site` of
    another site, or, if the page's name resolves to 127.0.0.1, another `Host`.
    """
    host = headers.get("host", "")
    if not _is_loopback(host):
        raise _foreign("Host", host)
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise _foreign("Origin", origin)
    site = headers.get("sec-fetch-site", "")
    if site not in _OWN_SITES:
        raise _foreign("Sec-Fetch-Site", site)


def _is_loopback(host: str) -> bool:
    """Return True for `localhost`, 127.0.0.0/8 and `[::1]`, with or without a port."""
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


def _foreign(header: str, value: str) -> RequestError:
    return RequestError(
        403,
        f"{header} {value!r:.200} is not of this machine; without keys (--no-auth) only its own "
        "programs are served, at http://127.0.0.1 or http://localhost. Leave --no-auth out and "
        "send the key",
    )
