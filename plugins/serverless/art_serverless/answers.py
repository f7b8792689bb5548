"""What an answer of the service means: an object, or an error that says what to do."""

from __future__ import annotations

from typing import Any

import httpx2

from art_core import ArtError, BackendError, ConfigError

_NOT_FOUND, _TOO_MANY, _SERVER_ERROR = (404, 405), 429, 500
_USERS = (400, 401, 403, 409, 413, 422)
_REMEDIES = {
    401: "Is the key the right one, and has it expired? Give api_key=, or set ART_API_KEY or "
    "WANDB_API_KEY.",
    403: "The key may not do this; ask for another one.",
    429: "The quota is used up for now; try again later.",
}


class NotFoundError(BackendError):
    """Something that the service does not have (404), or does not do (405)."""


class UnreachableError(BackendError):
    """No answer came: nobody listens, the network is down, or it took too long."""


class BusyError(BackendError):
    """The service asks to come back later (429, 5xx); `args[2]` is after how many seconds."""

    def __init__(self, problem: str, remedy: str = "", pause_s: float | None = None) -> None:
        Exception.__init__(self, problem, remedy, pause_s)

    def __str__(self) -> str:
        return str(BackendError(*self.args[:2]))


def checked(answer: httpx2.Response, url: str, what: str) -> dict[str, Any]:
    """Return the object in an answer of `url` to a request; raise what its status means."""
    status = answer.status_code
    if status < 300:
        return _object(answer, url, what) if answer.content else {}
    raise _failure(status, answer, url, what)


def _object(answer: httpx2.Response, url: str, what: str) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    kind = answer.headers.get("content-type", "no content type")
    raise BackendError(
        f"{url} answered {what} with {kind}, not with JSON: {answer.text[:80]!r}",
        "Does base_url end in /v1, and does a proxy or a login page stand in between?",
    )


def _failure(status: int, answer: httpx2.Response, url: str, what: str) -> ArtError:
    said = f"{url} answered {what} with {status}: {_message(answer)}"
    if status == _TOO_MANY or status >= _SERVER_ERROR:
        remedy = _REMEDIES.get(status, "The service failed; its own log says more.")
        return BusyError(said, remedy, _pause(answer))
    if status in _NOT_FOUND:
        return NotFoundError(said)
    kind = ConfigError if status in _USERS else BackendError
    return kind(said, _REMEDIES.get(status, ""))


def _message(answer: httpx2.Response) -> str:
    try:
        value = answer.json()
    except ValueError:
        return answer.text[:200]
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and error.get("message"):
        return str(error["message"])
    return str(error or value)[:500]


def _pause(answer: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
