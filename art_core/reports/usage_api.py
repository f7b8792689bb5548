"""A service's usage API: pages of daily buckets, read with an admin key from the environment.

The key is sent to the service's own address only: no redirect is followed. No error contains it.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError

log = logging.getLogger("art_core")

Query = Sequence[tuple[str, str]]

_TIMEOUT_S, _TRIES, _LONGEST_WAIT_S = 60, 4, 60.0
_TRANSIENT = frozenset({429, 500, 502, 503, 504, 529})
_KEY = re.compile(r"[!-~]+")


@attrs.frozen(kw_only=True)
class UsageApi:
    """A usage API by its address. `variable` names the environment variable of the admin key,
    `keys_at` the page where one is made, and `headers` makes the headers of a key.
    """

    service: str
    url: str
    variable: str
    keys_at: str
    headers: Callable[[str], dict[str, str]]
    wait: Callable[[float], None] = time.sleep

    def buckets(self, path: str, query: Query) -> Iterator[Mapping[str, Any]]:
        """Yield the buckets of all pages; ConfigError for every failure."""
        seen: set[str] = set()
        page: Query = ()
        while True:
            answer = self._get(path, (*query, *page))
            if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
                raise ConfigError(f"{self.service} sent no list of days: {answer!s:.80}")
            yield from answer["data"]
            if not answer.get("has_more"):
                return
            cursor = str(answer.get("next_page") or "")
            if not cursor or cursor in seen:
                raise ConfigError(f"{self.service} sent the page {cursor!r} twice, or none")
            seen.add(cursor)
            page = (("page", cursor),)

    def _get(self, path: str, query: Query) -> Any:
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.parse import urlencode
        from urllib.request import Request, build_opener

        request = Request(f"{self.url}{path}?{urlencode(query)}", headers=self.headers(self._key()))  # noqa: S310 - of the table
        opener = build_opener(_no_redirects())
        for attempt in range(1, _TRIES + 1):
            try:
                with opener.open(request, timeout=_TIMEOUT_S) as answer:
                    return orjson.loads(answer.read())
            except HTTPError as error:
                with error:
                    self._pause(error, error.read(), attempt)
            except (OSError, HTTPException) as error:
                raise ConfigError(
                    f"{self.service} at {self.url} does not answer: {error}"
                ) from error
            except ValueError as error:
                raise ConfigError(f"{self.service} at {self.url} sent no JSON: {error}") from error
        raise AssertionError("the last try returns or raises")

    def _key(self) -> str:
        key = os.environ.get(self.variable, "").strip()
        if not _KEY.fullmatch(key):
            problem = "holds characters that no key has" if key else "is not set"
            raise ConfigError(
                f"the bill of {self.service} needs an admin key, and {self.variable} {problem}",
                f"An administrator of the organization makes one: {self.keys_at}",
            )
        return key

    def _pause(self, error: Any, body: bytes, attempt: int) -> None:
        """Wait before another try; ConfigError where none would help."""
        if error.code not in _TRANSIENT:
            raise self._refused(error.code, body) from None
        asked = _seconds(error.headers.get("retry-after"))
        pause = 2.0**attempt if asked is None else asked
        if attempt == _TRIES or pause > _LONGEST_WAIT_S:
            raise ConfigError(
                f"{self.service} answers {error.code} after {attempt} tries",
                f"Try again in {pause:.0f} s." if error.code == 429 else "Try again later.",
            ) from None
        log.info("%s answers %s: waiting %.0f s", self.service, error.code, pause)
        self.wait(pause)

    def _refused(self, status: int, body: bytes) -> ConfigError:
        if status == 401:
            return ConfigError(
                f"{self.service} does not accept the key in {self.variable}",
                f"It needs an admin key, not one for models: {self.keys_at}",
            )
        message = ""
        with suppress(ValueError, TypeError, LookupError):
            message = f": {orjson.loads(body)['error']['message']!s:.200}".replace(
                self._key(), "..."
            )
        what = "may not read the bill with this key" if status == 403 else f"answers {status}"
        return ConfigError(f"{self.service} {what}{message}", self.keys_at if status == 403 else "")


def _no_redirects() -> Any:
    from urllib.request import HTTPRedirectHandler

    class NoRedirects(HTTPRedirectHandler):
        """An answer that redirects is an error: the key is not for another address."""

        def redirect_request(self, *_: Any) -> None:
            """Follow none."""

    return NoRedirects()


def _seconds(header: str | None) -> float | None:
    """Return the seconds of a Retry-After, which is a number or a time; None for other texts."""
    if header is None:
        return None
    with suppress(ValueError):
        return max(float(header), 0.0)
    with suppress(ValueError, TypeError):
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    return None
