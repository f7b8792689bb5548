"""The HTTP application: a route for each operation, with its key, its errors and its figures."""

from __future__ import annotations

import errno
import logging
import sqlite3

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from art_core import ArtError, BackendError, BudgetError, ConfigError, MetricError
from art_core.endpoint.errors import RequestError, request_error
from art_core.endpoint.http import Handler, check_key, guarded, unknown_route
from art_serverless.server.keys import Keys, check_local
from art_serverless.server.openapi import Operation
from art_serverless.server.routes import OPERATIONS, Routes, Server

log = logging.getLogger("art_serverless")


def create_app(server: Server) -> Starlette:
    """Create the application."""
    routes = Routes(server)
    return Starlette(
        routes=[
            Route(operation.path, _handler(operation, routes, server), methods=[operation.method])
            for operation in OPERATIONS
        ],
        exception_handlers={HTTPException: unknown_route("see /docs for what there is")},
    )


def _handler(operation: Operation, routes: Routes, server: Server) -> Handler:
    async def checked(http: Request) -> Response:
        if operation.needs_key:
            _check_access(http, server.keys)
        return await operation.handler(routes, http)

    def as_error(error: BaseException) -> RequestError:
        return server.private.of_error(refusal(error))

    answered = guarded(checked, as_error, operation.error)

    async def watched(http: Request) -> Response:
        label = f"{operation.method} {operation.path.removeprefix('/v1')}"
        with server.monitor.request(label) as finished:
            response = await answered(http)
            finished(response.status_code)
            return response

    return watched


def _check_access(http: Request, keys: Keys) -> None:
    if keys.accepted:
        check_key(http, keys.accepted)
    else:
        check_local(http.headers)


def refusal(error: BaseException) -> RequestError:
    """Return the error with which a request is answered; unexpected errors are logged."""
    if isinstance(error, RequestError | BackendError | BudgetError):
        return request_error(error)
    if isinstance(error, ConfigError | MetricError):
        return RequestError(422, str(error))
    if isinstance(error, ArtError):
        return RequestError(500, str(error))
    if _is_too_deep(error):
        return RequestError(400, "the body is nested too deeply", code="invalid_json")
    if _is_full(error):
        return RequestError(507, f"the server's disk is full: {error}")
    log.error("a request failed", exc_info=error)
    return request_error(error)


def _is_too_deep(error: BaseException) -> bool:
    too_deep = isinstance(error, orjson.JSONEncodeError) and "ecursion limit" in str(error)
    return too_deep or isinstance(error, RecursionError)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, sqlite3.OperationalError):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_FULL)
        return code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OSError) and error.errno in full
