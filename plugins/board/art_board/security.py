"""What a browser may do with the page: a strict policy, and requests to this machine only."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HOSTS = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """ASGI middleware: refuses requests under other names than this machine's, which pages of other
    sites send by names that they point here, and all that would change something.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or pass it on and add the headers to its answer."""
        if scope["type"] != "http":
            return
        refused = _refusal(scope)

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await (refused or self.app)(scope, receive, guarded)


def _refusal(scope: Any) -> PlainTextResponse | None:
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name not in HOSTS:
        return PlainTextResponse(f"the board answers to {', '.join(HOSTS)} only", 403)
    if scope["method"] not in ("GET", "HEAD"):
        return PlainTextResponse("the board is read-only", 405, {"allow": "GET, HEAD"})
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        is_page = headers.get("sec-fetch-mode") == "navigate" and scope["path"] == "/"
        return None if is_page else PlainTextResponse("other sites can't read the board", 403)
    return None
