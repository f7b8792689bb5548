"""The examples whose agents are a graph of LangGraph and a program in another language."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import pytest

import art_core as art
from art_core.testing.echo import EchoBackend

EXAMPLES = Path(__file__).parent.parent / "examples"
# LangChain keeps one client for an address, which belongs to the first event loop.
pytestmark = pytest.mark.asyncio(loop_scope="session")

AGENT = """
import json, os, urllib.request
def post(path, body):
    request = urllib.request.Request(os.environ["GATEWAY_URL"] + path, json.dumps(body).encode(), {
        "Authorization": "Bearer " + os.environ["GATEWAY_KEY"], "Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))
for town in os.environ["TOWNS"].split():
    for attempt in range(int(os.environ["ATTEMPTS"])):
        begun = post("/attempts", {"scenario_id": town})
        post("/attempts/" + begun["id"] + "/end", {"reward": len(town) / 10})
"""


@pytest.fixture
async def served(tmp_path):
    """Open a model whose answers are given: `served(reply)`."""
    opened = []

    async def register(reply):
        backend = EchoBackend(reply=reply)
        model = art.TrainableModel(
            name="m", project="p", base_model="echo", base_path=tmp_path, sinks=[]
        )
        opened.extend([model, backend])
        await model.register(backend)
        return model

    yield register
    for each in opened:
        await each.close()


@pytest.mark.parametrize(
    ("says", "reward", "calls"),
    [
        (["{name}", "{answer}"], 1.0, 2),
        (["{name}", "{answer}."], 0.3, 2),
        (["{name} is"], 0.1, 1),
        (["Nobody"], 0.0, 1),
        (["{other}", "{answer}"], 0.0, 2),
    ],
)
async def test_a_graph_is_paid_for_the_person_that_it_looks_up_and_its_answer(
    served, says, reward, calls
):
    pytest.importorskip("langgraph")
    example = runpy.run_path(str(EXAMPLES / "langgraph_lookup.py"), run_name="example")
    task = example["TASKS"][0]
    other = next(name for name in example["PEOPLE"] if name != task["name"])
    answers = iter(text.format(other=other, **task) for text in says)
    model = await served(lambda messages, step: next(answers))
    attempt = await example["rollout"](model, task)
    assert attempt.reward == pytest.approx(reward)
    assert next(answers, None) is None
    choices = [
        item
        for history in attempt.histories()
        for item in history.messages_and_choices
        if not isinstance(item, dict)
    ]
    assert len(choices) == calls


async def test_an_agent_in_another_process_plays_a_group_for_each_town(served):
    example = runpy.run_path(str(EXAMPLES / "typescript_agent.py"), run_name="example")
    model = await served(lambda messages, step: "5")
    async with model.gateway() as gateway:
        groups = await example["play"](
            gateway, ["Rome", "Dublin"], shlex.join([sys.executable, "-c", AGENT])
        )
    assert [group.metadata["scenario_id"] for group in groups] == ["Rome", "Dublin"]
    assert [set(group.rewards) for group in groups] == [{0.4}, {0.6}]
    assert {len(group.rewards) for group in groups} == {example["ATTEMPTS"]}


async def test_an_agent_that_is_not_there_or_fails_ends_the_example(served):
    example = runpy.run_path(str(EXAMPLES / "typescript_agent.py"), run_name="example")
    model = await served(lambda messages, step: "5")
    async with model.gateway() as gateway:
        with pytest.raises(art.ConfigError, match="npm install"):
            await example["play"](gateway, ["Rome"], "/no/such/tsx guess.ts")
        with pytest.raises(art.InfrastructureError, match="status 3"):
            await example["play"](gateway, ["Rome"], f"{sys.executable} -c 'raise SystemExit(3)'")
