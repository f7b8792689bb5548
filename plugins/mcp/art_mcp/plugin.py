"""The hooks of art-mcp: the servers in `.mcp.json` of the current directory are environments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import art_core as art

FILE = ".mcp.json"


@art.hookimpl
def art_environments() -> Sequence[art.EnvironmentSpec]:
    """Offer an environment `mcp/NAME` for each server in `.mcp.json`."""
    return [
        art.EnvironmentSpec(
            name=f"mcp/{name}",
            target=partial(_environment, name, entry),
            modules=("mcp",),
            summary=f"the tools of the MCP server {name!r} in {FILE}",
        )
        for name, entry in _listed(Path(FILE)).items()
    ]


def _listed(file: Path) -> dict[str, Mapping[str, Any]]:
    try:
        servers = json.loads(file.read_text()).get("mcpServers") or {}
        return {str(name): entry for name, entry in servers.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise art.ConfigError(f"{FILE} can't be read: {error}") from error


def _environment(name: str, entry: Mapping[str, Any]) -> art.Environment:
    from art_mcp.environment import McpEnvironment
    from art_mcp.server import McpServer

    return McpEnvironment(McpServer.of(name, entry))
