"""The routes of the page, all read-only."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from art_board import conversations, details, export, live, ranking
from art_board.curves import AXIS_KEYS, POINTS, curves_of
from art_board.library import Library, Listed
from art_board.ranking import Query
from art_board.security import Guard
from art_core import ArtError, ConfigError

log = logging.getLogger("art_core")

STATIC = Path(__file__).parent / "static"
Read = Callable[[Library, Request], Any]


def create_app(library: Library) -> Starlette:
    """Return the ASGI application that shows a library."""

    def route(path: str, read: Read) -> Route:
        return Route(path, _answering(library, read))

    run = "/api/run/{id}"
    routes: list[Route | Mount] = [
        Route("/", _page),
        Route(f"{run}/events", functools.partial(_events, library)),
        route("/api/runs", _runs),
        route("/api/runs.csv", _csv),
        route("/api/matrix", _matrix),
        route(run, lambda lib, request: details.overview(_entry(lib, request))),
        route(f"{run}/curves", _curves),
        route(f"{run}/purchases", lambda lib, r: details.purchases(_entry(lib, r))),
        route(f"{run}/findings", lambda lib, r: details.findings(_entry(lib, r))),
        route(f"{run}/evaluations", lambda lib, r: details.evaluations(_entry(lib, r))),
        route(f"{run}/steps", lambda lib, r: conversations.stored_steps(_run(lib, r))),
        route(f"{run}/groups", _groups),
        route(f"{run}/attempt", _attempt),
        route(f"{run}/search", _search),
        route(f"{run}/export.html", _export),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard)])


def _page(_: Request) -> Response:
    return FileResponse(STATIC / "index.html")


def _answering(library: Library, read: Read) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await run_in_threadpool(_answer, library, read, request)

    return answer


def _answer(library: Library, read: Read, request: Request) -> Response:
    """Return what a function reads as JSON; an error as its message."""
    try:
        found = read(library, request)
        return found if isinstance(found, Response) else _json(found)
    except LookupError as error:
        return _json({"error": str(error.args[0] if error.args else error)}, 404)
    except (ConfigError, ValueError, OverflowError) as error:
        return _json({"error": str(error)}, 400)
    except (ArtError, OSError) as error:
        return _json({"error": str(error)}, 409)
    except Exception as error:
        log.exception("the board could not answer %s", request.url.path)
        return _json({"error": f"{type(error).__name__}: {error}"}, 500)


def _json(value: Any, status: int = 200) -> Response:
    data = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    return Response(data, status, media_type="application/json")


def _run(library: Library, request: Request) -> Any:
    return library.run(request.path_params["id"])


def _entry(library: Library, request: Request) -> Listed:
    return library.entry(request.path_params["id"], _run(library, request))


def _number(request: Request, name: str, default: float) -> float:
    return float(request.query_params.get(name, default))


def _words(request: Request, name: str) -> tuple[str, ...]:
    return tuple(filter(None, request.query_params.get(name, "").split(",")))


def _query(request: Request) -> Query:
    asked = request.query_params
    return Query(
        status=asked.get("status", "all"),
        filters=asked.get("q", ""),
        sort=asked.get("sort", ""),
        reverse=asked.get("reverse") == "1",
        columns=_words(request, "columns"),
        offset=max(0, int(_number(request, "offset", 0))),
        limit=int(_number(request, "limit", 100)),
    )


def _runs(library: Library, request: Request) -> Any:
    return ranking.page(library.listed(), _query(request), library.taxonomy)


def _matrix(library: Library, request: Request) -> Any:
    key = request.query_params.get("key", "reward/mean.best")
    return ranking.matrix(library.listed(), key, _query(request), library.taxonomy)


def _csv(library: Library, request: Request) -> Response:
    is_long = request.query_params.get("form") == "long"
    text = ranking.csv(library.listed(), _query(request), library.taxonomy, is_long=is_long)
    return _download(text, "leaderboard.csv", "text/csv")


def _curves(library: Library, request: Request) -> Any:
    keys = _words(request, "keys")
    shown = functools.partial(
        curves_of,
        keys=keys,
        points=int(_number(request, "points", POINTS)),
        first=_number(request, "first", float("-inf")),
        last=_number(request, "last", float("inf")),
    )
    return library.read(request.path_params["id"], (*keys, *AXIS_KEYS), shown)


def _place(request: Request) -> tuple[str, int]:
    return request.query_params.get("split", "train"), int(_number(request, "step", 0))


def _groups(library: Library, request: Request) -> Any:
    return conversations.groups_of(_run(library, request), *_place(request))


def _attempt(library: Library, request: Request) -> Any:
    at = int(_number(request, "group", 0)), int(_number(request, "place", 0))
    return conversations.attempt_of(_run(library, request), *_place(request), *at)


def _search(library: Library, request: Request) -> Any:
    text = request.query_params.get("q", "").strip()
    if not text:
        raise ConfigError("a search needs a text")
    before = request.query_params.get("before")
    split, _ = _place(request)
    start = int(before) if before else None
    return conversations.search(_run(library, request), text, split, start)


def _export(library: Library, request: Request) -> Response:
    entry = _entry(library, request)
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in entry.run.name)
    return _download(export.page_of(entry), f"{name}.html", "text/html")


def _download(text: str, name: str, media_type: str) -> Response:
    quoted = name.encode("ascii", "replace").decode().replace("?", "-")
    headers = {"content-disposition": f'attachment; filename="{quoted}"'}
    return Response(text, media_type=media_type, headers=headers)


async def _events(library: Library, request: Request) -> Response:
    try:
        run = await run_in_threadpool(_run, library, request)
        after = request.headers.get("last-event-id") or request.query_params.get("after")
        start = int(after) if after else None
    except (LookupError, ValueError) as error:
        return _json({"error": str(error)}, 404)
    return StreamingResponse(live.events(run, start), media_type="text/event-stream")
