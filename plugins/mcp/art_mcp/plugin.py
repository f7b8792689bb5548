"""The hooks of art-mcp: the servers in `.mcp.json` of the current directory are environments, and
`art mcp` is a server over runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import art_core as art

FILE = ".mcp.json"
_HELP = """\
Serves the runs of a directory to a coding agent, over standard input and output. The tools only
read: runs, show, attempts, costs, leaderboard, metrics. An agent that reads .mcp.json starts it by
{"mcpServers": {"art": {"command": "art", "args": ["mcp"]}}}.

examples:
  art mcp
  art mcp --dir experiments/.art
"""


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


@art.hookimpl
def art_commands() -> Sequence[art.CommandSpec]:
    """Offer `art mcp`."""
    return [
        art.CommandSpec(
            name="mcp",
            summary="serve runs to coding agents, read-only, over MCP",
            create=_add_options,
            run=_serve,
            help=_HELP,
        )
    ]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir", metavar="PATH", help="the directory of the runs (default: $ART_DIR, else .art)"
    )


def _serve(arguments: argparse.Namespace, _: art.Plugins) -> Iterator[str]:
    from art_mcp.runs_server import runs_server

    runs_server(arguments.dir).run("stdio")
    yield from ()


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
