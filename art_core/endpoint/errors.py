"""What goes wrong at the endpoint, as OpenAI's clients read it: a status and `{"error": {message,
type, param, code}}`.
"""

from __future__ import annotations

from typing import Any, Literal

from art_core.errors import ArtError

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
        Exception.__init__(self, status, message, param, code)

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


def bad_parameter(name: str, expected: str, got: object) -> RequestError:
    """A parameter whose value does not fit."""
    return RequestError(400, f"{name} must be {expected}, got {got!r}"[:500], name, "invalid_value")


def unsupported(name: str, why: str) -> RequestError:
    """A parameter that exists but cannot be honoured here."""
    return RequestError(400, f"{name} is not supported: {why}", name, "unsupported_parameter")
