"""What goes wrong at the endpoint, as OpenAI's clients read it: a status and `{"error": {message,
type, param, code}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

from art_core.base.errors import ArtError

Code = Literal[
    "body_too_large",
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
    "storage_full",
    "unknown_parameter",
    "unsupported_parameter",
]

MAX_MESSAGE, MAX_PARAM = 4000, 200
"""Characters of an error's texts: parts of a request stand in them."""
_SHOWN_ITEMS, _SHOWN_LEVELS = 10, 4

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}

UNCONSTRAINED = (
    "Ask for it in the messages, and let the reward miss what is otherwise; "
    "model.recording(trajectory, unconstrained=True) leaves the parameter out"
)
"""What to do about a parameter that would have to force the form of an answer."""


class RequestError(ArtError):
    """A request that the endpoint answers with an error: HTTP status, message, the parameter at
    fault, a code.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: Code | None = None
    ) -> None:
        param = None if param is None else param[:MAX_PARAM]
        Exception.__init__(self, status, message[:MAX_MESSAGE], param, code)

    def __str__(self) -> str:
        return str(self.args[1])

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.args[0])

    def body(self) -> dict[str, Any]:
        """The error as JSON values, in OpenAI's shape."""
        status, message, param, code = self.args
        default = "server_error" if status >= 500 else "invalid_request_error"
        kind = _KINDS.get(status, default)
        return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def shown(value: object, limit: int = 200) -> str:
    """Return a value's repr, cut to some characters; the work does not grow with the value."""
    text = repr(_cut(value, limit))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _cut(value: object, limit: int, depth: int = 0) -> object:
    if isinstance(value, str):
        return value[:limit]
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth == _SHOWN_LEVELS:
        return "…"
    if isinstance(value, Mapping):
        some = islice(value.items(), _SHOWN_ITEMS)
        return {_cut(key, limit): _cut(each, limit, depth + 1) for key, each in some}
    return [_cut(each, limit, depth + 1) for each in value[:_SHOWN_ITEMS]]


def bad_parameter(name: str, expected: str, got: object) -> RequestError:
    """A parameter whose value does not fit."""
    return RequestError(
        400, f"{name} must be {expected}, got {shown(got, 400)}"[:500], name, "invalid_value"
    )


def unsupported(name: str, why: str) -> RequestError:
    """A parameter that exists but cannot be honoured here."""
    return RequestError(400, f"{name} is not supported: {why}", name, "unsupported_parameter")
