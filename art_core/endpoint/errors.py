"""Errors of HTTP servers, in the form that OpenAI's clients read: a status and `{"error": {message,
type, param, code}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

from art_core.base.errors import ArtError, BudgetError

Code = Literal[
    "body_too_large",
    "budget_exceeded",
    "conflict",
    "context_length_exceeded",
    "engine_error",
    "engine_timeout",
    "internal_error",
    "invalid_api_key",
    "invalid_json",
    "invalid_value",
    "model_not_found",
    "not_found",
    "not_supported",
    "permission_denied",
    "previous_response_not_found",
    "storage_full",
    "too_many_attempts",
    "unknown_parameter",
    "unsupported_parameter",
]

MAX_MESSAGE, MAX_PARAM = 4000, 200
"""Characters of an error's texts, which may quote a request."""
_MAX_ITEMS, _MAX_LEVELS = 10, 4

_TYPES: dict[int, tuple[str, Code]] = {
    400: ("invalid_request_error", "invalid_value"),
    401: ("authentication_error", "invalid_api_key"),
    402: ("insufficient_quota", "budget_exceeded"),
    403: ("permission_error", "permission_denied"),
    404: ("not_found_error", "not_found"),
    405: ("invalid_request_error", "not_found"),
    409: ("conflict_error", "conflict"),
    413: ("invalid_request_error", "body_too_large"),
    422: ("invalid_request_error", "invalid_value"),
    500: ("server_error", "internal_error"),
    501: ("server_error", "not_supported"),
    503: ("service_unavailable", "engine_error"),
    507: ("server_error", "storage_full"),
}
"""The error's type and its default code for each status; others count as 400 or 500."""


def _type(status: int) -> tuple[str, Code]:
    return _TYPES.get(status) or _TYPES[500 if status >= 500 else 400]


UNCONSTRAINED = (
    "Ask for it in the messages, and give a lower reward for other answers; "
    "model.recording(trajectory, unconstrained=True) leaves the parameter out"
)
"""The remedy for a parameter that would force the form of an answer."""


class RequestError(ArtError):
    """An error with which a server answers a request: HTTP status, message, the parameter at fault,
    and a code, by default that of the status.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: Code | None = None
    ) -> None:
        param = None if param is None else param[:MAX_PARAM]
        Exception.__init__(self, status, message[:MAX_MESSAGE], param, code or _type(status)[1])

    def __str__(self) -> str:
        return str(self.args[1])

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.args[0])

    def body(self) -> dict[str, Any]:
        """Return the error as JSON values, in OpenAI's form."""
        status, message, param, code = self.args
        kind = _type(status)[0]
        return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def request_error(error: BaseException) -> RequestError:
    """Return the error with which a server answers a request that failed."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BudgetError):
        return RequestError(402, str(error))
    if isinstance(error, ArtError):
        return RequestError(503, str(error))
    return RequestError(500, f"{type(error).__name__}: {error}")


def shown(value: object, limit: int = 200) -> str:
    """Return a value's repr, cut to `limit` characters; the time does not grow with the value."""
    text = repr(_cut(value, limit))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _cut(value: object, limit: int, depth: int = 0) -> object:
    if isinstance(value, str):
        return value[:limit]
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth == _MAX_LEVELS:
        return "…"
    if isinstance(value, Mapping):
        some = islice(value.items(), _MAX_ITEMS)
        return {_cut(key, limit): _cut(each, limit, depth + 1) for key, each in some}
    return [_cut(each, limit, depth + 1) for each in value[:_MAX_ITEMS]]


def bad_parameter(name: str, expected: str, got: object) -> RequestError:
    """Return the error of a parameter whose value is not valid."""
    return RequestError(400, f"{name} must be {expected}, got {shown(got, 400)}"[:500], name)


def unsupported(name: str, reason: str) -> RequestError:
    """Return the error of a parameter that exists and is not supported here."""
    return RequestError(400, f"{name} is not supported: {reason}", name, "unsupported_parameter")
