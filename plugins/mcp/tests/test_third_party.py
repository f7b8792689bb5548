"""Official MCP servers from PyPI, unmodified: scenarios for their tools, and a trained step.

`make environments` installs them, and sets MCP_SERVERS to the Python that has them.
"""

import json
import os
import subprocess

import pytest

import art_core as art
from art_core import rewards
from art_core.testing.scripts import Actor, Stage, in_turn
from art_mcp import McpEnvironment, McpServer, generate_scenarios

PYTHON = os.environ.get("MCP_SERVERS", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="MCP_SERVERS names no Python with MCP servers"),
]
TASK = "What time is it in Tokyo when it is 16:30 in London on the first of January?"


@pytest.fixture
def time_server():
    return McpServer(command=[PYTHON, "-m", "mcp_server_time", "--local-timezone=UTC"])


@pytest.fixture
def git_server(tmp_path):
    """Return a server of a repository with one commit."""
    place = tmp_path / "repository"
    place.mkdir()
    (place / "notes.txt").write_text("first\n")
    named = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*named, "commit", "-qm", "Begin the notes"]):
        subprocess.run(["git", *words], cwd=place, check=True)
    return McpServer(command=[PYTHON, "-m", "mcp_server_git", "--repository", str(place)])


def written(*tasks):
    """Return a model that writes scenarios: tasks with the tools that they need."""
    items = [{"task": task, "difficulty": 1, "tools": [tool]} for task, tool in tasks]
    return Actor(Stage(in_turn([f"Here they are:\n{json.dumps(items)}"])))


async def test_scenarios_are_generated_for_a_server_and_played(git_server, call, tmp_path):
    """The way of AutoRL: a server, tasks that a model writes, and a judge's reward."""
    repository = str(tmp_path / "repository")
    task = "Who wrote the newest commit of the repository?", "git_log"
    lost = "Pay for the repository with my card.", "pay"
    with pytest.raises(art.RolloutError, match="1 of 2 scenarios.*no such tool 'pay'"):
        await generate_scenarios(git_server, 2, model=written(task, lost), max_requests=1)
    (scenario,) = await generate_scenarios(git_server, 1, model=written(task))
    assert scenario["tools"] == ["git_log"]
    turns = [call("git_log", {"repo_path": repository}), "A wrote it."]
    rollout = art.rollout_of(lambda: McpEnvironment(git_server))
    found = await rollout(Actor(Stage(in_turn(turns))), scenario)
    assert "Begin the notes" in found.messages()[2]["content"]
    assert {"git_log", "git_diff"} <= {tool["function"]["name"] for tool in found.tools}


async def test_a_server_trains_a_step_on_the_tokens_of_the_engine(time_server, call, tmp_path):
    pytest.importorskip("art_local")
    from art_local.testing.tiny import save_tiny_model

    tiny = str(save_tiny_model(tmp_path / "tiny", context_length=8192))
    options = {"device": "cpu", "dtype": "float32", "progress": False}
    backend = art.backend("local", **options)
    model = art.TrainableModel(
        name="clerk", project="p", base_model=tiny, base_path=tmp_path, sinks=[]
    )
    await model.register(backend)

    def score(trajectory, scenario):
        return float(len(trajectory.messages()[-1]["content"] or ""))

    def attempt(tokens):
        environment = art.rollout_of(
            lambda: McpEnvironment(time_server, score=score), options={"max_tokens": tokens}
        )
        return environment(model, TASK)

    group = art.TrajectoryGroup(attempt(tokens) for tokens in (4, 8, 16, 32))
    (group,) = await art.gather_trajectory_groups([group], pbar_desc=None, max_concurrent=2)
    assert group.failures == ()
    for trajectory in group:
        assert {tool["function"]["name"] for tool in trajectory.tools} == {
            "get_current_time",
            "convert_time",
        }
    result = await model.train([group], learning_rate=1e-4, mask_truncated=False)
    assert (result.step, result.metrics["data/step_num_sequences"]) == (1, 4)
    # Log-probs of other tokens would be nats apart.
    assert result.metrics["loss/engine_logprob_diff"] < 1e-3
    await model.close()
    await backend.close()


async def test_the_answer_of_a_tool_is_used(time_server, call):
    arguments = {
        "source_timezone": "Europe/London",
        "time": "16:30",
        "target_timezone": "Asia/Tokyo",
    }
    wrong = call("convert_time", {**arguments, "time": "half past four"})
    turns = [wrong, call("convert_time", arguments), "01:30"]

    def score(trajectory, scenario):
        return rewards.exact_match(trajectory, "01:30")

    rollout = art.rollout_of(lambda: McpEnvironment(time_server, score=score))
    found = await rollout(Actor(Stage(in_turn(turns))), TASK)
    refused, converted = (m["content"] for m in found.messages() if m["role"] == "tool")
    assert refused.startswith("error: ")
    assert "+09:00" in converted
    assert found.reward == 1.0
