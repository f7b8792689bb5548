"""The place of an MCP server: a command, or an address."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from art_core import ConfigError

_MAX_TITLE = 100


def _words(command: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(shlex.split(command) if isinstance(command, str) else map(str, command))


@attrs.frozen(kw_only=True)
class McpServer:
    """An MCP server: a command that is started and talks over its standard streams, or the address
    of one that runs and talks over streamable HTTP.

    - `command` is a list of words, or one text that is split like a shell's. `env` adds variables
      to those few that a server inherits (PATH, HOME and the like); `cwd` is its directory.
    - `url` is an address such as "http://127.0.0.1:8000/mcp"; `headers` go into each request.
    - `timeout` limits in seconds how long the server may take to start, and to answer a call.
    - `name` is for messages; the default is the command or the address.

    Raises ConfigError for both or neither of a command and an address.
    """

    command: Sequence[str] = attrs.field(default=(), converter=_words)
    url: str = ""
    env: Mapping[str, str] = attrs.field(factory=dict)
    cwd: str | Path | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    timeout: float = 30.0
    name: str = ""

    def __attrs_post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise ConfigError(
                f"an MCP server has a command or an address, got {self.command!r} and {self.url!r}",
                'Give command=["python", "server.py"], or url="http://127.0.0.1:8000/mcp".',
            )
        if not self.timeout > 0:
            raise ConfigError(f"the timeout of an MCP server must be above 0, got {self.timeout!r}")

    @property
    def title(self) -> str:
        """The name for messages, shortened if it is a long command."""
        text = self.name or self.url or shlex.join(self.command)
        return text if len(text) <= _MAX_TITLE else f"{text[: _MAX_TITLE - 1]}…"

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any]) -> McpServer:
        """Return a server as `.mcp.json` describes it: `command`, `args`, `env`; or `url`,
        `headers`. Raises ConfigError for another form.
        """
        try:
            command = [entry["command"], *entry.get("args", ())] if "command" in entry else ()
            return cls(
                name=name,
                command=command,
                url=entry.get("url", ""),
                env=dict(entry.get("env") or {}),
                cwd=entry.get("cwd"),
                headers=dict(entry.get("headers") or {}),
            )
        except (TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"the MCP server {name!r} can't be read: {error}") from error
