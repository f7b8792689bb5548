"""ART's module for MCP; art-mcp connects to servers itself."""

from __future__ import annotations

from typing import Any

from art._missing import missing

_OURS = (
    "art-mcp asks an MCP server for its tools, and checks scenarios against them",
    (
        "pip install art-mcp; await art_mcp.generate_scenarios(art_mcp.McpServer(...), 24, "
        "model=model)."
    ),
)
_NAMES = dict.fromkeys(
    (
        "GeneratedScenario",
        "GeneratedScenarioCollection",
        "MCPResource",
        "MCPTool",
        "complete_task_tool",
        "generate_scenarios",
    ),
    _OURS,
)


def __getattr__(name: str) -> Any:
    raise missing(name, _NAMES, "art.mcp")
