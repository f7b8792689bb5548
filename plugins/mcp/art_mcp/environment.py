"""An environment whose tools are those of an MCP server."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import art_core as art
from art_mcp.server import McpServer

if TYPE_CHECKING:
    from art_mcp.connection import McpConnection

Score = Callable[[art.Trajectory, Any], Any]
"""Returns the reward of a finished attempt at a scenario; it may be async."""


class McpEnvironment(art.Environment):
    """A task that the model solves with the tools of an MCP server.

    A scenario is a text, or a mapping with the text in its field `task`. Each attempt has a
    connection of its own, and a process of its own if a command starts the server. The attempt ends
    with the first message that calls no tool. `score(trajectory, scenario)` returns its reward;
    without one it is 0, for a judge of the whole group, such as RULER. `instructions` become the
    system message.
    """

    def __init__(
        self,
        server: McpServer,
        *,
        score: Score | None = None,
        instructions: str = "",
        max_turns: int = 20,
    ) -> None:
        self.server = server
        self.instructions = instructions
        self.max_turns = max_turns
        self._score = score
        self._connection: McpConnection | None = None
        self._box = art.Toolbox([])
        self._scenario: Any = None

    async def reset(self, scenario: Any) -> Sequence[dict[str, Any]]:
        """Connect; return the task."""
        from art_mcp.connection import McpConnection

        self._scenario = scenario
        task = task_of(scenario)
        self._connection = await McpConnection.open(self.server)
        self._box = art.Toolbox(self._connection.tools)
        self.tools = self._box.schemas
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return [*first, {"role": "user", "content": task}]

    async def respond(self, message: dict[str, Any]) -> Sequence[dict[str, Any]] | None:
        """Return the results of the message's calls; None for a message without calls."""
        return await self._box.answers(message) or None

    async def score(self, trajectory: art.Trajectory) -> float:
        """Return what the given function does, 0 without one."""
        if self._score is None:
            return 0.0
        reward = self._score(trajectory, self._scenario)
        return float(await reward if inspect.isawaitable(reward) else reward)

    async def close(self) -> None:
        """End the connection and the server's process."""
        if self._connection is not None:
            await self._connection.close()


def task_of(scenario: Any) -> str:
    """Return a scenario's task; ConfigError when it has none."""
    task = scenario.get("task") if isinstance(scenario, Mapping) else scenario
    if not isinstance(task, str) or not task.strip():
        raise art.ConfigError(
            f"the scenario {scenario!r:.80} has no task", 'Give a text, or {"task": "..."}.'
        )
    return task
