"""Signed links to the files of exported weights, which are fetched without a key."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import secrets
import time
from pathlib import Path
from urllib.parse import quote, urlencode

import attrs

from art_core.endpoint.errors import RequestError
from art_serverless.tinker_api.checkpoints import TinkerPath

LIFETIME_S = 3600


@attrs.frozen
class Links:
    """Links that this server signs; they end with it, or after an hour."""

    secret: bytes = attrs.field(factory=lambda: secrets.token_bytes(32), repr=False)

    def of(self, root: str, path: TinkerPath, place: Path) -> tuple[dict[str, str], str]:
        """Return a link to each file of a checkpoint, and when they end."""
        end = int(time.time()) + LIFETIME_S
        links = {}
        for file in sorted(place.iterdir()):
            query = urlencode({"end": end, "signature": self._signature(path, file.name, end)})
            url = f"{root}/api/v1/files/{path.run}/{path.name}/{quote(file.name)}?{query}"
            links[file.name] = url
        return links, dt.datetime.fromtimestamp(end, dt.UTC).isoformat()

    def check(self, path: TinkerPath, file: str, end: str, signature: str) -> None:
        """Raise RequestError (403) unless a link is one of these, and not too old."""
        number = int(end) if end.isdecimal() and len(end) < 16 else 0
        right = self._signature(path, file, number)
        same = hmac.compare_digest(right.encode(), signature.encode())
        if not same or number < time.time():
            raise RequestError(403, "the link is not valid, or no longer; ask for another one")

    def _signature(self, path: TinkerPath, file: str, end: int) -> str:
        return hmac.new(self.secret, f"{path}\n{file}\n{end}".encode(), hashlib.sha256).hexdigest()
