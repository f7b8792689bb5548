"""MCP servers as environments, and scenarios for their tools."""

from art_mcp.environment import McpEnvironment
from art_mcp.scenarios import generate_scenarios
from art_mcp.server import McpServer

__all__ = ["McpEnvironment", "McpServer", "generate_scenarios"]
