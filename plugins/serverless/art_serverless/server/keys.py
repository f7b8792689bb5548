"""Who may ask: API keys, compared in constant time, never logged."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

import attrs

from art_core import ConfigError
from art_serverless.server.errors import RefusedError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FILE = "serve.key"
SHORTEST_KEY = 8


@attrs.frozen(repr=False)
class Keys:
    """The keys that are taken; none of them: everyone may ask."""

    accepted: tuple[bytes, ...]

    @property
    def open(self) -> bool:
        """True if no key is needed."""
        return not self.accepted

    def check(self, authorization: str) -> None:
        """Raise RefusedError 401 unless the header `Authorization: Bearer <key>` carries a key."""
        if self.open:
            return
        scheme, _, given = authorization.partition(" ")
        key = given.strip().encode()
        # Every key is compared, so that the time tells nothing.
        fits = [hmac.compare_digest(key, accepted) for accepted in self.accepted]
        if scheme.lower() != "bearer" or not any(fits):
            raise RefusedError(
                401, "wrong or missing API key; send it as 'Authorization: Bearer <key>'"
            )


def server_keys(directory: Path, host: str, *, no_auth: bool) -> tuple[Keys, str]:
    """Return the keys, and words on where they are from: `ART_API_KEY`, else a file, made at need.

    Raises ConfigError for `no_auth` on an address that others can reach.
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
            file.write(secrets.token_urlsafe(32) + "\n")
    if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"other users of this machine may read {path}", f"chmod 600 {path}")
    keys = tuple(line.strip().encode() for line in path.read_text().splitlines() if line.strip())
    if not keys:
        raise ConfigError(f"{path} holds no key", "Write one a line, or delete it.")
    return _checked(keys, str(path)), f"the key lies in {path}"


def _checked(keys: tuple[bytes, ...], place: str) -> Keys:
    """Return keys; ConfigError for one that can be guessed."""
    if min(map(len, keys)) < SHORTEST_KEY:
        raise ConfigError(
            f"{place} has a key of fewer than {SHORTEST_KEY} characters, which can be guessed",
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
