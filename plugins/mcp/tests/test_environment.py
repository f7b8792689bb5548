"""Environments of MCP servers: through the contract, over both transports, and trained."""

import socket
import threading
from typing import ClassVar

import pytest
import uvicorn
from mcp.server.mcpserver import MCPServer

import art_core as art
from art_core import rewards
from art_core.testing.echo import EchoBackend
from art_core.testing.environment import EnvironmentContract
from art_mcp import McpEnvironment, McpServer
from waiting import until

TASKS = [
    {"id": fruit, "task": f"What does one {fruit} cost?", "answer": price}
    for fruit, price in {"apple": "3", "pear": "5"}.items()
]


def exact(trajectory, scenario):
    return rewards.exact_match(trajectory, scenario["answer"])


class TestContract(EnvironmentContract):
    scenarios: ClassVar = TASKS

    @pytest.fixture(autouse=True)
    def _servers(self, small, call):
        self.small, self.call = small, call

    def environment(self):
        return McpEnvironment(self.small(), score=exact, max_turns=3)

    def broken_environment(self):
        return McpEnvironment(self.small("dies"), score=exact)

    def right_turns(self, scenario):
        return [self.call("shop_look_up", {"fruit": scenario["id"]}), scenario["answer"]]


async def train(environment, reply, tmp_path):
    """Train a step on two attempts at the first task; return the group and the result."""
    backend = EchoBackend(reply=reply)
    model = art.TrainableModel(
        name="m", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    rollout = art.rollout_of(environment)
    (group,) = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(model, TASKS[0]) for _ in range(2))], pbar_desc=None
    )
    result = await model.train([group])
    await model.close()
    await backend.close()
    return group, result


@pytest.fixture
def shop_url():
    """Serve a server of the mcp package over streamable HTTP."""
    shop = MCPServer("shop")

    @shop.tool()
    def price(fruit: str) -> str:
        """Return the price of a fruit."""
        return {"apple": "3"}.get(fruit, "no such fruit")

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(shop.streamable_http_app(), log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    server.should_exit = True
    thread.join()
    listener.close()


async def test_a_server_over_streamable_http_is_used_and_a_step_is_trained(
    shop_url, call, tmp_path
):
    turns = iter("34")

    def reply(messages, step):
        asked = messages[-1]["role"] != "tool"
        return call("price", {"fruit": "apple"}) if asked else next(turns)

    server = McpServer(url=shop_url, headers={"X-Token": "t"})

    def environment():
        return McpEnvironment(server, score=exact, instructions="Be brief.")

    group, result = await train(environment, reply, tmp_path)
    assert sorted(group.rewards) == [0.0, 1.0]
    roles = [message["role"] for message in group.trajectories[0].messages()]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert group.trajectories[0].messages()[3]["content"] == "3"
    assert result.step == 1


async def test_a_server_that_dies_is_a_failure_and_a_wrong_answer_a_reward(small, call):
    def attempt(fault, *turns):
        from art_core.testing.scripts import Actor, Stage, in_turn

        rollout = art.rollout_of(lambda: McpEnvironment(small(fault), score=exact))
        return rollout(Actor(Stage(in_turn(turns))), TASKS[0])

    looking = call("shop_look_up", {"fruit": "apple"})
    attempts = [attempt("", looking, "4"), attempt("dies", looking, "3")]
    (group,) = await art.gather_trajectory_groups([art.TrajectoryGroup(attempts)], pbar_desc=None)
    assert group.rewards == [0.0]
    assert [failure.reason for failure in group.failures] == ["infrastructure"]


async def test_without_a_score_the_reward_is_left_to_a_judge(small):
    environment = McpEnvironment(small())
    await environment.reset("What does an apple cost?")
    assert await environment.score(art.Trajectory()) == 0.0
    await environment.close()


@pytest.mark.parametrize("scenario", ["", {"task": " "}, {"question": "x"}, 3])
async def test_a_scenario_without_a_task_is_an_error(small, scenario):
    environment = McpEnvironment(small())
    with pytest.raises(art.ConfigError, match="has no task"):
        await environment.reset(scenario)
    await environment.close()
