"""`art mcp`, asked by a real MCP client over standard streams."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.server.mcpserver.exceptions import ToolError

import art_core as art
from art_core.data.store import append_groups, trajectory_file
from art_mcp import runs_server


@pytest.fixture
def shelf(tmp_path):
    folder = tmp_path / "demo" / "models" / "agent-1"
    folder.mkdir(parents=True)
    when = datetime(2026, 3, 1, tzinfo=UTC)
    rows = [
        art.MetricsRow(
            seq=step,
            attempt=1,
            step=step,
            split="train",
            recorded_at=when,
            metrics={"reward/mean": step / 4, "costs/cum/all": step / 100},
        )
        for step in (1, 2)
    ]
    (folder / "history.jsonl").write_bytes(b"".join(row.to_line() for row in rows))
    (folder / "status.json").write_text('{"status": "finished"}')
    attempts = [
        art.Trajectory(
            messages_and_choices=[
                {"role": "user", "content": "Is water wet?"},
                {"role": "assistant", "content": answer},
            ],
            reward=reward,
        )
        for answer, reward in (("yes", 1.0), ("no", 0.0))
    ]
    append_groups(trajectory_file(folder, "train", 2), [art.TrajectoryGroup(attempts)])
    return tmp_path


def served(shelf):
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "art_core", "mcp", "--dir", str(shelf)],
        env=dict(os.environ),
    )
    return Client(stdio_client(server))


async def test_a_client_lists_runs_and_looks_at_one(shelf):
    async with served(shelf) as client:
        tools = (await client.list_tools()).tools

        async def asked(name, **arguments):
            result = await client.call_tool(name, arguments)
            assert not result.is_error
            return json.loads(result.content[0].text)

        (run,) = (await asked("runs"))["runs"]
        shown = await asked("show", run="agent-1")
        worst = json.dumps(await asked("attempts", run="agent-1", order="worst", limit=1))
        others = [await asked("costs", run="agent-1"), await asked("leaderboard")]
        catalogue = await asked("metrics")
    names = ["attempts", "costs", "leaderboard", "metrics", "runs", "show"]
    assert sorted(tool.name for tool in tools) == names
    assert all(tool.annotations.read_only_hint for tool in tools)
    assert (run["step"], run["reward"]) == (2, 0.5)
    assert "0.5" in json.dumps(shown)
    assert ('"no"' in worst, '"yes"' in worst) == (True, False)
    assert all(others)
    assert "reward/mean" in json.dumps(catalogue)


async def test_what_does_not_exist_is_an_error_of_the_tool(shelf):
    calls = {
        "none": ("show", {"run": "none"}),
        "--help": ("show", {"run": "--help"}),
        "../../etc": ("costs", {"run": "../../etc"}),
        "no order 'oldest'; known: stored": ("attempts", {"run": "agent-1", "order": "oldest"}),
        "no column": ("leaderboard", {"sort": "none"}),
    }
    async with served(shelf) as client:
        results = {text: await client.call_tool(*call) for text, call in calls.items()}
    assert [text for text, found in results.items() if not found.is_error] == []
    assert [t for t, found in results.items() if t not in found.content[0].text] == []


async def test_a_command_that_takes_too_long_is_an_error(monkeypatch):
    monkeypatch.setattr(runs_server, "TIMEOUT_S", 0.0)
    with pytest.raises(ToolError, match="`art runs` took longer than 0 s"):
        await runs_server.answer("runs")
