"""The HTTP application: a route for each operation, with its key, its errors and its figures."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from art_core.endpoint.errors import RequestError
from art_core.endpoint.http import Handler as Answer
from art_core.endpoint.http import check_key, guarded, unknown_route
from art_serverless.server.app import refusal
from art_serverless.server.keys import Keys, check_local
from art_serverless.tinker_api.routes import OPEN, OPERATIONS, Handler, Routes

PREFIX = "/api/v1"
HINT = "this server speaks Tinker's API; the base URL of its SDK has no path"


def create_app(routes: Routes, keys: Keys) -> Starlette:
    """Create the application."""

    def route(method: str, path: str, handler: Handler, *, needs_key: bool) -> Route:
        answer = _answer(routes, keys if needs_key else None, f"{method} {path}", handler)
        return Route(PREFIX + path, answer, methods=[method])

    return Starlette(
        routes=[
            *(route(*operation, needs_key=True) for operation in OPERATIONS),
            *(route(*operation, needs_key=False) for operation in OPEN),
            Route("/metrics", _answer(routes, keys, "GET /metrics", Routes.metrics)),
        ],
        exception_handlers={HTTPException: unknown_route(HINT)},
    )


def _answer(routes: Routes, keys: Keys | None, label: str, handler: Handler) -> Answer:
    async def checked(http: Request) -> Response:
        if keys is not None and keys.accepted:
            check_key(http, keys.accepted)
        elif keys is not None:
            check_local(http.headers)
        return await handler(routes, http)

    def as_error(error: BaseException) -> RequestError:
        return routes.private.of_error(refusal(error))

    answered = guarded(checked, as_error)

    async def watched(http: Request) -> Response:
        with routes.monitor.request(label) as finished:
            response = await answered(http)
            finished(response.status_code)
            return response

    return watched
