"""A read-only MCP server over runs: each tool is a command of `art` whose answer is JSON."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

from art_core import __version__

INSTRUCTIONS = (
    "Read runs of art-core, which trains LLM agents: list them with `runs`, then look at one with "
    "`show`, at its attempts with `attempts`, and at what it cost with `costs`. Nothing is changed."
)
READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
MAX_ATTEMPTS = 50
TIMEOUT_S = 60.0


def runs_server(directory: str | None = None) -> MCPServer[Any]:
    """Return a server with the runs of a directory, by default `ART_DIR`, else `.art`."""
    server: MCPServer[Any] = MCPServer("art", version=__version__, instructions=INSTRUCTIONS)
    where = [] if directory is None else [f"--dir={directory}"]

    @server.tool(annotations=READ_ONLY)
    async def runs() -> str:
        """List the runs: last step, reward, cost in US dollars, status."""
        return await answer("runs", *where)

    @server.tool(annotations=READ_ONLY)
    async def show(run: str) -> str:
        """Show a run: each metric's values, the cost tree, and the reason if it failed."""
        return await answer("show", *where, "--", run)

    @server.tool(annotations=READ_ONLY)
    async def attempts(
        run: str,
        step: int | None = None,
        split: str = "train",
        order: str = "stored",
        limit: int = 5,
    ) -> str:
        """Show attempts of a step (default: the newest) as conversations with their rewards.

        `order` is "stored", "best", "worst" or "failed".
        """
        if order not in ("stored", "best", "worst", "failed"):
            raise ToolError(f"no order {order!r}; known: stored, best, worst, failed")
        words = ["--attempts", f"--split={split}", f"--limit={min(limit, MAX_ATTEMPTS)}"]
        words += [] if step is None else [f"--step={step}"]
        words += [] if order == "stored" else [f"--{order}"]
        return await answer("show", *words, *where, "--", run)

    @server.tool(annotations=READ_ONLY)
    async def costs(run: str) -> str:
        """Show what a run cost in US dollars, what it bought, and the cost of a point of reward."""
        return await answer("costs", *where, "--", run)

    @server.tool(annotations=READ_ONLY)
    async def leaderboard(sort: str = "reward/mean") -> str:
        """Rank the finished runs by a metric, with all their metrics."""
        return await answer("leaderboard", f"--sort={sort}", *where)

    @server.tool(annotations=READ_ONLY)
    async def metrics() -> str:
        """List the metrics that runs can have: key, unit, meaning."""
        return await answer("metrics")

    return server


async def answer(*words: str) -> str:
    """Return a command's answer as JSON; ToolError with its message if it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "art_core", words[0], "--json", *words[1:],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"ART_SINKS": ""},
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ToolError(f"`art {words[0]}` took longer than {TIMEOUT_S:.0f} s") from None
    if process.returncode:
        raise ToolError(err.decode(errors="replace").strip()[-2000:])
    return out.decode()
