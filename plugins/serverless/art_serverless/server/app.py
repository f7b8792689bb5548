"""The server's HTTP side, in Starlette: which routes there are, who may use them, how errors are
answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from art_core.endpoint.http import elsewhere
from art_serverless.protocol import (
    JOBS,
    MODELS,
    SFT_JOBS,
)
from art_serverless.server.http import (
    refusal,
    refused,
)
from art_serverless.server.local_requests import check_local
from art_serverless.server.routes import Routes, Server

Handler = Callable[[Request], Awaitable[Response]]


def create_app(server: Server) -> Starlette:
    """Make the application; everything but /health needs a key."""
    routes = Routes(server)
    table: list[tuple[str, str, Handler]] = [
        ("POST", MODELS, routes.register),
        ("DELETE", MODELS + "/{model_id}", routes.delete),
        ("POST", MODELS + "/{model_id}/log", routes.log),
        ("GET", MODELS + "/{model_id}/checkpoints", routes.checkpoints),
        ("DELETE", MODELS + "/{model_id}/checkpoints", routes.delete_checkpoints),
        ("POST", JOBS, routes.submit),
        ("GET", JOBS, routes.find_jobs),
        ("GET", JOBS + "/{job_id}/events", routes.events),
        ("POST", SFT_JOBS, routes.sft),
        ("GET", "/models", routes.names),
        ("GET", "/models/{name:path}", routes.name),
        ("POST", "/chat/completions", routes.chat),
    ]
    guarded = [
        Route(f"/v1{path}", _guarded(handler, server, f"{method} {path}"), methods=[method])
        for method, path, handler in table
    ]
    open_to_all = [
        Route("/health", routes.health, methods=["GET"]),
        Route("/openapi.json", routes.openapi, methods=["GET"]),
        Route("/docs", routes.docs, methods=["GET"]),
    ]
    metrics = Route("/metrics", _guarded(routes.metrics, server, "GET /metrics"), methods=["GET"])
    handlers = {HTTPException: elsewhere("see /docs for what there is")}
    return Starlette(routes=[*guarded, metrics, *open_to_all], exception_handlers=handlers)


def _guarded(handler: Handler, server: Server, name: str) -> Handler:
    async def guarded(http: Request) -> Response:
        with server.monitor.request(name) as watched:
            response = await _answered(handler, http, server)
            watched(response.status_code)
            return response

    return guarded


async def _answered(handler: Handler, http: Request, server: Server) -> Response:
    try:
        if server.keys.open:
            check_local(http.headers)
        server.keys.check(http.headers.get("authorization", ""))
        return await handler(http)
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception as error:
        return refused(server.private.of_error(refusal(error)))
