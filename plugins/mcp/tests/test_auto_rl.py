"""The example of a task in one sentence, with the tools of an MCP server."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from judge_server import judging

import art_core as art
from art_core.testing.echo import EchoBackend

PROGRAM = Path(__file__).parents[3] / "examples" / "auto_rl.py"
SMALL = Path(__file__).parent / "small_server.py"
TASK = "Answer with a price."


def writer_and_judge(request):
    """Write tasks for the server's tool, and give all attempts of a group the same score."""
    prompt = request["messages"][-1]["content"]
    if request["model"] == "writer":
        n = int(re.search(r"Write (\d+) different tasks", prompt)[1])
        items = [
            {"task": f"What do {i} apples cost?", "difficulty": 1, "tools": ["shop_look_up"]}
            for i in range(n)
        ]
        return json.dumps(items)
    scores = [{"id": i, "score": 0.5} for i in re.findall(r'<attempt id="(\d+)">', prompt)]
    return json.dumps({"scores": scores})


def test_scenarios_are_written_for_the_tools_of_a_server(monkeypatch, tmp_path, capsys):
    pytest.importorskip("plotext")
    seen = []

    def reply(messages, step):
        seen.append(messages)
        return "3"

    command = shlex.join([sys.executable, "-S", str(SMALL)])
    sizes = ["--scenarios", "4", "--steps", "1", "--writer", "writer"]
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setenv("ART_SINKS", "")
    monkeypatch.setattr(art, "backend", lambda _: EchoBackend(reply=reply))
    monkeypatch.setattr(sys, "argv", ["auto_rl.py", TASK, "--mcp", command, *sizes])
    with judging(writer_and_judge) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        runpy.run_path(str(PROGRAM), run_name="__main__")
    prompt = server.requests[0]["messages"][0]["content"]
    assert "Write 12 different tasks" in prompt
    assert TASK in prompt
    assert {messages[0]["content"] for messages in seen} == {TASK}
    asked = {messages[1]["content"] for messages in seen}
    assert asked == {f"What do {i} apples cost?" for i in range(12)}
    assert "step 1 is better in 0 of 8 new scenarios, with a mean score of 0.50" in (
        capsys.readouterr().out
    )
