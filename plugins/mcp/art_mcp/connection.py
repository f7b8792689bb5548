"""An open connection to an MCP server: its tools, and what went wrong with it."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TextIO

import anyio
import httpx2
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import INVALID_PARAMS, METHOD_NOT_FOUND, REQUEST_TIMEOUT, CallToolResult
from mcp.types import Tool as McpTool

import art_core as art
from art_core.base.errors import reason_of, without_secrets
from art_mcp.server import McpServer

_OF_THE_MODEL = (INVALID_PARAMS, METHOD_NOT_FOUND)
"""Errors of the protocol for calls that no server could answer."""
_MAX_NAME = 64
_TAIL = 300
_CLOSING_SECONDS = 15.0


class McpConnection:
    """A connection to an MCP server, with the server's process if a command starts one.

    `McpConnection.open(server)` makes one; `close` ends it and the process. `tools` are those of
    the server. What goes wrong with the server is an `art.InfrastructureError` with its last words
    on standard error: it does not start, ends, gives no answer within the timeout, or writes
    something else than messages to its standard output.
    """

    def __init__(self, server: McpServer) -> None:
        self.server = server
        self.tools: tuple[art.Tool, ...] = ()
        self._client: Client | None = None
        self._scope = anyio.CancelScope()
        self._closing = asyncio.Event()
        self._ready = asyncio.Event()
        self._noise = ""
        self._error: BaseException | None = None
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, server: McpServer) -> McpConnection:
        """Connect, and read the list of tools, both within the server's timeout."""
        connection = cls(server)
        task = connection._task = asyncio.create_task(connection._run())
        ready = asyncio.create_task(connection._ready.wait())
        try:
            await asyncio.wait(
                (task, ready), timeout=server.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not connection._ready.is_set():
                late = not task.done()
                raise connection._failure(
                    f"did not start within {server.timeout:g} s" if late else "could not be used"
                )
        except BaseException:
            await connection.close()
            raise
        finally:
            ready.cancel()
        return connection

    async def close(self) -> None:
        """End the connection and the server's process; a second call does nothing."""
        self._closing.set()
        if not self._ready.is_set():
            self._scope.cancel()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=_CLOSING_SECONDS)
        self._stderr.close()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Return a tool's result as text; "error: ..." if the tool or the protocol refuses it."""
        assert self._client is not None
        limit = self.server.timeout
        try:
            with anyio.fail_after(
                limit + 1
            ):  # a server that reads nothing holds up the request too
                result = await self._client.call_tool(
                    name, dict(arguments), read_timeout_seconds=limit
                )
        except MCPError as error:
            if error.code in _OF_THE_MODEL:
                return f"error: {error.message}"
            late = error.code == REQUEST_TIMEOUT
            raise self._failure(self._late(name) if late else "ended or failed", error) from error
        except TimeoutError as error:
            raise self._failure(self._late(name), error) from error
        except Exception as error:
            raise self._failure(f"gave no valid answer to {name}", error) from error
        return text_of(result)

    async def _run(self) -> None:
        """Hold the connection open until it is closed: anyio wants both ends in one task."""
        try:
            with self._scope:
                async with self._connected() as client:
                    listed = await self._listed(client)
                    self.tools = tuple(self._tool(name, each) for name, each in listed.items())
                    self._client = client
                    self._ready.set()
                    await self._closing.wait()
        except Exception as error:  # raised where the connection is awaited
            self._error = error

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        server = self.server
        options: dict[str, Any] = {"message_handler": self._on_message}
        if server.command:
            errlog: TextIO = self._stderr
            parameters = StdioServerParameters(
                command=server.command[0],
                args=list(server.command[1:]),
                env=dict(server.env),
                cwd=server.cwd,
                encoding_error_handler="replace",  # bytes that are not text: reported as noise
            )
            async with Client(stdio_client(parameters, errlog=errlog), **options) as client:
                yield client
            return
        limits = httpx2.Timeout(server.timeout)
        async with (
            httpx2.AsyncClient(headers=dict(server.headers), timeout=limits) as http,
            Client(streamable_http_client(server.url, http_client=http), **options) as client,
        ):
            yield client

    async def _listed(self, client: Client) -> dict[str, McpTool]:
        """Return the tools, by names that an OpenAI request may have."""
        found: dict[str, McpTool] = {}
        cursor: str | None = None
        while True:
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                found[_free_name(tool.name, found)] = tool
            cursor = page.next_cursor
            if not cursor:
                return found

    def _tool(self, name: str, tool: McpTool) -> art.Tool:
        return art.Tool(
            name=name,
            description=tool.description or tool.title or "",
            parameters=tool.input_schema,
            call=partial(self.call, tool.name),
        )

    async def _on_message(self, message: Any) -> None:
        """End the connection when the server writes something else than messages."""
        if isinstance(message, ValueError) and self.server.command:
            errors: Any = getattr(message, "errors", None)
            self._noise = str(errors()[0].get("input") if errors else message)
            self._scope.cancel()

    def _late(self, name: str) -> str:
        return f"gave no answer to {name} within {self.server.timeout:g} s"

    def _failure(self, what: str, error: BaseException | None = None) -> art.InfrastructureError:
        title = f"the MCP server {self.server.title!r}"
        if self._noise:
            return art.InfrastructureError(
                f"{title} writes other text than MCP messages to its standard output: "
                f"{without_secrets(self._noise)!r:.80}",
                "It must print to standard error.",
            )
        cause = _first(error or self._error)
        why = f" ({reason_of(cause)})" if cause is not None else ""
        return art.InfrastructureError(f"{title} {what}{why}{self._last_words()}")

    def _last_words(self) -> str:
        self._stderr.seek(0)
        text = without_secrets(self._stderr.read().strip())
        return f". Its last words on standard error: {text[-_TAIL:]}" if text else ""


def text_of(result: CallToolResult) -> str:
    """Return a tool's result as text; other blocks are named."""
    parts = [_shown(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content)]
    text = "\n".join(parts)
    return f"error: {text}" if result.is_error else text


def _shown(block: Any) -> str:
    text = getattr(block, "text", None) or getattr(getattr(block, "resource", None), "text", None)
    if text is not None or block.type == "text":
        return text or ""
    kind = getattr(block, "mime_type", None) or getattr(block, "uri", "")
    return f"[{block.type}: {kind}]"


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    plain = re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:_MAX_NAME]
    number, free = 2, plain
    while free in taken:
        free = f"{plain[: _MAX_NAME - 4]}_{number}"
        number += 1
    return free


def _first(error: BaseException | None) -> BaseException | None:
    """Return the first error of groups within groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
