"""The API's description, made from the table of its operations: as OpenAPI, and as an HTML page."""

from __future__ import annotations

import html
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response

from art_core.endpoint.errors import RequestError

_KINDS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}


@attrs.frozen
class Operation:
    """One request of the API: method, path and handler, the fields of its body and its query with
    their types, its answer, and the form of its errors. The handler's docstring describes it.
    """

    method: str
    path: str
    handler: Callable[[Any, Request], Awaitable[Response]]
    answer: str
    body: Mapping[str, type] = attrs.field(factory=dict, kw_only=True)
    query: Mapping[str, type] = attrs.field(factory=dict, kw_only=True)
    needs_key: bool = attrs.field(default=True, kw_only=True)
    error: Callable[[RequestError], Mapping[str, Any]] = attrs.field(
        default=RequestError.body, kw_only=True
    )

    @property
    def shown_path(self) -> str:
        """The path without Starlette's converters."""
        return re.sub(r":\w+}", "}", self.path)

    @property
    def summary(self) -> str:
        """The handler's docstring in one line."""
        return " ".join((self.handler.__doc__ or "").split())


def openapi(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the API as OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for operation in operations:
        methods = paths.setdefault(operation.shown_path, {})
        methods[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "art serve", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }


def _described(operation: Operation) -> dict[str, Any]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.shown_path)
    ]
    in_query = [
        {"name": name, "in": "query", "schema": {"type": _KINDS[kind]}}
        for name, kind in operation.query.items()
    ]
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": in_path + in_query,
        "responses": {"2XX": {"description": operation.answer}},
    }
    if operation.body:
        fields = {name: {"type": _KINDS[kind]} for name, kind in operation.body.items()}
        schema = {"type": "object", "properties": fields}
        described["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    if not operation.needs_key:
        described["security"] = []
    return described


def page(operations: Iterable[Operation]) -> str:
    """Return the API as an HTML page."""
    rows = [
        (o.method, o.shown_path, o.summary, ", ".join([*o.body, *o.query]), o.answer)
        for o in operations
    ]
    heads = _row("th", ("method", "path", "does", "takes", "answers"))
    style = "body{font:16px sans-serif;margin:2em}td,th{text-align:left;padding:.3em 1em .3em 0}"
    return (
        f"<!doctype html><html lang='en'><title>art serve</title><style>{style}</style>"
        f"<h1>art serve</h1><p>Send <code>Authorization: Bearer &lt;key&gt;</code>. For tools: "
        f"<a href='/openapi.json'>/openapi.json</a>; for Prometheus: /metrics.</p>"
        f"<table>{heads}{''.join(_row('td', row) for row in rows)}</table></html>"
    )


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
