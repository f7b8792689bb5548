"""Errors of the server, in the endpoint's shape: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from art_core.endpoint.errors import Code, RequestError

_CODES: Final[Mapping[int, Code]] = {
    401: "invalid_api_key",
    403: "permission_denied",
    404: "not_found",
    409: "conflict",
    413: "body_too_large",
    500: "internal_error",
    501: "not_supported",
    503: "engine_error",
}


class RefusedError(RequestError):
    """A request that is answered with a status, a message and the parameter at fault; the code is
    that of the status, unless given.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: Code | None = None
    ) -> None:
        super().__init__(status, message, param, code or _CODES.get(status, "invalid_value"))
