"""What goes wrong at the server, as `{"error": {message, type}}` with a status."""

from __future__ import annotations

from typing import Any

from art_core import ArtError

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "body_too_large",
    429: "rate_limit_error",
}


class RefusedError(ArtError):
    """A request that is answered with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        Exception.__init__(self, status, message)

    def __str__(self) -> str:
        return str(self.args[1])

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.args[0])

    def body(self) -> dict[str, Any]:
        """The error as the protocol has it."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": _KINDS.get(self.status, default)}}
